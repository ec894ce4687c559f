"""Where the pictures of the demo come from: a source, the webcam of a page, or a recording.

A feed is iterated by the engine's thread; every other method may be called from any thread.
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

from tatok_edge.demo.messages import MessageError, jpeg_size
from tatok_edge.errors import FormatError, SourceError
from tatok_edge.format.container import Reader
from tatok_edge.format.packet import unpack_delta
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.live import rgb
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import Source, without_secrets
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

STILL_FPS: Final = 10.0
"""Pictures without times, and still pictures, are shown at this rate."""
RECORDING_FPS: Final = 25.0
"""Frame rate of recordings that have neither a rate nor times."""
MAX_WAIT: Final = 2.0
"""Longest time that a recording shows one frame, in seconds: gaps are shortened to it."""
LATE: Final = 1.0
"""A file that is so many seconds late goes on from where it is, instead of leaving out frames to catch up."""
MAX_PIXELS: Final = 1 << 23
"""Largest frame of a recording, in pixels."""
MAX_MARKS: Final = 300
"""Keyframes that are marked on the seek bar."""


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A picture to encode."""

    image: Image
    """RGB, uint8 ``(H, W, 3)``."""
    arrived: float
    """When it was there, in seconds of ``time.monotonic``."""
    restarted: bool = False
    """Whether what came before says little about it."""
    dropped: int = 0
    """Pictures that came too fast so far."""


@dataclass(frozen=True, slots=True, eq=False)
class Played:
    """A frame of a recording, decoded."""

    image: Image
    """RGB, uint8 ``(H, W, 3)``."""
    tokens: TokenFrame | DeltaFrame
    """What its packet says."""
    size: int
    """Bytes of its packet."""
    number: int
    """Which frame of the recording it is."""
    seconds: float
    """Its time from the start of the recording."""
    arrived: float
    """When it was due, in seconds of ``time.monotonic``."""


class Feed(Protocol):
    """What the engine takes pictures from."""

    name: str

    def __iter__(self) -> Iterator[Shot | Played]: ...

    def stop(self) -> None:
        """Ends the iteration soon."""

    def close(self) -> None:
        """Ends it and frees what it holds; called by the thread that iterates."""


class SourceFeed:
    """A camera or file; files are shown at their own pace, over and over.

    Args:
        spec: What :func:`open_source` takes.
        opened: The same, if it is open already.
    """

    def __init__(self, spec: str, opened: Source | None = None) -> None:
        self.name = without_secrets(spec)
        self._spec = spec
        self._source = opened
        self._stopped = threading.Event()
        self._dropped = 0

    def __iter__(self) -> Iterator[Shot | Played]:
        while not self._stopped.is_set():
            # A live source is sought for ever: whoever looks at the page sees when it is back.
            source = self._source or open_source(self._spec, retry_seconds=None)
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
        """Frames of a file when they are due; those that cannot be shown in time are left out."""
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
    """JPEG pictures that a page sends; the newest one counts.

    Args:
        refused: Called with a line of text, by the engine's thread, for each picture that cannot be used.
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
    """A JPEG picture that a page sent, RGB uint8 ``(H, W, 3)``.

    Raises:
        MessageError: It is damaged, no JPEG, or too large; nothing large is allocated for it.
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
    """Where a recording is to go on."""

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
        FormatError: It is damaged, of another model, or holds no frame.
        SourceError: It cannot be read.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        self.name = path.name
        self._tokenizer = tokenizer
        self._reader = Reader(path, tokenizer.entropy_model)
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
        """What a page needs to know to seek, as JSON."""
        return {
            "name": self.name,
            "frames": len(self._reader),
            "seconds": round(self._times[-1], 3),
            "keyframes": self._marks,
            "playing": self._place.playing,
        }

    def play(self, playing: bool) -> None:
        """Go on, or pause."""
        with self._changed:
            self._place.playing = playing
            self._place.due = time.monotonic()
            self._changed.notify()

    def seek(self, number: int) -> None:
        """Show frame ``number``, or the last one, and go on from there unless paused."""
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
            except FormatError as error:  # one damaged frame is left out; a file of nothing else ends the iteration
                problem = error
                bad += 1
                if bad >= len(self._reader):
                    raise problem from None
                continue
            if shown is not None:
                bad = 0
                yield shown

    def _wait(self, current: int) -> int | None:
        """The frame to show next, when it is due; None when the feed is to end."""
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
                # Decoding that is too slow plays in slow motion: the frames build on one another.
                place.due = max(place.due + self._duration(number), now)
                return number

    def _decode(self, number: int) -> Played | None:
        """Decode frame ``number`` and those it builds on; None when another one has been asked for meanwhile."""
        reader, key = self._reader, self._reader.keyframe_before(number)
        if number < self._next or key >= self._next:
            self._next = key
        for at in range(self._next, number + 1):
            if self._place.seek is not None or self._place.stopped:
                return None
            packet = reader.packet(at)
            if reader.is_key(at):  # no packet before it matters, whatever its number
                self._check_size(at)
                self._decoder = StreamDecoder(self._tokenizer)
            self._next = at + 1
            if at < number:
                self._decoder.push(packet)
        decoded = self._decoder.decode(packet)
        if decoded.image is None or not decoded.complete:
            raise FormatError(f"{reader.path}: frame {number}: {decoded.problem or 'patches are missing'}")
        tokens: TokenFrame | DeltaFrame
        if reader.is_key(number):
            tokens = reader[number]
        else:
            state = self._decoder.state
            assert state is not None
            tokens = unpack_delta(packet, self._tokenizer.entropy_model, state.global_ids)
        return Played(decoded.image, tokens, len(packet), number, self._times[number], time.monotonic())

    def _check_size(self, number: int) -> None:
        info = self._reader.info(number)
        if info.width * info.height > MAX_PIXELS:
            raise FormatError(
                f"{self._reader.path}: frame {number} is {info.width}x{info.height}; the demo shows frames of up to "
                f"{MAX_PIXELS / 1e6:.0f} million pixels"
            )

    def _seconds(self) -> list[float]:
        """Time of each frame from the first one, rising."""
        reader = self._reader
        step = 1 / float(reader.fps or RECORDING_FPS)
        times = [0.0]
        last: int | None = None
        for number in range(len(reader)):
            stamp: int | None = None
            with suppress(FormatError):  # a damaged frame takes the usual time
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
