"""``tatok encode``: pictures, videos, cameras and bags to tokens."""

from __future__ import annotations

import argparse
from pathlib import Path

from tatok_edge.cli import bags
from tatok_edge.cli.interrupt import until_signal
from tatok_edge.cli.options import (
    SOURCE_HELP,
    UsageError,
    add_bags,
    add_budget,
    add_frames,
    add_model,
    add_seconds,
    add_stream_quality,
    model_choice,
    refuse_bag_options,
    token_budget,
)
from tatok_edge.cli.pipes import PIPE, check_pipe_output
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.recording import Recording
from tatok_edge.cli.report import (
    Report,
    print_json,
    print_table,
    report_stream,
    run_figures,
    say,
    speed_text,
    token_rows,
)
from tatok_edge.cli.token_file import TOKEN_SUFFIX
from tatok_edge.files import check_target
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.pictures.writing import PICTURE_SUFFIXES, write_image
from tatok_edge.robotics.bags.bag import split_topic
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import Source
from tatok_edge.tokens.budget import TokenBudget

BAG_OUTPUTS = (".mcap", "")
"""Endings of an output that is a bag; an input that is a bag can become a token file, too."""


EXAMPLES = (
    "tatok encode clip.mp4 -o clip.ttk --keep 1",
    "tatok encode 0 -o camera.ttk --tau 0.8 --seconds 10",
    "tatok encode bag.mcap --topic /camera/image_raw -o tokens.mcap",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument("source", metavar="IN", help=SOURCE_HELP)
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT.ttk",
        help="the token file to write, or - for packets on standard output",
    )
    add_budget(parser)
    add_frames(parser, "stop after N frames")
    add_seconds(parser, "stop after S seconds")
    parser.add_argument("--snapshot", metavar="PNG", help="also save the original of the last frame")
    group = add_bags(parser, "--keep-images", "keep the images too")
    group.add_argument("--frames-only", action="store_true", help="every message stands alone (default: key and delta)")
    add_stream_quality(group, keyframe_interval=30, default=None)


def run(args: argparse.Namespace) -> int:
    """Encodes frame by frame, so memory does not grow with the length of the source."""
    budget = token_budget(args)
    name = args.source
    if (bag := split_topic(args.source)) is not None:
        if bag[1] is not None:
            args.source, args.topic = str(bag[0]), [*(args.topic or ()), bag[1]]
        if Path(args.output).suffix.lower() in BAG_OUTPUTS and args.output != "-":
            for option in ("snapshot", "seconds"):
                if getattr(args, option) is not None:
                    raise UsageError(f"--{option} is not for bags")
            return bags.encode(args, budget)
        if args.topic:
            if len(args.topic) > 1:
                raise UsageError("a token file holds one topic; give --topic once, or name a bag as output")
            name, args.topic = f"{bag[0]}#{args.topic[0]}", None
    refuse_bag_options(args, "topic", "keep_images", "frames_only", "max_loss_db", "keyframe_interval")
    if args.output == PIPE:
        check_pipe_output()
    else:
        check_target(args.output, (TOKEN_SUFFIX,), force=args.force, inputs=[name])
    if args.snapshot is not None:
        check_target(args.snapshot, PICTURE_SUFFIXES, force=args.force, inputs=[name, args.output])
    tokenizer = model_choice(args).load()
    with open_source(name, limits=tokenizer.limits) as source, until_signal(source.stop) as received:
        for note in source.notes:
            say("encode", note)
        recording = Recording(source, tokenizer, budget, output=args.output, fps=source.fps)
        last = _encode_frames(source, tokenizer, budget, recording, frames=args.frames, seconds=args.seconds)
        recording.require_frames()
        if args.snapshot is not None and last is not None:
            write_image(args.snapshot, last)
        report = recording.totals.report() | run_figures(tokenizer, recording.totals.frames, recording.seconds)
        report |= {"dropped_frames": source.dropped, **recording.report(received)}
        live = source.live
    if args.json:
        print_json(report, report_stream(args.output))
    else:
        _print(report, tokenizer, live=live)
    return recording.exit_code("encode", received, f"; {args.output} holds the {report['frames']} good frames")


def _encode_frames(
    source: Source,
    tokenizer: Tokenizer,
    budget: TokenBudget,
    recording: Recording,
    *,
    frames: int | None,
    seconds: float | None,
) -> Image | None:
    """Encodes at most so many frames and seconds of a source; returns the last frame."""
    total = frames if source.frames is None else min(frames or source.frames, source.frames)
    totals, writer = recording.totals, recording.writer
    assert writer is not None
    last: Image | None = None
    with recording, Progress("encoding", total) as progress:
        for frame in source:
            tokens = tokenizer.encode(frame.image, budget=budget, index=frame.index, timestamp_us=frame.timestamp_us)
            size = writer.write(tokens)
            totals.add(tokens.width, tokens.height, tokens.n_tokens, tokens.n_patches, size)
            last = frame.image
            progress.update(totals.frames, f"{tokens.n_tokens} tokens")
            if totals.frames == frames or recording.lasted(seconds, frame.timestamp_us):
                break
        else:
            recording.problem = source.problem
    return last


def _print(report: Report, tokenizer: Tokenizer, *, live: bool) -> None:
    rows = token_rows(report)
    rows["speed"] = speed_text(report)
    if live:
        rows["dropped"] = f"{report['dropped_frames']} frames came faster than they could be encoded"
    rows["backend"] = str(tokenizer.backend)
    print_table(f"{report['source']} -> {report['output']}", rows, report_stream(report["output"]))
