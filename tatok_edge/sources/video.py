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
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.pictures.pyav import RgbConverter, VideoFrame, av, reason
from tatok_edge.sources.decoding import Decoder, Threads
from tatok_edge.sources.source import USUAL_FPS, RisingClock, Source, SourceFrame
from tatok_edge.sources.whole import Extent, extent

STANDARD_INPUT = "standard input"


def open_video(path: Path, limits: Limits = DEFAULT_LIMITS) -> VideoSource:
    """Opens a video file or a named pipe.

    Args:
        path: The file, in a format that FFmpeg decodes.
        limits: Largest picture.

    Raises:
        SourceError: It cannot be read, holds no video, or its first frame cannot be decoded.
    """
    file = _file(path)
    return VideoSource(str(path), *_decoder(file, str(path), limits), file)


def open_span(path: Path, start: float, frames: int, fps: float, *, limits: Limits = DEFAULT_LIMITS) -> SpanSource:
    """Opens a part of a video file.

    Args:
        path: The file.
        start: Time of the first frame in the file, in seconds.
        frames: Number of frames.
        fps: Frames per second.
        limits: Largest picture.

    Raises:
        SourceError: It cannot be read, or its first frame is not there.
    """
    file = _file(path)
    return SpanSource(f"{path} at {start:.3f} s", _decoder(file, str(path), limits)[0], file, start, frames, fps)


def open_standard_input(limits: Limits = DEFAULT_LIMITS) -> VideoSource:
    """Opens the video that comes from standard input: Y4M, or another format that needs no seeking.

    Args:
        limits: Largest picture.

    Raises:
        SourceError: Standard input is closed or empty, or holds no video.
    """
    try:
        file = os.fdopen(os.dup(0), "rb", buffering=0)
    except OSError as error:
        raise SourceError(f"{STANDARD_INPUT}: cannot be read ({error.strerror or error})") from None
    return VideoSource(STANDARD_INPUT, *_decoder(file, STANDARD_INPUT, limits), file)


def _file(path: Path) -> BinaryIO:
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None


def _decoder(file: BinaryIO, name: str, limits: Limits) -> tuple[Decoder, Extent]:
    """The decoder of a file, and its extent; closes the file if it cannot be opened."""
    size = Extent(0)
    seekable = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    try:
        if seekable:
            size = extent(file)
            file.seek(0)
        # By its descriptor: in a name, FFmpeg looks for protocols and patterns, and it guesses formats from endings.
        # Frame threads hold frames back, and lose those behind a damaged one at the end.
        threads: Threads = "AUTO" if seekable and not size.cut_off else "SLICE"
        decoder = Decoder("fd:", name, options={"fd": str(file.fileno())}, threads=threads, limits=limits)
    except av.FFmpegError as error:
        file.close()
        raise SourceError(f"{name}: {_refusal(size, seekable, reason(error))}") from None
    except BaseException:
        file.close()
        raise
    return decoder, size


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
            raise SourceError(f"{name}: no frame of its {decoder.codec} video can be decoded ({why}){decoder.hint}")
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


class SpanSource(Source):
    """A part of a video: one frame every ``1 / fps`` seconds, each the one that lies at most half of that away.

    Args:
        name: Its name in messages.
        decoder: Decodes the file; closed with the source.
        file: The open file, closed with the source.
        start: Time of the first frame in the file, in seconds.
        frames: Number of frames.
        fps: Frames per second.

    Raises:
        SourceError: The first frame is not there; decoder and file are closed. Iterating raises it where a later frame
            is not there.
    """

    def __init__(self, name: str, decoder: Decoder, file: BinaryIO, start: float, frames: int, fps: float) -> None:
        self._decoder = decoder
        self._file = file
        self._rgb = RgbConverter()
        self._pictures = self._taken(name, start, frames, fps)
        try:
            decoder.seek(max(start - 0.5 / fps, 0))
            self._first = next(self._pictures)
        except BaseException:
            self.close()
            raise
        super().__init__(name, self._first, fps=fps, frames=frames)

    def _read(self) -> Iterator[SourceFrame]:
        index = 0
        picture: Image | None = self._first
        while picture is not None:
            assert self.fps is not None
            yield SourceFrame(picture, index, round(1e6 * index / self.fps))
            index += 1
            picture = next(self._pictures, None)

    def _taken(self, name: str, start: float, frames: int, fps: float) -> Iterator[Image]:
        due = 0
        while due < frames:
            decoded = self._decoder.step()
            if decoded is None:
                why = self._decoder.first_error or self._decoder.broken or "the file ends"
                raise SourceError(f"{name}: frame {due} of {frames} is missing ({why})")
            for frame in decoded:
                ticks, base = self._decoder.ticks(frame), self._decoder.time_base
                if ticks is None or base is None:
                    raise SourceError(f"{name}: a frame has no time")
                number = round((float(ticks * base) - start) * fps)
                if number < due or due == frames:
                    continue
                if number > due:
                    raise SourceError(f"{name}: frame {due} of {frames} is missing, at {start + due / fps:.3f} s")
                try:
                    picture = self._rgb(frame)
                except (av.FFmpegError, ValueError) as error:
                    raise SourceError(f"{name}: {frame.format.name} cannot be converted to RGB ({error})") from None
                due += 1
                yield picture

    def close(self) -> None:
        """Ends the iteration and closes the file."""
        self.stop()
        self._decoder.close()
        self._file.close()
