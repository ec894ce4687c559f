"""Opens bags without ROS: MCAP files, SQLite files, and folders of rosbag2 with either.

The contents are untrusted: no length in a file is believed beyond the size of the file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from tatok_edge.closing import Closing
from tatok_edge.errors import InputError, SourceError
from tatok_edge.robotics.bags.mcap import indexed_channels, read_mcap
from tatok_edge.robotics.bags.metadata import BAG_FILE, METADATA_FILE, METADATA_RECORD, load_info, load_record
from tatok_edge.robotics.bags.records import LARGEST_CHUNK, Channel, Damaged, Message, check_unpacked
from tatok_edge.robotics.bags.sqlite import read_sqlite

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata

BAG_SUFFIXES: Final = (".mcap", ".db3")
"""Endings of the files that a bag may be."""

_LISTED = 40
"""Topics that a message lists at most."""


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` names a bag: a file with one of :data:`BAG_SUFFIXES`, or a folder of rosbag2."""
    target = Path(path)
    if target.is_dir():
        names = [entry.name for entry in target.iterdir()]
        return METADATA_FILE in names or (bool(names) and all(map(BAG_FILE.fullmatch, names)))
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


class Bag(Closing):
    """An open bag to read; a context manager.

    Args:
        path: An MCAP file, an SQLite file of rosbag2, or a folder of rosbag2 (with or without its metadata.yaml).

    Raises:
        SourceError: It cannot be read, or is not a bag.
        InputError: A package of the extra ``robotics`` is missing.
    """

    def __init__(self, path: str | Path) -> None:
        for package in ("mcap.stream_reader", "zstandard", "rosbags.typesys", "ruamel.yaml"):
            require(package)
        self.path = Path(path)
        self.problems: list[str] = []
        """One line for each part that could not be read; complete after the last of :meth:`records`."""
        self.rosbag2: dict[str, Any] | None = None
        """The metadata of rosbag2, if there is any."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._message_compression = False
        try:
            self.files = self._files()
            self.channels = list(dict.fromkeys(channel for file in self.files for channel in self._channels(file)))
            """Every channel, in the order of the files."""
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None

    def topics(self, types: Sequence[str] = ()) -> dict[str, str]:
        """Names of topics with their message types; with ``types``, only topics of these types."""
        return {channel.topic: channel.type for channel in self.channels if not types or channel.type in types}

    def records(self) -> Iterator[Channel | Message | Attachment | Metadata]:
        """All records in the order of the files. :attr:`problems` gets a line for each part that cannot be read."""
        for file in self.files:
            try:
                yield from self._read(file)
            except Damaged as error:
                self.problems.append(f"{file.name}: {error}")

    def close(self) -> None:
        """Removes the unpacked files."""
        if self._folder is not None:
            self._folder.cleanup()

    def _files(self) -> list[Path]:
        """The files to read. Compressed files are unpacked first."""
        if not self.path.is_dir():
            if not self.path.exists():
                raise SourceError(f"{self.path}: there is no such file or folder")
            return [self.path]
        yaml = self.path / METADATA_FILE
        if not yaml.is_file():
            files = sorted(entry for entry in self.path.iterdir() if _storage(entry))
            self.problems.append(
                f"{self.path}: has no {METADATA_FILE} (was the recording cut off?); its files are read by name"
            )
        else:
            info = self.rosbag2 = load_info(yaml.read_bytes(), str(yaml))
            names = info.get("relative_file_paths")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise SourceError(f"{yaml}: names no files")
            # Only the last part: older versions wrote paths of the recording machine, and a bag may name any file.
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
        if _storage(file) == ".mcap" and (indexed := indexed_channels(file)):
            return indexed
        # A file without an index has to be read once as a whole.
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
        records = self._read_mcap(file) if _storage(file) == ".mcap" else read_sqlite(file)
        if not self._message_compression:
            yield from records
            return
        import zstandard

        unpack = zstandard.ZstdDecompressor()
        for record in records:
            if isinstance(record, Message):
                try:
                    check_unpacked(record.data)
                    data = unpack.decompress(record.data, max_output_size=LARGEST_CHUNK)
                except zstandard.ZstdError as error:
                    raise Damaged(f"a compressed message is damaged ({error})") from None
                record = Message(record.channel, record.log_time, record.publish_time, record.sequence, data)
            yield record

    def _read_mcap(self, file: Path) -> Iterator[Channel | Message | Attachment | Metadata]:
        from mcap.records import Metadata

        for record in read_mcap(file):
            if isinstance(record, Metadata) and record.name == METADATA_RECORD:
                # Not delivered: it counts the messages of this bag, and the writer makes a new one.
                if self.rosbag2 is None:
                    with suppress(SourceError):
                        self.rosbag2 = load_record(record.metadata)
            else:
                yield record


def choose_topics(bag: Bag, wanted: Sequence[str], types: Sequence[str], *, suffix: str = "") -> list[str]:
    """Chooses the topics to work on.

    Args:
        bag: The bag.
        wanted: Names of topics. Without names, the only topic of ``types`` is chosen.
        types: Message types that are allowed.
        suffix: Without names, all topics of ``types`` with this ending are chosen.

    Raises:
        SourceError: A topic does not exist or has another type, or several could be chosen; the message lists the
            topics of the bag.
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
    """Ending of a recorded file, without the ending of its compression; an empty string for other files."""
    inner = Path(path.stem) if path.suffix in (".zst", ".zstd") else path
    return inner.suffix.lower() if inner.suffix.lower() in BAG_SUFFIXES else ""
