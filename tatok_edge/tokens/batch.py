"""The tokens of several images, end to end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.tokens.checks import Int32Array, check_ids, check_tag, check_vector, integer, set_field
from tatok_edge.tokens.frame import TokenFrame


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TokenBatch:
    """The tokens of several images, end to end: no padding, sizes may differ.

    Frame ``b`` owns ``ids[cu_seqlens[b]:cu_seqlens[b + 1]]`` and ``global_ids[cu_globals[b]:cu_globals[b + 1]]``,
    as variable-length attention kernels take them. ``batch[b]`` is a :class:`TokenFrame`, ``batch[i:j]`` a batch of
    some frames (of at least one), ``for frame in batch`` gives all.

    Raises:
        InputError: An array has a wrong type, shape, order or range; the message names it and the allowed values.

    Example:
        >>> batch = tokenizer.encode_batch(images, budget=tatok_edge.TokenBudget(keep=1.0))
        >>> batch.ids[batch.cu_seqlens[1] : batch.cu_seqlens[2]]  # the tokens of batch[1]
        >>> pictures = tokenizer.decode(batch[2:])
    """

    ids: Int32Array
    """Token ids of all frames, int32 ``(T,)``."""
    positions: Int32Array
    """Patch of each token, int32 ``(T,)``: raster index in the patch grid of its own frame. A patch comes as often as
    it has tokens."""
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
        sizes = tuple((integer("width", width), integer("height", height)) for width, height in self.sizes)
        count = len(sizes)
        set_field(self, "sizes", sizes)
        set_field(self, "indices", tuple(self.indices) or tuple(range(count)))
        set_field(self, "timestamps_us", tuple(self.timestamps_us) or (0,) * count)
        for name in ("indices", "timestamps_us"):
            if len(getattr(self, name)) != count:
                raise InputError(f"{name} must be one per image ({count}), got {len(getattr(self, name))}")
        check_tag(self.model)
        check_ids("ids", self.ids)
        check_ids("global_ids", self.global_ids)
        check_vector("positions", self.positions)
        _check_offsets("cu_seqlens", self.cu_seqlens, count, self.ids.size)
        _check_offsets("cu_globals", self.cu_globals, count, self.global_ids.size)
        if self.positions.size != self.ids.size:
            raise InputError(f"positions must be as many as ids, got {self.positions.size} for {self.ids.size} ids")
        self.frames()  # checks each frame: counts of globals, order and range of positions, sizes

    @classmethod
    def from_frames(cls, frames: Iterable[TokenFrame]) -> TokenBatch:
        """Join frames of one model.

        Raises:
            InputError: There is no frame, or the frames come from different models.
        """
        frames = list(frames)
        if not frames:
            raise InputError("frames must hold at least one TokenFrame, got none")
        for number, frame in enumerate(frames):
            if not isinstance(frame, TokenFrame):
                raise InputError(f"frames[{number}] must be a TokenFrame, got {type(frame).__name__}")
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

    @property
    def depths(self) -> Int32Array:
        """Depth of each token in the stack of its patch, int32 ``(T,)``, from 1; a new array."""
        return np.concatenate([frame.depths for frame in self.frames()])

    def frames(self) -> list[TokenFrame]:
        """One :class:`TokenFrame` per image; their arrays are views of this batch."""
        return [self._frame(b) for b in range(len(self))]

    def _frame(self, b: int) -> TokenFrame:
        tokens = slice(int(self.cu_seqlens[b]), int(self.cu_seqlens[b + 1]))
        cells = slice(int(self.cu_globals[b]), int(self.cu_globals[b + 1]))
        try:
            return TokenFrame(
                ids=self.ids[tokens],
                positions=self.positions[tokens],
                global_ids=self.global_ids[cells],
                width=self.sizes[b][0],
                height=self.sizes[b][1],
                model=self.model,
                index=self.indices[b],
                timestamp_us=self.timestamps_us[b],
            )
        except InputError as error:
            raise InputError(f"frame {b} of the batch: {error}") from None

    @overload
    def __getitem__(self, number: int) -> TokenFrame: ...
    @overload
    def __getitem__(self, number: slice) -> TokenBatch: ...
    def __getitem__(self, number: int | slice) -> TokenFrame | TokenBatch:
        numbers = range(len(self))
        if isinstance(number, slice):
            return TokenBatch.from_frames([self._frame(b) for b in numbers[number]])
        try:
            return self._frame(numbers[number])
        except IndexError:
            raise IndexError(f"frame {number} is not in the batch: it holds {len(self)} frames, from 0") from None

    def __iter__(self) -> Iterator[TokenFrame]:
        return (self._frame(b) for b in range(len(self)))

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


def _check_offsets(name: str, offsets: Any, count: int, total: int) -> None:
    check_vector(name, offsets)
    if offsets.size != count + 1:
        raise InputError(f"{name} must have {count + 1} entries for {count} images, got {offsets.size}")
    if offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
        raise InputError(f"{name} must rise from 0 to {total}, got {offsets[0]} to {offsets[-1]}")


def _offsets(counts: Sequence[int]) -> Int32Array:
    total = sum(counts)
    if total > np.iinfo(np.int32).max:
        raise InputError(f"a batch holds at most 2^31 - 1 tokens, got {total}")
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
