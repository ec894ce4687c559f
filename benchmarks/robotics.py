"""Bags: size of the token topic against the raw topic, and checks that all other data is kept.

``python benchmarks/robotics.py ../shared/data/videos/highway_static.mp4 --out benchmarks/results`` makes an MCAP bag
with 600 camera messages of the clip (played to and fro where it is shorter), encodes and decodes it with ``tatok``, and
reads the tokens with ``rosbags`` and ``mcap-ros2-support``, which do not use this package. No times are measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from mcap_ros2.reader import read_ros2_messages
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

from tatok_edge import Tokenizer, open_source
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.evaluation.speed import machine
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.bags.cdr import Cdr
from tatok_edge.robotics.bags.records import Message
from tatok_edge.robotics.images import image_from_message
from tatok_edge.robotics.topics import TokenDecoder
from tatok_edge.sources.source import SourceFrame

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
import common
from make_bag import write_bag

CAMERA = "/camera/image_raw"
GOAL = 20.0
"""Goal: the raw topic is so many times larger than the token topic."""


def to_and_fro(clip: Path, count: int) -> Iterator[SourceFrame]:
    """``count`` frames of a clip: forwards, then backwards, and so on, so that no frame jumps."""
    with open_source(clip) as source:
        frames = list(source)
    step_us = round(np.median(np.diff([frame.timestamp_us for frame in frames])))
    turn = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    for number in range(count):
        yield SourceFrame(frames[turn[number % len(turn)]].image, number, number * step_us)


def tatok(*arguments: str | Path) -> dict[str, Any]:
    """Runs the command; returns its report."""
    command = [sys.executable, "-m", "tatok_edge", *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def messages(path: Path, topic: str) -> list[Message]:
    """The messages of a topic."""
    with Bag(path) as bag:
        records = [record for record in bag.records() if isinstance(record, Message)]
    return [record for record in records if record.channel.topic == topic]


def times(path: Path, topic: str) -> list[tuple[int, int, int, int, str]]:
    """Record time, publish time, stamp and frame of each message."""
    cdr = Cdr()
    rows = []
    for record in messages(path, topic):
        header = cdr.read(record).header
        stamp = header.stamp
        rows.append((record.log_time, record.publish_time, stamp.sec, stamp.nanosec, header.frame_id))
    return rows


def readers(path: Path, topic: str, tokenizer: Tokenizer) -> dict[str, int]:
    """Numbers of packets that other readers of bags deliver and that decode to complete pictures."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    decoder, found = TokenDecoder(tokenizer), {"rosbags": 0, "mcap-ros2-support": 0}
    with AnyReader([path], default_typestore=store) as reader:
        connections = [item for item in reader.connections if item.topic == topic]
        for connection, _, data in reader.messages(connections):
            found["rosbags"] += decoder.decode(reader.deserialize(data, connection.msgtype))[0].complete
    decoder = TokenDecoder(tokenizer)
    for item in read_ros2_messages(str(path), topics=[topic]):
        found["mcap-ros2-support"] += decoder.decode(item.ros_msg)[0].complete
    return found


def measure(clip: Path, count: int) -> dict[str, Any]:
    """All figures of one bag."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw, tokens, decoded = (folder / f"{part}.mcap" for part in ("raw", "tokens", "decoded"))
        write_bag(to_and_fro(clip, count), raw, topic=CAMERA)
        encoding = tatok("encode", raw, "--topic", CAMERA, "-o", tokens)
        tatok("decode", tokens, "-o", decoded)
        topic = encoding["topics"][CAMERA]
        cdr = Cdr()
        before, after = (messages(path, name) for path, name in ((raw, CAMERA), (decoded, f"{CAMERA}/decoded")))
        quality = [
            psnr(image_from_message(cdr.read(one)), image_from_message(cdr.read(other)))
            for one, other in list(zip(before, after, strict=True))[::10]
        ]
        stamps = times(raw, CAMERA)
        with Tokenizer.load() as tokenizer:
            return {
                "clip": clip.name,
                "messages": topic["messages"],
                "size": f"{topic['width']}x{topic['height']}",
                "raw_topic_bytes": topic["bytes_in"],
                "token_topic_bytes": topic["bytes_out"],
                "times_smaller": round(topic["bytes_in"] / topic["bytes_out"], 1),
                "goal_times_smaller": GOAL,
                "raw_file_bytes": raw.stat().st_size,
                "token_file_bytes": tokens.stat().st_size,
                "keyframes": topic["keyframes"],
                "tokens_per_frame": topic["tokens_per_frame"],
                "psnr_db": round(float(np.mean(quality)), 2),
                "times_kept_in_tokens": times(tokens, f"{CAMERA}/tatok") == stamps,
                "times_kept_in_decoded": times(decoded, f"{CAMERA}/decoded") == stamps,
                "other_topic_untouched": messages(raw, "/chatter") == messages(decoded, "/chatter"),
                "read_by": readers(tokens, f"{CAMERA}/tatok", tokenizer),
                "model": tokenizer.name,
                "tag": tokenizer.tag.hex(),
                "backend": str(tokenizer.backend),
                "machine": machine(),
            }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    total = result["messages"]
    rows = {
        "bag": f"{total} messages of {result['size']} rgb8 from {result['clip']}",
        "raw topic, token topic": f"{result['raw_topic_bytes'] / 1e6:.1f} MB, "
        f"{result['token_topic_bytes'] / 1e6:.3f} MB: **{result['times_smaller']} times smaller** "
        f"(goal: {result['goal_times_smaller']:.0f})",
        "raw file (zstd), token file": f"{result['raw_file_bytes'] / 1e6:.1f} MB, "
        f"{result['token_file_bytes'] / 1e6:.3f} MB",
        "keyframes, patch tokens per frame": f"{result['keyframes']}, {result['tokens_per_frame']:.0f}",
        "PSNR of the decoded topic": f"{result['psnr_db']:.2f} dB",
        "record times, publish times, stamps and frame ids kept": f"tokens: {_yes(result['times_kept_in_tokens'])}; "
        f"decoded: {_yes(result['times_kept_in_decoded'])}",
        "other topic untouched": _yes(result["other_topic_untouched"]),
        **{f"packets that {name} reads": f"{found} of {total}" for name, found in result["read_by"].items()},
    }
    lines = [f"{result['model']} `{result['tag']}`, {result['backend']}.", "", "| what | figure |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def _yes(value: bool) -> str:
    return "all" if value else "**no**"


def main() -> int:
    """Command line; returns the exit code."""
    parser = common.parser(__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--messages", type=int, default=600)
    args = parser.parse_args()
    result = measure(args.clip, args.messages)
    common.publish("robotics", result, table(result), args.out)
    kept = result["times_kept_in_tokens"] and result["times_kept_in_decoded"] and result["other_topic_untouched"]
    read = all(found == result["messages"] for found in result["read_by"].values())
    return 0 if kept and read and result["times_smaller"] >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
