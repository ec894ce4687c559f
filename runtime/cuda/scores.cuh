// Scores of tokens that are known before any code, with the bits of scores.hpp.
#ifndef TATOK_SCORES_CUH
#define TATOK_SCORES_CUH

#include "../cpp/scores.hpp"
#include "frame.cuh"

namespace tatok {

constexpr int kScorePatches = 32;  // neighbours in a row of the grid, which a block works on
constexpr int kScoreThreads = kScorePatches * static_cast<int>(kPatch);

static_assert(kMaxDepth <= kPatch, "the threads of a patch write one score each");

// Scores (images, patches, depth) of the tokens of every patch of the padded frames, whose mean is (images, 192,
// patches), in the directions `basis` (depth, dims, 192); times weights (images, patches) where they are given. Grid
// (ceil(grid_width / 32), grid_height, images); a thread takes one pixel row of a patch, then some of the directions.
__global__ void __launch_bounds__(kScoreThreads)
    scores_kernel(Frames frames, const float* __restrict__ mean, const std::int16_t* __restrict__ basis, int depth,
                  int dims, const float* __restrict__ weights, int grid_height, int grid_width,
                  float* __restrict__ scores) {
    __shared__ std::int16_t residuals[kPatchValues][kScorePatches];
    __shared__ unsigned long long energy[kMaxDepth][kScorePatches];
    const int thread = static_cast<int>(threadIdx.x), column = thread % kScorePatches, r = thread / kScorePatches;
    const int px = static_cast<int>(blockIdx.x) * kScorePatches + column, py = static_cast<int>(blockIdx.y);
    const int b = static_cast<int>(blockIdx.z);
    const index_t patches = static_cast<index_t>(grid_height) * grid_width;
    const index_t patch = static_cast<index_t>(py) * grid_width + px;
    energy[r][column] = 0;
    if (px < grid_width) {
        std::uint8_t run[kPatchRun];
        load_run<kPatch>(frames, b, py * kPatch + r, px * kPatch, run);
        const float* planes = mean + (b * kPatchValues + r * kPatchRun) * patches + patch;
        for (int i = 0; i < kPatchRun; ++i) {
            residuals[r * kPatchRun + i][column] = residual_sixteenths(run[i], mean_sixteenths(planes[i * patches]));
        }
    }
    __syncthreads();
    if (px < grid_width) {
        for (int row = r; row < depth * dims; row += static_cast<int>(kPatch)) {
            const std::int16_t* direction = basis + row * kPatchValues;
            std::int32_t product = 0;
            for (int i = 0; i < kPatchValues; ++i) {
                product += std::int32_t{residuals[i][column]} * std::int32_t{direction[i]};
            }
            atomicAdd(&energy[row / dims][column], static_cast<unsigned long long>(product_energy(product)));
        }
    }
    __syncthreads();
    if (px >= grid_width || r >= depth) return;
    float least = energy_score(static_cast<std::int64_t>(energy[0][column]));
    for (int k = 1; k <= r; ++k) {
        const float score = energy_score(static_cast<std::int64_t>(energy[k][column]));
        least = score < least ? score : least;
    }
    if (weights != nullptr) least *= weights[b * patches + patch];
    scores[(b * patches + patch) * depth + r] = least;
}

// The activity of every patch of the padded frames: activity (images, patches). Grid as above; a thread takes one pixel
// row of a patch.
__global__ void __launch_bounds__(kScoreThreads)
    activity_kernel(Frames frames, int grid_height, int grid_width, std::int64_t* __restrict__ activity) {
    __shared__ std::int32_t sums[3][kScorePatches], squares[3][kScorePatches];
    const int thread = static_cast<int>(threadIdx.x), column = thread % kScorePatches, r = thread / kScorePatches;
    const int px = static_cast<int>(blockIdx.x) * kScorePatches + column, py = static_cast<int>(blockIdx.y);
    const int b = static_cast<int>(blockIdx.z);
    if (r < 3) {
        sums[r][column] = 0;
        squares[r][column] = 0;
    }
    __syncthreads();
    if (px < grid_width) {
        std::uint8_t run[kPatchRun];
        load_run<kPatch>(frames, b, py * kPatch + r, px * kPatch, run);
        std::int32_t sum[3] = {}, square[3] = {};
        for (int i = 0; i < kPatchRun; ++i) {
            sum[i % 3] += run[i];
            square[i % 3] += run[i] * run[i];
        }
        for (int c = 0; c < 3; ++c) {
            atomicAdd(&sums[c][column], sum[c]);
            atomicAdd(&squares[c][column], square[c]);
        }
    }
    __syncthreads();
    if (px >= grid_width || r > 0) return;
    std::int64_t total = 0;
    for (int c = 0; c < 3; ++c) total += patch_activity_of(sums[c][column], squares[c][column]);
    activity[(static_cast<index_t>(b) * grid_height + py) * grid_width + px] = total;
}

constexpr int kWeightThreads = 256;

// Weights (images, patches) of the visual score, from the activity around each patch. Grid (ceil(patches / 256),
// images).
__global__ void __launch_bounds__(kWeightThreads)
    weights_kernel(const std::int64_t* __restrict__ activity, int grid_height, int grid_width,
                   float* __restrict__ weights) {
    const index_t i = static_cast<index_t>(blockIdx.x) * kWeightThreads + threadIdx.x;
    const index_t patches = static_cast<index_t>(grid_height) * grid_width, first = blockIdx.y * patches;
    if (i < patches) weights[first + i] = visual_weight(activity + first, grid_height, grid_width, i);
}

}  // namespace tatok

#endif
