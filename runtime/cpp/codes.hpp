// Codes of finite scalar quantization: token ids, information, and the state that the decoder takes.
#ifndef TATOK_CODES_HPP
#define TATOK_CODES_HPP

#include <cstring>

#include "common.hpp"

namespace tatok {

// Levels per code dimension; their product fits int32.
struct Levels {
    int dims;
    std::int32_t level[kMaxDims];
};

// Centre of the bin of a code, in (-1, 1).
TATOK_FUNC float code_value(std::int32_t code, std::int32_t level) {
    return static_cast<float>(2 * code + 1) / static_cast<float>(level) - 1.0f;
}

TATOK_FUNC bool valid_code(std::int32_t code, std::int32_t level) { return code >= 0 && code < level; }

// The flat index of the first of (count, dims) codes outside its levels, or kOk.
inline index_t check_codes(const std::int32_t* codes, index_t count, const Levels& levels) {
    for (index_t t = 0; t < count; ++t) {
        for (int d = 0; d < levels.dims; ++d) {
            if (!valid_code(codes[t * levels.dims + d], levels.level[d])) return t * levels.dims + d;
        }
    }
    return kOk;
}

// The first of `count` ids outside [0, product of the levels), or kOk.
inline index_t check_ids(const std::int32_t* ids, index_t count, const Levels& levels) {
    std::int32_t size = 1;
    for (int d = 0; d < levels.dims; ++d) size *= levels.level[d];
    for (index_t t = 0; t < count; ++t) {
        if (ids[t] < 0 || ids[t] >= size) return t;
    }
    return kOk;
}

// Mixed radix, dimension 0 the least significant. Codes must have been checked.
TATOK_FUNC std::int32_t id_from_code(const std::int32_t* code, const Levels& levels) {
    std::int32_t id = 0;
    for (int d = levels.dims - 1; d >= 0; --d) id = id * levels.level[d] + code[d];
    return id;
}

TATOK_FUNC void code_from_id(std::int32_t id, const Levels& levels, std::int32_t* code) {
    for (int d = 0; d < levels.dims; ++d) {
        code[d] = id % levels.level[d];
        id /= levels.level[d];
    }
}

// Bits that one code brings: -sum_d log2 q_d(code_d), at least 0. `log2_probs` is (sum of levels, patches).
TATOK_FUNC float code_information(const float* log2_probs, index_t patches, const std::int32_t* code,
                                  std::int32_t position, const Levels& levels) {
    float bits = 0.0f;
    index_t row = 0;
    for (int d = 0; d < levels.dims; ++d) {
        bits -= log2_probs[(row + code[d]) * patches + position];
        row += levels.level[d];
    }
    return bits < 0.0f ? 0.0f : bits;
}

// Input of the decoder, (dims + 2, patches): code values (the expected ones where nothing is kept), the keep bit, and
// the entropy over 16. Codes and positions must have been checked.
inline void decoder_state(const std::int32_t* codes, const std::int32_t* positions, index_t count,
                          const float* expected, const float* entropy, index_t patches, const Levels& levels,
                          float* out) {
    float* keep = out + levels.dims * patches;
    float* scaled = keep + patches;
    std::memcpy(out, expected, static_cast<std::size_t>(levels.dims * patches) * sizeof(float));
    for (index_t i = 0; i < patches; ++i) keep[i] = 0.0f;
    for (index_t i = 0; i < patches; ++i) scaled[i] = entropy[i] * 0.0625f;
    for (index_t t = 0; t < count; ++t) {
        for (int d = 0; d < levels.dims; ++d) {
            out[d * patches + positions[t]] = code_value(codes[t * levels.dims + d], levels.level[d]);
        }
        keep[positions[t]] = 1.0f;
    }
}

}  // namespace tatok

#endif
