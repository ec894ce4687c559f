"""Entropy coding of the codes of tokens, and of kept maps, by a network in integers.

``docs/format.md`` specifies the arithmetic. Errors are as those of ``range_coder.pyx``.
"""

import numpy as np

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t

from tatok_edge.runtime.cpu.arguments cimport check, check_increasing, kMaxDims, INT16, INT32, UINT8, UINT16
from tatok_edge.runtime.cpu.geometry cimport kCellSide
from tatok_edge.runtime.cpu.range_coder cimport (
    CoderStatus, CoreDecoder, CoreEncoder, MAX_SYMBOLS, RangeDecoder, RangeEncoder, check_count, check_status,
    count_ones,
)


cdef extern from "token_coder.hpp" namespace "tatok" nogil:
    enum:
        kBefore
        kExpSize
        kHiddenMax
        kInputScale

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


cdef int MAX_WIDTH = 256
cdef int MAX_GRID_SIDE = 1 << 15

CONTEXT_TOKENS = kBefore
"""Neighbours of a token that come before it, whose codes its network reads; as many come after it."""
INPUT_SCALE = kInputScale
"""The input of a network that stands for 1."""
EXP_SIZE = kExpSize
"""Length of the table of exponentials."""


cdef class TokenModel:
    """Frequencies of the codes of the tokens of a grid, each given the codes before it; a network in integers.

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
            np.ascontiguousarray(array) if isinstance(array, np.ndarray) else array
            for array in (exp, w1, b1, w2, b2, w3, b3)
        )
        cdef int width1 = check(b1, "b1", INT32, ("H1",)).shape[0], width2 = check(b2, "b2", INT32, ("H2",)).shape[0]
        if not (1 <= width1 <= MAX_WIDTH and 1 <= width2 <= MAX_WIDTH):
            raise ValueError(f"a network of {width1}x{width2} hidden units, 1 to {MAX_WIDTH} are allowed in each layer")
        self.net.width1, self.net.width2 = width1, width2
        cdef int context = self.net.context_inputs()
        cdef int phases = kCellSide * kCellSide if cell_dims else 0
        inputs = self.net.cell_inputs + phases + context
        for name, array, dtype, shape in (
            ("w1", w1, INT16, (inputs, width1)), ("w2", w2, INT16, (width1, width2)),
            ("w3", w3, INT16, (width2, self.net.states)), ("b3", b3, INT32, (self.net.states,)),
            ("exp", exp, INT32, (kExpSize,)),
        ):
            check(array, name, dtype, shape)
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
            encoder: Encoder that takes the codes.
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
        cdef const int32_t[:, ::1] values = check(codes, "codes", INT32, (count, self.net.dims))
        cdef const int32_t* around = self._around(cell_codes)
        cdef CoderStatus status
        encoder.check_open()
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
        """The next codes, int32 ``(n, D)``, given the arguments of :meth:`encode`.

        Raises:
            ValueError: An argument does not fit, or the data is cut off or was not written like this.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef const int32_t[::1] places = self._places(positions, height, width)
        cdef size_t count = places.shape[0], at = 0
        out = np.empty((count, self.net.dims), INT32)
        cdef int32_t[:, ::1] values = out
        cdef const int32_t* around = self._around(cell_codes)
        cdef CoderStatus status
        if count == 0:
            return out
        with nogil:
            status = c_decode_tokens(
                decoder.core, self.net, &values[0, 0], &places[0], count, height, width, around, share, at
            )
        check_status(status, f"token {at} of {count}")
        return out

    def frequencies(self, codes, positions, grid, cell_codes=None, int share=0):
        """Frequencies of all values of each code, uint16 ``(n, sum(levels))``, given the codes of the tokens before it.

        :meth:`encode` codes with them, given the same arguments; those of each dimension sum to 4096.

        Raises:
            ValueError: An argument does not fit, or a code is outside its levels.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef const int32_t[::1] places = self._places(positions, height, width)
        cdef size_t count = places.shape[0], at = 0
        cdef const int32_t[:, ::1] values = check(codes, "codes", INT32, (count, self.net.dims))
        cdef const int32_t* around = self._around(cell_codes)
        cdef CoderStatus status
        out = np.empty((count, self.net.states), UINT16)
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
        """Append a map of zeros and ones, uint8 ``(rows, columns)``, over a grid of patches.

        The model must have the levels (2,). The decoder must be told the number of ones.

        Raises:
            ValueError: An argument does not fit.
        """
        cdef const uint8_t[:, ::1] places = check(keep, "keep", UINT8, ("rows", "columns"))
        cdef int height, width
        height, width = self._grid(keep.shape, cell_codes, share)
        cdef size_t count = count_ones("keep", places)
        self._check_map()
        cdef const int32_t* around = self._around(cell_codes)
        encoder.check_open()
        with nogil:
            c_encode_keep(encoder.core, self.net, &places[0, 0], count, height, width, around, share)

    def decode_map(self, RangeDecoder decoder not None, count, grid, cell_codes, int share):
        """The next map, uint8 ``(rows, columns)`` with ``count`` ones.

        Raises:
            ValueError: An argument does not fit, or the data is cut off or was not written like this.
        """
        cdef int height, width
        height, width = self._grid(grid, cell_codes, share)
        cdef size_t n = check_count("count", count, <int64_t>height * width)
        self._check_map()
        cdef const int32_t* around = self._around(cell_codes)
        out = np.empty((height, width), UINT8)
        cdef uint8_t[:, ::1] places = out
        cdef CoderStatus status
        with nogil:
            status = c_decode_keep(decoder.core, self.net, &places[0, 0], n, height, width, around, share)
        check_status(status, "the map of kept patches")
        return out

    cdef int _check_map(self) except -1:
        if self.levels != (2,) or not self.net.cell_inputs:
            raise ValueError(f"a map is of a model of patches with levels (2,), this one has {self.levels}")
        return 0

    cdef tuple _grid(self, object grid, object cell_codes, int share):
        height, width = grid
        if not (1 <= height <= MAX_GRID_SIDE and 1 <= width <= MAX_GRID_SIDE):
            raise ValueError(f"a grid must have 1 to {MAX_GRID_SIDE} rows and columns, got {height} x {width}")
        if (cell_codes is not None) != bool(self.net.cell_inputs):
            raise ValueError("cell_codes belong to a grid of patches, and only to one")
        if cell_codes is not None:
            check(cell_codes, "cell_codes", INT32, ("cells", "Dc"))
            shape = (height // kCellSide * (width // kCellSide), self.net.cell_dims)
            if height % kCellSide or width % kCellSide or cell_codes.shape != shape:
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

    cdef int _check_codes(self, CoderStatus status, object codes, size_t at) except -1:
        if status != CoderStatus.ok:
            raise ValueError(f"codes must be below their levels {self.levels}, got {codes[at].tolist()} in token {at}")
        return 0

    cdef object _places(self, object positions, int height, int width):
        cdef const int32_t[::1] places = check(positions, "positions", INT32, ("n",))
        check_increasing(places, <int64_t>height * width)
        return positions
