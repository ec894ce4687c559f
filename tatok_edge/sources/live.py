"""Live sources: a thread reads every frame of a camera or stream, and opens it again when it is lost.

A camera or stream that disappears or falls silent is opened again after growing pauses. The iteration then goes on with
a frame whose ``restarted`` is set. Its number and time stamp keep rising, the stamps with the wall clock.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tatok_edge.errors import SourceError
from tatok_edge.geometry import Image
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import Source, SourceFrame

OPEN_TIMEOUT = 5.0
"""Longest time that a server may take to answer, in seconds."""
READ_TIMEOUT = 5.0
"""Silence after which a source counts as lost, in seconds."""
RETRY_SECONDS = 30.0
"""How long to look for a lost source, in seconds from its last frame."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0
"""Pauses between attempts to open a source again, in seconds: each is twice the one before, up to the longest."""
QUEUE_FRAMES = 4
"""Frames that wait for a slow consumer where none may be dropped; then the reading thread waits, too."""
POLL = 0.05
"""Time between two looks of a waiting thread at whether it should stop, in seconds."""


class Lost(Exception):
    """The connection is lost; the reason, as it follows a name in a message."""


class Ended(Exception):
    """The connection has delivered its last frame."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A picture that is converted when it is delivered, so that dropped ones cost nothing."""

    convert: Callable[[], Image]
    """Gives the RGB picture, uint8 (height, width, 3); called by the thread that takes the frames."""


Picture = TypeVar("Picture", covariant=True)


class Connection(Protocol[Picture]):
    """One connection to a camera or stream, read by one thread."""

    fps: float | None

    def read(self) -> Picture | None:
        """The next picture, uint8 RGB (height, width, 3) or pending; None if none came within a short time.

        Raises:
            Lost: The connection cannot be used any longer.
            Ended: All frames have been delivered.
        """

    def close(self) -> None:
        """Releases the connection."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A frame that nobody has taken yet; the fields are those of a :class:`SourceFrame`."""

    picture: Image | Pending
    index: int
    timestamp_us: int
    restarted: bool
    arrived: float


class LiveSource(Source):
    """A camera or stream that a thread of its own reads.

    Args:
        name: Its name in messages and files, without passwords.
        connect: Opens it, at the start and after each loss; raises SourceError.
        drop: Keep the newest frame only and count the others; otherwise keep :data:`QUEUE_FRAMES` and let the
            thread wait.
        retry_seconds: How long to look for a lost source, in seconds from its last frame; None for ever.

    Raises:
        SourceError: It cannot be opened, or sends no picture.
    """

    def __init__(
        self,
        name: str,
        connect: Callable[[], Connection[Image | Pending]],
        *,
        drop: bool = True,
        retry_seconds: float | None = RETRY_SECONDS,
    ) -> None:
        connection = connect()
        first = first_picture(connection, name)
        super().__init__(name, _converted(first), fps=connection.fps, frames=None, live=True)
        self._connect = connect
        self._drop = drop
        self._retry_seconds = retry_seconds
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._over = False
        self._reason: str | None = None
        self._start: float | None = None
        self._heard = time.monotonic()
        self._count = 0
        self._stamp = -1
        self._put(first)
        # A daemon, so that a driver that hangs in a read cannot keep the program alive.
        self._thread = threading.Thread(target=self._pump, args=(connection,), name=f"tatok {name}", daemon=True)
        self._thread.start()

    def _pump(self, connection: Connection[Image | Pending] | None) -> None:
        """The thread: reads until the source ends, is lost for good or is stopped."""
        try:
            while connection is not None and not self.stopped:
                try:
                    while (picture := next_picture(connection, self._is_stopped)) is not None:
                        self._put(picture)
                except Lost as lost:
                    connection.close()
                    connection = None
                    connection = self._seek(str(lost))
        except Ended:
            pass
        except Exception as error:  # an unexpected error must reach the consumer, not end with the thread
            self._reason = f"{self.name}: {type(error).__name__}: {without_secrets(str(error))}"
        finally:
            if connection is not None:
                connection.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _put(self, picture: Image | Pending, restarted: bool = False) -> None:
        self._heard = time.monotonic()
        if self._start is None:
            self._start = self._heard
        self._stamp = max(self._stamp + 1, round((self._heard - self._start) * 1e6))
        with self._changed:
            while not self._drop and len(self._queue) >= QUEUE_FRAMES and not self.stopped:
                self._changed.wait(POLL)
            if self._drop and self._queue:
                restarted |= self._queue.popleft().restarted
                self.dropped += 1
            self._queue.append(_Waiting(picture, self._count, self._stamp, restarted, self._heard))
            self._changed.notify_all()
        self._count += 1
        self._heard = time.monotonic()

    def _seek(self, reason: str) -> Connection[Image | Pending] | None:
        """Opens a lost source again and takes its first picture; None if it stays lost or is stopped."""
        pause = FIRST_PAUSE
        while not self.stopped:
            left = float("inf") if self._retry_seconds is None else self._heard + self._retry_seconds - time.monotonic()
            if left <= 0:
                away = f" and did not come back within {self._retry_seconds:g} s" if self._retry_seconds else ""
                self._reason = f"{self.name} {reason} after {self._count} frames{away}"
                return None
            self._sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
            connection: Connection[Image | Pending] | None = None
            try:
                connection = self._connect()
                if (picture := next_picture(connection, self._is_stopped)) is not None:
                    self.reconnects += 1
                    self._put(picture, restarted=True)
                    return connection
            except (SourceError, Lost, Ended):
                pass
            if connection is not None:
                connection.close()
        return None

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.stopped and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, POLL))

    def _is_stopped(self) -> bool:
        return self.stopped

    def _read(self) -> Iterator[SourceFrame]:
        while True:
            with self._changed:
                while not self._queue and not self._over and not self.stopped and not self._hangs():
                    self._changed.wait(POLL)
                if self.stopped or not self._queue:
                    break
                frame = self._queue.popleft()
                self._changed.notify_all()
            image = _converted(frame.picture)
            yield SourceFrame(image, frame.index, frame.timestamp_us, frame.restarted, frame.arrived)
        if not self.stopped:
            self.problem = self._reason

    def _hangs(self) -> bool:
        """Whether the silence is so long that the thread must hang in a driver."""
        if self._retry_seconds is None:
            return False
        silent = time.monotonic() - self._heard
        if silent < self._retry_seconds + OPEN_TIMEOUT + 2 * READ_TIMEOUT:
            return False
        self._reason = f"{self.name} has hung for {silent:.0f} s after {self._count} frames"
        return True

    def close(self) -> None:
        """Ends the iteration and waits for the thread, which releases the device: at most as long as its timeouts."""
        super().close()
        self._thread.join(timeout=OPEN_TIMEOUT + 2 * READ_TIMEOUT)


def _converted(picture: Image | Pending) -> Image:
    return picture.convert() if isinstance(picture, Pending) else picture


def first_picture(connection: Connection[Picture], name: str) -> Picture:
    """Waits for the first picture of a connection.

    Raises:
        SourceError: None came; the connection is closed.
    """
    try:
        first = next_picture(connection, lambda: False)
    except (Lost, Ended) as error:
        connection.close()
        raise SourceError(f"{name}: no picture came ({error})") from None
    assert first is not None
    return first


def next_picture(connection: Connection[Picture], stopped: Callable[[], bool]) -> Picture | None:
    """Waits for the next picture of a connection; returns None once ``stopped`` is true.

    Raises:
        Lost: The connection is lost or was silent for too long.
        Ended: It has delivered its last frame.
    """
    deadline = time.monotonic() + READ_TIMEOUT
    while not stopped():
        if (picture := connection.read()) is not None:
            return picture
        if time.monotonic() > deadline:
            raise Lost(f"was silent for {READ_TIMEOUT:g} s")
    return None
