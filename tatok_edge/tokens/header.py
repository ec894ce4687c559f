"""The fields and properties that token frames and deltas share."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, PictureSize
from tatok_edge.tokens.checks import (
    MAX_DEPTH,
    Int32Array,
    check_ids,
    check_positions,
    check_tag,
    integer,
    set_field,
)


class FrameHeader(PictureSize):
    """Base of the dataclasses for frames and deltas: size, number, time and model of a frame, and its patch tokens."""

    __slots__ = ()

    ids: Int32Array
    positions: Int32Array
    global_ids: Int32Array
    model: bytes
    index: int
    timestamp_us: int
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def n_tokens(self) -> int:
        """Number of patch tokens."""
        return int(self.ids.size)

    def depth_map(self) -> Int32Array:
        """Depth map: tokens of each patch, int32 ``(rows, columns)`` of the patch grid; a new array.

        Of a delta: the tokens that it brings. Refined patches hold more.
        """
        return np.bincount(self.positions, minlength=self.n_patches).astype(np.int32).reshape(self.grid)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        return all(
            np.array_equal(mine, theirs) if isinstance(mine, np.ndarray) else mine == theirs
            for mine, theirs in ((getattr(self, name), getattr(other, name)) for name in self.__dataclass_fields__)
        )

    __hash__ = None  # type: ignore[assignment]  # the arrays can be written to

    def check_header(self) -> None:
        """Check size, number, time and model."""
        for name in ("width", "height"):
            value = integer(name, getattr(self, name))
            set_field(self, name, value)
            if not MIN_SIDE <= value <= MAX_SIDE:
                raise InputError(f"{name} must be from {MIN_SIDE} to {MAX_SIDE} pixels, got {value}")
        set_field(self, "index", integer("index", self.index))
        if not 0 <= self.index < 1 << 63:
            raise InputError(f"index must be from 0 to 2^63 - 1, got {self.index}")
        set_field(self, "timestamp_us", integer("timestamp_us", self.timestamp_us))
        if not -(1 << 63) <= self.timestamp_us < 1 << 63:
            raise InputError(f"timestamp_us must fit a signed 64-bit number, got {self.timestamp_us}")
        check_tag(self.model)

    def check_tokens(self) -> None:
        """Check ids and positions; the header must have been checked."""
        check_ids("ids", self.ids)
        check_ids("global_ids", self.global_ids)
        check_positions("positions", self.positions, self.n_patches, MAX_DEPTH)
        if self.positions.size != self.ids.size:
            raise InputError(f"positions must be as many as ids, got {self.positions.size} for {self.ids.size} ids")
