// Dynamic Token Filtering: keep the smallest set of tokens that holds a share tau of the total information.
//
// A patch has up to `depth` tokens, one on the other. Scores become integers first (16 fractional bits), so that sums
// do not depend on the order of summation and every backend keeps exactly the same tokens. A running minimum over depth
// makes sure that a kept token has all tokens above it. Nothing is sorted: a radix walk from the largest value down
// finds the value and the tie at which the kept prefix ends. Equal values are taken by depth, then by position.
#ifndef TATOK_DTF_HPP
#define TATOK_DTF_HPP

#include <cstring>

#include "common.hpp"

namespace tatok {

constexpr std::int32_t kScoreMax = 2147483647;
constexpr index_t kDtfMaxTokens = index_t{1} << 27;  // scores of an image; their sum is below 2^58

// Bits to fixed point with 16 fractional bits; scores from 2^15 bits on saturate. `bits` must not be negative.
TATOK_FUNC std::int32_t quantize_score(float bits) {
    const float scaled = bits * 65536.0f;
    return scaled < 2147483648.0f ? static_cast<std::int32_t>(round_half_even(scaled)) : kScoreMax;
}

// Finite and not negative (minus zero passes).
TATOK_FUNC bool valid_score(float bits) { return bits >= 0.0f && bits <= 3.402823466e+38f; }

// ceil(share * total / 2^30) for 0 <= share <= 2^30 and 0 <= total < 2^62, without a 128-bit product.
TATOK_FUNC std::int64_t scale_total(std::int64_t share, std::int64_t total) {
    const std::int64_t high = total >> 30, low = total & ((std::int64_t{1} << 30) - 1);
    return share * high + ((share * low + ((std::int64_t{1} << 30) - 1)) >> 30);
}

struct DtfLimits {
    std::int64_t share;        // tau * 2^30, in [1, 2^30]
    index_t min_tokens;        // 0 <= min_tokens <= max_tokens
    index_t max_tokens;
    std::int32_t floor_score;  // tokens with a smaller fixed-point score are cut, down to min_tokens
};

// The kept tokens of one image: those above `threshold`, and of those equal to it all that are shallower than
// `tie_depth` (from 0) and the first `ties` at `tie_depth`.
struct DtfSelection {
    index_t count;
    index_t ties;
    std::int32_t threshold;
    std::int32_t tie_depth;
};

struct DtfSummary {
    std::int64_t total;
    std::int32_t largest;
    std::int32_t above_floor;
    bool valid;
};

// Scores (n, depth) of one image as fixed-point scores (depth, n), not increasing over depth.
inline DtfSummary dtf_rank(const float* scores, index_t n, int depth, std::int32_t floor_score, std::int32_t* ranks) {
    std::int64_t total = 0;
    std::int32_t largest = 0, above = 0, invalid = 0;
    for (int k = 0; k < depth; ++k) {
        std::int32_t* row = ranks + k * n;
        const std::int32_t* shallower = row - n;
        for (index_t i = 0; i < n; ++i) {
            const float score = scores[i * depth + k];
            std::int32_t u = quantize_score(score);
            if (k > 0) u = u < shallower[i] ? u : shallower[i];
            invalid |= !valid_score(score);
            total += u;
            largest = u > largest ? u : largest;
            above += u >= floor_score;
            row[i] = u;
        }
    }
    return DtfSummary{total, largest, above, invalid == 0};
}

// Shares `ties` out among the tokens at selection->threshold: by depth, then by position.
inline void dtf_share_ties(const std::int32_t* ranks, index_t n, int depth, index_t ties, DtfSelection* selection) {
    std::int32_t k = 0;
    for (; k < depth; ++k) {
        index_t equal = 0;
        for (index_t i = 0; i < n; ++i) equal += ranks[k * n + i] == selection->threshold;
        if (ties < equal) break;
        ties -= equal;
    }
    selection->tie_depth = k;
    selection->ties = ties;
}

// Finds the kept tokens of one image with scores (n, depth); writes `ranks` (depth, n), which dtf_write reads. Returns
// kOk or the index of the first bad score. n * depth must be at most kDtfMaxTokens.
inline index_t dtf_select(const float* scores, index_t n, int depth, const DtfLimits& limits, std::int32_t* ranks,
                          DtfSelection* selection) {
    constexpr int kDigit = 11;
    constexpr std::int32_t kBuckets = 1 << kDigit;

    const DtfSummary summary = dtf_rank(scores, n, depth, limits.floor_score, ranks);
    if (!summary.valid) {
        index_t bad = 0;
        while (valid_score(scores[bad])) ++bad;
        return bad;
    }
    const index_t tokens = n * depth;
    const std::int64_t target = scale_total(limits.share, summary.total);
    const index_t least = limits.min_tokens < tokens ? limits.min_tokens : tokens;
    index_t most = limits.max_tokens < tokens ? limits.max_tokens : tokens;
    if (most > summary.above_floor) most = summary.above_floor;

    // The number of kept tokens, max(least, min(k_tau, most)), is the smallest count that satisfies this.
    const auto enough = [&](index_t count, std::int64_t sum) {
        return count >= least && (count >= most || sum >= target);
    };
    if (enough(0, 0)) {
        *selection = DtfSelection{0, 0, kScoreMax, 0};
        return kOk;
    }

    int shift = 0;
    while (shift + kDigit < 31 && (summary.largest >> (shift + kDigit)) != 0) ++shift;
    std::int32_t width = kBuckets;  // buckets of the current digit
    std::int32_t prefix = 0;        // the value at which the kept tokens end: its digits found so far
    index_t count = 0;              // tokens above the current bucket, and their sum
    std::int64_t sum = 0;
    std::int32_t counts[kBuckets];
    std::int64_t sums[kBuckets];
    for (;;) {
        std::memset(counts, 0, sizeof(counts));
        std::memset(sums, 0, sizeof(sums));
        for (index_t i = 0; i < tokens; ++i) {
            const std::int32_t u = ranks[i];
            const std::int32_t bucket = (u >> shift) - prefix;
            if (static_cast<std::uint32_t>(bucket) < static_cast<std::uint32_t>(width)) {
                counts[bucket] += 1;
                sums[bucket] += u;
            }
        }
        std::int32_t bucket = width - 1;
        while (bucket > 0 && !enough(count + counts[bucket], sum + sums[bucket])) {
            count += counts[bucket];
            sum += sums[bucket];
            --bucket;
        }
        const std::int32_t digits = prefix + bucket;
        if (shift == 0) {
            index_t ties = 1;
            if (digits > 0 && target > sum) ties = (target - sum + digits - 1) / digits;
            if (ties > most - count) ties = most - count;
            if (ties < least - count) ties = least - count;
            *selection = DtfSelection{count + ties, 0, digits, 0};
            dtf_share_ties(ranks, n, depth, ties, selection);
            return kOk;
        }
        const int step = shift < kDigit ? shift : kDigit;
        shift -= step;
        width = 1 << step;
        prefix = digits << step;
    }
}

// Writes the kept tokens of one image in raster order, depth innermost: positions plus `base`, and depths from 1;
// selection.count values each.
inline void dtf_write(const std::int32_t* ranks, index_t n, int depth, const DtfSelection& selection, std::int32_t base,
                      std::int32_t* positions, std::int32_t* depths) {
    index_t written = 0, ties = selection.ties;
    for (index_t i = 0; written < selection.count; ++i) {
        for (std::int32_t k = 0; k < depth; ++k) {  // the tokens of a patch do not rise, so the first dropped one ends it
            const std::int32_t u = ranks[k * n + i];
            if (u < selection.threshold) break;
            if (u == selection.threshold && k >= selection.tie_depth) {
                if (k > selection.tie_depth || ties == 0) break;
                --ties;
            }
            positions[written] = base + static_cast<std::int32_t>(i);
            depths[written] = k + 1;
            ++written;
        }
    }
}

}  // namespace tatok

#endif
