"""What every source of frames has in common: the frame, the open source and the clock of its time stamps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType

from tatok_edge.geometry import Image

CLOCK_RESTART_US = 1_000_000
"""A time stamp that lies this far before the last one belongs to a clock that began anew."""
USUAL_FPS = 30.0
"""Frame rate that is assumed for a source that states none."""
MAX_FPS = 1000
"""Highest frame rate of a source."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One frame as a source delivers it."""

    image: Image
    """RGB picture, uint8 (height, width, 3)."""
    index: int
    """Number of the frame in its source, from 0; pictures that cannot be read and dropped frames count too."""
    timestamp_us: int
    """Time of the frame in microseconds from the first one, strictly rising; 0 for pictures without a frame rate."""
    restarted: bool = False
    """Whether what came before says little about this frame: the source was lost and came back, or has a new size."""
    arrived: float | None = None
    """When a live source took it, in seconds of ``time.monotonic``; None for frames that wait to be read."""


class Source(ABC):
    """An open source of frames: a context manager to iterate over once.

    Args:
        name: What to call it in messages and files; holds no password.
        first: The first frame's picture.
        fps: Frames per second, if known.
        frames: Number of frames, if known.
        live: Whether frames come at their own pace, taken or not.
    """

    def __init__(self, name: str, first: Image, *, fps: float | None, frames: int | None, live: bool = False) -> None:
        self.name = name
        self.fps = fps
        self.frames = frames
        self.live = live
        self.height, self.width = first.shape[:2]
        self.problem: str | None = None
        """Why the source ended early or left something out, in one line; known once the iteration is over."""
        self.dropped = 0
        """Frames that a live source threw away because a newer one was there."""
        self.reconnects = 0
        """How often a live source was lost and came back."""
        # A plain flag: stop() may run in a signal handler, which must not wait for a lock that its own thread holds.
        self._stopped = False

    def __iter__(self) -> Iterator[SourceFrame]:
        size: tuple[int, int] | None = None
        for frame in self._read():
            if self._stopped:
                return
            height, width = frame.image.shape[:2]
            if size not in (None, (height, width)):
                frame = replace(frame, restarted=True)
            self.height, self.width = size = height, width
            yield frame

    @abstractmethod
    def _read(self) -> Iterator[SourceFrame]:
        """Delivers the frames in order; sets :attr:`problem` where some are missing."""

    def stop(self) -> None:
        """Ends the iteration before the next frame; may be called from a signal handler or another thread."""
        self._stopped = True

    def close(self) -> None:
        """Ends the iteration, waits for the source's thread if it has one, and releases the file or device."""
        self.stop()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RisingClock:
    """Makes the time stamps of a file strictly rising, so that no frame is lost for its stamp.

    - A stamp that repeats, or lies less than a second before the one before, becomes one microsecond more than that.
    - One that lies further back is of a clock that began anew (files that were joined): it follows one frame time
      after the one before, and those after it keep their distances.
    - Stamps that have never moved are no clock at all: the frames then follow each other at the frame rate.

    Args:
        fps: The frame rate, if known.
    """

    def __init__(self, fps: float | None) -> None:
        self._frame_us = max(round(1e6 / (fps or USUAL_FPS)), 1)
        self._first: int | None = None
        self._moved = False
        self._offset = 0
        self._last = 0

    def __call__(self, stamp_us: int) -> int:
        """The stamp to use for a frame that says ``stamp_us``; the first frame's is 0."""
        if self._first is None:
            self._first, self._offset = stamp_us, -stamp_us
            return 0
        self._moved |= stamp_us != self._first
        stamp = stamp_us + self._offset
        if not self._moved:
            stamp = self._last + self._frame_us
        elif stamp <= self._last - CLOCK_RESTART_US:
            stamp = self._last + self._frame_us
            self._offset = stamp - stamp_us
        self._last = max(stamp, self._last + 1)
        return self._last
