"""Put the results of ``benchmarks/results`` into README.md and the pages: ``python benchmarks/readme.py``.

``--check`` compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import goals
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = {
    "quality": "quality",
    "fidelity": "fidelity",
    "perception": "perception",
    "policy": "policy",
    "streams": "stream",
    "speed": "speed",
    "memory": "memory",
    "demo": "demo",
    "robotics": "robotics",
    "datasets": "datasets",
    "videos": "videos",
    "profiles": "profiles",
    "ablations": "ablations",
    "generation": "generation",
    "gpu": "gpu",
    "kernels": "cuda_kernels",
}
"""Section of docs/measured.md and the result that fills it."""
SECURITY = {"hardening": "hardening", "soak": "soak"}
"""The same for docs/security.md."""


TAG = json.loads((ROOT / "tatok_edge" / "models" / "tatok-s8" / "manifest.json").read_text())["tag"]
"""Tag of the model that ships."""


def result(name: str) -> dict[str, Any] | None:
    """A result of the model that ships; None where there is none of it."""
    path = RESULTS / f"{name}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found if found.get("tag") == TAG else None


def summary() -> str:
    """The most important figures, one line each; figures of other models are left out."""
    lines = [
        "Measured on two CPU cores. Fixed rate: one token for every patch of every frame. PSNR: how close the "
        "picture is; from about 35 dB on, eyes see little difference.",
        "",
    ]
    lines += ["| what | figure |", "|---|---|"]
    if clip := result("readme"):
        fewer = clip["fixed_tokens"] / clip["tokens"]
        lines.append(
            f"| the clip above, as a stream | {fewer:.0f}x fewer tokens than fixed rate, "
            f"PSNR {clip['psnr_db']:.1f} dB, {clip['kbit_per_second']:.0f} kbit/s at {clip['fps']} frames/s |"
        )
    if streams := result("stream"):
        for camera in ("static", "moving"):
            rows = [row for row in streams["clips"] if row["camera"] == camera]
            fewer, loss = (float(np.mean([row[name] for row in rows])) for name in ("fewer", "psnr_loss"))
            lines.append(
                f"| {len(rows)} clips of a {camera} camera | {fewer:.1f}x fewer tokens, PSNR {-loss:+.1f} dB |"
            )
        if "live" in streams:
            latency = streams["live"]["in_time"]["latency_ms"]
            lines.append(f"| latency of a live 640x480 camera, 95 % | {latency['p95']:.0f} ms |")
    if quality := result("quality"):
        at = {row["keep"]: row for row in quality["results"]}
        shown = [(keep, at[keep]) for keep in (2.0, 1.0, 0.35) if keep in at]
        figures = "PSNR " + ", ".join(f"{row['psnr_residual']:.1f} dB ({keep:g} per patch)" for keep, row in shown)
        lines.append(f"| Kodak pictures at full size | {figures} |")
    return "\n".join(lines) + "\n"


CLIPS = {
    "person_room_static": "a still camera, people walk through a room",
    "highway_static": "a still camera, a busy motorway",
    "bedroom_handheld": "a hand-held camera, children jump on a bed",
    "dashcam_highway": "a camera in a car on a motorway",
}
"""Clips of the comparison with video codecs: little, much and all of the picture changes."""


def codecs() -> str:
    """Bandwidth of streams beside that of video codecs at equal PSNR; empty without figures of the model that ships."""
    found = result("stream") or {"clips": []}
    clips = {row["clip"]: row for row in found["clips"] if {"fps", "x264_psnr", "svt_av1_psnr"} <= row.keys()}
    if not clips.keys() & CLIPS.keys():
        return ""
    lines = [
        f"kbit/s at equal PSNR, the first {found['frames']} frames of each clip with one keyframe (x264 veryfast "
        "zerolatency, SVT-AV1 preset 12 for low delay; in brackets the PSNR of a codec that does not get as low):",
        "",
        "| clip | PSNR | tokens | H.264 (x264) | AV1 (SVT-AV1) |",
        "|---|---|---|---|---|",
    ]
    for name in [name for name in CLIPS if name in clips]:
        row = clips[name]
        width, height = map(int, row["size"].split("x"))
        kbit = width * height * row["fps"] / 1000
        quality = row["psnr_fixed"] - row["psnr_loss"]
        rates = [f"{row[f'{codec}bits_per_pixel'] * kbit:.0f}" for codec in ("", "x264_", "svt_av1_")]
        for place, codec in ((1, "x264"), (2, "svt_av1")):
            if abs(row[f"{codec}_psnr"] - quality) >= 0.05:
                rates[place] += f" ({row[f'{codec}_psnr']:.1f} dB)"
        clip = f"{CLIPS[name]}, {row['size']}, {row['fps']:g} frames/s"
        lines.append(f"| {clip} | {quality:.1f} dB | {' | '.join(rates)} |")
    return "\n".join(lines) + "\n"


def section(name: str) -> str:
    """The table of a result; one line where there is none yet."""
    path = RESULTS / f"{name}.md"
    return path.read_text() if path.exists() else f"Not measured; `benchmarks/{name}.py` measures it.\n"


def filled(text: str, sections: dict[str, str], where: str) -> str:
    """The text of a page with its table in every marked section."""
    for name, table in sections.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{where}: the markers of section '{name}' are missing")
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit with 1 when a page is not up to date")
    args = parser.parse_args()
    tables = {name: section(found) for name, found in SECTIONS.items()}
    tables["goals"] = f"tatok-s8 `{TAG}`.\n\n" + goals.table({name: result(name) for name in goals.READERS})
    outdated = 0
    pages = {
        ROOT / "README.md": {"summary": summary(), "codecs": codecs()},
        ROOT / "docs" / "measured.md": tables,
        ROOT / "docs" / "security.md": {name: section(found) for name, found in SECURITY.items()},
    }
    for page, sections in pages.items():
        old = page.read_text()
        new = filled(old, sections, page.name)
        outdated |= old != new
        if not args.check:
            page.write_text(new)
    return int(outdated and args.check)


if __name__ == "__main__":
    sys.exit(main())
