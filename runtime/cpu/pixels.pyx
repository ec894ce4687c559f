"""Pixels of an image to the inputs of the networks, and back. ``reference.py`` specifies the functions bit for bit."""

from libc.stdint cimport int32_t, uint8_t
from libcpp cimport bool as cbool

from tatok_edge.runtime.cpu.arguments cimport (
    ImageView, check, check_apart, check_grid_width, check_image, check_positions, kOk, output, raise_position,
    view_of, FLOAT32, INT32, UINT8,
)
from tatok_edge.runtime.cpu.geometry cimport (
    cells_along, index_t, kCellValues, kPatch, kPatchValues, kWindowValues, patches_along,
)


cdef extern from "pixels.hpp" namespace "tatok" nogil:
    void c_image_to_cells "tatok::image_to_cells"(
        ImageView image, index_t cell_rows, index_t cell_columns, float* out)
    void c_gather_features "tatok::gather_features"(
        ImageView image, const float* context, index_t context_channels, const float* mean, index_t columns,
        index_t grid_width, const int32_t* source, const int32_t* positions, index_t count, float* out)
    void c_assemble "tatok::assemble"(
        const float* pixels, index_t patches, index_t grid_width, index_t height, index_t width, cbool bgr,
        uint8_t* out)
    void c_scatter_columns "tatok::scatter_columns"(
        const float* source, index_t source_patches, const int32_t* source_positions, float* target, index_t patches,
        const int32_t* positions, index_t count, index_t channels)


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
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t rows = cells_along(pixels.shape[0]), columns = cells_along(pixels.shape[1])
    result = output(out, "out", FLOAT32, (kCellValues, rows, columns))
    cdef float[:, :, ::1] target = result
    cdef ImageView view = view_of(pixels, bgr)
    with nogil:
        c_image_to_cells(view, rows, columns, &target[0, 0, 0])
    return result


def gather_features(image, bint bgr, context, mean, source, positions, Py_ssize_t grid_width, out=None):
    """The input of the patch encoder, one row per position: ``[window 768 | context Dc | mean 192]``.

    The window is the 16x16 pixels around the patch in (y, x, rgb) order, with the edge of the image repeated outside,
    as ``float32(v) / float32(127.5) - 1``.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels are in blue, green, red order.
        context: float32 (Dc, M), C-contiguous.
        mean: float32 (192, M), C-contiguous.
        source: int32 (T,), the column of ``context`` and ``mean`` for each patch, each in [0, M).
        positions: int32 (T,) raster indices in the patch grid of the padded image, each in [0, N).
        grid_width: patches per row of the grid.
        out: float32 (T, 960 + Dc) to write into.

    Returns:
        float32 (T, 960 + Dc).
    """
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t patches = patches_along(pixels.shape[0]) * patches_along(pixels.shape[1])
    check_grid_width(grid_width, pixels.shape[1])
    check(context, "context", FLOAT32, ("Dc", "M"))
    cdef Py_ssize_t columns = context.shape[1]
    check(mean, "mean", FLOAT32, (kPatchValues, columns))
    check(positions, "positions", INT32, ("T",))
    cdef const float[:, ::1] context_view = context
    cdef const float[:, ::1] mean_view = mean
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0], channels = context_view.shape[0]
    check(source, "source", INT32, (count,))
    cdef const int32_t[::1] source_view = source
    result = output(out, "out", FLOAT32, (count, kWindowValues + channels + kPatchValues))
    cdef float[:, ::1] target = result
    cdef ImageView view = view_of(pixels, bgr)
    cdef index_t bad_source, bad
    with nogil:
        bad_source = check_positions(&source_view[0], count, columns)
        bad = check_positions(&position_view[0], count, patches)
        if bad_source == kOk and bad == kOk:
            c_gather_features(view, &context_view[0, 0], channels, &mean_view[0, 0], columns, grid_width,
                              &source_view[0], &position_view[0], count, &target[0, 0])
    if bad_source != kOk:
        raise_position(source_view, bad_source, columns, "source", "columns of context and mean")
    if bad != kOk:
        raise_position(position_view, bad, patches)
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
    check(pixels, "pixels", FLOAT32, (kPatchValues, "N"))
    cdef const float[:, ::1] planes = pixels
    cdef Py_ssize_t patches = planes.shape[1]
    if grid_width <= 0 or patches == 0 or patches % grid_width:
        raise ValueError(f"grid_width must divide the {patches} patches of pixels, got {grid_width}")
    if not 1 <= height <= patches // grid_width * kPatch:
        raise ValueError(f"height must be 1 to {patches // grid_width * kPatch} ({kPatch} per row of the grid), "
                         f"got {height}")
    if not 1 <= width <= grid_width * kPatch:
        raise ValueError(f"width must be 1 to {grid_width * kPatch} ({kPatch} per column of the grid), got {width}")
    result = output(out, "out", UINT8, (height, width, 3))
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
    check(source, "source", FLOAT32, ("C", "M"))
    cdef const float[:, ::1] source_view = source
    cdef Py_ssize_t channels = source_view.shape[0], source_patches = source_view.shape[1]
    check(target, "target", FLOAT32, (channels, "N"), True, True)
    cdef float[:, ::1] target_view = target
    cdef Py_ssize_t patches = target_view.shape[1]
    check(positions, "positions", INT32, ("T",))
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0]
    check(source_positions, "source_positions", INT32, (count,))
    cdef const int32_t[::1] source_position_view = source_positions
    check_apart(source, "source", target, "target")
    cdef index_t bad_source, bad
    with nogil:
        bad_source = check_positions(&source_position_view[0], count, source_patches)
        bad = check_positions(&position_view[0], count, patches)
        if bad_source == kOk and bad == kOk:
            c_scatter_columns(&source_view[0, 0], source_patches, &source_position_view[0], &target_view[0, 0],
                              patches, &position_view[0], count, channels)
    if bad_source != kOk:
        raise_position(source_position_view, bad_source, source_patches, "source_positions")
    if bad != kOk:
        raise_position(position_view, bad, patches)
