"""Work in several threads at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_threads(count: int, work: Callable[[int], object]) -> None:
    """Runs ``work(0)`` to ``work(count - 1)`` at the same time, each in its own thread.

    Raises:
        BaseException: what the first of them that failed raised.
    """
    ready = threading.Barrier(count)

    def start(number: int) -> None:
        ready.wait()
        work(number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(start, range(count)))
