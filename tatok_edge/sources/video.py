"""Video files, decoded by OpenCV.

A frame that OpenCV cannot decode is left out or repaired, and the rest of the file is delivered. OpenCV scales a video
that changes its size to its first size (before 4.13 it freezes).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tatok_edge.errors import SourceError
from tatok_edge.geometry import Image
from tatok_edge.sources.opencv import next_image, plausible_fps, rgb
from tatok_edge.sources.source import RisingClock, Source, SourceFrame

LENGTH_TOLERANCE = 0.02
"""Share of its stated length by which a video may be short (at least two frames): many containers estimate it."""


class VideoSource(Source):
    """A video file.

    Args:
        path: The file, in a format that OpenCV decodes.

    Raises:
        SourceError: Its first frame cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        first = next_image(self._capture)
        if first is None:
            self._capture.release()
            raise SourceError(
                f"{path}: not a video or picture that OpenCV can read, or it is damaged; "
                "'tatok doctor' shows what this OpenCV can do"
            )
        self._first = first
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(str(path), first, fps=plausible_fps(self._capture), frames=count if count > 0 else None)

    def _read(self) -> Iterator[SourceFrame]:
        clock = RisingClock(self.fps)
        image: Image | None = self._first
        index = 0
        while image is not None:
            yield SourceFrame(rgb(image), index, clock(self._stamp_us()))
            image = next_image(self._capture)
            index += 1
        if self.frames is not None and self.frames - index > max(2, LENGTH_TOLERANCE * self.frames):
            self.problem = f"{self.name} breaks off after {index} of {self.frames} frames"

    def _stamp_us(self) -> int:
        """Time stamp of the last frame that was read, in microseconds."""
        milliseconds = float(self._capture.get(cv2.CAP_PROP_POS_MSEC))
        return round(milliseconds * 1000) if np.isfinite(milliseconds) else 0

    def close(self) -> None:
        """Ends the iteration and closes the file."""
        super().close()
        self._capture.release()
