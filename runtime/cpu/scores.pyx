"""Scores of tokens that are known before any code. ``reference.py`` specifies the functions bit for bit."""

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t
from libcpp.vector cimport vector

from tatok_edge.runtime.cpu.arguments cimport (
    ImageView, check, check_grid_width, check_image, check_positions, kMaxDims, kOk, output, raise_position, view_of,
    FLOAT32, INT16, INT32,
)
from tatok_edge.runtime.cpu.geometry cimport index_t, kPatchValues, patches_along


cdef extern from "scores.hpp" namespace "tatok" nogil:
    const int kMaxDepth
    void c_patch_scores "tatok::patch_scores"(
        ImageView image, const float* mean, index_t columns, index_t grid_width, const int32_t* source,
        const int32_t* positions, index_t count, const int16_t* basis, index_t depth, index_t dims, float* out)
    void c_patch_activity "tatok::patch_activity"(
        ImageView image, index_t grid_height, index_t grid_width, int64_t* out)
    void c_visual_weights "tatok::visual_weights"(
        const int64_t* activity, index_t grid_height, index_t grid_width, float* out)


def patch_scores(image, bint bgr, mean, source, positions, Py_ssize_t grid_width, basis, out=None):
    """The squared error that each token of a patch can remove, before any code is known.

    The residual of the patch, pixels minus mean, in sixteenths of a grey level (integers, cut at +-4095), is projected
    on the directions of each token; the score is the energy there, never more than that of the token before. The image
    is padded on the right and at the bottom to multiples of 32 by repeating its edge.

    Args:
        image: uint8 (H, W, 3), any strides.
        bgr: whether the channels of ``image`` are in blue, green, red order.
        mean: float32 (192, M) in [-1, 1], C-contiguous, channels in (y, x, rgb) order.
        source: int32 (T,), the column of ``mean`` for each patch, each in [0, M).
        positions: int32 (T,) raster indices in the patch grid of the padded image, each in [0, N).
        grid_width: patches per row of the grid.
        basis: int16 (K, D, 192), orthonormal directions times 2^14, in (y, x, rgb) order; K at most 8, D at most 16.
        out: float32 (T, K) to write into.

    Returns:
        float32 (T, K), in grey levels squared, per value of the patch.
    """
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t patches = patches_along(pixels.shape[0]) * patches_along(pixels.shape[1])
    check_grid_width(grid_width, pixels.shape[1])
    check(mean, "mean", FLOAT32, (kPatchValues, "M"))
    check(positions, "positions", INT32, ("T",))
    cdef const float[:, ::1] mean_view = mean
    cdef const int32_t[::1] position_view = positions
    cdef Py_ssize_t count = position_view.shape[0], columns = mean_view.shape[1]
    check(source, "source", INT32, (count,))
    cdef const int32_t[::1] source_view = source
    check(basis, "basis", INT16, ("K", "D", kPatchValues))
    cdef const int16_t[:, :, ::1] basis_view = basis
    cdef Py_ssize_t depth = basis_view.shape[0], dims = basis_view.shape[1]
    if not (1 <= depth <= kMaxDepth and 1 <= dims <= kMaxDims):
        raise ValueError(f"basis must have shape (1 to {kMaxDepth}, 1 to {kMaxDims}, {kPatchValues}), "
                         f"got {basis.shape}")
    result = output(out, "out", FLOAT32, (count, depth))
    cdef float[:, ::1] target = result
    cdef ImageView view = view_of(pixels, bgr)
    cdef index_t bad_source, bad
    with nogil:
        bad_source = check_positions(&source_view[0], count, columns)
        bad = check_positions(&position_view[0], count, patches)
        if bad_source == kOk and bad == kOk:
            c_patch_scores(view, &mean_view[0, 0], columns, grid_width, &source_view[0], &position_view[0], count,
                           &basis_view[0, 0, 0], depth, dims, &target[0, 0])
    if bad_source != kOk:
        raise_position(source_view, bad_source, columns, "source", "columns of mean")
    if bad != kOk:
        raise_position(position_view, bad, patches)
    return result


def visual_weights(image, out=None):
    """How visible an error is in each patch, in (0, 1]: a busy neighbourhood hides errors.

    The activity of a patch is the variance of its pixels, the mean over the channels; a weight is
    ``1300.5 / (mean activity of the 3x3 patches around + 1300.5)``.

    Args:
        image: uint8 (H, W, 3), any strides, channels in any order.
        out: float32 (N,) to write into.

    Returns:
        float32 (N,), one per patch of the padded image, in raster order.
    """
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t rows = patches_along(pixels.shape[0]), columns = patches_along(pixels.shape[1])
    result = output(out, "out", FLOAT32, (rows * columns,))
    cdef float[::1] target = result
    cdef ImageView view = view_of(pixels, False)
    cdef vector[int64_t] activity
    activity.resize(rows * columns)
    with nogil:
        c_patch_activity(view, rows, columns, activity.data())
        c_visual_weights(activity.data(), rows, columns, &target[0])
    return result
