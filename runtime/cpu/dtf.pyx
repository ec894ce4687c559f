"""Dynamic token filtering. ``reference.py`` specifies the functions bit for bit."""

import numpy as np

from libc.math cimport isfinite, rint
from libc.stdint cimport int32_t, int64_t
from libcpp.vector cimport vector

from tatok_edge.runtime.cpu.arguments cimport check, kOk, FLOAT32
from tatok_edge.runtime.cpu.geometry cimport index_t


cdef extern from "dtf.hpp" namespace "tatok" nogil:
    struct DtfLimits:
        int64_t share
        index_t min_tokens
        index_t max_tokens
        int32_t floor_score

    struct DtfSelection:
        index_t count

    index_t dtf_select(const float* scores, index_t n, const DtfLimits& limits, DtfSelection* selection)
    void dtf_write(const float* scores, const DtfSelection& selection, int32_t base, int32_t* indices)


cdef int64_t MAX_PATCHES = 1 << 24
cdef int64_t INT_MAX = 2147483647


def dtf(scores, *, double tau=1.0, min_tokens=0, max_tokens=None, double floor_bits=0.0):
    """Keeps, per image, the smallest set of tokens that holds a share ``tau`` of the total score.

    Scores become integers (16 fractional bits, ties to even, saturating), so every backend keeps the same tokens. The
    order is by score descending, then position ascending; the count that reaches ``tau`` is clamped to
    ``[min_tokens, max_tokens]``, then tokens under ``floor_bits`` are cut, never below ``min_tokens``.

    Args:
        scores: float32 (B, N) bits, C-contiguous, finite and not negative; N at most 2^24, B * N below 2^31.
        tau: share of the total to keep, above 0 and at most 1.
        min_tokens: tokens kept at least, or all where there are fewer.
        max_tokens: tokens kept at most; None for no limit.
        floor_bits: tokens with a lower score are cut.

    Returns:
        ``indices`` int32 (T,), flat over the batch (``b * N + i``), ascending; ``cu_seqlens`` int32 (B + 1,), where
        image ``b`` has ``indices[cu_seqlens[b]:cu_seqlens[b + 1]]``.
    """
    check(scores, "scores", FLOAT32, ("B", "N"))
    cdef const float[:, ::1] values = scores
    cdef Py_ssize_t images = values.shape[0], patches = values.shape[1], b
    cdef int64_t least = min_tokens, most = INT_MAX if max_tokens is None else max_tokens
    if patches > MAX_PATCHES or images * patches > INT_MAX:
        raise ValueError(f"scores must have at most {MAX_PATCHES} patches and {INT_MAX} values, got {scores.shape}")
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
    selections.resize(images)
    cdef const float* data = &values[0, 0]
    cdef index_t bad = kOk, total = 0
    with nogil:
        offsets[0] = 0
        for b in range(images):
            bad = dtf_select(data + b * patches, patches, limits, &selections[b])
            if bad != kOk:
                break
            total += selections[b].count
            offsets[b + 1] = <int32_t>total
    if bad != kOk:
        raise ValueError(f"scores[{b}, {bad}] is {scores[b, bad]}; scores must be finite and at least 0")

    indices = np.empty(total, np.int32)
    cdef int32_t[::1] kept = indices
    cdef int32_t* target = &kept[0]
    with nogil:
        for b in range(images):
            dtf_write(data + b * patches, selections[b], <int32_t>(b * patches), target + offsets[b])
    return indices, cu_seqlens
