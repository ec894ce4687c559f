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

// The first of `count` positions outside [0, patches), below the one before, or coming for the `depth + 1`-th time;
// kOk where there is none.
inline index_t check_stacks(const std::int32_t* positions, index_t count, index_t patches, index_t depth) {
    for (index_t t = 0; t < count; ++t) {
        if (positions[t] < 0 || positions[t] >= patches) return t;
        if (t > 0 && positions[t] < positions[t - 1]) return t;
        if (t >= depth && positions[t] == positions[t - depth]) return t;
    }
    return kOk;
}

// Input of the decoder, (depth * (dims + 2), patches): code values of each stack (the expected ones where no token is
// kept), the keep bits, and the entropies over 16. `expected` is (depth * dims, patches), `entropy` (depth, patches).
// Codes and positions (with check_stacks) must have been checked.
inline void decoder_state(const std::int32_t* codes, const std::int32_t* positions, index_t count, index_t depth,
                          const float* expected, const float* entropy, index_t patches, const Levels& levels,
                          float* out) {
    float* keep = out + depth * levels.dims * patches;
    float* scaled = keep + depth * patches;
    std::memcpy(out, expected, static_cast<std::size_t>(depth * levels.dims * patches) * sizeof(float));
    for (index_t i = 0; i < depth * patches; ++i) keep[i] = 0.0f;
    for (index_t i = 0; i < depth * patches; ++i) scaled[i] = entropy[i] * 0.0625f;
    for (index_t t = 0, token = 0; t < count; ++t) {
        token = t > 0 && positions[t] == positions[t - 1] ? token + 1 : 0;
        float* stack = out + token * levels.dims * patches;
        for (int d = 0; d < levels.dims; ++d) {
            stack[d * patches + positions[t]] = code_value(codes[t * levels.dims + d], levels.level[d]);
        }
        keep[token * patches + positions[t]] = 1.0f;
    }
}

}  // namespace tatok

#endif
