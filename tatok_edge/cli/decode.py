"""``tatok decode``: token files, packets and bags to pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import TextIO

from tatok_edge.cli import bags
from tatok_edge.cli.interrupt import exit_code, keeping, until_signal
from tatok_edge.cli.options import UsageError, add_bags, add_frames, add_model, model_choice, refuse_bag_options
from tatok_edge.cli.pipes import PIPE, check_pipe_output, standard_packets
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.report import (
    completeness,
    print_json,
    print_table,
    report_stream,
    run_figures,
    say,
    speed_text,
)
from tatok_edge.cli.token_file import (
    FALLBACK_FPS,
    damage,
    frame_number,
    frame_rate,
    open_token_file,
    rate_between,
)
from tatok_edge.errors import FormatError
from tatok_edge.format.header import peek
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.pictures.writing import check_output, open_output
from tatok_edge.recordings.frames import FileDecoder
from tatok_edge.robotics.bags.bag import is_bag
from tatok_edge.stream.decoder import StreamDecoder

EXAMPLES = (
    "tatok decode clip.ttk -o clip.mp4",
    "tatok decode clip.ttk -o first/ --frames 10",
    "tatok decode tokens.mcap -o decoded.mcap",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument("input", metavar="IN.ttk", help="the token file, or - for packets from standard input")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="a video (.mp4, .mkv), an animation (.gif, .webp), a picture, a folder (one PNG per frame), or - for Y4M "
        "on standard output",
    )
    parser.add_argument("--frame", type=int, metavar="N", help="only this frame, from 0; negative counts from the end")
    add_frames(parser, "only the first N frames")
    parser.add_argument("--fps", type=float, metavar="RATE", help="constant frame rate of a video (default: own times)")
    parser.add_argument("--raw", action="store_true", help="RGB bytes without a header in place of Y4M, for -o -")
    add_bags(parser, "--keep-tokens", "keep the tokens too")


@dataclass(frozen=True, slots=True)
class _Input:
    """What is decoded."""

    tokenizer: Tokenizer
    count: int | None
    """Number of frames; None if unknown."""
    fps: float
    """Frame rate, for videos whose frames have no times."""
    frames: Iterator[tuple[int, Callable[[], tuple[Image, int | None]]]]
    """Frame numbers, each with a function that gives picture and time stamp, or raises FormatError."""
    problems: list[str] = field(default_factory=list)
    """Damage so far."""


def run(args: argparse.Namespace) -> int:
    """Decodes the whole frames of a file, and reports the others."""
    if args.fps is not None and not 0.01 <= args.fps <= 1000:
        raise UsageError(f"--fps must be from 0.01 to 1000, got {args.fps:g}")
    if args.output == PIPE:
        check_pipe_output()
    elif args.raw:
        raise UsageError("--raw is for -o -: bytes on standard output")
    if args.frame is not None and (args.input == PIPE or is_bag(args.input)):
        raise UsageError("--frame is for token files")
    if args.frames is not None and (args.frame is not None or is_bag(args.input)):
        raise UsageError("--frames is for token files and pipes, without --frame")
    if args.input != PIPE and is_bag(args.input):
        return bags.decode(args)
    refuse_bag_options(args, "topic", "keep_tokens")
    output = args.output
    if output != PIPE:
        check_output(output, force=args.force, inputs=[args.input])
    with _packets(args) if args.input == PIPE else _file(args) as work, until_signal() as received:
        start, (height, width), problems = time.perf_counter(), (0, 0), work.problems
        with (
            open_output(output, fps=work.fps, frames=work.count, raw=args.raw) as target,
            keeping("decode", target, received),
            Progress("decoding", work.count) as progress,
        ):
            for number, decode in work.frames:
                if received:
                    break
                try:
                    image, stamp_us = decode()
                except FormatError as error:
                    problems.append(str(error))
                    continue
                target.write(image, number, None if args.fps else stamp_us)
                height, width = image.shape[:2]
                progress.update(target.written)
        if not target.written:
            if received:
                return exit_code("decode", True, received)
            raise FormatError(f"{problems[0] if problems else args.input}: no frame could be decoded")
        seconds = time.perf_counter() - start
    report = {"frames": target.written, "width": width, "height": height, "fps": round(work.fps, 3)}
    report |= run_figures(work.tokenizer, target.written, seconds) | {
        "input": args.input,
        "output": str(target.left or output),
    }
    report |= completeness(problems, interrupted=bool(received))
    stream: TextIO = report_stream(output)
    if args.json:
        print_json(report, stream)
    else:
        rows = {
            "frames": f"{target.written} ({width}x{height})",
            "speed": speed_text(report),
            "model": work.tokenizer.name,
        }
        print_table(f"{args.input} -> {output}", rows, stream)
    if problems and target.left is None:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        say("decode", f"{problems[0]}{more}; {output} holds the {target.written} good frames")
    return exit_code("decode", bool(problems), received)


@contextmanager
def _file(args: argparse.Namespace) -> Iterator[_Input]:
    """The frames of a token file."""
    with open_token_file(args.input, model_choice(args)) as (tokenizer, reader):
        every = range(len(reader))[: args.frames]
        numbers = every if args.frame is None else [frame_number(reader, args.frame)]
        decoder = FileDecoder(reader, tokenizer)
        rate, timed = frame_rate(reader)

        def decode(number: int) -> tuple[Image, int | None]:
            return decoder.image(number), reader.info(number).timestamp_us if timed else None

        frames = ((number, partial(decode, number)) for number in numbers)
        yield _Input(tokenizer, len(numbers), args.fps or rate, frames, damage(reader))


@contextmanager
def _packets(args: argparse.Namespace) -> Iterator[_Input]:
    """The frames of packets from standard input, each as soon as it comes."""
    tokenizer = model_choice(args).load()
    decoder = StreamDecoder(tokenizer)
    problems: list[str] = []

    def whole() -> Iterator[bytes]:
        """Packets up to the first place where none begins."""
        try:
            yield from packets
        except FormatError as error:
            problems.append(str(error))

    def decode(packet: bytes) -> tuple[Image, int | None]:
        decoded = decoder.decode(packet)
        if decoded.image is None or not decoded.complete:
            raise FormatError(f"frame {decoded.index}: {decoded.problem or 'patches are missing'}")
        return decoded.image, decoded.timestamp_us if timed else None

    packets = standard_packets()
    readable = whole()
    first = list(islice(readable, 2))
    times = [peek(packet).timestamp_us for packet in first]
    timed = len(times) < 2 or times[1] > times[0]
    rate = rate_between(1, times[0], times[1]) if len(times) > 1 and timed else FALLBACK_FPS
    frames = (
        (number, partial(decode, packet)) for number, packet in enumerate(islice(chain(first, readable), args.frames))
    )
    yield _Input(tokenizer, None, args.fps or rate, frames, problems)
