"""``tatok info``: the header of every packet of a token file, with its CRC checked. Needs no model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tatok_edge.cli.report import FrameTotals, completeness, print_json, print_table, say, token_rows
from tatok_edge.cli.token_file import damage
from tatok_edge.errors import FormatError
from tatok_edge.format.reader import Reader


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    parser.add_argument("input", metavar="IN.ttk", help="the token file")


def run(args: argparse.Namespace) -> int:
    """Reads the file and prints its figures."""
    path = args.input
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
        report = totals.report() | {
            "seconds": round(time.perf_counter() - start, 3),
            "duration_seconds": round((last - first) / 1e6 + (1 / fps if fps else 0), 3),
            "fps": fps,
            "key_frames": sum(reader.is_key(number) for number in range(len(reader))),
            "model": reader.name,
            "model_tag": reader.tag.hex(),
            "levels": list(reader.levels),
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
        rows["duration"] = f"{report['duration_seconds']:.2f} s" if fps else "no frame rate"
        rows["source"] = str(reader.metadata.get("source", "not stated"))
        print_table(path, rows)
    for problem in problems:
        say("info", problem)
    return 1 if problems else 0
