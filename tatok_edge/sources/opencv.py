"""Pictures from OpenCV's captures, which read cameras."""

from __future__ import annotations

import cv2
import numpy as np

from tatok_edge.geometry import Image
from tatok_edge.sources.source import MAX_FPS


def next_image(capture: cv2.VideoCapture) -> Image | None:
    """The next BGR picture of a capture; None at its end, or if it is not open."""
    more, image = capture.read()
    return np.asarray(image, np.uint8) if more else None


def rgb(image: cv2.typing.MatLike) -> Image:
    """Converts OpenCV's BGR to RGB, in a new array."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def plausible_fps(capture: cv2.VideoCapture) -> float | None:
    """The frame rate of a capture; None where it is out of range, as some cameras and streams state it."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0.01 <= fps <= MAX_FPS else None
