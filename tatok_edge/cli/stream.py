"""``tatok stream``: a camera or clip as key and delta packets, with a live line that says how it goes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Literal

import numpy as np

from tatok_edge.cli.commands import (
    TOKEN_SUFFIX,
    ModelChoice,
    Statistics,
    budget_record,
    common_rows,
    exit_code,
    print_json,
    print_table,
    say,
    until_signal,
)
from tatok_edge.errors import SourceError, TaTokError
from tatok_edge.files import check_target
from tatok_edge.format.writer import Writer
from tatok_edge.sources.open import open_source
from tatok_edge.stream.frame import StreamFrame
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.stream.pipeline import Stream
from tatok_edge.tokens.budget import TokenBudget

STATUS_SECONDS = 0.5
"""Time between two updates of the live line."""


def stream(
    source: str,
    output: str | None,
    budget: TokenBudget,
    choice: ModelChoice,
    *,
    fps: float | None,
    seconds: float | None,
    max_kbps: float | None,
    max_loss_db: float | None,
    keyframe_interval: int,
    refresh: Literal["key", "rolling"] | None,
    on_lag: Literal["auto", "drop", "wait"],
    as_json: bool,
) -> int:
    """Runs the command; returns the exit code."""
    if output is not None:
        check_target(output, (TOKEN_SUFFIX,))
    tokenizer = choice.load()
    statistics = Statistics()
    problem: str | None = None
    updated = global_tokens = vectors = keyframes = 0
    with open_source(source, on_lag=on_lag) as opened, until_signal(opened.stop) as received:
        encoder = Stream(
            tokenizer,
            opened,
            fps=fps,
            budget=budget,
            max_kbps=max_kbps,
            max_loss_db=MAX_LOSS_DB if max_loss_db is None else max_loss_db,
            keyframe_interval=keyframe_interval,
            refresh=refresh,
        )
        metadata = {"source": opened.name, "backend": tokenizer.backend.name, "budget": budget_record(budget)}
        rate = opened.fps if fps is None else min(fps, opened.fps or fps)
        writer = None
        if output is not None:
            writer = Writer(output, tokenizer.entropy_model, name=tokenizer.name, fps=rate, metadata=metadata)
        start = time.perf_counter()
        status = _Status(start)
        try:
            for frame in encoder:
                if writer is not None:
                    writer.write_packet(frame.packet)
                tokens = frame.tokens
                statistics.add(tokens.width, tokens.height, tokens.n_tokens, tokens.n_patches, len(frame.packet))
                updated += frame.n_updated
                global_tokens += frame.n_globals
                vectors += frame.n_vectors
                keyframes += frame.kind == "key"
                status.show(encoder, frame)
                if seconds is not None and (
                    frame.timestamp_us >= 1e6 * seconds or (opened.live and time.perf_counter() - start >= seconds)
                ):
                    break
            else:
                problem = opened.problem
        except (Exception, KeyboardInterrupt) as error:
            # What was sent before is worth keeping: a camera's hours do not come back.
            if writer is not None:
                writer.close(partial=True)
            if not statistics.frames or not isinstance(error, (TaTokError, KeyboardInterrupt)):
                raise
            problem = f"after {statistics.frames} frames: {error}" if isinstance(error, TaTokError) else None
        finally:
            status.end()
        elapsed = time.perf_counter() - start
        if writer is not None:
            writer.close(partial=True)
        if not statistics.frames:
            raise SourceError(f"{opened.name}: {problem or 'ended'} before a frame was encoded")
        latency = np.asarray(encoder.statistics.latency_ms)
        span = max(status.span, 1 / (rate or 25.0))
        report = statistics.report() | {
            "seconds": round(elapsed, 3),
            "frames_per_second": round(statistics.frames / max(elapsed, 1e-9), 2),
            "global_tokens_per_frame": {"mean": round(global_tokens / statistics.frames, 3)},
            "vectors_per_frame": {"mean": round(vectors / statistics.frames, 3)},
            "keyframes": keyframes,
            "updated_share": round(updated / statistics.patches, 6),
            "kbit_per_second": round(8 * statistics.size / 1000 / span, 3),
            "latency_ms": {f"p{share}": round(float(np.percentile(latency, share)), 3) for share in (50, 95)},
            "dropped": opened.dropped,
            "skipped": encoder.statistics.skipped,
            "reconnects": opened.reconnects,
            "model": tokenizer.name,
            "backend": tokenizer.backend.name,
            "threads": tokenizer.backend.threads,
            "fps": rate,
            "source": opened.name,
            "output": output,
            "file_bytes": statistics.size if output is None else Path(output).stat().st_size,
            "budget": metadata["budget"],
            "complete": problem is None and not received,
            "problem": problem,
        }
    if as_json:
        print_json(report)
    else:
        rows = common_rows(report)
        rows["updated"] = f"{report['updated_share']:.1%} of the patches per frame, {keyframes} keyframes"
        rows["bandwidth"] = f"{report['kbit_per_second']:.1f} kbit/s"
        rows["latency"] = f"{report['latency_ms']['p50']:.1f} ms (median), {report['latency_ms']['p95']:.1f} ms (95 %)"
        if opened.live:
            rows["dropped"] = f"{opened.dropped} frames came faster than they could be encoded"
        rows["backend"] = f"{tokenizer.backend.name}, {tokenizer.backend.threads} threads ({tokenizer.backend.reason})"
        print_table(opened.name if output is None else f"{opened.name} -> {output}", rows)
    if problem:
        say("stream", problem if output is None else f"{problem}; {output} holds the frames before that")
    return exit_code("stream", problem is not None, received)


class _Status:
    """What the stream does now, as one line on a terminal that is rewritten in place."""

    def __init__(self, start: float) -> None:
        self._shown = sys.stderr.isatty()
        self._begun = start
        self._frames = self._tokens = self._bits = 0
        self._first: int | None = None
        self._last = 0

    @property
    def span(self) -> float:
        """Seconds from the first frame to the last one, by their time stamps."""
        return 0.0 if self._first is None else (self._last - self._first) / 1e6

    def show(self, stream: Stream, frame: StreamFrame) -> None:
        """Counts a frame, and rewrites the line when it is time."""
        self._first = frame.timestamp_us if self._first is None else self._first
        self._last = frame.timestamp_us
        self._frames += 1
        self._tokens += frame.n_tokens
        self._bits += 8 * len(frame.packet)
        elapsed = time.perf_counter() - self._begun
        if elapsed < STATUS_SECONDS:
            return
        if self._shown:
            p50, p95 = np.percentile(np.asarray(stream.statistics.latency_ms), (50, 95))
            print(
                f"\r{self._frames / elapsed:6.1f} fps  {self._tokens / self._frames:7.1f} tokens/frame  "
                f"{self._bits / elapsed / 1000:7.1f} kbit/s  latency {p50:.1f} ms, 95 % {p95:.1f} ms  "
                f"dropped {stream.dropped} \x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )
        self._begun += elapsed
        self._frames = self._tokens = self._bits = 0

    def end(self) -> None:
        """Leaves the line."""
        if self._shown:
            print(file=sys.stderr)
