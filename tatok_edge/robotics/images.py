"""ROS 2 image messages to pictures and back, with any objects that have the fields of the messages.

Works on the messages of ``rclpy`` and on those that ``rosbags`` reads from a bag. Imports neither.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image

IMAGE_TYPE: Final = "sensor_msgs/msg/Image"
COMPRESSED_TYPE: Final = "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES: Final = (IMAGE_TYPE, COMPRESSED_TYPE)
"""Message types of camera topics."""
ENCODINGS: Final = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""Supported pixel encodings of ``sensor_msgs/msg/Image``, with their bytes per pixel."""
DECODED_ENCODINGS: Final = {"rgb8": 3, "bgr8": 3, "mono8": 1}
"""Pixel encodings of decoded pictures, without alpha."""
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_SUPPORTED: Final = f"supported: raw {', '.join(ENCODINGS)}, and JPEG or PNG of 8 bits in CompressedImage"


def ros_array(data: Any) -> array.array[int]:
    """Bytes in the type that ``rclpy`` accepts for ``uint8[]`` without a check of each byte."""
    values = array.array("B")
    values.frombytes(memoryview(data))
    return values


def image_from_message(message: Any) -> Image:
    """The picture of a camera message.

    Args:
        message: A ``sensor_msgs/msg/Image`` in one of :data:`ENCODINGS`, with any ``step``, or a
            ``sensor_msgs/msg/CompressedImage`` with a JPEG or PNG. ``is_bigendian`` has no meaning for single bytes.

    Returns:
        uint8 ``(H, W, 3)`` RGB. For raw images a view of the message, with its strides and without a copy; OpenCV needs
        ``np.ascontiguousarray`` of it.

    Raises:
        InputError: The encoding or size is not supported.
        FormatError: The message is damaged: its fields contradict each other, or the JPEG or PNG cannot be decoded.
    """
    return _from_raw(message) if hasattr(message, "encoding") else _from_compressed(message)


def token_encoding(message: Any) -> str:
    """The encoding of the decoded picture of a camera message, one of :data:`DECODED_ENCODINGS`."""
    encoding = str(getattr(message, "encoding", "rgb8"))
    return {"rgba8": "rgb8", "bgra8": "bgr8"}.get(encoding, encoding)


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
        buffer: Converts a flat array to the type of the field ``data``.

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


def _from_raw(message: Any) -> Image:
    """The picture of an ``Image`` message, as a view."""
    encoding = str(message.encoding)
    if encoding not in ENCODINGS:
        raise InputError(f"encoding {encoding[:40]!r} is not supported ({_why_not(encoding)}); {_SUPPORTED}")
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
    """The picture of a ``CompressedImage`` message, decoded."""
    name = str(message.format)
    data = np.frombuffer(memoryview(message.data), np.uint8)
    head = data[:32].tobytes()
    if name.startswith("tatok"):
        raise InputError("the message holds tokens already; decode it")
    if "compressedDepth" in name or not head.startswith((_PNG, _JPEG)):
        raise InputError(f"compressed format {name[:40]!r} is not supported; {_SUPPORTED}")
    size = _png_size(head) if head.startswith(_PNG) else _jpeg_size(data)
    if size is None:
        raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged: it does not say its size")
    _check_size(*size)
    try:
        # IMREAD_COLOR alone obeys the EXIF orientation; the calibration of a camera is for the unturned picture.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FormatError(f"the {name[:40]!r} picture cannot be decoded ({error.err})") from None
    # OpenCV silently paints the missing part of a JPEG that is cut off grey.
    if image is None or (head.startswith(_JPEG) and b"\xff\xd9" not in data[-1024:].tobytes()):
        raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged or cut off")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def _why_not(encoding: str) -> str:
    """Why an encoding is not supported, and what to do."""
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
    """Width and height that a PNG states. They are checked before decoding, which allocates that much memory.

    Raises:
        InputError: It has 16 bits per channel.
    """
    if len(head) < 26 or head[12:16] != b"IHDR":
        return None
    if head[24] > 8:
        raise InputError(f"PNG with {head[24]} bits per channel is not supported (depth?); {_SUPPORTED}")
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
