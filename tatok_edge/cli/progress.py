"""A progress bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

WIDTH = 28
"""Characters of the bar."""
INTERVAL = 0.1
"""Shortest time between two updates in seconds."""


class Progress:
    """Shows a count of frames, or of another unit, on standard error while its ``with`` block runs.

    Args:
        label: Name of the work.
        total: Number of frames to come; None if unknown.
        unit: Unit of the count.
    """

    def __init__(self, label: str, total: int | None, *, unit: str = "frames") -> None:
        self._label = label
        self._total = total
        self._unit = unit
        self._shown = sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Shows that ``done`` frames are done."""
        now = time.monotonic()
        if not self._shown or (now - self._last < INTERVAL and done != self._total):
            return
        self._last = now
        rate = done / max(now - self._start, 1e-6)
        text = f"{done} {self._unit}"
        if self._total:
            filled = min(WIDTH * done // self._total, WIDTH)
            left = max(self._total - done, 0) / max(rate, 1e-6)
            text = f"[{'#' * filled}{'.' * (WIDTH - filled)}] {done}/{self._total}, {left:.0f} s left"
        print(f"\r{self._label} {text}, {rate:.1f} {self._unit}/s {note}\x1b[K", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class StageProgress:
    """Progress of a work in stages: a bar for the current stage, cleared before a message is shown."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._stage = ""

    def advance(self, stage: str, done: int, total: int | None, note: str = "", *, unit: str = "frames") -> None:
        """Shows the progress of a stage; another stage begins a new bar."""
        if stage != self._stage or self._bar is None:
            self.clear()
            self._bar, self._stage = Progress(stage, total, unit=unit), stage
        self._bar.update(done, note)

    def clear(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None

    def __enter__(self) -> StageProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()
