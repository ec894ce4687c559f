// Between uint8 images and the float layouts of the networks: thumbnail cells, windows around patches, and back.
#ifndef TATOK_PIXELS_HPP
#define TATOK_PIXELS_HPP

#include <cstring>

#include "common.hpp"

namespace tatok {

// A pixel value for the networks, in [-1, 1].
TATOK_FUNC float pixel_to_float(std::uint8_t value) { return static_cast<float>(value) / 127.5f - 1.0f; }

// The sum of the 16 pixel values under a thumbnail pixel, as their mean in [-1, 1].
TATOK_FUNC float thumbnail_value(std::int32_t sum) {
    return static_cast<float>(sum) * static_cast<float>(1.0 / (16 * 127.5)) - 1.0f;
}

// A network's pixel to 0 .. 255, rounded half to even; NaN becomes 0.
TATOK_FUNC std::uint8_t float_to_pixel(float value) {
    float v = value * 127.5f + 127.5f;
    v = v > 0.0f ? v : 0.0f;
    v = v < 255.0f ? v : 255.0f;
    return static_cast<std::uint8_t>(static_cast<std::int32_t>(round_half_even(v)));
}

// Element j of four planes as pixels that follow one another in memory.
TATOK_FUNC std::uint32_t pixel_word(const float* const* planes, index_t j) {
    std::uint32_t word = 0;
    for (int b = 0; b < 4; ++b) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        const int shift = 24 - 8 * b;
#else
        const int shift = 8 * b;
#endif
        word |= static_cast<std::uint32_t>(float_to_pixel(planes[b][j])) << shift;
    }
    return word;
}

// Thumbnail of the image, padded to whole cells by repeating its edge: out (192, cell_rows * cell_columns),
// channels in (y, x, rgb) order.
TATOK_HOT void image_to_cells(const ImageView image, index_t cell_rows, index_t cell_columns, float* out) {
    const index_t cells = cell_rows * cell_columns;
    const bool packed = image.packed();

    for (index_t cy = 0; cy < cell_rows; ++cy) {
        for (index_t ty = 0; ty < kCellThumbnails; ++ty) {
            for (index_t cx = 0; cx < cell_columns; ++cx) {
                const bool direct = packed && (cx + 1) * kCell <= image.width;
                std::uint16_t sums[kCellRun] = {};
                for (index_t r = 0; r < kThumbnail; ++r) {
                    const index_t y = clamp_index(cy * kCell + ty * kThumbnail + r, image.height);
                    std::uint8_t copy[kCellRun];
                    const std::uint8_t* run = copy;
                    if (direct) {
                        run = image.packed_row(y) + cx * kCellRun;
                    } else {
                        for (index_t x = 0; x < kCell; ++x) {
                            const std::uint8_t* pixel = image.at(y, clamp_index(cx * kCell + x, image.width));
                            for (index_t c = 0; c < 3; ++c) copy[x * 3 + c] = pixel[c * image.channel];
                        }
                    }
                    for (index_t i = 0; i < kCellRun; ++i) sums[i] = static_cast<std::uint16_t>(sums[i] + run[i]);
                }
                const bool swapped = direct && image.channel < 0;
                float* target = out + ty * kCellThumbnails * 3 * cells + cy * cell_columns + cx;
                for (index_t tx = 0; tx < kCellThumbnails; ++tx) {
                    const std::uint16_t* s = sums + tx * kThumbnail * 3;
                    for (index_t c = 0; c < 3; ++c) {
                        const std::int32_t sum = s[c] + s[c + 3] + s[c + 6] + s[c + 9];
                        target[(tx * 3 + (swapped ? 2 - c : c)) * cells] = thumbnail_value(sum);
                    }
                }
            }
        }
    }
}

// The 16x16 window around the patch whose top left pixel is (y0 + 4, x0 + 4), edge repeated: 768 values in
// (y, x, rgb) order. `table` maps the 256 pixel values to floats.
inline void gather_window(const ImageView& image, index_t y0, index_t x0, const float* table, float* out) {
    const bool inside = x0 >= 0 && x0 + kWindow <= image.width;
    if (inside && image.packed() && image.channel > 0) {
        for (index_t y = 0; y < kWindow; ++y, out += kWindowRun) {
            const std::uint8_t* run = image.packed_row(clamp_index(y0 + y, image.height)) + x0 * 3;
            for (index_t i = 0; i < kWindowRun; ++i) out[i] = pixel_to_float(run[i]);
        }
        return;
    }
    std::ptrdiff_t offsets[kWindow];
    for (index_t x = 0; x < kWindow; ++x) offsets[x] = clamp_index(x0 + x, image.width) * image.pixel;
    for (index_t y = 0; y < kWindow; ++y) {
        const std::uint8_t* row = image.at(clamp_index(y0 + y, image.height), 0);
        for (index_t x = 0; x < kWindow; ++x, out += 3) {
            const std::uint8_t* pixel = row + offsets[x];
            for (index_t c = 0; c < 3; ++c) out[c] = table[pixel[c * image.channel]];
        }
    }
}

// Columns `positions` of a (channels, patches) map as rows of `out`, which are `stride` values apart.
inline void gather_columns(const float* map, index_t channels, index_t patches, const std::int32_t* positions,
                           index_t count, float* out, index_t stride) {
    for (index_t c = 0; c < channels; ++c, map += patches) {
        for (index_t j = 0; j < count; ++j) out[j * stride + c] = map[positions[j]];
    }
}

// Columns `source_positions` of a (channels, source_patches) map to the columns `positions` of a (channels, patches)
// map. Positions must have been checked; where one comes twice, the later column stays.
inline void scatter_columns(const float* source, index_t source_patches, const std::int32_t* source_positions,
                            float* target, index_t patches, const std::int32_t* positions, index_t count,
                            index_t channels) {
    for (index_t c = 0; c < channels; ++c, source += source_patches, target += patches) {
        for (index_t t = 0; t < count; ++t) target[positions[t]] = source[source_positions[t]];
    }
}

// Rows for the patch encoder: [window 768 | context | mean 192] per position.
// `context` is (context_channels, columns), `mean` (192, columns); `source` is the column of each position. Both index
// arrays must have been checked.
TATOK_HOT void gather_features(const ImageView image, const float* context, index_t context_channels,
                               const float* mean, index_t columns, index_t grid_width, const std::int32_t* source,
                               const std::int32_t* positions, index_t count, float* out) {
    // As many rows as keep the lines that the column gather writes in the first cache; neighbouring patches share the
    // lines that it reads.
    constexpr index_t kRows = 64;
    const index_t stride = kWindowValues + context_channels + kPatchValues;
    float table[256];
    for (index_t v = 0; v < 256; ++v) table[v] = pixel_to_float(static_cast<std::uint8_t>(v));

    for (index_t start = 0; start < count; start += kRows) {
        const index_t n = count - start < kRows ? count - start : kRows;
        const std::int32_t* block = positions + start;
        float* rows = out + start * stride;
        for (index_t j = 0; j < n; ++j) {
            const index_t y = block[j] / grid_width, x = block[j] % grid_width;
            gather_window(image, y * kPatch - kWindowMargin, x * kPatch - kWindowMargin, table, rows + j * stride);
        }
        gather_columns(context, context_channels, columns, source + start, n, rows + kWindowValues, stride);
        gather_columns(mean, kPatchValues, columns, source + start, n, rows + kWindowValues + context_channels, stride);
    }
}

// One pixel row of `n` patches, at most kBlock: `planes` are the 24 planes of that row from the first patch on. Four
// bytes that will be neighbours become one word per patch: the planes are read along the patches and a word is written
// at a time.
TATOK_PART void assemble_run(const float* planes, index_t patches, index_t n, bool bgr,
                             std::uint32_t (*words)[kBlock]) {
    for (index_t w = 0; w < kPatchRun / 4; ++w) {
        const float* plane[4];
        for (index_t b = 0; b < 4; ++b) {
            const index_t i = w * 4 + b;
            plane[b] = planes + (bgr ? i + 2 - 2 * (i % 3) : i) * patches;
        }
        if (n == kBlock) {
            for (index_t j = 0; j < kBlock; ++j) words[w][j] = pixel_word(plane, j);
        } else {
            for (index_t j = 0; j < n; ++j) words[w][j] = pixel_word(plane, j);
        }
    }
}

// Network pixels (192, patches), channels in (y, x, rgb) order, to a packed (height, width, 3) image; what lies beyond
// its right and bottom edge is dropped.
TATOK_HOT void assemble(const float* pixels, index_t patches, index_t grid_width, index_t height, index_t width,
                        bool bgr, std::uint8_t* out) {
    for (index_t y = 0; y < height; ++y) {
        const float* planes = pixels + (y % kPatch) * kPatchRun * patches + (y / kPatch) * grid_width;
        std::uint8_t* row = out + y * width * 3;
        for (index_t x = 0; x * kPatch < width; x += kBlock) {
            const index_t n = grid_width - x < kBlock ? grid_width - x : kBlock;
            std::uint32_t words[kPatchRun / 4][kBlock];
            assemble_run(planes + x, patches, n, bgr, words);
            const index_t bytes = width * 3 - x * kPatchRun;
            if (bytes >= n * kPatchRun) {
                for (index_t j = 0; j < n; ++j) {
                    for (index_t w = 0; w < kPatchRun / 4; ++w) {
                        std::memcpy(row + (x + j) * kPatchRun + w * 4, &words[w][j], 4);
                    }
                }
            } else {
                for (index_t i = 0; i < bytes; ++i) {
                    std::uint8_t word[4];
                    std::memcpy(word, &words[i % kPatchRun / 4][i / kPatchRun], 4);
                    row[x * kPatchRun + i] = word[i % 4];
                }
            }
        }
    }
}

}  // namespace tatok

#endif
