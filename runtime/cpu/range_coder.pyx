"""One integer range coder for entropy-coded bodies: symbols, bitmaps and gaps are written into it in turn.

``docs/format.md`` specifies the arithmetic. Every call checks dtype, shape and range of its arguments, then works
without the GIL. No data makes a decoder read outside of it or allocate more than the caller asked for.

Errors are ``TypeError`` (not an array, wrong dtype) and ``ValueError`` (wrong shape or values, or data that no encoder
wrote); each names what came and what is allowed.
"""

import numpy as np

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t
from libcpp.vector cimport vector

from tatok_edge.runtime.cpu.arguments cimport check, check_increasing, INT32, UINT8, UINT16


cdef extern from "range_coder.hpp" namespace "tatok" nogil:
    CoderStatus c_encode_symbols "tatok::encode_symbols"(
        CoreEncoder& coder, const int32_t* symbols, const uint16_t* rows, size_t count, int length,
        size_t& at) except +
    CoderStatus c_decode_symbols "tatok::decode_symbols"(
        CoreDecoder& coder, const uint16_t* rows, size_t count, int length, int32_t* symbols, size_t& at)
    void c_encode_bitmap "tatok::encode_bitmap"(
        CoreEncoder& coder, const uint8_t* keep, const uint8_t* places, size_t height, size_t width, size_t count,
        size_t cells) except +
    CoderStatus c_decode_bitmap "tatok::decode_bitmap"(
        CoreDecoder& coder, uint8_t* keep, const uint8_t* places, size_t height, size_t width, size_t count,
        size_t cells)
    void c_encode_gaps "tatok::encode_gaps"(CoreEncoder& coder, const int32_t* positions, size_t count) except +
    CoderStatus c_decode_gaps "tatok::decode_gaps"(
        CoreDecoder& coder, size_t count, int64_t cells, int32_t* positions)


cdef int64_t MAX_CELLS = 1 << 30
MAX_SYMBOLS = 4096


cdef class RangeEncoder:
    """Writes one entropy-coded body. :class:`RangeDecoder` must read the same things in the same order."""

    def symbols(self, symbols, freqs):
        """Append symbols, int32 ``(n,)``, each by its row of frequencies, uint16 ``(n, L)``.

        A row holds a positive frequency for each allowed symbol, zeros after them, and sums to 4096.

        Raises:
            ValueError: A row is not like that, or a symbol has no frequency in its row.
        """
        cdef const int32_t[::1] values = check(symbols, "symbols", INT32, ("n",))
        cdef const uint16_t[:, ::1] rows = _frequencies(freqs, values.shape[0])
        cdef size_t count = values.shape[0], at = 0
        cdef int length = <int>rows.shape[1]
        cdef CoderStatus status
        self.check_open()
        if count == 0:
            return
        with nogil:
            status = c_encode_symbols(self.core, &values[0], &rows[0, 0], count, length, at)
        if status != CoderStatus.ok:
            self.finished = True
            if status == CoderStatus.bad_symbol:
                raise ValueError(
                    f"symbols must have a frequency in their row, got {values[at]} in row {at} "
                    f"({np.asarray(freqs)[at].tolist()})"
                )
            _raise_row(freqs, at)

    def bitmap(self, keep, places=None):
        """Append a map of zeros and ones, uint8 ``(h, w)``; the decoder must be told the number of ones.

        ``places``, uint8 ``(h, w)`` of zeros and ones, marks where ones can be; the decoder must get the same.
        """
        cdef const uint8_t[:, ::1] cells = check(keep, "keep", UINT8, ("h", "w"))
        cdef const uint8_t[:, ::1] mask
        cdef size_t height = cells.shape[0], width = cells.shape[1], count, total
        cdef size_t i
        cdef const uint8_t* data
        cdef const uint8_t* where = NULL
        cdef uint8_t outside = 0
        _check_grid(height, width)
        self.check_open()
        data = &cells[0, 0]
        count = count_ones("keep", cells)
        total = height * width
        if places is not None:
            mask = _places(places, height, width)
            where = &mask[0, 0]
            total = count_ones("places", mask)
            with nogil:
                for i in range(height * width):
                    outside |= data[i] & ~where[i]
            if outside & 1:
                raise ValueError("keep must be 0 outside places, got a 1 there")
        with nogil:
            c_encode_bitmap(self.core, data, where, height, width, count, total)

    def gaps(self, positions):
        """Append strictly increasing positions, int32 ``(n,)``, by the gaps between them: short where few are set."""
        cdef const int32_t[::1] values = check(positions, "positions", INT32, ("n",))
        cdef size_t count = values.shape[0]
        self.check_open()
        check_increasing(values, MAX_CELLS)
        if count:
            with nogil:
                c_encode_gaps(self.core, &values[0], count)

    def copy(self):
        """Another encoder that has written the same so far."""
        self.check_open()
        other = RangeEncoder()
        (<RangeEncoder>other).core = self.core
        return other

    def __len__(self):
        """Bytes written so far; some more come until the end."""
        return self.core.bytes().size()

    def finish(self):
        """The body, bytes; the encoder takes nothing more."""
        self.check_open()
        self.finished = True
        self.core.finish()
        cdef const vector[uint8_t]* data = &self.core.bytes()
        return (<const char*>data.data())[:data.size()] if data.size() else b""

    cdef int check_open(self) except -1:
        if self.finished:
            raise ValueError("the encoder is finished; make a new one for another body")
        return 0


cdef class RangeDecoder:
    """Reads one entropy-coded body: bytes, bytearray or memoryview."""

    def __init__(self, data):
        self.data = memoryview(data).cast("B")
        self.core = CoreDecoder(&self.data[0] if self.data.shape[0] else NULL, self.data.shape[0])

    def symbols(self, freqs, count):
        """The next symbols, int32 ``(count,)``, given their rows of frequencies, uint16 ``(count, L)``.

        Raises:
            ValueError: The data is cut off or was not written with these rows, or a row is not one.
        """
        cdef size_t n = check_count("count", count, MAX_CELLS), at = 0
        cdef const uint16_t[:, ::1] rows = _frequencies(freqs, n)
        cdef int length = <int>rows.shape[1]
        out = np.empty(n, INT32)
        cdef int32_t[::1] values = out
        cdef CoderStatus status
        if n == 0:
            return out
        with nogil:
            status = c_decode_symbols(self.core, &rows[0, 0], n, length, &values[0], at)
        if status == CoderStatus.bad_row:
            _raise_row(freqs, at)
        check_status(status, f"symbol {at} of {n}")
        return out

    def bitmap(self, height, width, count, places=None):
        """The next map, uint8 ``(height, width)`` with ``count`` ones, all of them in ``places`` as the encoder's."""
        cdef size_t h = check_count("height", height, MAX_CELLS), w = check_count("width", width, MAX_CELLS)
        cdef const uint8_t[:, ::1] mask
        cdef const uint8_t* where = NULL
        cdef size_t total = h * w
        _check_grid(h, w)
        if places is not None:
            mask = _places(places, h, w)
            where = &mask[0, 0]
            total = count_ones("places", mask)
        cdef size_t n = check_count("count", count, total)
        out = np.empty((h, w), UINT8)
        cdef uint8_t[:, ::1] cells = out
        cdef CoderStatus status
        with nogil:
            status = c_decode_bitmap(self.core, &cells[0, 0], where, h, w, n, total)
        check_status(status, "the bitmap")
        return out

    def gaps(self, count, cells):
        """The next ``count`` positions below ``cells``, int32 ``(count,)``, strictly increasing."""
        cdef int64_t limit = check_count("cells", cells, MAX_CELLS)
        cdef size_t n = check_count("count", count, limit)
        out = np.empty(n, INT32)
        cdef int32_t[::1] values = out
        cdef CoderStatus status
        if n:
            with nogil:
                status = c_decode_gaps(self.core, n, limit, &values[0])
            check_status(status, "the gaps")
        return out

    def finish(self):
        """Check that the body ends here, exactly as the encoder ends one.

        Raises:
            ValueError: It does not: it is cut off, longer, or was written by other models.
        """
        check_status(self.core.finish(), "the end of the body")


cdef object _frequencies(object freqs, size_t count):
    check(freqs, "freqs", UINT16, ("n", "L"))
    if freqs.shape[0] != count or not 1 <= freqs.shape[1] <= MAX_SYMBOLS:
        raise ValueError(
            f"freqs must have one row of 1 to {MAX_SYMBOLS} frequencies per symbol ({count}), got shape {freqs.shape}"
        )
    return freqs


cdef size_t check_count(str name, object value, int64_t largest) except? 0:
    if not 0 <= value <= largest:
        raise ValueError(f"{name} must be from 0 to {largest}, got {value}")
    return value


cdef object _places(object places, size_t height, size_t width):
    check(places, "places", UINT8, ("h", "w"))
    if places.shape[0] != height or places.shape[1] != width:
        raise ValueError(f"places must have the shape of the bitmap, {height} x {width}, got shape {places.shape}")
    return places


cdef size_t count_ones(str name, const uint8_t[:, ::1] cells) except? 0:
    """Number of ones in a map that is not empty."""
    cdef const uint8_t* data = &cells[0, 0]
    cdef size_t i, count = 0
    cdef uint8_t largest = 0
    with nogil:
        for i in range(<size_t>(cells.shape[0] * cells.shape[1])):
            count += data[i]
            largest |= data[i]
    if largest > 1:
        raise ValueError(f"{name} must hold zeros and ones, got {np.asarray(cells).max()}")
    return count


cdef int _check_grid(size_t height, size_t width) except -1:
    if height == 0 or width == 0 or height > <size_t>MAX_CELLS // width:
        raise ValueError(f"a bitmap must have 1 to {MAX_CELLS} cells, got {height} x {width}")
    return 0


cdef int check_status(CoderStatus status, str where) except -1:
    if status == CoderStatus.truncated:
        raise ValueError(f"the entropy-coded body is cut off, at {where}")
    if status == CoderStatus.impossible:
        raise ValueError(f"the entropy-coded body is damaged or from another model, at {where}")
    if status == CoderStatus.left_over:
        raise ValueError("the entropy-coded body does not end where its content does: damaged or from another model")
    return 0


cdef int _raise_row(object freqs, size_t at) except -1:
    row = np.asarray(freqs)[at].tolist()
    raise ValueError(
        f"freqs must be positive for the allowed symbols, zero after them and sum to 4096, got {row} in row {at}"
    )


def encode_symbols(symbols, freqs):
    """A body that holds symbols alone; see :meth:`RangeEncoder.symbols`."""
    encoder = RangeEncoder()
    encoder.symbols(symbols, freqs)
    return encoder.finish()


def decode_symbols(data, freqs, count):
    """Inverse of :func:`encode_symbols`."""
    decoder = RangeDecoder(data)
    symbols = decoder.symbols(freqs, count)
    decoder.finish()
    return symbols


def encode_bitmap(keep):
    """A body that holds a bitmap alone; see :meth:`RangeEncoder.bitmap`."""
    encoder = RangeEncoder()
    encoder.bitmap(keep)
    return encoder.finish()


def decode_bitmap(data, height, width, count):
    """Inverse of :func:`encode_bitmap`; ``count`` is the number of ones."""
    decoder = RangeDecoder(data)
    keep = decoder.bitmap(height, width, count)
    decoder.finish()
    return keep
