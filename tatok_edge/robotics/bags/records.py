"""The files and records of a bag, the same for all file formats: recordings, channels and messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tatok_edge.limits import Limits

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata

_STEP: Final = 1 << 10
"""Bytes that are unpacked at a time. Zstandard makes at most 100,000 times as many of them."""
QOS_PROFILES: Final = "offered_qos_profiles"
"""Key of the QoS profiles in the metadata of a channel."""
TYPE_HASH: Final = "topic_type_hash"
"""Key of the hash of the message type in the metadata of a channel."""


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
    """Notes of rosbag2, such as :data:`QOS_PROFILES` and :data:`TYPE_HASH`."""


@dataclass(frozen=True, slots=True)
class Message:
    """A recorded message."""

    channel: Channel
    log_time: int
    """Time of recording, in nanoseconds."""
    publish_time: int
    """Time of publication, in nanoseconds."""
    sequence: int
    data: bytes = field(repr=False)


class Recording(ABC):
    """A file of a bag.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channels: list[Channel] = []
        """Its channels, in the order of the file."""
        self.used: set[Channel] = set()
        """The channels that have messages."""
        self.first_time: int | None = None
        """Log time of the first message in nanoseconds; None without messages."""

    @abstractmethod
    def records(self) -> Iterator[Channel | Message | Attachment | Metadata]:
        """All records; messages in the order of their log times, equal times in the order of the file.

        Raises:
            Damaged: At the end: a part cannot be read.
        """


class Damaged(Exception):
    """A part of a file cannot be read.

    Args:
        message: The damage, as it follows the name of the file in a message.
        at_start: The file has no record that can be read.
    """

    def __init__(self, message: str, *, at_start: bool = False) -> None:
        super().__init__(message)
        self.at_start = at_start


def unzstd(data: bytes, limits: Limits) -> bytes:
    """Unpacks Zstandard data.

    Raises:
        Damaged: It is larger than ``max_chunk`` of the limits.
        zstandard.ZstdError: It is damaged.
    """
    import zstandard

    size = zstandard.frame_content_size(data)
    limits.check("max_chunk", size, "is refused: compressed data", Damaged)
    if size < 0:  # it does not say; without a size, the library would take memory for the limit at once
        return unpacked_in_steps(zstandard.ZstdDecompressor().decompressobj(), data, limits)
    return zstandard.ZstdDecompressor().decompress(data)


def unpacked_in_steps(decompressor: Any, data: bytes, limits: Limits) -> bytes:
    """Unpacks data that does not state its size, a little at a time.

    Args:
        decompressor: Has ``decompress``, as those of zstandard.
        data: The compressed data.
        limits: Largest chunk.

    Raises:
        Damaged: It is larger than ``max_chunk`` of the limits.
    """
    parts, size = [], 0
    for start in range(0, len(data), _STEP):
        parts.append(decompressor.decompress(data[start : start + _STEP]))
        size += len(parts[-1])
        limits.check("max_chunk", size, "is refused: compressed data", Damaged)
    return b"".join(parts)
