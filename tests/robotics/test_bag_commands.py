"""``tatok encode`` and ``tatok decode`` of bags, as a user meets them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.bags import (
    CAMERA,
    COMPRESSED,
    IMAGE,
    STORE,
    TOKENS,
    Array,
    camera_bag,
    cdr,
    channel,
    compressed_message,
    content,
    fails,
    frames,
    header,
    nothing_left,
    raw_message,
    records,
    report_of,
    run,
    write_bag,
)
from mcap.records import Attachment, Metadata
from rosbags.highlevel import AnyReader

from tatok_edge.evaluation.metrics import psnr
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.images import image_from_message
from tatok_edge.robotics.topics import ImageEncoder, TokenDecoder, TokenFormat


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
    assert ".ttk" in fails(capsys, "encode", bag, "-o", tmp_path / "o.txt")


def test_options_that_do_not_go_together(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "o.ttk"
    for option in (["--topic", "/a"], ["--keep-images"], ["--frames-only"], ["--max-loss-db", "1"]):
        assert option[0] in fails(capsys, "encode", "synthetic:frames=1", "-o", out, *option, code=2)
    assert "--topic" in fails(capsys, "decode", "x.ttk", "-o", out, "--topic", "/a", code=2)
    assert "--snapshot" in fails(capsys, "encode", bag, "-o", "o.mcap", "--snapshot", "a.png", code=2)
    assert "--frame" in fails(capsys, "decode", bag, "-o", out, "--frame", "1", code=2)


def test_no_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bag(tmp_path / "empty.mcap", [], channels=(channel(CAMERA, IMAGE),))
    assert "holds no message" in fails(capsys, "encode", path, "-o", tmp_path / "o.mcap")
    path = write_bag(tmp_path / "bare.mcap", [])
    assert "has no topics" in fails(capsys, "encode", path, "--topic", CAMERA, "-o", tmp_path / "o.mcap")
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
    assert "3 of 5 messages were copied unchanged" in capsys.readouterr().err
    assert len(records(tmp_path / "o.mcap", f"{CAMERA}/decoded")) == 2
    assert [record.data for record in records(tmp_path / "o.mcap", TOKENS)] == [damaged, foreign, stored[3]]


def test_bag_in_the_middle_of_a_stream_is_readable_from_its_keyframe(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("encode", bag, "-o", tmp_path / "o.mcap", "--keyframe-interval", "4") == 0
    late = [(TOKENS, COMPRESSED, record.data) for record in records(tmp_path / "o.mcap", TOKENS)[2:]]
    path = write_bag(tmp_path / "late.mcap", late)
    assert run("decode", path, "-o", tmp_path / "d.mcap") == 1
    assert "2 of 10 messages were copied unchanged" in capsys.readouterr().err
    assert len(records(tmp_path / "d.mcap", f"{CAMERA}/decoded")) == 8


def test_interruption_keeps_what_is_done(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encode = ImageEncoder.encode
    calls = []

    def interrupted(self: ImageEncoder, message: Any, **options: Any) -> Any:
        calls.append(message)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return encode(self, message, **options)

    monkeypatch.setattr(ImageEncoder, "encode", interrupted)
    assert run("encode", bag, "-o", tmp_path / "o.mcap") == 130
    assert not (tmp_path / "o.mcap").exists()
    (tmp_path / "o.mcap.part").rename(tmp_path / "part.mcap")
    assert len(records(tmp_path / "part.mcap", TOKENS)) == 3
    error = capsys.readouterr().err
    assert "interrupted" in error and "o.mcap.part" in error


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
