"""Folders of rosbag2: MCAP and SQLite, compressed or not, old and new, cut off."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from helpers.bags import (
    CAMERA,
    IMAGE,
    START,
    STORE,
    TOKENS,
    Array,
    camera_bag,
    cdr,
    mcap_bag,
    qos,
    raw_message,
    records,
    rosbag,
    run,
)
from mcap.writer import IndexType
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import CompressionMode, StoragePlugin


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
    mcap_bag(folder / "killed_1.mcap", clip[2:4], use_chunking=False, index_types=IndexType.NONE)
    data = (folder / "killed_1.mcap").read_bytes()
    (folder / "killed_1.mcap").write_bytes(data[: len(data) * 3 // 4])
    assert run("encode", folder, "-o", tmp_path / "o.mcap") == 1
    errors = capsys.readouterr().err
    assert "killed_1.mcap: is cut off" in errors
    assert "metadata.yaml" in errors
    assert len(records(tmp_path / "o.mcap", TOKENS)) == 3
