"""Feeds: the pictures of the demo, from a source, the webcam of a page, or a recording.

The engine's thread iterates over a feed. All other methods may be called from any thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.demo.messages import MessageError, jpeg_size
from tatok_edge.errors import FormatError, SourceError
from tatok_edge.format.packet import unpack_delta
from tatok_edge.format.reader import Reader
from tatok_edge.geometry import Image
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.open import open_source
from tatok_edge.sources.opencv import rgb
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import Source
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.state import held_ahead
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

STILL_FPS: Final = 10.0
"""Frame rate of files without time stamps, and of single pictures."""
RECORDING_FPS: Final = 25.0
"""Frame rate of recordings without a rate and without time stamps."""
MAX_WAIT: Final = 2.0
"""Longest time, in seconds, that a recording shows one frame: longer gaps are shortened."""
LATE: Final = 1.0
"""A file that is more seconds late than this continues with its next frame; it leaves out no frames to catch up."""
MAX_MARKS: Final = 300
"""Largest number of marked keyframes on the seek bar."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A picture to encode."""

    image: Image
    """RGB, uint8 ``(H, W, 3)``."""
    arrived: float
    """When the picture arrived, in seconds of ``time.monotonic``."""
    restarted: bool = False
    """Whether it follows a gap or a new start, so that earlier pictures say little about it."""
    dropped: int = 0
    """Number of pictures dropped so far, because they came too fast."""


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """A frame of a recording, decoded."""

    image: Image
    """RGB, uint8 ``(H, W, 3)``."""
    tokens: TokenFrame | DeltaFrame
    """Tokens of its packet."""
    depths: NDArray[np.int32]
    """Tokens that are held of each patch after it, ``(N,)``."""
    size: int
    """Size of its packet in bytes."""
    number: int
    """Number of the frame in the recording."""
    seconds: float
    """Time from the start of the recording."""
    arrived: float
    """When the frame was decoded, in seconds of ``time.monotonic``."""


class Feed(Protocol):
    """A sequence of pictures for the engine."""

    name: str

    def __iter__(self) -> Iterator[Shot | Played]: ...

    def stop(self) -> None:
        """End the iteration soon."""

    def close(self) -> None:
        """End the iteration and free all resources; called by the thread that iterates."""


class SourceFeed:
    """A camera or a file. Files are shown at their own frame rate, over and over.

    Args:
        spec: Name of a source for :func:`open_source`.
        opened: The source, if it is open already.
        limits: Largest picture.
    """

    def __init__(self, spec: str, opened: Source | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self.name = without_secrets(spec)
        self._spec = spec
        self._source = opened
        self._stopped = threading.Event()
        self._dropped = 0

    def __iter__(self) -> Iterator[Shot | Played]:
        while not self._stopped.is_set():
            # A live source is opened again and again: the page shows it as soon as it is back.
            source = self._source or open_source(self._spec, retry_seconds=None, limits=self._limits)
            self._source = source
            with source:
                if source.live:
                    for frame in source:
                        arrived = time.monotonic() if frame.arrived is None else frame.arrived
                        yield Shot(frame.image, arrived, frame.restarted, source.dropped)
                    if source.problem and not self._stopped.is_set():
                        raise SourceError(f"{source.name}: {source.problem}")
                elif source.frames == 1:
                    yield from self._still(source)
                else:
                    yield from self._paced(source)
            self._source = None

    def _still(self, source: Source) -> Iterator[Shot]:
        for frame in source:
            while not self._stopped.wait(1 / STILL_FPS):
                yield Shot(frame.image, time.monotonic())

    def _paced(self, source: Source) -> Iterator[Shot]:
        """Frames of a file when they are due; late frames are left out."""
        start: float | None = None
        step = 1 / (source.fps or STILL_FPS)
        for count, frame in enumerate(source):
            offset = frame.timestamp_us / 1e6 if source.fps else count * step
            now = time.monotonic()
            if start is None or now - (start + offset) > LATE:
                start = now - offset
            wait = start + offset - now
            if wait < -step:
                self._dropped += 1
                continue
            if self._stopped.wait(max(wait, 0.0)):
                return
            yield Shot(frame.image, time.monotonic(), frame.restarted or count == 0, self._dropped)

    def stop(self) -> None:
        self._stopped.set()
        if (source := self._source) is not None:
            source.stop()

    def close(self) -> None:
        self.stop()
        if self._source is not None:
            self._source.close()


class WebcamFeed:
    """JPEG pictures from a page; only the newest one is kept.

    Args:
        refused: Called by the engine's thread with a line of text for each picture that cannot be used.
    """

    name = "webcam of a page"

    def __init__(self, refused: Callable[[str], None]) -> None:
        self._refused = refused
        self._changed = threading.Condition()
        self._newest: tuple[bytes, float] | None = None
        self._stopped = False
        self._dropped = 0

    def offer(self, data: bytes) -> None:
        """Hand over the next picture."""
        with self._changed:
            self._dropped += self._newest is not None
            self._newest = data, time.monotonic()
            self._changed.notify()

    def __iter__(self) -> Iterator[Shot | Played]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._newest is not None)
                if self._stopped or self._newest is None:
                    return
                data, arrived = self._newest
                self._newest = None
                dropped = self._dropped
            try:
                image = decode_jpeg(data)
            except MessageError as error:
                self._refused(str(error))
                continue
            yield Shot(image, arrived, dropped=dropped)

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def close(self) -> None:
        self.stop()


def decode_jpeg(data: bytes) -> Image:
    """Decode a JPEG picture from a page to RGB uint8 ``(H, W, 3)``.

    Raises:
        MessageError: The picture is damaged, no JPEG, or too large. A too large picture is not decoded.
    """
    width, height = jpeg_size(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != (height, width):
        raise MessageError("a binary message must be a JPEG picture, this one is damaged")
    return rgb(image)


@dataclass(slots=True)
class _Place:
    """Requested place in a recording."""

    playing: bool = True
    seek: int | None = None
    stopped: bool = False
    due: float = field(default_factory=time.monotonic)


class RecordingFeed:
    """A ``.ttk`` file, played over and over, with seek and pause.

    Args:
        path: The file.
        tokenizer: The model that made it.

    Raises:
        FormatError: The file is damaged, of another model, or has no frames.
        SourceError: The file cannot be read.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.name = path.name
        self._tokenizer = tokenizer
        self._reader = Reader(path, tokenizer.entropy_model, limits=tokenizer.limits)
        if not len(self._reader):
            self._reader.close()
            raise FormatError(f"{path}: {self._reader.damage or 'it holds no frame'}")
        self._decoder = StreamDecoder(tokenizer)
        self._next = 0
        self._changed = threading.Condition()
        self._place = _Place()
        self._times = self._seconds()
        keys = [number for number in range(len(self._reader)) if self._reader.is_key(number)]
        self._marks = keys[:: -(-len(keys) // MAX_MARKS) or 1]

    def report(self) -> dict[str, Any]:
        """Length, keyframes and state for the seek bar of a page, as JSON."""
        return {
            "name": self.name,
            "frames": len(self._reader),
            "seconds": round(self._times[-1], 3),
            "keyframes": self._marks,
            "playing": self._place.playing,
        }

    def play(self, playing: bool) -> None:
        """Continue or pause."""
        with self._changed:
            self._place.playing = playing
            self._place.due = time.monotonic()
            self._changed.notify()

    def seek(self, number: int) -> None:
        """Show frame ``number`` (at most the last one), and continue from there unless paused."""
        with self._changed:
            self._place.seek = min(number, len(self._reader) - 1)
            self._changed.notify()

    def __iter__(self) -> Iterator[Shot | Played]:
        current = -1
        problem: FormatError | None = None
        bad = 0
        while (number := self._wait(current)) is not None:
            current = number
            try:
                shown = self._decode(number)
            except FormatError as error:  # a damaged frame is left out; when all are damaged, the iteration ends
                problem = error
                bad += 1
                if bad >= len(self._reader):
                    raise problem from None
                continue
            if shown is not None:
                bad = 0
                yield shown

    def _wait(self, current: int) -> int | None:
        """Wait until a frame is due; returns its number, or None at the end of the feed."""
        with self._changed:
            while True:
                place = self._place
                if place.stopped:
                    return None
                now = time.monotonic()
                if place.seek is not None:
                    number, place.seek = place.seek, None
                    place.due = now
                elif not place.playing or now < place.due:
                    self._changed.wait(place.due - now if place.playing else None)
                    continue
                else:
                    number = (current + 1) % len(self._reader)
                # No frame can be left out, because deltas need the frames before: slow decoding gives slow motion.
                place.due = max(place.due + self._duration(number), now)
                return number

    def _decode(self, number: int) -> Played | None:
        """Decode frame ``number`` and the frames it needs; None if another frame is requested meanwhile."""
        reader, key = self._reader, self._reader.keyframe_before(number)
        if number < self._next or key >= self._next:
            self._next = key
        for at in range(self._next, number + 1):
            if self._place.seek is not None or self._place.stopped:
                return None
            packet = reader.packet(at)
            if reader.is_key(at):  # no earlier packet is needed
                self._decoder = StreamDecoder(self._tokenizer)
            self._next = at + 1
            if at < number:
                self._decoder.push(packet)
        before = self._decoder.state  # a delta is read with what is held before it
        held = None if before is None else held_ahead(before.held, reader.info(number).n_updated_cells or 0)
        decoded = self._decoder.decode(packet)
        if decoded.image is None or not decoded.complete:
            raise FormatError(f"{reader.path}: frame {number}: {decoded.problem or 'patches are missing'}")
        tokens: TokenFrame | DeltaFrame
        if reader.is_key(number):
            tokens = reader[number]
        else:
            assert held is not None
            tokens = unpack_delta(packet, self._tokenizer.entropy_model, held)
        state = self._decoder.state
        assert state is not None
        depths = state.held.depths
        return Played(decoded.image, tokens, depths, len(packet), number, self._times[number], time.monotonic())

    def _seconds(self) -> list[float]:
        """Rising times of all frames, in seconds from the first frame."""
        reader = self._reader
        step = 1 / float(reader.fps or RECORDING_FPS)
        times = [0.0]
        last: int | None = None
        for number in range(len(reader)):
            stamp: int | None = None
            with suppress(FormatError):  # a damaged frame has no time stamp
                stamp = reader.info(number).timestamp_us
            if number:
                gap = None if stamp is None or last is None else (stamp - last) / 1e6
                times.append(times[-1] + (min(gap, MAX_WAIT) if gap is not None and gap > 0 else step))
            last = stamp
        return times

    def _duration(self, number: int) -> float:
        if number + 1 < len(self._times):
            return self._times[number + 1] - self._times[number]
        return 1 / float(self._reader.fps or RECORDING_FPS)

    def stop(self) -> None:
        with self._changed:
            self._place.stopped = True
            self._changed.notify()

    def close(self) -> None:
        self.stop()
        self._reader.close()
