"""Output of the commands: tables, JSON and messages, and the figures that several reports share."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from tatok_edge.errors import one_line

if TYPE_CHECKING:
    from tatok_edge.model.tokenizer import Tokenizer
    from tatok_edge.tokens.budget import TokenBudget

Report = dict[str, Any]


def report_stream(output: str | None) -> TextIO:
    """Where the report goes: to standard output, or to standard error where that takes the ``output``."""
    return sys.stderr if output == "-" else sys.stdout


def print_table(title: str, rows: dict[str, str], stream: TextIO | None = None) -> None:
    """Prints names and values below a title, by default on standard output."""
    print(title, file=stream)
    for name, value in rows.items():
        print(f"  {name:<18}{value}", file=stream)


def print_json(report: Report, stream: TextIO | None = None) -> None:
    """Prints one JSON document, by default on standard output."""
    print(json.dumps(report, indent=2, allow_nan=False), file=stream)


def say(command: str, message: str) -> None:
    """Prints a message in one line on standard error."""
    print(f"tatok {command}: {one_line(message)}", file=sys.stderr)


@dataclass(slots=True)
class FrameTotals:
    """Totals over frames. Their size does not grow with the number of frames."""

    frames: int = 0
    tokens: int = 0
    """Patch tokens."""
    patches: int = 0
    pixels: int = 0
    size: int = 0
    """Bytes of all packets."""
    least: int = 0
    """Fewest tokens of a frame."""
    most: int = 0
    """Most tokens of a frame."""
    sizes: dict[tuple[int, int], int] = field(default_factory=dict)
    """Number of frames by width and height; of at most 64 sizes."""

    def add(self, width: int, height: int, tokens: int, patches: int, size: int) -> None:
        """Counts a frame with a packet of ``size`` bytes."""
        self.least = tokens if not self.frames else min(self.least, tokens)
        self.most = max(self.most, tokens)
        self.frames += 1
        self.tokens += tokens
        self.patches += patches
        self.pixels += width * height
        self.size += size
        if (width, height) in self.sizes or len(self.sizes) < 64:
            self.sizes[width, height] = self.sizes.get((width, height), 0) + 1

    def report(self) -> Report:
        """The figures that every report of frames has; null where there is no frame."""
        count = self.frames
        width, height = next(iter(self.sizes), (0, 0))

        def mean(total: int) -> float | None:
            return round(total / count, 3) if count else None

        return {
            "frames": count,
            "width": width,
            "height": height,
            "sizes": len(self.sizes),
            "tokens_per_frame": {"mean": mean(self.tokens), "min": self.least, "max": self.most},
            "patches_per_frame": {"mean": mean(self.patches)},
            "tokens_per_patch": round(self.tokens / self.patches, 4) if self.patches else None,
            "bits_per_frame": {"mean": mean(8 * self.size)},
            "bits_per_pixel": round(8 * self.size / self.pixels, 6) if count else None,
        }


def run_figures(tokenizer: Tokenizer, frames: int, seconds: float) -> Report:
    """Speed and backend of a run."""
    return {
        "seconds": round(seconds, 3),
        "frames_per_second": round(frames / max(seconds, 1e-9), 2),
        "model": tokenizer.name,
        "backend": tokenizer.backend.name,
        "threads": tokenizer.backend.threads,
    }


def speed_text(report: Report) -> str:
    """The speed in a table, from :func:`run_figures`."""
    return f"{report['frames_per_second']:.1f} frames/s ({report['seconds']:.1f} s)"


def completeness(problems: list[str], *, interrupted: bool = False) -> Report:
    """Whether all went well, and the first problem."""
    return {"complete": not problems and not interrupted, "problem": problems[0] if problems else None}


def budget_record(budget: TokenBudget) -> Report:
    """The limits that differ from the default."""
    record = {}
    for entry in dataclasses.fields(budget):
        value = getattr(budget, entry.name)
        if value != entry.default:
            record[entry.name] = value
    return record


def depth_text(patches_by_depth: list[int]) -> str:
    """The shares of patches with 0, 1, ... tokens in one line, and the tokens per patch."""
    patches = max(sum(patches_by_depth), 1)
    mean = sum(depth * count for depth, count in enumerate(patches_by_depth)) / patches
    shares = ", ".join(f"{depth}: {count / patches:.1%}" for depth, count in enumerate(patches_by_depth))
    return f"{mean:.2f} ({shares} of the patches)"


def token_rows(report: Report) -> dict[str, str]:
    """The rows of a table that encode, stream and info share."""
    if not report["frames"]:
        return {"frames": "none"}
    tokens, patches = report["tokens_per_frame"], report["patches_per_frame"]["mean"]
    more = "" if report["sizes"] == 1 else ", and other sizes"
    raw = 24 / report["bits_per_pixel"]
    rate = f", {report['fps']:.4g} frames/s" if report["fps"] else ""
    return {
        "frames": f"{report['frames']} ({report['width']}x{report['height']}{more}{rate})",
        "tokens per frame": f"{tokens['mean']:.0f} ({tokens['min']} to {tokens['max']}) for {patches:.0f} patches: "
        f"{tokens['mean'] / patches:.2f} per patch",
        "bits per frame": f"{report['bits_per_frame']['mean']:.0f} ({report['bits_per_pixel']:.4f} per pixel, "
        f"{raw:.0f} times less than RGB)",
        "file": f"{report['file_bytes'] / 1000:.1f} kB",
        "model": report["model"],
    }
