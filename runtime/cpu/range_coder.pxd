"""The range coder, for the Cython modules that code with it."""

from libc.stdint cimport int64_t, uint8_t
from libcpp.vector cimport vector


cdef extern from "range_coder.hpp" namespace "tatok" nogil:
    cdef enum class CoderStatus(int):
        ok
        bad_row
        bad_symbol
        truncated
        impossible
        left_over

    cdef cppclass CoreEncoder "tatok::RangeEncoder":
        void finish() except +
        const vector[uint8_t]& bytes()

    cdef cppclass CoreDecoder "tatok::RangeDecoder":
        CoreDecoder()
        CoreDecoder(const uint8_t* data, size_t size)
        CoderStatus finish()


cdef class RangeEncoder:
    cdef CoreEncoder core
    cdef bint finished

    cdef int check_open(self) except -1


cdef class RangeDecoder:
    cdef CoreDecoder core
    cdef const uint8_t[::1] data


cdef int MAX_SYMBOLS

cdef size_t check_count(str name, object value, int64_t largest) except? 0
cdef size_t count_ones(str name, const uint8_t[:, ::1] cells) except? 0
cdef int check_status(CoderStatus status, str where) except -1
