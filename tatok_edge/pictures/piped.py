"""Writes pictures to standard output, for the program behind the pipe: as Y4M, or as RGB bytes."""

from __future__ import annotations

import sys
from abc import abstractmethod
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tatok_edge.geometry import Image
from tatok_edge.pictures.movies import check_size
from tatok_edge.pictures.output import Output
from tatok_edge.pictures.pyav import ColorRange, Colorspace, VideoFrame, VideoReformatter

STANDARD_OUTPUT = "standard output"


class _PipedOutput(Output):
    """Pictures of one size, which go out at once. What is written cannot be taken back.

    Args:
        stream: Where to write; by default standard output.
    """

    def __init__(self, stream: BinaryIO | None = None) -> None:
        super().__init__(Path("-"))
        self._stream = sys.stdout.buffer if stream is None else stream
        self._shape: tuple[int, ...] = ()

    def _write(self, image: Image, number: int, timestamp_us: int | None) -> None:
        check_size(STANDARD_OUTPUT, image, number, self._shape)
        if not self._shape:
            self._shape = image.shape
            self._stream.write(self._header(image))
        self._stream.write(self._frame(image))
        self._stream.flush()

    @abstractmethod
    def _header(self, image: Image) -> bytes: ...

    @abstractmethod
    def _frame(self, image: Image) -> bytes: ...

    def _complete(self) -> None:
        self._stream.flush()

    def _remove(self) -> None:
        """Leaves what was written."""


class RawOutput(_PipedOutput):
    """RGB bytes, row by row, without any header."""

    def _header(self, image: Image) -> bytes:
        return b""

    def _frame(self, image: Image) -> bytes:
        return image.tobytes()


class Y4mOutput(_PipedOutput):
    """YUV4MPEG2 with 4:2:0 (BT.601, limited range) and a constant frame rate; the format has no other.

    Args:
        fps: Frames per second.
        stream: Where to write; by default standard output.
    """

    def __init__(self, fps: float, stream: BinaryIO | None = None) -> None:
        super().__init__(stream)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._reformatter = VideoReformatter()

    def _header(self, image: Image) -> bytes:
        height, width = image.shape[:2]
        rate = f"{self._rate.numerator}:{self._rate.denominator}"
        return f"YUV4MPEG2 W{width} H{height} F{rate} Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n".encode()

    def _frame(self, image: Image) -> bytes:
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        parts = [b"FRAME\n"]
        for plane in frame.planes:
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            parts.append(rows[: plane.height, : plane.width].tobytes())
        return b"".join(parts)
