"""``tatok evaluate``: quality and size over a folder of pictures, and two such measurements compared."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tatok_edge.cli.commands import ModelChoice, print_json
from tatok_edge.errors import InputError
from tatok_edge.evaluation.folder import budget_name, compare_runs, evaluate_folder, markdown_table, plot_runs
from tatok_edge.files import check_target, temporary_name

SUFFIXES = (".json", ".csv", ".md", ".png")
"""What a report can be written as: all of it, a row per picture and budget, a table, a plot."""


def evaluate(
    folder: str,
    keeps: Sequence[float],
    choice: ModelChoice,
    *,
    taus: Sequence[float],
    structure: bool,
    crop: int | None,
    refine: int,
    outputs: Sequence[str],
    force: bool,
    as_json: bool,
) -> int:
    """Measures, prints a table and writes the files.

    Args:
        folder: Folder of pictures.
        keeps: Shares of the patch tokens.
        choice: The model.
        taus: Shares of the score.
        structure: Measure SSIM and MS-SSIM too.
        crop: Side of a centre crop in pixels; None for whole pictures.
        refine: Passes of refining.
        outputs: Files to write, of :data:`SUFFIXES`.
        force: Replace files that are there.
        as_json: Print the report as JSON instead of a table.
    """
    _check_outputs(outputs, force)
    tokenizer = choice.load()
    report = evaluate_folder(
        tokenizer,
        folder,
        keeps,
        taus=taus,
        structure=structure,
        crop=crop,
        refine=refine,
        per_picture=bool(outputs),
    )
    for output in outputs:
        _write(Path(output), report)
    report.pop("pictures", None)
    if as_json:
        print_json(report)
        return 0
    print(f"{tokenizer.name} on {report['images']} pictures of {folder}, {tokenizer.backend.name}")
    print(f"{'keep':>8}{'PSNR dB':>10}{'tokens':>10}{'bits':>12}" + (f"{'SSIM':>9}{'MS-SSIM':>9}" if structure else ""))
    for row in report["results"]:
        line = f"{budget_name(row):>8}{row['psnr_db']:>10.2f}{row['tokens_per_image']:>10.0f}"
        line += f"{row['bits_per_image']:>12.0f}"
        if structure:
            line += "".join("-".rjust(9) if row[k] is None else f"{row[k]:>9.4f}" for k in ("ssim", "ms_ssim"))
        print(line)
    return 0


def compare(anchor: str, run: str, *, outputs: Sequence[str], force: bool, as_json: bool) -> int:
    """Prints the Bjøntegaard deltas of ``run`` to ``anchor``, two JSON reports, and plots both."""
    _check_outputs(outputs, force, (".json", ".png"))
    reports = [_read(Path(path)) for path in (anchor, run)]
    deltas = compare_runs(*reports)
    result = {"anchor": anchor, "run": run, **deltas}
    for output in outputs:
        if output.endswith(".png"):
            _replace(Path(output), lambda path: plot_runs(dict(zip((anchor, run), reports, strict=True)), path))
        else:
            _replace(Path(output), lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))
    if as_json:
        print_json(result)
        return 0
    print(f"{run} beside {anchor}:")
    for kind in ("tokens", "bits"):
        rate, quality = deltas[f"bd_rate_{kind}_percent"], deltas[f"bd_psnr_{kind}_db"]
        rate_text = "no PSNR in common" if rate is None else f"{rate:+.1f} % for the same PSNR"
        quality_text = "no rate in common" if quality is None else f"{quality:+.2f} dB for the same {kind}"
        print(f"{kind:>8}  {rate_text}, {quality_text}")
    return 0


def _check_outputs(outputs: Sequence[str], force: bool, suffixes: Sequence[str] = SUFFIXES) -> None:
    for output in outputs:
        check_target(output, suffixes)
        if Path(output).exists() and not force:
            raise InputError(f"{output} exists; give another name, or --force to replace it")


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON report of 'tatok evaluate -o RUN.json' ({error})") from None
    if not isinstance(report, dict):
        raise InputError(f"{path}: not a JSON report of 'tatok evaluate -o RUN.json'")
    return cast("dict[str, Any]", report)


def _write(path: Path, report: dict[str, Any]) -> None:
    if path.suffix == ".png":
        _replace(path, lambda temporary: plot_runs({report["model"]: report}, temporary))
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
    _replace(path, lambda temporary: temporary.write_text(text))


def _replace(path: Path, write: Any) -> None:
    temporary = temporary_name(path)
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
