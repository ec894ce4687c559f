"""Reads the SQLite files of rosbag2, with the write-ahead log or journal that a killed recorder leaves beside them."""

from __future__ import annotations

import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tatok_edge.limits import Limits
from tatok_edge.robotics.bags.records import QOS_PROFILES, TYPE_HASH, Channel, Damaged, Message, Recording

WAL, JOURNAL = "-wal", "-journal"
"""Endings of the files that SQLite keeps beside a database: the write-ahead log, and the old pages of a transaction."""
_WAL_MAGIC: Final = (0x377F0682, 0x377F0683)
_WAL_HEAD, _FRAME_HEAD = 32, 24
_HEAD = "SELECT topic_id, length(data) FROM messages WHERE id = ?"
_TABLES: Final = ("topics", "messages", "message_definitions")
_STEPS, _STEPS_PER_BYTE = 10_000_000, 16
"""Steps of SQLite's machine that reading may take, and further ones per byte of the file. Reading every row of a table
twice takes far fewer; a damaged tree of pages that leads back to itself would never end."""
_STEPS_AT_ONCE = 10_000
_ERRORS = (sqlite3.Error, ValueError, TypeError, LookupError, OverflowError)


class SqliteFile(Recording):
    """An SQLite file of rosbag2. Neither the file nor its write-ahead log is changed.

    Args:
        path: The file.
        limits: Largest message.

    Raises:
        Damaged: It has no record that can be read.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path)
        self._limits = limits
        if not path.stat().st_size and not _size(path, WAL):
            raise Damaged("is empty", at_start=True)
        try:
            with _opened(path) as base:
                channels = _channels(base)
                self.channels = list(dict.fromkeys(channels.values()))
                self.used = set(self.channels)  # where the messages cannot be counted, any topic may have some
                try:
                    topics = [row[0] for row in base.execute("SELECT DISTINCT topic_id FROM messages")]
                    self.used = {channels[topic] for topic in topics if topic in channels}
                    self.first_time = base.execute("SELECT min(timestamp) FROM messages").fetchone()[0]
                except sqlite3.Error:
                    pass
                if not isinstance(self.first_time, int):
                    self.first_time = None
        except _ERRORS as error:
            raise Damaged(f"is not a database of rosbag2 ({error})", at_start=True) from None

    def records(self) -> Iterator[Channel | Message]:
        """Channels, then messages in the order of their times.

        Raises:
            Damaged: At the end: a part cannot be read.
        """
        lost, why = 0, ""
        try:
            with _opened(self.path) as base:
                channels = _channels(base)
                yield from channels.values()
                # By number, so that a damaged page costs its messages and not all later ones.
                for time, number in base.execute("SELECT timestamp, id FROM messages ORDER BY timestamp, id"):
                    try:
                        topic, size = base.execute(_HEAD, (number,)).fetchone()
                        self._limits.check("max_chunk", size or 0, "is refused: a message", Damaged)
                        (data,) = base.execute("SELECT data FROM messages WHERE id = ?", (number,)).fetchone()
                        yield _message(channels, time, topic, data)
                    except (Damaged, *_ERRORS) as error:
                        lost, why = lost + 1, why or str(error)
                log = _log_problem(self.path, base)
        except _ERRORS as error:
            raise Damaged(f"is damaged ({error})") from None
        if lost:
            raise Damaged(f"is damaged: {lost} messages cannot be read ({why})")
        if log:
            raise Damaged(log)


def _message(channels: dict[int, Channel], time: Any, topic: Any, data: Any) -> Message:
    if topic not in channels or not isinstance(time, int) or time < 0 or not isinstance(data, bytes):
        raise Damaged("a message has no topic, time or data")
    return Message(channels[topic], time, time, 0, data)


def _size(path: Path, suffix: str) -> int:
    """Size of the file beside a database that has its name and ``suffix``; 0 where there is none."""
    try:
        return path.with_name(path.name + suffix).stat().st_size
    except OSError:
        return 0


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A database to read.

    Without a log or journal beside it, it is read as it is. With a write-ahead log, SQLite reads both, and keeps its
    usual index of the log (``-shm``) beside them. Where it cannot make that file, and with a journal, which SQLite can
    only use by changing the database, a copy is read.
    """
    with ExitStack() as stack:
        log, journal = _size(path, WAL), _size(path, JOURNAL)
        uri = f"{path.absolute().as_uri()}?mode=ro"
        if not log and not journal:
            base = sqlite3.connect(f"{uri}&immutable=1", uri=True)
        else:
            base = (None if journal else _with_log(uri)) or sqlite3.connect(_copy(path, stack))
        stack.callback(base.close)
        _guard(base, path.stat().st_size + log)
        yield base


def _guard(base: sqlite3.Connection, size: int) -> None:
    """Lets SQLite read only plain tables, and only as long as a file of ``size`` bytes can take.

    Raises:
        sqlite3.Error: A table is a view, is computed, or is not kept in the file.
    """
    left = (_STEPS + _STEPS_PER_BYTE * size) // _STEPS_AT_ONCE

    def step() -> int:
        nonlocal left
        left -= 1
        return left < 0  # not 0: SQLite stops, with the error "interrupted"

    base.set_progress_handler(step, _STEPS_AT_ONCE)
    base.execute("PRAGMA trusted_schema = OFF")
    for name in _TABLES:
        found = base.execute("SELECT type, rootpage FROM sqlite_master WHERE lower(name) = ?", (name,)).fetchone()
        if found is not None and (found[0] != "table" or not found[1]):
            raise sqlite3.DatabaseError(f"{name} is no table of rosbag2, but a {found[0]}")
        if any(row[6] for row in base.execute(f"PRAGMA table_xinfo({name})")):
            raise sqlite3.DatabaseError(f"{name} is no table of rosbag2: a column is computed")


def _with_log(uri: str) -> sqlite3.Connection | None:
    """A database with its write-ahead log; None where SQLite cannot make its index of the log."""
    base = sqlite3.connect(uri, uri=True)
    try:
        base.execute("SELECT 1 FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        base.close()
        return None
    return base


def _copy(path: Path, stack: ExitStack) -> Path:
    """A copy of a database and the files beside it, in a folder that is removed at the end."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tatok-bag-")))
    for suffix in ("", WAL, JOURNAL):
        source = path.with_name(path.name + suffix)
        if source.exists():
            shutil.copyfile(source, folder / source.name)
    return folder / path.name


def _log_problem(path: Path, base: sqlite3.Connection) -> str:
    """What SQLite leaves out of a write-ahead log without a word; an empty string where it is whole.

    SQLite reads the log up to its last whole transaction. Frames of earlier rounds may follow, with other salts.
    """
    log = path.with_name(path.name + WAL)
    size = _size(path, WAL)
    if not size:
        return ""
    with log.open("rb") as file:
        head = file.read(_WAL_HEAD)
        if len(head) < _WAL_HEAD:
            return f"the write-ahead log {log.name} is cut off at its start: its messages are lost"
        magic, _, page = struct.unpack_from(">III", head)
        if magic not in _WAL_MAGIC or not 512 <= page <= 65536:
            return f"the write-ahead log {log.name} is damaged: its messages are lost"
        salts, pages, open_frames, at = head[16:24], 0, 0, _WAL_HEAD
        while at + _FRAME_HEAD <= size:
            file.seek(at)
            frame = file.read(_FRAME_HEAD)
            if frame[8:16] != salts:
                break
            commit = struct.unpack_from(">I", frame, 4)[0]
            whole = at + _FRAME_HEAD + page <= size
            pages, open_frames = (commit, 0) if commit and whole else (pages, open_frames + 1)
            at += _FRAME_HEAD + page
    if pages and base.execute("PRAGMA page_count").fetchone()[0] < pages:
        return f"the write-ahead log {log.name} is damaged: its later messages are lost"
    if open_frames:
        return f"the write-ahead log {log.name} is cut off: the messages of its last transaction are lost"
    return ""


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
