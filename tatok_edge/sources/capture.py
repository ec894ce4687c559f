"""A camera or stream that OpenCV reads, as the connection of a live source."""

from __future__ import annotations

import time

import cv2
import numpy as np

from tatok_edge.geometry import Image
from tatok_edge.sources import live
from tatok_edge.sources.opencv import next_image, plausible_fps

BAD_READS = 3
"""Number of reads in a row without a picture after which a camera counts as lost."""


class CaptureConnection:
    """An open capture of OpenCV.

    Args:
        capture: The capture; closed with the connection.
        may_freeze: A capture that repeats one picture for :data:`tatok_edge.sources.live.READ_TIMEOUT` counts as lost.
    """

    bgr = True

    def __init__(self, capture: cv2.VideoCapture, *, may_freeze: bool = False) -> None:
        self._capture = capture
        self._may_freeze = may_freeze
        self._last: Image | None = None
        self._changed = 0.0
        self.fps = plausible_fps(capture)

    def read(self) -> Image | None:
        """The next picture; see :meth:`tatok_edge.sources.live.Connection.read`."""
        start = time.monotonic()
        for _ in range(BAD_READS):
            if (image := next_image(self._capture)) is not None:
                if self._may_freeze:
                    self._check_change(image)
                return image
            if (waited := time.monotonic() - start) > live.READ_TIMEOUT / 2:
                raise live.Lost(f"was silent for {waited:.0f} s")
        raise live.Lost("stopped sending")

    def _check_change(self, image: Image) -> None:
        now = time.monotonic()
        if self._last is None or not np.array_equal(image, self._last):
            self._last, self._changed = image, now
        elif now - self._changed > live.READ_TIMEOUT:
            raise live.Lost(f"repeated one picture for {live.READ_TIMEOUT:g} s")

    def close(self) -> None:
        """Releases the capture."""
        self._capture.release()
