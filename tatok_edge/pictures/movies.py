"""Writes videos (H.264 in MP4 or Matroska) and animations (GIF, WebP) with PyAV.

Frames keep the times that they come with, so a variable rate stays variable. H.264 is written as yuv420p, and an MP4
has its index in front, which is what browsers and players want.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.files import new_part
from tatok_edge.geometry import Image
from tatok_edge.pictures.output import Output
from tatok_edge.pictures.pyav import (
    ColorRange,
    Colorspace,
    Graph,
    OutputContainer,
    VideoFormat,
    VideoFrame,
    VideoReformatter,
    VideoStream,
    av,
    reason,
)

FORMATS = {".gif": "gif", ".mkv": "matroska", ".mp4": "mp4", ".webp": "webp"}
"""FFmpeg's names of the formats, by the endings of files."""
LONGEST_GAP = 3600.0
"""Longest time between two frames in seconds; a longer one, as after a wrong clock was set, becomes as short."""

ENCODERS = ("libx264", "mpeg4")
"""Encoders of videos, best first. MPEG-4 Part 2 is in every FFmpeg; browsers do not play it."""
_OPTIONS = {
    "libx264": {"crf": "17", "preset": "veryfast", "bf": "0"},
    "mpeg4": {"flags": "+qscale", "global_quality": "354"},
    "libwebp_anim": {"quality": "90"},
    "gif": {},
}
_MUXING = {"mp4": {"movflags": "+faststart"}, "gif": {"loop": "0"}, "webp": {"loop": "0"}}
_BT709 = 1
"""Number of BT.709 in the fields for primaries, transfer and matrix."""


class FrameTimes:
    """The times of frames, strictly rising, in ticks from the first one.

    Args:
        fps: Frame rate of frames without times of their own.
        ticks: Ticks per second.
    """

    def __init__(self, fps: float, ticks: int) -> None:
        self._ticks = ticks
        self._step = ticks / fps
        self._origin: int | None = None
        self._count = 0
        self._last = -1

    def __call__(self, timestamp_us: int | None) -> int:
        """The time of the next frame, which states ``timestamp_us``; None takes the frame rate."""
        if timestamp_us is None:
            time = round(self._count * self._step)
        else:
            time = round(timestamp_us * self._ticks / 1e6)
            if self._origin is None:
                self._origin = time
            time -= self._origin
            longest = self._last + round(LONGEST_GAP * self._ticks)
            if self._count and time > longest:
                self._origin += time - longest
                time = longest
        self._count += 1
        self._last = max(time, self._last + 1)
        return self._last


class _Movie(Output):
    """A file of frames with times, which all have one size."""

    ticks = 90_000
    """Ticks of the time stamps per second. At 90,000, the usual frame rates are whole numbers of ticks."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(path)
        self._fps = fps
        self._times = FrameTimes(fps, self.ticks)
        self._part: Path | None = None
        self._container: OutputContainer | None = None
        self._shape: tuple[int, ...] = ()

    def _write(self, image: Image, number: int, timestamp_us: int | None) -> None:
        check_size(self.path, image, number, self._shape)
        try:
            if self._container is None:
                self._shape = image.shape
                kind = FORMATS[self.path.suffix.lower()]
                self._part = new_part(self.path)
                # With the protocol before it, no name is taken for a protocol.
                name = f"file:{self._part}"
                self._container = av.open(name, "w", format=kind, options=_MUXING.get(kind, {}))
                self._stream = self._add_stream(self._container, image)
            self._put(image, self._times(timestamp_us))
        except av.FFmpegError as error:
            raise self._failure(error) from None

    @abstractmethod
    def _add_stream(self, container: OutputContainer, image: Image) -> VideoStream: ...

    @abstractmethod
    def _put(self, image: Image, time: int) -> None:
        """Encodes a picture that is shown from ``time``, in ticks."""

    def _new_stream(self, container: OutputContainer, encoder: str, pixels: str, shape: tuple[int, ...]) -> VideoStream:
        rate = Fraction(self._fps).limit_denominator(1001)
        stream = container.add_stream(encoder, rate=rate, options=dict(_OPTIONS[encoder]))
        assert isinstance(stream, VideoStream)
        stream.height, stream.width, stream.pix_fmt = shape[0], shape[1], pixels
        stream.codec_context.time_base = Fraction(1, self.ticks)
        return stream

    def _encode(self, frame: VideoFrame | None, time: int = 0) -> None:
        """Encodes and writes a frame; None writes what the encoder holds."""
        assert self._container is not None
        if frame is not None:
            frame.pts, frame.time_base = time, Fraction(1, self.ticks)
        for packet in self._stream.encode(frame):
            if not packet.duration:  # how long the last frame is shown
                packet.duration = max(round(self.ticks / self._fps), 1)
            self._container.mux(packet)

    def _failure(self, error: av.FFmpegError) -> OSError:
        return OSError(f"{self.path}: the video could not be written ({reason(error)})")

    def _complete(self) -> Path:
        assert self._container is not None and self._part is not None
        try:
            self._encode(None)
            self._container.close()
        except av.FFmpegError as error:
            raise self._failure(error) from None
        return self._part

    def _remove(self) -> None:
        if self._container is not None:
            with suppress(av.FFmpegError):  # why it failed was reported before
                self._container.close()
        if self._part is not None:
            self._part.unlink(missing_ok=True)


class VideoOutput(_Movie):
    """An MP4 or Matroska video. The codec takes even sizes only: an odd one grows by a repeated row or column."""

    def _add_stream(self, container: OutputContainer, image: Image) -> VideoStream:
        encoder = next(name for name in ENCODERS if name in av.codecs_available)
        if encoder == "mpeg4":
            self.ticks = 30_000  # the most that it takes, of those at which the usual rates are whole numbers
            self._times = FrameTimes(self._fps, self.ticks)
        height, width = image.shape[:2]
        stream = self._new_stream(container, encoder, "yuv420p", (height + height % 2, width + width % 2))
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG.value
        self._reformatter = VideoReformatter()
        return stream

    def _put(self, image: Image, time: int) -> None:
        height, width = image.shape[:2]
        even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        frame = self._reformatter.reformat(
            VideoFrame.from_ndarray(np.ascontiguousarray(even, np.uint8), format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
        )
        self._encode(frame, time)


class WebpOutput(_Movie):
    """A WebP animation."""

    ticks = 1000

    def _add_stream(self, container: OutputContainer, image: Image) -> VideoStream:
        self._reformatter = VideoReformatter()
        return self._new_stream(container, "libwebp_anim", "bgra", image.shape)

    def _put(self, image: Image, time: int) -> None:
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        self._encode(self._reformatter.reformat(frame, format="bgra"), time)


class GifOutput(_Movie):
    """A GIF animation; each frame has its own 256 colours."""

    ticks = 100

    def _add_stream(self, container: OutputContainer, image: Image) -> VideoStream:
        height, width = image.shape[:2]
        self._graph = Graph()
        pixels = VideoFormat("rgb24", width, height)
        source = self._graph.add_buffer(width=width, height=height, format=pixels, time_base=Fraction(1, self.ticks))
        split = self._graph.add("split")
        palette = self._graph.add("palettegen", "stats_mode=single")
        use = self._graph.add("paletteuse", "new=1")
        source.link_to(split)
        split.link_to(palette, 0, 0)
        split.link_to(use, 1, 0)
        palette.link_to(use, 0, 1)
        use.link_to(self._graph.add("buffersink"))
        self._graph.configure()
        return self._new_stream(container, "gif", "pal8", image.shape)

    def _put(self, image: Image, time: int) -> None:
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.pts, frame.time_base = time, Fraction(1, self.ticks)
        self._graph.push(frame)
        self._pull()

    def _pull(self) -> None:
        while True:
            try:
                frame = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            assert isinstance(frame, VideoFrame) and frame.pts is not None
            self._encode(frame, frame.pts)

    def _complete(self) -> Path:
        try:
            self._graph.push(None)
            self._pull()
        except av.FFmpegError as error:
            raise self._failure(error) from None
        return super()._complete()


def check_size(path: Path | str, image: Image, number: int, shape: tuple[int, ...]) -> None:
    """Checks that a frame has the size of those before it; ``shape`` is that of the first, or empty.

    Raises:
        InputError: It has another size.
    """
    if shape and image.shape != shape:
        raise InputError(
            f"{path}: frame {number} is {image.shape[1]}x{image.shape[0]} but the video is "
            f"{shape[1]}x{shape[0]}; decode frames of several sizes into a folder"
        )
