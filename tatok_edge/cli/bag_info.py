"""``tatok info`` of a bag: its topics, and the header of every packet of its token topics. Needs no model."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tatok_edge.cli.report import FrameTotals, Report, completeness, print_json, print_table, say
from tatok_edge.format.header import PacketInfo
from tatok_edge.recordings.bag import packets_of, token_topics
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.topics import TOKEN_TOPIC


class _TokenTopic:
    """Figures of one token topic."""

    def __init__(self) -> None:
        self.totals = FrameTotals()
        self.keyframes = 0
        self.first_us: int | None = None
        self.last_us = 0
        self.models: set[str] = set()

    def add(self, info: PacketInfo, model: str) -> None:
        """Counts a packet."""
        self.totals.add(info.width, info.height, info.n_tokens, info.n_patches, info.size)
        self.keyframes += info.kind == "key"
        self.first_us = info.timestamp_us if self.first_us is None else self.first_us
        self.last_us = info.timestamp_us
        self.models.add(model)

    def report(self) -> Report:
        """The counts for the report."""
        seconds = (self.last_us - (self.first_us or 0)) / 1e6
        return self.totals.report() | {
            "key_frames": self.keyframes,
            "duration_seconds": round(seconds, 3),
            "fps": round((self.totals.frames - 1) / seconds, 3) if seconds > 0 else None,
            "model_tags": sorted(self.models),
        }


def report_bag(path: Path, topic: str | None, *, json: bool) -> int:
    """Prints the topics of a bag and the figures of its token topics; returns the exit code.

    Args:
        path: The bag.
        topic: The token topic to read; None for all.
        json: Print JSON.

    Raises:
        SourceError: The bag cannot be read, or has no such topic.
    """
    start = time.perf_counter()
    problems: list[str] = []
    messages: Counter[str] = Counter()
    with Bag(path) as bag:
        topics = bag.topics()
        chosen = token_topics(bag, topic) if topic else [name for name in topics if name.endswith(TOKEN_TOPIC)]
        found = {name: _TokenTopic() for name in chosen}
        for record, name, info, _ in packets_of(bag, chosen, problems, seen=messages):
            found[record.channel.topic].add(info, name.bundle)
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    report = {
        "frames": sum(one.totals.frames for one in found.values()),
        "token_topics": {name: one.report() for name, one in found.items()},
        "topics": {name: {"type": kind, "messages": messages[name]} for name, kind in topics.items()},
        "seconds": round(time.perf_counter() - start, 3),
        "input": str(path),
        "file_bytes": sum(file.stat().st_size for file in files),
        **completeness(problems),
    }
    if json:
        print_json(report)
    else:
        rows = {f"{name}  ": f"{messages[name]} messages ({kind or 'no type'})" for name, kind in topics.items()}
        rows |= {f"{name}  ": _topic_row(one) for name, one in report["token_topics"].items() if one["frames"]}
        rows["file"] = f"{report['file_bytes'] / 1000:.1f} kB"
        print_table(str(path), rows)
    for problem in problems:
        say("info", problem)
    return 1 if problems else 0


def _topic_row(topic: Report) -> str:
    tokens, patches = topic["tokens_per_frame"]["mean"], topic["patches_per_frame"]["mean"]
    rate = f", {topic['fps']:.4g} frames/s" if topic["fps"] else ""
    return (
        f"{topic['frames']} frames ({topic['width']}x{topic['height']}{rate}, {topic['key_frames']} keyframes), "
        f"{tokens:.0f} of {patches:.0f} tokens each, model {', '.join(topic['model_tags'])}"
    )
