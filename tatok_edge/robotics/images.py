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
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.pictures.jpeg import START, jpeg_end, jpeg_size
from tatok_edge.robotics.pixels import SUPPORTED, pixel_format, to_rgb

IMAGE_TYPE: Final = "sensor_msgs/msg/Image"
COMPRESSED_TYPE: Final = "sensor_msgs/msg/CompressedImage"
IMAGE_TYPES: Final = (IMAGE_TYPE, COMPRESSED_TYPE)
"""Message types of camera topics."""
DECODED_ENCODINGS: Final = {"rgb8": 3, "bgr8": 3, "mono8": 1}
"""Pixel encodings of decoded pictures, without alpha."""
_PNG = b"\x89PNG\r\n\x1a\n"
_DEEP = ("mono16", "rgb16", "bgr16")
"""What the ``format`` of a PNG with 16 bits begins with, where it is a picture and not depth."""


def ros_array(data: Any) -> array.array[int]:
    """Bytes in the type that ``rclpy`` accepts for ``uint8[]`` without a check of each byte."""
    values = array.array("B")
    values.frombytes(memoryview(data))
    return values


def stamp_us(message: Any) -> int | None:
    """The time stamp in the header of a message, in microseconds; None where the driver set none (0)."""
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000 + int(stamp.nanosec) // 1000 or None


def image_from_message(message: Any, *, limits: Limits = DEFAULT_LIMITS) -> Image:
    """The picture of a camera message.

    Args:
        message: A ``sensor_msgs/msg/Image`` in an encoding of :mod:`tatok_edge.robotics.pixels`, with any ``step``, or
            a ``sensor_msgs/msg/CompressedImage`` with a JPEG or PNG. Of 16 bits, the upper 8 are taken.
        limits: Largest picture.

    Returns:
        uint8 ``(H, W, 3)`` RGB. For RGB, BGR and grey of 8 bits a view of the message, with its strides and without a
        copy; OpenCV needs ``np.ascontiguousarray`` of it.

    Raises:
        InputError: The encoding or size is not supported.
        FormatError: The message is damaged: its fields contradict each other, or the JPEG or PNG cannot be decoded.
    """
    return _from_raw(message, limits) if hasattr(message, "encoding") else _from_compressed(message, limits)


def token_encoding(message: Any) -> str:
    """The encoding of the decoded picture of a camera message, one of :data:`DECODED_ENCODINGS`."""
    return pixel_format(str(getattr(message, "encoding", "rgb8"))).decoded


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


def _from_raw(message: Any, limits: Limits) -> Image:
    """The picture of an ``Image`` message."""
    form = pixel_format(str(message.encoding))
    width, height, step = int(message.width), int(message.height), int(message.step)
    _check_size(width, height, limits)
    data = np.frombuffer(memoryview(message.data), np.uint8)
    rows, row = form.rows(height), width * form.bytes_per_pixel
    needed = step * (rows - 1) + row
    if step < row or data.size < needed:
        raise FormatError(
            f"image of {width}x{height} pixels in {message.encoding} with {step} bytes per row does not fit: a row "
            f"needs {row} bytes, the picture {needed}, and {data.size} came"
        )
    size = form.bytes_per_pixel // form.channels
    kind = np.dtype("u1" if size == 1 else (">u2" if message.is_bigendian else "<u2"))
    strides = (step, form.bytes_per_pixel, size)
    values = np.ndarray((rows, width, form.channels), kind, data, strides=strides)
    return to_rgb(values, form, height)


def _from_compressed(message: Any, limits: Limits) -> Image:
    """The picture of a ``CompressedImage`` message, decoded."""
    name = str(message.format)
    data = np.frombuffer(memoryview(message.data), np.uint8)
    head = data[:32].tobytes()
    if name.startswith("tatok"):
        raise InputError("the message holds tokens already; decode it")
    if "compressedDepth" in name or not head.startswith((_PNG, START)):
        raise InputError(f"compressed format {name[:40]!r} is not supported; {SUPPORTED}")
    size: tuple[int, int] | None
    if head.startswith(_PNG):
        size = _png_size(head, deep=name.startswith(_DEEP))
    else:
        content = data.tobytes()
        size, end = jpeg_size(content), jpeg_end(content)
        # OpenCV silently paints the missing part of a JPEG that is cut off grey.
        if end is None:
            raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged or cut off")
        data = data[:end]
    if size is None:
        raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged: it does not say its size")
    _check_size(*size, limits)
    try:
        # IMREAD_COLOR alone obeys the EXIF orientation; the calibration of a camera is for the unturned picture.
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FormatError(f"the {name[:40]!r} picture cannot be decoded ({error.err})") from None
    if image is None:
        raise FormatError(f"the {name[:40]!r} picture of {data.size} bytes is damaged or cut off")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def _check_size(width: int, height: int, limits: Limits) -> None:
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise InputError(f"image is {width}x{height} pixels; width and height must be from {MIN_SIDE} to {MAX_SIDE}")
    limits.check_pixels(width, height, "image", InputError)


def _png_size(head: bytes, *, deep: bool) -> tuple[int, int] | None:
    """Width and height that a PNG states. They are checked before decoding, which allocates that much memory.

    Args:
        head: Its first bytes.
        deep: Whether 16 bits per channel are a picture; else they are depth.

    Raises:
        InputError: It has 16 bits per channel.
    """
    if len(head) < 26 or head[12:16] != b"IHDR":
        return None
    if head[24] > 8 and not deep:
        raise InputError(f"PNG with {head[24]} bits per channel is not supported (depth?); {SUPPORTED}")
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
