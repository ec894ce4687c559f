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

// The decoder's input with nothing kept: expected (images, dims, patches) and entropy (images, patches) to
// state (images, dims + 2, patches). Grid (ceil(patches / 256), dims + 2, images).
__global__ void __launch_bounds__(kCodesThreads)
    empty_state_kernel(const float* __restrict__ expected, const float* __restrict__ entropy, int patches, int dims,
                       float* __restrict__ state) {
    const index_t i = static_cast<index_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    const int d = static_cast<int>(blockIdx.y);
    const index_t b = blockIdx.z;
    if (i >= patches) return;
    float value = 0.0f;
    if (d < dims) value = expected[(b * dims + d) * patches + i];
    if (d == dims + 1) value = entropy[b * patches + i] * 0.0625f;
    state[(b * (dims + 2) + d) * patches + i] = value;
}

// Codes (count, dims) at flat positions into the state. A position outside the batch, or a code outside its levels, is
// skipped: the place stays as if it had not been kept. Positions must differ from one another.
__global__ void __launch_bounds__(kCodesThreads)
    scatter_kernel(const std::int32_t* __restrict__ codes, const std::int32_t* __restrict__ positions, int count,
                   int images, int patches, Levels levels, float* __restrict__ state) {
    const index_t t = static_cast<index_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    if (t >= count) return;
    const index_t position = positions[t];
    const std::int32_t* code = codes + t * levels.dims;
    if (position < 0 || position >= static_cast<index_t>(images) * patches || !valid_codes(code, levels)) return;
    float* column = state + position / patches * (levels.dims + 2) * patches + position % patches;
    for (int d = 0; d < levels.dims; ++d, column += patches) *column = code_value(code[d], levels.level[d]);
    *column = 1.0f;
}

// Bits that codes (count, dims) at flat positions bring: bits (count). log2_probs (images, sum of levels, patches).
// A position outside the batch, or a code outside its levels, brings none.
__global__ void __launch_bounds__(kCodesThreads)
    information_kernel(const float* __restrict__ log2_probs, const std::int32_t* __restrict__ codes,
                       const std::int32_t* __restrict__ positions, int count, int images, int patches, int level_sum,
                       Levels levels, float* __restrict__ bits) {
    const index_t t = static_cast<index_t>(blockIdx.x) * kCodesThreads + threadIdx.x;
    if (t >= count) return;
    const index_t position = positions[t];
    const std::int32_t* code = codes + t * levels.dims;
    const bool known = position >= 0 && position < static_cast<index_t>(images) * patches && valid_codes(code, levels);
    if (!known) {
        bits[t] = 0.0f;
        return;
    }
    const float* image = log2_probs + position / patches * level_sum * patches;
    bits[t] = code_information(image, patches, code, static_cast<std::int32_t>(position % patches), levels);
}

}  // namespace tatok

#endif
