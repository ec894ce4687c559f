"""Bags that unpack into more than they say, and databases whose tables are none."""

import sqlite3
import struct
from pathlib import Path

import lz4.frame
import pytest
import zstandard
from helpers.bags import CAMERA, IMAGE, cdr, raw_message

from tatok_edge import Limits, SourceError
from tatok_edge.robotics.bags.bag import Bag
from tatok_edge.robotics.bags.records import Message
from tatok_edge.sources.synthetic import Scene, render

SMALL = Limits(max_chunk=1 << 20, max_ratio=10)


def mcap(compression: bytes, data: bytes, stated: int) -> bytes:
    """An MCAP file with one chunk."""

    def text(value: bytes) -> bytes:
        return struct.pack("<I", len(value)) + value

    def record(opcode: int, content: bytes) -> bytes:
        return bytes([opcode]) + struct.pack("<Q", len(content)) + content

    chunk = struct.pack("<QQQI", 0, 1, stated, 0) + text(compression) + struct.pack("<Q", len(data)) + data
    return b"\x89MCAP0\r\n" + record(1, text(b"ros2") + text(b"x")) + record(6, chunk)


@pytest.mark.parametrize(("stated", "says"), [(100, "not as long as it says"), (1 << 30, "limit max_chunk is 1048576")])
@pytest.mark.parametrize("compression", ["lz4", "zstd", "zstd without a size"])
def test_chunks_unpack_into_what_they_state(tmp_path: Path, compression: str, stated: int, says: str) -> None:
    content = bytes(8 << 20)
    if compression == "lz4":
        data = lz4.frame.compress(content)
    else:
        data = zstandard.ZstdCompressor(write_content_size=compression == "zstd").compress(content)
    path = tmp_path / "x.mcap"
    path.write_bytes(mcap(compression[:4].strip().encode(), data, stated))
    with Bag(path, limits=SMALL) as bag:
        assert not list(bag.records())
        assert says in bag.problems[0] or "limit max_chunk is 1048576" in bag.problems[0]


def test_a_compressed_file_is_not_unpacked_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "bag"
    folder.mkdir()
    (folder / "x.mcap.zst").write_bytes(zstandard.ZstdCompressor().compress(bytes(8 << 20)))
    with pytest.raises(SourceError, match=r"unpacks into more than .*limit max_ratio is 10"):
        Bag(folder, limits=SMALL)


def database(path: Path, messages: str) -> None:
    """A database of rosbag2 whose messages are made by these statements."""
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT, type TEXT, serialization_format TEXT)")
        base.execute("INSERT INTO topics VALUES(1, ?, ?, 'cdr')", (CAMERA, IMAGE))
        base.executescript(messages)
    base.close()


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (
            "CREATE VIEW messages AS WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) "
            "SELECT 1 topic_id, x timestamp, x id, zeroblob(8) data FROM c",
            "but a view",
        ),
        (
            "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INT, timestamp INT, "
            "data BLOB AS (zeroblob(900000000)) VIRTUAL); INSERT INTO messages VALUES(1, 1, 1)",
            "a column is computed",
        ),
    ],
)
def test_only_plain_tables_are_read(tmp_path: Path, messages: str, says: str) -> None:
    database(tmp_path / "x.db3", messages)
    with pytest.raises(SourceError, match=says):
        Bag(tmp_path / "x.db3")


def test_large_messages_of_a_database_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.db3"
    database(path, "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INT, timestamp INT, data BLOB)")
    good = cdr(raw_message(render(Scene(width=64, height=64), 0)))
    with sqlite3.connect(path) as base:
        base.execute("INSERT INTO messages VALUES(1, 1, 1, ?)", (bytes(2 << 20),))
        base.execute("INSERT INTO messages VALUES(2, 1, 2, ?)", (good,))
    base.close()
    with Bag(path, limits=SMALL) as bag:
        assert [record.data for record in bag.records() if isinstance(record, Message)] == [good]
        assert "limit max_chunk is 1048576" in bag.problems[0]
