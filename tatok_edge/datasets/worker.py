"""The work of a worker, on any engine: it encodes one clip after the other with one tokenizer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tatok_edge.datasets.clips import open_clip
from tatok_edge.datasets.parts import PARTS, PartWriter
from tatok_edge.errors import SourceError, TaTokError
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.budget import TokenBudget

REPORT_SECONDS = 0.5
"""Seconds between two reports of the progress in a clip."""
ATTEMPTS = 3
"""Number of workers that may die at a clip before it is left out."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How to encode: the same for all clips."""

    folder: str
    """Working folder; every worker can write to it."""
    model: str
    """Name or path of the bundle."""
    backend: str
    """Backend of the networks."""
    threads: int | None
    """Threads of each worker; None takes the default of the backend."""
    budget: TokenBudget
    """Limits on the tokens of a frame."""
    frames: int | None
    """Largest number of frames of a clip; None takes all."""
    fps: float | None
    """Frame rate of clips without one: folders of pictures, bags."""
    limits: Limits = DEFAULT_LIMITS
    """Largest picture, file and message."""


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to encode."""

    number: int
    """Its number in the data set."""
    name: str
    """Its name in the data set."""
    source: str
    """Path or name for :func:`tatok_edge.datasets.clips.open_clip`."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """Progress in a clip: its number, and the frames encoded so far."""

    number: int
    frames: int


@dataclass(frozen=True, slots=True)
class Done:
    """End of a clip: it was encoded, or left out."""

    number: int
    frames: int
    left_out: str | None = None
    """Why the clip was left out."""


Event = Progressed | Done


class Engine(Protocol):
    """Encodes jobs with :class:`ClipEncoder`, in any order, on some workers.

    It yields events. When ``stopped`` returns True, it ends early; half-written clips do no harm.

    Raises:
        BackendError: No worker can run.
        OSError: A worker cannot write (a full disk).
    """

    def __call__(
        self, options: EncodeOptions, jobs: list[Job], workers: int, stopped: Callable[[], bool]
    ) -> Iterator[Event]: ...


class ClipEncoder:
    """Encodes clips into parts with one tokenizer.

    Raises:
        BundleError: The model cannot be loaded.
        BackendError: The backend cannot run here.
    """

    def __init__(self, options: EncodeOptions) -> None:
        self._options = options
        self._tokenizer = Tokenizer.load(options.model, backend=options.backend, threads=options.threads)

    def encode(self, job: Job, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Encodes a clip frame by frame; memory does not grow with its length.

        Args:
            job: The clip.
            stopped: Called before every frame; True ends the work.

        Yields:
            The progress now and then, and :class:`Done` at the end, unless the work was stopped. A clip that cannot be
            read or encoded is left out.

        Raises:
            OSError: The part cannot be written.
        """
        options = self._options
        writer = None
        frames = 0
        reported = time.monotonic()
        try:
            with open_clip(job.source, options.fps, options.limits) as source:
                if source.live:
                    raise SourceError(f"{job.source}: a live source has no end; record it first")
                writer = PartWriter(Path(options.folder) / PARTS, job.number, self._tokenizer.vocabulary)
                problem = None
                for frame in source:
                    if stopped():
                        return
                    writer.write(
                        self._tokenizer.encode(
                            frame.image,
                            budget=options.budget,
                            index=frame.index,
                            timestamp_us=frame.timestamp_us,
                        )
                    )
                    frames += 1
                    if time.monotonic() - reported >= REPORT_SECONDS:
                        reported = time.monotonic()
                        yield Progressed(job.number, frames)
                    if frames == options.frames:
                        break
                else:
                    problem = source.problem
                writer.commit(name=job.name, source=job.source, fps=source.fps or options.fps, problem=problem)
            yield Done(job.number, frames)
        except TaTokError as error:
            yield Done(job.number, 0, left_out=str(error))
        finally:
            if writer is not None:
                writer.abort()
