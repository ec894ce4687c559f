"""ROS 2 camera messages to packets of tokens and back, with any objects that have the fields of the messages.

Works on what ``rclpy`` hands to a node and on what ``rosbags`` reads from a bag; neither is imported here. Tokens
travel as ``sensor_msgs/msg/CompressedImage``: ``data`` is one packet, ``format`` says whose (:class:`TokenFormat`).
"""

from __future__ import annotations

import array
import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.source import RisingClock, Source, SourceFrame
from tatok_edge.stream.decoder import DecodedFrame, StreamDecoder
from tatok_edge.stream.options import MAX_LOSS_DB
from tatok_edge.stream.pipeline import Stream
from tatok_edge.tokens.budget import TokenBudget

TOKEN_TOPIC: Final = "/tatok"
"""What follows the name of an image topic in the name of its token topic."""
DECODED_TOPIC: Final = "/decoded"
"""What follows it in the name of the topic of decoded pictures."""
REQUEST_TOPIC: Final = "/tatok/request_keyframe"
"""What follows it in the name of the ``std_msgs/msg/Empty`` topic that asks for a keyframe."""
KEYFRAME_INTERVAL: Final = 30
"""Frames between keyframes where nothing else is said: those who seek or join late wait no longer than that."""

ENCODINGS: Final = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""Pixel encodings of ``sensor_msgs/msg/Image`` that are taken, with their bytes per pixel."""
DECODED_ENCODINGS: Final = {"rgb8": 3, "bgr8": 3, "mono8": 1}
"""Pixel encodings of decoded pictures: alpha is not kept."""

_MAX_FORMAT: Final = 256
_FORMAT = re.compile(r"tatok; bundle=([0-9a-f]{16}); encoding=(rgb8|bgr8|mono8); stream=([0-9a-f]{8})(?:;.*)?")
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """What the ``format`` of a token message says, as ``tatok; bundle=<16 hex>; encoding=rgb8; stream=<8 hex>``."""

    bundle: str
    """Tag of the model bundle, 16 hexadecimal digits."""
    encoding: str
    """Encoding of the pictures that went in, without alpha: ``rgb8``, ``bgr8`` or ``mono8``."""
    stream: str
    """Told anew by every encoder, 8 hexadecimal digits: packets of another one do not follow those before."""

    def __str__(self) -> str:
        return f"tatok; bundle={self.bundle}; encoding={self.encoding}; stream={self.stream}"

    @classmethod
    def parse(cls, text: str) -> TokenFormat:
        """Reads it.

        Raises:
            FormatError: It does not name our packets.
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
    """What goes into the field ``format``."""
    kind: Literal["key", "delta"]
    """Whether it stands alone."""
    width: int
    height: int
    n_tokens: int
    """Patch tokens in the packet."""
    n_patches: int
    """Patches of the picture."""


def ros_array(data: Any) -> array.array[int]:
    """Bytes as ``rclpy`` takes them for ``uint8[]`` without looking at each of them."""
    values = array.array("B")
    values.frombytes(memoryview(data))
    return values


def image_from_message(message: Any) -> Image:
    """The picture of a camera message.

    Args:
        message: A ``sensor_msgs/msg/Image`` in one of :data:`ENCODINGS`, with any ``step``, or a
            ``sensor_msgs/msg/CompressedImage`` with a JPEG or PNG. ``is_bigendian`` says nothing about single bytes.

    Returns:
        uint8 ``(H, W, 3)`` RGB. For raw images a view of the message in its own strides: nothing is copied (OpenCV
        wants ``np.ascontiguousarray`` of it).

    Raises:
        InputError: An encoding or size that is not taken.
        FormatError: The message is damaged: its fields contradict each other, or the JPEG or PNG cannot be decoded.
    """
    return _from_raw(message) if hasattr(message, "encoding") else _from_compressed(message)


def token_encoding(message: Any) -> str:
    """The encoding, one of :data:`DECODED_ENCODINGS`, in which the picture of a camera message is given back."""
    encoding = str(getattr(message, "encoding", "rgb8"))
    return {"rgba8": "rgb8", "bgra8": "bgr8"}.get(encoding, encoding)


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
        packet: What :meth:`ImageEncoder.encode` gave.
        buffer: Makes of bytes what the class takes as ``data``.
    """
    return message_type(header=header, format=packet.format, data=buffer(packet.packet))


def image_to_message(
    message_type: Callable[..., Any],
    header: Any,
    image: Image,
    encoding: str = "rgb8",
    *,
    buffer: Callable[[NDArray[np.uint8]], Any] = ros_array,
) -> Any:
    """An ``Image`` message of a picture.

    Args:
        message_type: The class of the message.
        header: Its header.
        image: uint8 ``(H, W, 3)`` RGB.
        encoding: One of :data:`DECODED_ENCODINGS`.
        buffer: Makes of a flat array what the class takes as ``data``.

    Raises:
        InputError: Another encoding.
    """
    if encoding not in DECODED_ENCODINGS:
        raise InputError(f"encoding must be one of {', '.join(DECODED_ENCODINGS)}, got {encoding!r}")
    if encoding == "bgr8":
        image = image[:, :, ::-1]
    elif encoding == "mono8":
        image = np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY), np.uint8)
    height, width = image.shape[:2]
    return message_type(
        header=header,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=width * DECODED_ENCODINGS[encoding],
        data=buffer(np.ascontiguousarray(image).reshape(-1)),
    )


class ImageEncoder:
    """Turns the messages of one camera topic into packets: key and delta packets of a stream.

    Args:
        tokenizer: The model.
        budget: Limits for each packet.
        max_loss_db: See :class:`StreamEncoder`.
        keyframe_interval: See :class:`StreamEncoder`.
        max_kbps: See :class:`Stream`; makes the refresh a rolling one.
        frames_only: Every packet stands alone, with the tokens that ``budget`` leaves; nothing is held.
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

    def encode(self, message: Any) -> TokenPacket | None:
        """Encode the next message.

        Args:
            message: See :func:`image_from_message`.

        Returns:
            The packet; None where ``max_kbps`` has nothing left for this frame.

        Raises:
            InputError: An encoding or size that is not taken, or a budget that is too small.
            FormatError: The message is damaged. The stream is as before.
        """
        image = image_from_message(message)
        height, width = image.shape[:2]
        index, self._index = self._index, self._index + 1
        stamp = message.header.stamp
        timestamp_us = self._clock(int(stamp.sec) * 1_000_000 + int(stamp.nanosec) // 1000)
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
    """Turns token messages of one topic back into pictures, whatever was lost or began anew on the way.

    Args:
        tokenizer: The model that made them.
        on_loss: Called with a line of text when packets are missing: the place to publish a request for a keyframe.
    """

    def __init__(self, tokenizer: Tokenizer, *, on_loss: Callable[[str], None] | None = None) -> None:
        self.tokenizer = tokenizer
        """The model."""
        self._on_loss = on_loss
        self._stream: str | None = None
        self._decoder = StreamDecoder(tokenizer, on_loss=on_loss)

    @property
    def needs_keyframe(self) -> bool:
        """Whether a keyframe would help: nothing has come yet, or packets are missing."""
        return self._decoder.needs_keyframe

    def decode(self, message: Any) -> tuple[DecodedFrame, str]:
        """Take the next message.

        Args:
            message: A ``CompressedImage`` with a packet.

        Returns:
            What there is to see then, and the encoding of the pictures that went in.

        Raises:
            FormatError: It holds no packet, a damaged one, or one of another model; the decoder is as before.
        """
        name = TokenFormat.parse(str(message.format))
        if name.bundle != self.tokenizer.tag.hex():
            raise FormatError(
                f"tokens are of model bundle {name.bundle}, the model here is {self.tokenizer.name} "
                f"({self.tokenizer.tag.hex()}); decode with the bundle that made them"
            )
        packet = bytes(memoryview(message.data))
        decoder = self._decoder
        if name.stream != self._stream:  # another encoder, or the same one begun anew: its frame numbers start over
            decoder = StreamDecoder(self.tokenizer, on_loss=self._on_loss)
        decoded = decoder.decode(packet)
        self._decoder, self._stream = decoder, name.stream
        return decoded, name.encoding


class _Mailbox(Source):
    """The message at hand as a source of one frame, which may be iterated over again for the next one."""

    def __init__(self) -> None:
        super().__init__("messages", np.zeros((MIN_SIDE, MIN_SIDE, 3), np.uint8), fps=None, frames=None)
        self.frame: SourceFrame | None = None

    def _read(self) -> Iterator[SourceFrame]:
        if self.frame is not None:
            yield self.frame


def _from_raw(message: Any) -> Image:
    encoding = str(message.encoding)
    if encoding not in ENCODINGS:
        raise InputError(f"encoding {encoding[:40]!r} is not supported ({_why_not(encoding)}); {_TAKEN}")
    channels = ENCODINGS[encoding]
    width, height, step = int(message.width), int(message.height), int(message.step)
    _check_size(width, height)
    data = np.frombuffer(memoryview(message.data), np.uint8)
    needed = step * (height - 1) + width * channels
    if step < width * channels or data.size < needed:
        raise FormatError(
            f"image of {width}x{height} pixels in {encoding} with {step} bytes per row does not fit: a row needs "
            f"{width * channels} bytes, the picture {needed}, and {data.size} came"
        )
    pixels: Image = np.ndarray((height, width, channels), np.uint8, data, strides=(step, channels, 1))
    if encoding == "mono8":
        return np.broadcast_to(pixels, (height, width, 3))
    return pixels[:, :, 2::-1] if encoding.startswith("bgr") else pixels[:, :, :3]


def _from_compressed(message: Any) -> Image:
    name = str(message.format)
    data = np.frombuffer(memoryview(message.data), np.uint8)
    head = data[:32].tobytes()
    if name.startswith("tatok"):
        raise InputError("the message holds tokens already; decode it")
    if "compressedDepth" in name or not head.startswith((_PNG, _JPEG)):
        raise InputError(f"compressed format {name[:40]!r} is not supported; {_TAKEN}")
    size = _png_size(head) if head.startswith(_PNG) else _jpeg_size(data)
    if size is None:
        raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged: it does not say its size")
    _check_size(*size)
    try:
        # IMREAD_COLOR alone would turn the picture as its EXIF note says; the camera's calibration is for it as it is.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FormatError(f"the {name[:40]!r} picture cannot be decoded ({error.err})") from None
    # OpenCV paints the missing part of a JPEG that is cut off grey, without a word.
    if image is None or (head.startswith(_JPEG) and b"\xff\xd9" not in data[-1024:].tobytes()):
        raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged or cut off")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


_TAKEN: Final = f"supported: raw {', '.join(ENCODINGS)}, and JPEG or PNG of 8 bits in CompressedImage"


def _why_not(encoding: str) -> str:
    if encoding.startswith("bayer"):
        return "a raw sensor pattern: debayer it first, as image_proc does"
    if encoding.startswith(("16", "32", "64", "mono16")):
        return "more than 8 bits per channel, as depth and infrared images have"
    if encoding.startswith(("yuv", "uyvy", "yuyv", "nv")):
        return "chroma of another layout: convert it to rgb8 first"
    return "its channels are of no stated colour"


def _check_size(width: int, height: int) -> None:
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise InputError(f"image is {width}x{height} pixels; width and height must be from {MIN_SIDE} to {MAX_SIDE}")


def _png_size(head: bytes) -> tuple[int, int] | None:
    """Width and height that a PNG states; looked at before it is decoded, which takes as much memory as it states.

    Raises:
        InputError: It has 16 bits per channel.
    """
    if len(head) < 26 or head[12:16] != b"IHDR":
        return None
    if head[24] > 8:
        raise InputError(f"PNG with {head[24]} bits per channel is not supported (depth?); {_TAKEN}")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _jpeg_size(data: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Width and height that a JPEG states in its frame header."""
    at = 2
    while at + 9 <= data.size and data[at] == 0xFF:
        marker = int(data[at + 1])
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int(data[place]) << 8 | int(data[place + 1]) for place in (at + 5, at + 7))
            return width, height
        at += 2 + (int(data[at + 2]) << 8 | int(data[at + 3]))
    return None
