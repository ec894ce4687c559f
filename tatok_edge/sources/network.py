"""Streams and videos from the network, read by FFmpeg through PyAV: RTSP over TCP, and HTTP.

One thread decodes, because each further thread holds a frame back. FFmpeg buffers frames while it analyses a stream,
for about a second; the reading thread soon catches up, and the frames that it skips count as dropped. A damaged packet
is left out; FFmpeg repairs the pictures that need it up to the next keyframe. A stream that changes its size continues
in its new size, in a frame whose ``restarted`` is set.

A video with an end on a web server (MP4, Matroska) is read like a file: no frame is dropped, and its own times count.
"""

from __future__ import annotations

from collections import deque

from tatok_edge.errors import SourceError
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.pictures.pyav import RgbConverter, VideoFrame, av, reason
from tatok_edge.sources import live
from tatok_edge.sources.decoding import Decoder
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import Source
from tatok_edge.sources.video import VideoSource
from tatok_edge.sources.whole import Extent

_OPTIONS: dict[str, dict[str, str]] = {
    "rtsp": {"rtsp_transport": "tcp"},
    "rtsps": {"rtsp_transport": "tcp"},
    "http": {},
    "https": {},
}
"""Options of FFmpeg by the scheme of the URL."""


def open_stream(url: str, *, drop: bool, retry_seconds: float | None, limits: Limits = DEFAULT_LIMITS) -> Source:
    """Opens a stream or a video of a server.

    Args:
        url: An ``rtsp://``, ``rtsps://``, ``http://`` or ``https://`` URL.
        drop: See :class:`tatok_edge.sources.live.LiveSource`.
        retry_seconds: See there.
        limits: Largest picture.

    Raises:
        SourceError: The URL is of another kind, or no stream came.
    """
    name = without_secrets(url)
    scheme = url.split("://", 1)[0].lower()
    if scheme not in _OPTIONS:
        raise SourceError(f"{name}: a stream is an rtsp://, rtsps://, http:// or https:// URL, got {scheme}://")

    def connect() -> Decoder:
        try:
            timeout = (live.OPEN_TIMEOUT, live.READ_TIMEOUT)
            return Decoder(url, name, options=_OPTIONS[scheme], timeout=timeout, threads="NONE", limits=limits)
        except av.FFmpegError as error:
            why = "it did not answer in time" if isinstance(error, av.error.ExitError) else reason(error)
            raise SourceError(f"{name}: no stream came ({why}); check address, path and password") from None

    first: Decoder | None = connect()
    assert first is not None
    if scheme.startswith("http") and first.duration_us is not None:
        return VideoSource(name, first, Extent(0))

    def connection() -> StreamConnection:
        nonlocal first
        decoder, first = first or connect(), None
        return StreamConnection(decoder)

    return live.LiveSource(name, connection, drop=drop, retry_seconds=retry_seconds)


class StreamConnection:
    """An open stream, as the connection of a live source.

    Args:
        decoder: Decodes it; closed with the connection.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.fps = decoder.fps
        self._decoder = decoder
        self._frames: deque[VideoFrame] = deque()
        self._rgb = RgbConverter()

    def read(self) -> live.Pending | None:
        """The next picture; see :meth:`tatok_edge.sources.live.Connection.read`."""
        if not self._frames:
            frames = self._decoder.step()
            if frames is None or self._decoder.broken:
                # PyAV ends a read that takes too long with this error.
                silent = "Immediate exit requested" in self._decoder.broken
                raise live.Lost(f"was silent for {live.READ_TIMEOUT:g} s" if silent else "stopped sending")
            self._frames.extend(frames)
        if not self._frames:
            return None
        frame = self._frames.popleft()
        return live.Pending(lambda: self._rgb(frame))

    def close(self) -> None:
        """Closes the stream."""
        self._decoder.close()
