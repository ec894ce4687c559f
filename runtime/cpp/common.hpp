// Shared by all kernel cores: attributes of functions, rounding, and a strided view of an image.
//
// The cores are plain functions on raw pointers. The caller checks shapes and dtypes. The cores check the data
// (positions, codes, scores) and report the first bad element, so that no data makes them read or write outside.
#ifndef TATOK_COMMON_HPP
#define TATOK_COMMON_HPP

#include <cstddef>
#include <cstdint>

#include "geometry.hpp"

// Per-element functions, also callable from a GPU kernel.
#if defined(__CUDACC__)
#define TATOK_FUNC __host__ __device__ inline
#else
#define TATOK_FUNC inline
#endif

// Hot loops, compiled for AVX2 as well and chosen at load time. Only element-wise float operations and
// integer sums are in them, without fused multiply-add, so both versions give the same bits.
// musl and macOS have no ifunc; sanitizers do not get along with it (define TATOK_NO_CLONES there).
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__CUDACC__) && !defined(TATOK_NO_CLONES)
#define TATOK_HOT __attribute__((target_clones("avx2", "default"), unused)) static
#else
#define TATOK_HOT static inline
#endif

// Parts of hot loops: always inlined, so that each version of the loop compiles them for its own instructions.
#if defined(__GNUC__)
#define TATOK_PART __attribute__((always_inline)) inline
#else
#define TATOK_PART inline
#endif

namespace tatok {

constexpr index_t kBlock = 16;  // neighbours in a row of patches that a loop takes together
constexpr index_t kOk = -1;     // result of a check that finds no bad element
constexpr int kMaxDims = 16;    // most dimensions of a code
constexpr int kMaxDepth = 8;    // most tokens of a patch

// Rounds 0 <= x < 2^31 to the nearest integer, ties to even: above 2^23 a float32 has no fraction, and below,
// adding 2^23 makes the addition itself round. Needs no SSE4.1 and vectorises; relies on strict IEEE arithmetic.
TATOK_FUNC float round_half_even(float x) {
    const float shifted = (x + 8388608.0f) - 8388608.0f;
    return x < 8388608.0f ? shifted : x;
}

TATOK_FUNC index_t clamp_index(index_t i, index_t size) { return i < 0 ? 0 : (i < size ? i : size - 1); }

// The first of `count` positions outside [0, patches), or kOk.
inline index_t check_positions(const std::int32_t* positions, index_t count, index_t patches) {
    for (index_t t = 0; t < count; ++t) {
        if (positions[t] < 0 || positions[t] >= patches) return t;
    }
    return kOk;
}

// A (height, width, 3) uint8 image with any strides, in bytes. A BGR image is the RGB view that starts at its last
// channel and steps backwards.
struct ImageView {
    const std::uint8_t* data;
    std::ptrdiff_t row, pixel, channel;
    index_t height, width;

    static ImageView make(const std::uint8_t* data, std::ptrdiff_t row, std::ptrdiff_t pixel, std::ptrdiff_t channel,
                          index_t height, index_t width, bool bgr) {
        if (bgr) {
            data += 2 * channel;
            channel = -channel;
        }
        return ImageView{data, row, pixel, channel, height, width};
    }
    // Whether the three bytes of each pixel and the pixels of a row follow one another in memory.
    bool packed() const { return pixel == 3 && (channel == 1 || channel == -1); }
    // First byte of a packed row.
    const std::uint8_t* packed_row(index_t y) const { return data + y * row + (channel < 0 ? -2 : 0); }
    const std::uint8_t* at(index_t y, index_t x) const { return data + y * row + x * pixel; }
};

}  // namespace tatok

#endif
