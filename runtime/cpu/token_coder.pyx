"""Entropy coding of the codes of tokens, and of depth maps, by a network in integers.

``docs/format.md`` specifies the arithmetic. Errors are as those of ``range_coder.pyx``.
"""

import numpy as np

from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector

from tatok_edge.runtime.cpu.arguments cimport check, kMaxDims, INT16, INT32, UINT8, UINT16
from tatok_edge.runtime.cpu.geometry cimport kCellSide
from tatok_edge.runtime.cpu.range_coder cimport (
    CoderStatus, CoreDecoder, CoreEncoder, MAX_SYMBOLS, RangeDecoder, RangeEncoder, check_count, check_status,
)


cdef extern from "token_coder.hpp" namespace "tatok" nogil:
    enum:
        kBefore
        kExpSize
        kHiddenMax
        kInputScale
        kLanes
        kMaxDepth

    cdef cppclass TokenNet:
        int dims, states, width1, width2, width3, shallower, cell_dims, cell_inputs, shares
        cbool reads_held
        int levels[kMaxDims]
        int starts[kMaxDims]
        int cell_levels[kMaxDims]
        const int16_t* cells
        const int32_t* places
        const int16_t* ahead
        const int16_t* held
        const int16_t* before
        const int16_t* after
        const int16_t* w2
        const int16_t* w3
        const int32_t* b1
        const int32_t* b2
        const int32_t* b3
        const int32_t* exp

    cdef cppclass Stacks:
        const int32_t* offsets
        const int32_t* codes

    cdef cppclass TokenPlane:
        int height, width, depth, share
        Stacks stacks, held
        const uint8_t* given
        const int32_t* cell_codes

    size_t c_check_codes "tatok::check_codes"(const TokenNet& net, const int32_t* codes, size_t count)
    void c_encode_plane "tatok::encode_plane"(CoreEncoder& coder, const TokenNet& net, const TokenPlane& plane) except +
    void c_plane_frequencies "tatok::plane_frequencies"(const TokenNet& net, const TokenPlane& plane, uint16_t* out) except +
    CoderStatus c_decode_plane "tatok::decode_plane"(
        CoreDecoder& coder, const TokenNet& net, const TokenPlane& plane, int32_t* codes, size_t& at) except +
    void c_encode_depths "tatok::encode_depths"(
        CoreEncoder& coder, const TokenNet& net, const TokenPlane& plane, const int32_t* depths, int64_t count) except +
    CoderStatus c_decode_depths "tatok::decode_depths"(
        CoreDecoder& coder, const TokenNet& net, const TokenPlane& plane, int32_t* depths, int64_t count) except +


cdef int MAX_WIDTH = 256
cdef int MAX_GRID_SIDE = 1 << 15
cdef int64_t MAX_TOKENS = 1 << 30

CONTEXT_TOKENS = kBefore
"""Neighbours of a token that come before it, whose codes its network reads; as many come after it."""
INPUT_SCALE = kInputScale
"""The input of a network that stands for 1."""
EXP_SIZE = kExpSize
"""Length of the table of exponentials."""


def input_sizes(int dims, int cell_dims=0, int shares=0, int shallower=0, bint held=False):
    """Number of inputs of each part of the first layer of a :class:`TokenModel`, in their order.

    The parts are: cells around, classes of the share, place in the cell, depth, tokens ahead in the stack, the token
    that was held, tokens before, places after.
    """
    return (
        9 * cell_dims, shares, kCellSide * kCellSide if cell_dims else 0, shallower, shallower * dims,
        dims + 1 if held else 0, kBefore * (dims + 1), kBefore,
    )


cdef class TokenModel:
    """Frequencies of the codes of the tokens of a grid, each given the codes before it; a network in integers.

    The tokens of a grid are stacks: a map says how many each place has, and the codes of a stack follow one another.
    A call codes all tokens of one depth. The codes of lower depths are known.

    Args:
        levels: Values of each of the ``D`` code dimensions.
        exp: int32 ``(178,)``: frequencies fall with it, from 65536 to 0.
        w1: int16 ``(I, H1)``. :func:`input_sizes` gives its inputs.
        b1: int32 ``(H1,)``; so ``w2`` ``(H1, H2)``, ``b2`` ``(H2,)``, ``w3`` ``(H2, sum(levels))``, ``b3``.
        cell_levels: Values of each code dimension of the cells, for a grid of patches, which is coded in their context.
        shares: Number of classes of the tokens per patch, for a grid of patches.
        shallower: Most tokens of the same stack that are read; such a model codes depths from 2 on.
        held: Whether the model reads the token that the place had before at the same depth.

    Raises:
        ValueError: An array does not fit, or weights are so large that a sum may leave 32 bits.
    """

    cdef TokenNet net
    cdef tuple arrays
    cdef readonly tuple levels
    cdef readonly tuple cell_levels

    def __init__(self, levels, exp, w1, b1, w2, b2, w3, b3, cell_levels=(), int shares=0, int shallower=0,
                 bint held=False):
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
        if not 0 <= shallower < kMaxDepth:
            raise ValueError(f"shallower must be from 0 to below {kMaxDepth}, got {shallower}")
        self.net.dims = dims
        for d in range(dims):
            self.net.levels[d] = self.levels[d]
            self.net.starts[d] = sum(self.levels[:d])
        self.net.states = sum(self.levels)
        self.net.shares = shares
        self.net.shallower = shallower
        self.net.reads_held = held
        self.net.cell_dims = cell_dims
        for d in range(cell_dims):
            self.net.cell_levels[d] = self.cell_levels[d]
        self.net.cell_inputs = 9 * cell_dims + shares if cell_dims else 0
        cdef int width1 = check(b1, "b1", INT32, ("H1",)).shape[0], width2 = check(b2, "b2", INT32, ("H2",)).shape[0]
        if not (1 <= width1 <= MAX_WIDTH and 1 <= width2 <= MAX_WIDTH):
            raise ValueError(f"a network of {width1}x{width2} hidden units, 1 to {MAX_WIDTH} are allowed in each layer")
        sizes = input_sizes(dims, cell_dims, shares, shallower, held)
        _check_weights(exp, (w1, w2, w3), (b1, b2, b3), (sum(sizes), width1, width2, self.net.states))
        self.net.width1, self.net.width2, self.net.width3 = _padded(width1), _padded(width2), _padded(self.net.states)
        self._keep_arrays(exp, w1, b1, w2, b2, w3, b3, sizes)

    cdef int _keep_arrays(self, exp, w1, b1, w2, b2, w3, b3, sizes) except -1:
        """Copy the weights in the order in which they are read: pairs of inputs, padded widths."""
        cdef int dims = self.net.dims, shallower = self.net.shallower
        ends = np.cumsum(sizes)
        cells, shares, phases, depths, ahead, held, before, after = np.split(w1, ends[:len(ends) - 1])
        stages = np.zeros((1, w1.shape[1]), INT32) if not shallower else depths.astype(INT32)
        places = (stages[:, None] + (phases if len(phases) else np.zeros((1, w1.shape[1]), INT32))) * kInputScale
        small = [
            _pairs(np.concatenate([cells, shares]), 1),
            _pairs(ahead, shallower),
            _pairs(held, 1),
            _pairs(before, kBefore),
            _pairs(after, 1),
            _pairs(_grown(w2, 0), 1),
            _pairs(_grown(w3, 0), 1),
        ]
        wide = [_grown(places, -1), _grown(b1, -1), _grown(b2, -1), _grown(b3, -1), exp]
        self.arrays = tuple(np.array(array, order="C") for array in [*small, *wide])
        cdef const int16_t* pointers[7]
        cdef const int32_t* longs[5]
        cdef int16_t[::1] weights
        cdef int32_t[::1] sums
        cdef int i
        for i in range(7):
            weights = self.arrays[i].reshape(-1)
            pointers[i] = &weights[0] if weights.shape[0] else NULL
        for i in range(5):
            sums = self.arrays[7 + i].reshape(-1)
            longs[i] = &sums[0]
        self.net.cells, self.net.ahead, self.net.held = pointers[0], pointers[1], pointers[2]
        self.net.before, self.net.after, self.net.w2, self.net.w3 = pointers[3], pointers[4], pointers[5], pointers[6]
        self.net.places, self.net.b1, self.net.b2, self.net.b3 = longs[0], longs[1], longs[2], longs[3]
        self.net.exp = longs[4]
        return 0

    def encode(self, RangeEncoder encoder not None, codes, depths, int depth=1, cell_codes=None, int share=0,
               given=None, held=None):
        """Append the codes of all tokens of one depth.

        Args:
            encoder: Encoder that takes the codes.
            codes: Codes of all tokens of the grid, int32 ``(n, D)``, stack by stack in raster order.
            depths: Tokens of each place, int32 ``(rows, columns)``.
            depth: The depth to code, from 1.
            cell_codes: Codes of the cells of a grid of patches, int32 ``(rows / 4 * columns / 4, Dc)``.
            share: Class of the tokens per patch.
            given: 1 where both sides know the code of a token already, uint8 ``(n,)``. These are not coded.
            held: Codes and depths of the tokens that the places had before.

        Raises:
            ValueError: An argument does not fit, or a code is outside its levels.
        """
        cdef Request request = Request(self, codes, depths, depth, cell_codes, share, given, held)
        encoder.check_open()
        with nogil:
            c_encode_plane(encoder.core, self.net, request.plane)

    def decode(self, RangeDecoder decoder not None, codes, depths, int depth=1, cell_codes=None, int share=0,
               given=None, held=None):
        """Read the codes that :meth:`encode` wrote, into ``codes``; the other arguments are the same.

        Raises:
            ValueError: An argument does not fit, or the data is cut off or was not written like this.
        """
        cdef Request request = Request(self, codes, depths, depth, cell_codes, share, given, held)
        cdef int32_t[:, ::1] values = codes
        cdef int32_t* out = &values[0, 0] if values.shape[0] else NULL
        cdef CoderStatus status
        cdef size_t at = 0
        with nogil:
            status = c_decode_plane(decoder.core, self.net, request.plane, out, at)
        check_status(status, f"token {at} of {len(codes)}")

    def frequencies(self, out, codes, depths, int depth=1, cell_codes=None, int share=0, given=None, held=None):
        """Write the frequencies of all values of each token of one depth, given the codes of the tokens before it.

        :meth:`encode` codes with them, given the same arguments; those of each dimension sum to 4096.

        Args:
            out: uint16 ``(n, sum(levels))``; the rows of tokens of other depths stay as they are.

        Raises:
            ValueError: An argument does not fit, or a code is outside its levels.
        """
        cdef Request request = Request(self, codes, depths, depth, cell_codes, share, given, held)
        check(out, "out", UINT16, (len(codes), self.net.states))
        cdef uint16_t[:, ::1] freqs = out
        if not len(codes):
            return
        with nogil:
            c_plane_frequencies(self.net, request.plane, &freqs[0, 0])

    def encode_depths(self, RangeEncoder encoder not None, depths, cell_codes, int share):
        """Append a depth map, int32 ``(rows, columns)``, over a grid of patches.

        The model must have one dimension, with a level for each depth from 0 on. The decoder must be told the number
        of tokens.

        Raises:
            ValueError: An argument does not fit, or a depth is outside the levels.
        """
        cdef const int32_t[:, ::1] places = check(depths, "depths", INT32, ("rows", "columns"))
        cdef Request request = Request(self, None, depths, 1, cell_codes, share, None, None)
        self._check_map()
        most = self.net.levels[0] - 1
        if depths.size and (depths.min() < 0 or depths.max() > most):
            raise ValueError(f"depths must be from 0 to {most}, got {depths.min()} to {depths.max()}")
        cdef int64_t count = depths.sum()
        encoder.check_open()
        with nogil:
            c_encode_depths(encoder.core, self.net, request.plane, &places[0, 0], count)

    def decode_depths(self, RangeDecoder decoder not None, count, grid, cell_codes, int share):
        """The next depth map, int32 ``(rows, columns)`` with ``count`` tokens.

        Raises:
            ValueError: An argument does not fit, or the data is cut off or was not written like this.
        """
        height, width = grid
        _check_grid(height, width)
        self._check_map()
        cdef int64_t n = check_count("count", count, <int64_t>height * width * (self.net.levels[0] - 1))
        out = np.zeros((height, width), INT32)
        cdef int32_t[:, ::1] places = out
        cdef Request request = Request(self, None, out, 1, cell_codes, share, None, None)
        cdef CoderStatus status
        with nogil:
            status = c_decode_depths(decoder.core, self.net, request.plane, &places[0, 0], n)
        check_status(status, "the depth map")
        return out

    cdef int _check_map(self) except -1:
        if self.net.dims != 1 or not self.net.cell_inputs:
            raise ValueError(f"a depth map is of a model of patches with one dimension, this one has {self.levels}")
        return 0


cdef class Request:
    """The checked arguments of a call; keeps what the core reads."""

    cdef TokenPlane plane
    cdef vector[int32_t] offsets, held_offsets
    cdef tuple arrays

    def __init__(self, TokenModel model, codes, depths, int depth, cell_codes, int share, given, held):
        """``codes`` None: a depth map."""
        self.arrays = (codes, depths, cell_codes, given, held)
        height, width = check(depths, "depths", INT32, ("rows", "columns")).shape
        _check_grid(height, width)
        if not 1 <= depth <= kMaxDepth or (model.net.shallower and not 2 <= depth <= model.net.shallower + 1):
            last = model.net.shallower + 1 if model.net.shallower else kMaxDepth
            raise ValueError(f"depth must be from {2 if model.net.shallower else 1} to {last} here, got {depth}")
        self.plane.height, self.plane.width, self.plane.depth, self.plane.share = height, width, depth, share
        self._set_cells(model, cell_codes)
        if codes is None:
            return
        self.plane.stacks = self._stacks(model, "codes", codes, depths, self.offsets)
        cdef const uint8_t[::1] flags
        if given is not None:
            flags = check(given, "given", UINT8, (len(codes),))
            self.plane.given = &flags[0] if flags.shape[0] else NULL
        if held is not None:
            held_codes, held_depths = held
            check(held_depths, "held depths", INT32, (height, width))
            self.plane.held = self._stacks(model, "held codes", held_codes, held_depths, self.held_offsets)

    cdef Stacks _stacks(self, TokenModel model, str name, object codes, object depths, vector[int32_t]& offsets):
        cdef const int32_t[:, ::1] places = check(depths, "depths", INT32, ("rows", "columns"))
        cdef const int32_t* counts = &places[0, 0]
        cdef size_t patches = places.shape[0] * places.shape[1], i, wrong
        cdef int64_t total = 0
        cdef int32_t lowest = 0, highest = 0
        offsets.resize(patches + 1)
        with nogil:
            for i in range(patches):
                offsets[i] = <int32_t>total
                lowest = min(lowest, counts[i])
                highest = max(highest, counts[i])
                total += counts[i]
        if lowest < 0 or highest > kMaxDepth or total > MAX_TOKENS:
            raise ValueError(
                f"depths must be from 0 to {kMaxDepth}, and {MAX_TOKENS} in all, got {lowest} to {highest}, {total} in all"
            )
        offsets[patches] = <int32_t>total
        cdef const int32_t[:, ::1] values = check(codes, name, INT32, (total, model.net.dims))
        cdef Stacks stacks
        stacks.offsets = offsets.data()
        stacks.codes = NULL
        if total:
            stacks.codes = &values[0, 0]
            wrong = c_check_codes(model.net, stacks.codes, total)
            if wrong < <size_t>total:
                raise ValueError(
                    f"codes must be below their levels {model.levels}, got {codes[wrong].tolist()} in token {wrong}"
                )
        return stacks

    cdef int _set_cells(self, TokenModel model, object cell_codes) except -1:
        cdef const int32_t[:, ::1] cells
        cdef int height = self.plane.height, width = self.plane.width
        if (cell_codes is not None) != bool(model.net.cell_inputs):
            raise ValueError("cell_codes belong to a grid of patches, and only to one")
        if cell_codes is None:
            return 0
        cells = check(cell_codes, "cell_codes", INT32, ("cells", "Dc"))
        shape = (height // kCellSide * (width // kCellSide), model.net.cell_dims)
        if height % kCellSide or width % kCellSide or cell_codes.shape != shape:
            raise ValueError(f"cell_codes of {height} x {width} patches must be {shape}, got {cell_codes.shape}")
        if (cell_codes < 0).any() or (cell_codes >= np.asarray(model.cell_levels)).any():
            raise ValueError(f"cell_codes must be from 0 to below their levels {model.cell_levels}")
        if not 0 <= self.plane.share < model.net.shares:
            raise ValueError(f"share must be from 0 to below {model.net.shares}, got {self.plane.share}")
        self.plane.cell_codes = &cells[0, 0]
        return 0


cdef int _check_grid(object height, object width) except -1:
    if not (1 <= height <= MAX_GRID_SIDE and 1 <= width <= MAX_GRID_SIDE):
        raise ValueError(f"a grid must have 1 to {MAX_GRID_SIDE} rows and columns, got {height} x {width}")
    return 0


cdef int _padded(int width):
    return (width + kLanes - 1) // kLanes * kLanes


cdef object _grown(object array, int axis):
    """The array with zeros behind, so that an axis is as long as a padded layer."""
    axis = axis % array.ndim
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, _padded(array.shape[axis]) - array.shape[axis])
    return np.pad(array, widths)


cdef object _pairs(object weights, int parts):
    """Rows of weights ``(parts * n, outputs)`` as pairs of rows, int16 ``(parts, ceil(n / 2), padded outputs, 2)``."""
    grown = _grown(weights, 1)
    outputs = grown.shape[1]
    grouped = grown.reshape(max(parts, 1), -1, outputs)
    grouped = np.pad(grouped, ((0, 0), (0, grouped.shape[1] % 2), (0, 0)))
    return grouped.reshape(len(grouped), -1, 2, outputs).swapaxes(2, 3).astype(INT16)


cdef int _check_weights(object exp, tuple weights, tuple biases, tuple widths) except -1:
    check(exp, "exp", INT32, (kExpSize,))
    if exp[0] != 1 << 16 or exp.min() < 0 or exp.max() > 1 << 16:
        raise ValueError("exp must start with 65536, never be negative, and never be above 65536")
    for number, matrix, bias, largest in zip((1, 2, 3), weights, biases, (kInputScale, kHiddenMax, kHiddenMax)):
        check(matrix, f"w{number}", INT16, widths[number - 1:number + 1])
        check(bias, f"b{number}", INT32, widths[number:number + 1])
        sums = np.abs(matrix.astype(np.int64)).sum(0) * largest + np.abs(bias.astype(np.int64))
        if sums.max() >= 1 << 31:
            raise ValueError(f"sums of w{number} and b{number} may reach {sums.max()}, they must fit in 32 bits")
    return 0
