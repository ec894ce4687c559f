"""A run that encodes a source, and keeps the encoded frames if an error or Ctrl-C ends the run."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from tatok_edge.cli.interrupt import exit_code
from tatok_edge.cli.pipes import PIPE, PacketPipe
from tatok_edge.cli.report import FrameTotals, Report, budget_record, say
from tatok_edge.errors import SourceError, TaTokError
from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.source import Source
from tatok_edge.tokens.budget import TokenBudget


class Recording:
    """The token file of a run, its totals and its problem; encode the frames in a ``with`` statement.

    Leaving the block closes the file. A :class:`TaTokError` or Ctrl-C in the block is swallowed if frames were encoded:
    a camera cannot record them again. A run that failed, or that was interrupted though its source has an end, leaves
    them in ``NAME.part``: what had the name of the output stays.

    Args:
        source: Where the frames come from.
        tokenizer: The model.
        budget: The budget, for the metadata of the file.
        output: The token file to write, or ``-`` for packets on standard output; None for a run without one.
        fps: Frame rate of the file, if known.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        budget: TokenBudget,
        *,
        output: str | None,
        fps: Fraction | float | None,
    ) -> None:
        self.totals = FrameTotals()
        self.problem: str | None = None
        """Why the run ended early."""
        self.start = time.perf_counter()
        self.seconds = 0.0
        """Duration of the block."""
        self.fps = fps
        self._source = source
        self._output = output
        self._budget = budget_record(budget)
        self.left: Path | None = None
        """Where the frames of a run that was not finished are."""
        self.writer: Writer | PacketPipe | None = None
        """Writes the token file or the packets."""
        if output == PIPE:
            self.writer = PacketPipe(tokenizer)
        elif output is not None:
            metadata = {"source": source.name, "backend": tokenizer.backend.name, "budget": self._budget}
            self.writer = Writer(output, tokenizer.entropy_model, name=tokenizer.name, fps=fps, metadata=metadata)

    def lasted(self, seconds: float | None, timestamp_us: int) -> bool:
        """Whether the run has lasted so many seconds: by the time of its frame, or of a live source by the clock."""
        if seconds is None:
            return False
        return timestamp_us >= 1e6 * seconds or (self._source.live and time.perf_counter() - self.start >= seconds)

    def __enter__(self) -> Recording:
        self.start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.seconds = time.perf_counter() - self.start
        frames = self.totals.frames
        # Ctrl-C is how a live source ends. The run of a file is not finished then.
        whole = error is None and (self._source.live or not self._source.stopped)
        if self.writer is not None and whole:
            self.writer.close(partial=True)
        elif self.writer is not None:
            self.left = self.writer.leave()
        if error is None or not frames or not isinstance(error, (TaTokError, KeyboardInterrupt)):
            return False
        self.problem = f"after {frames} frames: {error}" if isinstance(error, TaTokError) else None
        return True

    def require_frames(self) -> None:
        """Checks that a frame was encoded.

        Raises:
            SourceError: No frame was encoded; the message says why.
        """
        if not self.totals.frames:
            unwritten = "" if self._output is None else f"; {self._output} was not written"
            raise SourceError(f"{self._source.name}: {self.problem or 'ended'} before a frame was encoded{unwritten}")

    def exit_code(self, command: str, received: Sequence[signal.Signals], kept: str) -> int:
        """The exit code of the command; reports why the run ended early.

        Args:
            command: Name of the command.
            received: The signals that ended the run.
            kept: What is kept of the run, for the report of a problem.
        """
        if self.problem:
            say(command, self.problem + (kept if self.left is None else ""))
        if self.left is not None:
            say(
                command,
                f"not finished: {self.totals.frames} frames are in {self.left}, and {self._output} is as before",
            )
        return exit_code(command, self.problem is not None, received)

    def report(self, received: Sequence[object]) -> Report:
        """Source, output and outcome of the run; ``received`` are the signals that ended it."""
        output = self._output if self.left is None else str(self.left)
        return {
            "fps": self.fps,
            "source": self._source.name,
            "output": output,
            "file_bytes": self.totals.size if output is None or output == PIPE else Path(output).stat().st_size,
            "budget": self._budget,
            "complete": self.problem is None and not received,
            "problem": self.problem,
            "notes": self._source.notes,
        }
