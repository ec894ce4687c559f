"""Live sources: a thread takes every frame as it comes, and what is lost is sought again.

A camera or stream that vanishes, or stays silent, is reopened with growing pauses. The iteration goes on with a frame
whose ``restarted`` is set; its number and time stamp go on rising, the stamps with the wall clock.

RTSP is read with OpenCV's FFmpeg over TCP and one decoding thread, since each further thread holds a frame back. FFmpeg
buffers what it reads while it finds out about the stream (about a second); the thread soon has that behind it, and what
it skips counts as dropped. Other FFmpeg options can only be set for the whole process, in the environment variable
``OPENCV_FFMPEG_CAPTURE_OPTIONS``, which is left to the user. OpenCV scales the pictures of a stream that changes its
size to the size it began with; GStreamer delivers the new size, in a frame whose ``restarted`` is set. OpenCV before
4.13 repeats its last picture instead: there, a stream that repeats one picture for as long as it might have been silent
is opened again, and goes on in its new size.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from tatok_edge.errors import SourceError
from tatok_edge.geometry import Image
from tatok_edge.sources.source import Source, SourceFrame, without_secrets
from tatok_edge.sources.synthetic import Scene, render_loop

OPEN_TIMEOUT = 5.0
"""How long a server may take to answer, in seconds."""
READ_TIMEOUT = 5.0
"""How long a source may stay silent before it counts as vanished, in seconds."""
RETRY_SECONDS = 30.0
"""How long a source that has vanished is sought, in seconds from its last frame."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Seconds between two attempts to reopen a source: doubled from the first to the longest."""
QUEUE_FRAMES = 4
"""Frames that wait for a slow consumer where none may be dropped; the reader then waits too."""
BAD_READS = 3
"""A camera may fail to deliver a whole picture this many times in a row, less one, before it counts as vanished."""
SCALES_FROM = (4, 13)
"""OpenCV's first version that scales a stream of a new size; earlier ones repeat the last picture of the old size."""
POLL = 0.05
"""How soon a waiting thread notices that it should stop, in seconds."""


class Lost(Exception):
    """The feed is gone: why, as it follows a name in a message."""


class Ended(Exception):
    """The feed has delivered everything that it will ever deliver."""


class Feed(Protocol):
    """One connection to a camera or stream, used by one thread."""

    fps: float | None
    bgr: bool
    """Whether the pictures are BGR, to be turned into RGB when they are delivered: dropped ones then cost nothing."""

    def read(self) -> Image | None:
        """The next picture, uint8 (height, width, 3); None when none has come for a short time.

        Raises:
            Lost: The connection is of no more use.
            Ended: All frames have been delivered.
        """

    def close(self) -> None:
        """Releases the connection."""


class LiveSource(Source):
    """A camera or stream, read by a thread of its own.

    Args:
        name: What to call it in messages and files.
        connect: Opens it, at the start and whenever it has vanished; raises SourceError.
        drop: Keep only the newest frame and count the others; otherwise a bounded queue, and the reader waits.
        retry_seconds: How long to seek a source that has vanished, in seconds from its last frame; None for ever.

    Raises:
        SourceError: It cannot be opened, or sends no picture.
    """

    def __init__(
        self, name: str, connect: Callable[[], Feed], *, drop: bool = True, retry_seconds: float | None = RETRY_SECONDS
    ) -> None:
        feed = connect()
        try:
            first = _next_picture(feed, lambda: False)
        except (Lost, Ended) as error:
            feed.close()
            raise SourceError(f"{name}: no picture came ({error})") from None
        assert first is not None
        super().__init__(name, first, fps=feed.fps, frames=None, live=True)
        self._connect = connect
        self._drop = drop
        self._retry_seconds = retry_seconds
        self._queue: deque[tuple[SourceFrame, bool]] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._reason: str | None = None
        self._start: float | None = None
        self._heard = time.monotonic()
        self._count = 0
        self._stamp = -1
        self._put(first, feed.bgr)
        # A daemon, so that a driver that hangs in a read cannot keep the program alive.
        self._thread = threading.Thread(target=self._pump, args=(feed,), name=f"tatok {name}", daemon=True)
        self._thread.start()

    def _pump(self, feed: Feed | None) -> None:
        """The thread: reads until the source ends, is lost for good or is to stop."""
        try:
            while feed is not None and not self._stopped:
                try:
                    while (image := _next_picture(feed, self._is_stopped)) is not None:
                        self._put(image, feed.bgr)
                except Lost as lost:
                    feed.close()
                    feed = None
                    feed = self._seek(str(lost))
        except Ended:
            pass
        except Exception as error:  # a bug or a driver's error must reach the consumer, not die with the thread
            self._reason = f"{self.name}: {type(error).__name__}: {without_secrets(str(error))}"
        finally:
            if feed is not None:
                feed.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _put(self, image: Image, bgr: bool, restarted: bool = False) -> None:
        self._heard = time.monotonic()
        if self._start is None:
            self._start = self._heard
        self._stamp = max(self._stamp + 1, round((self._heard - self._start) * 1e6))
        with self._changed:
            while not self._drop and len(self._queue) >= QUEUE_FRAMES and not self._stopped:
                self._changed.wait(POLL)
            if self._drop and self._queue:
                restarted |= self._queue.popleft()[0].restarted
                self.dropped += 1
            self._queue.append((SourceFrame(image, self._count, self._stamp, restarted, self._heard), bgr))
            self._changed.notify_all()
        self._count += 1
        self._heard = time.monotonic()

    def _seek(self, reason: str) -> Feed | None:
        """Reopens a source that has vanished and takes its first picture; None where it stays away or is to stop."""
        pause = FIRST_PAUSE
        while not self._stopped:
            left = float("inf") if self._retry_seconds is None else self._heard + self._retry_seconds - time.monotonic()
            if left <= 0:
                away = f" and did not come back within {self._retry_seconds:g} s" if self._retry_seconds else ""
                self._reason = f"{self.name} {reason} after {self._count} frames{away}"
                return None
            self._sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
            feed: Feed | None = None
            try:
                feed = self._connect()
                if (image := _next_picture(feed, self._is_stopped)) is not None:
                    self.reconnects += 1
                    self._put(image, feed.bgr, restarted=True)
                    return feed
            except (SourceError, Lost, Ended):
                pass
            if feed is not None:
                feed.close()
        return None

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, POLL))

    def _is_stopped(self) -> bool:
        return self._stopped

    def _read(self) -> Iterator[SourceFrame]:
        while True:
            with self._changed:
                while not self._queue and not self._over and not self._stopped and not self._hangs():
                    self._changed.wait(POLL)
                if self._stopped or not self._queue:
                    break
                frame, bgr = self._queue.popleft()
                self._changed.notify_all()
            yield replace(frame, image=rgb(frame.image)) if bgr else frame
        if not self._stopped:
            self.problem = self._reason

    def _hangs(self) -> bool:
        """Whether nothing has come for so long that the thread must be stuck in a driver."""
        if self._retry_seconds is None:
            return False
        silent = time.monotonic() - self._heard
        if silent < self._retry_seconds + OPEN_TIMEOUT + 2 * READ_TIMEOUT:
            return False
        self._reason = f"{self.name} has hung for {silent:.0f} s after {self._count} frames"
        return True

    def close(self) -> None:
        """Ends the iteration and waits for the thread, which releases the device; at most for its timeouts."""
        super().close()
        self._thread.join(timeout=OPEN_TIMEOUT + 2 * READ_TIMEOUT)


def _next_picture(feed: Feed, stopped: Callable[[], bool]) -> Image | None:
    """The next picture, or None once ``stopped``.

    Raises:
        Lost: The feed is gone or was silent for too long.
        Ended: It has delivered everything.
    """
    deadline = time.monotonic() + READ_TIMEOUT
    while not stopped():
        if (image := feed.read()) is not None:
            return image
        if time.monotonic() > deadline:
            raise Lost(f"was silent for {READ_TIMEOUT:g} s")
    return None


class CaptureFeed:
    """A camera or stream that OpenCV reads."""

    bgr = True

    def __init__(self, capture: cv2.VideoCapture, *, may_freeze: bool = False) -> None:
        self._capture = capture
        self._may_freeze = may_freeze
        self._last: Image | None = None
        self._changed = 0.0
        self.fps = plausible_fps(capture)

    def read(self) -> Image | None:
        start = time.monotonic()
        for _ in range(BAD_READS):
            if (image := next_image(self._capture)) is not None:
                if self._may_freeze:
                    self._watch(image)
                return image
            if (waited := time.monotonic() - start) > READ_TIMEOUT / 2:
                raise Lost(f"was silent for {waited:.0f} s")
        raise Lost("stopped sending")

    def _watch(self, image: Image) -> None:
        now = time.monotonic()
        if self._last is None or not np.array_equal(image, self._last):
            self._last, self._changed = image, now
        elif now - self._changed > READ_TIMEOUT:
            raise Lost(f"repeated one picture for {READ_TIMEOUT:g} s")

    def close(self) -> None:
        self._capture.release()


class LoopFeed:
    """Pictures that are there already, at a frame rate, like a camera's.

    Args:
        pictures: Shown forwards and backwards in turn, so that nothing jumps.
        fps: Pictures per second.
        frames: How many to deliver; None for no end.
    """

    bgr = False

    def __init__(self, pictures: list[Image], fps: float, frames: int | None) -> None:
        self.fps: float | None = fps
        self._rate = fps
        self._pictures = pictures
        self._frames = frames
        self._index = 0
        self._start = time.monotonic()

    def read(self) -> Image | None:
        if self._index == self._frames:
            raise Ended
        due = self._start + self._index / self._rate
        if (wait := due - time.monotonic()) > 0:
            time.sleep(min(wait, POLL))
            if wait > POLL:
                return None
        last = len(self._pictures) - 1
        place = self._index % max(2 * last, 1)
        self._index += 1
        return self._pictures[min(place, 2 * last - place)]

    def close(self) -> None:
        self._pictures = []


def open_synthetic(name: str, scene: Scene, frames: int | None, *, drop: bool) -> Source:
    """The synthetic camera in real time: ``frames`` pictures, or no end, of a loop that is rendered beforehand."""
    pictures = render_loop(scene)
    return LiveSource(name, lambda: LoopFeed(pictures, scene.fps, frames), drop=drop)


def open_camera(device: str, *, drop: bool, retry_seconds: float | None) -> Source:
    """A camera by its number or path; a path that is a link (``/dev/v4l/by-id/...``) is followed at every attempt.

    Raises:
        SourceError: It cannot be opened; the message lists the cameras there are.
    """
    name = f"camera {device}" if device.isdecimal() else device

    def connect() -> Feed:
        number = device if device.isdecimal() else Path(device).resolve().name.removeprefix("video")
        # Asked here, because OpenCV prints a warning at every attempt.
        missing = sys.platform == "linux" and not os.path.exists(f"/dev/video{number}")
        if not missing and number.isdecimal():
            capture = cv2.VideoCapture(int(number), cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY)
            if capture.isOpened():
                capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
                return CaptureFeed(capture)
            capture.release()
        listed = ", ".join(f"{path} ({label})" for path, label in find_cameras()) or "none"
        raise SourceError(f"{name} cannot be opened; video devices here: {listed}; without a camera, try 'synthetic'")

    return LiveSource(name, connect, drop=drop, retry_seconds=retry_seconds)


def open_rtsp(url: str, *, drop: bool, retry_seconds: float | None) -> Source:
    """An RTSP stream.

    Raises:
        SourceError: The URL is of another kind, or no stream came.
    """
    name = without_secrets(url)
    scheme = url.split("://", 1)[0].lower()
    if scheme not in ("rtsp", "rtsps"):
        raise SourceError(f"{name}: a stream is an rtsp:// or rtsps:// URL, got {scheme}://")
    settings = {
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC: round(OPEN_TIMEOUT * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC: round(READ_TIMEOUT * 1000),
        cv2.CAP_PROP_N_THREADS: 1,
    }
    parameters = [number for setting in settings.items() for number in setting]

    def connect() -> Feed:
        capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG, parameters)
        if not capture.isOpened():
            capture.release()
            raise SourceError(f"{name}: no stream came; check address, path and password{_without_ffmpeg()}")
        return CaptureFeed(capture, may_freeze=not scales_new_sizes())

    return LiveSource(name, connect, drop=drop, retry_seconds=retry_seconds)


def scales_new_sizes() -> bool:
    """Whether this OpenCV scales the pictures of a video or stream that changes its size, and does not freeze."""
    return tuple(int(part) for part in cv2.__version__.split(".")[:2]) >= SCALES_FROM


def _without_ffmpeg() -> str:
    """What to do where OpenCV was built without FFmpeg; empty where it was built with it."""
    if cv2.CAP_FFMPEG in cv2.videoio_registry.getBackends():
        return ""
    return "; this OpenCV lacks FFmpeg: read the stream with GStreamer (tatok_edge.sources.gstreamer.rtsp_pipeline)"


def find_cameras() -> list[tuple[str, str]]:
    """The video devices that Linux lists, as (path, name); empty elsewhere."""
    found = []
    for path in sorted(Path("/dev").glob("video[0-9]*"), key=lambda path: int(path.name.removeprefix("video"))):
        label = Path("/sys/class/video4linux") / path.name / "name"
        try:
            name = label.read_text(errors="replace").strip()
        except OSError:
            name = "unknown"
        found.append((str(path), name))
    return found


def plausible_fps(capture: cv2.VideoCapture) -> float | None:
    """The frame rate a capture states; None where it states nonsense, as cameras and streams do."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0.01 <= fps <= 1000 else None


def next_image(capture: cv2.VideoCapture) -> Image | None:
    """The next BGR picture of a capture, None at its end or where it could not be opened."""
    more, image = capture.read()
    return np.asarray(image, np.uint8) if more else None


def rgb(image: cv2.typing.MatLike) -> Image:
    """RGB from OpenCV's BGR, as an array of its own."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)
