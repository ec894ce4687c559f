"""``tatok dataset``: videos and folders of pictures to a data set of tokens."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tatok_edge.cli.interrupt import until_signal
from tatok_edge.cli.options import (
    UsageError,
    add_budget,
    add_choice,
    add_force,
    add_frames,
    add_model,
    model_choice,
    positive,
    token_budget,
)
from tatok_edge.cli.progress import StageProgress
from tatok_edge.cli.report import depth_text, print_json, print_table, say
from tatok_edge.datasets.build import Interrupted, Options, make_dataset
from tatok_edge.datasets.formats import FORMATS
from tatok_edge.errors import TaTokError
from tatok_edge.model.bundle import DEFAULT_MODEL

SHOWN_PROBLEMS = 5
"""Largest number of clips whose problem is printed."""


EXAMPLES = (
    "tatok dataset videos/ -o tokens --tau 0.8",
    "tatok dataset videos/ -o tokens --format parquet --workers 2",
    "tatok dataset videos/ -o tokens --tau 0.8 --resume",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="videos, folders of pictures, bags, folders of these, or .txt files with one path a line: a clip each; "
        "or one LeRobot data set (v3.0)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="the folder to make")
    text = "memory-mapped arrays (default), Parquet, tar shards, or LeRobot's layout (default for a LeRobot data set)"
    parser.add_argument("--format", choices=FORMATS, help=text)
    add_budget(parser)
    add_frames(parser, "take the first N frames of every clip")
    parser.add_argument("--fps", type=float, metavar="RATE", help="frame rate of inputs without one: pictures, bags")
    parser.add_argument("--workers", type=positive, metavar="N", help="workers (default: one per core)")
    text = "processes of this machine (default), or Ray: a cluster where RAY_ADDRESS names one"
    add_choice(parser, "--engine", ("local", "ray"), text)
    parser.add_argument("--shard-mb", type=positive, metavar="MB", help="size of a file of the sharded formats")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    add_force(parser)


def run(args: argparse.Namespace) -> int:
    """Makes the data set, and prints its figures."""
    options = _options(args)
    with until_signal() as received, StageProgress() as progress:

        def advance(stage: str, done: int, total: int | None, note: str) -> None:
            progress.advance(stage, done, total, note, unit="clips" if stage == "writing" else "frames")

        try:
            made = make_dataset(args.inputs, args.output, options, stopped=lambda: bool(received), advance=advance)
        except Interrupted as stop:
            progress.clear()
            say("dataset", f"interrupted; {stop} and kept: continue with --resume")
            return 128 + received[0]
        except KeyboardInterrupt:  # the second Ctrl-C
            progress.clear()
            say("dataset", "interrupted; whole clips are kept: continue with --resume")
            return 130
        except OSError as error:
            reason = error.strerror or str(error)
            raise TaTokError(
                f"{args.output}: cannot be written ({reason}); whole clips are kept: free space and use --resume"
            ) from error
    report = _report(made, args.output)
    if args.json:
        print_json(report)
    else:
        _print(report)
    for note in report["notes"][:SHOWN_PROBLEMS]:
        say("dataset", note)
    problems = report["problems"]
    for problem in problems[:SHOWN_PROBLEMS]:
        say("dataset", problem)
    if len(problems) > SHOWN_PROBLEMS:
        say("dataset", f"and {len(problems) - SHOWN_PROBLEMS} more, all named in the metadata of {args.output}")
    return 1 if problems else 0


def _options(args: argparse.Namespace) -> Options:
    """How the data set is made.

    Raises:
        UsageError: Options that exclude each other, or a value outside its range.
    """
    if args.resume and args.force:
        raise UsageError("--resume continues the data set in OUT and --force replaces it: give one of them")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise UsageError(f"--fps must be above 0 and at most 1000, got {args.fps:g}")
    if args.precision != "fp32":
        raise UsageError("a data set holds the tokens of fp32, on every machine the same: leave --precision out")
    return Options(
        format=args.format,
        model=args.model or DEFAULT_MODEL,
        backend=args.backend,
        threads=args.threads,
        budget=token_budget(args),
        frames=args.frames,
        fps=args.fps,
        limits=model_choice(args).limits,
        workers=args.workers,
        engine=args.engine,
        shard_bytes=None if args.shard_mb is None else args.shard_mb << 20,
        resume=args.resume,
        force=args.force,
    )


def _report(made: dict[str, Any], output: str) -> dict[str, Any]:
    run = made["run"]
    problems = [f"left out: {clip['problem']}" for clip in made["left_out"]]
    problems += [clip["problem"] for clip in made["clips"] if "problem" in clip]
    names = (
        "format",
        "frames",
        "tokens",
        "tokens_per_frame",
        "globals",
        "vocabulary",
        "depth",
        "patches_by_depth",
        "fps",
    )
    return {name: made[name] for name in (*names, "sizes", "budget")} | {
        "clips": len(made["clips"]),
        "left_out": len(made["left_out"]),
        "model": made["model"]["name"],
        "model_tag": made["model"]["tag"],
        "output": output,
        "bytes": run["bytes"],
        "seconds": run["seconds"],
        "frames_per_second": round(run["encoded_frames"] / max(run["seconds"], 1e-9), 2),
        "workers": run["workers"],
        "resumed_clips": run["resumed_clips"],
        "complete": not problems,
        "problems": problems,
        "notes": run["notes"],
    }


def _print(report: dict[str, Any]) -> None:
    tokens = report["tokens_per_frame"]
    width, height, _ = report["sizes"][0]
    more = "" if len(report["sizes"]) == 1 else ", and other sizes"
    rate = f", {report['fps']:.4g} frames/s" if report["fps"] else ""
    resumed = f" ({report['resumed_clips']} were there already)" if report["resumed_clips"] else ""
    rows = {
        "clips": f"{report['clips']}{resumed}",
        "frames": f"{report['frames']} ({width}x{height}{more}{rate})",
        "tokens per frame": f"{tokens['mean']:.0f} ({tokens['min']} to {tokens['max']}), "
        f"and {report['globals'] / report['frames']:.0f} global tokens",
        "tokens per patch": depth_text(report["patches_by_depth"]),
        "size": f"{report['bytes'] / 1e6:.2f} MB, {report['bytes'] / report['frames']:.0f} bytes per frame",
    }
    if report["workers"]:
        workers = "1 worker" if report["workers"] == 1 else f"{report['workers']} workers"
        rows["speed"] = f"{report['frames_per_second']:.1f} frames/s ({report['seconds']:.1f} s), {workers}"
    rows["model"] = report["model"]
    print_table(f"{Path(report['output'])} ({report['format']})", rows)
