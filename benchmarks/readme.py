"""Put the results of ``benchmarks/results`` into README.md and docs/measured.md: ``python benchmarks/readme.py``.

``--check`` compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SECTIONS = {
    "quality": "quality",
    "fidelity": "fidelity",
    "ablations": "ablations",
    "generation": "generation",
    "streams": "stream",
    "streams-refined": "stream-refined",
    "speed": "speed",
    "memory": "memory",
    "demo": "demo",
    "robotics": "robotics",
    "datasets": "datasets",
    "profiles": "profiles",
    "gpu": "gpu",
    "kernels": "cuda_kernels",
}
"""Section of docs/measured.md and the result that fills it."""


def summary() -> str:
    """The most important figures, one line each."""
    quality, streams, refined, speed = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("quality", "stream", "stream-refined", "speed")
    )
    at = {row["keep"]: row for row in quality["results"]}
    largest = speed["sizes"][-1]
    lines = [
        f"{streams['machine']['cpu']}, {streams['machine']['cores']} cores, ONNX Runtime, fp32; fixed rate: the same "
        "networks, every patch token of every frame.",
        "",
        "| what | figure |",
        "|---|---|",
        "| Kodak at full size, 100, 35 and 10 % of the tokens | "
        + ", ".join(
            f"{at[keep]['psnr_residual']:.1f} dB ({at[keep]['bpp']:.3f} bits/pixel)" for keep in (1.0, 0.35, 0.1)
        )
        + " |",
        f"| Dynamic Token Filtering over dropping at random, at 35 % | "
        f"+{at[0.35]['psnr_residual'] - at[0.35]['psnr_random']:.1f} dB |",
        f"| encode and decode of {largest['width']}x{largest['height']} with all tokens | "
        f"{largest['whole']['encode_ms']['median']:.0f} and {largest['whole']['decode_ms']['median']:.0f} ms |",
    ]
    for row in speed.get("int8", [])[-1:]:
        fp32, int8 = row["decode_ms"]["median"], row["decode_int8_ms"]["median"]
        lines.append(f"| decode it with `--precision int8` | {int8:.0f} ms, {fp32 / int8:.1f}x faster |")
    for camera in ("static", "moving"):
        rows = [row for row in streams["clips"] if row["camera"] == camera]

        def mean(name: str, rows: list[dict[str, Any]] = rows) -> float:
            return float(np.mean([row[name] for row in rows]))

        faster = float(np.mean([row["fixed_ms"] / row["stream_ms"] for row in rows]))
        lines += [
            f"| {len(rows)} clips of a {camera} camera, stream against fixed rate, {mean('psnr_loss'):.2f} dB lost | "
            f"{mean('fewer'):.1f}x fewer tokens, encoded {faster:.1f}x faster |",
            f"| a transformer that reads 20 frames of them | {mean('read_20'):.1f}x faster |",
        ]
        more = [row for row in refined["clips"] if row["camera"] == camera]
        slower = mean("stream_ms", more) / mean("stream_ms")
        first = f"the first {refined['frames']} frames of each " if refined.get("frames") else "the same clips "
        lines.append(
            f"| {first}with `--refine {refined['refine']}`, {mean('psnr_loss', more):.2f} dB lost | "
            f"{mean('fewer', more):.1f}x fewer tokens, encoded {slower:.0f}x slower than without |"
        )
    seen, latency = streams["detection"], streams["live"]["in_time"]["latency_ms"]
    lines += [
        f"| a new object of 16x16 pixels gets a token in its first frame | {seen['seen']:.1%} of {seen['trials']} |",
        f"| latency of a live 640x480 camera at 15 frames/s, 95 % | {latency['p95']:.0f} ms |",
    ]
    return "\n".join(lines) + "\n"


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
    tables = {section: (RESULTS / f"{result}.md").read_text() for section, result in SECTIONS.items()}
    outdated = 0
    for page, sections in ((ROOT / "README.md", {"summary": summary()}), (ROOT / "docs" / "measured.md", tables)):
        old = page.read_text()
        new = filled(old, sections, page.name)
        outdated |= old != new
        if not args.check:
            page.write_text(new)
    return int(outdated and args.check)


if __name__ == "__main__":
    sys.exit(main())
