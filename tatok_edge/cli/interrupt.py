"""Ctrl-C, SIGTERM and SIGHUP: the work ends after the current frame, and whole frames are kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from tatok_edge.cli.report import say
from tatok_edge.errors import TaTokError
from tatok_edge.files import Draft

PATIENCE = 1.0
"""Seconds in which further signals are ignored after the second one, while what is done is kept: a key may repeat."""


@contextmanager
def until_signal(stop: Callable[[], None] | None = None) -> Iterator[list[signal.Signals]]:
    """Makes Ctrl-C, SIGTERM and SIGHUP end the work after the current frame; a second signal ends it at once.

    SIGHUP comes when the terminal or the connection closes. Under ``nohup`` it is ignored, and stays so.

    Args:
        stop: Called on the signal, to wake a thread that waits for a frame.

    Yields:
        The signals received so far.
    """
    received: list[signal.Signals] = []
    ended = float("-inf")

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal ended
        if received:
            if time.monotonic() - ended > PATIENCE:
                ended = time.monotonic()
                raise KeyboardInterrupt
            return
        received.append(signal.Signals(number))
        if stop is not None:
            stop()

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def keeping(
    command: str, draft: Draft, received: Sequence[signal.Signals], begun: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Leaves the output under its temporary name, and says where, if the block fails or a signal came.

    Args:
        command: Name of the command.
        draft: The output. An earlier output of that name stays as it is.
        received: The signals received so far.
        begun: Whether there is anything that is worth to be kept.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError, TaTokError):  # a full disk: what is there stays, and the first error is reported
            _leave(command, draft, begun)
        raise
    if received:
        _leave(command, draft, begun)


def _leave(command: str, draft: Draft, begun: Callable[[], bool]) -> None:
    left = draft.leave() if begun() else None
    if left is not None:
        say(command, f"not finished: what is done is in {left}, and nothing was replaced")


def exit_code(command: str, failed: bool, received: Sequence[signal.Signals]) -> int:
    """The exit code of a command that ended by itself or by a signal; reports the signal."""
    if received:
        say(command, "interrupted; finished work is kept")
        return 128 + received[0]
    return 1 if failed else 0
