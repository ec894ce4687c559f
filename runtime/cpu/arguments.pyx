"""Checks of arguments that the kernels and the coder share; see ``arguments.pxd``."""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t

from tatok_edge.runtime.cpu.geometry cimport index_t, patches_along

FLOAT32 = np.dtype(np.float32)
INT16 = np.dtype(np.int16)
INT32 = np.dtype(np.int32)
UINT8 = np.dtype(np.uint8)
UINT16 = np.dtype(np.uint16)

cdef object _ndarray = np.ndarray
cdef object _may_share_memory = np.may_share_memory


cdef str _shape_text(tuple shape):
    """``("B", 3)`` as "(B, 3)"."""
    return f"({', '.join([str(s) for s in shape])}{',' if len(shape) == 1 else ''})"


cdef object check(object value, str name, object dtype, tuple shape, bint contiguous=True, bint writable=False):
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


cdef object output(object out, str name, object dtype, tuple shape):
    """A new array, or ``out`` once it has been checked."""
    if out is None:
        return np.empty(shape, dtype)
    return check(out, name, dtype, shape, True, True)


cdef object check_image(object image):
    """Raises unless ``image`` is uint8 (H, W, 3) with at least one pixel, in any strides."""
    check(image, "image", UINT8, ("H", "W", 3), False)
    if image.size == 0:
        raise ValueError(f"image is empty: shape {image.shape}")
    return image


cdef ImageView view_of(const uint8_t[:, :, :] pixels, bint bgr) noexcept:
    return ImageView.make(&pixels[0, 0, 0], pixels.strides[0], pixels.strides[1], pixels.strides[2],
                          pixels.shape[0], pixels.shape[1], bgr)


cdef int check_grid_width(Py_ssize_t grid_width, Py_ssize_t image_width) except -1:
    if grid_width != patches_along(image_width):
        raise ValueError(f"grid_width must be {patches_along(image_width)} for an image {image_width} pixels wide, "
                         f"got {grid_width}")
    return 0


cdef int check_apart(object source, str source_name, object target, str target_name) except -1:
    """Raises where writing to ``target`` could change ``source`` while it is read."""
    if _may_share_memory(source, target):
        raise ValueError(f"{source_name} and {target_name} share memory; pass {source_name}.copy()")
    return 0


cdef int check_increasing(const int32_t[::1] positions, int64_t limit) except -1:
    """Raises unless positions increase strictly and lie in [0, limit)."""
    cdef int64_t last = -1
    cdef Py_ssize_t i
    for i in range(positions.shape[0]):
        if positions[i] <= last or positions[i] >= limit:
            raise ValueError(f"positions must increase strictly from 0 to below {limit}, got {positions[i]} at {i}")
        last = positions[i]
    return 0


cdef int raise_position(const int32_t[::1] positions, index_t bad, Py_ssize_t patches,
                         str name="positions", str counted="patches of the grid") except -1:
    raise ValueError(f"{name}[{bad}] is {positions[bad]}; allowed are 0 to {patches - 1} ({counted})")
