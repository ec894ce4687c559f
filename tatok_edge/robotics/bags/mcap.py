"""Reads MCAP files in the order of their log times. No length in a file is believed beyond its size.

The file is scanned first: the heads of its records give the place and the first log time of every chunk, and nothing is
unpacked. Then the chunks are read in the order of their times. Chunks that overlap in time are merged, so a recording
that was merged or joined in any order is read as a player shows it, and in memory are only chunks that overlap.
"""

from __future__ import annotations

import heapq
import struct
import zlib
from array import array
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NamedTuple

from tatok_edge.limits import Limits
from tatok_edge.robotics.bags.records import Channel, Damaged, Message, Recording, unzstd

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata

MAGIC: Final = b"\x89MCAP0\r\n"
WAITING_BYTES: Final = 1 << 29
"""Messages that wait for earlier ones, in bytes. Beyond that, the order of the log times is given up."""
_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _ATTACHMENT, _METADATA = 1, 2, 3, 4, 5, 6, 9, 12
_HEAD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_TIME = struct.Struct("<Q")


class McapFile(Recording):
    """An MCAP file.

    Args:
        path: The file.
        limits: Largest chunk.

    Raises:
        Damaged: It has no record that can be read.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path)
        self._limits = limits
        with path.open("rb") as file:
            head = file.read(len(MAGIC) + _HEAD.size)
        if not head or (head.startswith(MAGIC) and len(head) < len(MAGIC) + _HEAD.size):
            raise Damaged("is empty or cut off at its start", at_start=True)
        if not head.startswith(MAGIC):
            raise Damaged("is not an MCAP file", at_start=True)
        self._schemas: dict[int, Any] = {}
        self._numbers: dict[int, Channel] = {}
        self._everything_learned = False
        summary = _summary(path)
        if summary is not None:
            self.channels, self.used, self.first_time = summary
            return
        # A file without a summary has to be read once as a whole.
        self.channels, self.used = [], set()
        try:
            for record in self.records():
                if isinstance(record, Channel):
                    self.channels.append(record)
                elif isinstance(record, Message):
                    self.used.add(record.channel)
                    self.first_time = record.log_time if self.first_time is None else self.first_time
        except Damaged as error:
            if error.at_start:
                raise

    def records(self) -> Iterator[Channel | Message | Attachment | Metadata]:
        """Channels, attachments and metadata records as they are met, messages in the order of their log times.

        Raises:
            Damaged: At the end: a part cannot be read.
        """
        self._schemas, self._numbers, self._everything_learned = {}, {}, False
        with self.path.open("rb") as file:
            index = _scan(file, self.path.stat().st_size)
            damage: list[str] = []
            if not index.begun:
                raise Damaged("is empty or cut off at its start", at_start=True)
            for offset in index.others:
                try:
                    yield from self._other(file, offset)
                except _damage() as error:
                    damage.append(_describe(error))
            order = range(len(index.times))
            if any(one > other for one, other in zip(index.times, index.times[1:], strict=False)):
                order = sorted(order, key=index.times.__getitem__)  # type: ignore[assignment]  # stable: file order
            waiting: list[tuple[int, int, int, Message]] = []
            size = 0
            for place in order:
                start = index.times[place], place
                while waiting and (waiting[0][:2] < start or size > WAITING_BYTES):
                    message = heapq.heappop(waiting)[3]
                    size -= len(message.data)
                    yield message
                try:
                    parts = list(self._parts(file, index.offsets[place]))
                except _damage() as error:
                    damage.append(_describe(error))
                    continue
                for number, part in enumerate(parts):
                    if isinstance(part, Channel):
                        yield part
                    else:
                        heapq.heappush(waiting, (part.log_time, place, number, part))
                        size += len(part.data)
            while waiting:
                yield heapq.heappop(waiting)[3]
            if index.damage is not None:
                damage.append(index.damage)
        if damage:
            more = f"; and {len(damage) - 1} more parts are damaged" if len(damage) > 1 else ""
            raise Damaged(damage[0] + more)

    def _other(self, file: BinaryIO, offset: int) -> Iterator[Channel | Attachment | Metadata]:
        """A schema, channel, attachment or metadata record outside of chunks."""
        from mcap.data_stream import ReadDataStream
        from mcap.records import Attachment, Metadata

        opcode, data = _read(file, offset, self._limits)
        if opcode in (_SCHEMA, _CHANNEL):
            yield from self._learn(opcode, data)
        elif opcode == _ATTACHMENT:
            yield Attachment.read(ReadDataStream(BytesIO(data)))
        else:
            yield Metadata.read(ReadDataStream(BytesIO(data)))

    def _parts(self, file: BinaryIO, offset: int) -> Iterator[Channel | Message]:
        """New channels and the messages of a chunk, or a message outside of chunks."""
        opcode, data = _read(file, offset, self._limits)
        for kind, part in [(opcode, data)] if opcode == _MESSAGE else _unpacked(data, self._limits):
            if kind in (_SCHEMA, _CHANNEL):
                yield from self._learn(kind, part)
            elif kind == _MESSAGE:
                number, sequence, log_time, publish_time = _MESSAGE_HEAD.unpack_from(part)
                if number not in self._numbers and not self._everything_learned:
                    yield from self._learn_everything(file)
                channel = self._numbers[number]
                yield Message(channel, log_time, publish_time, sequence, bytes(part[_MESSAGE_HEAD.size :]))

    def _learn(self, opcode: int, data: bytes | memoryview) -> Iterator[Channel]:
        """Takes a schema or a channel; gives a channel that is new."""
        from mcap import records
        from mcap.data_stream import ReadDataStream

        stream = ReadDataStream(BytesIO(data))
        if opcode == _SCHEMA:
            schema = records.Schema.read(stream)
            self._schemas[schema.id] = schema
            return
        channel = records.Channel.read(stream)
        if channel.id not in self._numbers:
            self._numbers[channel.id] = made = _channel(channel, self._schemas)
            yield made

    def _learn_everything(self, file: BinaryIO) -> Iterator[Channel]:
        """Takes all channels of the file, where a chunk is read before the chunk that defines its channels."""
        self._everything_learned = True
        for offset in _scan(file, self.path.stat().st_size).offsets:
            try:
                opcode, data = _read(file, offset, self._limits)
                for kind, part in _unpacked(data, self._limits) if opcode == _CHUNK else ():
                    if kind in (_SCHEMA, _CHANNEL):
                        yield from self._learn(kind, part)
            except _damage():  # reported when its messages are read
                continue


class _Index(NamedTuple):
    """The places of the records of a file."""

    times: array[int]
    """First log time of each chunk, and of each message outside of chunks."""
    offsets: array[int]
    """Where each of them begins."""
    others: list[int]
    """Where each schema, channel, attachment and metadata record begins."""
    damage: str | None
    """Why the scan ended early."""
    begun: bool
    """Whether there is any whole record."""


def _scan(file: BinaryIO, size: int) -> _Index:
    """Finds the records of a file by their heads."""
    times, offsets, others = array("Q"), array("Q"), []
    at, begun, damage = len(MAGIC), False, None
    while at < size:
        file.seek(at)
        head = file.read(_HEAD.size + _MESSAGE_HEAD.size)
        opcode, length = _HEAD.unpack_from(head) if len(head) >= _HEAD.size else (0, size)
        if length > size - at - _HEAD.size:
            damage = "is cut off"
            break
        if not opcode:
            damage = f"is damaged: there is no record at byte {at}"
            break
        begun = True
        if opcode == _FOOTER:
            break
        try:
            if opcode == _CHUNK:
                times.append(_TIME.unpack_from(head, _HEAD.size)[0])
                offsets.append(at)
            elif opcode == _MESSAGE:
                times.append(_MESSAGE_HEAD.unpack_from(head, _HEAD.size)[2])
                offsets.append(at)
            elif opcode in (_SCHEMA, _CHANNEL, _ATTACHMENT, _METADATA):
                others.append(at)
        except struct.error:
            damage = f"is damaged: the record at byte {at} is too short"
        at += _HEAD.size + length
    else:
        damage = "is cut off"
    return _Index(times, offsets, others, damage, begun)


def _read(file: BinaryIO, offset: int, limits: Limits) -> tuple[int, bytes]:
    """Opcode and content of the record at ``offset``, which the scan found to be whole."""
    file.seek(offset)
    opcode, length = _HEAD.unpack(file.read(_HEAD.size))
    limits.check("max_chunk", length, "is refused: a record", Damaged)
    data = file.read(length)
    if len(data) != length:
        raise Damaged("is cut off")
    return opcode, data


def _unpacked(data: bytes, limits: Limits) -> Iterator[tuple[int, memoryview]]:
    """Opcodes and contents of the records of a chunk.

    Raises:
        Damaged: A size in it is wrong.
    """
    from mcap.data_stream import ReadDataStream
    from mcap.records import Chunk

    content = memoryview(_chunk_content(Chunk.read(ReadDataStream(BytesIO(data))), limits))
    size = len(content)
    at = 0
    while at < size:
        opcode, length = _HEAD.unpack_from(content, at)
        at += _HEAD.size
        if length > size - at:
            raise Damaged("is damaged: a record is longer than its chunk")
        yield opcode, content[at : at + length]
        at += length


def _summary(path: Path) -> tuple[list[Channel], set[Channel], int | None] | None:
    """Channels, channels with messages, and the first log time, by the summary at the end of the file.

    None without a complete summary.
    """
    from mcap.reader import SeekingReader

    try:
        with path.open("rb") as file:
            summary = SeekingReader(file, record_size_limit=path.stat().st_size).get_summary()
            statistics = None if summary is None else summary.statistics
            if summary is None or statistics is None or len(summary.channels) != statistics.channel_count:
                return None
            numbers = {number: _channel(channel, summary.schemas) for number, channel in summary.channels.items()}
            used = {numbers[number] for number, count in statistics.channel_message_counts.items() if count}
            if statistics.message_count and not used:  # a writer that does not count by channel
                used = set(numbers.values())
            first = statistics.message_start_time if statistics.message_count else None
            return list(dict.fromkeys(numbers.values())), used, first
    except OSError:
        return None
    except _damage():
        return None


def _damage() -> tuple[type[Exception], ...]:
    """The errors that damaged files raise, here and in the libraries."""
    import zstandard
    from mcap.exceptions import McapError

    return (
        Damaged,
        McapError,
        zstandard.ZstdError,
        struct.error,
        ValueError,
        LookupError,
        MemoryError,
        OverflowError,
        RuntimeError,
    )


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, Damaged) else f"is damaged ({type(error).__name__}: {error})"


def _channel(channel: Any, schemas: dict[int, Any]) -> Channel:
    metadata = tuple(channel.metadata.items())
    if channel.schema_id == 0:
        return Channel(channel.topic, "", channel.message_encoding, metadata=metadata)
    schema = schemas[channel.schema_id]
    return Channel(channel.topic, schema.name, channel.message_encoding, schema.encoding, schema.data, metadata)


def _chunk_content(chunk: Any, limits: Limits) -> bytes:
    """The records of a chunk, unpacked: exactly as many bytes as it states, and no more memory than for these.

    Raises:
        Damaged: It is too large, is not as long as it says, or its CRC is wrong.
    """
    size = chunk.uncompressed_size
    limits.check("max_chunk", size, "is refused: a chunk", Damaged)
    if chunk.compression == "lz4":
        import lz4.frame

        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
    elif chunk.compression == "zstd":
        data = unzstd(chunk.data, limits)
    elif chunk.compression == "":
        data = chunk.data
    else:
        raise Damaged(f"cannot be read: its chunks are compressed with {chunk.compression[:40]!r}")
    if len(data) != size:
        raise Damaged("is damaged: a chunk is not as long as it says")
    if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise Damaged("is damaged: the CRC of a chunk is wrong")
    return bytes(data)
