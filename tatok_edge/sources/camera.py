"""USB and built-in cameras, through OpenCV."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import cv2

from tatok_edge.errors import SourceError
from tatok_edge.sources.capture import CaptureConnection
from tatok_edge.sources.live import LiveSource
from tatok_edge.sources.source import Source


def open_camera(device: str, *, drop: bool, retry_seconds: float | None) -> Source:
    """Opens a camera.

    Args:
        device: Its number or path. A path that is a link (``/dev/v4l/by-id/...``) is followed at every attempt.
        drop: See :class:`tatok_edge.sources.live.LiveSource`.
        retry_seconds: See there.

    Raises:
        SourceError: It cannot be opened; the message lists the cameras of this machine.
    """
    name = f"camera {device}" if device.isdecimal() else device

    def connect() -> CaptureConnection:
        number = device if device.isdecimal() else Path(device).resolve().name.removeprefix("video")
        # Checked here, because OpenCV prints a warning at every attempt.
        missing = sys.platform == "linux" and not os.path.exists(f"/dev/video{number}")
        if not missing and number.isdecimal():
            capture = cv2.VideoCapture(int(number), cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
            if capture.isOpened():
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
                return CaptureConnection(capture)
            capture.release()
        listed = ", ".join(f"{path} ({label})" for path, label in find_cameras()) or "none"
        raise SourceError(f"{name} cannot be opened; video devices here: {listed}; without a camera, try 'synthetic'")

    return LiveSource(name, connect, drop=drop, retry_seconds=retry_seconds)


def find_cameras() -> list[tuple[str, str]]:
    """The video devices that Linux lists, as (path, name); empty on other systems."""
    found = []
    for path in sorted(Path("/dev").glob("video[0-9]*"), key=lambda path: int(path.name.removeprefix("video"))):
        label = Path("/sys/class/video4linux") / path.name / "name"
        try:
            name = label.read_text(errors="replace").strip()
        except OSError:
            name = "unknown"
        found.append((str(path), name))
    return found
