"""``tatok info`` and ``tatok view`` of token bags, and a bag to a token file."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from helpers.bags import CAMERA, TOKENS, Array, camera_bag, fails, raw_message, records, report_of, run

import tatok_edge
from tatok_edge.format.reader import Reader
from tatok_edge.robotics.bags.bag import split_topic
from tatok_edge.robotics.bags.records import Message
from tatok_edge.robotics.bags.writer import BagWriter


def test_info_of_a_token_bag(tokens: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", tokens, "--json") == 0
    report = report_of(capsys)
    assert (report["frames"], report["complete"]) == (12, True)
    topic = report["token_topics"][TOKENS]
    assert (topic["frames"], topic["key_frames"], topic["width"]) == (12, 1, 384)
    assert report["topics"]["/chatter"] == {"type": "std_msgs/msg/String", "messages": 12}
    assert run("info", f"{tokens}#{TOKENS}") == 0
    printed = capsys.readouterr().out
    assert "12 frames (384x216" in printed
    assert "/chatter" in printed


def test_info_of_a_camera_bag(bag: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", bag, "--json") == 0
    report = report_of(capsys)
    assert (report["frames"], report["token_topics"]) == (0, {})
    assert report["topics"][CAMERA]["messages"] == 12
    assert "has no topic /nowhere" in fails(capsys, "info", f"{bag}#/nowhere")


def test_view_of_a_token_bag(bag: Path, tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("view", tokens, "-o", tmp_path / "v.png", "--frame", "7", "--source", f"{bag}#{CAMERA}", "--json") == 0
    report = report_of(capsys)
    assert report["frame"] == 7
    assert report["psnr_db"] > 22
    assert cv2.imread(str(tmp_path / "v.png")) is not None
    assert "no topic /tatok" in fails(capsys, "view", bag, "-o", tmp_path / "w.png")
    assert "--topic is for bags" in fails(capsys, "view", "a.ttk", "--topic", "/a", "-o", tmp_path / "w.png", code=2)


def test_a_damaged_packet_costs_no_other(tokens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with BagWriter(tmp_path / "bad.mcap") as writer:
        for number, record in enumerate(records(tokens, TOKENS)):
            data = bytearray(record.data)
            data[-1] ^= number == 11
            writer.write(Message(record.channel, record.log_time, record.publish_time, record.sequence, bytes(data)))
    assert run("info", tmp_path / "bad.mcap") == 1
    assert "CRC" in capsys.readouterr().err
    assert run("view", tmp_path / "bad.mcap", "-o", tmp_path / "v.png", "--frame", "3") == 1


def test_a_bag_to_a_token_file(
    bag: Path, tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ((bag,), (bag, "--topic", CAMERA), (f"{bag}#{CAMERA}",)):
        assert run("encode", *arguments, "-o", tmp_path / "t.ttk", "--frames", 3, "--force") == 0
        with Reader(tmp_path / "t.ttk") as reader:
            assert len(reader) == 3
    capsys.readouterr()
    assert "keep-images is for bags" in fails(capsys, "encode", bag, "--keep-images", "-o", tmp_path / "t.ttk", code=2)
    two = ("--topic", CAMERA, "--topic", "/chatter")
    assert "one topic" in fails(capsys, "encode", bag, *two, "-o", tmp_path / "t.ttk", code=2)
    assert run("encode", f"{bag}#{CAMERA}", "-o", tmp_path / "o.mcap", "--frames", 2) == 0
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 2


def test_a_bag_with_a_mark_in_its_name(tmp_path: Path, clip: list[Array]) -> None:
    path = camera_bag(tmp_path / "run#3.mcap", [raw_message(clip[0])])
    assert split_topic(str(path)) == (path, None)
    assert split_topic(f"{path}#{CAMERA}") == (path, CAMERA)
    assert split_topic(str(tmp_path / "run#4")) is None
    assert run("encode", f"{path}#{CAMERA}", "-o", tmp_path / "t.ttk") == 0
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 0
    assert run("info", tmp_path / "o.mcap") == 0


def test_a_token_topic_is_opened_as_a_recording(tokens: Path, bag: Path) -> None:
    for name, topic in ((tokens, None), (f"{tokens}#{TOKENS}", None), (tokens, TOKENS)):
        with tatok_edge.open(name, topic=topic) as recording:
            assert len(recording) == 12
            assert recording[1].tokens.index == recording[1].index
            assert recording[11].image.shape == (216, 384, 3)
    with pytest.raises(tatok_edge.SourceError, match="no topic /tatok"):
        tatok_edge.open(bag)
