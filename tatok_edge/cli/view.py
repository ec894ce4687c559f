"""``tatok view``: the depth map and the reconstruction of a frame, above a plot of the tokens of all frames."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tatok_edge.cli.options import SOURCE_HELP, add_force, add_model, model_choice, refuse_bag_options
from tatok_edge.cli.report import completeness, print_json, say
from tatok_edge.cli.token_file import frame_number, open_token_file, token_counts
from tatok_edge.errors import InputError, SourceError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.files import check_target
from tatok_edge.geometry import Image
from tatok_edge.limits import Limits
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.pictures.drawing import depth_legend, depth_overlay, rate_plot, side_by_side, stack
from tatok_edge.pictures.writing import PICTURE_SUFFIXES, write_image
from tatok_edge.recordings.bag import TopicReader
from tatok_edge.recordings.frames import FileDecoder, PacketReader
from tatok_edge.robotics.bags.bag import split_topic
from tatok_edge.sources.open import open_source
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

EXAMPLES = (
    "tatok view clip.ttk -o view.png",
    "tatok view clip.ttk --source clip.mp4 --frame 0 -o view.png",
    "tatok view tokens.mcap --topic /camera/image_raw/tatok -o view.png",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument("input", metavar="IN.ttk", help="the token file, or a bag with a token topic")
    parser.add_argument("-o", "--output", required=True, metavar="PNG", help="the picture to write")
    parser.add_argument("--frame", type=int, metavar="N", help="frame to show, from 0 (default: the middle one)")
    parser.add_argument("--topic", metavar="NAME", help="the token topic of a bag (default: the only one)")
    parser.add_argument("--source", metavar="IN", help="original of the token file, to show beside it: " + SOURCE_HELP)
    add_force(parser)


def run(args: argparse.Namespace) -> int:
    """Draws and writes the picture."""
    path, output = args.input, args.output
    check_target(output, PICTURE_SUFFIXES, force=args.force, inputs=[path, args.source or path])
    with _opened(args) as (tokenizer, reader):
        number = frame_number(reader, len(reader) // 2 if args.frame is None else args.frame)
        decoder = FileDecoder(reader, tokenizer)
        decoded = decoder.image(number)
        tokens, held = decoder.tokens(number)
        counts, problems = token_counts(reader)
    depths = held.depths.reshape(tokens.grid)
    kept = f"{depths.sum()} tokens for {tokens.n_patches} patches ({depths.mean():.2f} per patch)"
    if isinstance(tokens, DeltaFrame):
        kept += f", {tokens.n_tokens} new"
    quality: float | None = None
    if args.source is None:
        panels = [(kept, depth_overlay(decoded, depths)), ("reconstruction", decoded)]
    else:
        original = _original(args.source, path, tokens, tokenizer.limits)
        quality = psnr(original, decoded)
        panels = [
            ("original", original),
            (kept, depth_overlay(original, depths)),
            (f"reconstruction, {quality:.1f} dB", decoded),
        ]
    picture = side_by_side(panels)
    picture = stack([picture, depth_legend(depths, tokenizer.depth, width=picture.shape[1])])
    if len(counts) > 1:
        plot = rate_plot(counts, tokens.n_patches, width=picture.shape[1], mark=number)
        picture = stack([picture, plot])
    write_image(output, picture)
    report = {
        "frame": number,
        "width": tokens.width,
        "height": tokens.height,
        "tokens": tokens.n_tokens,
        "held_tokens": int(depths.sum()),
        "patches": tokens.n_patches,
        "depth": tokenizer.depth,
        "patches_by_depth": np.bincount(depths.ravel(), minlength=tokenizer.depth + 1).tolist(),
        "psnr_db": None if quality is None else round(quality, 3),
        "model": tokenizer.name,
        "backend": tokenizer.backend.name,
        "input": path,
        "output": output,
        **completeness(problems),
    }
    if args.json:
        print_json(report)
    else:
        suffix = "" if quality is None else f", {quality:.1f} dB"
        print(f"{output}: frame {number} of {path}, {kept}{suffix}")
    for problem in problems:
        say("view", problem)
    return 1 if problems else 0


@contextmanager
def _opened(args: argparse.Namespace) -> Iterator[tuple[Tokenizer, PacketReader]]:
    """The model and the packets of the input."""
    if (bag := split_topic(args.input)) is not None:
        tokenizer = model_choice(args).load()
        yield tokenizer, TopicReader(bag[0], args.topic or bag[1], tokenizer)
        return
    refuse_bag_options(args, "topic")
    with open_token_file(args.input, model_choice(args)) as (tokenizer, reader):
        yield tokenizer, reader


def _original(source: str, path: str, tokens: TokenFrame | DeltaFrame, limits: Limits) -> Image:
    """The original of a frame; a single picture is the original of any frame.

    Raises:
        InputError: A live source, or a picture of another size than the tokens.
        SourceError: The source cannot be read, or has no such frame.
    """
    index = tokens.index
    with open_source(source, limits=limits) as opened:
        if opened.live:
            raise InputError(
                f"{source}: a live source cannot show an earlier frame; encode with --snapshot and give that picture"
            )
        image = next((frame.image for frame in opened if frame.index == index or opened.frames == 1), None)
    if image is None:
        raise SourceError(f"{source}: has no frame {index}; give the encoded source")
    height, width = image.shape[:2]
    if (width, height) != (tokens.width, tokens.height):
        raise InputError(
            f"{source}: frame {index} is {width}x{height}, but {path} holds "
            f"{tokens.width}x{tokens.height}; give the encoded source"
        )
    return image
