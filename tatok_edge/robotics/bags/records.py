"""Records of a bag as all formats give them: channels and messages; and how a damaged file is reported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    pass


LARGEST_CHUNK: Final = 1 << 30
"""Largest chunk of an MCAP file in bytes, unpacked: what recorders write has a few megabytes."""
QOS_PROFILES = "offered_qos_profiles"
TYPE_HASH = "topic_type_hash"


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


def check_unpacked(data: bytes) -> None:
    import zstandard

    size = zstandard.frame_content_size(data)
    if size > LARGEST_CHUNK:
        raise Damaged(f"is damaged: compressed data of {size} bytes, {LARGEST_CHUNK} are read at most")
