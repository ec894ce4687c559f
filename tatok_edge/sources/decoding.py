"""Decodes one video stream with PyAV, packet by packet: files, pipes and network streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from tatok_edge.closing import Closing
from tatok_edge.errors import SourceError
from tatok_edge.geometry import MAX_SIDE
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.pictures.pyav import Disposition, VideoFrame, VideoStream, av, reason
from tatok_edge.runtime.cores import usable_cores
from tatok_edge.sources.source import MAX_FPS

Threads = Literal["AUTO", "SLICE", "NONE"]

_MAX_THREADS = 16
"""Threads of a decoder, at most."""
_OPTIONS = {"fflags": "-genpts"}
"""PyAV makes FFmpeg invent missing time stamps, which are wrong where frames are reordered."""


class Decoder(Closing):
    """The best video stream of an input; errors of single packets are counted and do not end it.

    Args:
        url: The input, as FFmpeg names it.
        name: Its name in messages, without passwords.
        options: Options of FFmpeg's demuxer and protocol.
        timeout: Seconds that opening and each read may take; None for no limit.
        threads: ``"AUTO"`` is fastest and holds frames back, ``"SLICE"`` gives each frame at once, and so does
            ``"NONE"``, with one thread.
        limits: Largest picture.

    Raises:
        av.FFmpegError: It cannot be opened.
        SourceError: It holds no video, or one that cannot be decoded; the message says why.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        options: Mapping[str, str],
        timeout: tuple[float, float] | None = None,
        threads: Threads = "AUTO",
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.bad_packets = 0
        """Packets that could not be decoded so far."""
        self.repaired = 0
        """Frames so far that FFmpeg calls damaged; it has filled in what is missing."""
        self.first_error = ""
        """Why the first bad packet could not be decoded."""
        self.broken = ""
        """Why the input could not be read to its end."""
        # Tags in the encoding of an old disk must not keep a video from opening.
        # FFmpeg decodes frames while it opens: the limit counts there, too.
        most = {"max_pixels": str(limits.max_pixels)}
        self._container = av.open(
            url, options=_OPTIONS | most | dict(options), timeout=timeout, metadata_errors="replace"
        )
        try:
            stream = self._container.streams.best("video")
            if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
                cover = "" if stream is None else ", only a cover picture"
                raise SourceError(f"{name}: holds no video{cover}")
            context = stream.codec_context
            if context is None:
                raise SourceError(f"{name}: its video codec is unknown to this PyAV ({av.__version__}); update it")
            if max(context.width, context.height) > MAX_SIDE:
                raise SourceError(
                    f"{name}: is {context.width}x{context.height}; width and height must be at most {MAX_SIDE} pixels"
                )
            limits.check_pixels(context.width, context.height, f"{name}: the video", SourceError)
            context.thread_type = threads
            # By itself, FFmpeg takes one thread more than there are cores, which costs more time than it saves.
            context.thread_count = 1 if threads == "NONE" else min(usable_cores(), _MAX_THREADS)
            # The size can change in the stream, to one that would fill the memory.
            context.options = most
        except BaseException:
            self._container.close()
            raise
        self._name = name
        self.hint = ""
        """What else may be wrong where no frame can be decoded."""
        if not context.width:  # FFmpeg does not say the size of what it refuses
            self.hint = (
                f"; or it has more pixels than the limit max_pixels, {limits.max_pixels}: if you trust the sender, "
                "raise it with limits=Limits(max_pixels=N), or --max-pixels N"
            )
        self.codec = context.name
        """Name of the codec."""
        self.time_base = stream.time_base
        """Seconds of one tick of the time stamps."""
        rate = stream.guessed_rate or stream.average_rate
        self.fps = float(rate) if rate is not None and 0.01 <= rate <= MAX_FPS else None
        """Frames per second; None where it is out of range, as some cameras and streams state it."""
        self.format = self._container.format.name
        """Names of the container's format."""
        self.duration_us = self._container.duration
        """Length in microseconds; None for a stream without end."""
        self._stream = stream
        self._context = context
        self._packets = self._container.demux(stream)
        self._times = StampChoice()

    def indexed_frames(self) -> int:
        """Number of frames by the index of the container: exact for an MP4 that is not fragmented, else 0.

        PyAV before 17 does not tell which of them an edit list hides, so there they count, too.
        """
        if not self.format.startswith("mov,"):
            return 0
        entries = getattr(self._stream, "index_entries", None)
        return self._stream.frames if entries is None else sum(not entry.is_discard for entry in entries)

    def seek(self, seconds: float) -> None:
        """Continues at the last keyframe at or before a time of the file.

        Raises:
            SourceError: The input cannot go to a time.
        """
        if self.time_base is None:
            raise SourceError(f"{self._name}: has no time stamps")
        try:
            self._container.seek(round(seconds / self.time_base), stream=self._stream)
        except av.FFmpegError as error:
            raise SourceError(f"{self._name}: cannot go to {seconds:.3f} s ({reason(error)})") from None

    def step(self) -> list[VideoFrame] | None:
        """Decodes the next packet: none, one or several frames; None at the end.

        An input that cannot be read further sets :attr:`broken` and gives the frames that are still in the decoder.
        """
        try:
            packet = next(self._packets, None)
        except av.FFmpegError as error:
            self.broken = reason(error)
            return self._decode(None)
        if packet is None:
            return None
        # An empty packet repeats the frame before, and decoders refuse it. The last one, without a time, is none.
        return [] if not packet.size and packet.dts is not None else self._decode(packet)

    def ticks(self, frame: VideoFrame) -> int | None:
        """Time stamp of a decoded frame in ticks of :attr:`time_base`; None where none is stated."""
        return self._times(frame.pts, frame.dts)

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> list[VideoFrame]:
        try:
            frames = self._context.decode(packet)
        except av.FFmpegError as error:
            self.bad(reason(error))
            return []
        self.repaired += sum(frame.is_corrupt for frame in frames)
        return frames

    def bad(self, why: str) -> None:
        """Counts a packet that gave no picture."""
        self.bad_packets += 1
        self.first_error = self.first_error or why

    def close(self) -> None:
        """Closes the input."""
        self._container.close()


class StampChoice:
    """Chooses between the time stamps for showing (PTS) and for decoding (DTS), as FFmpeg's own programs do.

    Some files have one of them only, and in some, one of them does not rise: the one with fewer faults counts.
    """

    def __init__(self) -> None:
        self._last: list[int | None] = [None, None]
        self._faults = [0, 0]

    def __call__(self, pts: int | None, dts: int | None) -> int | None:
        for kind, (value, other) in enumerate(((pts, dts), (dts, pts))):
            last = self._last[kind]
            if value is not None and last is not None:
                self._faults[kind] += value <= last
            self._last[kind] = other if value is None else value
        return pts if pts is not None and (dts is None or self._faults[0] <= self._faults[1]) else dts
