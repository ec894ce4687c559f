"""RTSP streams, read with OpenCV's FFmpeg over TCP.

One thread decodes, because each further thread holds a frame back. FFmpeg buffers frames while it analyses the stream,
for about a second; the reading thread soon catches up, and the frames that it skips count as dropped. Other options of
FFmpeg can only be set for the whole process, in the environment variable ``OPENCV_FFMPEG_CAPTURE_OPTIONS``, which is
left to the user.

OpenCV scales the pictures of a stream that changes its size to the first size. OpenCV before 4.13 repeats its last
picture instead: there, a stream that repeats one picture for :data:`tatok_edge.sources.live.READ_TIMEOUT` is opened
again, and continues in its new size. GStreamer delivers the new size, in a frame whose ``restarted`` is set.
"""

from __future__ import annotations

import cv2

from tatok_edge.errors import SourceError
from tatok_edge.sources import live
from tatok_edge.sources.capture import CaptureConnection
from tatok_edge.sources.opencv import scales_new_sizes
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import Source


def open_rtsp(url: str, *, drop: bool, retry_seconds: float | None) -> Source:
    """Opens an RTSP stream.

    Args:
        url: An ``rtsp://`` or ``rtsps://`` URL.
        drop: See :class:`tatok_edge.sources.live.LiveSource`.
        retry_seconds: See there.

    Raises:
        SourceError: The URL is of another kind, or no stream came.
    """
    name = without_secrets(url)
    scheme = url.split("://", 1)[0].lower()
    if scheme not in ("rtsp", "rtsps"):
        raise SourceError(f"{name}: a stream is an rtsp:// or rtsps:// URL, got {scheme}://")
    settings = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: round(live.OPEN_TIMEOUT * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: round(live.READ_TIMEOUT * 1000),
        cv2.CAP_PROP_N_THREADS: 1,
    }
    parameters = [number for setting in settings.items() for number in setting]

    def connect() -> live.Connection:
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, parameters)
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{name}: no stream came; check address, path and password{_without_ffmpeg()}")
        return CaptureConnection(capture, may_freeze=not scales_new_sizes())

    return live.LiveSource(name, connect, drop=drop, retry_seconds=retry_seconds)


def _without_ffmpeg() -> str:
    """What to do if OpenCV was built without FFmpeg; empty if it was built with it."""
    if cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
        return ""
    return "; this OpenCV has no FFmpeg: read the stream with GStreamer (tatok_edge.sources.gstreamer.rtsp_pipeline)"
