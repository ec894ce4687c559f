"""Codes: token ids, information, and the input of the decoder. ``reference.py`` specifies the functions bit for bit."""

import numpy as np

from libc.stdint cimport int32_t, int64_t

from tatok_edge.runtime.cpu.arguments cimport (
    check, check_positions, kMaxDims, kOk, output, raise_position, FLOAT32, INT32,
)
from tatok_edge.runtime.cpu.geometry cimport index_t


cdef extern from "codes.hpp" namespace "tatok" nogil:
    struct Levels:
        int dims
        int32_t level[16]

    index_t check_codes(const int32_t* codes, index_t count, const Levels& levels)
    index_t check_ids(const int32_t* ids, index_t count, const Levels& levels)
    int32_t id_from_code(const int32_t* code, const Levels& levels)
    void code_from_id(int32_t id, const Levels& levels, int32_t* code)
    float code_information(const float* log2_probs, index_t patches, const int32_t* code, int32_t position,
                           const Levels& levels)
    index_t check_stacks(const int32_t* positions, index_t count, index_t patches, index_t depth)
    void c_decoder_state "tatok::decoder_state"(
        const int32_t* codes, const int32_t* positions, index_t count, index_t depth, const float* expected,
        const float* entropy, index_t patches, const Levels& levels, float* out)


cdef int64_t MAX_LEVEL = 65535
cdef int64_t INT_MAX = 2147483647


cdef Levels _levels(object levels) except *:
    cdef Levels result
    cdef int64_t product = 1, level
    cdef tuple values = tuple(levels)
    if not 1 <= len(values) <= kMaxDims:
        raise ValueError(f"levels must hold 1 to {kMaxDims} numbers, got {len(values)}")
    result.dims = <int>len(values)
    for d in range(len(values)):
        level = values[d]
        if not 2 <= level <= MAX_LEVEL or product * level > INT_MAX:
            raise ValueError(f"levels must be 2 to {MAX_LEVEL} each and multiply to at most {INT_MAX}, got {values}")
        product *= level
        result.level[d] = <int32_t>level
    return result


cdef Py_ssize_t _level_sum(const Levels& levels) noexcept:
    cdef Py_ssize_t total = 0
    for d in range(levels.dims):
        total += levels.level[d]
    return total


cdef int _raise_code(const int32_t[:, ::1] codes, index_t bad, const Levels& levels) except -1:
    cdef Py_ssize_t t = bad // levels.dims, d = bad % levels.dims
    raise ValueError(f"codes[{t}, {d}] is {codes[t, d]}; allowed are 0 to {levels.level[d] - 1}")


def information(log2_probs, codes, positions, levels):
    """Information of the codes in bits, given the probabilities of the prior: ``-sum_d log2 q_d(code_d)``, at least 0.

    Args:
        log2_probs: float32 (sum(levels), N), C-contiguous; the rows of dimension d follow those of dimension d - 1.
        codes: int32 (T, D), code d in [0, levels[d]).
        positions: int32 (T,), each in [0, N).
        levels: D level counts.

    Returns:
        float32 (T,), summed in float32 from dimension 0 on.
    """
    cdef Levels level = _levels(levels)
    check(log2_probs, "log2_probs", FLOAT32, (_level_sum(level), "N"))
    check(codes, "codes", INT32, ("T", level.dims))
    cdef const float[:, ::1] probs = log2_probs
    cdef const int32_t[:, ::1] code_view = codes
    cdef Py_ssize_t count = code_view.shape[0], patches = probs.shape[1], t
    check(positions, "positions", INT32, (count,))
    cdef const int32_t[::1] position_view = positions
    result = np.empty(count, np.float32)
    cdef float[::1] target = result
    cdef index_t bad_code, bad_position
    with nogil:
        bad_code = check_codes(&code_view[0, 0], count, level)
        bad_position = check_positions(&position_view[0], count, patches)
        if bad_code == kOk and bad_position == kOk:
            for t in range(count):
                target[t] = code_information(&probs[0, 0], patches, &code_view[t, 0], position_view[t], level)
    if bad_code != kOk:
        _raise_code(code_view, bad_code, level)
    if bad_position != kOk:
        raise_position(position_view, bad_position, patches)
    return result


def decoder_state(codes, positions, expected, entropy, levels, out=None):
    """The input of the decoder beside the context: code values, keep bits and entropies, on the patch grid.

    Args:
        codes: int32 (T, D), code d in [0, levels[d]).
        positions: int32 (T,), each in [0, N), never falling; one that comes for the k-th time has the k-th token of
            the stack of its patch, k at most K.
        expected: float32 (K * D, N), C-contiguous: stands in for codes that are not kept; those of the first token
            first.
        entropy: float32 (K, N), bits of each token.
        levels: D level counts.
        out: float32 (K * (D + 2), N) to write into.

    Returns:
        float32 (K * (D + 2), N): K * D rows of expected values, for kept tokens ``(2 * code + 1) / level - 1``; K rows
        that are 1 where a token is kept, else 0; K rows of entropies over 16.
    """
    cdef Levels level = _levels(levels)
    check(codes, "codes", INT32, ("T", level.dims))
    check(entropy, "entropy", FLOAT32, ("K", "N"))
    cdef const float[:, ::1] entropy_view = entropy
    cdef Py_ssize_t depth = entropy_view.shape[0], patches = entropy_view.shape[1]
    check(expected, "expected", FLOAT32, (depth * level.dims, patches))
    cdef const int32_t[:, ::1] code_view = codes
    cdef const float[:, ::1] expected_view = expected
    cdef Py_ssize_t count = code_view.shape[0]
    check(positions, "positions", INT32, (count,))
    cdef const int32_t[::1] position_view = positions
    result = output(out, "out", FLOAT32, (depth * (level.dims + 2), patches))
    cdef float[:, ::1] target = result
    cdef index_t bad_code, bad_position, bad_stack
    with nogil:
        bad_code = check_codes(&code_view[0, 0], count, level)
        bad_position = check_positions(&position_view[0], count, patches)
        bad_stack = check_stacks(&position_view[0], count, patches, depth)
        if bad_code == kOk and bad_stack == kOk:
            c_decoder_state(&code_view[0, 0], &position_view[0], count, depth, &expected_view[0, 0],
                            &entropy_view[0, 0], patches, level, &target[0, 0])
    if bad_code != kOk:
        _raise_code(code_view, bad_code, level)
    if bad_position != kOk:
        raise_position(position_view, bad_position, patches)
    if bad_stack != kOk:
        raise ValueError(f"positions must never fall and come at most {depth} times each, got {positions[bad_stack]} "
                         f"at {bad_stack}")
    return result


def ids_from_codes(codes, levels):
    """Token ids of codes: ``id = sum_d code_d * prod(levels[:d])``.

    Args:
        codes: int32 (T, D), code d in [0, levels[d]).
        levels: D level counts, their product at most 2^31 - 1.

    Returns:
        int32 (T,).
    """
    cdef Levels level = _levels(levels)
    check(codes, "codes", INT32, ("T", level.dims))
    cdef const int32_t[:, ::1] code_view = codes
    cdef Py_ssize_t count = code_view.shape[0], t
    result = np.empty(count, np.int32)
    cdef int32_t[::1] target = result
    cdef index_t bad
    with nogil:
        bad = check_codes(&code_view[0, 0], count, level)
        if bad == kOk:
            for t in range(count):
                target[t] = id_from_code(&code_view[t, 0], level)
    if bad != kOk:
        _raise_code(code_view, bad, level)
    return result


def codes_from_ids(ids, levels):
    """Codes of token ids, the inverse of :func:`ids_from_codes`.

    Args:
        ids: int32 (T,), each in [0, prod(levels)).
        levels: D level counts, their product at most 2^31 - 1.

    Returns:
        int32 (T, D).
    """
    cdef Levels level = _levels(levels)
    check(ids, "ids", INT32, ("T",))
    cdef const int32_t[::1] id_view = ids
    cdef Py_ssize_t count = id_view.shape[0], t
    result = np.empty((count, level.dims), np.int32)
    cdef int32_t[:, ::1] target = result
    cdef index_t bad
    with nogil:
        bad = check_ids(&id_view[0], count, level)
        if bad == kOk:
            for t in range(count):
                code_from_id(id_view[t], level, &target[t, 0])
    if bad != kOk:
        raise ValueError(f"ids[{bad}] is {ids[bad]}; allowed are 0 to {np.prod(levels) - 1} (vocabulary of {levels})")
    return result
