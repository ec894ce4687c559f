"""Camera messages and bags for tests, and the command line in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("mcap", reason="the extra 'robotics' is not installed")
pytest.importorskip("rosbags", reason="the extra 'robotics' is not installed")

from mcap.writer import Writer
from numpy.typing import NDArray
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as RosbagWriter
from rosbags.typesys import Stores, get_typestore

from helpers.paths import SHARED
from tatok_edge.cli import main as cli
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.bags.records import Channel, Message
from tatok_edge.robotics.bags.writer import BagWriter
from tatok_edge.sources.open import open_source

CLIP = SHARED / "videos" / "cups_static.mp4"
SOURCE = str(CLIP) if CLIP.exists() else "synthetic:frames=24,width=384,height=224"
CAMERA = "/camera/image_raw"
TOKENS = f"{CAMERA}/tatok"
STORE = get_typestore(Stores.ROS2_HUMBLE)
TYPES: dict[str, Any] = dict(STORE.types)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
START = 1_700_000_000_123_456_789

Array = NDArray[np.uint8]


def frames(count: int, source: str = SOURCE) -> list[Array]:
    with open_source(source) as opened:
        return [frame.image for frame, _ in zip(opened, range(count), strict=False)]


def header(time: int = START, frame_id: str = "camera") -> Any:
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=time // 10**9, nanosec=time % 10**9)
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id=frame_id)


def raw_message(image: Array, encoding: str = "rgb8", *, time: int = START, padding: int = 0, big: int = 0) -> Any:
    """A raw image message with some bytes after each row."""
    alpha = np.full((*image.shape[:2], 1), 77, np.uint8)
    pixels = {
        "rgb8": image,
        "bgr8": image[:, :, ::-1],
        "rgba8": np.concatenate([image, alpha], 2),
        "bgra8": np.concatenate([image[:, :, ::-1], alpha], 2),
        "mono8": image[:, :, 1:2],
    }.get(encoding, image)
    height, width, channels = pixels.shape
    rows = np.full((height, width * channels + padding), 0xEE, np.uint8)
    rows[:, : width * channels] = pixels.reshape(height, -1)
    return TYPES[IMAGE](
        header=header(time),
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=big,
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def compressed_message(image: Array, suffix: str = ".jpg", *, time: int = START, name: str = "jpeg") -> Any:
    data = cv2.imencode(suffix, image[:, :, ::-1])[1].reshape(-1)
    return TYPES[COMPRESSED](header=header(time), format=name, data=data)


def cdr(message: Any, *, little: bool = True) -> bytes:
    return bytes(STORE.serialize_cdr(message, message.__msgtype__, little_endian=little))


def channel(topic: str, kind: str) -> Channel:
    definition = STORE.generate_msgdef(kind, ros_version=2)[0]
    return Channel(topic, kind, "cdr", "ros2msg", definition.encode())


def write_bag(path: Path, messages: list[tuple[str, str, bytes]], *, channels: tuple[Channel, ...] = ()) -> Path:
    """An MCAP file of (topic, type, data); recorded a second apart."""
    with BagWriter(path) as writer:
        for item in channels:
            writer.write(item)
        for number, (topic, kind, data) in enumerate(messages):
            time = START + number * 10**9
            writer.write(Message(channel(topic, kind), time + 5, time + 3, number, data))
    return path


def camera_bag(path: Path, messages: list[Any], topic: str = CAMERA) -> Path:
    return write_bag(path, [(topic, message.__msgtype__, cdr(message)) for message in messages])


def records(path: Path, topic: str | None = None) -> list[Message]:
    with Bag(path) as bag:
        found = [record for record in bag.records() if isinstance(record, Message)]
    return [record for record in found if topic in (None, record.channel.topic)]


def content(record: Message) -> Any:
    return STORE.deserialize_cdr(record.data, record.channel.type)


def run(*arguments: str | Path) -> int:
    return cli.main([str(argument) for argument in arguments])


def report_of(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def mcap_bag(path: Path, images: list[Array], **options: Any) -> list[int]:
    """An MCAP file of camera messages, written with these options of its writer; returns where each message ends."""
    ends = []
    with path.open("wb") as file:
        writer = Writer(file, **options)
        writer.start("ros2", "test")
        definition = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
        schema = writer.register_schema(IMAGE, "ros2msg", definition.encode())
        number = writer.register_channel(CAMERA, "cdr", schema)
        for time, image in enumerate(images):
            writer.add_message(number, time, cdr(raw_message(image)), time)
            ends.append(file.tell())
        writer.finish()
    return ends


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 1) -> str:
    """Runs a command that has to fail in one line; returns the line."""
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    line: str = captured.err
    assert line.count("\n") == 1, line
    return line


def nothing_left(folder: Path) -> bool:
    return not list(folder.glob(".*"))


def rosbag(
    path: Path,
    clip: list[Array],
    plugin: StoragePlugin,
    mode: CompressionMode = CompressionMode.NONE,
    version: Any = 9,
) -> Path:
    """A folder as rosbag2 writes it, made by ``rosbags``."""
    writer = RosbagWriter(path, version=version, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        images = writer.add_connection(CAMERA, IMAGE, typestore=STORE, offered_qos_profiles=[qos()])
        texts = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=STORE)
        for number, image in enumerate(clip[:3]):
            image = np.ascontiguousarray(image[:96, :128])
            time = START + number * 10**8
            writer.write(images, time, cdr(raw_message(image, time=time)))
            writer.write(texts, time, cdr(TYPES["std_msgs/msg/String"](data=f"{number}")))
    return path


def qos() -> Any:
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(9223372036, 854775807)
    return Qos(
        QosHistory.KEEP_LAST,
        1,
        QosReliability.BEST_EFFORT,
        QosDurability.VOLATILE,
        forever,
        forever,
        QosLiveliness.AUTOMATIC,
        forever,
        False,
    )
