// Change between frames: squared differences per patch, the reference picture, and the statistics of the changes. Sums
// are of integers, or have their order fixed, so every backend gives the same ones.
#ifndef TATOK_CHANGE_HPP
#define TATOK_CHANGE_HPP

#include <cstring>

#include "common.hpp"
#include "pixels.hpp"

namespace tatok {

constexpr index_t kBlockBytes = kBlock * kPatchRun;  // of one pixel row of a block

// The change of one value.
TATOK_FUNC std::int32_t squared_difference(std::uint8_t a, std::uint8_t b) {
    const std::int32_t difference = static_cast<std::int32_t>(a) - static_cast<std::int32_t>(b);
    return difference * difference;
}

// The square of the sum of a quarter's 16 differences (of one channel), over 16: at most (16 * 255)^2 / 16, and twelve
// of them are below 2^24. Squares are not negative, so the shift is the division rounded down.
TATOK_FUNC std::int32_t coarse_square(std::int32_t sum) { return (sum * sum) >> 4; }

// The mean of a patch's 192 squared differences; their sum is below 2^24, so float32 holds it exactly.
TATOK_FUNC float mean_change(std::int32_t sum) { return static_cast<float>(sum) / static_cast<float>(kPatchValues); }

// 0xFF where a byte belongs to the first channel of a pixel.
struct ChannelMask {
    std::uint8_t first[kBlockBytes + 2];
    constexpr ChannelMask() : first() {
        for (index_t i = 0; i < kBlockBytes + 2; ++i) first[i] = i % 3 == 0 ? 0xFF : 0;
    }
};
constexpr ChannelMask kChannelMask;

// `bytes` bytes (at most kBlockBytes) of a packed BGR row as RGB. Selecting among three shifted reads vectorises
// without byte shuffles; the pixels at both ends come alone, since the shifted reads would leave the row there.
TATOK_PART void swap_channels(const std::uint8_t* bgr, index_t bytes, std::uint8_t* rgb) {
    const std::uint8_t* mask = kChannelMask.first;
    for (index_t i = 3; i < bytes - 3; ++i) {
        rgb[i] = static_cast<std::uint8_t>((bgr[i + 2] & mask[i]) | (bgr[i] & mask[i + 2]) |
                                           (bgr[i - 2] & mask[i + 1]));
    }
    for (index_t c = 0; c < 3; ++c) {
        rgb[c] = bgr[2 - c];
        rgb[bytes - 3 + c] = bgr[bytes - 1 - c];
    }
}

// The RGB bytes of pixels [x, x + n) of row y of the padded image (edge repeated), n at most kBlock * kPatch: those of
// the image itself where they lie there, else a copy in `buffer`.
TATOK_PART const std::uint8_t* rgb_run(const ImageView& image, index_t y, index_t x, index_t n, std::uint8_t* buffer) {
    y = clamp_index(y, image.height);
    const index_t left = image.width - x;
    const index_t inside = left < 0 ? 0 : (left < n ? left : n);
    if (image.packed() && inside > 0) {
        const std::uint8_t* run = image.packed_row(y) + x * 3;
        if (image.channel < 0) {
            swap_channels(run, inside * 3, buffer);
        } else if (inside == n) {
            return run;
        } else {
            std::memcpy(buffer, run, static_cast<std::size_t>(inside * 3));
        }
    } else {
        for (index_t i = 0; i < inside; ++i) {
            const std::uint8_t* pixel = image.at(y, x + i);
            for (index_t c = 0; c < 3; ++c) buffer[i * 3 + c] = pixel[c * image.channel];
        }
    }
    const std::uint8_t* last = image.at(y, image.width - 1);
    const std::uint8_t edge[3] = {last[0], last[image.channel], last[2 * image.channel]};
    for (index_t i = inside; i < n; ++i) std::memcpy(buffer + i * 3, edge, 3);
    return buffer;
}

// Row r of the differences (8, 24) of `n` patches.
TATOK_PART void write_differences(const std::uint8_t* a, const std::uint8_t* b, index_t n, index_t r,
                                  std::int16_t (*differences)[kPatchValues]) {
    for (index_t j = 0; j < n; ++j, a += kPatchRun, b += kPatchRun) {
        std::int16_t* row = differences[j] + r * kPatchRun;
        for (index_t i = 0; i < kPatchRun; ++i) row[i] = static_cast<std::int16_t>(a[i] - b[i]);
    }
}

// The sum of the squares of a patch's differences. Vector units multiply int16 and add the products in pairs.
TATOK_PART std::int32_t sum_squares(const std::int16_t* differences) {
    std::int32_t sum = 0;
    for (index_t i = 0; i < kPatchValues; ++i) {
        sum += static_cast<std::int32_t>(differences[i]) * static_cast<std::int32_t>(differences[i]);
    }
    return sum;
}

// The coarse change: the differences of each quarter (4x4 pixels) and channel are summed first, see coarse_square.
TATOK_PART std::int32_t sum_coarse_squares(const std::int16_t* differences) {
    constexpr index_t kQuarter = kPatch / 2, kQuarterRun = kQuarter * 3;
    std::int32_t sum = 0;
    for (index_t half = 0; half < 2; ++half) {
        const std::int16_t* rows = differences + half * kQuarter * kPatchRun;
        std::int16_t columns[kPatchRun];
        for (index_t i = 0; i < kPatchRun; ++i) {
            columns[i] = static_cast<std::int16_t>(rows[i] + rows[i + kPatchRun] + rows[i + 2 * kPatchRun] +
                                                   rows[i + 3 * kPatchRun]);
        }
        for (index_t i = 0; i < kPatchRun; i += kQuarterRun) {
            for (index_t c = i; c < i + 3; ++c) {
                sum += coarse_square(columns[c] + columns[c + 3] + columns[c + 6] + columns[c + 9]);
            }
        }
    }
    return sum;
}

// How much each patch of the padded image differs from `reference`, a packed RGB image of the padded size:
// out (2, grid_height * grid_width), in detail and coarse.
TATOK_HOT void patch_change(const ImageView image, const std::uint8_t* reference, index_t grid_height,
                            index_t grid_width, std::int32_t* out) {
    const index_t stride = grid_width * kPatchRun;
    std::int32_t* coarse = out + grid_height * grid_width;
    std::uint8_t buffer[kBlockBytes];
    std::int16_t differences[kBlock][kPatchValues];
    for (index_t py = 0; py < grid_height; ++py) {
        for (index_t px = 0; px < grid_width; px += kBlock) {
            const index_t n = grid_width - px < kBlock ? grid_width - px : kBlock;
            for (index_t r = 0; r < kPatch; ++r) {
                const index_t y = py * kPatch + r;
                const std::uint8_t* run = rgb_run(image, y, px * kPatch, n * kPatch, buffer);
                write_differences(run, reference + y * stride + px * kPatchRun, n, r, differences);
            }
            for (index_t j = 0; j < n; ++j) {
                const index_t patch = py * grid_width + px + j;
                out[patch] = sum_squares(differences[j]);
                coarse[patch] = sum_coarse_squares(differences[j]);
            }
        }
    }
}

// Per patch of the padded image the mean of the squared differences to the network's pixels (192, patches), rounded as
// `assemble` does: out (grid_height * grid_width).
TATOK_HOT void patch_error(const float* pixels, const ImageView image, index_t grid_height, index_t grid_width,
                           float* out) {
    const index_t patches = grid_height * grid_width;
    std::uint8_t buffer[kBlockBytes], decoded[kBlockBytes];
    std::int16_t differences[kBlock][kPatchValues];
    for (index_t py = 0; py < grid_height; ++py) {
        for (index_t px = 0; px < grid_width; px += kBlock) {
            const index_t n = grid_width - px < kBlock ? grid_width - px : kBlock;
            const index_t first = py * grid_width + px;
            for (index_t r = 0; r < kPatch; ++r) {
                std::uint32_t words[kPatchRun / 4][kBlock];
                assemble_run(pixels + r * kPatchRun * patches + first, patches, n, false, words);
                for (index_t j = 0; j < n; ++j) {
                    for (index_t w = 0; w < kPatchRun / 4; ++w) {
                        std::memcpy(decoded + j * kPatchRun + w * 4, &words[w][j], 4);
                    }
                }
                const std::uint8_t* run = rgb_run(image, py * kPatch + r, px * kPatch, n * kPatch, buffer);
                write_differences(run, decoded, n, r, differences);
            }
            for (index_t j = 0; j < n; ++j) out[first + j] = mean_change(sum_squares(differences[j]));
        }
    }
}

// Copies the patches at `positions` of the padded image into `reference`, a packed RGB image of the padded size.
// Positions must have been checked.
inline void update_reference(const ImageView& image, std::uint8_t* reference, index_t grid_width,
                             const std::int32_t* positions, index_t count) {
    const index_t stride = grid_width * kPatchRun;
    std::uint8_t buffer[kPatchRun];
    for (index_t t = 0; t < count; ++t) {
        const index_t py = positions[t] / grid_width, px = positions[t] % grid_width;
        for (index_t y = py * kPatch; y < (py + 1) * kPatch; ++y) {
            const std::uint8_t* run = rgb_run(image, y, px * kPatch, kPatch, buffer);
            std::memcpy(reference + y * stride + px * kPatchRun, run, kPatchRun);
        }
    }
}

// The first of `n` changes that is negative, or kOk.
inline index_t check_changes(const std::int32_t* changes, index_t n) {
    for (index_t i = 0; i < n; ++i) {
        if (changes[i] < 0) return i;
    }
    return kOk;
}

// The change at rank floor(share * (m - 1)) among the m that are not 0, ascending; 0 where all are. Changes must have
// been checked. A radix walk: 11 bits at a time, from the highest, find the part that holds the rank.
inline std::int32_t change_quantile(const std::int32_t* changes, index_t n, double share) {
    constexpr int kDigitBits = 11;
    constexpr index_t kDigits = index_t{1} << kDigitBits;
    index_t zeros = 0;
    for (index_t i = 0; i < n; ++i) zeros += changes[i] == 0;
    if (zeros == n) return 0;
    index_t rank = zeros + static_cast<index_t>(share * static_cast<double>(n - zeros - 1));
    std::int64_t prefix = 0;
    for (int shift = 2 * kDigitBits; shift >= 0; shift -= kDigitBits) {
        index_t counts[kDigits] = {};
        for (index_t i = 0; i < n; ++i) {
            const std::int64_t value = std::int64_t{changes[i]} >> shift;
            if (value >> kDigitBits == prefix) ++counts[value & (kDigits - 1)];
        }
        index_t digit = 0;
        while (rank >= counts[digit]) rank -= counts[digit++];
        prefix = prefix << kDigitBits | digit;
    }
    return static_cast<std::int32_t>(prefix);
}

}  // namespace tatok

#endif
