"""``tatok evaluate``: quality and size over pictures or a video, of a decoded video, and the comparison of two runs."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from tatok_edge.cli.against import against
from tatok_edge.cli.options import (
    UsageError,
    add_force,
    add_frames,
    add_max_depth,
    add_model,
    add_refine,
    add_score,
    keeps,
    model_choice,
    positive,
    shares,
)
from tatok_edge.cli.progress import Progress
from tatok_edge.cli.report import Report, print_json, say
from tatok_edge.errors import InputError
from tatok_edge.evaluation.compare import compare_runs
from tatok_edge.evaluation.folder import count_pictures, evaluate_folder
from tatok_edge.evaluation.plots import plot_runs
from tatok_edge.evaluation.tables import budget_name, markdown_table
from tatok_edge.files import check_target, replaced_file

SUFFIXES = (".json", ".csv", ".md", ".png")
"""Formats of a report: all figures, a row per picture and budget, a table, a plot."""
KEEPS = (4.0, 2.0, 1.0, 0.5, 0.35, 0.25, 0.1)
"""Tokens per patch that are measured where none are given, up to the depth of the model."""

SHOWN_PROBLEMS = 5
"""Pictures left out that are printed at most; the JSON report has all."""


EXAMPLES = (
    "tatok evaluate pictures/ --keep 2,1,0.35",
    "tatok evaluate clip.mp4 --frames 20 -o run.json",
    "tatok evaluate clip.mp4 --against decoded.mp4",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument("folder", nargs="?", metavar="IN", help="folder of pictures, or a video file")
    parser.add_argument(
        "--keep",
        type=keeps,
        metavar="N,...",
        help="tokens per patch to keep (default: 4,2,1,0.5,0.35,0.25,0.1, up to the depth of the model)",
    )
    parser.add_argument("--tau", type=shares, default=[], metavar="TAU,...", help="also keep these shares of the score")
    parser.add_argument("--ssim", action="store_true", help="also measure SSIM and MS-SSIM (extra 'evaluate')")
    add_score(parser)
    add_max_depth(parser)
    add_refine(parser)
    add_frames(parser, "only the first N frames or pictures")
    text = "compare IN with this video, folder or token file, frame by frame, and encode nothing"
    parser.add_argument("--against", metavar="DECODED", help=text)
    parser.add_argument("--crop", type=positive, metavar="SIDE", help="only the middle SIDE x SIDE pixels")
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help="also write the report: .json (to compare), .csv (per picture), .md or .png; can be given several times",
    )
    add_force(parser)
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A.json", "RUN_B.json"),
        help="compare two earlier runs: how many more or fewer tokens and bits B takes than A for the same quality",
    )


def run(args: argparse.Namespace) -> int:
    """Measures a folder or compares two runs, prints a table and writes the files."""
    if (args.folder is None) == (args.compare is None):
        raise UsageError("give pictures or a video, or --compare and two reports")
    if args.against is not None and args.compare is None:
        return against(args)
    if args.compare is not None:
        _compare(args)
        return 0
    return _evaluate(args)


def _evaluate(args: argparse.Namespace) -> int:
    _check_outputs(args.output, args.force)
    tokenizer = model_choice(args).load()
    with Progress("evaluating", count_pictures(args.folder, args.frames), unit="pictures") as progress:
        report = evaluate_folder(
            tokenizer,
            args.folder,
            args.keep or [keep for keep in KEEPS if keep <= tokenizer.depth],
            taus=args.tau,
            score=args.score or "residual",
            max_depth=args.max_depth,
            structure=args.ssim,
            crop=args.crop,
            limit=args.frames,
            refine=args.refine,
            per_picture=bool(args.output),
            advance=progress.update,
        )
    for output in args.output:
        _write(Path(output), report)
    report.pop("pictures", None)
    for line in (*report["notes"], *report["problems"][:SHOWN_PROBLEMS]):
        say("evaluate", line)
    if len(report["problems"]) > SHOWN_PROBLEMS:
        say("evaluate", f"and {len(report['problems']) - SHOWN_PROBLEMS} more pictures left out")
    code = 1 if report["problems"] else 0
    if args.json:
        print_json(report)
        return code
    print(f"{tokenizer.name} on {report['images']} pictures of {args.folder}, {tokenizer.backend.name}")
    similarities = ("ssim", "ms_ssim") if args.ssim else ()
    print(f"{'keep':>8}{'PSNR dB':>10}{'tokens':>10}{'bits':>12}" + (f"{'SSIM':>9}{'MS-SSIM':>9}" if args.ssim else ""))
    for row in report["results"]:
        line = f"{budget_name(row):>8}{row['psnr_db']:>10.2f}{row['tokens_per_image']:>10.0f}"
        line += f"{row['bits_per_image']:>12.0f}"
        line += "".join("-".rjust(9) if row[key] is None else f"{row[key]:>9.4f}" for key in similarities)
        print(line)
    return code


def _compare(args: argparse.Namespace) -> None:
    """Prints the Bjøntegaard deltas of one JSON report to another, and plots both."""
    anchor, test = args.compare
    _check_outputs(args.output, args.force, (".json", ".png"), args.compare)
    reports = [_read(Path(path)) for path in (anchor, test)]
    deltas = compare_runs(*reports)
    result = {"anchor": anchor, "run": test, **deltas}
    for output in args.output:
        with replaced_file(Path(output)) as temporary:
            if output.endswith(".png"):
                plot_runs(dict(zip((anchor, test), reports, strict=True)), temporary)
            else:
                temporary.write_text(json.dumps(result, indent=1) + "\n")
    if args.json:
        print_json(result)
        return
    print(f"{test} beside {anchor}:")
    for kind in ("tokens", "bits"):
        rate, quality = deltas[f"bd_rate_{kind}_percent"], deltas[f"bd_psnr_{kind}_db"]
        rate_text = "no PSNR in common" if rate is None else f"{rate:+.1f} % for the same PSNR"
        quality_text = "no rate in common" if quality is None else f"{quality:+.2f} dB for the same {kind}"
        print(f"{kind:>8}  {rate_text}, {quality_text}")


def _check_outputs(
    outputs: Sequence[str], force: bool, suffixes: Sequence[str] = SUFFIXES, inputs: Sequence[str] = ()
) -> None:
    for output in outputs:
        check_target(output, suffixes, force=force, inputs=inputs)


def _read(path: Path) -> Report:
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON report of 'tatok evaluate -o RUN.json' ({error})") from None
    if not isinstance(report, dict):
        raise InputError(f"{path}: not a JSON report of 'tatok evaluate -o RUN.json'")
    return cast("Report", report)


def _write(path: Path, report: Report) -> None:
    if path.suffix == ".png":
        with replaced_file(path) as temporary:
            plot_runs({report["model"]: report}, temporary)
        return
    if path.suffix == ".json":
        text = json.dumps(report, indent=1) + "\n"
    elif path.suffix == ".md":
        text = markdown_table(report["results"])
    else:
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(report["pictures"][0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(report["pictures"])
        text = stream.getvalue()
    _replace(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    with replaced_file(path) as temporary:
        write(temporary)
