"""Padded work of the patch encoder: buckets calibrated on a clip against buckets of equal width.

``python benchmarks/profiles.py ../shared/data/videos --out benchmarks/results``. Engines run the patch encoder on fixed
numbers of rows, so each call is padded to the next edge. Rows are counted for single frames at a budget and for
streams, one by one and as cameras of one rig. Waste is padded rows per row that is needed. No times are measured, so
the machine need not be quiet.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common

from tatok_edge.export.engines.profiles import (
    BUCKETS,
    PATCH,
    TokenCounts,
    calibrated_edges,
    count_tokens,
    equal_width,
    histogram_of,
    optimal_buckets,
    waste,
)
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.budget import TokenBudget

COUNTS = (4, 8)
"""Numbers of buckets."""
TAU = 0.5
"""Budget of single frames: the default of ``tatok build --calibrate-as frames``."""
RIG = ("bottles_static", "cups_static", "coffee_static", "dog_static")
"""Clips that are also used as the cameras of one rig."""
GOAL, GOAL_RATIO = 0.15, 0.5
"""Goals: largest waste of calibrated buckets, alone and relative to the waste of buckets of equal width."""


@dataclass(frozen=True, slots=True)
class Load:
    """Calls of the patch encoder by one clip or rig."""

    name: str
    histogram: Mapping[int, int]
    """Counts of the numbers of rows in a call."""
    most: int
    """Largest number of rows."""
    halves: tuple[Mapping[int, int], Mapping[int, int]]
    """The same counts for the first and the second half."""


def load_of(name: str, cameras: Sequence[TokenCounts]) -> Load:
    """The load of cameras in step."""
    length = min(len(camera.counts) for camera in cameras)
    parts = []
    for first, last in ((0, length), (0, length // 2), (length // 2, length)):
        cut = [
            # A stream encodes whole frames mostly at the beginning; each half gets half of these calls.
            TokenCounts(c.counts[first:last], c.width, c.height, c.probes * (last - first) // length)
            for c in cameras
        ]
        single, steps = histogram_of(cut)
        # In a rig, one call encodes the frames of all cameras; whole frames are encoded alone.
        whole = Counter[int]()
        for camera in cut:
            whole[camera.width // PATCH * (camera.height // PATCH)] += camera.probes
        parts.append({t: n for t, n in ((steps + whole) if steps else single).items() if t and n})
    most = sum(camera.width // PATCH * (camera.height // PATCH) for camera in cameras)
    return Load(name, parts[0], most, (parts[1], parts[2]))


def row(load: Load) -> dict[str, Any]:
    """The waste of one load for every number of buckets."""
    rows = [t for t, n in sorted(load.histogram.items()) for _ in range(n)]
    result: dict[str, Any] = {
        "name": load.name,
        "calls": len(rows),
        "median_rows": statistics.median(rows),
        "most_rows": load.most,
        "histogram": sorted(load.histogram.items()),
        "buckets": {},
    }
    for count in COUNTS:
        edges = calibrated_edges(load.histogram, count, load.most)
        learned = calibrated_edges(load.halves[0], count, load.most)
        result["buckets"][count] = {
            "edges": edges,
            "calibrated": round(waste(load.histogram, edges), 5),
            "equal": round(waste(load.histogram, equal_width(count, 1, load.most)), 5),
            "held_out": round(waste(load.halves[1], learned), 5),
        }
    return result


def pooled(loads: Sequence[Load]) -> dict[str, Any]:
    """All loads together: each with its own edges, and all with one set of edges."""
    result: dict[str, Any] = {"own": {}, "shared": {}}
    needed = sum(t * n for load in loads for t, n in load.histogram.items())
    needed_later = sum(t * n for load in loads for t, n in load.halves[1].items())
    everything = Counter[int]()
    for load in loads:
        everything.update(load.histogram)
    most = max(load.most for load in loads)
    for count in COUNTS:
        calibrated = equal = held_out = exact = 0.0
        for load in loads:
            one = sum(t * n for t, n in load.histogram.items())
            later = sum(t * n for t, n in load.halves[1].items())
            calibrated += one * waste(load.histogram, calibrated_edges(load.histogram, count, load.most))
            equal += one * waste(load.histogram, equal_width(count, 1, load.most))
            held_out += later * waste(load.halves[1], calibrated_edges(load.halves[0], count, load.most))
            exact += later * waste(load.halves[1], optimal_buckets(load.halves[0], count, 1, load.most))
        result["own"][count] = {
            "calibrated": round(calibrated / needed, 5),
            "equal": round(equal / needed, 5),
            "held_out": round(held_out / needed_later, 5),
            "held_out_exact": round(exact / needed_later, 5),
        }
        result["shared"][count] = {
            "calibrated": round(waste(everything, calibrated_edges(everything, count, most)), 5),
            "equal": round(waste(everything, equal_width(count, 1, most)), 5),
        }
    return result


def met(figures: Mapping[str, float]) -> bool:
    """Whether the buckets reach the goals."""
    return figures["calibrated"] <= GOAL and figures["calibrated"] <= GOAL_RATIO * figures["equal"]


def run(tokenizer: Tokenizer, clips: Sequence[Path], frames: int | None) -> dict[str, Any]:
    """All figures."""
    report: dict[str, Any] = {
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "frames_per_clip": frames or "all",
        "default_buckets": BUCKETS,
        "goal": {"waste": GOAL, "share_of_equal": GOAL_RATIO},
    }
    for mode, budget in (("frames", TokenBudget(tau=TAU)), ("stream", TokenBudget())):
        counts = {}
        for clip in clips:
            print(f"{mode}: {clip.name}", flush=True)
            counts[clip.stem] = count_tokens(str(clip), tokenizer, budget, frames=frames, count_as=mode)
        loads = [load_of(name, [one]) for name, one in counts.items()]
        rig = [counts[name] for name in RIG if name in counts]
        part = {
            "budget": f"tau={TAU:g}, score={budget.score}" if mode == "frames" else "a stream's default loss",
            "clips": [row(load) for load in loads],
            "rig": row(load_of(f"rig of {len(rig)}", rig)) if len(rig) > 1 else None,
            "pooled": pooled(loads),
        }
        part["met"] = {count: met(part["pooled"]["own"][count]) for count in COUNTS}
        part["clips_met"] = {count: sum(met(one["buckets"][count]) for one in part["clips"]) for count in COUNTS}
        report[mode] = part
    return report


def _cells(figures: Mapping[int, Mapping[str, float]]) -> str:
    return " | ".join(
        f"{one['calibrated']:.1%} | {one['held_out']:.1%} | {one['equal']:.1%}"
        if "held_out" in one
        else f"{one['calibrated']:.1%} | | {one['equal']:.1%}"
        for one in (figures[count] for count in COUNTS)
    )


def markdown(report: Mapping[str, Any]) -> str:
    """The tables."""
    lines = [
        f"{report['model']} `{report['tag']}`, frames per clip: {report['frames_per_clip']}. Padded rows of the patch "
        "encoder per row that is needed, with buckets calibrated on the clip, with buckets calibrated on its first "
        "half and measured on its second (held out), and with as many buckets of equal width.",
    ]
    for mode, title in (("stream", "Streams"), ("frames", "Single frames")):
        part = report[mode]
        lines += ["", f"{title} ({part['budget']}):", ""]
        heads = [f"{count} buckets | held out | equal width" for count in COUNTS]
        lines.append("| clip | calls | rows, median | rows, most | " + " | ".join(heads) + " |")
        lines.append("|" + "---|" * (4 + 3 * len(COUNTS)))
        rows = [*part["clips"], *([part["rig"]] if part["rig"] else [])]
        for one in rows:
            lines.append(
                f"| {one['name']} | {one['calls']} | {one['median_rows']:g} | {one['most_rows']} | "
                f"{_cells(one['buckets'])} |"
            )
        lines.append(f"| **all clips, each with its own buckets** | | | | {_cells(part['pooled']['own'])} |")
        lines.append(f"| **all clips, one set of buckets** | | | | {_cells(part['pooled']['shared'])} |")
        lines.append("")
        for count in COUNTS:
            yes = "reached" if part["met"][count] else "missed"
            alone = f"{part['clips_met'][count]} of {len(part['clips'])} clips"
            exact = part["pooled"]["own"][count]["held_out_exact"]
            lines.append(
                f"- {count} buckets: the goal, at most {GOAL:.0%} and at most {GOAL_RATIO:g} times equal widths, is "
                f"{yes} over all clips; {alone} reach it alone. Buckets that fit the first halves exactly, without "
                f"room, waste {exact:.1%} of the second ones."
            )
    lines += ["", f"`tatok build --calibrate` makes up to {report['default_buckets']} buckets."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of clips")
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--frames", type=int, help="largest number of frames of each clip")
    parser.add_argument("--clips", type=int, help="largest number of clips")
    options = parser.parse_args()
    clips = sorted(options.folder.glob("*.mp4"))[: options.clips]
    if not clips:
        raise SystemExit(f"{options.folder}: no clips (*.mp4)")
    with Tokenizer.load(options.model, backend="onnxruntime", threads=options.threads) as tokenizer:
        report = run(tokenizer, clips, options.frames)
    common.publish("profiles", report, markdown(report), options.out, indent=None)


if __name__ == "__main__":
    main()
