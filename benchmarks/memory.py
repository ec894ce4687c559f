"""Peak memory of ``tatok encode``: a clip, the same clip ten times over, and 640x480 pixels.

``python benchmarks/memory.py ../shared/data/videos/highway_static.mp4 --out benchmarks/results``
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

import common

from tatok_edge.evaluation.speed import machine
from tatok_edge.model.bundle import open_bundle
from tatok_edge.pictures.writing import open_output
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import USUAL_FPS

TIMES = 10
VGA = "synthetic:frames=60,width=640,height=480"


def loop_clip(source: str, path: Path, times: int, frames: int | None) -> None:
    """Write the frames of a source ``times`` times into one video."""
    with open_source(source) as opened:
        fps = opened.fps or USUAL_FPS
    with open_output(path, fps=fps, frames=None) as output:
        for _ in range(times):
            with open_source(source) as opened:
                for frame in islice(opened, frames):
                    output.write(frame.image, output.written)


def peak_rss(source: str, model: str) -> float:
    """Peak resident memory in MB of ``tatok encode`` on a source, as the system accounts it."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out.ttk")
        command = [sys.executable, "-m", "tatok_edge", "encode", source, "-o", out, "--model", model, "--json"]
        process = subprocess.Popen([*command, "--keep", "0.35"], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"tatok encode {source} failed")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("clip")
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--frames", type=int, help="use only the first frames of the clip")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        once, often = Path(folder) / "once.mp4", Path(folder) / "often.mp4"
        loop_clip(args.clip, once, 1, args.frames)
        loop_clip(args.clip, often, TIMES, args.frames)
        figures = {"clip": peak_rss(str(once), args.model), "ten_times": peak_rss(str(often), args.model)}
    figures["vga"] = peak_rss(VGA, args.model)
    report: dict[str, Any] = {
        "machine": machine(),
        "tag": open_bundle(args.model).tag.hex(),
        "clip": Path(args.clip).name,
        "peak_rss_mb": {name: round(value, 1) for name, value in figures.items()},
        "growth": round(figures["ten_times"] / figures["clip"] - 1, 4),
    }
    text = (
        f"Model `{report['tag']}`, `--keep 0.35`, {report['machine']['cores']} cores.\n\n"
        "| `tatok encode` of | peak memory |\n|---|---|\n"
        f"| {report['clip']} | {figures['clip']:.0f} MB |\n"
        f"| the same ten times over | {figures['ten_times']:.0f} MB ({report['growth']:+.1%}) |\n"
        f"| 640x480 camera clip | {figures['vga']:.0f} MB |\n"
    )
    common.publish("memory", report, text, args.out)


if __name__ == "__main__":
    main()
