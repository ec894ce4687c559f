"""Change of patches against a reference picture, and their residuals. ``reference.py`` specifies them bit for bit."""

from libc.stdint cimport int32_t, uint8_t

from tatok_edge.runtime.cpu.arguments cimport (
    ImageView, check, check_apart, check_grid_width, check_image, check_positions, kOk, output, raise_position,
    view_of, FLOAT32, INT32, UINT8,
)
from tatok_edge.runtime.cpu.geometry cimport index_t, kPatch, kPatchValues, patches_along


cdef extern from "change.hpp" namespace "tatok" nogil:
    void c_patch_change "tatok::patch_change"(
        ImageView image, const uint8_t* reference, index_t grid_height, index_t grid_width, int32_t* out)
    void c_patch_error "tatok::patch_error"(
        const float* pixels, ImageView image, index_t grid_height, index_t grid_width, float* out)
    void c_update_reference "tatok::update_reference"(
        ImageView image, uint8_t* reference, index_t grid_width, const int32_t* positions, index_t count)
    index_t check_changes(const int32_t* changes, index_t n)
    int32_t c_change_quantile "tatok::change_quantile"(const int32_t* changes, index_t n, double share)


def patch_change(image, bint bgr, reference, out=None):
    """How much each patch differs from a reference picture, in detail and coarse.

    Row 0 is the sum of the 192 squared differences. Row 1 is the coarse change: for each quarter of the patch (4x4
    pixels) and channel, the 16 signed differences are summed, and the sum is squared, divided by 16 and rounded down.
    The sum of these twelve is at most row 0.

    The image is padded on the right and at the bottom to multiples of 32 by repeating its edge.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        reference: uint8 (Hp, Wp, 3), RGB, C-contiguous, of the padded size.
        out: int32 (2, N) to write into.

    Returns:
        int32 (2, N), exact, one column per patch in raster order.
    """
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t rows = patches_along(pixels.shape[0]), columns = patches_along(pixels.shape[1])
    check(reference, "reference", UINT8, (rows * kPatch, columns * kPatch, 3))
    cdef const uint8_t[:, :, ::1] reference_view = reference
    result = output(out, "out", INT32, (2, rows * columns))
    cdef int32_t[:, ::1] target = result
    cdef ImageView view = view_of(pixels, bgr)
    with nogil:
        c_patch_change(view, &reference_view[0, 0, 0], rows, columns, &target[0, 0])
    return result


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
    cdef const uint8_t[:, :, :] image_view = check_image(image)
    cdef Py_ssize_t rows = patches_along(image_view.shape[0]), columns = patches_along(image_view.shape[1])
    check_grid_width(grid_width, image_view.shape[1])
    check(pixels, "pixels", FLOAT32, (kPatchValues, rows * columns))
    cdef const float[:, ::1] planes = pixels
    result = output(out, "out", FLOAT32, (rows * columns,))
    cdef float[::1] target = result
    cdef ImageView view = view_of(image_view, bgr)
    with nogil:
        c_patch_error(&planes[0, 0], view, rows, columns, &target[0])
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
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t rows = patches_along(pixels.shape[0]), columns = patches_along(pixels.shape[1])
    check(reference, "reference", UINT8, (rows * kPatch, columns * kPatch, 3), True, True)
    cdef uint8_t[:, :, ::1] target = reference
    check(positions, "positions", INT32, ("T",))
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0]
    check_apart(image, "image", reference, "reference")
    cdef ImageView view = view_of(pixels, bgr)
    cdef index_t bad
    with nogil:
        bad = check_positions(&position_view[0], count, rows * columns)
        if bad == kOk:
            c_update_reference(view, &target[0, 0, 0], columns, &position_view[0], count)
    if bad != kOk:
        raise_position(position_view, bad, rows * columns)


def change_quantile(changes, double share):
    """A quantile of the changes that are not 0: the one at rank ``floor(share * (m - 1))`` of m, ascending.

    Args:
        changes: int32 (N,), C-contiguous, not negative: a row of the result of :func:`patch_change`.
        share: above 0 and below 1; 0.5 is the (lower) median.

    Returns:
        int; 0 where all changes are 0.
    """
    check(changes, "changes", INT32, ("N",))
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
