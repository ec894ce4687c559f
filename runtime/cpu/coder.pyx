# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
# cython: freethreading_compatible=True
"""Entropy coding of packets: one integer range coder, into which symbols, bitmaps and gaps are written in turn.

``docs/format.md`` specifies the arithmetic. Every call checks dtype, shape and range of its arguments, then works
without the GIL. Nothing that a decoder is given can make it read outside the data or allocate more than the caller
asked for.

Errors are ``TypeError`` (not an array, wrong dtype) and ``ValueError`` (wrong shape or values, or data that no encoder
wrote); each names what came and what is allowed.
"""

import numpy as np

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t
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


cdef extern from "token_coder.hpp" namespace "tatok" nogil:
    enum:
        kBefore
        kCell
        kExpSize
        kHiddenMax
        kInputScale
        kMaxDims

    cdef cppclass TokenNet:
        int dims, states, widest, width1, width2, cell_dims, cell_inputs, shares
        int levels[kMaxDims]
        int cell_levels[kMaxDims]
        const int16_t* cells
        const int16_t* phases
        const int16_t* context
        const int16_t* w2
        const int16_t* w3
        const int32_t* b1
        const int32_t* b2
        const int32_t* b3
        const int32_t* exp
        int context_inputs()

    CoderStatus c_encode_tokens "tatok::encode_tokens"(
        CoreEncoder& coder, const TokenNet& net, const int32_t* codes, const int32_t* positions, size_t count,
        int height, int width, const int32_t* cell_codes, int share, size_t& at) except +
    CoderStatus c_token_frequencies "tatok::token_frequencies"(
        const TokenNet& net, const int32_t* codes, const int32_t* positions, size_t count, int height, int width,
        const int32_t* cell_codes, int share, uint16_t* out, size_t& at) except +
    CoderStatus c_decode_tokens "tatok::decode_tokens"(
        CoreDecoder& coder, const TokenNet& net, int32_t* codes, const int32_t* positions, size_t count,
        int height, int width, const int32_t* cell_codes, int share, size_t& at) except +
    void c_encode_keep "tatok::encode_keep"(
        CoreEncoder& coder, const TokenNet& net, const uint8_t* keep, size_t count, int height, int width,
        const int32_t* cell_codes, int share) except +
    CoderStatus c_decode_keep "tatok::decode_keep"(
        CoreDecoder& coder, const TokenNet& net, uint8_t* keep, size_t count, int height, int width,
        const int32_t* cell_codes, int share) except +


cdef int64_t MAX_CELLS = 1 << 30
cdef int MAX_SYMBOLS = 4096
cdef int MAX_WIDTH = 256
cdef int MAX_SIDE = 1 << 15

CONTEXT_TOKENS = kBefore
"""Neighbours of a token that come before it, whose codes its network reads; as many come after it."""
INPUT_SCALE = kInputScale
"""What 1 is as an input of a network."""
EXP_SIZE = kExpSize
"""Length of the table of exponentials."""

cdef object _ndarray = np.ndarray
cdef object _int16 = np.dtype(np.int16)
cdef object _int32 = np.dtype(np.int32)
cdef object _uint8 = np.dtype(np.uint8)
cdef object _uint16 = np.dtype(np.uint16)


cdef class RangeEncoder:
    """Writes one entropy-coded body. :class:`RangeDecoder` must read the same things in the same order."""

    cdef CoreEncoder core
    cdef bint finished

    def symbols(self, symbols, freqs):
        """Append symbols, int32 ``(n,)``, each by its row of frequencies, uint16 ``(n, L)``.

        A row holds a positive frequency for each allowed symbol, zeros after them, and sums to 4096.

        Raises:
            ValueError: A row is not like that, or a symbol has no frequency in its row.
        """
        cdef const int32_t[::1] values = _array("symbols", symbols, _int32, 1)
        cdef const uint16_t[:, ::1] rows = _frequencies(freqs, values.shape[0])
        cdef size_t count = values.shape[0], at = 0
        cdef int length = <int>rows.shape[1]
        cdef CoderStatus status
        self._open()
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

        ``places``, uint8 ``(h, w)`` of zeros and ones, says where ones can be; the decoder must be given the same.
        """
        cdef const uint8_t[:, ::1] cells = _array("keep", keep, _uint8, 2)
        cdef const uint8_t[:, ::1] mask
        cdef size_t height = cells.shape[0], width = cells.shape[1], count, total
        cdef size_t i
        cdef const uint8_t* data
        cdef const uint8_t* where = NULL
        cdef uint8_t outside = 0
        _check_grid(height, width)
        self._open()
        data = &cells[0, 0]
        count = _ones("keep", cells)
        total = height * width
        if places is not None:
            mask = _places(places, height, width)
            where = &mask[0, 0]
            total = _ones("places", mask)
            with nogil:
                for i in range(height * width):
                    outside |= data[i] & ~where[i]
            if outside & 1:
                raise ValueError("keep must be 0 outside places, got a 1 there")
        with nogil:
            c_encode_bitmap(self.core, data, where, height, width, count, total)

    def gaps(self, positions):
        """Append strictly increasing positions, int32 ``(n,)``, by the gaps between them: short where few are set."""
        cdef const int32_t[::1] values = _array("positions", positions, _int32, 1)
        cdef size_t count = values.shape[0], i
        cdef int64_t last = -1
        self._open()
        for i in range(count):
            if values[i] <= last or values[i] >= MAX_CELLS:
                raise ValueError(f"positions must increase strictly from 0 to below {MAX_CELLS}, got {values[i]} at {i}")
            last = values[i]
        if count:
            with nogil:
                c_encode_gaps(self.core, &values[0], count)

    def copy(self):
        """Another encoder that has written the same so far."""
        self._open()
        other = RangeEncoder()
        (<RangeEncoder>other).core = self.core
        return other

    def __len__(self):
        """Bytes written so far; some more come until the end."""
        return self.core.bytes().size()

    def finish(self):
        """The body, bytes; the encoder takes nothing more."""
        self._open()
        self.finished = True
        self.core.finish()
        cdef const vector[uint8_t]* data = &self.core.bytes()
        return (<const char*>data.data())[:data.size()] if data.size() else b""

    cdef int _open(self) except -1:
        if self.finished:
            raise ValueError("the encoder is finished; make a new one for another body")
        return 0


cdef class RangeDecoder:
    """Reads one entropy-coded body: bytes, bytearray or memoryview."""

    cdef CoreDecoder core
    cdef const uint8_t[::1] data

    def __init__(self, data):
        self.data = memoryview(data).cast("B")
        self.core = CoreDecoder(&self.data[0] if self.data.shape[0] else NULL, self.data.shape[0])

    def symbols(self, freqs, count):
        """The next symbols, int32 ``(count,)``, given their rows of frequencies, uint16 ``(count, L)``.

        Raises:
            ValueError: The data is cut off or was not written with these rows, or a row is not one.
        """
        cdef size_t n = _count("count", count, MAX_CELLS), at = 0
        cdef const uint16_t[:, ::1] rows = _frequencies(freqs, n)
        cdef int length = <int>rows.shape[1]
        out = np.empty(n, _int32)
        cdef int32_t[::1] values = out
        cdef CoderStatus status
        if n == 0:
            return out
        with nogil:
            status = c_decode_symbols(self.core, &rows[0, 0], n, length, &values[0], at)
        if status == CoderStatus.bad_row:
            _raise_row(freqs, at)
        _raise(status, f"symbol {at} of {n}")
        return out

    def bitmap(self, height, width, count, places=None):
        """The next map, uint8 ``(height, width)`` with ``count`` ones, all of them in ``places`` as the encoder's."""
        cdef size_t h = _count("height", height, MAX_CELLS), w = _count("width", width, MAX_CELLS)
        cdef const uint8_t[:, ::1] mask
        cdef const uint8_t* where = NULL
        cdef size_t total = h * w
        _check_grid(h, w)
        if places is not None:
            mask = _places(places, h, w)
            where = &mask[0, 0]
            total = _ones("places", mask)
        cdef size_t n = _count("count", count, total)
        out = np.empty((h, w), _uint8)
        cdef uint8_t[:, ::1] cells = out
        cdef CoderStatus status
        with nogil:
            status = c_decode_bitmap(self.core, &cells[0, 0], where, h, w, n, total)
        _raise(status, "the bitmap")
        return out

    def gaps(self, count, cells):
        """The next ``count`` positions below ``cells``, int32 ``(count,)``, strictly increasing."""
        cdef int64_t limit = _count("cells", cells, MAX_CELLS)
        cdef size_t n = _count("count", count, limit)
        out = np.empty(n, _int32)
        cdef int32_t[::1] values = out
        cdef CoderStatus status
        if n:
            with nogil:
                status = c_decode_gaps(self.core, n, limit, &values[0])
            _raise(status, "the gaps")
        return out

    def finish(self):
        """Check that the body ends here, exactly as the encoder ends one.

        Raises:
            ValueError: It does not: it is cut off, longer, or was written by other models.
        """
        _raise(self.core.finish(), "the end of the body")


cdef class TokenModel:
    """How likely the codes of the tokens of a grid are, each given those before it; a network in integers.

    Args:
        levels: Values of each of the ``D`` code dimensions.
        exp: int32 ``(178,)``: frequencies fall with it, from above 0 to 0.
        w1: int16 ``(I, H1)``. Its inputs are ``cell_inputs``, where there are any 16 more for the place in the cell,
            and ``12 * (D + 1) + 12`` for the tokens around.
        b1: int32 ``(H1,)``; so ``w2`` ``(H1, H2)``, ``b2`` ``(H2,)``, ``w3`` ``(H2, sum(levels))``, ``b3``.
        cell_levels: Values of each code dimension of the cells, for a grid of patches, which is coded in their context.
        shares: Number of classes of the share of kept patches, for a grid of patches.

    Raises:
        ValueError: An array does not fit, or weights are so large that a sum may leave 32 bits.
    """

    cdef TokenNet net
    cdef tuple arrays
    cdef readonly tuple levels
    cdef readonly tuple cell_levels

    def __init__(self, levels, exp, w1, b1, w2, b2, w3, b3, cell_levels=(), int shares=0):
        self.levels = tuple(levels)
        self.cell_levels = tuple(cell_levels)
        cdef int dims = len(self.levels), d
        cdef int cell_dims = len(self.cell_levels)
        if not (1 <= dims <= kMaxDims and cell_dims <= kMaxDims) or not all(
            2 <= level <= MAX_SYMBOLS for level in self.levels + self.cell_levels
        ):
            raise ValueError(
                f"levels must be 1 to {kMaxDims} numbers from 2 to {MAX_SYMBOLS}, got {self.levels + self.cell_levels}"
            )
        self.net.dims = dims
        for d in range(dims):
            self.net.levels[d] = self.levels[d]
        self.net.states = sum(self.levels)
        self.net.widest = max(self.levels)
        self.net.shares = shares
        self.net.cell_dims = cell_dims
        for d in range(cell_dims):
            self.net.cell_levels[d] = self.cell_levels[d]
        self.net.cell_inputs = 9 * cell_dims + shares if cell_dims else 0
        exp, w1, b1, w2, b2, w3, b3 = (
            np.ascontiguousarray(array) if isinstance(array, _ndarray) else array
            for array in (exp, w1, b1, w2, b2, w3, b3)
        )
        cdef int width1 = _array("b1", b1, _int32, 1).shape[0], width2 = _array("b2", b2, _int32, 1).shape[0]
        if not (1 <= width1 <= MAX_WIDTH and 1 <= width2 <= MAX_WIDTH):
            raise ValueError(f"a network of {width1}x{width2} hidden units, 1 to {MAX_WIDTH} are allowed in each layer")
        self.net.width1, self.net.width2 = width1, width2
        cdef int context = self.net.context_inputs()
        cdef int phases = kCell * kCell if cell_dims else 0
        inputs = self.net.cell_inputs + phases + context
        for name, array, dtype, shape in (
            ("w1", w1, _int16, (inputs, width1)), ("w2", w2, _int16, (width1, width2)),
            ("w3", w3, _int16, (width2, self.net.states)), ("b3", b3, _int32, (self.net.states,)),
            ("exp", exp, _int32, (kExpSize,)),
        ):
            if _array(name, array, dtype, len(shape)).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
        if not 0 < exp[0] <= 1 << 16 or exp.min() < 0 or exp.max() > 1 << 16:
            raise ValueError("exp must start above 0, never be negative, and be at most 65536")
        for name, weights, bias, largest in (
            ("1", w1, b1, kInputScale), ("2", w2, b2, kHiddenMax), ("3", w3, b3, kHiddenMax)
        ):
            sums = np.abs(weights.astype(np.int64)).sum(0) * largest + np.abs(bias.astype(np.int64))
            if sums.max() >= 1 << 31:
                raise ValueError(f"sums of w{name} and b{name} may reach {sums.max()}, they must fit in 32 bits")
        first, last = self.net.cell_inputs, self.net.cell_inputs + phases
        turned = [w1[:first].T, w1[first:last], w1[last:].T, w2.T, w3.T]
        # Arrays of the model may be read-only views; these are its own, in the order in which they are read.
        self.arrays = tuple(np.array(array, order="C") for array in [*turned, b1, b2, b3, exp])
        cdef int16_t[:, ::1] small
        cdef int32_t[::1] wide
        if cell_dims:
            small = self.arrays[0]
            self.net.cells = &small[0, 0]
            small = self.arrays[1]
            self.net.phases = &small[0, 0]
        small = self.arrays[2]
        self.net.context = &small[0, 0]
        small = self.arrays[3]
        self.net.w2 = &small[0, 0]
        small = self.arrays[4]
        self.net.w3 = &small[0, 0]
        wide = self.arrays[5]
        self.net.b1 = &wide[0]
        wide = self.arrays[6]
        self.net.b2 = &wide[0]
        wide = self.arrays[7]
        self.net.b3 = &wide[0]
        wide = self.arrays[8]
        self.net.exp = &wide[0]

    def encode(self, RangeEncoder encoder not None, codes, positions, grid, cell_codes=None, int share=0):
        """Append the codes of the tokens of a grid.

        Args:
            encoder: What takes them.
            codes: int32 ``(n, D)``.
            positions: Raster indices of the tokens, int32 ``(n,)``, strictly increasing.
            grid: Rows and columns.
            cell_codes: Codes of the cells of a grid of patches, int32 ``(rows / 4 * columns / 4, Dc)``.
            share: Class of the share of kept patches.

        Raises:
            ValueError: An argument does not fit, or a code is outside its levels.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef const int32_t[::1] places = self._places(positions, height, width)
        cdef size_t count = places.shape[0], at = 0
        cdef const int32_t[:, ::1] values = self._codes(codes, count)
        cdef const int32_t* around = self._around(cell_codes)
        cdef CoderStatus status
        encoder._open()
        if count == 0:
            return
        with nogil:
            status = c_encode_tokens(
                encoder.core, self.net, &values[0, 0], &places[0], count, height, width, around, share, at
            )
        if status != CoderStatus.ok:
            encoder.finished = True
        self._check_codes(status, codes, at)

    def decode(self, RangeDecoder decoder not None, positions, grid, cell_codes=None, int share=0):
        """The next codes, int32 ``(n, D)``, given what :meth:`encode` was given.

        Raises:
            ValueError: An argument does not fit, or the data is cut off or was not written like this.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef const int32_t[::1] places = self._places(positions, height, width)
        cdef size_t count = places.shape[0], at = 0
        out = np.empty((count, self.net.dims), _int32)
        cdef int32_t[:, ::1] values = out
        cdef const int32_t* around = self._around(cell_codes)
        cdef CoderStatus status
        if count == 0:
            return out
        with nogil:
            status = c_decode_tokens(
                decoder.core, self.net, &values[0, 0], &places[0], count, height, width, around, share, at
            )
        _raise(status, f"token {at} of {count}")
        return out

    def frequencies(self, codes, positions, grid, cell_codes=None, int share=0):
        """Frequencies of all values of each token's code, uint16 ``(n, sum(levels))``, given the codes of those before it.

        They are what :meth:`encode`, with the same arguments, would code with; each dimension's sum to 4096.

        Raises:
            ValueError: An argument does not fit, or a code is outside its levels.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef const int32_t[::1] places = self._places(positions, height, width)
        cdef size_t count = places.shape[0], at = 0
        cdef const int32_t[:, ::1] values = self._codes(codes, count)
        cdef const int32_t* around = self._around(cell_codes)
        cdef CoderStatus status
        out = np.empty((count, self.net.states), _uint16)
        cdef uint16_t[:, ::1] freqs = out
        if count == 0:
            return out
        with nogil:
            status = c_token_frequencies(
                self.net, &values[0, 0], &places[0], count, height, width, around, share, &freqs[0, 0], at
            )
        self._check_codes(status, codes, at)
        return out

    def encode_map(self, RangeEncoder encoder not None, keep, cell_codes, int share):
        """Append a map of zeros and ones, uint8 ``(rows, columns)``, of a model with levels (2,) over a grid of patches.

        The decoder must be told the number of ones.

        Raises:
            ValueError: An argument does not fit.
        """
        cdef const uint8_t[:, ::1] places = _array("keep", keep, _uint8, 2)
        cdef int height, width
        height, width = self._grid(keep.shape, cell_codes, share)
        cdef size_t count = _ones("keep", places)
        self._check_map()
        cdef const int32_t* around = self._around(cell_codes)
        encoder._open()
        with nogil:
            c_encode_keep(encoder.core, self.net, &places[0, 0], count, height, width, around, share)

    def decode_map(self, RangeDecoder decoder not None, count, grid, cell_codes, int share):
        """The next map, uint8 ``(rows, columns)`` with ``count`` ones.

        Raises:
            ValueError: An argument does not fit, or the data is cut off or was not written like this.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef size_t n = _count("count", count, <int64_t>height * width)
        self._check_map()
        cdef const int32_t* around = self._around(cell_codes)
        out = np.empty((height, width), _uint8)
        cdef uint8_t[:, ::1] places = out
        cdef CoderStatus status
        with nogil:
            status = c_decode_keep(decoder.core, self.net, &places[0, 0], n, height, width, around, share)
        _raise(status, "the map of kept patches")
        return out

    cdef int _check_map(self) except -1:
        if self.levels != (2,) or not self.net.cell_inputs:
            raise ValueError(f"a map is of a model of patches with levels (2,), this one has {self.levels}")
        return 0

    cdef tuple _grid(self, object grid, object cell_codes, int share):
        height, width = grid
        if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
            raise ValueError(f"a grid must have 1 to {MAX_SIDE} rows and columns, got {height} x {width}")
        if (cell_codes is not None) != bool(self.net.cell_inputs):
            raise ValueError("cell_codes belong to a grid of patches, and only to one")
        if cell_codes is not None:
            _array("cell_codes", cell_codes, _int32, 2)
            shape = (height // kCell * (width // kCell), self.net.cell_dims)
            if height % kCell or width % kCell or cell_codes.shape != shape:
                raise ValueError(f"cell_codes of {height} x {width} patches must be {shape}, got {cell_codes.shape}")
            if (cell_codes < 0).any() or (cell_codes >= np.asarray(self.cell_levels)).any():
                raise ValueError(f"cell_codes must be from 0 to below their levels {self.cell_levels}")
            if not 0 <= share < self.net.shares:
                raise ValueError(f"share must be from 0 to below {self.net.shares}, got {share}")
        return height, width

    cdef const int32_t* _around(self, object cell_codes) except? NULL:
        """Where the checked ``cell_codes`` lie; NULL for a grid that has none."""
        cdef const int32_t[:, ::1] cells
        if not self.net.cell_inputs:
            return NULL
        cells = cell_codes
        return &cells[0, 0]

    cdef object _codes(self, object codes, size_t count):
        _array("codes", codes, _int32, 2)
        if codes.shape != (count, self.net.dims):
            raise ValueError(f"codes must have shape ({count}, {self.net.dims}), got {codes.shape}")
        return codes

    cdef int _check_codes(self, CoderStatus status, object codes, size_t at) except -1:
        if status != CoderStatus.ok:
            raise ValueError(f"codes must be below their levels {self.levels}, got {codes[at].tolist()} in token {at}")
        return 0

    cdef object _places(self, object positions, int height, int width):
        cdef const int32_t[::1] places = _array("positions", positions, _int32, 1)
        cdef int64_t last = -1, limit = <int64_t>height * width
        cdef Py_ssize_t i
        for i in range(places.shape[0]):
            if places[i] <= last or places[i] >= limit:
                raise ValueError(f"positions must increase strictly from 0 to below {limit}, got {places[i]} at {i}")
            last = places[i]
        return positions


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


cdef object _array(str name, object value, object dtype, int dims):
    if not isinstance(value, _ndarray):
        raise TypeError(f"{name} must be a numpy array of {dtype}, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name} must have dtype {dtype}, got {value.dtype}")
    if value.ndim != dims:
        raise ValueError(f"{name} must have {dims} dimension{'s' if dims > 1 else ''}, got shape {value.shape}")
    flags = value.flags
    if not (flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")
    return value


cdef object _frequencies(object freqs, size_t count):
    _array("freqs", freqs, _uint16, 2)
    if freqs.shape[0] != count or not 1 <= freqs.shape[1] <= MAX_SYMBOLS:
        raise ValueError(
            f"freqs must have one row of 1 to {MAX_SYMBOLS} frequencies per symbol ({count}), got shape {freqs.shape}"
        )
    return freqs


cdef size_t _count(str name, object value, int64_t largest) except? 0:
    if not 0 <= value <= largest:
        raise ValueError(f"{name} must be from 0 to {largest}, got {value}")
    return value


cdef object _places(object places, size_t height, size_t width):
    _array("places", places, _uint8, 2)
    if places.shape[0] != height or places.shape[1] != width:
        raise ValueError(f"places must have the shape of the bitmap, {height} x {width}, got shape {places.shape}")
    return places


cdef size_t _ones(str name, const uint8_t[:, ::1] cells) except? 0:
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


cdef int _raise(CoderStatus status, str where) except -1:
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
