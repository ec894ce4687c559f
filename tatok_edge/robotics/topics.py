"""ROS 2 camera messages to packets of tokens and back, with any objects that have the fields of the messages.

Works on the messages of ``rclpy`` and of ``rosbags``, and imports neither. Tokens travel as
``sensor_msgs/msg/CompressedImage``: ``data`` is one packet, and ``format`` names its model and stream
(:class:`TokenFormat`).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from tatok_edge.errors import FormatError
from tatok_edge.geometry import MIN_SIDE
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.robotics.images import image_from_message, ros_array, stamp_us, token_encoding
from tatok_edge.sources.source import RisingClock, Source, SourceFrame
from tatok_edge.stream.decoder import DecodedFrame, StreamDecoder
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.stream.pipeline import Stream
from tatok_edge.tokens.budget import TokenBudget

TOKEN_TOPIC: Final = "/tatok"
"""Ending of a token topic, after the name of its image topic."""
DECODED_TOPIC: Final = "/decoded"
"""Ending of a topic of decoded pictures, after the name of the image topic."""
REQUEST_TOPIC: Final = "/tatok/request_keyframe"
"""Ending of the ``std_msgs/msg/Empty`` topic that requests a keyframe, after the name of the image topic."""
KEYFRAME_INTERVAL: Final = 30
"""Default number of frames from one keyframe to the next: the longest wait after a jump in a bag, or for a late
subscriber."""


_MAX_FORMAT: Final = 256
_FORMAT = re.compile(r"tatok; bundle=([0-9a-f]{16}); encoding=(rgb8|bgr8|mono8); stream=([0-9a-f]{8})(?:;.*)?")


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """The ``format`` of a token message: ``tatok; bundle=<16 hex>; encoding=rgb8; stream=<8 hex>``."""

    bundle: str
    """Tag of the model bundle, 16 hexadecimal digits."""
    encoding: str
    """Encoding of the pictures that went in, without alpha: ``rgb8``, ``bgr8`` or ``mono8``."""
    stream: str
    """Name that each encoder chooses, 8 hexadecimal digits: packets of another stream do not continue this one."""

    def __str__(self) -> str:
        return f"tatok; bundle={self.bundle}; encoding={self.encoding}; stream={self.stream}"

    @classmethod
    def parse(cls, text: str) -> TokenFormat:
        """Reads the ``format`` of a message.

        Raises:
            FormatError: It is not that of a token message.
        """
        match = _FORMAT.fullmatch(text) if len(text) <= _MAX_FORMAT else None
        if match is None:
            raise FormatError(
                f"format is {text[:80]!r}, not 'tatok; bundle=<16 hex>; encoding=rgb8; stream=<8 hex>': no tokens"
            )
        return cls(*match.groups())


@dataclass(frozen=True, slots=True)
class TokenPacket:
    """One encoded camera message."""

    packet: bytes = field(repr=False)
    """The packet (``docs/format.md``)."""
    format: str
    """The field ``format`` of the message."""
    kind: Literal["key", "delta"]
    """A keyframe stands alone; a delta builds on the packets before."""
    width: int
    height: int
    n_tokens: int
    """Number of patch tokens in the packet."""
    n_patches: int
    """Number of patches of the picture."""


def packet_to_message(
    message_type: Callable[..., Any],
    header: Any,
    packet: TokenPacket,
    *,
    buffer: Callable[[bytes], Any] = ros_array,
) -> Any:
    """A ``CompressedImage`` message of a packet.

    Args:
        message_type: The class of the message.
        header: The header of the camera message.
        packet: The result of :meth:`ImageEncoder.encode`.
        buffer: Converts bytes to the type of the field ``data``.
    """
    return message_type(header=header, format=packet.format, data=buffer(packet.packet))


class ImageEncoder:
    """Turns the messages of one camera topic into packets: key and delta packets of a stream.

    Args:
        tokenizer: The model.
        budget: Limits for each packet.
        max_loss_db: See :class:`StreamEncoder`.
        keyframe_interval: See :class:`StreamEncoder`.
        max_kbps: See :class:`Stream`; spreads the refresh over the frames.
        frames_only: Make every packet a keyframe, limited by ``budget``; no patch is held.
        stream: Name of the stream, 8 hexadecimal digits; by default a random one.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        budget: TokenBudget | None = None,
        max_loss_db: float = MAX_LOSS_DB,
        keyframe_interval: int = KEYFRAME_INTERVAL,
        max_kbps: float | None = None,
        frames_only: bool = False,
        stream: str | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        """The model."""
        self.stream = secrets.token_hex(4) if stream is None else stream
        """Name of the stream."""
        self._budget = budget or TokenBudget()
        self._frames_only = frames_only
        self._source = _Mailbox()
        self._clock = RisingClock(None)
        self._index = 0
        self._stream = Stream(
            tokenizer,
            self._source,
            budget=budget,
            max_loss_db=max_loss_db,
            keyframe_interval=keyframe_interval,
            max_kbps=max_kbps,
        )

    def request_keyframe(self) -> None:
        """Make the next packet a keyframe; may be called from any thread."""
        self._stream.request_keyframe()

    def encode(self, message: Any, *, recorded_ns: int | None = None) -> TokenPacket | None:
        """Encode the next message.

        Args:
            message: See :func:`image_from_message`.
            recorded_ns: When it was recorded or received, in nanoseconds; it counts where its header has no stamp.

        Returns:
            The packet; None if ``max_kbps`` leaves no bits for this frame.

        Raises:
            InputError: The encoding or size is not supported, or the budget is too small.
            FormatError: The message is damaged. The stream stays as it was.
        """
        image = image_from_message(message, limits=self.tokenizer.limits)
        height, width = image.shape[:2]
        index, self._index = self._index, self._index + 1
        timestamp_us = self._clock(stamp_us(message), None if recorded_ns is None else recorded_ns // 1000)
        name = str(TokenFormat(self.tokenizer.tag.hex(), token_encoding(message), self.stream))
        if self._frames_only:
            frame = self.tokenizer.encode(image, budget=self._budget, index=index, timestamp_us=timestamp_us)
            packet = self.tokenizer.pack(frame)
            return TokenPacket(packet, name, "key", width, height, frame.n_tokens, frame.n_patches)
        self._source.frame = SourceFrame(image, index, timestamp_us)
        try:
            encoded = next(iter(self._stream), None)
        finally:
            self._source.frame = None
        if encoded is None:
            return None
        tokens = encoded.tokens
        return TokenPacket(encoded.packet, name, encoded.kind, width, height, tokens.n_tokens, tokens.n_patches)


class TokenDecoder:
    """Turns token messages of one topic into pictures. Copes with lost packets and restarted encoders.

    Args:
        tokenizer: The model that encoded them.
        on_loss: Called with a line of text when packets are missing; a place to publish a request for a keyframe.
    """

    def __init__(self, tokenizer: Tokenizer, *, on_loss: Callable[[str], None] | None = None) -> None:
        self.tokenizer = tokenizer
        """The model."""
        self._on_loss = on_loss
        self._stream: str | None = None
        self._decoder = StreamDecoder(tokenizer, on_loss=on_loss)

    @property
    def needs_keyframe(self) -> bool:
        """Whether a keyframe is needed: none has come yet, or packets are missing."""
        return self._decoder.needs_keyframe

    def decode(self, message: Any) -> tuple[DecodedFrame, str]:
        """Take the next message.

        Args:
            message: A ``CompressedImage`` with a packet.

        Returns:
            The decoded frame, and the encoding of the camera messages.

        Raises:
            FormatError: It holds no packet, a damaged one, or one of another model. The decoder stays as it was.
        """
        name = TokenFormat.parse(str(message.format))
        if name.bundle != self.tokenizer.tag.hex():
            raise FormatError(
                f"tokens are of model bundle {name.bundle}, the model here is {self.tokenizer.name} "
                f"({self.tokenizer.tag.hex()}); decode with the bundle that made them"
            )
        packet = bytes(memoryview(message.data))
        decoder = self._decoder
        if name.stream != self._stream:  # another or a restarted encoder: its frame numbers start over
            decoder = StreamDecoder(self.tokenizer, on_loss=self._on_loss)
        decoded = decoder.decode(packet)
        self._decoder, self._stream = decoder, name.stream
        return decoded, name.encoding


class _Mailbox(Source):
    """The current message as a source of one frame, which is iterated over again for each message."""

    def __init__(self) -> None:
        super().__init__("messages", np.zeros((MIN_SIDE, MIN_SIDE, 3), np.uint8), fps=None, frames=None)
        self.frame: SourceFrame | None = None

    def _read(self) -> Iterator[SourceFrame]:
        if self.frame is not None:
            yield self.frame
