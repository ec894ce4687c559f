// Codes on the device, with the bits of codes.hpp: the input of the decoder, and the information of codes.
#ifndef TATOK_CODES_CUH
#define TATOK_CODES_CUH

#include "../cpp/codes.hpp"
#include "platform.cuh"

namespace tatok {

constexpr int kCodesThreads = 256;

TATOK_FUNC bool valid_codes(const std::int32_t* code, const Levels& levels) {
    for (int d = 0; d < levels.dims; ++d) {
        if (!valid_code(code[d], levels.level[d])) return false;
    }
    return true;
}

// The decoder's input with nothing kept: expected (images, depth * dims, patches) and entropy (images, depth, patches)
// to state (images, depth * (dims + 2), patches). Grid (ceil(patches / 256), depth * (dims + 2), images).
__global__ void __launch_bounds__(kCodesThreads)
    empty_state_kernel(const float* __restrict__ expected, const float* __restrict__ entropy, int patches, int depth,
                       int dims, float* __restrict__ state) {
    const index_t i = static_cast<index_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    const int channel = static_cast<int>(blockIdx.y), values = depth * dims, scaled = channel - values - depth;
    const index_t b = blockIdx.z;
    if (i >= patches) return;
    float value = 0.0f;
    if (channel < values) value = expected[(b * values + channel) * patches + i];
    if (scaled >= 0) value = entropy[(b * depth + scaled) * patches + i] * 0.0625f;
    state[(b * depth * (dims + 2) + channel) * patches + i] = value;
}

// Codes (count, dims) at flat positions, which never fall, into the state: a position that comes for the k-th time has
// the k-th token of its patch. A position outside the batch, a code outside its levels, or a token too deep is skipped:
// its place stays as if it had not been kept.
__global__ void __launch_bounds__(kCodesThreads)
    scatter_kernel(const std::int32_t* __restrict__ codes, const std::int32_t* __restrict__ positions, int count,
                   int images, int patches, int depth, Levels levels, float* __restrict__ state) {
    const index_t t = static_cast<index_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    if (t >= count) return;
    const index_t position = positions[t];
    const std::int32_t* code = codes + t * levels.dims;
    if (position < 0 || position >= static_cast<index_t>(images) * patches || !valid_codes(code, levels)) return;
    int token = 0;
    while (token < depth && token < t && positions[t - 1 - token] == position) ++token;
    if (token == depth) return;
    float* image = state + position / patches * depth * (levels.dims + 2) * patches + position % patches;
    float* value = image + static_cast<index_t>(token) * levels.dims * patches;
    for (int d = 0; d < levels.dims; ++d, value += patches) *value = code_value(code[d], levels.level[d]);
    image[(static_cast<index_t>(depth) * levels.dims + token) * patches] = 1.0f;
}

// Bits that the stacks of codes (count, stack * dims) at flat positions bring, the smallest up to each depth: bits
// (count, depth), depth <= stack. log2_probs (images, stack * sum of levels, patches). A position outside the batch, or
// a code outside its levels, brings none.
__global__ void __launch_bounds__(kCodesThreads)
    information_kernel(const float* __restrict__ log2_probs, const std::int32_t* __restrict__ codes,
                       const std::int32_t* __restrict__ positions, int count, int images, int patches, int level_sum,
                       int stack, int depth, Levels levels, float* __restrict__ bits) {
    const index_t t = static_cast<index_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    if (t >= count) return;
    const index_t position = positions[t];
    const std::int32_t* code = codes + t * stack * levels.dims;
    const bool inside = position >= 0 && position < static_cast<index_t>(images) * patches;
    float least = 0.0f;
    for (int k = 0; k < depth; ++k, code += levels.dims) {
        float own = 0.0f;
        if (inside && valid_codes(code, levels)) {
            const float* rows = log2_probs + (position / patches * stack + k) * level_sum * patches;
            own = code_information(rows, patches, code, static_cast<std::int32_t>(position % patches), levels);
        }
        least = k > 0 && own >= least ? least : own;  // a NaN stays, so that the filter refuses it
        bits[t * depth + k] = least;
    }
}

}  // namespace tatok

#endif
