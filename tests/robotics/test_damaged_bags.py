"""Bags and messages that are damaged, hostile or of another kind, and a full disk."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from helpers.bags import (
    CAMERA,
    IMAGE,
    START,
    STORE,
    TOKENS,
    TYPES,
    Array,
    camera_bag,
    cdr,
    fails,
    mcap_bag,
    nothing_left,
    raw_message,
    records,
    rosbag,
    run,
    write_bag,
)
from hypothesis import given
from hypothesis import strategies as st
from mcap.records import Attachment, Metadata
from mcap.writer import CompressionType
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as RosbagWriter

from tatok_edge.errors import SourceError
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.bags.records import Channel, Message
from tatok_edge.robotics.bags.writer import BagWriter


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [("16UC1", "depth"), ("bayer_rggb12p", "debayer"), ("yuv444", "rgb8 first"), ("8UC2", "no stated colour")],
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
    assert "7 of 9 messages were copied unchanged" in error
    assert [record.data for record in records(tmp_path / "o.mcap", CAMERA)] == bad
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 2
    assert run("decode", tmp_path / "o.mcap", "-o", tmp_path / "d.mcap") == 0


@pytest.mark.parametrize("compression", list(CompressionType))
def test_cut_off_bags(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str], compression: CompressionType
) -> None:
    path = tmp_path / "in.mcap"
    ends = mcap_bag(path, clip[:4], compression=compression, chunk_size=1)
    path.write_bytes(path.read_bytes()[: (ends[1] + ends[2]) // 2])
    assert run("encode", path, "-o", tmp_path / "o.mcap", "--json") == 1
    captured = capsys.readouterr()
    assert "in.mcap: is cut off" in captured.err
    assert json.loads(captured.out)["complete"] is False
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 2


def test_a_flipped_bit_in_a_chunk(tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.mcap"
    mcap_bag(path, clip[:2], compression=CompressionType.NONE, chunk_size=1)
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    path.write_bytes(data)
    assert run("encode", path, "-o", tmp_path / "o.mcap") == 1
    assert "CRC" in capsys.readouterr().err
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


def read_damaged(
    path: Path,
    content: bytearray,
    places: st.SearchStrategy[int],
    data: st.DataObject,
    kinds: tuple[type, ...] = (Message, Channel),
) -> None:
    """Writes a bag with some bytes changed and cut off somewhere, and reads it: records or a refusal, nothing else."""
    for place in data.draw(st.lists(places, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        with Bag(path) as opened:
            for record in opened.records():
                assert isinstance(record, kinds)
    except SourceError:
        pass
    path.unlink()


@given(data=st.data())
def test_damaged_bags_never_do_worse_than_stop(
    bag: Path, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any bytes changed, any cut: whole messages and a report, or a refusal; never another exception."""
    content = bytearray(bag.read_bytes())
    kinds = (Message, Channel, Attachment, Metadata)
    # Mostly where records begin and end: the middle is pixels.
    near = st.one_of(st.integers(0, 3000), st.integers(len(content) - 3000, len(content) - 1))
    read_damaged(tmp_path_factory.mktemp("damaged") / "d.mcap", content, near, data, kinds)


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
    anywhere = st.integers(0, len(database) - 1)
    read_damaged(tmp_path_factory.mktemp("damaged") / "d.db3", bytearray(database), anywhere, data)


def test_hostile_chunk_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A chunk that claims to unpack to more than any memory is refused before it is unpacked."""
    chunk = struct.pack("<QQQI", 0, 0, 2**62, 0) + struct.pack("<I", 4) + b"zstd" + struct.pack("<Q", 4) + b"(\xb5/\xfd"
    header = struct.pack("<I", 4) + b"ros2" + struct.pack("<I", 0)
    parts = [b"\x89MCAP0\r\n", b"\x01", struct.pack("<Q", len(header)), header, b"\x06", struct.pack("<Q", len(chunk))]
    (tmp_path / "x.mcap").write_bytes(b"".join(parts) + chunk)
    with Bag(tmp_path / "x.mcap") as opened:
        assert list(opened.records()) == []
        assert "4611686018427387904" in opened.problems[0]


@pytest.mark.parametrize(
    ("yaml", "says"),
    [
        ("rosbag2_bagfile_information: [1, 2", "metadata.yaml: is damaged"),
        ("", "metadata.yaml: is not the metadata of a bag"),
        ("rosbag2_bagfile_information: {version: 9}", "metadata.yaml: names no files"),
        ("rosbag2_bagfile_information: {relative_file_paths: [../../../etc/passwd]}", "names passwd, which is missing"),
    ],
)
def test_a_metadata_file_that_is_damaged_hides_no_message(
    tmp_path: Path, clip: list[Array], capsys: pytest.CaptureFixture[str], yaml: str, says: str
) -> None:
    folder = rosbag(tmp_path / "in", clip, StoragePlugin.MCAP)
    (folder / "metadata.yaml").write_text(yaml)
    assert run("encode", folder, "-o", tmp_path / "o.mcap") == 1
    assert says in capsys.readouterr().err
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 3


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
