// Scores of tokens that are known before any code: the squared error that each token of a patch can remove, and how
// visible an error is in each patch. All sums are of integers, so every backend gives the same scores.
#ifndef TATOK_SCORES_HPP
#define TATOK_SCORES_HPP

#include "change.hpp"
#include "common.hpp"

namespace tatok {

constexpr std::int32_t kResidualOne = 16;      // residuals are in sixteenths of a grey level
constexpr std::int32_t kResidualMax = 4095;    // and cut here: less than 256 grey levels
constexpr int kProductShift = 4;               // keeps sums of squares of products inside int64
constexpr double kEnergyOne = 192.0 * 268435456.0;  // energy of one grey level squared in each of 192 values
constexpr double kMasking = 1300.5;            // activity in grey levels squared at which errors count half

// A network's mean value in sixteenths of a grey level, rounded half to even; NaN becomes the smallest value.
TATOK_FUNC std::int32_t mean_sixteenths(float mean) {
    float v = mean * 2040.0f + 2040.0f;
    v = v > -8192.0f ? v : -8192.0f;
    v = v < 8192.0f ? v : 8192.0f;
    // Adding 1.5 * 2^23 leaves no fraction: the addition itself rounds.
    return static_cast<std::int32_t>((v + 12582912.0f) - 12582912.0f);
}

// The residual of one pixel value in sixteenths of a grey level.
TATOK_FUNC std::int16_t residual_sixteenths(std::uint8_t pixel, std::int32_t mean) {
    std::int32_t r = kResidualOne * pixel - mean;
    r = r > -kResidualMax ? r : -kResidualMax;
    return static_cast<std::int16_t>(r < kResidualMax ? r : kResidualMax);
}

// The square of a product of a residual and a direction.
TATOK_FUNC std::int64_t product_energy(std::int32_t product) {
    const std::int64_t p = product >> kProductShift;
    return p * p;
}

TATOK_FUNC float energy_score(std::int64_t energy) {
    return static_cast<float>(static_cast<double>(energy) / kEnergyOne);
}

// How many of `n` numbers, at least 1, follow one another.
inline index_t count_run(const std::int32_t* numbers, index_t n) {
    index_t i = 1;
    while (i < n && numbers[i] == numbers[0] + i) ++i;
    return i;
}

// Scores (count, depth) of the tokens of patches of the padded image: for each of the patches at `positions`, with
// column `source` of `mean` (192, columns). `basis` is (depth, dims, 192): the directions that each token adds.
// Positions and columns must have been checked; rows of the basis have a norm of at most 2^14, about.
TATOK_HOT void patch_scores(const ImageView image, const float* mean, index_t columns, index_t grid_width,
                            const std::int32_t* source, const std::int32_t* positions, index_t count,
                            const std::int16_t* basis, index_t depth, index_t dims, float* out) {
    std::uint8_t buffer[kBlockBytes];
    std::int16_t residuals[kBlock][kPatchValues];
    for (index_t start = 0, n; start < count; start += n) {
        const index_t py = positions[start] / grid_width, px = positions[start] % grid_width;
        index_t most = count - start < kBlock ? count - start : kBlock;
        if (most > grid_width - px) most = grid_width - px;
        n = count_run(positions + start, most);
        const std::int32_t* from = source + start;
        for (index_t r = 0; r < kPatch; ++r) {
            const std::uint8_t* run = rgb_run(image, py * kPatch + r, px * kPatch, n * kPatch, buffer);
            for (index_t i = 0; i < kPatchRun; ++i) {
                const float* plane = mean + (r * kPatchRun + i) * columns;
                for (index_t j = 0; j < n; ++j) {
                    residuals[j][r * kPatchRun + i] =
                        residual_sixteenths(run[j * kPatchRun + i], mean_sixteenths(plane[from[j]]));
                }
            }
        }
        for (index_t j = 0; j < n; ++j) {
            const std::int16_t* row = basis;
            float least = 3.402823466e+38f;
            for (index_t k = 0; k < depth; ++k) {
                std::int64_t energy = 0;
                for (index_t d = 0; d < dims; ++d, row += kPatchValues) {
                    std::int32_t product = 0;
                    for (index_t i = 0; i < kPatchValues; ++i) {
                        product += static_cast<std::int32_t>(residuals[j][i]) * static_cast<std::int32_t>(row[i]);
                    }
                    energy += product_energy(product);
                }
                const float score = energy_score(energy);
                least = score < least ? score : least;
                out[(start + j) * depth + k] = least;
            }
        }
    }
}

// How visible an error is in a patch whose neighbourhood of `count` patches has the summed activity `sum`: the sum over
// channels of 64 * (sum of squares) - (sum)^2 of the patch's 64 values.
TATOK_FUNC float visibility(std::int64_t sum, std::int64_t count) {
    const double activity = static_cast<double>(sum) / static_cast<double>(count * 12288);
    return static_cast<float>(kMasking / (activity + kMasking));
}

// What a channel with the given sum and sum of squares of its 64 values adds to the activity of a patch.
TATOK_FUNC std::int64_t patch_activity_of(std::int32_t sum, std::int32_t squares) {
    return std::int64_t{64} * squares - std::int64_t{sum} * sum;
}

// The activity of each patch of the padded image: out (grid_height * grid_width).
TATOK_HOT void patch_activity(const ImageView image, index_t grid_height, index_t grid_width, std::int64_t* out) {
    std::uint8_t buffer[kBlockBytes];
    for (index_t py = 0; py < grid_height; ++py) {
        for (index_t px = 0; px < grid_width; px += kBlock) {
            const index_t n = grid_width - px < kBlock ? grid_width - px : kBlock;
            std::int32_t sums[kBlock][3] = {}, squares[kBlock][3] = {};
            for (index_t r = 0; r < kPatch; ++r) {
                const std::uint8_t* run = rgb_run(image, py * kPatch + r, px * kPatch, n * kPatch, buffer);
                for (index_t j = 0; j < n; ++j, run += kPatchRun) {
                    for (index_t i = 0; i < kPatchRun; ++i) {
                        sums[j][i % 3] += run[i];
                        squares[j][i % 3] += run[i] * run[i];
                    }
                }
            }
            for (index_t j = 0; j < n; ++j) {
                std::int64_t activity = 0;
                for (index_t c = 0; c < 3; ++c) activity += patch_activity_of(sums[j][c], squares[j][c]);
                out[py * grid_width + px + j] = activity;
            }
        }
    }
}

// Weight of the visual score of one patch, from the activity (grid_height * grid_width) around it.
TATOK_FUNC float visual_weight(const std::int64_t* activity, index_t grid_height, index_t grid_width, index_t patch) {
    const index_t y = patch / grid_width, x = patch % grid_width;
    std::int64_t sum = 0, count = 0;
    for (index_t v = y > 0 ? y - 1 : 0; v <= y + 1 && v < grid_height; ++v) {
        for (index_t u = x > 0 ? x - 1 : 0; u <= x + 1 && u < grid_width; ++u, ++count) {
            sum += activity[v * grid_width + u];
        }
    }
    return visibility(sum, count);
}

// Weights (grid_height * grid_width) of the visual score.
inline void visual_weights(const std::int64_t* activity, index_t grid_height, index_t grid_width, float* out) {
    for (index_t i = 0; i < grid_height * grid_width; ++i) out[i] = visual_weight(activity, grid_height, grid_width, i);
}

}  // namespace tatok

#endif
