"""Dynamic token filtering. ``reference.py`` specifies the functions bit for bit."""

import numpy as np

from libc.math cimport isfinite, rint
from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

from tatok_edge.runtime.cpu.arguments cimport check, kOk, FLOAT32
from tatok_edge.runtime.cpu.geometry cimport index_t


cdef extern from "common.hpp" namespace "tatok" nogil:
    const int kMaxDepth


cdef extern from "dtf.hpp" namespace "tatok" nogil:
    const index_t kDtfMaxTokens

    struct DtfLimits:
        int64_t share
        index_t min_tokens
        index_t max_tokens
        int32_t floor_score

    struct DtfSelection:
        index_t count

    index_t dtf_select(const float* scores, index_t n, int depth, const DtfLimits& limits, int32_t* ranks,
                       DtfSelection* selection)
    void dtf_write(const int32_t* ranks, index_t n, int depth, const DtfSelection& selection, int32_t base,
                   int32_t* positions, int32_t* depths)


cdef int64_t INT_MAX = 2147483647


def dtf(scores, *, double tau=1.0, min_tokens=0, max_tokens=None, double floor_bits=0.0):
    """Keeps, per image, the smallest set of tokens that holds a share ``tau`` of the total score.

    A patch has up to K tokens. Scores become integers (16 fractional bits, ties to even, saturating), so every backend
    keeps the same tokens; a score counts as the smallest of its patch up to its depth, so a kept token has all tokens
    above it. The order is by score descending, then depth, then position, ascending; the count that reaches ``tau`` is
    clamped to ``[min_tokens, max_tokens]``, then tokens under ``floor_bits`` are cut, never below ``min_tokens``.

    Args:
        scores: float32 (B, N, K), C-contiguous, finite and not negative; K from 1 to 8, N * K at most 2^27, B * N * K
            below 2^31. Column ``k`` holds the scores of the tokens at depth ``k + 1``.
        tau: share of the total to keep, above 0 and at most 1.
        min_tokens: tokens of all depths kept at least, or all where there are fewer.
        max_tokens: tokens of all depths kept at most; None for no limit.
        floor_bits: tokens with a lower score are cut.

    Returns:
        ``positions`` int32 (T,), flat over the batch (``b * N + n``), in raster order, each as often as its depth;
        ``depths`` int32 (T,), from 1; ``cu_seqlens`` int32 (B + 1,), where image ``b`` has the tokens
        ``cu_seqlens[b]`` to ``cu_seqlens[b + 1]``.
    """
    check(scores, "scores", FLOAT32, ("B", "N", "K"))
    cdef const float[:, :, ::1] values = scores
    cdef Py_ssize_t images = values.shape[0], patches = values.shape[1], depth = values.shape[2], b
    cdef Py_ssize_t tokens = patches * depth
    cdef int64_t least = min_tokens, most = INT_MAX if max_tokens is None else max_tokens
    if not 1 <= depth <= kMaxDepth:
        raise ValueError(f"scores must have 1 to {kMaxDepth} depths (B, N, K), got {scores.shape}")
    if tokens > kDtfMaxTokens or images * tokens > INT_MAX:
        raise ValueError(f"scores must have at most {kDtfMaxTokens} values per image and {INT_MAX} in all, "
                         f"got {scores.shape}")
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau must be above 0 and at most 1, got {tau}")
    if not 0 <= least <= most:
        raise ValueError(f"min_tokens must be between 0 and max_tokens, got min_tokens={min_tokens}, "
                         f"max_tokens={max_tokens}")
    if not (isfinite(floor_bits) and floor_bits >= 0.0):
        raise ValueError(f"floor_bits must be finite and at least 0, got {floor_bits}")

    cdef DtfLimits limits
    limits.share = max(<int64_t>rint(tau * 1073741824.0), 1)
    limits.min_tokens = least
    limits.max_tokens = most
    limits.floor_score = <int32_t>rint(min(floor_bits * 65536.0, 2147483647.0))

    cu_seqlens = np.empty(images + 1, np.int32)
    cdef int32_t[::1] offsets = cu_seqlens
    cdef vector[DtfSelection] selections
    cdef vector[int32_t] ranks
    selections.resize(images)
    ranks.resize(images * tokens)
    cdef const float* data = &values[0, 0, 0]
    cdef index_t bad = kOk, total = 0
    with nogil:
        offsets[0] = 0
        for b in range(images):
            bad = dtf_select(data + b * tokens, patches, <int>depth, limits, ranks.data() + b * tokens, &selections[b])
            if bad != kOk:
                break
            total += selections[b].count
            offsets[b + 1] = <int32_t>total
    if bad != kOk:
        n, k = divmod(bad, depth)
        raise ValueError(f"scores[{b}, {n}, {k}] is {scores[b, n, k]}; scores must be finite and at least 0")

    positions, depths = np.empty(total, np.int32), np.empty(total, np.int32)
    cdef int32_t[::1] kept = positions, kept_depths = depths
    cdef int32_t* target = &kept[0]
    cdef int32_t* target_depths = &kept_depths[0]
    with nogil:
        for b in range(images):
            dtf_write(ranks.data() + b * tokens, patches, <int>depth, selections[b], <int32_t>(b * patches),
                      target + offsets[b], target_depths + offsets[b])
    return positions, depths, cu_seqlens
