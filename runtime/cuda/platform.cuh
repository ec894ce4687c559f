// The CUDA language for the kernels: CUDA's own, or its emulation where a C++ compiler builds them for a CPU.
#ifndef TATOK_PLATFORM_CUH
#define TATOK_PLATFORM_CUH

#include "../cpp/common.hpp"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define TATOK_LAUNCH(kernel, grid, block, stream, ...) (kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__))
#else
#include <cstring>

#include "emulator.hpp"
#endif

namespace tatok {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xFFFFFFFFu;

// A float16 by its bits.
struct Half {
    std::uint16_t bits;
};

TATOK_FUNC float to_float(float value) { return value; }

// Exact: every float16 is a float32.
TATOK_FUNC float to_float(Half value) {
#if defined(__CUDA_ARCH__)
    return __half2float(__ushort_as_half(value.bits));
#else
    const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u) << 16, rest = value.bits & 0x7FFFu;
    std::uint32_t bits;
    if (rest >= 0x7C00u) {  // infinities and NaN
        bits = (rest << 13) | 0x7F800000u;
    } else if (rest >= 0x0400u) {
        bits = (rest << 13) + ((127u - 15u) << 23);
    } else {  // zero and denormals: a count of 2^-24
        const float tiny = static_cast<float>(rest) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &tiny, sizeof(bits));
    }
    bits |= sign;
    float result;
    std::memcpy(&result, &bits, sizeof(result));
    return result;
#endif
}

}  // namespace tatok

#endif
