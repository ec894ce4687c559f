// Shared by every kernel core: decorations, rounding, and a strided view of an image.
//
// The cores are plain functions on raw pointers. They check nothing that the caller can check
// once per call (shapes, dtypes); what depends on the data (positions, codes, scores) they check
// themselves and report the first offender, so that no data can make them read or write outside.
#ifndef TATOK_COMMON_HPP
#define TATOK_COMMON_HPP

#include <cstddef>
#include <cstdint>

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
#define TATOK_HOT __attribute__((target_clones("avx2", "default"))) static
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

using index_t = std::int64_t;

constexpr index_t kPatch = 8;        // side of a patch in pixels
constexpr index_t kWindow = 16;      // side of the window around a patch
constexpr index_t kCell = 32;        // side of a cell
constexpr index_t kThumbnail = 4;    // side of the square of pixels that one thumbnail pixel averages
constexpr index_t kPatchRun = kPatch * 3;  // bytes of one pixel row of a patch
constexpr index_t kPatchValues = kPatch * kPatch * 3;
constexpr index_t kWindowValues = kWindow * kWindow * 3;
constexpr index_t kMargin = (kWindow - kPatch) / 2;
constexpr index_t kBlock = 16;       // patches of a row that are worked on together
constexpr index_t kOk = -1;          // what a checking core returns when no element is bad

// Rounds 0 <= x < 2^31 to the nearest integer, ties to even: above 2^23 a float32 has no fraction, and below,
// adding 2^23 makes the addition itself round. Needs no SSE4.1 and vectorises; relies on strict IEEE arithmetic.
TATOK_FUNC float round_half_even(float x) {
    const float shifted = (x + 8388608.0f) - 8388608.0f;
    return x < 8388608.0f ? shifted : x;
}

TATOK_FUNC index_t clamp_index(index_t i, index_t size) { return i < 0 ? 0 : (i < size ? i : size - 1); }

// An (height, width, 3) uint8 image with any strides, in bytes. A BGR image is the RGB view that starts at its last
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
