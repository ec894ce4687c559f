"""Reading a whole video: :func:`tatok_edge.open_source` (RGB) beside ``cv2.VideoCapture`` (BGR).

``python benchmarks/videos.py --out benchmarks/results``, on a quiet machine; a minute on two cores. ffmpeg makes H.264
videos of the example clip, scaled to each size. Both readers decode every frame of the same file, in turns: one pair of
runs after the other, and the one that begins changes. Each uses the threads that it takes by itself.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np

from tatok_edge.evaluation.speed import machine
from tatok_edge.pictures.pyav import av
from tatok_edge.sources.open import open_source

CLIP = Path(__file__).resolve().parent.parent / "examples" / "data" / "bottles.mp4"
SIZES = ("640x480", "1280x720")


def make(path: Path, size: str, frames: int) -> None:
    """Makes an H.264 video."""
    command = ["ffmpeg", "-v", "error", "-y", "-stream_loop", "-1", "-i", str(CLIP), "-frames:v", str(frames)]
    command += ["-vf", f"scale={size.replace('x', ':')}", "-c:v", "libx264", "-preset", "medium", "-crf", "20", "-an"]
    subprocess.run([*command, "-pix_fmt", "yuv420p", str(path)], check=True)


def ours(path: Path) -> int:
    """Reads all frames as RGB; their number."""
    with open_source(path) as source:
        return sum(frame.image.dtype == np.uint8 for frame in source)


def opencv(path: Path) -> int:
    """Reads all frames as BGR; their number."""
    capture = cv2.VideoCapture(str(path))
    count = 0
    there, picture = capture.read()
    while there:
        count += picture.dtype == np.uint8
        there, picture = capture.read()  # the picture before is alive until here, as in every loop that uses it
    capture.release()
    return count


def timed(read: Callable[[Path], int], path: Path, frames: int) -> tuple[float, float]:
    """Seconds of wall clock and of all threads together that a reader takes."""
    wall, work = time.perf_counter(), time.process_time()
    count = read(path)
    taken = time.perf_counter() - wall, time.process_time() - work
    if count != frames:
        raise SystemExit(f"{read.__name__} read {count} of {frames} frames")
    return taken


def measure(path: Path, size: str, frames: int, rounds: int) -> dict[str, Any]:
    """The figures of one size."""
    readers = (ours, opencv)
    times: dict[str, list[tuple[float, float]]] = {read.__name__: [] for read in readers}
    for number in range(rounds + 1):
        for read in readers if number % 2 else reversed(readers):
            taken = timed(read, path, frames)
            if number:  # the first round warms up
                times[read.__name__].append(taken)
    taken = {name: np.asarray(values) for name, values in times.items()}
    row: dict[str, Any] = {"size": size, "megabytes": round(path.stat().st_size / 1e6, 2)}
    for name, values in taken.items():
        low, middle, high = np.percentile(frames / values[:, 0], [25, 50, 75])
        row[name] = {
            "frames_per_second": [round(float(rate), 1) for rate in (low, middle, high)],
            "processor_ms_per_frame": round(1e3 * float(np.median(values[:, 1])) / frames, 3),
        }
    row["times_as_fast"] = round(float(np.median(taken["opencv"][:, 0] / taken["ours"][:, 0])), 3)
    return row


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['machine']['cpu']}, {report['cores']} cores; PyAV {report['pyav']}, OpenCV {report['opencv']}. "
        f"{report['frames']} frames of H.264, all of them decoded; median of {report['rounds']} pairs of runs, in "
        "brackets the quartiles. *Times as fast*: median over the pairs.",
        "",
        "| size | `open_source`, RGB: frames/s | `cv2.VideoCapture`, BGR: frames/s | times as fast "
        "| processor ms/frame: `open_source` | OpenCV |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["sizes"]:
        rates = []
        for name in ("ours", "opencv"):
            low, middle, high = row[name]["frames_per_second"]
            rates.append(f"{middle:.0f} ({low:.0f} to {high:.0f})")
        work = [f"{row[name]['processor_ms_per_frame']:.2f}" for name in ("ours", "opencv")]
        lines.append(f"| {row['size']} | {' | '.join(rates)} | {row['times_as_fast']:.2f}x | {' | '.join(work)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WxH", help=f"default: {' '.join(SIZES)}")
    parser.add_argument("--frames", type=int, default=300, help="frames of each video (default: 300)")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of runs (default: 15)")
    args = parser.parse_args()
    report: dict[str, Any] = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "cores": len(os.sched_getaffinity(0)),
        "pyav": av.__version__,
        "opencv": cv2.__version__,
        "frames": args.frames,
        "rounds": args.rounds,
    }
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for size in args.sizes:
            path = Path(folder) / f"{size}.mp4"
            make(path, size, args.frames)
            rows.append(measure(path, size, args.frames, args.rounds))
    report["sizes"] = rows
    common.publish("videos", report, markdown(report), args.out)


if __name__ == "__main__":
    main()
