// Between uint8 frames and the float layouts of the networks, with the bits of pixels.hpp.
#ifndef TATOK_PIXELS_CUH
#define TATOK_PIXELS_CUH

#include "../cpp/pixels.hpp"
#include "frame.cuh"

namespace tatok {

constexpr int kCellsThreads = 256;
constexpr int kThumbnailsPerCell = static_cast<int>(kCellThumbnails);

// Thumbnails of the padded frames: cells (images, 192, cell_rows * cell_columns), channels in (y, x, rgb) order.
// A block makes one row of thumbnail pixels: grid (cell_rows * 8, images). Threads that follow one another take cells
// that follow one another, so that the writes are contiguous; the reads between theirs come from the cache.
__global__ void __launch_bounds__(kCellsThreads)
    cells_kernel(Frames frames, int cell_rows, int cell_columns, float* __restrict__ cells) {
    const int b = static_cast<int>(blockIdx.y), ty = static_cast<int>(blockIdx.x);
    const index_t plane = static_cast<index_t>(cell_rows) * cell_columns;
    float* out = cells + b * plane * kCellValues + (ty / kThumbnailsPerCell) * cell_columns;
    for (int i = static_cast<int>(threadIdx.x); i < kThumbnailsPerCell * cell_columns; i += kCellsThreads) {
        const int tx = i / cell_columns, cx = i % cell_columns;
        std::int32_t sums[3] = {0, 0, 0};
        for (int r = 0; r < kThumbnail; ++r) {
            std::uint8_t run[kThumbnail * 3];
            load_run<kThumbnail>(frames, b, ty * kThumbnail + r, cx * kCell + tx * kThumbnail, run);
            for (int p = 0; p < kThumbnail; ++p) {
                for (int c = 0; c < 3; ++c) sums[c] += run[3 * p + c];
            }
        }
        const int channel = ((ty % kThumbnailsPerCell) * kThumbnailsPerCell + tx) * 3;
        for (int c = 0; c < 3; ++c) out[(channel + c) * plane + cx] = thumbnail_value(sums[c]);
    }
}

constexpr int kRows = 32;           // feature rows of one block
constexpr int kFeatureThreads = 256;
constexpr int kColumns = 32;        // channels of the maps that a block turns at a time

// pixel_to_float without a division: the product with 1 / 127.5, corrected by one step of Newton's method. It gives the
// correctly rounded quotient for all 256 values, which the tests go through.
TATOK_FUNC float pixel_to_float_fast(std::uint8_t value) {
    constexpr float kInverse = 1.0f / 127.5f;
    const float v = static_cast<float>(value);
#if defined(__CUDA_ARCH__)
    const float quotient = __fmul_rn(v, kInverse);
    return __fmaf_rn(__fmaf_rn(-quotient, 127.5f, v), kInverse, quotient) - 1.0f;
#else
    const float quotient = v * kInverse;
    return __builtin_fmaf(__builtin_fmaf(-quotient, 127.5f, v), kInverse, quotient) - 1.0f;
#endif
}

// Rows [window 768 | context | mean 192] for flat positions (image * patches + patch): rows (count, 960 + channels).
// context (images, context_channels, patches), mean (images, 192, patches). A position outside the batch gives a row
// of zeros: so the -1 behind the last position pad the batch of a profile. A block makes 32 rows.
__global__ void __launch_bounds__(kFeatureThreads)
    features_kernel(Frames frames, const float* __restrict__ context, int context_channels,
                    const float* __restrict__ mean, const std::int32_t* __restrict__ positions, int count,
                    int patches, int grid_width, float* __restrict__ rows) {
    __shared__ float turned[kColumns][kRows + 1];  // one more, so that a column lies in as many banks as a row
    __shared__ std::int32_t shared_image[kRows], shared_patch[kRows];
    const int thread = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kRows;
    const int n = count - first < kRows ? count - first : kRows;
    const int stride = static_cast<int>(kWindowValues + kPatchValues) + context_channels;
    float* out = rows + static_cast<index_t>(first) * stride;

    if (thread < kRows) {
        const std::int32_t position = thread < n ? positions[first + thread] : -1;
        const bool known = position >= 0 && position < static_cast<index_t>(frames.images) * patches;
        shared_image[thread] = known ? position / patches : -1;
        shared_patch[thread] = known ? position % patches : 0;
    }
    __syncthreads();

    constexpr int kRun = static_cast<int>(kWindowRun);
    for (int j = 0; j < n; ++j) {
        const int b = shared_image[j], patch = shared_patch[j];
        const index_t y0 = patch / grid_width * kPatch - kWindowMargin;
        const index_t x0 = patch % grid_width * kPatch - kWindowMargin;
        for (int i = thread; i < kWindowValues; i += kFeatureThreads) {
            float value = 0.0f;
            if (b >= 0) {
                const int inside = i % kRun;
                const index_t y = clamp_index(y0 + i / kRun, frames.height);
                const index_t x = clamp_index(x0 + inside / 3, frames.width);
                value = pixel_to_float_fast(frames.at(b, y, x)[inside % 3 * frames.channel]);
            }
            out[static_cast<index_t>(j) * stride + i] = value;
        }
    }

    // The maps are read along the patches and written along the channels.
    const int lane = thread % kWarpSize, warp = thread / kWarpSize;
    const int channels = context_channels + static_cast<int>(kPatchValues);
    for (int start = 0; start < channels; start += kColumns) {
        for (int c = warp; c < kColumns && start + c < channels; c += kFeatureThreads / kWarpSize) {
            const int b = shared_image[lane], channel = start + c;
            float value = 0.0f;
            if (b >= 0) {
                const index_t in_context = static_cast<index_t>(b) * context_channels + channel;
                const index_t in_mean = b * kPatchValues + channel - context_channels;
                const bool is_context = channel < context_channels;
                const float* map = is_context ? context + in_context * patches : mean + in_mean * patches;
                value = map[shared_patch[lane]];
            }
            turned[c][lane] = value;
        }
        __syncthreads();
        if (start + lane < channels) {
            for (int j = warp; j < n; j += kFeatureThreads / kWarpSize) {
                out[static_cast<index_t>(j) * stride + kWindowValues + start + lane] = turned[lane][j];
            }
        }
        __syncthreads();
    }
}

constexpr int kAssembleThreads = 256;

// Network pixels (images, 192, patches), channels in (y, x, rgb) order, to packed frames (images, height, width, 3);
// what lies beyond the right and bottom edge is dropped. Grid (height, images); threads that follow one another take
// patches that follow one another, so that the reads are contiguous.
__global__ void __launch_bounds__(kAssembleThreads)
    assemble_kernel(const float* __restrict__ pixels, int patches, int grid_width, int height, int width, bool bgr,
                    std::uint8_t* __restrict__ out) {
    const int y = static_cast<int>(blockIdx.x), b = static_cast<int>(blockIdx.y);
    const float* planes = pixels + (b * kPatchValues + y % kPatch * kPatchRun) * patches + y / kPatch * grid_width;
    std::uint8_t* row = out + (static_cast<index_t>(b) * height + y) * width * 3;
    for (int i = static_cast<int>(threadIdx.x); i < grid_width * kPatch; i += kAssembleThreads) {
        const int px = i % grid_width, dx = i / grid_width, x = px * static_cast<int>(kPatch) + dx;
        if (x >= width) continue;
        for (int c = 0; c < 3; ++c) {
            const float value = planes[static_cast<index_t>(dx * 3 + c) * patches + px];
            row[x * 3 + (bgr ? 2 - c : c)] = float_to_pixel(value);
        }
    }
}

}  // namespace tatok

#endif
