"""``tatok evaluate ORIGINAL --against DECODED``: the quality of a decoded video, frame by frame."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice, zip_longest

import numpy as np

from tatok_edge.cli.options import UsageError
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.report import Report, completeness, print_json, print_table, say
from tatok_edge.errors import InputError
from tatok_edge.evaluation.metrics import psnr, structural_similarity
from tatok_edge.geometry import Image
from tatok_edge.recordings.open import open as open_recording
from tatok_edge.sources.open import open_source


def against(args: argparse.Namespace) -> int:
    """Measures every frame of the decoded video against the original, and prints the figures.

    Raises:
        UsageError: An option that is for encoding is given.
        InputError: The frames have different sizes.
    """
    for name in ("keep", "tau", "score", "max_depth", "refine", "crop", "output"):
        if getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} is for encoding; --against compares what was decoded")
    rows: list[dict[str, float]] = []
    problems: list[str] = []
    with (
        _pictures(args.folder, _numbers(args.against)) as original,
        _pictures(args.against) as decoded,
        Progress("comparing", None) as progress,
    ):
        for number, (first, second) in enumerate(islice(zip_longest(original, decoded), args.frames)):
            if first is None or second is None:
                shorter = args.folder if first is None else args.against
                problems.append(f"{shorter} ends after {number} frames, and the other goes on")
                break
            try:
                row = {"psnr_db": psnr(first, second)}
                if args.ssim:
                    similarity = structural_similarity(first, second)
                    row |= {"ssim": similarity.ssim, "ms_ssim": similarity.ms_ssim}
            except InputError as error:
                raise InputError(f"frame {number} of {args.folder} and {args.against}: {error}") from None
            rows.append(row)
            progress.update(len(rows))
    report: Report = {"original": args.folder, "decoded": args.against, "frames": len(rows)}
    for name in rows[0] if rows else ():
        values = np.array([row[name] for row in rows])
        report[name] = {key: round(float(getattr(values, key)()), 4) for key in ("mean", "min", "max")}
    report |= completeness(problems)
    if args.json:
        print_json(report)
    else:
        titles = {"psnr_db": "PSNR dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM"}
        table = {"frames": str(len(rows))}
        for name, title in titles.items():
            if name in report:
                table[title] = "{mean:.4g} ({min:.4g} to {max:.4g})".format(**report[name])
        print_table(f"{args.against} beside {args.folder}", table)
    for problem in problems:
        say("evaluate", problem)
    return 1 if problems else 0


def _numbers(name: str) -> set[int] | None:
    """Numbers of the frames of a token file: a stream within a bandwidth skips some. None for videos and folders."""
    if not name.lower().endswith(".ttk"):
        return None
    with open_recording(name) as recording:
        return {frame.index for frame in recording}


@contextmanager
def _pictures(name: str, numbers: set[int] | None = None) -> Iterator[Iterator[Image]]:
    """The pictures of a token file, a video or a folder, in turn; all of them, or those with these numbers."""
    if name.lower().endswith(".ttk"):
        with open_recording(name) as recording:
            yield (frame.image for frame in recording if numbers is None or frame.index in numbers)
    else:
        with open_source(name) as source:
            yield (frame.image for frame in source if numbers is None or frame.index in numbers)
