"""Data sets of tokens: random access, memory, speed with several workers, and the result after a killed worker.

``python benchmarks/datasets.py ../shared/data/videos --out benchmarks/results``; ``--no-times`` leaves out all times,
for a machine that is not idle.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import common
import numpy as np

from tatok_edge.datasets import open_dataset
from tatok_edge.datasets.formats import FORMATS
from tatok_edge.evaluation.speed import machine
from tatok_edge.model.bundle import open_bundle
from tatok_edge.sources.open import open_source

READS = 20_000
BUDGET = ("--tau", "0.8")
SAMPLE_SECONDS = 0.1


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tatok_edge", "dataset", *map(str, arguments), *BUDGET, "--json"]


def run(*arguments: object) -> dict[str, Any]:
    """Report of ``tatok dataset``."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"tatok dataset failed: {done.stderr}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def tree_rss(root: int) -> float:
    """Resident memory of a process and all its descendants in MB; pages that they share count once per process."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_rss(*arguments: object) -> tuple[float, dict[str, Any]]:
    """Peak memory in MB of ``tatok dataset`` with all its workers, and its report."""
    peak = 0.0
    with subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, tree_rss(process.pid))
            time.sleep(SAMPLE_SECONDS)
        assert process.stdout is not None
        report: dict[str, Any] = json.loads(process.stdout.read())
    return peak, report


def frames_of(video: str) -> int:
    """Number of frames of a video, from its header."""
    with open_source(video) as source:
        return source.frames or 0


def seconds(*arguments: object) -> float:
    """Wall time of ``tatok dataset``."""
    start = time.perf_counter()
    run(*arguments, "--force")
    return time.perf_counter() - start


def contents(folder: Path) -> str:
    """One hash of all names and files of a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def random_access(path: Path) -> dict[str, float]:
    """Microseconds per frame in random order: median, 99 %, and the first read of all."""
    dataset = open_dataset(path)
    order = np.random.default_rng(0).integers(0, len(dataset), READS).tolist()
    times = []
    for number in order:
        start = time.perf_counter_ns()
        frame = dataset[number]
        frame.ids[:1], frame.positions[-1:], frame.depths[-1:]
        times.append((time.perf_counter_ns() - start) / 1000)
    return {
        "frames": len(dataset),
        "median": round(float(np.median(times)), 2),
        "p99": round(float(np.percentile(times, 99)), 2),
        "first": round(times[0], 2),
    }


def worker_of(part: Path) -> int:
    """Number of the process that writes a part: it has a file in this folder open."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if part in Path(os.readlink(handle)).parents:
                return int(handle.parts[2])
    raise SystemExit(f"nobody writes {part}")


def killed_equals(inputs: list[str], folder: Path, *options: object) -> bool:
    """Whether a run has the same bytes when its first worker is killed in the middle."""
    run(*inputs, "-o", folder / "whole", *options, "--workers", 1, "--threads", 1)
    target = folder / "killed"
    parts = Path(f"{target}.partial") / "parts"
    arguments = command(*inputs, "-o", target, *options, "--workers", 2, "--threads", 1, "--engine", "ray")
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (half := list(parts.glob(".*.tmp"))):
            if process.poll() is not None:
                raise SystemExit("the run ended before a worker could be killed; give more frames")
            time.sleep(0.005)
        os.kill(worker_of(half[0]), signal.SIGKILL)
        if process.wait():
            raise SystemExit("the run with a killed worker failed")
    return contents(folder / "whole") == contents(target)


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("videos", type=Path, help="folder of videos")
    parser.add_argument("--frames", type=int, default=10_000, help="frames of the large data set (default: 10000)")
    parser.add_argument("--scale-frames", type=int, default=250, help="frames per clip where workers are timed")
    parser.add_argument("--scale-clips", type=int, default=8, help="clips where workers are timed")
    parser.add_argument("--no-ray", action="store_true", help="leave Ray out")
    parser.add_argument("--no-times", action="store_true", help="leave out what only an idle machine can measure")
    args = parser.parse_args()
    videos = sorted(map(str, args.videos.glob("*.mp4")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tag = open_bundle("tatok-s8").tag.hex()
        report: dict[str, Any] = {"machine": machine(), "tag": tag, "budget": dict([BUDGET])}

        # The same clips under more names, until there are enough frames.
        lengths = [frames_of(video) for video in videos]
        links: list[str] = []
        total = 0
        while total < args.frames:
            number = len(links)
            link = folder / f"clip{number:04d}.mp4"
            link.symlink_to(Path(videos[number % len(videos)]).absolute())
            links.append(str(link))
            total += min(lengths[number % len(videos)], args.frames)
        limit = args.frames  # a single clip may have more than are asked for
        peak, large = peak_rss(*links, "-o", folder / "large", "--frames", limit, "--workers", 1)
        report["large"] = {
            "frames": large["frames"],
            "clips": large["clips"],
            "tokens_per_frame": large["tokens_per_frame"]["mean"],
            "peak_rss_mb": round(peak, 1),
        }
        if not args.no_times:
            report["random_access_us"] = random_access(folder / "large")

        few = videos[:2]
        report["bytes_per_frame"] = {}
        for kind in FORMATS:
            made = run(few[0], "-o", folder / kind, "--format", kind, "--frames", min(100, args.frames))
            report["bytes_per_frame"][kind] = round(made["bytes"] / made["frames"])

        clips = sorted(videos, key=frames_of, reverse=True)[: args.scale_clips]  # all with frames enough
        engines = [] if args.no_times else ["local"] if args.no_ray else ["local", "ray"]
        report["workers"] = []
        for engine in engines:
            options = ("-o", folder / "scale", "--threads", 1, "--engine", engine)
            start = seconds("synthetic:frames=1,width=96,height=64", *options, "--workers", 1)
            one, two = (
                seconds(*clips, *options, "--frames", args.scale_frames, "--workers", workers) for workers in (1, 2)
            )
            report["workers"].append(
                {
                    "engine": engine,
                    "start_seconds": round(start, 2),
                    "one_seconds": round(one, 2),
                    "two_seconds": round(two, 2),
                    "times": round(one / two, 3),
                    "times_without_start": round((one - start) / (two - start), 3) if two > start else None,
                }
            )
        if not args.no_ray:
            limit = min(args.scale_frames, 60)
            report["killed_ray_worker_equal"] = killed_equals(clips[:4], folder, "--frames", limit)
    common.publish("datasets", report, table(report), args.out)


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    large = report["large"]
    rows = [
        (
            f"peak memory of {large['frames']} frames in {large['clips']} clips "
            f"({large['tokens_per_frame']:.0f} tokens each), one worker",
            f"{large['peak_rss_mb']:.0f} MB",
        ),
        (
            "bytes per frame: " + ", ".join(report["bytes_per_frame"]),
            ", ".join(str(size) for size in report["bytes_per_frame"].values()),
        ),
    ]
    if access := report.get("random_access_us"):
        times = f"{access['median']:.1f}, {access['p99']:.1f} µs"
        rows.append(("a frame of it in random order (flat): median, 99 %", times))
    rows += [
        (
            f"two workers against one, one thread each, engine {row['engine']} (without its start of "
            f"{row['start_seconds']:.1f} s)",
            f"{row['times']:.2f}x" + (f" ({row['times_without_start']:.2f}x)" if row["times_without_start"] else ""),
        )
        for row in report["workers"]
    ]
    if "killed_ray_worker_equal" in report:
        same = "the same bytes" if report["killed_ray_worker_equal"] else "OTHER BYTES"
        rows.append(("a worker of Ray killed in the middle of a clip", same))
    cpu = report["machine"]
    lines = [
        f"tatok-s8 `{report['tag']}`, {cpu['cpu']}, {cpu['cores']} cores; --tau 0.8.",
        "",
        "| what | figure |",
        "|---|---|",
    ]
    return "\n".join([*lines, *(f"| {what} | {figure} |" for what, figure in rows)]) + "\n"


if __name__ == "__main__":
    main()
