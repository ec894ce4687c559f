"""Opens bags without ROS: MCAP files, SQLite files, and folders of rosbag2 with either.

The contents are untrusted: no length in a file is believed beyond the size of the file.
"""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tatok_edge.closing import Closing
from tatok_edge.errors import InputError, SourceError
from tatok_edge.files import is_hidden, natural_order, read_regular
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.robotics.bags.mcap import MAGIC, McapFile
from tatok_edge.robotics.bags.metadata import (
    BAG_FILE,
    BAG_SUFFIXES,
    COMPRESSED,
    METADATA_FILE,
    METADATA_RECORD,
    file_names,
    is_metadata,
    load_info,
    load_record,
    storage_of,
)
from tatok_edge.robotics.bags.records import Channel, Damaged, Message, Recording, unzstd
from tatok_edge.robotics.bags.sqlite import SqliteFile

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata

SQLITE: Final = b"SQLite format 3\0"
"""First bytes of an SQLite file."""
ROS1: Final = b"#ROSBAG V"
"""First bytes of a bag of ROS 1."""
ZSTANDARD: Final = b"\x28\xb5\x2f\xfd"
"""First bytes of data that Zstandard compressed."""

_LISTED = 40
"""Topics that a message lists at most."""


def is_bag(path: str | Path) -> bool:
    """Whether ``path`` names a bag: a file of that content or with one of :data:`BAG_SUFFIXES`, or a rosbag2 folder.

    A folder is one if it holds files of a bag, and beside them nothing but what a recorder writes, or a metadata.yaml
    of rosbag2. A metadata.yaml alone makes no bag: other tools write files of that name.
    """
    target = Path(path)
    if not target.is_dir():
        return target.suffix.lower() in BAG_SUFFIXES or _begins_with(target, MAGIC, SQLITE, ROS1)
    names = [entry.name for entry in target.iterdir() if not is_hidden(entry.name)]
    if not any(storage_of(Path(name)) for name in names):
        return False
    return is_metadata(target / METADATA_FILE) or all(
        BAG_FILE.fullmatch(name) or name == METADATA_FILE for name in names
    )


def split_topic(text: str) -> tuple[Path, str | None] | None:
    """The bag and the topic that ``BAG`` or ``BAG#TOPIC`` name; None where there is no bag of that name.

    What exists decides: a ``#`` may be in the name of the bag, too.
    """
    end = len(text)
    while end > 0:
        path, topic = text[:end], text[end + 1 :]
        if os.path.exists(path) and is_bag(path):
            return Path(path), topic or None
        end = text.rfind("#", 0, end)
    return (Path(text), None) if text.lower().endswith(BAG_SUFFIXES) else None


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
        limits: Largest chunk, message and unpacked file.

    Raises:
        SourceError: It cannot be read, or is not a bag.
        InputError: A package of the extra ``robotics`` is missing.
    """

    def __init__(self, path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        for package in ("mcap.stream_reader", "zstandard", "rosbags.typesys", "ruamel.yaml"):
            require(package)
        self.path = Path(path)
        self.problems: list[str] = []
        """One line for each part that could not be read; complete after the last of :meth:`records`."""
        self.rosbag2: dict[str, Any] | None = None
        """The metadata of rosbag2, if there is any."""
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._lasting: list[str] = []
        try:
            self._files = self._recordings()
        except OSError as error:
            self.close()
            raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
        except BaseException:
            self.close()
            raise
        self.problems += self._lasting
        self.channels = list(dict.fromkeys(channel for file in self._files for channel in file.channels))
        """Every channel, in the order of the files."""
        self.silent = {channel.topic for channel in self.channels}
        """Topics without messages."""
        self.silent -= {channel.topic for file in self._files for channel in file.used}

    def topics(self, types: Sequence[str] = ()) -> dict[str, str]:
        """Names of topics with their message types; with ``types``, only topics of these types.

        A topic may have several types; they are joined with "and".
        """
        found: dict[str, list[str]] = {}
        for channel in self.channels:
            if not types or channel.type in types:
                kinds = found.setdefault(channel.topic, [])
                if channel.type not in kinds:
                    kinds.append(channel.type)
        return {topic: " and ".join(kinds) for topic, kinds in found.items()}

    def records(self) -> Iterator[Channel | Message | Attachment | Metadata]:
        """All records; messages in the order of their log times, over all files.

        :attr:`problems` gets a line for each part that cannot be read.
        """
        self.problems[:] = self._lasting
        waiting: list[tuple[int, int, Message, Iterator[Any]]] = []
        for place, file in enumerate(self._files):
            start = -1 if file.first_time is None else file.first_time
            while waiting and waiting[0][:2] < (start, place):
                yield from self._take(waiting)
            yield from self._refill(waiting, place, self._read(file))
        while waiting:
            yield from self._take(waiting)

    def close(self) -> None:
        """Removes the unpacked files."""
        if self._folder is not None:
            self._folder.cleanup()

    def _take(self, waiting: list[tuple[int, int, Message, Iterator[Any]]]) -> Iterator[Any]:
        """The earliest message that waits; its file gives the next one."""
        _, place, message, records = waiting[0]
        yield message
        heapq.heappop(waiting)
        yield from self._refill(waiting, place, records)

    def _refill(
        self, waiting: list[tuple[int, int, Message, Iterator[Any]]], place: int, records: Iterator[Any]
    ) -> Iterator[Any]:
        """Lets the next message of a file wait; gives the other records before it."""
        for record in records:
            if isinstance(record, Message):
                heapq.heappush(waiting, (record.log_time, place, record, records))
                return
            yield record

    def _recordings(self) -> list[Recording]:
        """The files in the order of their first messages. Those that cannot be read are noted."""
        found: list[Recording] = []
        refused: list[str] = []
        for path in self._paths():
            try:
                found.append(_open(self._unpacked(path) if path.suffix.lower() in COMPRESSED else path, self._limits))
            except Damaged as error:
                refused.append(f"{path.name}: {error}")
        if not found:
            if not self.path.is_dir():
                raise SourceError(f"{self.path.parent / refused[0]}")
            raise SourceError(f"{self.path}: none of its files can be read: {'; '.join(refused[:3])}")
        self._lasting += refused
        return sorted(found, key=lambda file: -1 if file.first_time is None else file.first_time)

    def _paths(self) -> list[Path]:
        """The files to read: those that metadata.yaml names, and others that the recorder left.

        What is in the folder decides: a recorder that was killed leaves no metadata.yaml, an empty one or an old one.
        """
        if not self.path.is_dir():
            if not self.path.exists():
                raise SourceError(f"{self.path}: there is no such file or folder")
            if not self.path.is_file():  # reading a pipe or a device may hang
                raise SourceError(f"{self.path}: is no regular file")
            return [self.path]
        there = sorted(
            (entry for entry in self.path.iterdir() if storage_of(entry) and entry.is_file()), key=natural_order
        )
        yaml = self.path / METADATA_FILE
        if not there:
            raise SourceError(f"{self.path}: holds no file of a bag")
        if not yaml.is_file():
            self._note(f"has no {METADATA_FILE} (was the recording cut off?); its files are read by name")
            return self._without_twins(there)
        try:
            text = read_regular(yaml, self._limits.max_file)
            if text is None:
                self._limits.refuse("max_file", yaml.stat().st_size, f"{METADATA_FILE} is larger", SourceError)
            self.rosbag2 = load_info(text, METADATA_FILE)
            named = file_names(self.rosbag2)
        except SourceError as error:
            self._note(f"{error}; its files are read by name")
            return self._without_twins(there)
        files = [self.path / name for name in named]
        missing = [file.name for file in files if not file.is_file()]
        kinds = {storage_of(file) for file in files}
        more = [file for file in there if file not in files and storage_of(file) in kinds]
        if missing:
            self._note(f"its {METADATA_FILE} names {_some(missing)}, which is missing")
        files = [file for file in files if file.is_file()]
        if not files:
            return self._without_twins(there)
        more = [file for file in self._without_twins([*files, *more]) if file not in files]
        if more:
            self._note(f"its {METADATA_FILE} is older than {_some([file.name for file in more])}, which is read too")
        return [*files, *more]

    def _without_twins(self, files: Sequence[Path]) -> list[Path]:
        """Of files that differ only in their endings, such as a file and its compressed form, the first."""
        first: dict[str, Path] = {}
        twins = []
        order = list(BAG_SUFFIXES)
        for file in sorted(files, key=lambda file: (file.suffix.lower() in COMPRESSED, order.index(storage_of(file)))):
            stem = Path(file.stem).stem if file.suffix.lower() in COMPRESSED else file.stem
            if first.setdefault(stem, file) is not file:
                twins.append(f"{file.name} is left out beside {first[stem].name}")
        if twins:
            self._note("; ".join(twins))
        return [file for file in files if file in first.values()]

    def _note(self, problem: str) -> None:
        self._lasting.append(f"{self.path}: {problem}")

    def _unpacked(self, file: Path) -> Path:
        import zstandard

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="tatok-bag-")
        target = Path(self._folder.name) / file.stem
        most = self._limits.max_chunk + self._limits.max_ratio * file.stat().st_size
        size = 0
        try:
            with file.open("rb") as source, target.open("wb") as out:
                for part in zstandard.ZstdDecompressor().read_to_iter(source):
                    size += len(part)
                    if size > most:
                        why = f"is refused: it unpacks into more than {most} bytes"
                        self._limits.refuse("max_ratio", 2 * self._limits.max_ratio, why, Damaged)
                    out.write(part)
        except zstandard.ZstdError as error:
            self._lasting.append(f"{file.name}: is damaged ({error}); what could be unpacked is read")
        return target

    def _read(self, file: Recording) -> Iterator[Channel | Message | Attachment | Metadata]:
        """The records of a file, messages unpacked."""
        from mcap.records import Metadata

        lost: list[str] = []
        try:
            for record in file.records():
                if isinstance(record, Message):
                    try:
                        yield _unpacked_message(record, self._limits)
                    except Damaged as error:
                        lost.append(str(error))
                elif isinstance(record, Metadata) and record.name == METADATA_RECORD:
                    # Not delivered: it counts the messages of this bag, and the writer makes a new one.
                    if self.rosbag2 is None:
                        with suppress(SourceError):
                            self.rosbag2 = load_record(record.metadata)
                else:
                    yield record
        except Damaged as error:
            self.problems.append(f"{file.path.name}: {error}")
        except OSError as error:
            self.problems.append(f"{file.path.name}: cannot be read ({error.strerror or error})")
        if lost:
            self.problems.append(f"{file.path.name}: {len(lost)} compressed messages are lost; the first: {lost[0]}")


def choose_topics(bag: Bag, wanted: Sequence[str], types: Sequence[str], *, suffix: str = "") -> list[str]:
    """Chooses the topics to work on.

    Args:
        bag: The bag.
        wanted: Names of topics. Without names, the only topic of ``types`` that has messages is chosen.
        types: Message types that are allowed.
        suffix: Without names, all topics of ``types`` with this ending that have messages are chosen.

    Raises:
        SourceError: A topic does not exist or has another type, or several could be chosen; the message lists the
            topics of the bag.
    """
    able = bag.topics(types)
    everything = bag.topics()
    if not wanted:
        found = [topic for topic in able if topic.endswith(suffix)]
        found = [topic for topic in found if topic not in bag.silent] or found
        if not found or (len(found) > 1 and not suffix):
            what = f"no topic {suffix} of {' or '.join(types)}" if not found else f"{len(found)} topics to choose from"
            raise SourceError(f"{bag.path}: {what}; name one with --topic; {_listing(bag)}")
        wanted = found
    for topic in wanted:
        if topic not in everything:
            raise SourceError(f"{bag.path}: has no topic {topic}; {_listing(bag)}")
        if topic not in able:
            raise SourceError(
                f"{bag.path}: topic {topic} is of {everything[topic]}, not of {' or '.join(types)}; {_listing(bag)}"
            )
    for channel in bag.channels:
        if channel.topic in wanted and channel.type in types and channel.message_encoding != "cdr":
            raise SourceError(
                f"{bag.path}: messages of {channel.topic} are in {channel.message_encoding or 'no encoding'}, not in "
                "cdr (ROS 2); convert the bag first, as rosbags-convert does for ROS 1"
            )
    return list(dict.fromkeys(wanted))


def _listing(bag: Bag) -> str:
    topics = bag.topics()
    if not topics:
        return "it has no topics"
    names = [
        f"{topic} ({kind or 'no type'}{', no messages' if topic in bag.silent else ''})"
        for topic, kind in list(topics.items())[:_LISTED]
    ]
    more = f" and {len(topics) - _LISTED} more" if len(topics) > _LISTED else ""
    return f"it has {', '.join(names)}{more}"


def _some(names: Sequence[str]) -> str:
    """The first of some names, and how many follow."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _open(path: Path, limits: Limits) -> Recording:
    if _begins_with(path, ROS1):
        raise Damaged(f"is a bag of ROS 1; convert it first: rosbags-convert --src {path.name} --dst NEW_FOLDER")
    if path.suffix.lower() == ".db3" or _begins_with(path, SQLITE):
        return SqliteFile(path, limits)
    return McapFile(path, limits)


def _begins_with(path: Path, *marks: bytes) -> bool:
    """Whether a regular file begins with one of some bytes."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(32).startswith(marks)
    except OSError:
        return False


def _unpacked_message(message: Message, limits: Limits) -> Message:
    """A message without its compression by the recorder.

    A message in CDR begins with a zero, a compressed one with the mark of Zstandard; so the metadata, which a killed
    recorder does not write, is not needed to tell them apart.

    Raises:
        Damaged: The compressed data is damaged, or too large.
    """
    if message.channel.message_encoding != "cdr" or not message.data.startswith(ZSTANDARD):
        return message
    import zstandard

    try:
        data = unzstd(message.data, limits)
    except zstandard.ZstdError as error:
        raise Damaged(f"a compressed message is damaged ({error})") from None
    return Message(message.channel, message.log_time, message.publish_time, message.sequence, data)
