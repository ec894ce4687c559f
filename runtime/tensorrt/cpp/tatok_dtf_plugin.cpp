// TaTokDTF, version 1: Dynamic Token Filtering as a TensorRT plugin (IPluginV3, TensorRT 10.3 to 11 and TensorRT-RTX).
//
// Input: scores (B, N, K), float32 or float16. Outputs, int32: dense positions (B, N * K), in raster order and padded
// with -1; their depths (B, N * K), from 1 and padded with 0; and counts (B); a count below 0 says which score is bad
// (tatok_cuda.h). Dense outputs, because the type of size tensors is not the same in all versions. The limits are
// integers, so that no float of an ONNX attribute can differ from the double that the caller gave.
//
// The library links no TensorRT: it exports the functions that IPluginRegistry::loadLibrary looks for.
#include <NvInferRuntime.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <new>

#include "../../cuda/tatok_cuda.h"

namespace {

using namespace nvinfer1;

constexpr char const* kName = "TaTokDTF";
constexpr char const* kVersion = "1";
constexpr char const* kNamespace = "tatok";
constexpr std::int32_t kMaxPatches = 65536;
constexpr std::int32_t kMaxDepth = 8;
constexpr std::int32_t kOutputs = 3;

ILoggerFinder* logger_finder = nullptr;

void log_error(char const* text) noexcept {
    ILogger* logger = logger_finder ? logger_finder->findLogger() : nullptr;
    if (logger) {
        logger->log(ILogger::Severity::kERROR, text);
    } else {
        std::fprintf(stderr, "%s\n", text);
    }
}

// Values of the fields of the plugin.
struct Limits {
    std::int32_t tau_q30 = 1 << 30;
    std::int32_t min_tokens = 0;
    std::int32_t max_tokens = INT32_MAX;
    std::int32_t floor_q16 = 0;

    static constexpr int kFields = 4;
    static constexpr std::array<char const*, kFields> names{"tau_q30", "min_tokens", "max_tokens", "floor_q16"};
    std::array<std::int32_t*, kFields> values() { return {&tau_q30, &min_tokens, &max_tokens, &floor_q16}; }
};
constexpr std::array<char const*, Limits::kFields> Limits::names;

bool read_field(PluginField const& field, std::int32_t* value) {
    if (field.length != 1 || field.data == nullptr) return false;
    if (field.type == PluginFieldType::kINT32) {
        std::memcpy(value, field.data, sizeof(*value));
        return true;
    }
    if (field.type == PluginFieldType::kINT64) {
        std::int64_t wide;
        std::memcpy(&wide, field.data, sizeof(wide));
        *value = static_cast<std::int32_t>(wide);
        return wide == *value;
    }
    return false;
}

class DtfPlugin final : public IPluginV3,
                        public IPluginV3OneCore,
                        public IPluginV3OneBuild,
                        public IPluginV3OneRuntime {
  public:
    explicit DtfPlugin(Limits const& limits) : limits_(limits) {}

    // IPluginV3
    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }
    IPluginV3* clone() noexcept override { return new (std::nothrow) DtfPlugin(limits_); }

    // IPluginV3OneCore
    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

    // IPluginV3OneBuild
    std::int32_t getNbOutputs() const noexcept override { return kOutputs; }
    std::int32_t configurePlugin(DynamicPluginTensorDesc const*, std::int32_t, DynamicPluginTensorDesc const*,
                                 std::int32_t) noexcept override {
        return 0;
    }
    bool supportsFormatCombination(std::int32_t position, DynamicPluginTensorDesc const* in_out, std::int32_t inputs,
                                   std::int32_t outputs) noexcept override {
        if (inputs != 1 || outputs != kOutputs || position < 0 || position > kOutputs) return false;
        PluginTensorDesc const& tensor = in_out[position].desc;
        if (tensor.format != TensorFormat::kLINEAR) return false;
        if (position == 0) return tensor.type == DataType::kFLOAT || tensor.type == DataType::kHALF;
        return tensor.type == DataType::kINT32;
    }
    std::int32_t getOutputDataTypes(DataType* output_types, std::int32_t outputs, DataType const*,
                                    std::int32_t inputs) const noexcept override {
        if (inputs != 1 || outputs != kOutputs) return -1;
        for (int i = 0; i < kOutputs; ++i) output_types[i] = DataType::kINT32;
        return 0;
    }
    std::int32_t getOutputShapes(DimsExprs const* inputs, std::int32_t input_count, DimsExprs const*, std::int32_t,
                                 DimsExprs* outputs, std::int32_t output_count,
                                 IExprBuilder& builder) noexcept override {
        if (input_count != 1 || output_count != kOutputs || inputs[0].nbDims != 3) {
            log_error("TaTokDTF takes one input, scores (B, N, K)");
            return -1;
        }
        outputs[0].nbDims = outputs[1].nbDims = 2;
        outputs[2].nbDims = 1;
        for (int i = 0; i < kOutputs; ++i) outputs[i].d[0] = inputs[0].d[0];
        outputs[0].d[1] = outputs[1].d[1] = builder.operation(DimensionOperation::kPROD, *inputs[0].d[1], *inputs[0].d[2]);
        return outputs[0].d[1] != nullptr ? 0 : -1;
    }

    // IPluginV3OneRuntime
    std::int32_t setTactic(std::int32_t) noexcept override { return 0; }
    std::int32_t onShapeChange(PluginTensorDesc const* inputs, std::int32_t, PluginTensorDesc const*,
                               std::int32_t) noexcept override {
        Dims const& dims = inputs[0].dims;
        if (dims.nbDims != 3 || dims.d[1] > kMaxPatches || dims.d[2] < 1 || dims.d[2] > kMaxDepth) {
            log_error("TaTokDTF takes scores (B, N, K) with N up to 65536 and K from 1 to 8");
            return -1;
        }
        return 0;
    }
    std::int32_t enqueue(PluginTensorDesc const* input_desc, PluginTensorDesc const*, void const* const* inputs,
                         void* const* outputs, void*, cudaStream_t stream) noexcept override {
        tatok_dtf_limits const limits{limits_.tau_q30, limits_.min_tokens, limits_.max_tokens, limits_.floor_q16};
        auto const size = [&](int axis) { return static_cast<std::int32_t>(input_desc[0].dims.d[axis]); };
        auto const output = [&](int i) { return static_cast<std::int32_t*>(outputs[i]); };
        tatok_scores const scores{inputs[0], std::int64_t{size(1)} * size(2), size(2), 1, size(0), size(1), size(2),
                                  input_desc[0].type == DataType::kHALF};
        int const error = tatok_dtf(&scores, &limits, output(0), output(1), output(2), stream);
        if (error != 0) {
            char text[200];
            std::snprintf(text, sizeof(text), "TaTokDTF failed: %s (CUDA error %d)", tatok_error_text(error), error);
            log_error(text);
        }
        return error;
    }
    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        auto const values = limits_.values();
        for (int i = 0; i < Limits::kFields; ++i) {
            fields_[i] = PluginField(Limits::names[i], values[i], PluginFieldType::kINT32, 1);
        }
        collection_ = PluginFieldCollection{Limits::kFields, fields_.data()};
        return &collection_;
    }

  private:
    Limits limits_;
    std::array<PluginField, Limits::kFields> fields_;
    PluginFieldCollection collection_{};
};

class DtfCreator final : public IPluginCreatorV3One {
  public:
    DtfCreator() {
        for (int i = 0; i < Limits::kFields; ++i) {
            fields_[i] = PluginField(Limits::names[i], nullptr, PluginFieldType::kINT32, 1);
        }
        collection_ = PluginFieldCollection{Limits::kFields, fields_.data()};
    }
    IPluginV3* createPlugin(AsciiChar const* name, PluginFieldCollection const* fields,
                            TensorRTPhase) noexcept override {
        Limits limits;
        for (std::int32_t f = 0; fields != nullptr && f < fields->nbFields; ++f) {
            PluginField const& field = fields->fields[f];
            for (int i = 0; i < Limits::kFields; ++i) {
                if (field.name == nullptr || std::strcmp(field.name, Limits::names[i]) != 0) continue;
                if (!read_field(field, limits.values()[i])) return refuse(name, Limits::names[i]);
            }
        }
        if (limits.tau_q30 < 1 || limits.tau_q30 > 1 << 30) return refuse(name, "tau_q30");
        if (limits.min_tokens < 0) return refuse(name, "min_tokens");
        if (limits.max_tokens < limits.min_tokens) return refuse(name, "max_tokens");
        if (limits.floor_q16 < 0) return refuse(name, "floor_q16");
        return new (std::nothrow) DtfPlugin(limits);
    }
    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    AsciiChar const* getPluginName() const noexcept override { return kName; }
    AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
    AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  private:
    static IPluginV3* refuse(char const* node, char const* field) noexcept {
        char text[200];
        std::snprintf(text, sizeof(text),
                      "TaTokDTF %.60s: %s is no integer in range (tau_q30 1 to 2^30; 0 <= min_tokens <= max_tokens; "
                      "floor_q16 >= 0)",
                      node ? node : "", field);
        log_error(text);
        return nullptr;
    }

    std::array<PluginField, Limits::kFields> fields_;
    PluginFieldCollection collection_{};
};

}  // namespace

extern "C" {

TATOK_API void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { logger_finder = finder; }

TATOK_API nvinfer1::IPluginCreatorInterface* const* getCreators(std::int32_t& count) {
    static DtfCreator creator;
    static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

}  // extern "C"
