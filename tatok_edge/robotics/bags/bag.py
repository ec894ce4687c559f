"""Bags: MCAP files and rosbag2 folders (MCAP or SQLite), read and written without ROS.

Reads with the ``mcap`` library, which gives every record of a file as it is, and with SQLite; writes MCAP. What is
read is untrusted: no length is believed beyond the size of its file.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sqlite3
import struct
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final

from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.pictures.writing import check_target, temporary_name

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata

BAG_SUFFIXES: Final = (".mcap", ".db3")
"""Endings of the files that a bag may be."""
IMAGE_TYPE: Final = "sensor_msgs/msg/Image"
COMPRESSED_TYPE: Final = "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES: Final = (IMAGE_TYPE, COMPRESSED_TYPE)
"""Message types of camera topics."""
LARGEST_CHUNK: Final = 1 << 30
"""Largest chunk of an MCAP file in bytes, unpacked: what recorders write has a few megabytes."""
OLD_METADATA, NEW_METADATA = 5, 9
"""Versions of metadata.yaml that are written: the newest one names its QoS policies, those before number them."""

_YAML = "metadata.yaml"
_LARGEST_YAML = 16 << 20
_INFO = "rosbag2_bagfile_information"
_RECORD = "rosbag2"
"""Name of the MCAP metadata record in which rosbag2 keeps a copy of metadata.yaml."""
_QOS = "offered_qos_profiles"
_HASH = "topic_type_hash"
_LISTED = 40
_OF_A_BAG = re.compile(r".+\.(mcap|db3)(\.zst|\.zstd|-wal|-shm)?")
"""Names of the files in a folder of rosbag2."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A topic as one publisher announces it."""

    topic: str
    type: str
    """Name of the message type."""
    message_encoding: str
    """``cdr`` for ROS 2."""
    schema_encoding: str = ""
    schema: bytes = field(default=b"", repr=False)
    """Definition of the message type."""
    metadata: tuple[tuple[str, str], ...] = ()
    """What rosbag2 notes, its QoS profiles among it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A recorded message."""

    channel: Channel
    log_time: int
    """When it was recorded, in nanoseconds."""
    publish_time: int
    """When it was published, in nanoseconds."""
    sequence: int
    data: bytes = field(repr=False)


class Damaged(Exception):
    """A file that cannot be read any further.

    Args:
        message: What is wrong.
        at_start: Nothing could be read at all.
    """

    def __init__(self, message: str, *, at_start: bool = False) -> None:
        super().__init__(message)
        self.at_start = at_start


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` names a bag: a file with the ending of one, or a folder that rosbag2 wrote."""
    target = Path(path)
    if target.is_dir():
        names = [entry.name for entry in target.iterdir()]
        return _YAML in names or (bool(names) and all(map(_OF_A_BAG.fullmatch, names)))
    return target.suffix.lower() in BAG_SUFFIXES


def require(package: str) -> Any:
    """Imports an optional package.

    Raises:
        InputError: It is missing; the message says what to install.
    """
    import importlib

    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f"bags need the package {error.name}: pip install 'tatok-edge[robotics]'") from None


class Bag:
    """An open bag to read; a context manager.

    Args:
        path: An MCAP file, an SQLite file of rosbag2, or a folder of rosbag2 (with or without its metadata.yaml).

    Raises:
        SourceError: It cannot be read, or is no bag.
        InputError: The packages that read it are missing.
    """

    def __init__(self, path: str | Path) -> None:
        for package in ("mcap.stream_reader", "zstandard", "rosbags.typesys", "ruamel.yaml"):
            require(package)
        self.path = Path(path)
        self.problems: list[str] = []
        """What could not be read, in one line each; complete once :meth:`records` is over."""
        self.rosbag2: dict[str, Any] | None = None
        """What rosbag2 says of the bag as a whole, if it does."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._message_compression = False
        try:
            self.files = self._files()
            self.channels = list(dict.fromkeys(channel for file in self.files for channel in self._channels(file)))
            """Every channel, in the order of the files."""
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None

    def topics(self, types: Sequence[str] = ()) -> dict[str, str]:
        """Topics by name with their message types; only those of some types if any are given."""
        return {channel.topic: channel.type for channel in self.channels if not types or channel.type in types}

    def records(self) -> Iterator[Channel | Message | Attachment | Metadata]:
        """Everything in the bag, in the order of its files; :attr:`problems` says what is missing."""
        for file in self.files:
            try:
                yield from self._read(file)
            except Damaged as error:
                self.problems.append(f"{file.name}: {error}")

    def close(self) -> None:
        """Removes what was unpacked."""
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Bag:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- parts of the work ------------------------------------------------------------------------

    def _files(self) -> list[Path]:
        """The files to read, unpacked where rosbag2 compressed them whole."""
        if not self.path.is_dir():
            if not self.path.exists():
                raise SourceError(f"{self.path}: there is no such file or folder")
            return [self.path]
        if not (self.path / _YAML).is_file():
            files = sorted(entry for entry in self.path.iterdir() if _storage(entry))
            self.problems.append(
                f"{self.path}: has no {_YAML} (was the recording cut off?); its files are read by name"
            )
        else:
            info = self.rosbag2 = _load_info((self.path / _YAML).read_bytes()[:_LARGEST_YAML], str(self.path / _YAML))
            names = info.get("relative_file_paths")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise SourceError(f"{self.path / _YAML}: names no files")
            # Only the last part: older versions wrote paths of the recording machine, and a bag may say anything.
            files = [self.path / PurePosixPath(name).name for name in names]
            self._message_compression = str(info.get("compression_mode") or "").lower() == "message"
        missing = next((file.name for file in files if not file.is_file()), None)
        if missing is not None:
            raise SourceError(f"{self.path}: its file {missing} is missing")
        if not files:
            raise SourceError(f"{self.path}: holds no file of a bag")
        return [self._unpacked(file) if file.suffix in (".zst", ".zstd") else file for file in files]

    def _unpacked(self, file: Path) -> Path:
        import zstandard

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tatok-bag-")
        target = Path(self._folder.name) / file.stem
        try:
            with file.open("rb") as source, target.open("wb") as out:
                zstandard.ZstdDecompressor().copy_stream(source, out)
        except zstandard.ZstdError as error:
            self.problems.append(f"{file.name}: is damaged ({error}); what could be unpacked is read")
        return target

    def _channels(self, file: Path) -> list[Channel]:
        if _storage(file) == ".mcap" and (indexed := _indexed_channels(file)):
            return indexed
        # Without an index, everything has to be read once to know what there is.
        channels: dict[Channel, None] = {}
        try:
            for record in self._read(file):
                if isinstance(record, Channel):
                    channels[record] = None
        except Damaged as error:
            if error.at_start:
                raise SourceError(f"{file}: {error}") from None
        return list(channels)

    def _read(self, file: Path) -> Iterator[Channel | Message | Attachment | Metadata]:
        records = self._read_mcap(file) if _storage(file) == ".mcap" else _read_sqlite(file)
        if not self._message_compression:
            yield from records
            return
        import zstandard

        unpack = zstandard.ZstdDecompressor()
        for record in records:
            if isinstance(record, Message):
                try:
                    _check_unpacked(record.data)
                    data = unpack.decompress(record.data, max_output_size=LARGEST_CHUNK)
                except zstandard.ZstdError as error:
                    raise Damaged(f"a compressed message is damaged ({error})") from None
                record = Message(record.channel, record.log_time, record.publish_time, record.sequence, data)
            yield record

    def _read_mcap(self, file: Path) -> Iterator[Channel | Message | Attachment | Metadata]:
        for record in _read_mcap(file):
            if getattr(record, "name", None) == _RECORD and hasattr(record, "metadata"):
                # It counts the messages of this bag: the writer makes a new one.
                if self.rosbag2 is None:
                    text = record.metadata.get("serialized_metadata", "")
                    with suppress(SourceError):
                        self.rosbag2 = _load_info(text.encode()[:_LARGEST_YAML], _RECORD)
            else:
                yield record


class BagWriter:
    """Writes an MCAP file, or a folder of rosbag2 with one MCAP file; a context manager that keeps it on success only.

    Args:
        path: A name that ends in ``.mcap``, or has no ending (a folder).
        force: Replace what is there.

    Raises:
        InputError: Another ending, or something is there and ``force`` is not given.
    """

    def __init__(self, path: str | Path, *, force: bool = False) -> None:
        check_output(path, force=force)
        from mcap.writer import CompressionType, Writer

        self.path = Path(path)
        self.rosbag2: dict[str, Any] | None = None
        """What the new bag is to keep of the old one's metadata: see :attr:`Bag.rosbag2`."""
        self.messages = 0
        """Messages written so far."""
        self._is_folder = self.path.suffix != ".mcap"
        self._temporary = temporary_name(self.path)
        if self._is_folder:
            self._temporary.mkdir()
            self._file_name = f"{self.path.name}_0.mcap"
            self._target = self._temporary / self._file_name
        else:
            self._file_name = self.path.name
            self._target = self._temporary
        self._file: IO[bytes] = self._target.open("wb")
        self._writer: Any = Writer(self._file, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="tatok-edge")
        self._channels: dict[Channel, int] = {}
        self._schemas: dict[tuple[str, str, bytes], int] = {}
        self._counts: Counter[Channel] = Counter()
        self._times: tuple[int, int] | None = None

    def write(self, record: Channel | Message | Attachment | Metadata) -> None:
        """Adds a record; the channel of a message need not be added before it.

        Raises:
            OSError: It cannot be written.
        """
        if isinstance(record, Message):
            self._writer.add_message(
                self._channel(record.channel), record.log_time, record.data, record.publish_time, record.sequence
            )
            self.messages += 1
            self._counts[record.channel] += 1
            first, last = self._times or (record.log_time, record.log_time)
            self._times = min(first, record.log_time), max(last, record.log_time)
            return
        if isinstance(record, Channel):
            self._channel(record)
            return
        from mcap.records import Attachment

        if isinstance(record, Attachment):
            self._writer.add_attachment(
                record.create_time, record.log_time, record.name, record.media_type, record.data
            )
        else:
            self._writer.add_metadata(record.name, record.metadata)

    def commit(self) -> None:
        """Puts the bag in its place.

        Raises:
            OSError: It cannot be written.
        """
        if self._is_folder or self.rosbag2 is not None:
            info = self._info()
            self._writer.add_metadata(_RECORD, {"serialized_metadata": _dump(info).strip()})
        self._writer.finish()
        self._file.close()
        if not self._is_folder:
            os.replace(self._temporary, self.path)
            return
        (self._temporary / _YAML).write_text(_dump({_INFO: info}), encoding="utf-8")
        replaced = self._temporary.with_name(self._temporary.name + ".old")
        if self.path.is_dir():
            os.replace(self.path, replaced)
        os.replace(self._temporary, self.path)
        shutil.rmtree(replaced, ignore_errors=True)

    def abort(self) -> None:
        """Throws away what was written."""
        with suppress(OSError):  # closing writes what is left, which fails again on a full disk
            self._file.close()
        if self._is_folder:
            shutil.rmtree(self._temporary, ignore_errors=True)
        else:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise

    def _channel(self, channel: Channel) -> int:
        if channel not in self._channels:
            schema = (channel.type, channel.schema_encoding, channel.schema)
            if channel.type and schema not in self._schemas:
                self._schemas[schema] = self._writer.register_schema(*schema)
            self._channels[channel] = self._writer.register_channel(
                channel.topic, channel.message_encoding, self._schemas.get(schema, 0), dict(channel.metadata)
            )
        return self._channels[channel]

    def _info(self) -> dict[str, Any]:
        """The contents of metadata.yaml."""
        topics: dict[tuple[str, str], dict[str, Any]] = {}
        version = OLD_METADATA
        for channel in self._channels:
            notes = dict(channel.metadata)
            qos = _load_qos(notes.get(_QOS, ""))
            if any(isinstance(profile.get("history"), str) for profile in qos):
                version = NEW_METADATA
            topic = topics.setdefault(
                (channel.topic, channel.type),
                {
                    "topic_metadata": {
                        "name": channel.topic,
                        "type": channel.type,
                        "serialization_format": channel.message_encoding,
                        _QOS: notes.get(_QOS, ""),
                        "type_description_hash": notes.get(_HASH, ""),
                    },
                    "message_count": 0,
                },
            )
            topic["message_count"] += self._counts[channel]
        if version == NEW_METADATA:
            for topic in topics.values():
                topic["topic_metadata"][_QOS] = _load_qos(topic["topic_metadata"][_QOS])
        first, last = self._times or (0, 0)
        before = self.rosbag2 or {}

        def times() -> dict[str, Any]:  # made anew each time: YAML would write the second one as a reference
            return {
                "duration": {"nanoseconds": last - first},
                "starting_time": {"nanoseconds_since_epoch": first},
                "message_count": self.messages,
            }

        return {
            "version": version,
            "storage_identifier": "mcap",
            "relative_file_paths": [self._file_name],
            **times(),
            "topics_with_message_count": list(topics.values()),
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": self._file_name, **times()}],
            "custom_data": before.get("custom_data"),
            "ros_distro": str(before.get("ros_distro") or "unknown"),
        }


class Cdr:
    """Serializes and deserializes the messages of camera topics, whose definitions all ROS 2 distributions share."""

    def __init__(self) -> None:
        from rosbags.serde import SerdeError
        from rosbags.typesys import Stores, get_typestore

        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self.types: dict[str, Any] = dict(self._store.types)
        """Classes of the messages by type."""
        # The library checks by assertions and by what numpy and struct refuse.
        self._errors = (SerdeError, AssertionError, ValueError, TypeError, LookupError, OverflowError, struct.error)

    def read(self, message: Message) -> Any:
        """The message as an object.

        Raises:
            FormatError: It is damaged.
        """
        try:
            return self._store.deserialize_cdr(message.data, message.channel.type)
        except self._errors as error:
            raise FormatError(f"a message of {message.channel.type} is damaged ({error or 'CDR too short'})") from None

    def write(self, message: Any, type_name: str) -> bytes:
        """The message as bytes, little-endian."""
        return bytes(self._store.serialize_cdr(message, type_name, little_endian=True))

    def channel(self, topic: str, type_name: str, like: Channel) -> Channel:
        """A channel for a new topic with the QoS profiles of another one."""
        metadata = dict(like.metadata)
        if _HASH in metadata:
            metadata[_HASH] = self._store.hash_rihs01(type_name)
        definition = self._store.generate_msgdef(type_name, ros_version=2)[0]
        return Channel(topic, type_name, "cdr", "ros2msg", definition.encode(), tuple(metadata.items()))


def check_output(path: str | Path, *, force: bool) -> None:
    """Checks the name of a bag that will be written later, so that nothing is computed in vain.

    Raises:
        InputError: Another ending, or something is there and ``force`` is not given, or it is no bag.
    """
    target = Path(path)
    check_target(path, (".mcap", ""))
    if not os.path.lexists(target):
        return
    if not force:
        raise InputError(f"{path}: exists; name another output, or pass --force to replace it")
    if target.is_dir() != (not target.suffix):
        raise InputError(f"{path}: is a {'folder' if target.is_dir() else 'file'}; name another output")
    if target.is_dir():
        names = (entry.name for entry in target.iterdir())
        foreign = next((name for name in names if name != _YAML and not _OF_A_BAG.fullmatch(name)), None)
        if foreign is not None:
            raise InputError(f"{path}: the folder holds other files than a bag ({foreign}); name another output")


def choose_topics(bag: Bag, wanted: Sequence[str], types: Sequence[str], *, suffix: str = "") -> list[str]:
    """The topics to work on.

    Args:
        bag: The bag.
        wanted: Names that were asked for; none takes those there are, if it is plain which.
        types: Message types that can be worked on.
        suffix: Ending of the names to take where none was asked for; with it, all such topics are taken.

    Raises:
        SourceError: There is no such topic, or one of another type; the message lists those there are.
    """
    able = bag.topics(types)
    everything = bag.topics()
    if not wanted:
        found = [topic for topic in able if topic.endswith(suffix)]
        if not found or (len(found) > 1 and not suffix):
            what = f"no topic {suffix} of {' or '.join(types)}" if not found else f"{len(found)} topics to choose from"
            raise SourceError(f"{bag.path}: {what}; name one with --topic; {_listing(everything)}")
        wanted = found
    for topic in wanted:
        if topic not in everything:
            raise SourceError(f"{bag.path}: has no topic {topic}; {_listing(everything)}")
        if topic not in able:
            raise SourceError(
                f"{bag.path}: topic {topic} is of {everything[topic]}, not of {' or '.join(types)}; "
                f"{_listing(everything)}"
            )
    for channel in bag.channels:
        if channel.topic in wanted and channel.message_encoding != "cdr":
            raise SourceError(
                f"{bag.path}: messages of {channel.topic} are in {channel.message_encoding or 'no encoding'}, not in "
                "cdr (ROS 2); convert the bag first, as rosbags-convert does for ROS 1"
            )
    return list(dict.fromkeys(wanted))


def _listing(topics: dict[str, str]) -> str:
    if not topics:
        return "it has no topics"
    names = [f"{topic} ({kind or 'no type'})" for topic, kind in list(topics.items())[:_LISTED]]
    more = f" and {len(topics) - _LISTED} more" if len(topics) > _LISTED else ""
    return f"it has {', '.join(names)}{more}"


def _storage(path: Path) -> str:
    """Ending of a file of a bag without that of its compression; an empty string for other files."""
    inner = Path(path.stem) if path.suffix in (".zst", ".zstd") else path
    return inner.suffix.lower() if inner.suffix.lower() in BAG_SUFFIXES else ""


# --- MCAP -----------------------------------------------------------------------------------------


class _ExactFile:
    """A file whose reads are whole or fail, and ask for no more memory than there are bytes."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise Damaged("is cut off")
        return self._file.read(count)


def _read_mcap(path: Path) -> Iterator[Any]:
    """Channels, messages, attachments and metadata records, in the order of the file.

    Raises:
        Damaged: Nothing can be read after what has come.
    """
    import zstandard
    from mcap.exceptions import McapError
    from mcap.records import Attachment, Chunk, Metadata, Schema
    from mcap.records import Channel as McapChannel
    from mcap.records import Message as McapMessage
    from mcap.stream_reader import StreamReader, breakup_chunk

    schemas: dict[int, Any] = {}
    channels: dict[int, Channel] = {}
    begun = False
    size = path.stat().st_size
    with path.open("rb") as file:
        exact: Any = _ExactFile(file, size)
        records = iter(StreamReader(exact, emit_chunks=True, record_size_limit=size).records)
        while True:
            try:
                record = next(records, None)
                if record is None:
                    return
                inside: list[Any] = [record]
                if isinstance(record, Chunk):
                    _check_chunk(record)
                    inside = list(breakup_chunk(record, validate_crc=True))
                out: list[Any] = []
                for part in inside:
                    if isinstance(part, Schema):
                        schemas[part.id] = part
                    elif isinstance(part, McapChannel):
                        if part.id not in channels:
                            channels[part.id] = _channel(part, schemas)
                            out.append(channels[part.id])
                    elif isinstance(part, McapMessage):
                        channel = channels[part.channel_id]
                        out.append(Message(channel, part.log_time, part.publish_time, part.sequence, part.data))
                    elif isinstance(part, (Attachment, Metadata)):
                        out.append(part)
            except Damaged as error:
                raise Damaged(str(error) if begun else "is empty or cut off at its start", at_start=not begun) from None
            except (
                McapError,
                zstandard.ZstdError,
                struct.error,
                ValueError,
                LookupError,
                RuntimeError,
                OverflowError,
                MemoryError,
            ) as error:
                if not begun:
                    raise Damaged("is not an MCAP file", at_start=True) from None
                raise Damaged(f"is damaged ({type(error).__name__}: {error})") from None
            begun = True
            yield from out


def _channel(channel: Any, schemas: dict[int, Any]) -> Channel:
    metadata = tuple(channel.metadata.items())
    if channel.schema_id == 0:
        return Channel(channel.topic, "", channel.message_encoding, metadata=metadata)
    schema = schemas[channel.schema_id]
    return Channel(channel.topic, schema.name, channel.message_encoding, schema.encoding, schema.data, metadata)


def _check_chunk(chunk: Any) -> None:
    """Keeps a few bytes from asking for all memory."""
    if chunk.uncompressed_size > LARGEST_CHUNK:
        raise Damaged(f"is damaged: a chunk of {chunk.uncompressed_size} bytes, {LARGEST_CHUNK} are read at most")
    if chunk.compression == "zstd":
        _check_unpacked(chunk.data)
    elif chunk.compression == "" and len(chunk.data) != chunk.uncompressed_size:
        raise Damaged("is damaged: a chunk is not as long as it says")


def _check_unpacked(data: bytes) -> None:
    import zstandard

    size = zstandard.frame_content_size(data)
    if size > LARGEST_CHUNK:
        raise Damaged(f"is damaged: compressed data of {size} bytes, {LARGEST_CHUNK} are read at most")


def _indexed_channels(path: Path) -> list[Channel]:
    """Channels as the summary at the end of the file lists them; none where it has no whole summary."""
    import zstandard
    from mcap.exceptions import McapError
    from mcap.reader import SeekingReader

    try:
        with path.open("rb") as file:
            reader = SeekingReader(file, record_size_limit=path.stat().st_size)
            summary = reader.get_summary()
            if summary is None or summary.statistics is None:
                return []
            if len(summary.channels) != summary.statistics.channel_count:
                return []
            return [_channel(channel, summary.schemas) for channel in summary.channels.values()]
    except (McapError, zstandard.ZstdError, struct.error, ValueError, LookupError, OSError, MemoryError, OverflowError):
        return []


# --- SQLite ---------------------------------------------------------------------------------------


def _read_sqlite(path: Path) -> Iterator[Channel | Message]:
    """Channels, then messages by time.

    Raises:
        Damaged: Nothing can be read after what has come.
    """
    begun = False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as base:
            channels = _sqlite_channels(base)
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


def _sqlite_channels(base: sqlite3.Connection) -> dict[int, Channel]:
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
        if _QOS in columns:
            metadata[_QOS] = str(row[_QOS])
        if "type_description_hash" in columns and row["type_description_hash"]:
            metadata[_HASH] = str(row["type_description_hash"])
        encoding, definition = definitions.get(kind) or _standard_definition(kind)
        channels[int(row["id"])] = Channel(
            str(row["name"]), kind, str(row["serialization_format"]), encoding, definition, tuple(metadata.items())
        )
    base.row_factory = None
    return channels


def _standard_definition(kind: str) -> tuple[str, bytes]:
    """The definition of a standard message type, for databases that hold none; empty for other types."""
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS2_HUMBLE)
    if kind not in store.types:
        return "", b""
    return "ros2msg", store.generate_msgdef(kind, ros_version=2)[0].encode()


# --- metadata.yaml --------------------------------------------------------------------------------


def _load_info(text: bytes, name: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{name}: is damaged ({str(error).splitlines()[0]})") from None
    info = loaded.get(_INFO, loaded) if isinstance(loaded, dict) else None
    if not isinstance(info, dict):
        raise SourceError(f"{name}: is not the metadata of a bag")
    return info


def _load_qos(text: str) -> list[dict[str, Any]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe", pure=True).load(text) if text else []
    except (YAMLError, ValueError, RecursionError):
        return []
    return [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []


def _dump(value: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # in the order written above
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
