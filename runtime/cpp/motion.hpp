// Motion of cells between a reference picture and an image: search, and the moved picture. Vectors are in half pixels;
// between pixels, four neighbours are weighted (-1, 9, 9, -1) / 16. All arithmetic is of integers, so both ends of a
// stream get the same picture from the same one.
#ifndef TATOK_MOTION_HPP
#define TATOK_MOTION_HPP

#include <algorithm>
#include <cstring>

#include "common.hpp"

namespace tatok {

constexpr index_t kMotionMargin = 36;  // pixels around a plane: the largest motion, and the reach of interpolation
constexpr index_t kShrunk = 4;         // pixels along a side of the square that one pixel of the coarse search averages
constexpr index_t kCoarseRadius = 6;   // of the coarse search in its pixels
constexpr int kMotionSteps = 6;        // of the search by whole pixels

// The value between b and c of four neighbours.
TATOK_PART std::uint8_t between(int a, int b, int c, int d) {
    const int value = (9 * (b + c) - (a + d) + 8) >> 4;
    return static_cast<std::uint8_t>(value < 0 ? 0 : (value > 255 ? 255 : value));
}

// The moved picture: every cell of `target` shows what `source` has at its place plus its vector (y, x); beyond the
// border the edge is repeated. Both are (32 * rows, 32 * columns, 3), apart from each other.
TATOK_HOT void move_cells(const std::uint8_t* source, index_t rows, index_t columns, const std::int32_t* vectors,
                          std::uint8_t* target) {
    constexpr index_t kSide = kCell + 3;  // side of the block that interpolation reads
    const index_t height = rows * kCell, width = columns * kCell;
    std::memcpy(target, source, static_cast<std::size_t>(height * width * 3));
    std::uint8_t block[kSide][kSide * 3], across[kSide][kCellRun];
    for (index_t cell = 0; cell < rows * columns; ++cell) {
        const int dy = vectors[2 * cell], dx = vectors[2 * cell + 1];
        if (dy == 0 && dx == 0) continue;
        const index_t top = cell / columns * kCell, left = cell % columns * kCell;
        for (index_t y = 0; y < kSide; ++y) {
            const std::uint8_t* row = source + clamp_index(top + (dy >> 1) - 1 + y, height) * width * 3;
            for (index_t x = 0; x < kSide; ++x) {
                std::memcpy(block[y] + x * 3, row + clamp_index(left + (dx >> 1) - 1 + x, width) * 3, 3);
            }
        }
        for (index_t y = 0; y < kSide; ++y) {
            const std::uint8_t* row = block[y];
            std::uint8_t* out = across[y];
            for (index_t i = 0; i < kCellRun; ++i) {
                out[i] = dx & 1 ? between(row[i], row[i + 3], row[i + 6], row[i + 9]) : row[i + 3];
            }
        }
        for (index_t y = 0; y < kCell; ++y) {
            std::uint8_t* out = target + ((top + y) * width + left) * 3;
            const std::uint8_t *a = across[y], *b = across[y + 1], *c = across[y + 2], *d = across[y + 3];
            for (index_t i = 0; i < kCellRun; ++i) out[i] = dy & 1 ? between(a[i], b[i], c[i], d[i]) : b[i];
        }
    }
}

// A plane of bytes with a margin all around, so that moved blocks need no check. It lies in memory of the caller,
// plane_bytes(height, width) of it.
struct Plane {
    index_t height, width, stride;
    std::uint8_t* data;

    static index_t plane_bytes(index_t height, index_t width) {
        return (height + 2 * kMotionMargin) * (width + 2 * kMotionMargin);
    }
    Plane(std::uint8_t* memory, index_t h, index_t w)
        : height(h), width(w), stride(w + 2 * kMotionMargin), data(memory) {}

    std::uint8_t* at(index_t y, index_t x) const { return data + (y + kMotionMargin) * stride + x + kMotionMargin; }

    // Fills the margin by repeating the edge.
    void extend() const {
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

// Values halfway between each byte and the one `step` behind it.
TATOK_HOT void interpolate(const std::uint8_t* source, index_t step, index_t count, std::uint8_t* out) {
    for (index_t i = 0; i < count; ++i) {
        out[i] = between(source[i - step], source[i], source[i + step], source[i + 2 * step]);
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

// Sum of the absolute differences of a cell in the pixels of the coarse search.
TATOK_HOT std::int32_t block_difference(const std::uint8_t* a, index_t a_stride, const std::uint8_t* b,
                                        index_t b_stride) {
    std::int32_t total = 0;
    for (index_t y = 0; y < kCell / kShrunk; ++y) {
        for (index_t x = 0; x < kCell / kShrunk; ++x) {
            const std::int32_t d =
                static_cast<std::int32_t>(a[y * a_stride + x]) - static_cast<std::int32_t>(b[y * b_stride + x]);
            total += d < 0 ? -d : d;
        }
    }
    return total;
}

// The means of 4x4 pixels.
inline void shrink(const Plane& plane, const Plane& shrunk) {
    for (index_t y = 0; y < shrunk.height; ++y) {
        for (index_t x = 0; x < shrunk.width; ++x) {
            int sum = 8;  // half of 16, so that the shift rounds
            for (index_t i = 0; i < kShrunk; ++i) {
                const std::uint8_t* row = plane.at(kShrunk * y + i, kShrunk * x);
                sum += row[0] + row[1] + row[2] + row[3];
            }
            *shrunk.at(y, x) = static_cast<std::uint8_t>(sum >> 4);
        }
    }
    shrunk.extend();
}

// The green channel of the image and of the reference picture, the latter also between pixels. It lies in memory of
// the caller, bytes(rows, columns) of it, which the constructor fills.
class MotionPlanes {
  public:
    static index_t bytes(index_t rows, index_t columns) {
        const index_t height = rows * kCell, width = columns * kCell;
        return 5 * Plane::plane_bytes(height, width) + 2 * Plane::plane_bytes(height / kShrunk, width / kShrunk);
    }

    MotionPlanes(const ImageView& image, const std::uint8_t* reference, index_t rows, index_t columns,
                 std::uint8_t* memory)
        : now(memory, rows * kCell, columns * kCell),
          whole(after(now), now.height, now.width),
          across(after(whole), now.height, now.width),
          down(after(across), now.height, now.width),
          both(after(down), now.height, now.width),
          small_now(after(both), now.height / kShrunk, now.width / kShrunk),
          small_old(after(small_now), small_now.height, small_now.width) {
        for (index_t y = 0; y < now.height; ++y) {
            std::uint8_t* row = now.at(y, 0);
            const index_t line = clamp_index(y, image.height);
            for (index_t x = 0; x < now.width; ++x) {
                row[x] = image.at(line, clamp_index(x, image.width))[image.channel];
            }
            const std::uint8_t* old = reference + y * now.width * 3 + 1;
            std::uint8_t* out = whole.at(y, 0);
            for (index_t x = 0; x < now.width; ++x) out[x] = old[3 * x];
        }
        now.extend();
        whole.extend();
        // No vector reaches the first and last lines of the margin, so their values do not matter.
        const index_t first = 2 * whole.stride, count = (now.height + 2 * kMotionMargin - 4) * whole.stride;
        interpolate(whole.data + first, 1, count, across.data + first);
        interpolate(whole.data + first, whole.stride, count, down.data + first);
        interpolate(across.data + 2 * first, whole.stride, count - 2 * first, both.data + 2 * first);
        shrink(now, small_now);
        shrink(whole, small_old);
    }

    // The plane of the reference picture for a vector (dy, dx) in half pixels.
    const Plane& moved(std::int32_t dy, std::int32_t dx) const {
        return dy & 1 ? (dx & 1 ? both : down) : (dx & 1 ? across : whole);
    }

    const Plane now, whole, across, down, both, small_now, small_old;

  private:
    static std::uint8_t* after(const Plane& plane) {
        return plane.data + Plane::plane_bytes(plane.height, plane.width);
    }
};

// The search of one cell: candidates are tried one after the other, the best so far stays.
class CellSearch {
  public:
    // `before` is the vector of the cell before; every other one costs `cost` more.
    CellSearch(const MotionPlanes& planes, index_t top, index_t left, const std::int32_t* before, std::int32_t cap,
               std::int64_t cost)
        : planes_(planes), top_(top), left_(left), before_{before[0], before[1]}, best_{before[0], before[1]},
          cap_(cap), cost_(cost) {}

    // Takes (dy, dx) if it is better than the best so far; returns whether it is.
    bool attempt(std::int32_t dy, std::int32_t dx) {
        if (dy < -kMaxVector || dy > kMaxVector || dx < -kMaxVector || dx > kMaxVector) return false;
        const Plane& plane = planes_.moved(dy, dx);
        std::int64_t value = capped_difference(planes_.now.at(top_, left_), planes_.now.stride,
                                               plane.at(top_ + (dy >> 1), left_ + (dx >> 1)), plane.stride, cap_);
        if (dy != before_[0] || dx != before_[1]) value += cost_;
        if (least_ >= 0 && value >= least_) return false;
        least_ = value;
        best_[0] = dy;
        best_[1] = dx;
        return true;
    }

    // Tries whole pixels around the closest place of the shrunk pictures.
    void search_coarse() {
        const Plane &now = planes_.small_now, &old = planes_.small_old;
        const index_t top = top_ / kShrunk, left = left_ / kShrunk;
        index_t y = 0, x = 0;
        std::int32_t closest = -1;
        for (index_t i = -kCoarseRadius; i <= kCoarseRadius; ++i) {
            for (index_t j = -kCoarseRadius; j <= kCoarseRadius; ++j) {
                const std::int32_t value =
                    block_difference(now.at(top, left), now.stride, old.at(top + i, left + j), old.stride);
                if (closest < 0 || value < closest) closest = value, y = i, x = j;
            }
        }
        for (index_t i = -4; i <= 4; i += 4) {
            for (index_t j = -4; j <= 4; j += 4) {
                attempt(static_cast<std::int32_t>(2 * kShrunk * y + i), static_cast<std::int32_t>(2 * kShrunk * x + j));
            }
        }
    }

    // Walks from the best by whole pixels while that helps, then tries its half pixels.
    void refine() {
        for (int step = 0; step < kMotionSteps; ++step) {
            if (!try_around(2)) break;
        }
        try_around(1);
    }

    std::int64_t least() const { return least_; }
    const std::int32_t* best() const { return best_; }

  private:
    // Tries the eight neighbours of the best at a distance of `step` half pixels.
    bool try_around(std::int32_t step) {
        const std::int32_t y = best_[0], x = best_[1];
        bool better = false;
        for (std::int32_t i = -step; i <= step; i += step) {
            for (std::int32_t j = -step; j <= step; j += step) {
                if (i || j) better |= attempt(y + i, x + j);
            }
        }
        return better;
    }

    const MotionPlanes& planes_;
    index_t top_, left_;
    std::int32_t before_[2], best_[2];
    std::int32_t cap_;
    std::int64_t cost_, least_ = -1;
};

// Finds the vector of each cell, in raster order, on the green channel: the one with the least capped difference plus
// `cost` where it is not that of the cell before. `vectors` holds those of the frame before and gets the new ones.
// Cells that are not `active` only choose between the vector of the cell before and none.
inline void find_motion(const MotionPlanes& planes, index_t rows, index_t columns, const std::uint8_t* active,
                        std::int32_t cap, std::int64_t cost, std::int32_t* vectors) {
    std::int32_t before[2] = {0, 0};
    for (index_t cell = 0; cell < rows * columns; ++cell) {
        std::int32_t* vector = vectors + 2 * cell;
        CellSearch search(planes, cell / columns * kCell, cell % columns * kCell, before, cap, cost);
        search.attempt(before[0], before[1]);
        search.attempt(0, 0);
        if (active[cell] && search.least() > cost) {
            search.attempt(vector[0], vector[1]);
            if (cell >= columns) search.attempt(vector[-2 * columns], vector[-2 * columns + 1]);
            if (search.least() > 2 * cost) search.search_coarse();
            search.refine();
        }
        vector[0] = before[0] = search.best()[0];
        vector[1] = before[1] = search.best()[1];
    }
}

}  // namespace tatok

#endif  // TATOK_MOTION_HPP
