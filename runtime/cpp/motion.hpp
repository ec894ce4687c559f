// Motion of cells between a reference picture and an image: search, and the moved picture. Vectors are in half pixels;
// between pixels, four neighbours are weighted (-1, 9, 9, -1) / 16. All arithmetic is of integers, so both ends of a
// stream get the same picture from the same one.
#ifndef TATOK_MOTION_HPP
#define TATOK_MOTION_HPP

#include <algorithm>
#include <cstring>
#include <vector>

#include "common.hpp"

namespace tatok {

constexpr int kMaxMotion = 62;         // half pixels, so that a moved cell stays within the margin
constexpr index_t kMotionMargin = 36;  // pixels around a plane: the largest motion, and what interpolation reads
constexpr index_t kCoarseRadius = 6;   // of the coarse search, in steps of 4 pixels
constexpr int kMotionSteps = 6;        // of the search by whole pixels

inline std::uint8_t between(int a, int b, int c, int d) {
    const int value = (9 * (b + c) - (a + d) + 8) >> 4;
    return static_cast<std::uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
}

// The moved picture: every cell of `target` shows what `source` has at its place plus its vector (y, x); beyond the
// border the edge is repeated. Both are (32 * rows, 32 * columns, 3), apart from each other.
inline void move_cells(const std::uint8_t* source, index_t rows, index_t columns, const std::int32_t* vectors,
                       std::uint8_t* target) {
    constexpr index_t kSide = kCell + 3;
    const index_t height = rows * kCell, width = columns * kCell;
    std::memcpy(target, source, static_cast<std::size_t>(height * width * 3));
    std::uint8_t block[kSide][kSide][3], across[kSide][kCell][3];
    for (index_t cell = 0; cell < rows * columns; ++cell) {
        const int dy = vectors[2 * cell], dx = vectors[2 * cell + 1];
        if (dy == 0 && dx == 0) continue;
        const index_t top = cell / columns * kCell, left = cell % columns * kCell;
        for (index_t y = 0; y < kSide; ++y) {
            const std::uint8_t* row = source + clamp_index(top + (dy >> 1) - 1 + y, height) * width * 3;
            for (index_t x = 0; x < kSide; ++x) {
                std::memcpy(block[y][x], row + clamp_index(left + (dx >> 1) - 1 + x, width) * 3, 3);
            }
        }
        for (index_t y = 0; y < kSide; ++y) {
            const std::uint8_t* row = block[y][0];
            std::uint8_t* out = across[y][0];
            for (index_t i = 0; i < kCell * 3; ++i) {
                out[i] = dx & 1 ? between(row[i], row[i + 3], row[i + 6], row[i + 9]) : row[i + 3];
            }
        }
        for (index_t y = 0; y < kCell; ++y) {
            std::uint8_t* out = target + ((top + y) * width + left) * 3;
            for (index_t i = 0; i < kCell * 3; ++i) {
                out[i] = dy & 1 ? between(across[y][0][i], across[y + 1][0][i], across[y + 2][0][i], across[y + 3][0][i])
                                : across[y + 1][0][i];
            }
        }
    }
}

// A plane of bytes with a margin all around, so that moved blocks need no check.
struct Plane {
    index_t height = 0, width = 0, stride = 0;
    std::vector<std::uint8_t> data;
    void resize(index_t h, index_t w) {
        height = h;
        width = w;
        stride = w + 2 * kMotionMargin;
        data.resize(static_cast<std::size_t>((h + 2 * kMotionMargin) * stride));
    }
    std::uint8_t* at(index_t y, index_t x) { return &data[(y + kMotionMargin) * stride + x + kMotionMargin]; }
    const std::uint8_t* at(index_t y, index_t x) const {
        return &data[(y + kMotionMargin) * stride + x + kMotionMargin];
    }
    void extend() {
        for (index_t y = 0; y < height; ++y) {
            std::memset(at(y, -kMotionMargin), *at(y, 0), kMotionMargin);
            std::memset(at(y, width), *at(y, width - 1), kMotionMargin);
        }
        for (index_t y = 1; y <= kMotionMargin; ++y) {
            std::memcpy(at(-y, -kMotionMargin), at(0, -kMotionMargin), static_cast<std::size_t>(stride));
            std::memcpy(at(height - 1 + y, -kMotionMargin), at(height - 1, -kMotionMargin),
                        static_cast<std::size_t>(stride));
        }
    }
};

TATOK_HOT void interpolate(const std::uint8_t* source, index_t step, index_t count, std::uint8_t* out) {
    for (index_t i = 0; i < count; ++i) {
        const int value = (9 * (source[i] + source[i + step]) - (source[i - step] + source[i + 2 * step]) + 8) >> 4;
        out[i] = static_cast<std::uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
    }
}

// Sum over the 16 patches of a cell of the squared differences of their 64 bytes, each at most `cap`.
TATOK_HOT std::int64_t capped_difference(const std::uint8_t* a, index_t a_stride, const std::uint8_t* b,
                                         index_t b_stride, std::int32_t cap) {
    std::int64_t total = 0;
    for (index_t row = 0; row < kCell; row += kPatch) {
        std::int32_t squares[kCell] = {};
        for (index_t y = row; y < row + kPatch; ++y) {
            const std::uint8_t* p = a + y * a_stride;
            const std::uint8_t* q = b + y * b_stride;
            for (index_t x = 0; x < kCell; ++x) {
                const std::int32_t d = static_cast<std::int32_t>(p[x]) - static_cast<std::int32_t>(q[x]);
                squares[x] += d * d;
            }
        }
        for (index_t x = 0; x < kCell; x += kPatch) {
            std::int32_t sum = 0;
            for (index_t i = 0; i < kPatch; ++i) sum += squares[x + i];
            total += std::min(sum, cap);
        }
    }
    return total;
}

TATOK_HOT std::int32_t block_difference(const std::uint8_t* a, index_t a_stride, const std::uint8_t* b,
                                        index_t b_stride) {
    std::int32_t total = 0;
    for (index_t y = 0; y < kCell / 4; ++y) {
        for (index_t x = 0; x < kCell / 4; ++x) {
            const std::int32_t d =
                static_cast<std::int32_t>(a[y * a_stride + x]) - static_cast<std::int32_t>(b[y * b_stride + x]);
            total += d < 0 ? -d : d;
        }
    }
    return total;
}

inline void shrink(const Plane& plane, Plane& quarter) {
    for (index_t y = 0; y < quarter.height; ++y) {
        for (index_t x = 0; x < quarter.width; ++x) {
            int sum = 8;
            for (index_t i = 0; i < 4; ++i) {
                const std::uint8_t* row = plane.at(4 * y + i, 4 * x);
                sum += row[0] + row[1] + row[2] + row[3];
            }
            *quarter.at(y, x) = static_cast<std::uint8_t>(sum >> 4);
        }
    }
    quarter.extend();
}

// Finds the vector of each cell, in raster order, on the green channel: the one with the least capped difference plus
// `cost` where it is not that of the cell before. `vectors` holds those of the frame before and gets the new ones;
// cells that are not `active` only choose between the vector before them and none.
inline void find_motion(const ImageView& image, const std::uint8_t* reference, index_t rows, index_t columns,
                        const std::uint8_t* active, std::int32_t cap, std::int64_t cost, std::int32_t* vectors) {
    const index_t height = rows * kCell, width = columns * kCell;
    // Kept from frame to frame.
    static thread_local Plane now, whole, across, down, both, small_now, small_old;
    for (Plane* plane : {&now, &whole, &across, &down, &both}) plane->resize(height, width);
    for (Plane* plane : {&small_now, &small_old}) plane->resize(height / 4, width / 4);
    for (index_t y = 0; y < height; ++y) {
        std::uint8_t* row = now.at(y, 0);
        const index_t line = clamp_index(y, image.height);
        for (index_t x = 0; x < width; ++x) row[x] = image.at(line, clamp_index(x, image.width))[image.channel];
        const std::uint8_t* old = reference + y * width * 3 + 1;
        std::uint8_t* out = whole.at(y, 0);
        for (index_t x = 0; x < width; ++x) out[x] = old[3 * x];
    }
    whole.extend();
    // No vector reaches the first and last lines of the margin, so what is between them does not matter.
    const index_t first = 2 * whole.stride, count = (height + 2 * kMotionMargin - 4) * whole.stride;
    interpolate(&whole.data[first], 1, count, &across.data[first]);
    interpolate(&whole.data[first], whole.stride, count, &down.data[first]);
    interpolate(&across.data[2 * first], whole.stride, count - 2 * first, &both.data[2 * first]);
    const Plane* planes[2][2] = {{&whole, &across}, {&down, &both}};
    now.extend();
    shrink(now, small_now);
    shrink(whole, small_old);

    std::int32_t before[2] = {0, 0};
    for (index_t cell = 0; cell < rows * columns; ++cell) {
        const index_t top = cell / columns * kCell, left = cell % columns * kCell;
        std::int32_t* vector = vectors + 2 * cell;
        std::int32_t best[2] = {before[0], before[1]};
        std::int64_t least = -1;
        const auto attempt = [&](std::int32_t dy, std::int32_t dx) {
            if (dy < -kMaxMotion || dy > kMaxMotion || dx < -kMaxMotion || dx > kMaxMotion) return false;
            const Plane& plane = *planes[dy & 1][dx & 1];
            std::int64_t value = capped_difference(now.at(top, left), now.stride,
                                                   plane.at(top + (dy >> 1), left + (dx >> 1)), plane.stride, cap);
            if (dy != before[0] || dx != before[1]) value += cost;
            if (least >= 0 && value >= least) return false;
            least = value;
            best[0] = dy;
            best[1] = dx;
            return true;
        };
        attempt(before[0], before[1]);
        attempt(0, 0);
        if (active[cell] && least > cost) {
            attempt(vector[0], vector[1]);
            if (cell >= columns) attempt(vectors[2 * (cell - columns)], vectors[2 * (cell - columns) + 1]);
            if (least > 2 * cost) {
                index_t y = 0, x = 0;
                std::int32_t closest = -1;
                for (index_t i = -kCoarseRadius; i <= kCoarseRadius; ++i) {
                    for (index_t j = -kCoarseRadius; j <= kCoarseRadius; ++j) {
                        const std::int32_t value =
                            block_difference(small_now.at(top / 4, left / 4), small_now.stride,
                                             small_old.at(top / 4 + i, left / 4 + j), small_old.stride);
                        if (closest < 0 || value < closest) closest = value, y = i, x = j;
                    }
                }
                for (index_t i = -4; i <= 4; i += 4) {
                    for (index_t j = -4; j <= 4; j += 4) {
                        attempt(static_cast<std::int32_t>(8 * y + i), static_cast<std::int32_t>(8 * x + j));
                    }
                }
            }
            for (int step = 0; step < kMotionSteps; ++step) {
                const std::int32_t y = best[0], x = best[1];
                bool better = false;
                for (std::int32_t i = -2; i <= 2; i += 2) {
                    for (std::int32_t j = -2; j <= 2; j += 2) {
                        if (i || j) better |= attempt(y + i, x + j);
                    }
                }
                if (!better) break;
            }
            const std::int32_t y = best[0], x = best[1];
            for (std::int32_t i = -1; i <= 1; ++i) {
                for (std::int32_t j = -1; j <= 1; ++j) {
                    if (i || j) attempt(y + i, x + j);
                }
            }
        }
        vector[0] = before[0] = best[0];
        vector[1] = before[1] = best[1];
    }
}

}  // namespace tatok

#endif  // TATOK_MOTION_HPP
