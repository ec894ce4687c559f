"""``tatok info``: the header of every packet of a token file or bag, with its CRC checked. --depths needs a model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from tatok_edge.cli.report import FrameTotals, completeness, depth_text, print_json, print_table, say, token_rows
from tatok_edge.cli.token_file import damage
from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.reader import Reader
from tatok_edge.recordings.frames import follow
from tatok_edge.robotics.bags.bag import split_topic

EXAMPLES = (
    "tatok info clip.ttk",
    "tatok info clip.ttk --depths --json",
    "tatok info tokens.mcap",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("input", metavar="IN.ttk", help="the token file, or a bag")
    text = "also count the patches by their number of tokens; reads all tokens, with the model that made them"
    parser.add_argument("--depths", action="store_true", help=text)
    parser.add_argument("--model", metavar="NAME", help="that model, where it is not shipped: the path of its bundle")


def run(args: argparse.Namespace) -> int:
    """Reads the file and prints its figures."""
    path = args.input
    if (bag := split_topic(path)) is not None:
        from tatok_edge.cli.bag_info import report_bag  # imported late: it takes a second, and token files need it not

        if args.depths:
            raise InputError(f"{path}: --depths is for token files; decode the bag, or view its frames")
        return report_bag(*bag, json=args.json)
    start = time.perf_counter()
    totals = FrameTotals()
    with Reader(path) as reader:
        problems = damage(reader)
        first = last = 0
        for number in range(len(reader)):
            try:
                packet = reader.info(number)
            except FormatError as error:
                problems.append(str(error))
                continue
            first = packet.timestamp_us if not totals.frames else first
            last = packet.timestamp_us
            totals.add(packet.width, packet.height, packet.n_tokens, packet.n_patches, packet.size)
        fps = None if reader.fps is None else float(reader.fps)
        depths = None
        if args.depths:
            from tatok_edge.model.bundle import named_bundle  # imported late, as the model is

            depths = _patches_by_depth(reader, args.model or named_bundle(reader.name), problems)
        report = totals.report() | {
            "seconds": round(time.perf_counter() - start, 3),
            "duration_seconds": round((last - first) / 1e6 + (1 / fps if fps else 0), 3),
            "fps": fps,
            "kbit_per_second": _kbps(totals, (last - first) / 1e6, fps),
            "key_frames": sum(reader.is_key(number) for number in range(len(reader))),
            "model": reader.name,
            "model_tag": reader.tag.hex(),
            "levels": list(reader.levels),
            "depth": reader.depth,
            "patches_by_depth": depths,
            "backend": reader.metadata.get("backend"),
            "input": path,
            "file_bytes": Path(path).stat().st_size,
            "metadata": reader.metadata,
            **completeness(problems),
        }
    if args.json:
        print_json(report)
    else:
        rows = token_rows(report)
        rows["model"] = f"{report['model']}, up to {report['depth']} tokens per patch"
        if depths:
            rows["held per patch"] = depth_text(depths)
        every = f", one in {report['frames'] / report['key_frames']:.4g}" if report["key_frames"] > 1 else ""
        rows["keyframes"] = f"{report['key_frames']}{every}"
        rate = report["kbit_per_second"]
        rows["rate"] = "no times" if rate is None else f"{rate:.1f} kbit/s"
        rows["duration"] = f"{report['duration_seconds']:.2f} s" if fps else "no frame rate"
        rows["source"] = str(reader.metadata.get("source", "not stated"))
        print_table(path, rows)
    for problem in problems:
        say("info", problem)
    return 1 if problems else 0


def _kbps(totals: FrameTotals, span: float, fps: float | None) -> float | None:
    """Size of all packets in kbit per second of their times; None where the frames have no times."""
    if totals.frames < 2 or span <= 0:
        return None if fps is None or not totals.frames else round(8 * totals.size / 1000 * fps / totals.frames, 3)
    # The last frame lasts as long as the others.
    return round(8 * totals.size / 1000 / (span * totals.frames / (totals.frames - 1)), 3)


def _patches_by_depth(reader: Reader, model: str | Path, problems: list[str]) -> list[int] | None:
    """Number of patches with 0, 1, ... K tokens, in all frames together, as a decoder holds them.

    Raises:
        BundleError: There is no such model.
        FormatError: The file is of another model.
    """
    from tatok_edge.model.bundle import open_bundle

    counts = np.zeros(reader.depth + 1, np.int64)
    entropy_model = open_bundle(model).entropy_model()
    with Reader(reader.path, entropy_model) as tokens:
        starts = [number for number in range(len(tokens)) if tokens.is_key(number)]
        for start, stop in zip(starts, [*starts[1:], len(tokens)], strict=True):
            try:
                for _, held in follow(tokens, entropy_model, start, stop):
                    counts += np.bincount(held.depths, minlength=counts.size)
            except FormatError as error:
                if str(error) not in problems:
                    problems.append(str(error))
    return [int(count) for count in counts] if counts.any() else None
