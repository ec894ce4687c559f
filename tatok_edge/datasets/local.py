"""Encodes clips on this machine: in this process, or in several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from tatok_edge.datasets.worker import ATTEMPTS, ClipEncoder, Done, EncodeOptions, Event, Job
from tatok_edge.errors import BackendError, TaTokError

POLL_SECONDS = 0.2
"""Longest time, in seconds, until a request to stop is noticed."""


def run_here(options: EncodeOptions, jobs: list[Job], workers: int, stopped: Callable[[], bool]) -> Iterator[Event]:
    """Encodes in this process; see :class:`tatok_edge.datasets.worker.Engine`."""
    encoder = ClipEncoder(options)
    for job in jobs:
        if stopped():
            return
        yield from encoder.encode(job, stopped)


def run_processes(
    options: EncodeOptions, jobs: list[Job], workers: int, stopped: Callable[[], bool]
) -> Iterator[Event]:
    """Encodes in ``workers`` processes of this machine; see :class:`tatok_edge.datasets.worker.Engine`.

    When a worker dies, another one begins its clip again.
    """
    waiting = deque(jobs)
    deaths: Counter[int] = Counter()
    pool: list[_Worker] = []
    try:
        while True:
            while waiting and len(pool) < workers:
                pool.append(_Worker.start(options, waiting.popleft()))
            if not pool or stopped():
                return
            for ready in wait([worker.pipe for worker in pool], timeout=POLL_SECONDS):
                worker = next(worker for worker in pool if worker.pipe is ready)
                try:
                    event = worker.pipe.recv()
                except (EOFError, OSError):
                    pool.remove(worker)
                    code = worker.join()
                    deaths[worker.job.number] += 1
                    if deaths[worker.job.number] < ATTEMPTS:
                        waiting.appendleft(worker.job)
                        continue
                    yield Done(worker.job.number, 0, left_out=_cause_of_death(worker.job, code))
                    continue
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Done):
                    if waiting:
                        worker.give(waiting.popleft())
                    else:
                        pool.remove(worker)
                        worker.give(None)
                        worker.join()
                yield event
    finally:
        for worker in pool:
            worker.process.terminate()
        for worker in pool:
            worker.join()


def _cause_of_death(job: Job, code: int | None) -> str:
    reason = "killed, perhaps for want of memory" if code == -signal.SIGKILL else f"exit code {code}"
    return f"{job.source}: its worker died {ATTEMPTS} times ({reason}); try fewer --workers"


@dataclass(eq=False)
class _Worker:
    """A process that encodes, and its current clip."""

    process: BaseProcess
    pipe: Connection
    job: Job

    @classmethod
    def start(cls, options: EncodeOptions, job: Job) -> _Worker:
        # Spawned, not forked: threads of ONNX Runtime and OpenCV do not survive a fork.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, options, os.getpid()), daemon=True)
        # Ctrl-C and SIGHUP go to all processes of a terminal, but only the parent may act on them. The worker inherits
        # the blocked signals from its first instruction on.
        resource_tracker.ensure_running()  # it would start with the first process, and end the block
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        ours.send(job)
        return cls(process, ours, job)

    def give(self, job: Job | None) -> None:
        """Sends the next clip, or None at the end. A dead worker is noticed later, when its pipe is read."""
        self.job = job or self.job
        with suppress(OSError):
            self.pipe.send(job)

    def join(self) -> int | None:
        self.process.join()
        self.pipe.close()
        return self.process.exitcode


def _serve(pipe: Any, options: EncodeOptions, parent: int) -> None:
    """Main function of a worker process."""
    try:
        encoder = ClipEncoder(options)
        while (job := pipe.recv()) is not None:
            for event in encoder.encode(job, lambda: os.getppid() != parent):
                pipe.send(event)
    except (EOFError, BrokenPipeError):  # the parent has gone
        return
    except (OSError, TaTokError) as error:
        pipe.send(error)
    except Exception as error:  # a bug: raised again in the parent
        pipe.send(BackendError(f"a worker failed with an unexpected {type(error).__name__}: {error}"))
