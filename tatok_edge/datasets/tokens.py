"""The tokens of one frame and of many frames, in the integer types of the data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.tokens.frame import TokenFrame

FRAME_DTYPE = np.dtype(
    [("timestamp_us", "<i8"), ("index", "<i8"), ("clip", "<u4"), ("width", "<u2"), ("height", "<u2")]
)
"""Facts about a frame beside its tokens, 24 bytes: time in microseconds, number in its source, number of its clip in
the data set, size in pixels."""

UIntArray = NDArray[np.unsignedinteger[Any]]
DEPTH_DTYPE = np.dtype("u1")
"""Type of depths."""


def narrow(limit: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Type for numbers from 0 to ``limit - 1``: uint16 if they fit, else uint32 (little endian)."""
    return np.dtype("<u2") if limit <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, slots=True, eq=False)
class FrameTokens:
    """The tokens of one frame; the arrays are views of the data set, read-only."""

    ids: UIntArray
    """Token ids ``(T,)``, uint16 (uint32 for vocabularies above 65,536)."""
    positions: UIntArray
    """Patch of each token ``(T,)``: raster index in the patch grid, never falling; uint16 (uint32 for very large
    frames). A patch comes as often as it has tokens."""
    depths: UIntArray
    """Depth of each token in the stack of its patch ``(T,)``, from 1; uint8."""
    global_ids: UIntArray
    """Ids of the global tokens ``(G,)``, raster order of the cells."""
    width: int
    """Width of the frame in pixels."""
    height: int
    """Height of the frame in pixels."""
    index: int
    """Number of the frame in its source, from 0."""
    timestamp_us: int
    """Time of the frame in microseconds from the start of its source."""
    clip: int
    """Number of its clip in the data set."""

    def token_frame(self, model: bytes) -> TokenFrame:
        """The frame for :meth:`tatok_edge.Tokenizer.decode`.

        Args:
            model: Tag of the model, :attr:`TokenDataset.model_tag`.

        Raises:
            InputError: The tokens do not fit the frame: the data set is damaged.
        """
        frame = TokenFrame(
            ids=self.ids.astype(np.int32),
            positions=self.positions.astype(np.int32),
            global_ids=self.global_ids.astype(np.int32),
            width=self.width,
            height=self.height,
            model=model,
            index=self.index,
            timestamp_us=self.timestamp_us,
        )
        if not np.array_equal(frame.depths, self.depths):
            raise InputError(
                f"frame {self.index} of clip {self.clip}: depths do not fit positions; the data set is damaged"
            )
        return frame


@dataclass(frozen=True, slots=True, eq=False)
class RaggedTokens:
    """The tokens of several frames end to end, without padding.

    Frame ``b`` owns ``ids[cu_seqlens[b]:cu_seqlens[b + 1]]`` and ``global_ids[cu_globals[b]:cu_globals[b + 1]]``.
    """

    ids: UIntArray
    """Token ids of all frames ``(T,)``."""
    positions: UIntArray
    """Patch of each token ``(T,)``: raster index in the patch grid of its frame."""
    depths: UIntArray
    """Depth of each token in the stack of its patch ``(T,)``, from 1; uint8."""
    cu_seqlens: NDArray[np.int32]
    """Offset of the tokens of each frame, int32 ``(B + 1,)``; the last entry is T."""
    global_ids: UIntArray
    """Ids of the global tokens of all frames ``(G,)``."""
    cu_globals: NDArray[np.int32]
    """Offset of the global tokens of each frame, int32 ``(B + 1,)``; the last entry is G."""
    frames: NDArray[np.void]
    """Times, numbers and sizes ``(B,)``, of :data:`FRAME_DTYPE`."""

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, number: int) -> FrameTokens:
        if not -len(self) <= number < len(self):
            raise IndexError(f"frame {number} of {len(self)}")
        number %= len(self)
        tokens = slice(int(self.cu_seqlens[number]), int(self.cu_seqlens[number + 1]))
        cells = slice(int(self.cu_globals[number]), int(self.cu_globals[number + 1]))
        arrays = self.ids[tokens], self.positions[tokens], self.depths[tokens], self.global_ids[cells]
        return frame_tokens(*arrays, self.frames[number])

    @classmethod
    def join(cls, frames: list[FrameTokens]) -> RaggedTokens:
        """Frames end to end; a copy.

        Raises:
            InputError: There is no frame, or more than 2^31 - 1 tokens.
        """
        if not frames:
            raise InputError("a batch takes at least one frame, got none")
        table = np.array([(f.timestamp_us, f.index, f.clip, f.width, f.height) for f in frames], FRAME_DTYPE)
        return cls(
            ids=np.concatenate([frame.ids for frame in frames]),
            positions=np.concatenate([frame.positions for frame in frames]),
            depths=np.concatenate([frame.depths for frame in frames]),
            cu_seqlens=offsets32(np.cumsum([0, *(frame.ids.size for frame in frames)])),
            global_ids=np.concatenate([frame.global_ids for frame in frames]),
            cu_globals=offsets32(np.cumsum([0, *(frame.global_ids.size for frame in frames)])),
            frames=table,
        )


def frame_tokens(
    ids: UIntArray, positions: UIntArray, depths: UIntArray, global_ids: UIntArray, row: np.void
) -> FrameTokens:
    """One frame from its arrays and its row of :data:`FRAME_DTYPE`."""
    timestamp_us, index, clip, width, height = row.item()
    return FrameTokens(ids, positions, depths, global_ids, width, height, index, timestamp_us, clip)


def offsets32(offsets: NDArray[np.int64]) -> NDArray[np.int32]:
    """Offsets as int32, the type of attention kernels.

    Raises:
        InputError: An offset is larger than 2^31 - 1.
    """
    if int(offsets[-1]) > np.iinfo(np.int32).max:
        raise InputError(f"a batch holds at most 2^31 - 1 tokens, got {int(offsets[-1])}; take fewer frames")
    return offsets.astype(np.int32)


def check_offsets(offsets: NDArray[np.integer[Any]], total: int, where: str) -> None:
    """Checks offsets from a file: they must rise from 0 to ``total``.

    Raises:
        FormatError: They do not.
    """
    if not offsets.size or offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(f"{where}: the offsets do not rise from 0 to {total}; the data set is damaged")


def ragged_from(arrays: dict[str, NDArray[Any]], number: int, where: str) -> RaggedTokens:
    """A clip from its arrays, as they were read from a file.

    Raises:
        FormatError: They do not fit each other.
    """
    frames = arrays["timestamps_us"].size
    if (
        arrays["indices"].shape != (frames,)
        or arrays["sizes"].shape != (frames, 2)
        or any(arrays[name].shape != arrays["ids"].shape for name in ("positions", "depths"))
        or any(arrays[name].shape != (frames + 1,) for name in ("cu_seqlens", "cu_globals"))
    ):
        raise FormatError(f"{where}: the arrays of clip {number} do not fit each other; the data set is damaged")
    check_offsets(arrays["cu_seqlens"], arrays["ids"].size, f"{where}, clip {number}")
    check_offsets(arrays["cu_globals"], arrays["globals"].size, f"{where}, clip {number}")
    table = np.zeros(frames, FRAME_DTYPE)
    table["timestamp_us"], table["index"], table["clip"] = arrays["timestamps_us"], arrays["indices"], number
    table["width"], table["height"] = arrays["sizes"].T
    return RaggedTokens(
        ids=arrays["ids"],
        positions=arrays["positions"],
        depths=arrays["depths"],
        cu_seqlens=arrays["cu_seqlens"],
        global_ids=arrays["globals"],
        cu_globals=arrays["cu_globals"],
        frames=table,
    )
