"""Reads MCAP files record by record, with the ``mcap`` library. No length in a file is believed beyond its size."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tatok_edge.robotics.bags.records import LARGEST_CHUNK, Channel, Damaged, Message, check_unpacked

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata


def read_mcap(path: Path) -> Iterator[Channel | Message | Attachment | Metadata]:
    """Channels, messages, attachments and metadata records, in the order of the file.

    Raises:
        Damaged: The rest of the file cannot be read.
    """
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
            except _damage(RuntimeError) as error:
                if not begun:
                    raise Damaged("is not an MCAP file", at_start=True) from None
                raise Damaged(f"is damaged ({type(error).__name__}: {error})") from None
            begun = True
            yield from out


def indexed_channels(path: Path) -> list[Channel]:
    """Channels that the summary at the end of the file lists; none without a complete summary."""
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
    except _damage(OSError):
        return []


class _ExactFile:
    """A file whose reads are complete or fail, and never ask for more memory than the file has bytes."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        self._file = file
        self._size = size

    def read(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise Damaged("is cut off")
        return self._file.read(count)


def _damage(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """The errors that the libraries raise for damaged files, and others."""
    import zstandard
    from mcap.exceptions import McapError

    return (
        McapError,
        zstandard.ZstdError,
        struct.error,
        ValueError,
        LookupError,
        MemoryError,
        OverflowError,
        *others,
    )


def _channel(channel: Any, schemas: dict[int, Any]) -> Channel:
    metadata = tuple(channel.metadata.items())
    if channel.schema_id == 0:
        return Channel(channel.topic, "", channel.message_encoding, metadata=metadata)
    schema = schemas[channel.schema_id]
    return Channel(channel.topic, schema.name, channel.message_encoding, schema.encoding, schema.data, metadata)


def _check_chunk(chunk: Any) -> None:
    """Checks the sizes that a chunk states, before memory is allocated for them."""
    if chunk.uncompressed_size > LARGEST_CHUNK:
        raise Damaged(f"is damaged: a chunk of {chunk.uncompressed_size} bytes, {LARGEST_CHUNK} are read at most")
    if chunk.compression == "zstd":
        check_unpacked(chunk.data)
    elif chunk.compression == "" and len(chunk.data) != chunk.uncompressed_size:
        raise Damaged("is damaged: a chunk is not as long as it says")
