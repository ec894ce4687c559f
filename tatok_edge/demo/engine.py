"""The demo's one thread of work: takes pictures from a feed, encodes and decodes them, and shows them.

All pages see the same pictures: there is one camera and one encoder for all pages. The thread acts on the requests of
pages before the next picture.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.demo.coder import LiveCoder, Tokens
from tatok_edge.demo.feeds import Feed, Played, RecordingFeed, Shot, SourceFeed, WebcamFeed
from tatok_edge.demo.messages import MessageError, Settings
from tatok_edge.demo.recordings import Recordings
from tatok_edge.demo.views import Audience, Traffic, View, figures, jpeg, map_of, scaled, sequence_of
from tatok_edge.errors import InputError, TaTokError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.passwords import without_secrets
from tatok_edge.sources.source import Source

RETRY_SECONDS: Final = 2.0
"""Pause before a source that failed is opened again."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What pages see."""

    kind: str = "source"
    """``"source"``, ``"webcam"`` or ``"recording"``."""
    name: str | None = None
    """Name of the recording."""
    owner: int | None = None
    """Page whose webcam it is."""


class Engine:
    """Runs the tokenizer on the source that pages choose; use it in a ``with`` statement.

    Args:
        tokenizer: The model.
        spec: Name of a source for :func:`open_source`, or a ``.ttk`` file.
        audience: The pages.
        opened: The source, if it is open already.
        record_to: Folder of the recordings; None allows none.
        settings: Settings to begin with.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        spec: str,
        audience: Audience,
        *,
        opened: Source | None = None,
        record_to: Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        """Settings of the pages; replaced as a whole."""
        self._defaults = self.settings
        self.failure: BaseException | None = None
        """The bug that ended the thread, if any."""
        self._tokenizer = tokenizer
        self._spec, self._opened = spec, opened
        self._is_file = spec.lower().endswith(".ttk")
        self._given = _short_name(spec)
        self._audience = audience
        self.recordings = Recordings(record_to, tokenizer, audience)
        """The folder of recordings."""
        self._lock = threading.Lock()
        self._choice, self._shown_choice = Choice(), Choice()
        self._feed: Feed | None = None
        self._stopping = threading.Event()
        self._number = self._skipped = 0
        self._traffic = Traffic()
        self._problem: str | None = None
        self._coder = LiveCoder(tokenizer, self.settings)
        self._thread = threading.Thread(target=self._run, name="tatok demo")

    # --- requests of pages, from any thread ------------------------------------------------------

    def change(self, changes: dict[str, Any]) -> Settings:
        """Change settings, from the next picture on.

        Raises:
            MessageError: A setting is unknown or out of range.
        """
        with self._lock:
            self.settings = self.settings.changed(changes)
            changed = self.settings
        self._audience.changed()
        return changed

    def choose(self, choice: Choice) -> None:
        """Show something else.

        Raises:
            MessageError: There is no such recording.
        """
        if choice.kind not in ("source", "webcam", "recording"):
            raise MessageError("name must be 'source', 'webcam' or 'recording'")
        if choice.kind == "recording" and choice.name not in self.recordings.names:
            raise MessageError("there is no such recording")
        with self._lock:
            self._choice = choice
            if choice.kind == "recording":
                self.recordings.request(False)
            if self._feed is not None:
                self._feed.stop()

    def left(self, owner: int) -> None:
        """A page has closed; if its webcam is shown, show the source again."""
        with self._lock:
            mine = self._choice.owner == owner
        if mine:
            self.choose(Choice())

    def record(self, on: bool) -> None:
        """Begin or end a recording, with the next picture.

        Raises:
            MessageError: There is no folder for it, or a recording is being shown.
        """
        if on and self.recordings.allowed and isinstance(self._feed, RecordingFeed):
            raise MessageError("this is a recording already; choose a camera to record")
        self.recordings.request(on)

    def offer(self, owner: int, data: bytes) -> None:
        """Take a webcam picture, as JPEG, from page ``owner``; ignored unless this webcam is shown."""
        with self._lock:
            feed = self._feed
            if isinstance(feed, WebcamFeed) and self._shown_choice.owner == owner:
                feed.offer(data)

    def seek(self, number: int) -> None:
        """Show frame ``number`` of the recording.

        Raises:
            MessageError: No recording is shown.
        """
        self._playing().seek(number)

    def play(self, playing: bool) -> None:
        """Continue or pause the recording.

        Raises:
            MessageError: No recording is shown.
        """
        self._playing().play(playing)
        self._audience.changed()

    def _playing(self) -> RecordingFeed:
        feed = self._feed
        if not isinstance(feed, RecordingFeed):
            raise MessageError("no recording is shown")
        return feed

    def state(self) -> dict[str, Any]:
        """State of the demo for the pages, without pictures, as JSON."""
        feed, choice = self._feed, self._shown_choice
        backend = self._tokenizer.backend
        return {
            "settings": self.settings.report(),
            "defaults": self._defaults.report(),
            "source": {"kind": choice.kind, "name": None if feed is None else feed.name, "owner": choice.owner},
            "given": {"name": self._given, "file": self._is_file},
            "playback": feed.report() if isinstance(feed, RecordingFeed) else None,
            "recording": {"allowed": self.recordings.allowed, "name": self.recordings.current},
            "recordings": self.recordings.names,
            "model": self._tokenizer.name,
            "backend": f"{backend.name}, {backend.threads} threads",
            "problem": self._problem,
        }

    # --- the thread ---------------------------------------------------------------------------------

    def __enter__(self) -> Engine:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        with self._lock:
            if self._feed is not None:
                self._feed.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._watch()
        except Exception as error:  # a bug: the server ends with this error
            self.failure = error
            self._audience.tell(f"unexpected {type(error).__name__}: {error}")
            self._audience.changed()
        finally:
            self.recordings.end()

    def _watch(self) -> None:
        """Show one feed until it ends or fails, or another one is chosen."""
        choice = self._choice
        feed: Feed | None = None
        try:
            feed = self._open(choice)
            with self._lock:
                self._feed, self._shown_choice = feed, choice
                if self._stopping.is_set() or self._choice is not choice:
                    return
            self._problem = None
            self._coder.restart(self.settings)
            self._audience.changed()
            for item in feed:
                if isinstance(item, Played):
                    self._wait_for_audience(choice)
                if self._stopping.is_set() or self._choice is not choice:
                    return
                live = not isinstance(item, Played)
                if self.recordings.follow(feed.name if live else None):
                    self._coder.request_keyframe()  # a recording begins with a frame that stands alone
                if isinstance(item, Played):
                    self._show_played(item)
                elif self._audience.present() or self.recordings.current is not None:
                    self._show_shot(item)
        except TaTokError as error:
            self._problem = str(error)
            self._audience.tell(str(error))
            with self._lock:
                if self._choice is choice and choice.kind != "source":
                    self._choice = Choice()
            if choice.kind == "source":
                self._audience.changed()
                self._stopping.wait(RETRY_SECONDS)
        finally:
            with self._lock:
                self._feed = None
            if feed is not None:
                feed.close()

    def _wait_for_audience(self, choice: Choice) -> None:
        """A recording waits while no page is open."""
        while not self._audience.present() and self._choice is choice:
            if self._stopping.wait(0.1):
                return

    def _open(self, choice: Choice) -> Feed:
        if choice.kind == "webcam":
            owner = -1 if choice.owner is None else choice.owner
            return WebcamFeed(lambda text: self._audience.refuse(text, owner))
        if choice.kind == "recording":
            assert choice.name is not None
            return RecordingFeed(self.recordings.path(choice.name), self._tokenizer)
        if self._is_file:
            return RecordingFeed(Path(self._spec), self._tokenizer)
        opened, self._opened = self._opened, None
        return SourceFeed(self._spec, opened, self._tokenizer.limits)

    # --- one picture ----------------------------------------------------------------------------------

    def _show_shot(self, shot: Shot) -> None:
        settings = self.settings
        begun = time.monotonic()
        image = scaled(shot.image, settings.size)
        self._coder.follow(settings, restarted=shot.restarted)
        self._number += 1
        traffic = self._traffic
        try:
            encoded = self._coder.encode(
                image, settings, index=self._number, timestamp_us=traffic.stamp(begun), sent=traffic.sent
            )
        except InputError as error:  # the bandwidth is too small: other settings may work
            if self._problem != str(error):
                self._problem = str(error)
                self._audience.tell(str(error))
            encoded = None
        packed = time.monotonic()
        tokens, packet = encoded or (None, b"")
        if encoded is None:
            self._skipped += 1
        else:
            if self._problem is not None:
                self._problem = None
                self._audience.changed()
            self.recordings.write(packet)
            self._coder.decode(encoded[0], packet)
        height, width = image.shape[:2]
        picture = self._coder.picture
        if picture is None or picture.shape != image.shape:
            picture = np.zeros_like(image)
        header = {
            **figures(tokens, width, height),
            **traffic.count(begun, len(packet)),
            "bits": 8 * len(packet),
            "psnr": round(psnr(image, picture), 3),
            "encode_ms": round(1000 * (packed - begun), 2),
            "packet_ms": round(1000 * (packed - shot.arrived), 2),
            "dropped": shot.dropped,
            "skipped": self._skipped,
            "mode": settings.mode,
            "limit_kbps": settings.max_kbps if settings.mode == "adaptive" else None,
        }
        self._publish(header, settings.version, shot.arrived, image, picture, tokens, self._coder.depths)

    def _show_played(self, played: Played) -> None:
        self._number += 1
        height, width = played.image.shape[:2]
        header = {
            **figures(played.tokens, width, height),
            **self._traffic.count(time.monotonic(), played.size),
            "bits": 8 * played.size,
            "psnr": None,
            "encode_ms": None,
            "packet_ms": None,
            "mode": "recording",
            "frame": played.number,
            "seconds": round(played.seconds, 3),
        }
        arrived, tokens, depths = played.arrived, played.tokens, played.depths
        self._publish(header, self.settings.version, arrived, None, played.image, tokens, depths)

    def _publish(
        self,
        header: dict[str, Any],
        version: int,
        arrived: float,
        image: Image | None,
        picture: Image,
        tokens: Tokens | None,
        depths: NDArray[np.int32] | None,
    ) -> None:
        rows, columns = header["grid"]
        if depths is None or depths.size != rows * columns:  # no frame of this size was decoded yet
            depths = np.zeros(rows * columns, np.int32)
        header["held_depth"] = round(float(depths.mean()), 3)
        maps = map_of(tokens, rows * columns).tobytes(), depths.astype(np.uint8).tobytes()
        camera = b"" if image is None else jpeg(image)
        reconstruction = jpeg(picture)
        header["server_ms"] = round(1000 * (time.monotonic() - arrived), 2)
        self._audience.show(
            View(
                self._number,
                version,
                arrived,
                header,
                camera,
                reconstruction,
                *maps,
                sequence_of(tokens, depths).tobytes(),
            )
        )


def _short_name(spec: str) -> str:
    """Name of a source on the page."""
    if spec.startswith("synthetic"):
        return "synthetic camera"
    path = Path(spec)
    return path.resolve().name or spec if path.exists() else without_secrets(spec)
