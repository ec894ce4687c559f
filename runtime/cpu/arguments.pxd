"""Checks of arguments that the kernels and the coder share.

Errors are ``TypeError`` (not an array, wrong dtype) and ``ValueError`` (wrong shape, layout or values); each names the
argument, what came and what is allowed.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libcpp cimport bool as cbool

from tatok_edge.runtime.cpu.geometry cimport index_t


cdef extern from "common.hpp" namespace "tatok" nogil:
    const index_t kOk
    const int kMaxDims

    cdef cppclass ImageView:
        @staticmethod
        ImageView make(const uint8_t* data, Py_ssize_t row, Py_ssize_t pixel, Py_ssize_t channel,
                       index_t height, index_t width, cbool bgr)

    index_t check_positions(const int32_t* positions, index_t count, index_t patches)


cdef object FLOAT32
cdef object INT16
cdef object INT32
cdef object UINT8
cdef object UINT16

cdef object check(object value, str name, object dtype, tuple shape, bint contiguous=?, bint writable=?)
cdef object output(object out, str name, object dtype, tuple shape)
cdef object check_image(object image)
cdef ImageView view_of(const uint8_t[:, :, :] pixels, bint bgr) noexcept
cdef int check_grid_width(Py_ssize_t grid_width, Py_ssize_t image_width) except -1
cdef int check_apart(object source, str source_name, object target, str target_name) except -1
cdef int check_increasing(const int32_t[::1] positions, int64_t limit) except -1
cdef int raise_position(
    const int32_t[::1] positions, index_t bad, Py_ssize_t patches, str name=?, str counted=?) except -1
