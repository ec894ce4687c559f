"""Motion of cells against a reference picture. ``reference.py`` specifies :func:`move_cells` bit for bit."""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t

from tatok_edge.runtime.cpu.arguments cimport (
    ImageView, check, check_apart, check_image, output, view_of, INT32, UINT8,
)
from tatok_edge.runtime.cpu.geometry cimport cells_along, index_t, kCell, kMaxVector


cdef extern from "motion.hpp" namespace "tatok" nogil:
    cdef cppclass MotionPlanes:
        @staticmethod
        index_t bytes(index_t rows, index_t columns)

        MotionPlanes(ImageView image, const uint8_t* reference, index_t rows, index_t columns, uint8_t* memory)

    void c_find_motion "tatok::find_motion"(
        const MotionPlanes& planes, index_t rows, index_t columns, const uint8_t* active, int32_t cap, int64_t cost,
        int32_t* vectors)
    void c_move_cells "tatok::move_cells"(
        const uint8_t* source, index_t rows, index_t columns, const int32_t* vectors, uint8_t* target)


cdef int _check_vectors(object vectors, tuple shape, bint writable) except -1:
    check(vectors, "vectors", INT32, shape, True, writable)
    if vectors.min() < -kMaxVector or vectors.max() > kMaxVector:
        raise ValueError(f"vectors must be from {-kMaxVector} to {kMaxVector} half pixels")
    return 0


def motion_scratch(Py_ssize_t height, Py_ssize_t width):
    """Memory for :func:`find_motion` to work in, for images of this size; its contents mean nothing.

    Args:
        height: rows of the image.
        width: pixels per row.

    Returns:
        uint8 (S,), about 5 bytes per pixel.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1, got {height} and {width}")
    return np.empty(MotionPlanes.bytes(cells_along(height), cells_along(width)), UINT8)


def find_motion(image, bint bgr, reference, active, int32_t cap, int64_t cost, vectors, scratch=None):
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
        cost: least gain of a vector that differs from that of the cell before, 0 to 2^40.
        vectors: int32 (Hp / 32, Wp / 32, 2), (y, x) in half pixels: those of the frame before on entry, at most 62
            either way; the new ones on return.
        scratch: uint8 (S,) of :func:`motion_scratch`, kept by the caller from frame to frame and used by one call at a
            time; None allocates it for this call.
    """
    cdef const uint8_t[:, :, :] pixels = check_image(image)
    cdef Py_ssize_t rows = cells_along(pixels.shape[0]), columns = cells_along(pixels.shape[1])
    check(reference, "reference", UINT8, (rows * kCell, columns * kCell, 3))
    check(active, "active", UINT8, (rows, columns))
    _check_vectors(vectors, (rows, columns, 2), True)
    if not (0 <= cap <= 1 << 22 and 0 <= cost <= 1 << 40):
        raise ValueError(f"cap must be from 0 to 2^22 and cost from 0 to 2^40, got {cap} and {cost}")
    cdef const uint8_t[:, :, ::1] reference_view = reference
    cdef const uint8_t[:, ::1] active_view = active
    cdef int32_t[:, :, ::1] vector_view = vectors
    cdef ImageView view = view_of(pixels, bgr)
    cdef uint8_t[::1] memory = output(scratch, "scratch", UINT8, (MotionPlanes.bytes(rows, columns),))
    with nogil:
        c_find_motion(MotionPlanes(view, &reference_view[0, 0, 0], rows, columns, &memory[0]), rows, columns,
                      &active_view[0, 0], cap, cost, &vector_view[0, 0, 0])


def move_cells(source, vectors, out=None):
    """The picture whose cells are copies of the pixels of ``source`` at their place plus their vector.

    Beyond the border the edge is repeated. Between pixels, four neighbours a, b, c, d give
    ``(9 * (b + c) - (a + d) + 8) >> 4``, cut to 0 to 255; across first, then down.

    Args:
        source: uint8 (Hp, Wp, 3), C-contiguous, sides multiples of 32.
        vectors: int32 (Hp / 32, Wp / 32, 2), (y, x) in half pixels, at most 62 either way.
        out: uint8 (Hp, Wp, 3) to write into, apart from ``source``.

    Returns:
        uint8 (Hp, Wp, 3).
    """
    check(source, "source", UINT8, ("H", "W", 3))
    cdef const uint8_t[:, :, ::1] source_view = source
    cdef Py_ssize_t rows = source_view.shape[0] // kCell, columns = source_view.shape[1] // kCell
    if rows * kCell != source_view.shape[0] or columns * kCell != source_view.shape[1]:
        raise ValueError(f"sides of source must be multiples of {kCell}, got {source.shape[0]} x {source.shape[1]}")
    _check_vectors(vectors, (rows, columns, 2), False)
    cdef const int32_t[:, :, ::1] vector_view = vectors
    result = output(out, "out", UINT8, (rows * kCell, columns * kCell, 3))
    check_apart(source, "source", result, "out")
    cdef uint8_t[:, :, ::1] target = result
    with nogil:
        c_move_cells(&source_view[0, 0, 0], rows, columns, &vector_view[0, 0, 0], &target[0, 0, 0])
    return result
