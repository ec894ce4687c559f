"""The protocol of all readers, and the base of readers that load whole clips."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tatok_edge.datasets.tokens import FrameTokens, RaggedTokens
from tatok_edge.errors import FormatError


class FrameReader(Protocol):
    """Reads the frames of one format."""

    def frame(self, number: int) -> FrameTokens: ...

    def clip(self, number: int) -> RaggedTokens: ...


class ClipReader:
    """Base of readers that load whole clips; the last clip stays in memory.

    Args:
        clips: First frame, and frame after the last, of each clip.
    """

    def __init__(self, clips: list[tuple[int, int]]) -> None:
        self._starts = np.asarray([start for start, _ in clips], np.int64)
        self.spans = clips
        self._last: tuple[int, RaggedTokens] | None = None

    def load(self, number: int) -> RaggedTokens:
        """Reads a clip."""
        raise NotImplementedError

    def clip(self, number: int) -> RaggedTokens:
        """One clip."""
        if self._last is None or self._last[0] != number:
            tokens = self.load(number)
            start, stop = self.spans[number]
            if len(tokens) != stop - start:
                raise FormatError(f"clip {number} has {len(tokens)} frames, the metadata say {stop - start}")
            self._last = number, tokens
        return self._last[1]

    def frame(self, number: int) -> FrameTokens:
        """One frame."""
        clip = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.clip(clip)[number - self.spans[clip][0]]
