"""The goals of the model that ships, and what the results of the other scripts say about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

PSNR = {0.1: 24.0, 0.35: 26.3, 1.0: 28.5, 2.0: 30.0, 4.0: 31.0}
"""Least PSNR in dB on Kodak at full size, by tokens per patch."""
MS_SSIM = {0.35: 0.869, 1.0: 0.940, 2.0: 0.962, 4.0: 0.972}
"""Least MS-SSIM there."""
REFINED_DB = 0.3
"""Least gain of eight passes of refining, in dB, from one token per patch on."""
BD_RATES = (
    ("bd_rate", "AVIF at 0.05-0.4 bits per pixel", "AVIF, 0.05 to 0.4 bits/pixel", 10.0),
    ("bd_rate_refined", "AVIF at 0.05-0.4 bits per pixel", "AVIF, 0.05 to 0.4 bits/pixel, refined", 0.0),
    ("bd_rate", "JPEG", "JPEG", -65.0),
)
"""Part of the report of fidelity.py, its codec, what it is called, and the largest BD-rate in percent."""
SEAM = 1.15
"""Largest gradient across patch borders, as a multiple of the gradient inside."""
STRINGS, CLASSES = 8, 0.5
"""Strings and share of first classes that two tokens per patch keep."""
ENCODE_TIMES, ENCODE_DECODE_MS, INT8_TIMES = 2.0, 110.0, 1.8
"""At 640x480: 0.35 tokens per patch against all; one token per patch, encoded and decoded; int8 against fp32."""
POLICY_POINTS, POLICY_TOKENS, POLICY_TIMES = 3.0, 4.0, 3.0
"""Largest loss of success in points, and how many times fewer tokens and faster inference."""


class Goal(NamedTuple):
    """A line of the table."""

    what: str
    goal: str
    measured: str
    reached: bool


def at_least(what: str, goal: float, value: float, form: str, more: str = "") -> Goal:
    """A goal that larger values reach."""
    return Goal(what, f"at least {form.format(goal)}", form.format(value) + more, value >= goal)


def at_most(what: str, goal: float, value: float, form: str, more: str = "") -> Goal:
    """A goal that smaller values reach."""
    return Goal(what, f"at most {form.format(goal)}", form.format(value) + more, value <= goal)


def per_patch(keep: float) -> str:
    """A budget in words."""
    return "all tokens" if keep == max(PSNR) else f"{keep:g} per patch"


def of_quality(report: Mapping[str, Any]) -> Iterator[Goal]:
    """PSNR, MS-SSIM and seams."""
    rows = {row["keep"]: row for row in report["results"]}
    for keep, least in PSNR.items():
        yield at_least(f"Kodak, PSNR, {per_patch(keep)}", least, rows[keep]["psnr_residual"], "{:.2f} dB")
    for keep, least in MS_SSIM.items():
        visual = "" if keep == max(PSNR) else f" (`--score visual`: {rows[keep]['ms_ssim_visual']:.3f})"
        yield at_least(f"Kodak, MS-SSIM, {per_patch(keep)}", least, rows[keep]["ms_ssim_residual"], "{:.3f}", visual)
    worst = max(report["results"], key=lambda row: float(row["seam8"]))
    where = f" (at {per_patch(worst['keep'])})"
    yield at_most("Kodak, gradient across patch borders in smooth areas", SEAM, worst["seam8"], "{:.2f}x", where)


def of_fidelity(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Refining, and bits beside codecs."""
    plain, refined = (
        {row["keep"]: row["psnr_db"] for row in report["sets"][name]["results"]} for name in ("kodak", "kodak-refined")
    )
    for keep in sorted(keep for keep in refined if keep >= 1):
        gain = refined[keep] - plain[keep]
        yield at_least(f"Kodak, gain of 8 passes of refining, {per_patch(keep)}", REFINED_DB, gain, "{:.2f} dB")
    for part, codec, name, most in BD_RATES:
        yield at_most(f"Kodak, bits against {name}", most, report[part][codec]["percent"], "{:+.0f} %")


def of_perception(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Text, classes and faces at two tokens per patch."""
    found = report["sets"]["kodak"]
    rows = {row["method"]: row for row in found["results"] if row["budget"] == "2"}
    ours, visual, jpeg = (rows[name] for name in ("tokens, residual", "tokens, visual", "JPEG"))
    there = found["there"]

    def more(key: str, form: str, of: float) -> str:
        return f" (`--score visual`: {form.format(visual[key] / of)}, JPEG: {form.format(jpeg[key] / of)})"

    strings = f"Kodak, strings of {there['strings']} still read, 2 per patch"
    yield at_least(strings, STRINGS, ours["strings"], "{:.0f}", more("strings", "{:.0f}", 1))
    share = ours["classes"] / there["classes"]
    unchanged = more("classes", "{:.1%}", there["classes"])
    yield at_least("Kodak, first class unchanged, 2 per patch", CLASSES, share, "{:.1%}", unchanged)
    faces = f"Kodak, faces of {there['faces']} still found, 2 per patch, against JPEG of equal size"
    yield at_least(faces, jpeg["faces"], ours["faces"], "{:.0f}")


def of_speed(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Times at 640x480."""
    size = next(row for row in report["sizes"] if row["width"] == 640)
    yield at_least("640x480, encoding 0.35 per patch against all", ENCODE_TIMES, size["speedup_of_035"], "{:.1f}x")
    total = size["whole"]["encode_1_ms"]["median"] + size["whole"]["decode_ms"]["median"]
    yield at_most("640x480, encoding 1 per patch and decoding", ENCODE_DECODE_MS, total, "{:.0f} ms")
    row = next(row for row in report["int8"] if row["width"] == 640)
    fp32, int8 = (sum(row[f"{name}{kind}ms"]["median"] for name in ("encode_", "decode_")) for kind in ("", "int8_"))
    yield at_least("640x480, int8 against fp32, encoding and decoding", INT8_TIMES, fp32 / int8, "{:.2f}x")


def of_policy(report: Mapping[str, Any]) -> Iterator[Goal]:
    """A policy on fewer tokens."""
    fixed, ours = report["results"]
    points = 100 * float(np.mean(fixed["success"]) - np.mean(ours["success"]))
    times = {
        key: float(np.mean(fixed[key]) / np.mean(ours[key])) for key in ("tokens", "inference_ms", "large_inference_ms")
    }
    yield at_least("policy, fewer tokens", POLICY_TOKENS, times["tokens"], "{:.1f}x")
    yield at_most("policy, success lost", POLICY_POINTS, points, "{:.1f} points")
    larger = f" (a larger policy: {times['large_inference_ms']:.1f}x)"
    yield at_least("policy, faster inference", POLICY_TIMES, times["inference_ms"], "{:.1f}x", larger)


def of_robotics(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Size of a bag."""
    name = "bag, token topic against raw topic"
    yield at_least(name, report["goal_times_smaller"], report["times_smaller"], "{:.0f}x smaller")


def of_profiles(report: Mapping[str, Any]) -> Iterator[Goal]:
    """Padded work of engines."""
    count = str(report["default_buckets"])
    for mode, name in (("stream", "streams"), ("frames", "single frames")):
        figures = report[mode]["pooled"]["own"][count]
        what = f"TensorRT, padded work of {count} buckets, {name}"
        yield at_most(what, report["goal"]["waste"], figures["calibrated"], "{:.1%}")


READERS = {
    "quality": of_quality,
    "fidelity": of_fidelity,
    "perception": of_perception,
    "speed": of_speed,
    "policy": of_policy,
    "robotics": of_robotics,
    "profiles": of_profiles,
}
"""Result and the goals that it decides."""


def table(reports: Mapping[str, Mapping[str, Any] | None]) -> str:
    """The goals as a Markdown table; those of a result that is None are left out."""
    lines = ["| what | goal | measured | |", "|---|---|---|---|"]
    for name, read in READERS.items():
        if (report := reports.get(name)) is not None:
            for goal in read(report):
                verdict = "reached" if goal.reached else "**missed**"
                lines.append(f"| {goal.what} | {goal.goal} | {goal.measured} | {verdict} |")
    return "\n".join(lines) + "\n"
