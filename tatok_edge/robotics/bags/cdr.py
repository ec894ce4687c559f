"""CDR, the binary form of ROS 2 messages, for the messages of camera topics."""

from __future__ import annotations

import struct
from typing import Any

from tatok_edge.errors import FormatError
from tatok_edge.robotics.bags.records import TYPE_HASH, Channel, Message


class Cdr:
    """Serializes and deserializes the messages of camera topics. All ROS 2 distributions define them alike."""

    def __init__(self) -> None:
        from rosbags.serde import SerdeError
        from rosbags.typesys import Stores, get_typestore

        self._store = get_typestore(Stores.ROS2_HUMBLE)
        self.types: dict[str, Any] = dict(self._store.types)
        """Classes of the messages by type."""
        # The library leaves checks to assertions, numpy and struct.
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
        if TYPE_HASH in metadata:
            metadata[TYPE_HASH] = self._store.hash_rihs01(type_name)
        definition = self._store.generate_msgdef(type_name, ros_version=2)[0]
        return Channel(topic, type_name, "cdr", "ros2msg", definition.encode(), tuple(metadata.items()))
