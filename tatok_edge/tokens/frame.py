"""What the tokenizer makes of images: frames and ragged batches of tokens, and the budget of how many to keep."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError

PATCH = 8
"""Side of a patch in pixels: one patch token each."""
CELL = 32
"""Side of the image area that one global token describes, in pixels."""
MAX_VECTOR = 62
"""Largest part of a motion vector, in half pixels."""
MIN_SIDE = 32
"""Smallest width and height of an image, in pixels."""
MAX_SIDE = 16384
"""Largest width and height of an image, in pixels."""
MAX_PASSES = 64
"""Most passes that a budget may spend on refining."""
TAG_BYTES = 8
"""Length of the tag that names the model of a frame."""

Int32Array = NDArray[np.int32]


def cell_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of global tokens of an image of ``width`` x ``height`` pixels."""
    return -(-height // CELL), -(-width // CELL)


def patch_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of ``width`` x ``height`` pixels, once padded to whole cells."""
    rows, columns = cell_grid(width, height)
    return rows * (CELL // PATCH), columns * (CELL // PATCH)


def touched_cells(update_map: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells contain an updated patch: bool ``(rows, columns)`` of the patch grid to that of the cell grid."""
    rows, columns = update_map.shape
    side = CELL // PATCH
    touched = update_map.reshape(rows // side, side, columns // side, side).any(axis=(1, 3))
    return cast("NDArray[np.bool_]", touched)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """How many patch tokens to keep. All limits that are given apply together; the smallest decides.

    Raises:
        InputError: A value is outside its range; the message names it and the range.
    """

    tau: float = 1.0
    """Share of the total score to keep, above 0 and up to 1."""
    keep: float | None = None
    """Largest share of the patches to keep, 0 to 1."""
    max_tokens: int | None = None
    """Largest number of patch tokens."""
    max_bits: int | None = None
    """Largest size of the packed frame in bits, header included."""
    min_tokens: int = 0
    """Smallest number of patch tokens; gives way to the maxima."""
    floor_bits: float = 0.0
    """A token that scores fewer bits than this is dropped."""
    score: Literal["residual", "information", "entropy"] = "residual"
    """What ranks the patches: how far their pixels are from what the global tokens say (best picture for the tokens,
    and fast: only kept patches are encoded), the information of their code in bits (every patch is encoded first), or
    the conditional entropy of the code given the global tokens, in bits, which does not look at the patch itself."""
    refine: int = 0
    """Passes of the decoder and its derivative that choose the tokens again and correct them, 0 to 64: a better picture
    from as many tokens, for more time. From 3 passes on, other patches may be kept; not in streams."""

    def __post_init__(self) -> None:
        _set(self, "tau", _real("tau", self.tau))
        if not 0.0 < self.tau <= 1.0:
            raise InputError(f"tau must be above 0 and at most 1, got {self.tau:g}")
        if self.keep is not None:
            _set(self, "keep", _real("keep", self.keep))
            if not 0.0 <= self.keep <= 1.0:
                raise InputError(f"keep must be from 0 to 1 (a share of the patches), got {self.keep:g}")
        for name, smallest in (("max_tokens", 0), ("max_bits", 1), ("min_tokens", 0)):
            value = getattr(self, name)
            if value is not None:
                _set(self, name, _integer(name, value))
                if value < smallest:
                    raise InputError(f"{name} must be at least {smallest}, got {value}")
        _set(self, "floor_bits", _real("floor_bits", self.floor_bits))
        if not 0.0 <= self.floor_bits < float("inf"):
            raise InputError(f"floor_bits must be a finite number of bits from 0, got {self.floor_bits:g}")
        _set(self, "refine", _integer("refine", self.refine))
        if not 0 <= self.refine <= MAX_PASSES:
            raise InputError(f"refine must be from 0 to {MAX_PASSES} passes, got {self.refine}")
        if self.score not in ("residual", "information", "entropy"):
            raise InputError(f"score must be 'residual', 'information' or 'entropy', got {self.score!r}")
        if self.floor_bits > 0 and self.score == "residual":
            raise InputError("floor_bits needs a score in bits: give score 'information' or 'entropy' with it")

    def limits(self, n_patches: int) -> tuple[int, int]:
        """Smallest and largest number of tokens for a frame of ``n_patches`` patches.

        ``max_bits`` is not in it: how many tokens fit depends on their code lengths.
        """
        largest = n_patches
        if self.keep is not None:
            largest = min(largest, round(self.keep * n_patches))
        if self.max_tokens is not None:
            largest = min(largest, self.max_tokens)
        return min(self.min_tokens, largest), largest


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TokenFrame:
    """The tokens of one image. The arrays are held as they are given, without a copy.

    Raises:
        InputError: An array has a wrong type, shape, order or range; the message names it and what is allowed.
    """

    ids: Int32Array
    """Token ids, int32 ``(T,)``: mixed radix over the FSQ levels, dimension 0 least significant."""
    positions: Int32Array
    """Raster index of each token in the patch grid, int32 ``(T,)``, strictly increasing."""
    global_ids: Int32Array
    """Ids of the global tokens, int32 ``(rows * columns of cells,)``, raster order."""
    width: int
    """Width of the image in pixels, before padding."""
    height: int
    """Height of the image in pixels, before padding."""
    model: bytes
    """Tag of the model bundle that made the tokens (8 bytes)."""
    index: int = 0
    """Number of the frame in its sequence, 0 to 2^63 - 1."""
    timestamp_us: int = 0
    """Time of the frame in microseconds; a signed 64-bit number."""

    def __post_init__(self) -> None:
        _check_header(self)
        _check_ids("ids", self.ids)
        _check_ids("global_ids", self.global_ids)
        _check_positions("positions", self.positions, self.n_patches)
        if self.positions.size != self.ids.size:
            raise InputError(f"positions must be as many as ids, got {self.positions.size} for {self.ids.size} ids")
        if self.global_ids.size != self.n_globals:
            rows, columns = self.cells
            raise InputError(
                f"global_ids must be {rows} x {columns} = {self.n_globals} for a {self.width}x{self.height} image, "
                f"got {self.global_ids.size}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return patch_grid(self.width, self.height)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the cell grid: one global token each."""
        return cell_grid(self.width, self.height)

    @property
    def n_patches(self) -> int:
        """Number of patches, kept or not."""
        rows, columns = self.grid
        return rows * columns

    @property
    def n_tokens(self) -> int:
        """Number of patch tokens that were kept."""
        return int(self.ids.size)

    @property
    def n_globals(self) -> int:
        """Number of global tokens."""
        rows, columns = self.cells
        return rows * columns

    def keep_map(self) -> NDArray[np.bool_]:
        """Which patches were kept, bool ``(rows, columns)`` of the patch grid; a new array."""
        return _map_of(self.positions, self.grid)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenFrame):
            return NotImplemented
        return (
            (self.width, self.height, self.model, self.index, self.timestamp_us)
            == (other.width, other.height, other.model, other.index, other.timestamp_us)
            and np.array_equal(self.ids, other.ids)
            and np.array_equal(self.positions, other.positions)
            and np.array_equal(self.global_ids, other.global_ids)
        )

    __hash__ = None  # type: ignore[assignment]  # the arrays can be written to

    def __repr__(self) -> str:
        return (
            f"TokenFrame({self.width}x{self.height}, {self.n_tokens} of {self.n_patches} patch tokens, "
            f"{self.n_globals} global tokens, model={self.model.hex()}, index={self.index}, "
            f"timestamp_us={self.timestamp_us})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DeltaFrame:
    """What one image of a stream changes in the tokens of the image before. The arrays are held without a copy.

    An updated patch has the token that is given for it, or none; all other patches and global tokens stay.

    Raises:
        InputError: An array has a wrong type, shape, order or range; the message names it and what is allowed.
    """

    updated: Int32Array
    """Raster index of each updated patch in the patch grid, int32 ``(U,)``, strictly increasing; may be empty."""
    positions: Int32Array
    """Raster index of each token in the patch grid, int32 ``(T,)``, strictly increasing, each in ``updated``."""
    ids: Int32Array
    """Token ids, int32 ``(T,)``: mixed radix over the FSQ levels, dimension 0 least significant."""
    cells: Int32Array
    """Raster index of each cell whose global token is given, int32 ``(C,)``, strictly increasing; empty where no patch
    is updated."""
    global_ids: Int32Array
    """Ids of the global tokens of ``cells``, int32 ``(C,)``."""
    window: tuple[int, int, int, int]
    """First row, first column, rows and columns of the cells whose context the updated patches are read with; holds
    each cell that contains one, and is ``(0, 0, 0, 0)`` where there is none."""
    width: int
    """Width of the image in pixels, before padding."""
    height: int
    """Height of the image in pixels, before padding."""
    model: bytes
    """Tag of the model bundle that made the tokens (8 bytes)."""
    index: int
    """Number of the frame in its sequence, 1 to 2^63 - 1."""
    reference: int
    """Number of the frame that is updated, 0 to ``index - 1``."""
    follows: int
    """Number of the state that is updated, as :func:`tatok_edge.format.packet.body_crc` gives it, 0 to 2^32 - 1."""
    timestamp_us: int = 0
    """Time of the frame in microseconds; a signed 64-bit number."""
    turns: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    """Raster index of each cell that moves otherwise than the cell before it (the first one: that moves), int32
    ``(M,)``, strictly increasing."""
    vectors: Int32Array = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """Where the content of these cells, and of those after them up to the next one, was in the picture before:
    (y, x) in half pixels, int32 ``(M, 2)``, at most 62 either way."""

    def __post_init__(self) -> None:
        _check_header(self)
        _set(self, "reference", _integer("reference", self.reference))
        if not 0 <= self.reference < self.index:
            raise InputError(f"reference must be from 0 to below index ({self.index}), got {self.reference}")
        _set(self, "follows", _integer("follows", self.follows))
        if not 0 <= self.follows < 1 << 32:
            raise InputError(f"follows must be from 0 to 2^32 - 1, got {self.follows}")
        _check_ids("ids", self.ids)
        _check_ids("global_ids", self.global_ids)
        rows, columns = self.cell_grid
        _check_positions("updated", self.updated, self.n_patches)
        _check_positions("positions", self.positions, self.n_patches)
        _check_positions("cells", self.cells, rows * columns)
        if self.positions.size != self.ids.size:
            raise InputError(f"positions must be as many as ids, got {self.positions.size} for {self.ids.size} ids")
        if self.cells.size != self.global_ids.size:
            raise InputError(
                f"cells must be as many as global_ids, got {self.cells.size} for {self.global_ids.size} global_ids"
            )
        update_map = self.update_map()
        inside = update_map.ravel()[self.positions]
        if not inside.all():
            wrong = self.positions[np.argmin(inside)]
            raise InputError(f"positions must be among updated, got {wrong}, which is not updated")
        if self.cells.size and not self.updated.size:
            raise InputError(f"cells must be empty where no patch is updated, got {self.cells.size}")
        _set(self, "window", _window(self.window, touched_cells(update_map)))
        _check_positions("turns", self.turns, rows * columns)
        _check_vectors(self.vectors, self.turns.size)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return patch_grid(self.width, self.height)

    @property
    def cell_grid(self) -> tuple[int, int]:
        """Rows and columns of the cell grid: one global token each."""
        return cell_grid(self.width, self.height)

    @property
    def n_patches(self) -> int:
        """Number of patches of the image, updated or not."""
        rows, columns = self.grid
        return rows * columns

    @property
    def n_updated(self) -> int:
        """Number of updated patches, with a token or without."""
        return int(self.updated.size)

    @property
    def n_tokens(self) -> int:
        """Number of patch tokens."""
        return int(self.ids.size)

    @property
    def n_updated_cells(self) -> int:
        """Number of global tokens that change."""
        return int(self.cells.size)

    @property
    def n_vectors(self) -> int:
        """Number of motion vectors."""
        return int(self.turns.size)

    def motion(self) -> Int32Array:
        """Vector of every cell, (y, x) in half pixels, int32 ``(rows, columns, 2)`` of the cell grid; a new array."""
        rows, columns = self.cell_grid
        lengths = np.diff(self.turns, append=np.int32(rows * columns))
        dense = np.zeros((rows * columns, 2), np.int32)
        dense[rows * columns - int(lengths.sum()) :] = np.repeat(self.vectors, lengths, axis=0)
        return dense.reshape(rows, columns, 2)

    def update_map(self) -> NDArray[np.bool_]:
        """Which patches are updated, bool ``(rows, columns)`` of the patch grid; a new array."""
        return _map_of(self.updated, self.grid)

    def keep_map(self) -> NDArray[np.bool_]:
        """Which patches get a token, bool ``(rows, columns)`` of the patch grid; a new array."""
        return _map_of(self.positions, self.grid)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DeltaFrame):
            return NotImplemented
        return (
            (self.width, self.height, self.model, self.index, self.reference, self.follows, self.timestamp_us)
            == (other.width, other.height, other.model, other.index, other.reference, other.follows, other.timestamp_us)
            and self.window == other.window
            and np.array_equal(self.updated, other.updated)
            and np.array_equal(self.positions, other.positions)
            and np.array_equal(self.ids, other.ids)
            and np.array_equal(self.cells, other.cells)
            and np.array_equal(self.global_ids, other.global_ids)
            and np.array_equal(self.turns, other.turns)
            and np.array_equal(self.vectors, other.vectors)
        )

    __hash__ = None  # type: ignore[assignment]  # the arrays can be written to

    def __repr__(self) -> str:
        rows, columns = self.cell_grid
        return (
            f"DeltaFrame({self.width}x{self.height}, {self.n_updated} of {self.n_patches} patches updated, "
            f"{self.n_tokens} patch tokens, {self.n_updated_cells} of {rows * columns} global tokens, "
            f"{self.n_vectors} vectors, "
            f"window={self.window}, model={self.model.hex()}, index={self.index}, reference={self.reference}, "
            f"follows={self.follows:08x}, timestamp_us={self.timestamp_us})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TokenBatch:
    """The tokens of several images, end to end: no padding, sizes may differ.

    Frame ``b`` owns ``ids[cu_seqlens[b]:cu_seqlens[b + 1]]`` and ``global_ids[cu_globals[b]:cu_globals[b + 1]]``,
    as variable-length attention kernels take them.

    Raises:
        InputError: An array has a wrong type, shape, order or range; the message names it and what is allowed.
    """

    ids: Int32Array
    """Token ids of all frames, int32 ``(T,)``."""
    positions: Int32Array
    """Raster index of each token in the patch grid of its own frame, int32 ``(T,)``."""
    cu_seqlens: Int32Array
    """Where the tokens of each frame begin, int32 ``(B + 1,)``; the last entry is T."""
    global_ids: Int32Array
    """Ids of the global tokens of all frames, int32 ``(G,)``."""
    cu_globals: Int32Array
    """Where the global tokens of each frame begin, int32 ``(B + 1,)``; the last entry is G."""
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each image in pixels."""
    model: bytes
    """Tag of the model bundle that made the tokens (8 bytes)."""
    indices: tuple[int, ...] = ()
    """Number of each frame in its sequence; 0 to B - 1 where none are given."""
    timestamps_us: tuple[int, ...] = ()
    """Time of each frame in microseconds; 0 where none are given."""

    def __post_init__(self) -> None:
        sizes = tuple((_integer("width", width), _integer("height", height)) for width, height in self.sizes)
        count = len(sizes)
        _set(self, "sizes", sizes)
        _set(self, "indices", tuple(self.indices) or tuple(range(count)))
        _set(self, "timestamps_us", tuple(self.timestamps_us) or (0,) * count)
        for name in ("indices", "timestamps_us"):
            if len(getattr(self, name)) != count:
                raise InputError(f"{name} must be one per image ({count}), got {len(getattr(self, name))}")
        _check_tag(self.model)
        _check_ids("ids", self.ids)
        _check_ids("global_ids", self.global_ids)
        _check_vector("positions", self.positions)
        _check_offsets("cu_seqlens", self.cu_seqlens, count, self.ids.size)
        _check_offsets("cu_globals", self.cu_globals, count, self.global_ids.size)
        if self.positions.size != self.ids.size:
            raise InputError(f"positions must be as many as ids, got {self.positions.size} for {self.ids.size} ids")
        self.frames()  # checks each frame: counts of globals, order and range of positions, sizes

    @classmethod
    def from_frames(cls, frames: Sequence[TokenFrame]) -> TokenBatch:
        """Join frames of one model.

        Raises:
            InputError: There is no frame, or the frames come from different models.
        """
        if not frames:
            raise InputError("frames must hold at least one TokenFrame, got none")
        models = {frame.model for frame in frames}
        if len(models) > 1:
            tags = ", ".join(sorted(tag.hex() for tag in models))
            raise InputError(f"frames must come from one model, got {len(models)} ({tags})")
        return cls(
            ids=np.concatenate([frame.ids for frame in frames]),
            positions=np.concatenate([frame.positions for frame in frames]),
            cu_seqlens=_offsets([frame.n_tokens for frame in frames]),
            global_ids=np.concatenate([frame.global_ids for frame in frames]),
            cu_globals=_offsets([frame.n_globals for frame in frames]),
            sizes=tuple((frame.width, frame.height) for frame in frames),
            model=frames[0].model,
            indices=tuple(frame.index for frame in frames),
            timestamps_us=tuple(frame.timestamp_us for frame in frames),
        )

    def frames(self) -> list[TokenFrame]:
        """One :class:`TokenFrame` per image; their arrays are views of this batch."""
        frames = []
        for b, (width, height) in enumerate(self.sizes):
            tokens = slice(int(self.cu_seqlens[b]), int(self.cu_seqlens[b + 1]))
            cells = slice(int(self.cu_globals[b]), int(self.cu_globals[b + 1]))
            try:
                frame = TokenFrame(
                    ids=self.ids[tokens],
                    positions=self.positions[tokens],
                    global_ids=self.global_ids[cells],
                    width=width,
                    height=height,
                    model=self.model,
                    index=self.indices[b],
                    timestamp_us=self.timestamps_us[b],
                )
            except InputError as error:
                raise InputError(f"frame {b} of the batch: {error}") from None
            frames.append(frame)
        return frames

    def __len__(self) -> int:
        return len(self.sizes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenBatch):
            return NotImplemented
        return len(self) == len(other) and self.model == other.model and self.frames() == other.frames()

    __hash__ = None  # type: ignore[assignment]  # the arrays can be written to

    def __repr__(self) -> str:
        return (
            f"TokenBatch({len(self)} frames, {self.ids.size} patch tokens, {self.global_ids.size} global tokens, "
            f"model={self.model.hex()})"
        )


def _window(window: Any, touched: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """A window of cells as integers, checked against the cells that it must hold."""
    if not isinstance(window, (tuple, list)) or len(window) != 4:
        raise InputError(f"window must be four integers (first row, first column, rows, columns), got {window!r:.80}")
    top, left, rows, columns = (_integer("window", value) for value in window)
    if not touched.any():
        if (top, left, rows, columns) != (0, 0, 0, 0):
            raise InputError(f"window must be (0, 0, 0, 0) where no patch is updated, got {tuple(window)}")
        return 0, 0, 0, 0
    if (
        min(top, left) < 0
        or min(rows, columns) < 1
        or top + rows > touched.shape[0]
        or left + columns > touched.shape[1]
    ):
        raise InputError(
            f"window must lie in the {touched.shape[0]} x {touched.shape[1]} cells of this image, got {tuple(window)}"
        )
    if np.count_nonzero(touched[top : top + rows, left : left + columns]) < np.count_nonzero(touched):
        raise InputError(f"window must hold all cells that contain an updated patch, got {tuple(window)}")
    return top, left, rows, columns


def _check_vectors(vectors: Any, count: int) -> None:
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.int32 or vectors.shape != (count, 2):
        got = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise InputError(f"vectors must be an int32 numpy array ({count}, 2), one for each of turns, got {got}")
    if not count:
        return
    if vectors.min() < -MAX_VECTOR or vectors.max() > MAX_VECTOR:
        raise InputError(f"vectors must be from {-MAX_VECTOR} to {MAX_VECTOR} half pixels")
    if not vectors[0].any() or (vectors[1:] == vectors[:-1]).all(1).any():
        raise InputError("vectors must differ from the one before, the first one from (0, 0)")


def _map_of(positions: Int32Array, grid: tuple[int, int]) -> NDArray[np.bool_]:
    chosen = np.zeros(grid, dtype=np.bool_)
    chosen.ravel()[positions] = True
    return chosen


def _set(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)


def _real(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise InputError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, got {type(value).__name__}") from None


def _integer(name: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer, got {value!r}") from None


def _check_header(frame: TokenFrame | DeltaFrame) -> None:
    """What all frames have: size, number, time and model."""
    for name in ("width", "height"):
        value = _integer(name, getattr(frame, name))
        _set(frame, name, value)
        if not MIN_SIDE <= value <= MAX_SIDE:
            raise InputError(f"{name} must be from {MIN_SIDE} to {MAX_SIDE} pixels, got {value}")
    _set(frame, "index", _integer("index", frame.index))
    if not 0 <= frame.index < 1 << 63:
        raise InputError(f"index must be from 0 to 2^63 - 1, got {frame.index}")
    _set(frame, "timestamp_us", _integer("timestamp_us", frame.timestamp_us))
    if not -(1 << 63) <= frame.timestamp_us < 1 << 63:
        raise InputError(f"timestamp_us must fit a signed 64-bit number, got {frame.timestamp_us}")
    _check_tag(frame.model)


def _check_tag(model: object) -> None:
    if not isinstance(model, bytes) or len(model) != TAG_BYTES:
        got = f"{len(model)} bytes" if isinstance(model, bytes) else type(model).__name__
        raise InputError(f"model must be the {TAG_BYTES} bytes of the bundle's tag, got {got}")


def _check_vector(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be a numpy array of int32, got {type(array).__name__}")
    if array.dtype != np.int32:
        raise InputError(f"{name} must be int32, got {array.dtype}; convert it with .astype(numpy.int32)")
    if array.ndim != 1:
        raise InputError(f"{name} must have one dimension, got shape {array.shape}")
    if not array.flags.c_contiguous:
        raise InputError(f"{name} must be contiguous; copy it with numpy.ascontiguousarray")


def _check_ids(name: str, array: Any) -> None:
    _check_vector(name, array)
    if array.size and int(array.min()) < 0:
        raise InputError(f"{name} must not be negative, got {int(array.min())}")


def _check_positions(name: str, positions: Any, limit: int) -> None:
    _check_vector(name, positions)
    if not positions.size:
        return
    steps = positions[1:] <= positions[:-1]
    if steps.any():
        at = int(np.argmax(steps))
        raise InputError(f"{name} must be strictly increasing, got {positions[at]} then {positions[at + 1]}")
    if positions[0] < 0 or positions[-1] >= limit:
        wrong = positions[0] if positions[0] < 0 else positions[-1]
        raise InputError(f"{name} must be from 0 to {limit - 1} for this image, got {wrong}")


def _check_offsets(name: str, offsets: Any, count: int, total: int) -> None:
    _check_vector(name, offsets)
    if offsets.size != count + 1:
        raise InputError(f"{name} must have {count + 1} entries for {count} images, got {offsets.size}")
    if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
        raise InputError(f"{name} must rise from 0 to {total}, got {offsets[0]} to {offsets[-1]}")


def _offsets(counts: Sequence[int]) -> Int32Array:
    total = sum(counts)
    if total > np.iinfo(np.int32).max:
        raise InputError(f"a batch holds at most 2^31 - 1 tokens, got {total}")
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
