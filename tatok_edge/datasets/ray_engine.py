"""Encodes clips in actors of Ray, on this machine or a cluster. Needs ``pip install 'tatok-edge[scale]'``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

from tatok_edge.datasets.local import POLL_SECONDS
from tatok_edge.datasets.worker import ATTEMPTS, ClipEncoder, Done, EncodeOptions, Event, Job
from tatok_edge.errors import BackendError


class _Actor:
    """One tokenizer in a process of Ray."""

    def __init__(self, options: EncodeOptions) -> None:
        self._encoder = ClipEncoder(options)

    def encode(self, job: Job) -> Done | OSError:
        try:
            *_, done = self._encoder.encode(job)
        except OSError as error:
            return error  # returned, because Ray wraps raised errors
        assert isinstance(done, Done)
        return done


def run_ray(options: EncodeOptions, jobs: list[Job], workers: int, stopped: Callable[[], bool]) -> Iterator[Event]:
    """Encodes with ``workers`` actors; see :class:`tatok_edge.datasets.worker.Engine`.

    If ``RAY_ADDRESS`` is set or Ray already runs in this process, its cluster is used. All its machines must see the
    inputs and the output under the same paths. Otherwise Ray is started here, and ended afterwards. When an actor dies,
    Ray starts it and its clip again.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise BackendError("the engine 'ray' needs Ray: pip install 'tatok-edge[scale]'") from None
    threads = options.threads or 1
    ours = not ray.is_initialized()
    if ours:
        given: dict[str, Any] = {}
        if not os.environ.get("RAY_ADDRESS"):
            given = {"address": "local", "num_cpus": workers * threads, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True, **given)
    try:
        # Ray always prints messages about dead actors on standard output, which is for results here.
        with redirect_stdout(sys.stderr):
            yield from _run(ray, options, jobs, min(workers, len(jobs)), threads, stopped)
    finally:
        if ours:
            ray.shutdown()


def _run(
    ray: Any, options: EncodeOptions, jobs: list[Job], workers: int, threads: int, stopped: Callable[[], bool]
) -> Iterator[Event]:
    remote = ray.remote(num_cpus=threads, max_restarts=-1, max_task_retries=ATTEMPTS - 1)(_Actor)
    actors = [remote.remote(options) for _ in range(workers)]
    waiting = iter(jobs)
    running: dict[Any, tuple[Any, Job]] = {}

    def give(actor: Any) -> None:
        job = next(waiting, None)
        if job is not None:
            running[actor.encode.remote(job)] = actor, job

    try:
        for actor in actors:
            give(actor)
        while running and not stopped():
            ready, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for reference in ready:
                actor, job = running.pop(reference)
                try:
                    result = ray.get(reference)
                except ray.exceptions.RayActorError as error:
                    if isinstance(error, ray.exceptions.ActorDiedError) and "creation task" in str(error):
                        raise BackendError(f"no worker of Ray could be started: {_last_line(error)}") from None
                    result = Done(
                        job.number,
                        0,
                        left_out=f"{job.source}: its worker died {ATTEMPTS} times ({_last_line(error)})",
                    )
                except ray.exceptions.RayError as error:
                    raise BackendError(f"Ray failed on {job.source}: {_last_line(error)}") from None
                if isinstance(result, OSError):
                    raise result
                give(actor)
                yield result
    finally:
        for actor in actors:
            ray.kill(actor)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
