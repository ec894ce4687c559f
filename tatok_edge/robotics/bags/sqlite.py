"""Reads the SQLite files of rosbag2."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from tatok_edge.robotics.bags.records import QOS_PROFILES, TYPE_HASH, Channel, Damaged, Message


def read_sqlite(path: Path) -> Iterator[Channel | Message]:
    """Channels, then messages in the order of their times.

    Raises:
        Damaged: The rest of the file cannot be read.
    """
    begun = False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
            channels = _channels(base)
            begun = True
            yield from channels.values()
            rows = base.execute("SELECT topic_id, timestamp, data FROM messages ORDER BY timestamp, id")
            for number, (topic, time, data) in enumerate(rows):
                if topic not in channels or not isinstance(time, int) or time < 0 or not isinstance(data, bytes):
                    raise Damaged(f"is damaged: message {number} has no topic, time or data")
                yield Message(channels[topic], time, time, 0, data)
    except (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError) as error:
        what = "is damaged" if begun else "is not a database of rosbag2"
        raise Damaged(f"{what} ({error})", at_start=not begun) from None


def _channels(base: sqlite3.Connection) -> dict[int, Channel]:
    """Channels by the numbers of their topics."""
    base.row_factory = sqlite3.Row
    definitions: dict[str, tuple[str, bytes]] = {}
    if base.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_definitions'").fetchone():
        for row in base.execute("SELECT * FROM message_definitions"):
            text = str(row["encoded_message_definition"])
            definitions[str(row["topic_type"])] = (str(row["encoding"]), text.encode())
    channels: dict[int, Channel] = {}
    for row in base.execute("SELECT * FROM topics ORDER BY id"):
        columns = row.keys()
        kind = str(row["type"])
        metadata = {}
        if QOS_PROFILES in columns:
            metadata[QOS_PROFILES] = str(row[QOS_PROFILES])
        if "type_description_hash" in columns and row["type_description_hash"]:
            metadata[TYPE_HASH] = str(row["type_description_hash"])
        encoding, definition = definitions.get(kind) or _standard_definition(kind)
        channels[int(row["id"])] = Channel(
            str(row["name"]), kind, str(row["serialization_format"]), encoding, definition, tuple(metadata.items())
        )
    base.row_factory = None
    return channels


def _standard_definition(kind: str) -> tuple[str, bytes]:
    """The definition of a standard message type, for databases without definitions; empty for other types."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    if kind not in store.types:
        return "", b""
    return "ros2msg", store.generate_msgdef(kind, ros_version=2)[0].encode()
