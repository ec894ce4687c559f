"""``tatok stream``: a camera or clip as key and delta packets, with a live status line."""

from __future__ import annotations

import argparse
import sys
import time

import numpy as np

from tatok_edge.cli.interrupt import until_signal
from tatok_edge.cli.options import (
    SOURCE_HELP,
    add_budget,
    add_choice,
    add_force,
    add_frames,
    add_model,
    add_seconds,
    add_stream_quality,
    model_choice,
    token_budget,
)
from tatok_edge.cli.pipes import PIPE, check_pipe_output
from tatok_edge.cli.recording import Recording
from tatok_edge.cli.report import Report, print_json, print_table, report_stream, run_figures, say, token_rows
from tatok_edge.cli.token_file import TOKEN_SUFFIX
from tatok_edge.files import check_target
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import Source
from tatok_edge.stream.frame import StreamFrame
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.stream.pipeline import Stream

STATUS_SECONDS = 0.5
"""Time between two updates of the status line."""
KEYFRAME_INTERVAL = 300
"""Frames between keyframes."""


EXAMPLES = (
    "tatok stream clip.mp4 -o clip.ttk",
    "tatok stream 0 -o camera.ttk --max-kbps 200 --seconds 60",
    "tatok stream rtsp://camera.local/stream -o - | tatok decode - -o camera.mp4",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument("source", metavar="IN", help=SOURCE_HELP)
    text = "the token file to write, or - for packets on standard output (default: none)"
    parser.add_argument("-o", "--output", metavar="OUT.ttk", help=text)
    parser.add_argument("--fps", type=float, metavar="RATE", help="take at most RATE frames per second")
    add_frames(parser, "stop after N frames")
    add_seconds(parser, "stop after S seconds")
    parser.add_argument("--max-kbps", type=float, metavar="K", help="bandwidth in kbit/s, kept in every second")
    add_stream_quality(parser, keyframe_interval=KEYFRAME_INTERVAL, default=KEYFRAME_INTERVAL)
    parser.add_argument(
        "--refresh",
        choices=("key", "rolling"),
        help="keyframes (default), or a few cells refreshed in every frame (default with --max-kbps)",
    )
    text = "drop frames that come too fast, or make the source wait (default: drop for live sources)"
    add_choice(parser, "--on-lag", ("auto", "drop", "wait"), text)
    add_budget(parser, stream=True)
    add_force(parser)


def run(args: argparse.Namespace) -> int:
    """Encodes the stream, and prints its figures."""
    budget = token_budget(args)
    if args.output == PIPE:
        check_pipe_output()
    elif args.output is not None:
        check_target(args.output, (TOKEN_SUFFIX,), force=args.force, inputs=[args.source])
    tokenizer = model_choice(args).load()
    with (
        open_source(args.source, on_lag=args.on_lag, limits=tokenizer.limits) as source,
        until_signal(source.stop) as received,
    ):
        for note in source.notes:
            say("stream", note)
        stream = Stream(
            tokenizer,
            source,
            fps=args.fps,
            budget=budget,
            max_kbps=args.max_kbps,
            max_loss_db=MAX_LOSS_DB if args.max_loss_db is None else args.max_loss_db,
            keyframe_interval=args.keyframe_interval,
            refresh=args.refresh,
        )
        rate = source.fps if args.fps is None else min(args.fps, source.fps or args.fps)
        recording = Recording(source, tokenizer, budget, output=args.output, fps=rate)
        sums = _encode_frames(source, stream, recording, frames=args.frames, seconds=args.seconds)
        recording.require_frames()
        report = _report(recording, sums, stream, tokenizer)
        report |= {"dropped": source.dropped, "reconnects": source.reconnects, **recording.report(received)}
        live = source.live
    if args.json:
        print_json(report, report_stream(args.output))
    else:
        _print(report, tokenizer, live=live)
    kept = "" if args.output is None else f"; {args.output} holds the frames before that"
    return recording.exit_code("stream", received, kept)


class _Sums:
    """Sums over the frames of a stream."""

    def __init__(self) -> None:
        self.updated = self.global_tokens = self.vectors = self.keyframes = 0
        self.first_us: int | None = None
        self.last_us = 0

    def add(self, frame: StreamFrame) -> None:
        self.updated += frame.n_updated
        self.global_tokens += frame.n_globals
        self.vectors += frame.n_vectors
        self.keyframes += frame.kind == "key"
        self.first_us = frame.timestamp_us if self.first_us is None else self.first_us
        self.last_us = frame.timestamp_us

    @property
    def span(self) -> float:
        """Seconds from the first frame to the last one, by their time stamps."""
        return 0.0 if self.first_us is None else (self.last_us - self.first_us) / 1e6


def _encode_frames(
    source: Source, stream: Stream, recording: Recording, *, frames: int | None, seconds: float | None
) -> _Sums:
    """Encodes the stream for at most so many frames and seconds."""
    sums, totals, writer = _Sums(), recording.totals, recording.writer
    with _Status() as status, recording:
        for frame in stream:
            if writer is not None:
                writer.write_packet(frame.packet)
            tokens = frame.tokens
            totals.add(tokens.width, tokens.height, tokens.n_tokens, tokens.n_patches, len(frame.packet))
            sums.add(frame)
            status.show(stream, frame)
            if totals.frames == frames or recording.lasted(seconds, frame.timestamp_us):
                break
        else:
            recording.problem = source.problem
    return sums


def _report(recording: Recording, sums: _Sums, stream: Stream, tokenizer: Tokenizer) -> Report:
    totals = recording.totals
    latency = np.asarray(stream.statistics.latency_ms)
    span = max(sums.span, 1 / float(recording.fps or 25.0))
    return {
        **totals.report(),
        **run_figures(tokenizer, totals.frames, recording.seconds),
        "global_tokens_per_frame": {"mean": round(sums.global_tokens / totals.frames, 3)},
        "vectors_per_frame": {"mean": round(sums.vectors / totals.frames, 3)},
        "keyframes": sums.keyframes,
        "updated_share": round(sums.updated / totals.patches, 6),
        "kbit_per_second": round(8 * totals.size / 1000 / span, 3),
        "latency_ms": {f"p{share}": round(float(np.percentile(latency, share)), 3) for share in (50, 95)},
        "skipped": stream.statistics.skipped,
    }


def _print(report: Report, tokenizer: Tokenizer, *, live: bool) -> None:
    rows = token_rows(report)
    rows["updated"] = f"{report['updated_share']:.1%} of the patches per frame, {report['keyframes']} keyframes"
    rows["bandwidth"] = f"{report['kbit_per_second']:.1f} kbit/s"
    rows["latency"] = f"{report['latency_ms']['p50']:.1f} ms (median), {report['latency_ms']['p95']:.1f} ms (95 %)"
    if live:
        rows["dropped"] = f"{report['dropped']} frames came faster than they could be encoded"
    rows["backend"] = f"{tokenizer.backend.name}, {tokenizer.backend.threads} threads ({tokenizer.backend.reason})"
    source, output = report["source"], report["output"]
    print_table(source if output is None else f"{source} -> {output}", rows, report_stream(output))


class _Status:
    """The current figures of the stream, as one line on a terminal that is rewritten in place."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._begun = time.perf_counter()
        self._frames = self._tokens = self._bits = 0

    def __enter__(self) -> _Status:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            print(file=sys.stderr)

    def show(self, stream: Stream, frame: StreamFrame) -> None:
        """Counts a frame, and rewrites the line when it is time."""
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
