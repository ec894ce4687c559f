"""The sizes of ``geometry.hpp``, for the Cython modules."""

from libc.stdint cimport int64_t


cdef extern from "geometry.hpp" namespace "tatok" nogil:
    ctypedef int64_t index_t

    const index_t kPatch
    const index_t kCell
    const index_t kWindow
    const index_t kThumbnail
    const index_t kMaxVector
    const index_t kCellSide
    const index_t kPatchValues
    const index_t kWindowValues
    const index_t kCellValues

    index_t cells_along(index_t pixels)
    index_t patches_along(index_t pixels)
