// Products of small vectors and matrices in integers, for the networks of the token coder.
//
// A matrix is kept as pairs of its rows, the two weights of an output side by side: one machine instruction multiplies
// both with a pair of inputs and adds them. Every version computes the same sums.

#ifndef TATOK_PRODUCTS_HPP
#define TATOK_PRODUCTS_HPP

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__CUDACC__)
#define TATOK_X86 1
#include <immintrin.h>
#endif

namespace tatok {

constexpr int kLanes = 16;  // outputs come in multiples of it

// Pairs of inputs that are not both 0, each with its weights (outputs, 2).
class PairList {
  public:
    explicit PairList(int most) : rows_(most), values_(most) {}

    void clear() { size_ = 0; }

    // Appends `pairs` pairs of `x`, with the weights `step` apart from one pair to the next.
    void push(const int16_t* weights, int step, const int16_t* x, int pairs) {
        int size = size_;
        for (int i = 0; i < pairs; ++i) {
            int32_t pair;
            std::memcpy(&pair, x + 2 * i, sizeof pair);
            rows_[size] = weights + static_cast<size_t>(i) * step;
            values_[size] = pair;
            size += pair != 0;
        }
        size_ = size;
    }

    const int16_t* const* rows() const { return rows_.data(); }
    const int32_t* values() const { return values_.data(); }
    int size() const { return size_; }

  private:
    int size_ = 0;
    std::vector<const int16_t*> rows_;
    std::vector<int32_t> values_;  // two int16 as they lie in memory
};

inline void products_plain(const int16_t* const* rows, const int32_t* values, int count, int width,
                           const int32_t* start, int32_t* out) {
    for (int at = 0; at < width; at += kLanes) {
        int32_t sums[kLanes];
        for (int j = 0; j < kLanes; ++j) sums[j] = start[at + j];
        for (int i = 0; i < count; ++i) {
            const int16_t* row = rows[i] + 2 * at;
            int16_t x[2];
            std::memcpy(x, values + i, sizeof x);
            for (int j = 0; j < kLanes; ++j) sums[j] += static_cast<int32_t>(x[0]) * row[2 * j] + x[1] * row[2 * j + 1];
        }
        for (int j = 0; j < kLanes; ++j) out[at + j] = sums[j];
    }
}

#ifdef TATOK_X86

template <int kRegisters>
__attribute__((target("avx2"), always_inline)) inline void part_avx2(const int16_t* const* rows, const int32_t* values,
                                                                     int count, int at, const int32_t* start,
                                                                     int32_t* out) {
    __m256i sums[kRegisters];
    for (int r = 0; r < kRegisters; ++r) {
        sums[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(start + at + 8 * r));
    }
    for (int i = 0; i < count; ++i) {
        const int16_t* row = rows[i] + 2 * at;
        const __m256i x = _mm256_set1_epi32(values[i]);
        for (int r = 0; r < kRegisters; ++r) {
            const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 16 * r));
            sums[r] = _mm256_add_epi32(sums[r], _mm256_madd_epi16(w, x));
        }
    }
    for (int r = 0; r < kRegisters; ++r) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at + 8 * r), sums[r]);
    }
}

__attribute__((target("avx2"))) inline void products_avx2(const int16_t* const* rows, const int32_t* values, int count,
                                                          int width, const int32_t* start, int32_t* out) {
    int at = 0;
    for (; at + 64 <= width; at += 64) part_avx2<8>(rows, values, count, at, start, out);
    for (; at + 32 <= width; at += 32) part_avx2<4>(rows, values, count, at, start, out);
    for (; at < width; at += 16) part_avx2<2>(rows, values, count, at, start, out);
}

#define TATOK_VNNI __attribute__((target("avx512f,avx512bw,avx512vnni")))

// An instruction takes some cycles, so that few registers need several sums side by side: kTogether pairs at a time.
template <int kRegisters, int kTogether>
TATOK_VNNI __attribute__((always_inline)) inline void part_vnni(const int16_t* const* rows, const int32_t* values,
                                                                int count, int at, const int32_t* start,
                                                                int32_t* out) {
    __m512i sums[kTogether][kRegisters];
    for (int r = 0; r < kRegisters; ++r) {
        sums[0][r] = _mm512_loadu_si512(start + at + 16 * r);
        for (int t = 1; t < kTogether; ++t) sums[t][r] = _mm512_setzero_si512();
    }
    int i = 0;
    for (; i + kTogether <= count; i += kTogether) {
        for (int t = 0; t < kTogether; ++t) {
            const int16_t* row = rows[i + t] + 2 * at;
            const __m512i x = _mm512_set1_epi32(values[i + t]);
            for (int r = 0; r < kRegisters; ++r) {
                sums[t][r] = _mm512_dpwssd_epi32(sums[t][r], _mm512_loadu_si512(row + 32 * r), x);
            }
        }
    }
    for (; i < count; ++i) {
        const int16_t* row = rows[i] + 2 * at;
        const __m512i x = _mm512_set1_epi32(values[i]);
        for (int r = 0; r < kRegisters; ++r) {
            sums[0][r] = _mm512_dpwssd_epi32(sums[0][r], _mm512_loadu_si512(row + 32 * r), x);
        }
    }
    for (int r = 0; r < kRegisters; ++r) {
        for (int t = 1; t < kTogether; ++t) sums[0][r] = _mm512_add_epi32(sums[0][r], sums[t][r]);
        _mm512_storeu_si512(out + at + 16 * r, sums[0][r]);
    }
}

TATOK_VNNI inline void products_vnni(const int16_t* const* rows, const int32_t* values, int count, int width,
                                     const int32_t* start, int32_t* out) {
    int at = 0;
    for (; at + 128 <= width; at += 128) part_vnni<8, 2>(rows, values, count, at, start, out);
    for (; at + 64 <= width; at += 64) part_vnni<4, 3>(rows, values, count, at, start, out);
    if (at + 48 <= width) {
        part_vnni<3, 4>(rows, values, count, at, start, out);
    } else if (at + 32 <= width) {
        part_vnni<2, 4>(rows, values, count, at, start, out);
    } else if (at < width) {
        part_vnni<1, 4>(rows, values, count, at, start, out);
    }
}

#endif

using Products = void (*)(const int16_t* const*, const int32_t*, int, int, const int32_t*, int32_t*);

inline Products choose_products() {
#ifdef TATOK_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vnni")) {
        return products_vnni;
    }
    if (__builtin_cpu_supports("avx2")) return products_avx2;
#endif
    return products_plain;
}

// out (width,) = start (width,) + the weights (count, width, 2) times the pairs of inputs.
inline const Products products = choose_products();

}  // namespace tatok

#endif
