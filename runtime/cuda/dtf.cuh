// Dynamic Token Filtering, one block per image: the tokens that dtf.hpp keeps, bit for bit.
//
// As there, nothing is sorted: a radix walk from the largest value down finds the value and the tie at which the kept
// prefix ends. The histograms are in shared memory; a value is added to them as two halves of 16 bits, because shared
// memory adds 32 bits natively. All sums are integers, so the order of the additions does not matter.
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
constexpr int kDtfSumBits = 47;         // of the sum of 2^16 scores below 2^31; a count of them fits above it
constexpr index_t kDtfMaxPatches = 1 << 16;

static_assert(kDtfWarps <= kWarpSize, "the totals of the warps are scanned by one warp");

using Packed = unsigned long long;  // of a histogram: count << 47 | sum; of the kept tokens: above << 32 | equal

__device__ __forceinline__ index_t packed_count(Packed packed) {
    return static_cast<index_t>(packed >> kDtfSumBits);
}
__device__ __forceinline__ std::int64_t packed_sum(Packed packed) {
    return static_cast<std::int64_t>(packed & ((Packed{1} << kDtfSumBits) - 1));
}

__device__ __forceinline__ Packed warp_sum(Packed value) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
    return value;
}

// The sum of the values of the threads before this one. All threads of the block must call it; `totals` is shared.
__device__ __forceinline__ Packed exclusive_scan(Packed value, Packed* totals) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    Packed inclusive = value;
    for (int offset = 1; offset < kWarpSize; offset *= 2) {
        const Packed before = __shfl_up_sync(kFullWarp, inclusive, offset);
        if (lane >= offset) inclusive += before;
    }
    __syncthreads();  // `totals` may still be read from an earlier use
    if (lane == kWarpSize - 1) totals[warp] = inclusive;
    __syncthreads();
    Packed base = 0;
    for (int w = 0; w < warp; ++w) base += totals[w];
    return base + inclusive - value;
}

// The kept positions of one image, ascending, then -1 up to `patches`: indices (images, patches); how many, or
// -1 - i where score i is the first that is negative or not finite (then none is kept): counts (images).
template <typename Score>
__global__ void __launch_bounds__(kDtfThreads)
    dtf_kernel(const Score* __restrict__ all_scores, int patches, DtfLimits limits,
               std::int32_t* __restrict__ all_indices, std::int32_t* __restrict__ counts) {
    __shared__ std::uint32_t histogram_count[kDtfBuckets], histogram_low[kDtfBuckets], histogram_high[kDtfBuckets];
    __shared__ Packed totals[kDtfWarps];
    __shared__ unsigned long long total;
    __shared__ std::uint32_t above_floor, first_bad, bits_used;
    __shared__ Packed shared_before;
    __shared__ std::int32_t shared_bucket;

    const Score* scores = all_scores + static_cast<index_t>(blockIdx.x) * patches;
    std::int32_t* indices = all_indices + static_cast<index_t>(blockIdx.x) * patches;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;

    // Summary of the image. `bits_used` is the OR of all scores; its highest bit is that of the largest score.
    if (thread == 0) {
        total = 0;
        above_floor = 0;
        first_bad = 0xFFFFFFFFu;
        bits_used = 0;
    }
    __syncthreads();
    {
        std::int64_t sum = 0;
        std::uint32_t above = 0, bad = 0xFFFFFFFFu, bits = 0;
        for (int i = thread; i < patches; i += kDtfThreads) {
            const float score = to_float(scores[i]);
            if (!valid_score(score)) {
                bad = static_cast<std::uint32_t>(i) < bad ? static_cast<std::uint32_t>(i) : bad;
                continue;
            }
            const std::int32_t u = quantize_score(score);
            sum += u;
            above += u >= limits.floor_score;
            bits |= static_cast<std::uint32_t>(u);
        }
        const Packed all = warp_sum(static_cast<Packed>(above) << kDtfSumBits | static_cast<Packed>(sum));
        if (lane == 0) {
            atomicAdd(&total, static_cast<unsigned long long>(packed_sum(all)));
            atomicAdd(&above_floor, static_cast<std::uint32_t>(packed_count(all)));
        }
        if (bad != 0xFFFFFFFFu) atomicMin(&first_bad, bad);
        if (bits != 0) atomicOr(&bits_used, bits);
    }
    __syncthreads();

    if (first_bad != 0xFFFFFFFFu) {
        for (int i = thread; i < patches; i += kDtfThreads) indices[i] = -1;
        if (thread == 0) counts[blockIdx.x] = -1 - static_cast<std::int32_t>(first_bad);
        return;
    }

    const std::int64_t target = scale_total(limits.share, static_cast<std::int64_t>(total));
    const index_t least = limits.min_tokens < patches ? limits.min_tokens : patches;
    index_t most = limits.max_tokens < patches ? limits.max_tokens : patches;
    if (most > static_cast<index_t>(above_floor)) most = above_floor;
    const auto enough = [&](index_t count, std::int64_t sum) {
        return count >= least && (count >= most || sum >= target);
    };

    DtfSelection selection{0, 0, kScoreMax};
    if (!enough(0, 0)) {
        int shift = 0;
        while (shift + kDtfDigit < 31 && (bits_used >> (shift + kDtfDigit)) != 0) ++shift;
        int width = kDtfBuckets;
        std::int32_t prefix = 0;
        Packed before = 0;  // tokens above the current bucket, and their sum
        for (;;) {
            for (int i = thread; i < kDtfBuckets; i += kDtfThreads) {
                histogram_count[i] = 0;
                histogram_low[i] = 0;
                histogram_high[i] = 0;
            }
            __syncthreads();
            for (int i = thread; i < patches; i += kDtfThreads) {
                const std::int32_t u = quantize_score(to_float(scores[i]));
                const std::int32_t bucket = (u >> shift) - prefix;
                if (static_cast<std::uint32_t>(bucket) < static_cast<std::uint32_t>(width)) {
                    atomicAdd(&histogram_count[bucket], std::uint32_t{1});
                    if (shift > 0) {  // in the last round every value of a bucket is the same
                        atomicAdd(&histogram_low[bucket], static_cast<std::uint32_t>(u) & 0xFFFFu);
                        atomicAdd(&histogram_high[bucket], static_cast<std::uint32_t>(u) >> 16);
                    }
                }
            }
            __syncthreads();

            // Thread 0 has the highest buckets. The walk ends in the bucket that makes it enough, at the latest in 0.
            Packed own[kDtfBucketsEach], sum = 0;
            for (int k = 0; k < kDtfBucketsEach; ++k) {
                const int bucket = kDtfBuckets - 1 - (thread * kDtfBucketsEach + k);
                const Packed count = histogram_count[bucket];
                const Packed values = shift > 0 ? (Packed{histogram_high[bucket]} << 16) + histogram_low[bucket]
                                                : count * static_cast<Packed>(prefix + bucket);
                own[k] = count << kDtfSumBits | values;
                sum += own[k];
            }
            Packed running = before + exclusive_scan(sum, totals);
            for (int k = 0; k < kDtfBucketsEach; ++k) {
                const int bucket = kDtfBuckets - 1 - (thread * kDtfBucketsEach + k);
                const Packed with = running + own[k];
                const bool reached = bucket == 0 || enough(packed_count(with), packed_sum(with));
                if (reached && !enough(packed_count(running), packed_sum(running))) {
                    shared_bucket = bucket;
                    shared_before = running;
                }
                running = with;
            }
            __syncthreads();
            const std::int32_t digits = prefix + shared_bucket;
            before = shared_before;
            if (shift == 0) {
                const index_t count = packed_count(before);
                const std::int64_t below_target = target - packed_sum(before);
                index_t ties = 1;
                if (digits > 0 && below_target > 0) ties = (below_target + digits - 1) / digits;
                if (ties > most - count) ties = most - count;
                if (ties < least - count) ties = least - count;
                selection = DtfSelection{count + ties, ties, digits};
                break;
            }
            const int step = shift < kDtfDigit ? shift : kDtfDigit;
            shift -= step;
            width = 1 << step;
            prefix = digits << step;
            // The histograms are cleared ahead of the next barrier, and shared_bucket is read by then.
        }
    }

    // Every warp takes a run of positions: first it counts, then it knows where to write.
    const int run = (patches + kDtfThreads - 1) / kDtfThreads * kWarpSize;
    const int first = warp * run, last = first + run < patches ? first + run : patches;
    const auto classify = [&](int i) -> Packed {
        if (i >= last) return 0;
        const std::int32_t u = quantize_score(to_float(scores[i]));
        return static_cast<Packed>(u > selection.threshold) << 32 | static_cast<Packed>(u == selection.threshold);
    };
    Packed mine = 0;
    for (int i = first + lane; i < last; i += kWarpSize) mine += classify(i);
    mine = warp_sum(mine);
    __syncthreads();
    if (lane == 0) totals[warp] = mine;
    __syncthreads();
    std::uint32_t above = 0, equal = 0;
    for (int w = 0; w < warp; ++w) {
        above += static_cast<std::uint32_t>(totals[w] >> 32);
        equal += static_cast<std::uint32_t>(totals[w]);
    }
    const std::uint32_t ties = static_cast<std::uint32_t>(selection.ties), below = (1u << lane) - 1;
    for (int start = first; start < last; start += kWarpSize) {
        const Packed kind = classify(start + lane);
        const bool is_above = (kind >> 32) != 0, is_equal = (kind & 1) != 0;
        const unsigned above_lanes = __ballot_sync(kFullWarp, is_above);
        const unsigned equal_lanes = __ballot_sync(kFullWarp, is_equal);
        const std::uint32_t equal_before = equal + static_cast<std::uint32_t>(__popc(equal_lanes & below));
        if (is_above || (is_equal && equal_before < ties)) {
            const std::uint32_t above_before = above + static_cast<std::uint32_t>(__popc(above_lanes & below));
            indices[above_before + (equal_before < ties ? equal_before : ties)] = start + lane;
        }
        above += static_cast<std::uint32_t>(__popc(above_lanes));
        equal += static_cast<std::uint32_t>(__popc(equal_lanes));
    }
    for (int i = static_cast<int>(selection.count) + thread; i < patches; i += kDtfThreads) indices[i] = -1;
    if (thread == 0) counts[blockIdx.x] = static_cast<std::int32_t>(selection.count);
}

constexpr int kFlattenThreads = 256;

// The dense result of the kernel above, flat over the batch: positions (b * patches + i), -1 behind the last, flat
// (images * patches); offsets per image, cu_seqlens (images + 1). A refused image has none.
__global__ void __launch_bounds__(kFlattenThreads)
    flatten_kernel(const std::int32_t* __restrict__ indices, const std::int32_t* __restrict__ counts, int images,
                   int patches, std::int32_t* __restrict__ flat, std::int32_t* __restrict__ cu_seqlens) {
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
    const std::int32_t* row = indices + static_cast<index_t>(image) * patches;
    for (int i = thread; i < count; i += kFlattenThreads) flat[start + i] = image * patches + row[i];
    // The unused places at the end are shared out: image b has as many of them as it kept too few.
    const std::int32_t unused = total + (image * patches - start);
    for (int i = thread; i < patches - count; i += kFlattenThreads) flat[unused + i] = -1;
    if (thread == 0) {
        cu_seqlens[image] = start;
        if (image == images - 1) cu_seqlens[images] = total;
    }
}

}  // namespace tatok

#endif
