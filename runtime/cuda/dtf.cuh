// Dynamic Token Filtering, one block per image: the tokens that dtf.hpp keeps, bit for bit.
//
// As there, nothing is sorted: a radix walk from the largest value down finds the value and the tie at which the kept
// prefix ends. The histograms are in shared memory. A value is added to them without the digits that its bucket has, as
// two halves of at most 10 bits, because shared memory adds 32 bits natively. All sums are integers, so the order of
// the additions does not matter.
#ifndef TATOK_DTF_CUH
#define TATOK_DTF_CUH

#include "../cpp/dtf.hpp"
#include "platform.cuh"

namespace tatok {

constexpr int kDtfThreads = 512;
constexpr int kDtfWarps = kDtfThreads / kWarpSize;
constexpr int kDtfDigit = 11;
constexpr int kDtfBuckets = 1 << kDtfDigit;
constexpr int kDtfBucketsEach = kDtfBuckets / kDtfThreads;
constexpr int kDtfHalf = 10;                    // bits of the lower half of what is left of a value
constexpr index_t kDtfMaxPatches = 1 << 16;     // so an image has at most 2^19 tokens, and a half sums up to 2^29
constexpr std::uint32_t kNoScore = 0xFFFFFFFFu;

static_assert(31 - kDtfDigit <= 2 * kDtfHalf, "two halves hold a value without its first digit");
static_assert(kDtfMaxPatches * kMaxDepth << kDtfHalf <= index_t{1} << 32, "a histogram holds the sum of a half");

using Wide = unsigned long long;

// Scores (images, patches, depth) in any strides, in elements.
template <typename Score>
struct Scores {
    const Score* data;
    std::int64_t image_stride, patch_stride, depth_stride;
    std::int32_t patches, depth;

    // Calls visit(k, u) with the fixed-point scores of a patch, not increasing over depth k.
    template <typename Visit>
    __device__ __forceinline__ void each(int image, int patch, const Visit& visit) const {
        const Score* score = data + image * image_stride + patch * patch_stride;
        std::int32_t u = kScoreMax;
        for (int k = 0; k < depth; ++k, score += depth_stride) {
            const std::int32_t own = quantize_score(to_float(*score));
            u = own < u ? own : u;
            visit(k, u);
        }
    }
};

// How many tokens, and the sum of their scores.
struct Tally {
    Wide sum;
    std::uint32_t count;
};

__device__ __forceinline__ Tally operator+(const Tally& a, const Tally& b) {
    return Tally{a.sum + b.sum, a.count + b.count};
}

// Shared by the threads of an image.
struct DtfShared {
    std::uint32_t histogram_count[kDtfBuckets], histogram_low[kDtfBuckets], histogram_high[kDtfBuckets];
    Tally totals[kDtfWarps];
    Wide runs[kDtfWarps];
    std::uint32_t equal[kMaxDepth];
    Wide total;
    std::uint32_t above_floor, first_bad, bits_used;
    Tally before;
    std::int32_t bucket;
};

template <typename Value>
__device__ __forceinline__ Value warp_sum(Value value) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
    return value;
}

// The sum of the values of the lanes up to this one.
template <typename Value>
__device__ __forceinline__ Value warp_scan(Value value) {
    const int lane = threadIdx.x % kWarpSize;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const Value before = __shfl_up_sync(kFullWarp, value, offset);
        if (lane >= offset) value += before;
    }
    return value;
}

// The sum of the values of the threads before this one. All threads of the block must call it; `totals` is shared.
__device__ __forceinline__ Tally exclusive_scan(const Tally& value, Tally* totals) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const Tally inclusive{warp_scan(value.sum), warp_scan(value.count)};
    __syncthreads();  // `totals` may still be read from an earlier use
    if (lane == kWarpSize - 1) totals[warp] = inclusive;
    __syncthreads();
    Tally base{inclusive.sum - value.sum, inclusive.count - value.count};
    for (int w = 0; w < warp; ++w) base = base + totals[w];
    return base;
}

// Fills total, above_floor, first_bad and bits_used, the OR of all scores: its highest bit is that of the largest one.
template <typename Score>
__device__ __forceinline__ void dtf_summarize(const Scores<Score>& scores, int image, std::int32_t floor_score,
                                              DtfShared& shared) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
    if (thread == 0) {
        shared.total = 0;
        shared.above_floor = 0;
        shared.first_bad = kNoScore;
        shared.bits_used = 0;
    }
    __syncthreads();
    Tally mine{0, 0};
    std::uint32_t bad = kNoScore, bits = 0;
    for (int i = thread; i < scores.patches; i += kDtfThreads) {
        const Score* score = scores.data + image * scores.image_stride + i * scores.patch_stride;
        for (int k = scores.depth - 1; k >= 0; --k) {
            const std::uint32_t index = static_cast<std::uint32_t>(i * scores.depth + k);
            if (!valid_score(to_float(score[k * scores.depth_stride])) && (bad == kNoScore || index < bad)) bad = index;
        }
        scores.each(image, i, [&](int, std::int32_t u) {
            mine.sum += static_cast<Wide>(u);
            mine.count += u >= floor_score;
            bits |= static_cast<std::uint32_t>(u);
        });
    }
    mine = Tally{warp_sum(mine.sum), warp_sum(mine.count)};
    if (lane == 0) {
        atomicAdd(&shared.total, mine.sum);
        atomicAdd(&shared.above_floor, mine.count);
    }
    if (bad != kNoScore) atomicMin(&shared.first_bad, bad);
    if (bits != 0) atomicOr(&shared.bits_used, bits);
    __syncthreads();
}

// Adds the scores of an image that have the digits `prefix` above a digit of `width` buckets to the histograms.
template <typename Score>
__device__ __forceinline__ void dtf_count(const Scores<Score>& scores, int image, int shift, int width,
                                          std::int32_t prefix, DtfShared& shared) {
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < kDtfBuckets; i += kDtfThreads) {
        shared.histogram_count[i] = 0;
        shared.histogram_low[i] = 0;
        shared.histogram_high[i] = 0;
    }
    __syncthreads();
    for (int i = thread; i < scores.patches; i += kDtfThreads) {
        scores.each(image, i, [&](int, std::int32_t u) {
            const std::int32_t bucket = (u >> shift) - prefix;
            if (static_cast<std::uint32_t>(bucket) >= static_cast<std::uint32_t>(width)) return;
            atomicAdd(&shared.histogram_count[bucket], std::uint32_t{1});
            if (shift > 0) {  // in the last round every value of a bucket is the same
                const std::uint32_t rest = static_cast<std::uint32_t>(u) & ((1u << shift) - 1);
                atomicAdd(&shared.histogram_low[bucket], rest & ((1u << kDtfHalf) - 1));
                if (shift > kDtfHalf) atomicAdd(&shared.histogram_high[bucket], rest >> kDtfHalf);
            }
        });
    }
    __syncthreads();
}

// Finds the value at which the kept tokens end, and how many of the equal ones are kept: `ties`, of all depths.
template <typename Score>
__device__ __forceinline__ DtfSelection dtf_find(const Scores<Score>& scores, int image, const DtfLimits& limits,
                                                 DtfShared& shared) {
    const int thread = static_cast<int>(threadIdx.x);
    const index_t tokens = static_cast<index_t>(scores.patches) * scores.depth;
    const std::int64_t target = scale_total(limits.share, static_cast<std::int64_t>(shared.total));
    const index_t least = limits.min_tokens < tokens ? limits.min_tokens : tokens;
    index_t most = limits.max_tokens < tokens ? limits.max_tokens : tokens;
    if (most > static_cast<index_t>(shared.above_floor)) most = shared.above_floor;
    const auto enough = [&](const Tally& tally) {
        const index_t count = tally.count;
        return count >= least && (count >= most || static_cast<std::int64_t>(tally.sum) >= target);
    };
    Tally before{0, 0};  // tokens above the current bucket
    if (enough(before)) return DtfSelection{0, 0, kScoreMax, 0};

    int shift = 0, width = kDtfBuckets;
    while (shift + kDtfDigit < 31 && (shared.bits_used >> (shift + kDtfDigit)) != 0) ++shift;
    std::int32_t prefix = 0;
    for (;;) {
        dtf_count(scores, image, shift, width, prefix, shared);
        // Thread 0 has the highest buckets. The walk ends in the bucket that makes it enough, at the latest in 0.
        Tally own[kDtfBucketsEach], sum{0, 0};
        for (int k = 0; k < kDtfBucketsEach; ++k) {
            const int bucket = kDtfBuckets - 1 - (thread * kDtfBucketsEach + k);
            const std::uint32_t count = shared.histogram_count[bucket];
            const Wide rest = (static_cast<Wide>(shared.histogram_high[bucket]) << kDtfHalf) +
                              shared.histogram_low[bucket];
            own[k] = Tally{count * (static_cast<Wide>(prefix + bucket) << shift) + rest, count};
            sum = sum + own[k];
        }
        Tally running = before + exclusive_scan(sum, shared.totals);
        for (int k = 0; k < kDtfBucketsEach; ++k) {
            const int bucket = kDtfBuckets - 1 - (thread * kDtfBucketsEach + k);
            const Tally with = running + own[k];
            if ((bucket == 0 || enough(with)) && !enough(running)) {
                shared.bucket = bucket;
                shared.before = running;
            }
            running = with;
        }
        __syncthreads();
        const std::int32_t digits = prefix + shared.bucket;
        before = shared.before;
        if (shift == 0) {
            const index_t count = before.count;
            const std::int64_t missing = target - static_cast<std::int64_t>(before.sum);
            index_t ties = 1;
            if (digits > 0 && missing > 0) ties = (missing + digits - 1) / digits;
            if (ties > most - count) ties = most - count;
            if (ties < least - count) ties = least - count;
            return DtfSelection{count + ties, ties, digits, 0};
        }
        const int step = shift < kDtfDigit ? shift : kDtfDigit;
        shift -= step;
        width = 1 << step;
        prefix = digits << step;
        // The histograms are cleared ahead of the next barrier, and shared.bucket is read by then.
    }
}

// Shares the ties out among the tokens at the threshold: by depth, then by position.
template <typename Score>
__device__ __forceinline__ void dtf_share_ties(const Scores<Score>& scores, int image, DtfSelection& selection,
                                               DtfShared& shared) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
    if (thread < kMaxDepth) shared.equal[thread] = 0;
    std::uint32_t equal[kMaxDepth] = {};
    for (int i = thread; i < scores.patches; i += kDtfThreads) {
        scores.each(image, i, [&](int k, std::int32_t u) { equal[k] += u == selection.threshold; });
    }
    __syncthreads();
    for (int k = 0; k < scores.depth; ++k) {
        const std::uint32_t all = warp_sum(equal[k]);
        if (lane == 0 && all != 0) atomicAdd(&shared.equal[k], all);
    }
    __syncthreads();
    std::int32_t depth = 0;
    for (; depth < scores.depth; ++depth) {
        const index_t all = shared.equal[depth];
        if (selection.ties < all) break;
        selection.ties -= all;
    }
    selection.tie_depth = depth;
}

// Writes the kept tokens of an image in raster order, depth innermost.
template <typename Score>
__device__ __forceinline__ void dtf_write(const Scores<Score>& scores, int image, const DtfSelection& selection,
                                          DtfShared& shared, std::int32_t* __restrict__ positions,
                                          std::int32_t* __restrict__ depths) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
    // Every warp takes a run of patches: first it counts, then it knows where to write.
    const int run = (scores.patches + kDtfThreads - 1) / kDtfThreads * kWarpSize;
    const int first = warp * run, last = first + run < scores.patches ? first + run : scores.patches;
    // Of a patch: how many tokens are kept for sure << 32, and whether the one after them is a tie at tie_depth.
    const auto classify = [&](int i) -> Wide {
        Wide kind = 0;
        if (i >= last) return kind;
        scores.each(image, i, [&](int k, std::int32_t u) {
            const bool equal = u == selection.threshold;
            kind += static_cast<Wide>(u > selection.threshold || (equal && k < selection.tie_depth)) << 32;
            kind += static_cast<Wide>(equal && k == selection.tie_depth);
        });
        return kind;
    };
    Wide mine = 0;
    for (int i = first + lane; i < last; i += kWarpSize) mine += classify(i);
    mine = warp_sum(mine);
    if (lane == 0) shared.runs[warp] = mine;
    __syncthreads();
    Wide before = 0;
    for (int w = 0; w < warp; ++w) before += shared.runs[w];
    const std::uint32_t ties = static_cast<std::uint32_t>(selection.ties);
    for (int start = first; start < last; start += kWarpSize) {
        const Wide kind = classify(start + lane), up_to = before + warp_scan(kind), ahead = up_to - kind;
        const std::uint32_t ties_ahead = static_cast<std::uint32_t>(ahead);
        const bool tie_kept = static_cast<std::uint32_t>(kind) != 0 && ties_ahead < ties;
        const std::uint32_t stack = static_cast<std::uint32_t>(kind >> 32) + (tie_kept ? 1 : 0);
        const std::uint32_t at = static_cast<std::uint32_t>(ahead >> 32) + (ties_ahead < ties ? ties_ahead : ties);
        for (std::uint32_t k = 0; k < stack; ++k) {
            positions[at + k] = start + lane;
            depths[at + k] = static_cast<std::int32_t>(k + 1);
        }
        before = __shfl_sync(kFullWarp, up_to, kWarpSize - 1);
    }
}

// The kept tokens of one image in raster order, depth innermost: positions (images, patches * depth), then -1, and
// depths (images, patches * depth), from 1, then 0. How many, or -1 - i where score i of the image, as (patches, depth),
// is the first that is negative or not finite (then none is kept): counts (images).
template <typename Score>
__global__ void __launch_bounds__(kDtfThreads)
    dtf_kernel(const Scores<Score> scores, const DtfLimits limits, std::int32_t* __restrict__ all_positions,
               std::int32_t* __restrict__ all_depths, std::int32_t* __restrict__ counts) {
    __shared__ DtfShared shared;
    const int thread = static_cast<int>(threadIdx.x), image = static_cast<int>(blockIdx.x);
    const int tokens = scores.patches * scores.depth;
    std::int32_t* positions = all_positions + static_cast<index_t>(image) * tokens;
    std::int32_t* depths = all_depths + static_cast<index_t>(image) * tokens;

    dtf_summarize(scores, image, limits.floor_score, shared);
    const bool refused = shared.first_bad != kNoScore;
    DtfSelection selection{0, 0, kScoreMax, 0};
    if (!refused) {
        selection = dtf_find(scores, image, limits, shared);
        if (selection.count > 0) {
            dtf_share_ties(scores, image, selection, shared);
            dtf_write(scores, image, selection, shared, positions, depths);
        }
    }
    for (int i = static_cast<int>(selection.count) + thread; i < tokens; i += kDtfThreads) {
        positions[i] = -1;
        depths[i] = 0;
    }
    if (thread == 0) {
        counts[image] = refused ? -1 - static_cast<std::int32_t>(shared.first_bad)
                                : static_cast<std::int32_t>(selection.count);
    }
}

constexpr int kFlattenThreads = 256;

// The dense result of the kernel above, flat over the batch: positions (b * patches + i), -1 behind the last, and
// depths, 0 behind the last, (images * tokens); offsets per image, cu_seqlens (images + 1). A refused image has none.
__global__ void __launch_bounds__(kFlattenThreads)
    flatten_kernel(const std::int32_t* __restrict__ positions, const std::int32_t* __restrict__ depths,
                   const std::int32_t* __restrict__ counts, int images, int patches, int tokens,
                   std::int32_t* __restrict__ flat_positions, std::int32_t* __restrict__ flat_depths,
                   std::int32_t* __restrict__ cu_seqlens) {
    __shared__ std::uint32_t before, all;
    const int thread = static_cast<int>(threadIdx.x), image = static_cast<int>(blockIdx.x);
    if (thread == 0) {
        before = 0;
        all = 0;
    }
    __syncthreads();
    for (int b = thread; b < images; b += kFlattenThreads) {
        const std::int32_t count = counts[b] > 0 ? counts[b] : 0;
        if (b < image) atomicAdd(&before, static_cast<std::uint32_t>(count));
        atomicAdd(&all, static_cast<std::uint32_t>(count));
    }
    __syncthreads();
    const std::int32_t start = static_cast<std::int32_t>(before), total = static_cast<std::int32_t>(all);
    const std::int32_t count = counts[image] > 0 ? counts[image] : 0;
    const index_t row = static_cast<index_t>(image) * tokens;
    for (int i = thread; i < count; i += kFlattenThreads) {
        flat_positions[start + i] = image * patches + positions[row + i];
        flat_depths[start + i] = depths[row + i];
    }
    // The unused places at the end are shared out: image b has as many of them as it kept too few.
    const std::int32_t unused = total + (image * tokens - start);
    for (int i = thread; i < tokens - count; i += kFlattenThreads) {
        flat_positions[unused + i] = -1;
        flat_depths[unused + i] = 0;
    }
    if (thread == 0) {
        cu_seqlens[image] = start;
        if (image == images - 1) cu_seqlens[images] = total;
    }
}

}  // namespace tatok

#endif
