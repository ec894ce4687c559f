"""A live camera, a lossy link and a recorder for hours: memory, files, threads, latency, and whether both ends agree.

``python benchmarks/soak.py --hours 2 --threads 1 --out benchmarks/results``. A rendered camera is encoded and sent over
a link that loses, damages, repeats and delays packets (fixed seed). The receiver decodes them, asks for keyframes, and
records them in token files, of which the newest stay. The results are written every minute, so a run that is
interrupted leaves them, with the time that it ran. Linux only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import Any

import common
import numpy as np
from lossy import SHARES, Agreement, Link

from tatok_edge.errors import FormatError
from tatok_edge.evaluation.speed import machine
from tatok_edge.format.header import peek
from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.pipeline import Stream

COLUMNS = ("rss_mb", "open_files", "threads", "latency_p50_ms", "latency_p95_ms")
"""Figures of each row."""
FILES = 3
"""Token files that the recorder keeps."""
ASK_SECONDS = 1.0
"""Shortest time from one request of a keyframe to the next."""


class Recorder:
    """Writes packets to token files, a new one from time to time, and keeps the newest.

    Args:
        folder: Where they are written.
        tokenizer: The model.
        seconds: Time of each file. The next one begins at a keyframe, so that it can be decoded alone.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, seconds: float) -> None:
        self.complete = 0
        """Files that were completed, and read back."""
        self.most_files = 0
        """Most files that were in the folder at any time."""
        self._folder, self._tokenizer, self._seconds = folder, tokenizer, seconds
        self._writer: Writer | None = None
        self._begun = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the next keyframe begins a new file."""
        return time.monotonic() - self._begun > self._seconds

    def write(self, packet: bytes) -> None:
        """Records a packet that was received whole."""
        if peek(packet).kind == "key" and self.is_due:
            self.close()
            path = self._folder / f"{self.complete:06d}.ttk"
            self._writer = Writer(path, self._tokenizer.entropy_model, name=self._tokenizer.name)
            self._begun = time.monotonic()
        if self._writer is not None:
            self._writer.write_packet(packet)
            self.most_files = max(self.most_files, len(os.listdir(self._folder)))

    def close(self) -> None:
        """Completes the file, reads it back, and removes old ones."""
        if self._writer is None:
            return
        self._writer.close()
        with Reader(self._writer.path, self._tokenizer.entropy_model) as reader:
            if not reader.complete or len(reader) != len(self._writer):
                raise SystemExit(f"{self._writer.path} has {len(reader)} of {len(self._writer)} packets")
        self.complete += 1
        for old in sorted(self._folder.glob("*.ttk"))[:-FILES]:
            old.unlink()
        self._writer = None


def row_of(latency_ms: deque[float], frames: int) -> list[float]:
    """The figures of now, and of the newest frames."""
    rss = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    newest = list(latency_ms)[-max(frames, 1) :]
    p50, p95 = np.percentile(newest, (50, 95)) if newest else (0.0, 0.0)
    counts = [len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))]
    return [round(rss, 1), *counts, round(float(p50), 1), round(float(p95), 1)]


def run(tokenizer: Tokenizer, options: argparse.Namespace, folder: Path) -> None:
    """Runs for ``options.hours``, and publishes the results every ``options.every`` seconds."""
    link, agreement = Link(options.seed), Agreement()
    decoder, recorder = StreamDecoder(tokenizer), Recorder(folder, tokenizer, options.rotate)
    counts = dict.fromkeys(("frames", "received", "refused", "keyframes_asked"), 0)
    rows: list[list[float]] = []
    begun = time.monotonic()
    noted, asked, at_note = begun, 0.0, 0
    source = f"synthetic:live=1,width={options.width},height={options.height},fps={options.fps:g}"
    with Stream(tokenizer, source) as stream:
        for frame in stream:
            counts["frames"] += 1
            assert stream.encoder.state is not None
            agreement.note(stream.encoder.state)
            for packet in link.send(frame.packet):
                counts["received"] += 1
                try:
                    decoded = decoder.decode(packet)
                except FormatError:
                    counts["refused"] += 1
                    continue
                recorder.write(packet)
                if decoded.complete:
                    assert decoder.state is not None
                    agreement.compare(decoder.state)
            now = time.monotonic()
            if (decoder.needs_keyframe or recorder.is_due) and now - asked > ASK_SECONDS:
                stream.request_keyframe()
                counts["keyframes_asked"] += 1
                asked = now
            over = now - begun > 3600 * options.hours
            if over:
                recorder.close()
            if over or now - noted > options.every:
                rows.append(row_of(stream.statistics.latency_ms, counts["frames"] - at_note))
                noted, at_note = now, counts["frames"]
                report = {
                    "machine": machine(),
                    "tag": tokenizer.tag.hex(),
                    "hours": round((now - begun) / 3600, 3),
                    "camera": {"size": f"{options.width}x{options.height}", "fps": options.fps},
                    "seed": options.seed,
                    "shares": SHARES,
                    **counts,
                    "dropped": stream.dropped,
                    "faults": link.faults,
                    "compared": agreement.compared,
                    "different_pictures": agreement.different_pictures,
                    "different_states": agreement.different_states,
                    "recorded_files": recorder.complete,
                    "most_files": recorder.most_files,
                    **summary(rows),
                    "every_s": options.every,
                    "columns": COLUMNS,
                    "rows": rows,
                }
                common.publish("soak", report, markdown(report), options.out, indent=None)
            if over:
                break


def summary(rows: list[list[float]]) -> dict[str, Any]:
    """Median of the rows after the first tenth, and of the newest ones; and the largest value of each column."""
    table = np.asarray(rows)[len(rows) // 10 :]
    some = max(1, len(table) // 20)
    first, last = np.median(table[:some], 0), np.median(table[-some:], 0)
    figures = {"first": first, "last": last, "most": table.max(0)}
    values = {
        name: dict(zip(COLUMNS, (round(float(value), 1) for value in row), strict=True))
        for name, row in figures.items()
    }
    return values | {"rss_growth": round(float(last[0] / first[0]) - 1, 4)}


def markdown(report: dict[str, Any]) -> str:
    """The report as a table."""
    faults, camera = report["faults"], report["camera"]
    names = ("memory (RSS), MB", "open files", "threads", "latency, median, ms", "latency, 95 %, ms")
    lines = [
        f"Ran for {report['hours']:.2f} hours: {camera['size']} at {camera['fps']:g} frames/s, {report['frames']:,} "
        f"frames. Of {faults['sent']:,} packets the link lost {faults['lost']:,}, damaged {faults['damaged']:,}, "
        f"repeated {faults['repeated']:,} and delayed {faults['late']:,}. The receiver asked for "
        f"{report['keyframes_asked']:,} keyframes.",
        "",
        "| | after a first tenth | at the end | most since then |",
        "|---|---|---|---|",
    ]
    for name, column in zip(names, COLUMNS, strict=True):
        values = (report[when][column] for when in ("first", "last", "most"))
        lines.append(f"| {name} | " + " | ".join(f"{value:g}" for value in values) + " |")
    lines += [
        "",
        f"Memory grew by {report['rss_growth']:+.1%}. {report['compared']:,} pictures that the receiver called "
        f"complete were compared with the sender's, bit for bit: {report['different_pictures']:,} differed, and the "
        f"state differed in {report['different_states']:,}. The recorder completed {report['recorded_files']:,} files "
        f"and had at most {report['most_files']} at a time.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--height", type=int, default=192)
    parser.add_argument("--fps", type=float, default=3.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds from one row of figures to the next")
    parser.add_argument("--rotate", type=float, default=300.0, help="seconds of a token file of the recorder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--model", default="tatok-s8")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Tokenizer.load(args.model, threads=args.threads) as tokenizer:
        run(tokenizer, args, Path(folder))


if __name__ == "__main__":
    main()
