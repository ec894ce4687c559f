"""The base of all sources: the frame, the open source and the clock of its time stamps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tatok_edge.closing import Closing
from tatok_edge.geometry import Image

CLOCK_RESTART_US = 1_000_000
"""A time stamp that jumps back this far comes from a clock that started again, in microseconds."""
CLOCK_LEAP_US = 30 * 86_400_000_000
"""A time stamp that leaps forward by more than this comes from a clock that was set, in microseconds: 30 days."""
USUAL_FPS = 30.0
"""Frame rate that is assumed for a source that states none."""
MAX_FPS = 1000
"""Highest frame rate of a source."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One frame of a source.

    Example:
        >>> frame = next(iter(tatok_edge.open_source("synthetic")))
        >>> frame.image.shape, frame.index, frame.timestamp_us
    """

    image: Image
    """RGB picture, uint8 (height, width, 3)."""
    index: int
    """Number of the frame in its source, from 0. Dropped frames and pictures that cannot be read count, too."""
    timestamp_us: int
    """Time of the frame in microseconds from the first one, strictly rising; 0 for pictures without a frame rate."""
    restarted: bool = False
    """Whether this frame does not follow the one before: the source was lost and came back, or has a new size."""
    arrived: float | None = None
    """Time of arrival at a live source, in seconds of ``time.monotonic``; None for files."""


class Source(Closing):
    """An open source of frames: a context manager to iterate over once.

    Args:
        name: Its name in messages and files, without passwords. Bytes of a file name that are not UTF-8 become ``�``.
        first: Picture of the first frame.
        fps: Frames per second, if known.
        frames: Number of frames, if known.
        live: Whether frames come at their own pace, like those of a camera.

    Example:
        >>> with tatok_edge.open_source(images, fps=30) as source:
        ...     print(source.name, source.width, source.height, source.fps)
        ...     for frame in source:
        ...         tokenizer.encode(frame.image, index=frame.index, timestamp_us=frame.timestamp_us)
    """

    def __init__(self, name: str, first: Image, *, fps: float | None, frames: int | None, live: bool = False) -> None:
        self.name = name.encode(errors="surrogateescape").decode(errors="replace")
        self.fps = fps
        self.frames = frames
        self.live = live
        self.height, self.width = first.shape[:2]
        self.problem: str | None = None
        """Why the source ended early or left out frames, in one line; set when the iteration ends."""
        self.notes: list[str] = []
        """What the source left aside when it was opened, such as videos beside pictures, one line each."""
        self.dropped = 0
        """Number of frames that a live source dropped for newer ones."""
        self.reconnects = 0
        """Number of times that a live source was lost and came back."""
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
        """Delivers the frames in order; sets :attr:`problem` if some are missing."""

    @property
    def stopped(self) -> bool:
        """Whether :meth:`stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """Ends the iteration before the next frame; may be called from a signal handler or another thread."""
        self._stopped = True

    def close(self) -> None:
        """Ends the iteration, waits for the source's thread if it has one, and releases the file or device."""
        self.stop()


class RisingClock:
    """Makes time stamps strictly rising. These are the rules for all files and messages:

    - A stamp that repeats, or goes back by less than a second, becomes one microsecond more than the one before.
    - A stamp that goes back further, or goes back just after another did, comes from a clock that started again, as in
      joined files; a stamp that leaps forward by more than 30 days comes from a clock that was set. It becomes one
      frame time more than the one before, and later stamps keep their distances to it.
    - A frame without a stamp comes one frame time after the one before.
    - While all stamps are the same, the frames follow each other by frame times.

    A frame time is the time between the recordings of the two frames, where these are known, rise, and are not more
    than 30 days apart; else it is that of the frame rate.

    Args:
        fps: The frame rate, if known; 30 frames per second are assumed else.
    """

    def __init__(self, fps: float | None) -> None:
        self._frame_us = max(round(1e6 / (fps or USUAL_FPS)), 1)
        self._begun = self._moved = False
        self._first: int | None = None
        self._before = 0
        self._back = False
        self._offset = 0
        self._last = 0
        self._recorded: int | None = None

    def __call__(self, stamp_us: int | None, recorded_us: int | None = None) -> int:
        """The rising time stamp of a frame; 0 for the first frame.

        Args:
            stamp_us: What the file or message says, in microseconds; None where it says nothing.
            recorded_us: When the frame was recorded or received, in microseconds of any clock, if known.
        """
        step = self._frame_us
        if recorded_us is not None and self._recorded is not None:
            since = recorded_us - self._recorded
            step = since if 0 < since <= CLOCK_LEAP_US else step
        self._recorded = recorded_us
        due = self._last + step if self._begun else 0
        time = due
        if stamp_us is not None and self._first is None:
            self._first, self._offset = stamp_us, due - stamp_us
        elif stamp_us is not None:
            self._moved |= stamp_us != self._first
            again = self._back and stamp_us < self._before
            self._back = stamp_us < self._before
            time = stamp_us + self._offset
            if not self._moved:
                time = due
            elif again or time <= self._last - CLOCK_RESTART_US or time > self._last + CLOCK_LEAP_US:
                time, self._offset = due, due - stamp_us
        if stamp_us is not None:
            self._before = stamp_us
        self._last = max(time, self._last + 1) if self._begun else 0
        self._begun = True
        return self._last
