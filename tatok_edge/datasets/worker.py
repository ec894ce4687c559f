"""What every worker does, whatever engine runs it: one tokenizer, and one clip after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tatok_edge.datasets.clips import open_clip
from tatok_edge.datasets.parts import PARTS, PartWriter
from tatok_edge.errors import SourceError, TaTokError
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.budget import TokenBudget

REPORT_SECONDS = 0.5
"""Time between two reports of the frames that are done in a long clip."""
ATTEMPTS = 3
"""How often a clip is begun whose worker dies before it is left out."""


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """What is the same for all clips."""

    folder: str
    """Folder of work, which every worker can write to."""
    model: str
    """Name or path of the bundle."""
    backend: str
    """What runs the networks."""
    threads: int | None
    """Threads of each worker; None leaves it to the backend."""
    budget: TokenBudget
    """How many tokens a frame may have."""
    frames: int | None
    """Most frames of a clip; None takes all."""
    fps: float | None
    """Frame rate of what has none: folders of pictures, bags."""


@dataclass(frozen=True, slots=True)
class Job:
    """One clip to encode."""

    number: int
    """Its number in the data set."""
    name: str
    """Its name in the data set."""
    source: str
    """What to open."""


@dataclass(frozen=True, slots=True)
class Progressed:
    """Frames of a clip that are done so far."""

    number: int
    frames: int


@dataclass(frozen=True, slots=True)
class Done:
    """A clip that is finished, or left out."""

    number: int
    frames: int
    left_out: str | None = None
    """Why there is no part of it."""


Event = Progressed | Done


class Engine(Protocol):
    """Runs :class:`ClipEncoder` over jobs, in any order, on so many workers.

    It yields what happens, and ends early, without a trace of half-written clips in the way, when ``stopped`` says so.

    Raises:
        BackendError: The workers do not run at all.
        OSError: A worker cannot write (a full disk).
    """

    def __call__(
        self, options: EncodeOptions, jobs: list[Job], workers: int, stopped: Callable[[], bool]
    ) -> Iterator[Event]: ...


class ClipEncoder:
    """Encodes clips into parts; holds the tokenizer.

    Raises:
        BundleError: The model cannot be loaded.
        BackendError: The backend cannot run here.
    """

    def __init__(self, options: EncodeOptions) -> None:
        self._options = options
        self._tokenizer = Tokenizer.load(options.model, backend=options.backend, threads=options.threads)

    def encode(self, job: Job, stopped: Callable[[], bool] = lambda: False) -> Iterator[Event]:
        """Encodes a clip frame by frame, so that memory does not grow with its length.

        Args:
            job: The clip.
            stopped: Asked before every frame whether to give up.

        Yields:
            How far it is now and then, and at last what became of it; nothing more where it was given up. A clip that
            cannot be read or encoded is left out.

        Raises:
            OSError: The part cannot be written.
        """
        options = self._options
        writer = None
        frames = 0
        reported = time.monotonic()
        try:
            with open_clip(job.source, options.fps) as source:
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
