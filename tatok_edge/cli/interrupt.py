"""Ctrl-C and SIGTERM: the work ends after the current frame, and whole frames are kept."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from tatok_edge.cli.report import say


@contextmanager
def until_signal(stop: Callable[[], None] | None = None) -> Iterator[list[signal.Signals]]:
    """Makes Ctrl-C and SIGTERM end the work after the current frame; a second Ctrl-C ends it at once.

    Args:
        stop: Called on the signal, to wake a thread that waits for a frame.

    Yields:
        The signals received so far.
    """
    received: list[signal.Signals] = []

    def handle(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number))
        if stop is not None:
            stop()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def exit_code(command: str, failed: bool, received: Sequence[signal.Signals]) -> int:
    """The exit code of a command that ended by itself or by a signal; reports the signal."""
    if received:
        say(command, "interrupted; finished work is kept")
        return 128 + received[0]
    return 1 if failed else 0
