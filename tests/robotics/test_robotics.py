"""Robotics: bags on the command line, messages to arrays and packets, the ROS 2 node, live viewing."""

from __future__ import annotations

import array
import importlib.util
import json
import shlex
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT, SHARED
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

pytest.importorskip("mcap", reason="the extra 'robotics' is not installed")
pytest.importorskip("rosbags", reason="the extra 'robotics' is not installed")

from helpers import fake_rclpy
from mcap.records import Attachment, Metadata
from mcap.writer import CompressionType, IndexType, Writer
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as RosbagWriter
from rosbags.typesys import Stores, get_typestore

from tatok_edge.cli import main as cli
from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.evaluation.folder import psnr
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.bags.records import Channel, Message
from tatok_edge.robotics.bags.writer import BagWriter
from tatok_edge.robotics.images import ENCODINGS, image_from_message, image_to_message, ros_array, token_encoding
from tatok_edge.robotics.topics import ImageEncoder, TokenDecoder, TokenFormat, packet_to_message
from tatok_edge.sources.bag import BagSource
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


def example(name: str) -> ModuleType:
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames(count: int, source: str = SOURCE) -> list[Array]:
    with open_source(source) as opened:
        return [frame.image for frame, _ in zip(opened, range(count), strict=False)]


@pytest.fixture(scope="module")
def clip() -> list[Array]:
    """The first frames of a real video; do not write to them."""
    return frames(12)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of real video with a second topic, an attachment and a metadata record, as the docs make it."""
    folder = tmp_path_factory.mktemp("bag")
    command = [sys.executable, str(ROOT / "examples" / "make_bag.py"), SOURCE, "-o", "bag.mcap", "--frames", "12"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "bag.mcap"


@pytest.fixture(scope="module")
def tokens(bag: Path) -> Path:
    """That bag with tokens."""
    path = bag.with_name("tokens.mcap")
    assert cli.main(["encode", str(bag), "--topic", CAMERA, "-o", str(path)]) == 0
    return path


# --- making messages and bags --------------------------------------------------------------------------


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


# --- the command line, as a user meets it ---------------------------------------------------------------


def test_encode_keeps_times_and_everything_else(bag: Path, tokens: Path) -> None:
    before, after = records(bag), records(tokens)
    images = [record for record in before if record.channel.topic == CAMERA]
    packets = [record for record in after if record.channel.topic == TOKENS]
    assert len(images) == len(packets) == 12
    for image, packet in zip(images, packets, strict=True):
        assert (packet.log_time, packet.publish_time, packet.sequence) == (
            image.log_time,
            image.publish_time,
            image.sequence,
        )
        assert packet.channel.type == COMPRESSED
        assert dict(packet.channel.metadata) == dict(image.channel.metadata)  # QoS
        one, other = content(image), content(packet)
        assert one.header == other.header
        assert one.header.frame_id == "camera_optical_frame"
        assert TokenFormat.parse(other.format).encoding == "rgb8"
    others = [[record for record in part if record.channel.topic == "/chatter"] for part in (before, after)]
    assert others[0] == others[1]
    assert len(others[0]) == 12
    # The order of the file too.
    renamed = [CAMERA if record.channel.topic == TOKENS else record.channel.topic for record in after]
    assert renamed == [record.channel.topic for record in before]
    raw, small = (sum(len(record.data) for record in part) for part in (images, packets))
    assert raw >= 20 * small
    with Bag(bag) as one, Bag(tokens) as other:
        kinds = (Attachment, Metadata)
        kept = [[record for record in part.records() if isinstance(record, kinds)] for part in (one, other)]
        assert kept[0] == kept[1]
        assert len(kept[0]) == 2
        assert CAMERA not in other.topics()


def test_decode_gives_back_pictures_and_times(bag: Path, tokens: Path, tmp_path: Path) -> None:
    assert run("decode", tokens, "-o", tmp_path / "decoded.mcap") == 0
    images = records(bag, CAMERA)
    decoded = records(tmp_path / "decoded.mcap", f"{CAMERA}/decoded")
    assert [(r.log_time, r.publish_time) for r in images] == [(r.log_time, r.publish_time) for r in decoded]
    for record, original in zip(decoded, images, strict=True):
        one, other = content(record), content(original)
        assert (one.header, one.encoding, one.height, one.width, one.step) == (
            other.header,
            other.encoding,
            other.height,
            other.width,
            other.step,
        )
        assert psnr(image_from_message(one), image_from_message(other)) > 22
    assert {record.channel.topic for record in records(tmp_path / "decoded.mcap")} == {f"{CAMERA}/decoded", "/chatter"}


def test_foreign_readers_read_the_tokens(bag: Path, tokens: Path, tokenizer: Tokenizer) -> None:
    """``rosbags`` and ``mcap-ros2-support`` know nothing of us."""
    ros2 = pytest.importorskip("mcap_ros2.reader", reason="mcap-ros2-support is not installed")
    times = [record.log_time for record in records(bag, CAMERA)]

    decoder = TokenDecoder(tokenizer)
    with AnyReader([tokens], default_typestore=STORE) as reader:
        connections = [item for item in reader.connections if item.topic == TOKENS]
        found = list(reader.messages(connections))
        assert [time for _, time, _ in found] == times
        for connection, _, data in found:
            message: Any = reader.deserialize(data, connection.msgtype)
            assert decoder.decode(message)[0].complete

    decoder = TokenDecoder(tokenizer)
    seen = list(ros2.read_ros2_messages(str(tokens), topics=[TOKENS]))
    assert [item.log_time_ns for item in seen] == times
    assert [item.publish_time_ns for item in seen] == [record.publish_time for record in records(bag, CAMERA)]
    for item in seen:
        assert decoder.decode(item.ros_msg)[0].complete
        assert item.ros_msg.header.frame_id == "camera_optical_frame"


def test_decode_to_a_video(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = tmp_path / "video.mp4"
    assert run("decode", tokens, "-o", video, "--json") == 0
    report = report_of(capsys)
    assert report["topics"][TOKENS]["done"] == 12
    capture = cv2.VideoCapture(str(video))
    assert round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 12
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(report["fps"], rel=0.01)
    assert run("decode", tokens, "-o", video) == 1
    assert "--force" in capsys.readouterr().err


def test_same_bag_same_bytes(bag: Path, tokens: Path, tmp_path: Path) -> None:
    assert run("encode", bag, "-o", tmp_path / "again.mcap") == 0
    assert (tmp_path / "again.mcap").read_bytes() == tokens.read_bytes()


def test_report_and_options(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mcap"
    arguments = ["--frames-only", "--keep", "0.1", "--keep-images", "--frames", "4", "--json"]
    assert run("encode", bag, "-o", out, *arguments) == 0
    report = report_of(capsys)
    topic = report["topics"][CAMERA]
    assert (topic["messages"], topic["done"], topic["keyframes"], topic["left_as_they_are"]) == (4, 4, 4, 0)
    assert report["complete"] is True
    assert report["budget"] == {"keep": 0.1}
    assert topic["bytes_in"] == sum(len(record.data) for record in records(bag, CAMERA)[:4])
    assert topic["bytes_out"] == sum(len(record.data) for record in records(out, TOKENS))
    assert records(out, CAMERA) == records(bag, CAMERA)[:4]


def test_keyframes_come_in_intervals(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("encode", bag, "-o", tmp_path / "o.mcap", "--keyframe-interval", "5", "--json") == 0
    assert report_of(capsys)["topics"][CAMERA]["keyframes"] == 3


def test_several_topics(tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]) -> None:
    left, right = raw_message(clip[0]), compressed_message(clip[5])
    both = [("/left", IMAGE, cdr(left)), ("/right", COMPRESSED, cdr(right))] * 2
    path = write_bag(tmp_path / "two.mcap", both)
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 1  # which one?
    assert "2 topics to choose from" in capsys.readouterr().err
    assert run("encode", path, "--topic", "/left", "--topic", "/right", "-o", tmp_path / "o.mcap") == 0
    assert run("decode", tmp_path / "o.mcap", "-o", tmp_path / "d.mcap") == 0
    for topic, image in (("/left/decoded", clip[0]), ("/right/decoded", clip[5])):
        found = records(tmp_path / "d.mcap", topic)
        assert len(found) == 2
        assert psnr(image_from_message(content(found[0])), image) > 20


def test_mixed_encodings_and_a_new_size(tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]) -> None:
    small = np.ascontiguousarray(clip[3][:96, :128])
    messages = [
        raw_message(clip[0], "rgb8"),
        raw_message(clip[1], "bgr8", padding=3),
        raw_message(clip[2], "mono8", big=1),
        raw_message(small, "rgba8"),
        raw_message(small, "bgra8", padding=8),
    ]
    path = camera_bag(tmp_path / "mixed.mcap", messages)
    assert run("encode", path, "-o", tmp_path / "o.mcap", "--json") == 0
    topic = report_of(capsys)["topics"][CAMERA]
    assert topic["keyframes"] >= 2
    assert topic["sizes"] == 2
    assert run("decode", tmp_path / "o.mcap", "-o", tmp_path / "d.mcap") == 0
    decoded = [content(record) for record in records(tmp_path / "d.mcap", f"{CAMERA}/decoded")]
    assert [message.encoding for message in decoded] == ["rgb8", "bgr8", "mono8", "rgb8", "bgr8"]
    for one, other in zip(decoded, messages, strict=True):
        assert psnr(image_from_message(one), image_from_message(other)) > 18


def test_big_endian_messages(tmp_path: Path, clip: list[Array]) -> None:
    path = write_bag(tmp_path / "be.mcap", [(CAMERA, IMAGE, cdr(raw_message(clip[0]), little=False))])
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 0
    assert content(records(tmp_path / "o.mcap", TOKENS)[0]).header == header()


# --- rosbag2 folders --------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("plugin", "mode", "version"),
    [
        (StoragePlugin.MCAP, CompressionMode.NONE, 8),
        (StoragePlugin.MCAP, CompressionMode.NONE, 9),
        (StoragePlugin.MCAP, CompressionMode.FILE, 9),
        (StoragePlugin.MCAP, CompressionMode.MESSAGE, 9),
        (StoragePlugin.SQLITE3, CompressionMode.NONE, 8),
        (StoragePlugin.SQLITE3, CompressionMode.NONE, 9),
        (StoragePlugin.SQLITE3, CompressionMode.FILE, 9),
        (StoragePlugin.SQLITE3, CompressionMode.MESSAGE, 9),
    ],
)
def test_rosbag2_folders(
    tmp_path: Path, clip: list[Array], plugin: StoragePlugin, mode: CompressionMode, version: int
) -> None:
    source = rosbag(tmp_path / "in", clip, plugin, mode, version)
    assert run("encode", source, "-o", tmp_path / "out") == 0
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["metadata.yaml", "out_0.mcap"]
    with AnyReader([tmp_path / "out"], default_typestore=STORE) as reader:
        assert set(reader.topics) == {TOKENS, "/chatter"}
        found = [item for item in reader.connections if item.topic == TOKENS]
        assert found[0].ext.offered_qos_profiles == [qos()]
        assert reader.message_count == 6
        assert [time for _, time, _ in reader.messages(found)] == [START + number * 10**8 for number in range(3)]
        texts = [item for item in reader.connections if item.topic == "/chatter"]
        data: list[Any] = [reader.deserialize(raw, item.msgtype) for item, _, raw in reader.messages(texts)]
        assert [message.data for message in data] == ["0", "1", "2"]
    assert run("decode", tmp_path / "out", "-o", tmp_path / "back") == 0
    with AnyReader([tmp_path / "back"], default_typestore=STORE) as reader:
        assert set(reader.topics) == {f"{CAMERA}/decoded", "/chatter"}


def test_old_sqlite_bags_without_definitions(tmp_path: Path, clip: list[Array]) -> None:
    """Humble's recorder and those before it note no message definitions; one type is not a standard one."""
    path = tmp_path / "old.db3"
    base = sqlite3.connect(path)
    base.executescript(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT,"
        " offered_qos_profiles TEXT); CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER,"
        " timestamp INTEGER, data BLOB)"
    )
    base.execute("INSERT INTO topics VALUES (1, ?, ?, 'cdr', '- history: 1')", (CAMERA, IMAGE))
    base.execute("INSERT INTO topics VALUES (2, '/own', 'own_msgs/msg/Thing', 'cdr', '')")
    base.execute("INSERT INTO messages VALUES (1, 1, ?, ?)", (START, cdr(raw_message(clip[0]))))
    base.execute("INSERT INTO messages VALUES (2, 2, ?, ?)", (START + 1, b"\x00\x01\x00\x00own"))
    base.commit()
    base.close()
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 0
    token, own = records(tmp_path / "o.mcap")
    assert token.channel.topic == TOKENS
    assert dict(token.channel.metadata) == {"offered_qos_profiles": "- history: 1"}
    assert (own.channel.type, own.channel.schema, own.data) == ("own_msgs/msg/Thing", b"", b"\x00\x01\x00\x00own")


def test_split_recording_without_its_metadata(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]
) -> None:
    """A recorder that was killed leaves files, the last one cut off, and no metadata.yaml."""
    folder = tmp_path / "killed"
    folder.mkdir()
    camera_bag(folder / "killed_0.mcap", [raw_message(image) for image in clip[:2]])
    unchunked(folder / "killed_1.mcap", [cdr(raw_message(image)) for image in clip[2:4]])
    data = (folder / "killed_1.mcap").read_bytes()
    (folder / "killed_1.mcap").write_bytes(data[: len(data) * 3 // 4])
    assert run("encode", folder, "-o", tmp_path / "o.mcap") == 1
    errors = capsys.readouterr().err
    assert "killed_1.mcap: is cut off" in errors
    assert "metadata.yaml" in errors
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 3


def unchunked(path: Path, images: list[bytes]) -> None:
    with path.open("wb") as file:
        writer = Writer(file, use_chunking=False, index_types=IndexType.NONE)
        writer.start("ros2", "test")
        definition = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
        schema = writer.register_schema(IMAGE, "ros2msg", definition.encode())
        number = writer.register_channel(CAMERA, "cdr", schema)
        for time, data in enumerate(images):
            writer.add_message(number, time, data, time)
        writer.finish()


# --- bad input ------------------------------------------------------------------------------------------


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


def test_missing_and_wrong_topics(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.mcap"
    for topic in ("/no/such", "/chatter"):
        line = fails(capsys, "encode", bag, "--topic", topic, "-o", out)
        assert f"{CAMERA} ({IMAGE})" in line
        assert "/chatter (std_msgs/msg/String)" in line
    assert "no topic /tatok" in fails(capsys, "decode", bag, "-o", out)
    assert not out.exists()
    assert nothing_left(tmp_path)


def test_existing_output(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.mcap"
    out.write_text("precious")
    assert "--force" in fails(capsys, "encode", bag, "-o", out)
    assert out.read_text() == "precious"
    assert run("encode", bag, "-o", out, "--force", "--frames", "1") == 0
    capsys.readouterr()
    assert len(records(out, TOKENS)) == 1
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    assert "thesis.txt" in fails(capsys, "encode", bag, "-o", folder, "--force")
    assert (folder / "thesis.txt").read_text() == "precious"
    assert ".mcap" in fails(capsys, "encode", bag, "-o", tmp_path / "o.ttk")


def test_options_that_do_not_go_together(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.ttk"
    for option in (["--topic", "/a"], ["--keep-images"], ["--force"], ["--frames-only"], ["--max-loss-db", "1"]):
        assert option[0] in fails(capsys, "encode", "synthetic:frames=1", "-o", out, *option, code=2)
    assert "--topic" in fails(capsys, "decode", "x.ttk", "-o", out, "--topic", "/a", code=2)
    assert "--snapshot" in fails(capsys, "encode", bag, "-o", out, "--snapshot", "a.png", code=2)
    assert "--frame" in fails(capsys, "decode", bag, "-o", out, "--frame", "1", code=2)


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("16UC1", "depth"), ("bayer_rggb8", "debayer"), ("yuv422_yuy2", "rgb8 first"), ("8UC3", "no stated colour")],
)
def test_unsupported_encodings(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str], encoding: str, reason: str
) -> None:
    path = camera_bag(tmp_path / "in.mcap", [raw_message(clip[0], encoding)])
    line = fails(capsys, "encode", path, "-o", tmp_path / "o.mcap")
    assert encoding in line
    assert reason in line
    assert "rgb8, bgr8, rgba8, bgra8, mono8" in line
    assert not (tmp_path / "o.mcap").exists()


def test_what_cannot_be_encoded_stays(tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged messages and unsupported ones in the middle of a topic."""
    good = cdr(raw_message(clip[0]))
    hostile = raw_message(clip[0])
    hostile.height = 2**32 - 1
    too_long = bytearray(good)
    at = len(good) - raw_message(clip[0]).data.size - 4
    too_long[at : at + 4] = struct.pack("<I", 2**32 - 1)
    bad = [
        good[:100],
        b"",
        b"\x00\x01\x00\x00",
        bytes(too_long),
        cdr(hostile),
        cdr(raw_message(clip[0], "16UC1")),
        good[: len(good) // 2],
    ]
    stored = [good, *bad, good]
    path = write_bag(tmp_path / "in.mcap", [(CAMERA, IMAGE, data) for data in stored])
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 1
    error = capsys.readouterr().err
    assert "7 of 9 messages were left as they are" in error
    assert [record.data for record in records(tmp_path / "o.mcap", CAMERA)] == bad
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 2
    assert run("decode", tmp_path / "o.mcap", "-o", tmp_path / "d.mcap") == 0


def test_no_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bag(tmp_path / "empty.mcap", [], channels=(channel(CAMERA, IMAGE),))
    assert "holds no message" in fails(capsys, "encode", path, "-o", tmp_path / "o.mcap")
    path = write_bag(tmp_path / "bare.mcap", [])
    assert "has no topics" in fails(capsys, "encode", path, "--topic", CAMERA, "-o", tmp_path / "o.mcap")
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("compression", list(CompressionType))
def test_cut_off_bags(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str], compression: CompressionType
) -> None:
    path = tmp_path / "in.mcap"
    with path.open("wb") as file:
        writer = Writer(file, compression=compression, chunk_size=1)
        writer.start("ros2", "test")
        definition = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
        schema = writer.register_schema(IMAGE, "ros2msg", definition.encode())
        number = writer.register_channel(CAMERA, "cdr", schema)
        ends = []
        for time, image in enumerate(clip[:4]):
            writer.add_message(number, time, cdr(raw_message(image)), time)
            ends.append(file.tell())
        writer.finish()
    path.write_bytes(path.read_bytes()[: (ends[1] + ends[2]) // 2])
    assert run("encode", path, "-o", tmp_path / "o.mcap", "--json") == 1
    captured = capsys.readouterr()
    assert "in.mcap: is cut off" in captured.err
    assert json.loads(captured.out)["complete"] is False
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 2


def test_a_flipped_bit_in_a_chunk(tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.mcap"
    with path.open("wb") as file:
        writer = Writer(file, compression=CompressionType.NONE, chunk_size=1)
        writer.start("ros2", "test")
        definition = STORE.generate_msgdef(IMAGE, ros_version=2)[0]
        schema = writer.register_schema(IMAGE, "ros2msg", definition.encode())
        number = writer.register_channel(CAMERA, "cdr", schema)
        for time, image in enumerate(clip[:2]):
            writer.add_message(number, time, cdr(raw_message(image)), time)
        writer.finish()
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 1
    assert "crc" in capsys.readouterr().err
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 1


@pytest.mark.parametrize("name", ["x.mcap", "x.db3"])
@pytest.mark.parametrize("data", [b"", b"\x89MCAP0\r\n", b"no bag at all" * 9, b"SQLite format 3\x00"])
def test_what_is_no_bag(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    line = fails(capsys, "encode", tmp_path / name, "-o", tmp_path / "o.mcap")
    assert name in line
    assert "unexpected" not in line
    assert "there is no such file" in fails(capsys, "encode", "nowhere.mcap", "-o", tmp_path / "o.mcap")


def test_ros1_bags_say_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = Channel(CAMERA, IMAGE, "ros1", "ros1msg", b"Header header")
    write_bag(tmp_path / "in.mcap", [], channels=(old,))
    assert "rosbags-convert" in fails(capsys, "encode", tmp_path / "in.mcap", "-o", tmp_path / "o.mcap")


@given(data=st.data())
def test_damaged_bags_never_do_worse_than_stop(bag: Path, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Any bytes changed, any cut: whole messages and a report, or a refusal; never another exception."""
    content = bytearray(bag.read_bytes())
    # Mostly where records begin and end: the middle is pixels.
    near = st.one_of(st.integers(0, 3000), st.integers(len(content) - 3000, len(content) - 1))
    for place in data.draw(st.lists(near, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "d.mcap"
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        with Bag(path) as opened:
            for record in opened.records():
                assert isinstance(record, Message | Channel | Attachment | Metadata)
    except SourceError:
        pass
    path.unlink()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small SQLite file of rosbag2."""
    folder = tmp_path_factory.mktemp("database") / "in"
    with RosbagWriter(folder, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        texts = writer.add_connection("/chatter", "std_msgs/msg/String", typestore=STORE)
        for number in range(20):
            writer.write(texts, START + number, cdr(TYPES["std_msgs/msg/String"](data=f"{number}")))
    return (folder / "in.db3").read_bytes()


@given(data=st.data())
def test_damaged_databases_never_do_worse_than_stop(
    database: bytes, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(database)
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "d.db3"
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        with Bag(path) as opened:
            for record in opened.records():
                assert isinstance(record, Message | Channel)
    except SourceError:
        pass
    path.unlink()


def test_hostile_chunk_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A chunk that claims to unpack to more than any memory is refused before it is unpacked."""
    chunk = struct.pack("<QQQI", 0, 0, 2**62, 0) + struct.pack("<I", 4) + b"zstd" + struct.pack("<Q", 4) + b"(\xb5/\xfd"
    header = struct.pack("<I", 4) + b"ros2" + struct.pack("<I", 0)
    parts = [b"\x89MCAP0\r\n", b"\x01", struct.pack("<Q", len(header)), header, b"\x06", struct.pack("<Q", len(chunk))]
    (tmp_path / "x.mcap").write_bytes(b"".join(parts) + chunk)
    with Bag(tmp_path / "x.mcap") as opened:
        assert list(opened.records()) == []
        assert "4611686018427387904" in opened.problems[0]


def test_metadata_that_names_files_elsewhere(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = rosbag(tmp_path / "in", clip, StoragePlugin.MCAP)
    yaml = folder / "metadata.yaml"
    yaml.write_text(yaml.read_text().replace("in.mcap", "../../../etc/passwd"))
    assert "its file passwd is missing" in fails(capsys, "encode", folder, "-o", tmp_path / "o.mcap")
    yaml.write_text("rosbag2_bagfile_information: [1, 2")
    assert "metadata.yaml: is damaged" in fails(capsys, "encode", folder, "-o", tmp_path / "o.mcap")
    yaml.write_text("just text")
    assert "not the metadata" in fails(capsys, "encode", folder, "-o", tmp_path / "o.mcap")


def test_full_disk(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("/dev/full is not here")
    opened = BagWriter.__init__

    def on_a_full_disk(self: BagWriter, path: str | Path, *, force: bool = False) -> None:
        opened(self, path, force=force)
        self._file.close()
        self._file = full.open("wb")
        self._writer._Writer__stream = self._file

    monkeypatch.setattr(BagWriter, "__init__", on_a_full_disk)
    assert "No space left" in fails(capsys, "encode", bag, "-o", tmp_path / "o.mcap")
    assert not (tmp_path / "o.mcap").exists()
    assert nothing_left(tmp_path)


def test_another_bundle_is_named(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = records(tokens, TOKENS)
    messages = [content(record) for record in found]
    tag = TokenFormat.parse(messages[0].format).bundle
    for message in messages:
        message.format = message.format.replace(tag, "0123456789abcdef")
    path = camera_bag(tmp_path / "in.mcap", messages, TOKENS)
    line = fails(capsys, "decode", path, "-o", tmp_path / "o.mcap")
    assert "0123456789abcdef" in line
    assert tag in line


def test_lost_and_damaged_packets_stay_as_tokens(
    tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = [record.data for record in records(tokens, TOKENS)]
    damaged = bytearray(stored[2])
    damaged[-20] ^= 255
    foreign = cdr(compressed_message(frames(1)[0]))
    path = write_bag(
        tmp_path / "in.mcap", [(TOKENS, COMPRESSED, bytes(data)) for data in (*stored[:2], damaged, foreign, stored[3])]
    )
    assert run("decode", path, "-o", tmp_path / "o.mcap") == 1
    assert "3 of 5 messages were left as they are" in capsys.readouterr().err
    assert len(records(tmp_path / "o.mcap", f"{CAMERA}/decoded")) == 2
    assert [record.data for record in records(tmp_path / "o.mcap", TOKENS)] == [damaged, foreign, stored[3]]


def test_bag_in_the_middle_of_a_stream_is_readable_from_its_keyframe(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", bag, "-o", tmp_path / "o.mcap", "--keyframe-interval", "4") == 0
    late = [(TOKENS, COMPRESSED, record.data) for record in records(tmp_path / "o.mcap", TOKENS)[2:]]
    path = write_bag(tmp_path / "late.mcap", late)
    assert run("decode", path, "-o", tmp_path / "d.mcap") == 1
    assert "2 of 10 messages were left as they are" in capsys.readouterr().err
    assert len(records(tmp_path / "d.mcap", f"{CAMERA}/decoded")) == 8


def test_interruption_keeps_what_is_done(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import signal

    encode = ImageEncoder.encode
    calls = []

    def interrupted(self: ImageEncoder, message: Any) -> Any:
        calls.append(message)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return encode(self, message)

    monkeypatch.setattr(ImageEncoder, "encode", interrupted)
    assert run("encode", bag, "-o", tmp_path / "o.mcap") == 130
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 3
    assert "interrupted" in capsys.readouterr().err


def test_missing_extra_says_what_to_install(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mcap", None)
    line = fails(capsys, "encode", bag, "-o", tmp_path / "o.mcap")
    assert "pip install 'tatok-edge[robotics]'" in line


def test_importing_robotics_takes_no_optional_package(tmp_path: Path) -> None:
    code = (
        "import sys, tatok_edge.robotics.topics, tatok_edge.robotics.bags.bag, tatok_edge.cli.bags, "
        "tatok_edge.sources.bag; "
        "assert not {'mcap', 'rosbags', 'ruamel.yaml', 'zstandard', 'rclpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


# --- messages to arrays -------------------------------------------------------------------------------------


@st.composite
def images_in_messages(draw: st.DrawFn) -> tuple[SimpleNamespace, Array]:
    """A raw image message, and the picture that its fields describe, computed pixel by pixel."""
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    channels = ENCODINGS[encoding]
    width, height = draw(st.integers(32, 40)), draw(st.integers(32, 40))
    step = width * channels + draw(st.integers(0, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    data = np.random.default_rng(seed).integers(0, 256, step * height + draw(st.integers(0, 5)), np.uint8)
    order = {"rgb8": (0, 1, 2), "rgba8": (0, 1, 2), "bgr8": (2, 1, 0), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}[encoding]
    picture = np.zeros((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            picture[row, column] = [data[row * step + column * channels + place] for place in order]
    wrap: Callable[[Array], Any] = draw(
        st.sampled_from([lambda a: a, lambda a: a.tobytes(), ros_array, lambda a: memoryview(a.tobytes())])
    )
    message = SimpleNamespace(
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=draw(st.integers(0, 1)),
        data=wrap(data),
    )
    return message, picture


@given(images_in_messages())
def test_image_from_message_equals_the_reference(pair: tuple[SimpleNamespace, Array]) -> None:
    message, picture = pair
    assert np.array_equal(image_from_message(message), picture)


def test_raw_images_are_views(clip: list[Array]) -> None:
    for encoding in ENCODINGS:
        message = raw_message(clip[0], encoding, padding=5)
        assert np.shares_memory(image_from_message(message), message.data)


def test_every_layout_gives_the_same_tokens(tokenizer: Tokenizer, clip: list[Array]) -> None:
    packets = {
        encoding: ImageEncoder(tokenizer, stream="00000000").encode(raw_message(clip[0], encoding, padding=padding))
        for encoding, padding in (("rgb8", 0), ("bgr8", 1), ("rgba8", 2), ("bgra8", 3))
    }
    assert len({packet.packet for packet in packets.values() if packet is not None}) == 1


@given(
    encoding=st.sampled_from(sorted(ENCODINGS)),
    width=st.integers(0, 2**32 - 1),
    height=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 1),
    size=st.integers(0, 4096),
)
def test_hostile_fields_are_refused(encoding: str, width: int, height: int, step: int, size: int) -> None:
    message = SimpleNamespace(encoding=encoding, width=width, height=height, step=step, data=bytes(size))
    try:
        image = image_from_message(message)
    except (InputError, FormatError):
        return
    assert image.shape == (height, width, 3)
    assert step * (height - 1) + width * ENCODINGS[encoding] <= size


def test_compressed_images(clip: list[Array]) -> None:
    png = compressed_message(clip[0], ".png", name="rgb8; png compressed bgr8")
    assert np.array_equal(image_from_message(png), clip[0])
    assert psnr(image_from_message(compressed_message(clip[0])), clip[0]) > 30
    grey = TYPES[COMPRESSED](
        header=header(), format="mono8; jpeg compressed ", data=cv2.imencode(".jpg", clip[0][:, :, 0])[1].reshape(-1)
    )
    assert image_from_message(grey).shape == clip[0].shape
    assert token_encoding(grey) == "rgb8"


def test_bad_compressed_images(clip: list[Array]) -> None:
    def refused(name: str, data: bytes, kind: type[Exception], text: str) -> None:
        message = TYPES[COMPRESSED](header=header(), format=name, data=np.frombuffer(data, np.uint8))
        with pytest.raises(kind, match=text):
            image_from_message(message)

    jpeg = cv2.imencode(".jpg", clip[0])[1].tobytes()
    png = cv2.imencode(".png", clip[0])[1].tobytes()
    depth = cv2.imencode(".png", clip[0][:, :, 0].astype(np.uint16))[1].tobytes()
    refused("jpeg", b"", InputError, "not supported")
    refused("jpeg", jpeg[: len(jpeg) // 2], FormatError, "cut off")
    refused("jpeg", jpeg[:12], FormatError, "damaged")
    refused("png", png[: len(png) // 2], FormatError, "damaged|decoded")
    refused("png", png[:20], FormatError, "damaged")
    refused("mono16; png", depth, InputError, "16 bits")
    refused("16UC1; compressedDepth png", bytes(12) + depth, InputError, "not supported")
    refused("h264", b"\x00\x00\x00\x01", InputError, "h264")
    refused("tatok; bundle=0", b"", InputError, "tokens already")
    # Two bytes of size say more pixels than there is memory for: refused before anything is decoded.
    at = jpeg.index(b"\xff\xc0") + 5
    refused("jpeg", jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], InputError, "65535x65535")
    refused("png", png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:], InputError, "2147483647")


@given(st.text(max_size=300))
def test_format_strings(text: str) -> None:
    with pytest.raises(FormatError):
        TokenFormat.parse(text)
    name = TokenFormat("0123456789abcdef", "bgr8", "deadbeef")
    assert TokenFormat.parse(str(name)) == name
    assert TokenFormat.parse(f"{name}; more=1") == name  # later versions may add to it


@pytest.mark.parametrize("store", [Stores.ROS2_HUMBLE, Stores.ROS2_JAZZY])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
def test_messages_survive_cdr(tokenizer: Tokenizer, clip: list[Array], store: Stores, encoding: str) -> None:
    """What our functions make, real serializers take, of both distributions."""
    typestore = get_typestore(store)
    packet = ImageEncoder(tokenizer).encode(raw_message(clip[0], encoding))
    assert packet is not None
    message = packet_to_message(
        typestore.types[COMPRESSED], header(), packet, buffer=lambda data: np.frombuffer(data, np.uint8)
    )
    back: Any = typestore.deserialize_cdr(typestore.serialize_cdr(message, COMPRESSED), COMPRESSED)
    decoded, found = TokenDecoder(tokenizer).decode(back)
    assert found == encoding
    assert decoded.image is not None
    image = image_to_message(typestore.types[IMAGE], header(), decoded.image, encoding, buffer=lambda data: data)
    again: Any = typestore.deserialize_cdr(typestore.serialize_cdr(image, IMAGE), IMAGE)
    if encoding != "mono8":
        assert np.array_equal(image_from_message(again), decoded.image)
    assert (again.encoding, again.header.frame_id) == (encoding, "camera")


# --- a bag as a source ----------------------------------------------------------------------------------------


def test_bag_source(bag: Path, clip: list[Array], tmp_path: Path) -> None:
    with BagSource(bag) as source:
        found = list(source)
    assert [frame.index for frame in found] == list(range(12))
    assert all(np.array_equal(frame.image, image) for frame, image in zip(found, clip, strict=True))
    assert found[0].timestamp_us == 0
    stamps = [frame.timestamp_us for frame in found]
    assert stamps == sorted(set(stamps))
    assert source.problem is None
    path = camera_bag(tmp_path / "in.mcap", [raw_message(clip[0]), raw_message(clip[1], "16UC1")])
    with BagSource(path, CAMERA) as source:
        assert len(list(source)) == 1
    assert source.problem is not None
    assert "left out 1 messages" in source.problem
    path = camera_bag(tmp_path / "depth.mcap", [raw_message(clip[1], "16UC1")])
    with pytest.raises(SourceError, match="16UC1"):
        BagSource(path)


# --- the ROS 2 node ----------------------------------------------------------------------------------------


class Robot:
    """A camera, nodes of the example and a viewer on a fake ROS 2."""

    def __init__(self, network: fake_rclpy.Network, images: list[Array]) -> None:
        self.network = network
        self.example = example("ros2_node")
        self.images = images
        self.time = 0
        self.seen: list[tuple[int, Any]] = []
        fake_rclpy.init()
        self.driver = fake_rclpy.Node("driver")
        best_effort = fake_rclpy.QoSProfile(depth=1, reliability=fake_rclpy.ReliabilityPolicy.BEST_EFFORT)
        self.camera = self.driver.create_publisher(fake_rclpy.Image, CAMERA, best_effort)
        self.viewer = fake_rclpy.Node("viewer")
        self.viewer.create_subscription(
            fake_rclpy.Image, f"{CAMERA}/decoded", self._show, fake_rclpy.QoSProfile(depth=10)
        )
        self.nodes: list[fake_rclpy.Node] = []

    def _show(self, message: Any) -> None:
        self.seen.append((message.header.stamp.sec, message))

    def start(self, kind: str, *parameters: str) -> tuple[fake_rclpy.Node, Any]:
        arguments = ["--ros-args", *(part for item in parameters for part in ("-p", item))]
        fake_rclpy.init(args=arguments)
        node = fake_rclpy.Node(kind)
        part = getattr(self.example, kind)(node)
        self.nodes.append(node)
        return node, part

    def stop(self, node: fake_rclpy.Node) -> None:
        node.destroy_node()
        self.nodes.remove(node)

    def shoot(self, count: int = 1) -> None:
        """The camera takes pictures, one a second, and what follows from them happens."""
        for _ in range(count):
            self.publish()
            self.settle()

    def publish(self) -> None:
        image = self.images[self.time % len(self.images)]
        message = image_to_message(
            fake_rclpy.Image,
            fake_rclpy.Header(stamp=fake_rclpy.Time(sec=self.time), frame_id="optical"),
            image,
        )
        self.time += 1
        self.camera.publish(message)

    def settle(self) -> None:
        for _ in range(8):
            for node in [*self.nodes, self.viewer]:
                fake_rclpy.spin_once(node)

    def packets(self) -> list[Any]:
        store = self.network.store
        return [store.deserialize_cdr(data, COMPRESSED) for topic, data in self.network.sent if topic == TOKENS]

    def kinds(self) -> list[str]:
        from tatok_edge.format.packet import peek

        return [peek(bytes(message.data)).kind for message in self.packets()]


@pytest.fixture(params=[Stores.ROS2_HUMBLE, Stores.ROS2_JAZZY], ids=["humble", "jazzy"])
def robot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, clip: list[Array]) -> Robot:
    small = [np.ascontiguousarray(image[:128, :160]) for image in clip]
    return Robot(fake_rclpy.install(monkeypatch, request.param), small)


def test_node_and_its_twin(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder")
    robot.shoot(6)
    assert [sec for sec, _ in robot.seen] == list(range(6))
    for sec, message in robot.seen:
        assert (message.header.frame_id, message.encoding) == ("optical", "rgb8")
        assert psnr(image_from_message(message), robot.images[sec]) > 20
    assert robot.kinds() == ["key", *["delta"] * 5]
    assert robot.packets()[0].format.startswith("tatok; bundle=")


def test_node_takes_the_newest_frame(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder")
    for _ in range(5):  # while the encoder was busy
        robot.publish()
    robot.settle()
    assert [sec for sec, _ in robot.seen] == [4]


def test_lost_packet_is_mended_by_a_request(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder")
    robot.shoot(3)
    robot.network.lose = lambda topic, data: topic == TOKENS
    robot.shoot(1)  # 3 is lost
    robot.network.lose = lambda topic, data: False
    robot.shoot(3)  # 4 cannot be used and asks for a keyframe, which 5 is
    assert [sec for sec, _ in robot.seen] == [0, 1, 2, 5, 6]
    assert robot.kinds() == ["key", "delta", "delta", "delta", "delta", "key", "delta"]
    assert sum(topic.endswith("request_keyframe") for topic, _ in robot.network.sent) == 1


def test_lost_request_is_repeated(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(robot.example.time, "monotonic", lambda: clock[0])
    robot.start("Decoder")
    robot.start("Encoder")
    robot.shoot(2)
    robot.network.lose = lambda topic, data: topic == TOKENS or topic.endswith("request_keyframe")
    robot.shoot(1)
    robot.network.lose = lambda topic, data: topic.endswith("request_keyframe")
    robot.shoot(2)  # asks in vain, and not twice within a second
    assert sum(topic.endswith("request_keyframe") for topic, _ in robot.network.sent) == 1
    robot.network.lose = lambda topic, data: False
    clock[0] += 2
    robot.shoot(3)
    assert [sec for sec, _ in robot.seen] == [0, 1, 6, 7]


def test_encoder_that_begins_anew(robot: Robot) -> None:
    """Its frame numbers start over, which must not look like old packets."""
    robot.start("Decoder")
    node, _ = robot.start("Encoder")
    robot.shoot(5)
    robot.stop(node)
    robot.start("Encoder")
    robot.shoot(3)
    assert [sec for sec, _ in robot.seen] == list(range(8))
    assert robot.kinds()[5] == "key"


def test_who_comes_late_gets_a_keyframe(robot: Robot) -> None:
    robot.start("Encoder")
    robot.shoot(4)
    robot.start("Decoder")
    robot.shoot(3)
    assert [sec for sec, _ in robot.seen] == [4, 5, 6]
    assert robot.kinds()[4] == "key"


def test_node_parameters(robot: Robot) -> None:
    robot.start("Decoder", "reliable:=false")
    node, part = robot.start("Encoder", "reliable:=false", "max_kbps:=40.0", "keyframe_interval:=10")
    robot.shoot(6)
    packets = robot.packets()
    assert packets
    assert sum(8 * len(message.data) for message in packets) <= 6 * 40_000
    assert robot.seen
    with pytest.raises(fake_rclpy.InvalidParameterTypeException):
        robot.start("Encoder", "max_kbps:=40")  # as ROS 2 has it: 40 is no float
    del node, part


def test_reliability_has_to_match(robot: Robot) -> None:
    """A reliable decoder gets nothing from a best-effort encoder, in the fake as in ROS 2."""
    robot.start("Decoder", "reliable:=true")
    robot.start("Encoder", "reliable:=false")
    robot.shoot(2)
    assert robot.seen == []


def test_node_outlives_bad_messages(robot: Robot) -> None:
    node, _ = robot.start("Encoder")
    decoder, _ = robot.start("Decoder")
    robot.shoot(2)
    depth = fake_rclpy.Image(
        header=fake_rclpy.Header(), height=64, width=64, encoding="16UC1", step=128, data=array.array("B", bytes(8192))
    )
    robot.camera.publish(depth)
    robot.settle()
    assert any("16UC1" in text for level, text in node.get_logger().lines if level == "error")
    junk = fake_rclpy.CompressedImage(format="jpeg", data=array.array("B", b"\xff\xd8"))
    robot.driver.create_publisher(fake_rclpy.CompressedImage, TOKENS, fake_rclpy.QoSProfile(depth=1)).publish(junk)
    robot.settle()
    assert any("no tokens" in text for level, text in decoder.get_logger().lines if level == "error")
    robot.shoot(2)
    assert [sec for sec, _ in robot.seen] == [0, 1, 2, 3]


def test_node_takes_compressed_images(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder", "compressed:=true")
    publisher = robot.driver.create_publisher(fake_rclpy.CompressedImage, CAMERA, fake_rclpy.QoSProfile(depth=1))
    data = cv2.imencode(".jpg", robot.images[0][:, :, ::-1])[1].tobytes()
    publisher.publish(fake_rclpy.CompressedImage(format="jpeg", data=ros_array(data)))
    robot.settle()
    ((_, message),) = robot.seen
    assert psnr(image_from_message(message), robot.images[0]) > 20


def test_main_spins_and_ends(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    spun: list[str] = []

    def spin(node: fake_rclpy.Node) -> None:
        spun.append(node.get_name())
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["rclpy"], "spin", spin)
    robot.example.main(["--ros-args", "-p", f"topic:={CAMERA}"])
    robot.example.main(["--decode"])
    assert spun == ["tatok_encoder", "tatok_decoder"]
    assert not fake_rclpy.ok()
    assert [item.topic_name for item in robot.network.subscriptions] == [f"{CAMERA}/decoded"]


def test_node_without_ros_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ros2_node.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs ROS 2" in done.stderr


# --- live viewing --------------------------------------------------------------------------------------------


def test_foxglove_shows_camera_tokens_and_reconstruction(tmp_path: Path) -> None:
    pytest.importorskip("foxglove", reason="foxglove-sdk is not installed (19 MB; nothing else needs it)")
    client = pytest.importorskip("websockets.sync.client", reason="websockets is not installed")
    source = "synthetic:live=1,width=160,height=128,fps=20"
    with subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "foxglove_live.py"), source, "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().partition(",")[0]
            assert address.startswith("ws://127.0.0.1:")
            with client.connect(address, subprotocols=["foxglove.sdk.v1"], open_timeout=20) as connection:
                topics: dict[str, int] = {}
                while len(topics) < 4:
                    message = connection.recv(timeout=20)
                    if isinstance(message, str) and (text := json.loads(message))["op"] == "advertise":
                        topics |= {item["topic"]: item["id"] for item in text["channels"]}
                assert set(topics) == {"/camera", "/camera/tokens", "/camera/decoded", "/camera/tatok"}
                wanted = [{"id": number, "channelId": number} for number in topics.values()]
                connection.send(json.dumps({"op": "subscribe", "subscriptions": wanted}))
                found: dict[int, bytes] = {}
                while len(found) < 4:
                    message = connection.recv(timeout=20)
                    if isinstance(message, bytes) and message[0] == 1:  # message data: opcode, subscription, time
                        found[struct.unpack("<I", message[1:5])[0]] = message[13:]
        finally:
            process.terminate()
    figures = json.loads(found[topics["/camera/tatok"]])
    assert figures["tokens"] >= 0
    assert figures["kind"] in ("key", "delta")
    shown = {}
    for topic in ("/camera", "/camera/tokens", "/camera/decoded"):
        data = found[topics[topic]]
        jpeg = data[data.index(b"\xff\xd8") : data.rindex(b"\xff\xd9") + 2]
        shown[topic] = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert shown[topic].shape == (128, 160, 3)
    assert psnr(shown["/camera"], shown["/camera/decoded"]) > 18


# --- the documentation -------------------------------------------------------------------------------------


def test_commands_of_the_page_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "robotics.md").read_text()
    block = page.partition("<!-- robotics -->\n```sh\n")[2].partition("```\n<!-- /robotics -->")[0]
    lines = block.strip().splitlines()
    assert len(lines) >= 6
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "python":
            arguments[0] = str(ROOT / arguments[0])
        else:
            assert program == "tatok"
            arguments = ["-m", "tatok_edge", *arguments]
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert len(records(tmp_path / "decoded.mcap", f"{CAMERA}/decoded")) == 20
    assert (tmp_path / "tokens_folder" / "metadata.yaml").is_file()


def test_subscriber_of_the_page_runs(robot: Robot, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "robotics.md").read_text()
    block = page.partition("```python\n")[2].partition("```")[0]
    robot.start("Encoder")
    monkeypatch.setattr(sys.modules["rclpy"], "spin", robot.nodes.append)
    exec(block, {})
    robot.shoot(2)
    assert capsys.readouterr().out.count("(128, 160, 3)") == 2
