"""Video files and pipes, decoded by FFmpeg through PyAV.

What is in a file decides how it is read, not its name. Frames have the times that the file states for them, counted
from the first one. A packet that cannot be decoded is left out and counted; the rest of the file is delivered. A video
that changes its size continues in its new size, with a frame whose ``restarted`` is set.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tatok_edge.errors import SourceError
from tatok_edge.geometry import Image
from tatok_edge.pictures.pyav import RgbConverter, VideoFrame, av, reason
from tatok_edge.sources.decoding import Decoder, Threads
from tatok_edge.sources.source import USUAL_FPS, RisingClock, Source, SourceFrame
from tatok_edge.sources.whole import Extent, extent

STANDARD_INPUT = "standard input"


def open_video(path: Path) -> VideoSource:
    """Opens a video file or a named pipe.

    Args:
        path: The file, in a format that FFmpeg decodes.

    Raises:
        SourceError: It cannot be read, holds no video, or its first frame cannot be decoded.
    """
    try:
        file = open(path, "rb", buffering=0)  # noqa: SIM115  (closed by the source)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    return _open(file, str(path))


def open_standard_input() -> VideoSource:
    """Opens the video that comes from standard input: Y4M, or another format that needs no seeking.

    Raises:
        SourceError: Standard input is closed or empty, or holds no video.
    """
    try:
        file = os.fdopen(os.dup(0), "rb", buffering=0)
    except OSError as error:
        raise SourceError(f"{STANDARD_INPUT}: cannot be read ({error.strerror or error})") from None
    return _open(file, STANDARD_INPUT)


def _open(file: BinaryIO, name: str) -> VideoSource:
    size = Extent(0)
    seekable = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    try:
        if seekable:
            size = extent(file)
            file.seek(0)
        # By its descriptor: in a name, FFmpeg looks for protocols and patterns, and it guesses formats from endings.
        # Frame threads hold frames back, and lose those behind a damaged one at the end.
        threads: Threads = "AUTO" if seekable and not size.cut_off else "SLICE"
        decoder = Decoder("fd:", name, options={"fd": str(file.fileno())}, threads=threads)
    except av.FFmpegError as error:
        file.close()
        raise SourceError(f"{name}: {_refusal(size, seekable, reason(error))}") from None
    except BaseException:
        file.close()
        raise
    return VideoSource(name, decoder, size, file)


def _refusal(size: Extent, seekable: bool, why: str) -> str:
    """Why a file does not open."""
    if seekable and not size.size:
        return "is empty"
    if not size.index:
        return "is cut off: the index (moov) of this MP4 is missing, so nothing can be read; its recorder was killed?"
    pipe = "" if seekable else "; through a pipe, send Y4M, Matroska or MPEG-TS"
    return f"not a video or picture that FFmpeg can read, or it is damaged ({why}){pipe}"


class VideoSource(Source):
    """A video.

    Args:
        name: Its name in messages and files.
        decoder: Decodes it; closed with the source.
        size: Extent of the file.
        file: The open file, closed with the source.

    Raises:
        SourceError: Its first frame cannot be decoded; decoder and file are closed.
    """

    def __init__(self, name: str, decoder: Decoder, size: Extent, file: BinaryIO | None = None) -> None:
        self._decoder = decoder
        self._size = size
        self._file = file
        self._rgb = RgbConverter()
        self._origin: int | None = None
        self._last_us: int | None = None
        self._pictures = self._decoded(round(1e6 / (decoder.fps or USUAL_FPS)))
        first = next(self._pictures, None)
        if first is None:
            self.close()
            why = decoder.first_error or decoder.broken or "it ends before the first one"
            raise SourceError(f"{name}: no frame of its {decoder.codec} video can be decoded ({why})")
        self._first = first
        count = 0 if size.fragmented else decoder.indexed_frames()
        super().__init__(name, first[0], fps=decoder.fps, frames=count or None)

    def _read(self) -> Iterator[SourceFrame]:
        clock = RisingClock(self.fps)
        index = 0
        picture: tuple[Image, int] | None = self._first
        while picture is not None:
            yield SourceFrame(picture[0], index, clock(picture[1]))
            index += 1
            picture = next(self._pictures, None)
        self.problem = self._problem(index)

    def _decoded(self, frame_us: int) -> Iterator[tuple[Image, int]]:
        """Pictures with their times in microseconds from the first one; ``frame_us`` later where none is stated."""
        while (frames := self._decoder.step()) is not None:
            for frame in frames:
                try:
                    image = self._rgb(frame)
                except (av.FFmpegError, ValueError) as error:
                    self._decoder.bad(f"{frame.format.name} cannot be converted to RGB: {error}")
                    continue
                yield image, self._stamp_us(frame, frame_us)

    def _stamp_us(self, frame: VideoFrame, frame_us: int) -> int:
        expected = 0 if self._last_us is None else self._last_us + frame_us
        ticks = self._decoder.ticks(frame)
        base = self._decoder.time_base
        if ticks is None or base is None:
            self._last_us = expected
            return expected
        if self._origin is None:
            self._origin = ticks - round(expected / (1_000_000 * base))
        self._last_us = round((ticks - self._origin) * 1_000_000 * base)
        return self._last_us

    def _problem(self, index: int) -> str | None:
        """What is missing after ``index`` frames, in one line."""
        decoder, size = self._decoder, self._size
        if size.cut_off or decoder.broken:
            count = f" of {self.frames}" if self.frames else ""
            why = decoder.broken or f"{size.size} of {size.stated} bytes are there"
            return f"{self.name} breaks off after {index}{count} frames: {why}"
        if decoder.bad_packets:
            return f"{self.name}: {decoder.bad_packets} packets cannot be decoded; the first: {decoder.first_error}"
        if decoder.repaired:
            return f"{self.name}: {decoder.repaired} of {index} frames are damaged; what they lack was filled in"
        return None

    def close(self) -> None:
        """Ends the iteration and closes the file."""
        self.stop()
        self._decoder.close()
        if self._file is not None:
            self._file.close()
