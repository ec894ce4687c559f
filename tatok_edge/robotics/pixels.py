"""Pixel formats of ``sensor_msgs/msg/Image``, as cameras have them, to RGB."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.geometry import Image

Layout = Literal["rgb", "bgr", "grey", "bayer", "yuv422", "yuv420"]

BAYER: Final = {
    "rggb": cv2.COLOR_BayerBG2RGB,
    "bggr": cv2.COLOR_BayerRG2RGB,
    "gbrg": cv2.COLOR_BayerGR2RGB,
    "grbg": cv2.COLOR_BayerGB2RGB,
}
"""Conversions by the colours of the first four pixels. OpenCV names them by the pixels from (1, 1) on."""
_YUV422: Final = {
    "yuv422": cv2.COLOR_YUV2RGB_UYVY,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuy2": cv2.COLOR_YUV2RGB_YUY2,
    "yvyu": cv2.COLOR_YUV2RGB_YVYU,
}
_YUV420: Final = {"nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21}
_BAYER_NAME = re.compile(r"bayer_(rggb|bggr|gbrg|grbg)(8|10|12|14|16)")


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """One pixel encoding."""

    layout: Layout
    channels: int
    """Values per pixel in a row; 1 for NV12 and NV21, whose chroma follows the brightness."""
    bits: int = 8
    """Bits of a value that count; more than 8 are in 16 bits, of which the lower are filled."""
    code: int = 0
    """Conversion of OpenCV."""
    decoded: str = "rgb8"
    """Encoding of decoded pictures."""

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes of a pixel in a row."""
        return self.channels * (1 if self.bits == 8 else 2)

    def rows(self, height: int) -> int:
        """Rows of a picture with ``height``, with those of the chroma."""
        return height * 3 // 2 if self.layout == "yuv420" else height


_PLAIN: Final = {
    "rgb8": PixelFormat("rgb", 3),
    "bgr8": PixelFormat("bgr", 3, decoded="bgr8"),
    "rgba8": PixelFormat("rgb", 4),
    "bgra8": PixelFormat("bgr", 4, decoded="bgr8"),
    "mono8": PixelFormat("grey", 1, decoded="mono8"),
    "rgb16": PixelFormat("rgb", 3, 16),
    "bgr16": PixelFormat("bgr", 3, 16, decoded="bgr8"),
    "rgba16": PixelFormat("rgb", 4, 16),
    "bgra16": PixelFormat("bgr", 4, 16, decoded="bgr8"),
    "mono16": PixelFormat("grey", 1, 16, decoded="mono8"),
    # Arrays of OpenCV, whose channels cv_bridge does not name. RViz and Foxglove show them in these colours.
    "8uc1": PixelFormat("grey", 1, decoded="mono8"),
    "8uc3": PixelFormat("bgr", 3, decoded="bgr8"),
    "8uc4": PixelFormat("bgr", 4, decoded="bgr8"),
}
SUPPORTED: Final = (
    f"supported: raw {', '.join([*_PLAIN, *_YUV422, *_YUV420])}, bayer_ with rggb, bggr, gbrg or grbg and 8, 10, 12, "
    "14 or 16 bits, and JPEG or PNG in CompressedImage"
)


def pixel_format(encoding: str) -> PixelFormat:
    """The format that an encoding names, in capital or small letters.

    Raises:
        InputError: It is not supported; the message says why, and what to do.
    """
    name = encoding.lower()
    if name in _PLAIN:
        return _PLAIN[name]
    if name in _YUV422:
        return PixelFormat("yuv422", 2, code=_YUV422[name])
    if name in _YUV420:
        return PixelFormat("yuv420", 1, code=_YUV420[name])
    if bayer := _BAYER_NAME.fullmatch(name):
        return PixelFormat("bayer", 1, int(bayer[2]), BAYER[bayer[1]])
    raise InputError(f"encoding {encoding[:40]!r} is not supported ({_why_not(name)}); {SUPPORTED}")


def to_rgb(values: NDArray[np.uint8] | NDArray[np.uint16], form: PixelFormat, height: int) -> Image:
    """RGB of the values of a picture.

    Args:
        values: ``(rows, width, channels)``, uint8, or uint16 in the byte order of this machine.
        form: Their format.
        height: Height of the picture.

    Returns:
        uint8 ``(height, W, 3)``; a view of ``values`` where no conversion is needed.

    Raises:
        InputError: The size does not fit the format.
    """
    pixels = np.asarray(values if form.bits == 8 else values >> (form.bits - 8), np.uint8)
    if form.layout == "rgb":
        return pixels[:, :, :3]
    if form.layout == "bgr":
        return pixels[:, :, 2::-1]
    width = pixels.shape[1]
    if form.layout == "grey":
        return np.broadcast_to(pixels, (height, width, 3))
    if width % 2 or (form.layout != "yuv422" and height % 2):
        raise InputError(f"image is {width}x{height} pixels; its pixel format needs even numbers of them")
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), form.code), np.uint8)


def depth_to_grey(depth: NDArray[np.uint16] | NDArray[np.float32], near: float, far: float) -> Image:
    """A depth picture as grey, for the tokenizer: the inverse distance, as the eye and a stereo camera see it.

    ``near`` becomes 255, ``far`` becomes 1, what is nearer or farther is limited to these, and 0 means no depth (0, NaN
    or infinity in the input). :func:`grey_to_depth` is the inverse.

    Args:
        depth: ``(H, W)`` in any unit: 16UC1 holds millimetres, 32FC1 metres.
        near: Nearest distance, in the unit of ``depth``.
        far: Farthest distance.

    Returns:
        uint8 ``(H, W, 3)``, all channels alike.

    Raises:
        InputError: Another shape, or distances that do not rise from above 0.
    """
    _check_distances(near, far)
    if depth.ndim != 2:
        raise InputError(f"depth must have shape (H, W), got {depth.shape}")
    distance = np.asarray(depth, np.float64)
    known = np.isfinite(distance) & (distance > 0)
    inverse = 1 / np.clip(np.where(known, distance, far), near, far)
    share = (inverse - 1 / far) / (1 / near - 1 / far)
    grey = np.where(known, np.rint(1 + 254 * share), 0).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def grey_to_depth(image: Image, near: float, far: float) -> NDArray[np.float32]:
    """The depth of a picture of :func:`depth_to_grey`, also after decoding.

    Args:
        image: uint8 ``(H, W, 3)``.
        near: Nearest distance, as in :func:`depth_to_grey`.
        far: Farthest distance.

    Returns:
        float32 ``(H, W)`` in the unit of ``near``; 0 where no depth is known.

    Raises:
        InputError: Distances that do not rise from above 0.
    """
    _check_distances(near, far)
    grey = np.asarray(image, np.float64).mean(axis=2)
    share = np.clip((grey - 1) / 254, 0, 1)
    distance = 1 / (1 / far + share * (1 / near - 1 / far))
    return np.where(grey < 0.5, 0, distance).astype(np.float32)


def _check_distances(near: float, far: float) -> None:
    if not 0 < near < far:
        raise InputError(f"distances must rise: 0 < near < far, got near={near} and far={far}")


def _why_not(encoding: str) -> str:
    """Why an encoding is not supported, and what to do."""
    if encoding in ("16uc1", "32fc1"):
        return (
            "depth: tatok_edge.robotics.pixels.depth_to_grey(depth, near, far) makes a picture of it, "
            "and grey_to_depth the depth again"
        )
    if encoding.startswith("bayer"):
        return "not a pattern of whole bytes: debayer it first, as image_proc does"
    if encoding.startswith(("yuv", "nv", "i420", "yv12")):
        return "chroma of another layout: convert it to rgb8 first"
    if encoding.startswith(("16", "32", "64")):
        return "numbers of no stated meaning: convert them to mono8 or rgb8 first"
    return "its channels are of no stated colour"
