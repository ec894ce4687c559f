// Change between frames, with the bits of change.hpp.
#ifndef TATOK_CHANGE_CUH
#define TATOK_CHANGE_CUH

#include "../cpp/change.hpp"
#include "frame.cuh"

namespace tatok {

constexpr int kChangePatches = 32;  // neighbours in a row of the grid, which a block works on
constexpr int kChangeThreads = kChangePatches * static_cast<int>(kPatch);

constexpr int kQuarters = 2 * 3;     // of a pixel row of a patch: the halves of its three channels

// How the patches of the padded frames differ from those of reference, packed RGB of the padded size: changes (images,
// 2, patches), the sums of squared differences and the coarse changes. Grid
// (ceil(grid_width / 32), grid_height, images); a thread takes one pixel row of a patch.
__global__ void __launch_bounds__(kChangeThreads)
    change_kernel(Frames frames, const std::uint8_t* __restrict__ reference, int grid_height, int grid_width,
                  std::int32_t* __restrict__ changes) {
    __shared__ std::int32_t squares[kPatch][kChangePatches], sums[kPatch][kQuarters][kChangePatches];
    const int thread = static_cast<int>(threadIdx.x), column = thread % kChangePatches, r = thread / kChangePatches;
    const int px = static_cast<int>(blockIdx.x) * kChangePatches + column, py = static_cast<int>(blockIdx.y);
    const int b = static_cast<int>(blockIdx.z);
    std::int32_t square = 0, sum[kQuarters] = {};
    if (px < grid_width) {
        const index_t y = py * kPatch + r;
        std::uint8_t run[kPatchRun];
        load_run<kPatch>(frames, b, y, px * kPatch, run);
        // Rows of the padded picture are multiples of 96 bytes, so the words are aligned where the picture is.
        const std::uint8_t* old = reference + ((b * grid_height * kPatch + y) * grid_width + px) * kPatchRun;
        const std::uint32_t* words = reinterpret_cast<const std::uint32_t*>(old);
        for (int i = 0; i < kPatchRun; ++i) {
            const std::uint8_t before = static_cast<std::uint8_t>(words[i / 4] >> (8 * (i % 4)));
            square += squared_difference(run[i], before);
            sum[i / (kPatchRun / 2) * 3 + i % 3] += std::int32_t{run[i]} - std::int32_t{before};
        }
    }
    squares[r][column] = square;
    for (int q = 0; q < kQuarters; ++q) sums[r][q][column] = sum[q];
    __syncthreads();
    if (px >= grid_width || r > 1) return;
    const index_t patches = static_cast<index_t>(grid_height) * grid_width;
    std::int32_t total = 0;
    if (r == 0) {
        for (int k = 0; k < kPatch; ++k) total += squares[k][column];
    } else {
        for (int k = 0; k < kPatch; k += kPatch / 2) {
            for (int q = 0; q < kQuarters; ++q) {
                const std::int32_t upper = sums[k][q][column] + sums[k + 1][q][column];
                total += coarse_square(upper + sums[k + 2][q][column] + sums[k + 3][q][column]);
            }
        }
    }
    changes[(b * index_t{2} + r) * patches + static_cast<index_t>(py) * grid_width + px] = total;
}

constexpr int kUpdateThreads = 256;

// Copies the patches at flat positions of the padded frames into reference; a position outside the batch is skipped.
// A thread copies one pixel row of a patch.
__global__ void __launch_bounds__(kUpdateThreads)
    update_kernel(Frames frames, std::uint8_t* __restrict__ reference, int grid_height, int grid_width,
                  const std::int32_t* __restrict__ positions, int count) {
    const index_t i = static_cast<index_t>(blockIdx.x) * kUpdateThreads + threadIdx.x;
    const index_t t = i / kPatch, patches = static_cast<index_t>(grid_height) * grid_width;
    if (t >= count) return;
    const index_t position = positions[t];
    if (position < 0 || position >= frames.images * patches) return;
    const int b = static_cast<int>(position / patches);
    const index_t patch = position % patches, px = patch % grid_width, y = patch / grid_width * kPatch + i % kPatch;
    std::uint8_t run[kPatchRun];
    load_run<kPatch>(frames, b, y, px * kPatch, run);
    std::uint8_t* target = reference + ((b * grid_height * kPatch + y) * grid_width + px) * kPatchRun;
    std::uint32_t* words = reinterpret_cast<std::uint32_t*>(target);
    for (int w = 0; w < kPatchRun / 4; ++w) {
        words[w] = static_cast<std::uint32_t>(run[4 * w]) | static_cast<std::uint32_t>(run[4 * w + 1]) << 8 |
                   static_cast<std::uint32_t>(run[4 * w + 2]) << 16 | static_cast<std::uint32_t>(run[4 * w + 3]) << 24;
    }
}

}  // namespace tatok

#endif
