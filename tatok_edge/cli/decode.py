"""``tatok decode``: token files and bags to pictures."""

from __future__ import annotations

import argparse
import time

from tatok_edge.cli import bags
from tatok_edge.cli.interrupt import exit_code, until_signal
from tatok_edge.cli.options import UsageError, add_bags, add_model, model_choice, refuse_bag_options
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.report import completeness, print_json, print_table, run_figures, say, speed_text
from tatok_edge.cli.token_file import FileDecoder, damage, frame_number, frame_rate, open_token_file
from tatok_edge.errors import FormatError
from tatok_edge.pictures.writing import open_output
from tatok_edge.robotics.bags.bag import is_bag


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument("input", metavar="IN.ttk", help="the token file")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="a video (.mp4), a picture, or a folder (one PNG per frame)",
    )
    parser.add_argument("--frame", type=int, metavar="N", help="only this frame, from 0; negative counts from the end")
    parser.add_argument("--fps", type=float, metavar="RATE", help="frame rate of a video (default: the source's)")
    add_bags(parser, "--keep-tokens", "keep the tokens too")


def run(args: argparse.Namespace) -> int:
    """Decodes the whole frames of a file, and reports the others."""
    if args.fps is not None and not 0.01 <= args.fps <= 1000:
        raise UsageError(f"--fps must be from 0.01 to 1000, got {args.fps:g}")
    if is_bag(args.input):
        if args.frame is not None:
            raise UsageError("--frame is not for bags")
        return bags.decode(args)
    refuse_bag_options(args, "topic", "keep_tokens", "force")
    path, output = args.input, args.output
    with open_token_file(path, model_choice(args)) as (tokenizer, reader), until_signal() as received:
        numbers = range(len(reader)) if args.frame is None else [frame_number(reader, args.frame)]
        rate = args.fps or frame_rate(reader)
        problems = damage(reader)
        width = height = 0
        decoder = FileDecoder(reader, tokenizer)
        start = time.perf_counter()
        with (
            open_output(output, fps=rate, frames=len(numbers)) as target,
            Progress("decoding", len(numbers)) as progress,
        ):
            for number in numbers:
                if received:
                    break
                try:
                    image = decoder.image(number)
                except FormatError as error:
                    problems.append(str(error))
                    continue
                target.write(image, number)
                height, width = image.shape[:2]
                progress.update(target.written)
        if not target.written:
            if received:
                return exit_code("decode", True, received)
            raise FormatError(f"{problems[0] if problems else path}: no frame could be decoded")
        seconds = time.perf_counter() - start
    report = {"frames": target.written, "width": width, "height": height, "fps": round(rate, 3)}
    report |= run_figures(tokenizer, target.written, seconds) | {"input": path, "output": output}
    report |= completeness(problems, interrupted=bool(received))
    if args.json:
        print_json(report)
    else:
        rows = {
            "frames": f"{target.written} ({width}x{height})",
            "speed": speed_text(report),
            "model": tokenizer.name,
        }
        print_table(f"{path} -> {output}", rows)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        say("decode", f"{problems[0]}{more}; {output} holds the {target.written} good frames")
    return exit_code("decode", bool(problems), received)
