"""``tatok dataset``: videos and folders of pictures to a data set of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tatok_edge.cli.commands import print_json, print_table, say, until_signal
from tatok_edge.datasets.build import Interrupted, Options, make_dataset
from tatok_edge.errors import TaTokError

SHOWN_PROBLEMS = 5
"""Clips with a problem that are named one by one."""


def dataset(inputs: Sequence[str], output: str, options: Options, *, as_json: bool) -> int:
    """Runs the command; returns the exit code."""
    with until_signal() as received:
        try:
            made = make_dataset(inputs, output, options, stopped=lambda: bool(received))
        except Interrupted as stop:
            say("dataset", f"interrupted; {stop} and kept: go on with --resume")
            return 128 + received[0]
        except KeyboardInterrupt:  # the second Ctrl-C
            say("dataset", "interrupted; whole clips are kept: go on with --resume")
            return 130
        except OSError as error:
            reason = error.strerror or str(error)
            raise TaTokError(
                f"{output}: cannot be written ({reason}); whole clips are kept: make room and go on with --resume"
            ) from error
    report = _report(made, output)
    if as_json:
        print_json(report)
    else:
        _print(report)
    problems = report["problems"]
    for problem in problems[:SHOWN_PROBLEMS]:
        say("dataset", problem)
    if len(problems) > SHOWN_PROBLEMS:
        say("dataset", f"and {len(problems) - SHOWN_PROBLEMS} more, all named in the metadata of {output}")
    return 1 if problems else 0


def _report(made: dict[str, Any], output: str) -> dict[str, Any]:
    run = made["run"]
    problems = [f"left out: {clip['problem']}" for clip in made["left_out"]]
    problems += [clip["problem"] for clip in made["clips"] if "problem" in clip]
    names = ("format", "frames", "tokens", "tokens_per_frame", "globals", "vocabulary", "fps", "sizes", "budget")
    return {name: made[name] for name in names} | {
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
        "size": f"{report['bytes'] / 1e6:.2f} MB, {report['bytes'] / report['frames']:.0f} bytes per frame",
    }
    if report["workers"]:
        workers = "1 worker" if report["workers"] == 1 else f"{report['workers']} workers"
        rows["speed"] = f"{report['frames_per_second']:.1f} frames/s ({report['seconds']:.1f} s), {workers}"
    rows["model"] = report["model"]
    print_table(f"{Path(report['output'])} ({report['format']})", rows)
