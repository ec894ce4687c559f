"""A camera that OpenCV reads, as the connection of a live source."""

from __future__ import annotations

import time
from functools import partial

import cv2

from tatok_edge.sources import live
from tatok_edge.sources.opencv import next_image, plausible_fps, rgb

BAD_READS = 3
"""Number of reads in a row without a picture after which a camera counts as lost."""


class CaptureConnection:
    """An open capture of OpenCV.

    Args:
        capture: The capture; closed with the connection.
    """

    def __init__(self, capture: cv2.VideoCapture) -> None:
        self._capture = capture
        self.fps = plausible_fps(capture)

    def read(self) -> live.Pending | None:
        """The next picture; see :meth:`tatok_edge.sources.live.Connection.read`."""
        start = time.monotonic()
        for _ in range(BAD_READS):
            if (image := next_image(self._capture)) is not None:
                return live.Pending(partial(rgb, image))
            if (waited := time.monotonic() - start) > live.READ_TIMEOUT / 2:
                raise live.Lost(f"was silent for {waited:.0f} s")
        raise live.Lost("stopped sending")

    def close(self) -> None:
        """Releases the capture."""
        self._capture.release()
