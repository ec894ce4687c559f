"""PyAV, which reads and writes videos, and its frames as RGB pictures.

It is imported where a video is read or written, so a machine without it can do everything else.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import SourceError
from tatok_edge.geometry import Image

try:
    import av
    from av.container import OutputContainer
    from av.filter import Graph
    from av.stream import Disposition
    from av.video.codeccontext import VideoCodecContext
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame
    from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
    from av.video.stream import VideoStream
except ImportError as missing:
    raise SourceError(
        f"PyAV, which reads and writes videos, cannot be loaded ({missing}): pip install 'av<19'"
    ) from None

__all__ = [
    "ColorRange",
    "Colorspace",
    "Disposition",
    "Graph",
    "OutputContainer",
    "RgbConverter",
    "VideoCodecContext",
    "VideoFormat",
    "VideoFrame",
    "VideoReformatter",
    "VideoStream",
    "av",
    "reason",
    "turned",
]

# By itself, PyAV from 17 on converts with all cores, which costs more time than it saves: decoding has them already.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.partition(".")[0]) >= 17 else {}
_FIXED_POINT = 1 << 15
"""Half of 1 in the 16.16 numbers of a display matrix."""


class RgbConverter:
    """Turns decoded frames into RGB pictures, with the colour matrix and range that they state.

    BT.601 is assumed where none is stated, as FFmpeg does. More than 8 bits become 8, alpha is dropped, grey becomes
    RGB, and a picture is turned and mirrored as its display matrix says. Used by one thread at a time.
    """

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        # A picture that is freed at the top of the heap goes back to the system, and the next one is paid for again.
        self._latest: deque[VideoFrame] = deque(maxlen=3)

    def __call__(self, frame: VideoFrame) -> Image:
        """The picture of a frame, uint8 RGB (height, width, 3)."""
        # PyAV before 17 takes all video for BT.601 if it is not told otherwise.
        converted = self._reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=frame.colorspace,
            dst_colorspace=Colorspace.ITU601,
            src_color_range=frame.color_range,
            dst_color_range=ColorRange.JPEG,
            **_ONE_THREAD,
        )
        self._latest.append(converted)
        picture = np.ascontiguousarray(converted.to_ndarray(), np.uint8)  # its rows may have padding between them
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        return picture if matrix is None else turned(picture, np.frombuffer(bytes(matrix), np.int32))


def reason(error: av.FFmpegError) -> str:
    """The cause of an error of FFmpeg, in words."""
    return str(error.strerror or error)


def turned(picture: Image, matrix: NDArray[np.int32]) -> Image:
    """A picture as its display matrix shows it: quarter turns and mirrors; other angles are left out."""
    across, down = int(matrix[0]), int(matrix[4])
    if max(abs(across), abs(down)) < _FIXED_POINT:
        picture = picture.transpose(1, 0, 2)
        across, down = int(matrix[3]), int(matrix[1])
    return np.ascontiguousarray(picture[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1])
