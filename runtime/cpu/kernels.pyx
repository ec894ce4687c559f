# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True, autotestdict=False
"""Kernels on the CPU around the networks: token filtering, pixels in and out, change between frames, codes and ids.

Every function checks dtype, shape and layout of its arguments, then works without the GIL and, where ``out`` is given,
without allocating. ``reference.py`` beside this file says in numpy what each one computes, bit for bit.

Errors are ``TypeError`` (not an array, wrong dtype) and ``ValueError`` (wrong shape, layout or values); each names the
argument, what came and what is allowed.
"""

import numpy as np

from libc.math cimport isfinite, rint
from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector


cdef extern from "common.hpp" namespace "tatok" nogil:
    ctypedef int64_t index_t
    const index_t kOk

    cdef cppclass ImageView:
        @staticmethod
        ImageView make(const uint8_t* data, Py_ssize_t row, Py_ssize_t pixel, Py_ssize_t channel,
                       index_t height, index_t width, cbool bgr)


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


cdef extern from "pixels.hpp" namespace "tatok" nogil:
    void c_image_to_cells "tatok::image_to_cells"(
        ImageView image, index_t cell_rows, index_t cell_columns, float* out)
    void c_gather_features "tatok::gather_features"(
        ImageView image, const float* context, index_t context_channels, const float* mean, index_t patches,
        index_t grid_width, const int32_t* positions, index_t count, float* out)
    void c_assemble "tatok::assemble"(
        const float* pixels, index_t patches, index_t grid_width, index_t height, index_t width, cbool bgr,
        uint8_t* out)
    void c_scatter_columns "tatok::scatter_columns"(
        const float* source, index_t source_patches, const int32_t* source_positions, float* target, index_t patches,
        const int32_t* positions, index_t count, index_t channels)


cdef extern from "change.hpp" namespace "tatok" nogil:
    void c_patch_change "tatok::patch_change"(
        ImageView image, const uint8_t* reference, index_t grid_height, index_t grid_width, int32_t* out)
    void c_patch_error "tatok::patch_error"(
        const float* pixels, ImageView image, index_t grid_height, index_t grid_width, float* out)
    void c_patch_residual "tatok::patch_residual"(
        ImageView image, const float* mean, index_t columns, index_t grid_width, const int32_t* source,
        const int32_t* positions, index_t count, float* out)
    void c_update_reference "tatok::update_reference"(
        ImageView image, uint8_t* reference, index_t grid_width, const int32_t* positions, index_t count)
    index_t check_changes(const int32_t* changes, index_t n)
    int32_t c_change_quantile "tatok::change_quantile"(const int32_t* changes, index_t n, double share)


cdef extern from "motion.hpp" namespace "tatok" nogil:
    const int kMaxMotion

    void c_find_motion "tatok::find_motion"(
        ImageView image, const uint8_t* reference, index_t rows, index_t columns, const uint8_t* active, int32_t cap,
        int64_t cost, int32_t* vectors) except +
    void c_move_cells "tatok::move_cells"(
        const uint8_t* source, index_t rows, index_t columns, const int32_t* vectors, uint8_t* target)


cdef extern from "codes.hpp" namespace "tatok" nogil:
    const int kMaxDims

    struct Levels:
        int dims
        int32_t level[16]

    index_t check_positions(const int32_t* positions, index_t count, index_t patches)
    index_t check_codes(const int32_t* codes, index_t count, const Levels& levels)
    index_t check_ids(const int32_t* ids, index_t count, const Levels& levels)
    int32_t id_from_code(const int32_t* code, const Levels& levels)
    void code_from_id(int32_t id, const Levels& levels, int32_t* code)
    float code_information(const float* log2_probs, index_t patches, const int32_t* code, int32_t position,
                           const Levels& levels)
    void c_decoder_state "tatok::decoder_state"(
        const int32_t* codes, const int32_t* positions, index_t count, const float* expected, const float* entropy,
        index_t patches, const Levels& levels, float* out)


cdef int64_t MAX_PATCHES = 1 << 24
cdef int64_t MAX_LEVEL = 65535
cdef int64_t INT_MAX = 2147483647

cdef object _ndarray = np.ndarray
cdef object _may_share_memory = np.may_share_memory
cdef object _float32 = np.dtype(np.float32)
cdef object _int32 = np.dtype(np.int32)
cdef object _uint8 = np.dtype(np.uint8)


# --- checks of arguments ------------------------------------------------------------------------


cdef str _shape_text(tuple shape):
    """``("B", 3)`` as "(B, 3)"."""
    return f"({', '.join([str(s) for s in shape])}{',' if len(shape) == 1 else ''})"


cdef object _check(object value, str name, object dtype, tuple shape, bint contiguous=True, bint writable=False):
    """Raises unless ``value`` is an array of this dtype and shape; strings in ``shape`` stand for any size."""
    cdef Py_ssize_t i
    cdef bint fits
    if not isinstance(value, _ndarray):
        raise TypeError(f"{name} must be a numpy array, {dtype} {_shape_text(shape)}, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {value.dtype}")
    cdef tuple found = value.shape
    fits = len(found) == len(shape)
    if fits:
        for i in range(len(shape)):
            if not isinstance(shape[i], str) and found[i] != shape[i]:
                fits = False
    if not fits:
        raise ValueError(f"{name} must have shape {_shape_text(shape)}, got {_shape_text(found)}")
    flags = value.flags
    if contiguous and not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")
    if writable and not flags.writeable:
        raise ValueError(f"{name} is read-only; pass an array that can be written")
    return value


cdef object _output(object out, str name, object dtype, tuple shape):
    """A new array, or ``out`` once it has been checked."""
    if out is None:
        return np.empty(shape, dtype)
    return _check(out, name, dtype, shape, True, True)


cdef object _check_image(object image):
    """Raises unless ``image`` is uint8 (H, W, 3) with at least one pixel, in any strides."""
    _check(image, "image", _uint8, ("H", "W", 3), False)
    if image.size == 0:
        raise ValueError(f"image is empty: shape {image.shape}")
    return image


cdef ImageView _view(const uint8_t[:, :, :] pixels, bint bgr) noexcept:
    return ImageView.make(&pixels[0, 0, 0], pixels.strides[0], pixels.strides[1], pixels.strides[2],
                          pixels.shape[0], pixels.shape[1], bgr)


cdef Py_ssize_t _grid_side(Py_ssize_t pixels) noexcept:
    """Patches along a side of the image, once it is padded to whole cells."""
    return (pixels + 31) // 32 * 4


cdef int _check_grid_width(Py_ssize_t grid_width, Py_ssize_t image_width) except -1:
    if grid_width != _grid_side(image_width):
        raise ValueError(f"grid_width must be {_grid_side(image_width)} for an image {image_width} pixels wide, "
                         f"got {grid_width}")
    return 0


cdef int _check_apart(object source, str source_name, object target, str target_name) except -1:
    """Raises where writing to ``target`` could change ``source`` while it is read."""
    if _may_share_memory(source, target):
        raise ValueError(f"{source_name} and {target_name} share memory; pass {source_name}.copy()")
    return 0


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


cdef int _raise_position(const int32_t[::1] positions, index_t bad, Py_ssize_t patches,
                         str name="positions", str counted="patches of the grid") except -1:
    raise ValueError(f"{name}[{bad}] is {positions[bad]}; allowed are 0 to {patches - 1} ({counted})")


cdef int _raise_code(const int32_t[:, ::1] codes, index_t bad, const Levels& levels) except -1:
    cdef Py_ssize_t t = bad // levels.dims, d = bad % levels.dims
    raise ValueError(f"codes[{t}, {d}] is {codes[t, d]}; allowed are 0 to {levels.level[d] - 1}")


# --- dynamic token filtering --------------------------------------------------------------------


def dtf(scores, *, double tau=1.0, min_tokens=0, max_tokens=None, double floor_bits=0.0):
    """Keeps, per image, the smallest set of tokens that holds a share ``tau`` of the total score.

    Scores become integers (16 fractional bits, ties to even, saturating), so every backend keeps the same tokens. The
    order is by score descending, then position ascending; the count that reaches ``tau`` is clamped to
    ``[min_tokens, max_tokens]``, then tokens under ``floor_bits`` are cut, never below ``min_tokens``.

    Args:
        scores: float32 (B, N) bits, C-contiguous, finite and not negative; N at most 2^24, B * N below 2^31.
        tau: share of the total to keep, above 0 and at most 1.
        min_tokens: tokens kept at least (as far as there are so many).
        max_tokens: tokens kept at most; None for no limit.
        floor_bits: tokens with a lower score are cut.

    Returns:
        ``indices`` int32 (T,), flat over the batch (``b * N + i``), ascending; ``cu_seqlens`` int32 (B + 1,), where
        image ``b`` has ``indices[cu_seqlens[b]:cu_seqlens[b + 1]]``.
    """
    _check(scores, "scores", _float32, ("B", "N"))
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


# --- pixels to the networks and back ------------------------------------------------------------


def image_to_cells(image, bint bgr=False, out=None):
    """The image at a quarter of its size, cut into cells, as the global encoder takes it.

    The image is padded on the right and at the bottom to multiples of 32 by repeating its edge; each thumbnail pixel is
    the mean of 4x4 pixels, ``float32(sum) * float32(1 / 2040) - 1``.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels are in blue, green, red order.
        out: float32 (192, ceil(H / 32), ceil(W / 32)) to write into.

    Returns:
        float32 (192, hc, wc), channels in (y, x, rgb) order.
    """
    cdef const uint8_t[:, :, :] pixels = _check_image(image)
    cdef Py_ssize_t rows = (pixels.shape[0] + 31) // 32, columns = (pixels.shape[1] + 31) // 32
    result = _output(out, "out", _float32, (192, rows, columns))
    cdef float[:, :, ::1] target = result
    cdef ImageView view = _view(pixels, bgr)
    with nogil:
        c_image_to_cells(view, rows, columns, &target[0, 0, 0])
    return result


def gather_features(image, bint bgr, context, mean, positions, Py_ssize_t grid_width, out=None):
    """What the patch encoder takes, one row per position: ``[window 768 | context Dc | mean 192]``.

    The window are the 16x16 pixels around the patch in (y, x, rgb) order, with the edge of the image repeated outside,
    as ``float32(v) / float32(127.5) - 1``.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels are in blue, green, red order.
        context: float32 (Dc, N), C-contiguous.
        mean: float32 (192, N), C-contiguous.
        positions: int32 (T,) raster indices in the patch grid of the padded image, each in [0, N).
        grid_width: patches per row of the grid.
        out: float32 (T, 960 + Dc) to write into.

    Returns:
        float32 (T, 960 + Dc).
    """
    cdef const uint8_t[:, :, :] pixels = _check_image(image)
    cdef Py_ssize_t patches = _grid_side(pixels.shape[0]) * _grid_side(pixels.shape[1])
    _check_grid_width(grid_width, pixels.shape[1])
    _check(context, "context", _float32, ("Dc", patches))
    _check(mean, "mean", _float32, (192, patches))
    _check(positions, "positions", _int32, ("T",))
    cdef const float[:, ::1] context_view = context
    cdef const float[:, ::1] mean_view = mean
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0], channels = context_view.shape[0]
    result = _output(out, "out", _float32, (count, 960 + channels))
    cdef float[:, ::1] target = result
    cdef ImageView view = _view(pixels, bgr)
    cdef index_t bad
    with nogil:
        bad = check_positions(&position_view[0], count, patches)
        if bad == kOk:
            c_gather_features(view, &context_view[0, 0], channels, &mean_view[0, 0], patches, grid_width,
                              &position_view[0], count, &target[0, 0])
    if bad != kOk:
        _raise_position(position_view, bad, patches)
    return result


def assemble(pixels, Py_ssize_t grid_width, Py_ssize_t height, Py_ssize_t width, bint bgr=False, out=None):
    """The decoder's pixels as an image, cropped to its size.

    Args:
        pixels: float32 (192, N) in [-1, 1], C-contiguous, channels in (y, x, rgb) order. Values become
            ``clip(rint(p * 127.5 + 127.5), 0, 255)`` in float32; NaN becomes 0.
        grid_width: patches per row of the grid.
        height: rows of the image, at most 8 per row of the grid.
        width: pixels per row, at most 8 per column of the grid.
        bgr: whether to write the channels in blue, green, red order.
        out: uint8 (height, width, 3) to write into, C-contiguous.

    Returns:
        uint8 (height, width, 3).
    """
    _check(pixels, "pixels", _float32, (192, "N"))
    cdef const float[:, ::1] planes = pixels
    cdef Py_ssize_t patches = planes.shape[1]
    if grid_width <= 0 or patches == 0 or patches % grid_width:
        raise ValueError(f"grid_width must divide the {patches} patches of pixels, got {grid_width}")
    if not 1 <= height <= patches // grid_width * 8:
        raise ValueError(f"height must be 1 to {patches // grid_width * 8} (8 per row of the grid), got {height}")
    if not 1 <= width <= grid_width * 8:
        raise ValueError(f"width must be 1 to {grid_width * 8} (8 per column of the grid), got {width}")
    result = _output(out, "out", _uint8, (height, width, 3))
    cdef uint8_t[:, :, ::1] target = result
    with nogil:
        c_assemble(&planes[0, 0], patches, grid_width, height, width, bgr, &target[0, 0, 0])
    return result


def scatter_columns(source, source_positions, target, positions):
    """Copies columns of a map to another, in place: ``target[:, positions] = source[:, source_positions]``.

    Args:
        source: float32 (C, M), C-contiguous.
        source_positions: int32 (T,), each in [0, M).
        target: float32 (C, N), C-contiguous, apart from the memory of ``source``; the other columns stay.
        positions: int32 (T,), each in [0, N); where one comes twice, the later column stays.
    """
    _check(source, "source", _float32, ("C", "M"))
    cdef const float[:, ::1] source_view = source
    cdef Py_ssize_t channels = source_view.shape[0], source_patches = source_view.shape[1]
    _check(target, "target", _float32, (channels, "N"), True, True)
    cdef float[:, ::1] target_view = target
    cdef Py_ssize_t patches = target_view.shape[1]
    _check(positions, "positions", _int32, ("T",))
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0]
    _check(source_positions, "source_positions", _int32, (count,))
    cdef const int32_t[::1] source_position_view = source_positions
    _check_apart(source, "source", target, "target")
    cdef index_t bad_source, bad
    with nogil:
        bad_source = check_positions(&source_position_view[0], count, source_patches)
        bad = check_positions(&position_view[0], count, patches)
        if bad_source == kOk and bad == kOk:
            c_scatter_columns(&source_view[0, 0], source_patches, &source_position_view[0], &target_view[0, 0],
                              patches, &position_view[0], count, channels)
    if bad_source != kOk:
        _raise_position(source_position_view, bad_source, source_patches, "source_positions")
    if bad != kOk:
        _raise_position(position_view, bad, patches)


# --- change between frames ----------------------------------------------------------------------


def patch_change(image, bint bgr, reference, out=None):
    """How much each patch differs from a reference picture, in detail and coarse.

    Row 0 is the sum of the 192 squared differences. Row 1 is what 4x4 pixels have in common of it: of each quarter of
    the patch and channel the 16 signed differences are summed, and the sum is squared and divided by 16, rounded down;
    the sum of these twelve is at most row 0.

    The image is padded on the right and at the bottom to multiples of 32 by repeating its edge.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        reference: uint8 (Hp, Wp, 3), RGB, C-contiguous, of the padded size.
        out: int32 (2, N) to write into.

    Returns:
        int32 (2, N), exact, one column per patch in raster order.
    """
    cdef const uint8_t[:, :, :] pixels = _check_image(image)
    cdef Py_ssize_t rows = _grid_side(pixels.shape[0]), columns = _grid_side(pixels.shape[1])
    _check(reference, "reference", _uint8, (rows * 8, columns * 8, 3))
    cdef const uint8_t[:, :, ::1] reference_view = reference
    result = _output(out, "out", _int32, (2, rows * columns))
    cdef int32_t[:, ::1] target = result
    cdef ImageView view = _view(pixels, bgr)
    with nogil:
        c_patch_change(view, &reference_view[0, 0, 0], rows, columns, &target[0, 0])
    return result


def update_reference(image, bint bgr, reference, positions):
    """Copies patches of the image into a reference picture, in place.

    The image is padded on the right and at the bottom to multiples of 32 by repeating its edge.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        reference: uint8 (Hp, Wp, 3), RGB, C-contiguous, of the padded size, apart from the memory of ``image``; the
            other patches stay.
        positions: int32 (T,) raster indices in the patch grid of the padded image, each in [0, N).
    """
    cdef const uint8_t[:, :, :] pixels = _check_image(image)
    cdef Py_ssize_t rows = _grid_side(pixels.shape[0]), columns = _grid_side(pixels.shape[1])
    _check(reference, "reference", _uint8, (rows * 8, columns * 8, 3), True, True)
    cdef uint8_t[:, :, ::1] target = reference
    _check(positions, "positions", _int32, ("T",))
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0]
    _check_apart(image, "image", reference, "reference")
    cdef ImageView view = _view(pixels, bgr)
    cdef index_t bad
    with nogil:
        bad = check_positions(&position_view[0], count, rows * columns)
        if bad == kOk:
            c_update_reference(view, &target[0, 0, 0], columns, &position_view[0], count)
    if bad != kOk:
        _raise_position(position_view, bad, rows * columns)


def find_motion(image, bint bgr, reference, active, int32_t cap, int64_t cost, vectors):
    """Finds where in a reference picture the content of each cell was, in place.

    In raster order each cell takes the vector with the least difference on the green channel: the squared differences
    of each of its 16 patches, summed over 64 pixels and at most ``cap``, plus ``cost`` where it is not the vector of
    the cell before (none ahead of the first). The image is padded as the reference is.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        reference: uint8 (Hp, Wp, 3), RGB, C-contiguous, of the size padded to multiples of 32.
        active: uint8 (Hp / 32, Wp / 32), which cells are searched; others take the vector before them or none.
        cap: largest difference of a patch that counts, 0 to 2^22.
        cost: what another vector must gain, 0 to 2^40.
        vectors: int32 (Hp / 32, Wp / 32, 2), (y, x) in half pixels: those of the frame before on entry, at most 62
            either way; the new ones on return.
    """
    cdef const uint8_t[:, :, :] pixels = _check_image(image)
    cdef Py_ssize_t rows = _grid_side(pixels.shape[0]) // 4, columns = _grid_side(pixels.shape[1]) // 4
    _check(reference, "reference", _uint8, (rows * 32, columns * 32, 3))
    _check(active, "active", _uint8, (rows, columns))
    _check_vectors(vectors, (rows, columns, 2), True)
    if not (0 <= cap <= 1 << 22 and 0 <= cost <= 1 << 40):
        raise ValueError(f"cap must be from 0 to 2^22 and cost from 0 to 2^40, got {cap} and {cost}")
    cdef const uint8_t[:, :, ::1] reference_view = reference
    cdef const uint8_t[:, ::1] active_view = active
    cdef int32_t[:, :, ::1] vector_view = vectors
    cdef ImageView view = _view(pixels, bgr)
    with nogil:
        c_find_motion(view, &reference_view[0, 0, 0], rows, columns, &active_view[0, 0], cap, cost,
                      &vector_view[0, 0, 0])


def move_cells(source, vectors, out=None):
    """The picture whose cells show what ``source`` has at their place plus their vector; its edge is repeated.

    Between pixels a value is ``(9 * (b + c) - (a + d) + 8) >> 4`` of four neighbours a, b, c, d, cut to 0 to 255;
    across first, then down.

    Args:
        source: uint8 (Hp, Wp, 3), C-contiguous, sides multiples of 32.
        vectors: int32 (Hp / 32, Wp / 32, 2), (y, x) in half pixels, at most 62 either way.
        out: uint8 (Hp, Wp, 3) to write into, apart from ``source``.

    Returns:
        uint8 (Hp, Wp, 3).
    """
    _check(source, "source", _uint8, ("H", "W", 3))
    cdef const uint8_t[:, :, ::1] source_view = source
    cdef Py_ssize_t rows = source_view.shape[0] // 32, columns = source_view.shape[1] // 32
    if rows * 32 != source_view.shape[0] or columns * 32 != source_view.shape[1]:
        raise ValueError(f"sides of source must be multiples of 32, got {source.shape[0]} x {source.shape[1]}")
    _check_vectors(vectors, (rows, columns, 2), False)
    cdef const int32_t[:, :, ::1] vector_view = vectors
    result = _output(out, "out", _uint8, (rows * 32, columns * 32, 3))
    _check_apart(source, "source", result, "out")
    cdef uint8_t[:, :, ::1] target = result
    with nogil:
        c_move_cells(&source_view[0, 0, 0], rows, columns, &vector_view[0, 0, 0], &target[0, 0, 0])
    return result


cdef int _check_vectors(object vectors, tuple shape, bint writable) except -1:
    _check(vectors, "vectors", _int32, shape, True, writable)
    if vectors.min() < -kMaxMotion or vectors.max() > kMaxMotion:
        raise ValueError(f"vectors must be from {-kMaxMotion} to {kMaxMotion} half pixels")
    return 0


def patch_error(pixels, image, bint bgr, Py_ssize_t grid_width, out=None):
    """Mean squared error of the decoder's pixels per patch of the grid, rounded to uint8 as :func:`assemble` does.

    The image is padded on the right and at the bottom to multiples of 32 by repeating its edge.

    Args:
        pixels: float32 (192, N) in [-1, 1], C-contiguous, channels in (y, x, rgb) order.
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        grid_width: patches per row of the grid.
        out: float32 (N,) to write into.

    Returns:
        float32 (N,), the exact sum of the 192 squared differences over 192.
    """
    cdef const uint8_t[:, :, :] image_view = _check_image(image)
    cdef Py_ssize_t rows = _grid_side(image_view.shape[0]), columns = _grid_side(image_view.shape[1])
    _check_grid_width(grid_width, image_view.shape[1])
    _check(pixels, "pixels", _float32, (192, rows * columns))
    cdef const float[:, ::1] planes = pixels
    result = _output(out, "out", _float32, (rows * columns,))
    cdef float[::1] target = result
    cdef ImageView view = _view(image_view, bgr)
    with nogil:
        c_patch_error(&planes[0, 0], view, rows, columns, &target[0])
    return result


def patch_residual(image, bint bgr, mean, source, positions, Py_ssize_t grid_width, out=None):
    """How much of each patch the prior's mean leaves unsaid, in means of 2x2 pixels: their mean squared difference.

    Per patch it is the sum of ``d * d``, times ``float32(1 / 48)``, over its 16 squares of 2x2 pixels and 3 channels in
    (y, x, rgb) order, one after the other, with ``d = (s - (m * 127.5 + 510)) * 0.25`` in float32: ``s`` is the sum of
    the square's four values in the image, ``m`` that in the mean, (top left + top right) + (bottom left + bottom
    right). The image is padded on the right and at the bottom to multiples of 32 by repeating its edge.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        mean: float32 (192, M) in [-1, 1], C-contiguous, channels in (y, x, rgb) order.
        source: int32 (T,), the column of ``mean`` for each patch, each in [0, M).
        positions: int32 (T,) raster indices in the patch grid of the padded image, each in [0, N).
        grid_width: patches per row of the grid.
        out: float32 (T,) to write into.

    Returns:
        float32 (T,), in grey levels squared.
    """
    cdef const uint8_t[:, :, :] pixels = _check_image(image)
    cdef Py_ssize_t patches = _grid_side(pixels.shape[0]) * _grid_side(pixels.shape[1])
    _check_grid_width(grid_width, pixels.shape[1])
    _check(mean, "mean", _float32, (192, "M"))
    _check(positions, "positions", _int32, ("T",))
    cdef const float[:, ::1] mean_view = mean
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0], columns = mean_view.shape[1]
    _check(source, "source", _int32, (count,))
    cdef const int32_t[::1] source_view = source
    result = _output(out, "out", _float32, (count,))
    cdef float[::1] target = result
    cdef ImageView view = _view(pixels, bgr)
    cdef index_t bad_source, bad
    with nogil:
        bad_source = check_positions(&source_view[0], count, columns)
        bad = check_positions(&position_view[0], count, patches)
        if bad_source == kOk and bad == kOk:
            c_patch_residual(view, &mean_view[0, 0], columns, grid_width, &source_view[0], &position_view[0], count,
                             &target[0])
    if bad_source != kOk:
        _raise_position(source_view, bad_source, columns, "source", "columns of mean")
    if bad != kOk:
        _raise_position(position_view, bad, patches)
    return result


def change_quantile(changes, double share):
    """A quantile of the changes that are not 0: the one at rank ``floor(share * (m - 1))`` of m, ascending.

    Args:
        changes: int32 (N,), C-contiguous, not negative: a row of what :func:`patch_change` gives.
        share: above 0 and below 1; 0.5 is the (lower) median.

    Returns:
        int; 0 where all changes are 0.
    """
    _check(changes, "changes", _int32, ("N",))
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    cdef const int32_t[::1] values = changes
    cdef Py_ssize_t patches = values.shape[0]
    cdef int32_t result = 0
    cdef index_t bad
    with nogil:
        bad = check_changes(&values[0], patches)
        if bad == kOk:
            result = c_change_quantile(&values[0], patches, share)
    if bad != kOk:
        raise ValueError(f"changes[{bad}] is {values[bad]}; changes must be at least 0")
    return result


# --- codes --------------------------------------------------------------------------------------


def information(log2_probs, codes, positions, levels):
    """Bits that the codes bring, given what the prior expected: ``-sum_d log2 q_d(code_d)``, at least 0.

    Args:
        log2_probs: float32 (sum(levels), N), C-contiguous; the rows of dimension d follow those of dimension d - 1.
        codes: int32 (T, D), code d in [0, levels[d]).
        positions: int32 (T,), each in [0, N).
        levels: D level counts.

    Returns:
        float32 (T,), summed in float32 from dimension 0 on.
    """
    cdef Levels level = _levels(levels)
    _check(log2_probs, "log2_probs", _float32, (_level_sum(level), "N"))
    _check(codes, "codes", _int32, ("T", level.dims))
    cdef const float[:, ::1] probs = log2_probs
    cdef const int32_t[:, ::1] code_view = codes
    cdef Py_ssize_t count = code_view.shape[0], patches = probs.shape[1], t
    _check(positions, "positions", _int32, (count,))
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
        _raise_position(position_view, bad_position, patches)
    return result


def decoder_state(codes, positions, expected, entropy, levels, out=None):
    """What the decoder takes beside the context: code values, keep bit and entropy, on the patch grid.

    Args:
        codes: int32 (T, D), code d in [0, levels[d]).
        positions: int32 (T,), each in [0, N); where one comes twice, the later code stays.
        expected: float32 (D, N), C-contiguous: what stands for a code that is not kept.
        entropy: float32 (N,), bits per patch.
        levels: D level counts.
        out: float32 (D + 2, N) to write into.

    Returns:
        float32 (D + 2, N): rows 0 to D - 1 the expected values, at kept positions ``(2 * code + 1) / level - 1``; row D
        is 1 where a token is kept, else 0; row D + 1 is the entropy over 16.
    """
    cdef Levels level = _levels(levels)
    _check(codes, "codes", _int32, ("T", level.dims))
    _check(expected, "expected", _float32, (level.dims, "N"))
    cdef const int32_t[:, ::1] code_view = codes
    cdef const float[:, ::1] expected_view = expected
    cdef Py_ssize_t count = code_view.shape[0], patches = expected_view.shape[1]
    _check(positions, "positions", _int32, (count,))
    _check(entropy, "entropy", _float32, (patches,))
    cdef const int32_t[::1] position_view = positions
    cdef const float[::1] entropy_view = entropy
    result = _output(out, "out", _float32, (level.dims + 2, patches))
    cdef float[:, ::1] target = result
    cdef index_t bad_code, bad_position
    with nogil:
        bad_code = check_codes(&code_view[0, 0], count, level)
        bad_position = check_positions(&position_view[0], count, patches)
        if bad_code == kOk and bad_position == kOk:
            c_decoder_state(&code_view[0, 0], &position_view[0], count, &expected_view[0, 0], &entropy_view[0],
                            patches, level, &target[0, 0])
    if bad_code != kOk:
        _raise_code(code_view, bad_code, level)
    if bad_position != kOk:
        _raise_position(position_view, bad_position, patches)
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
    _check(codes, "codes", _int32, ("T", level.dims))
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
    _check(ids, "ids", _int32, ("T",))
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
