"""The demo's one thread of work: takes pictures from a feed, encodes and decodes them, and hands over what to show.

All pages see the same pictures: there is one camera and one encoder, whoever looks. What pages ask for is noted at
once and acted on ahead of the next picture.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.demo.feeds import Feed, Played, RecordingFeed, Shot, SourceFeed, WebcamFeed
from tatok_edge.demo.messages import MessageError, Settings
from tatok_edge.errors import FormatError, InputError, TaTokError
from tatok_edge.evaluation.folder import psnr
from tatok_edge.format.container import Writer
from tatok_edge.geometry import CELL, MIN_SIDE, PATCH, Image, cell_grid, patch_grid
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.source import Source, without_secrets
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import KeyframeTooLarge, StreamEncoder
from tatok_edge.stream.pipeline import SMALLEST_PACKET, SPENT_AT_ONCE, WINDOW_US, RateControl
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

EVERY_TOKEN: Final = TokenBudget(min_tokens=1 << 24, score="entropy")
"""The fixed-rate tokenizer; the score costs nothing and decides nothing."""
HELD, UPDATED, TOKEN, MOVED = 0, 1, 2, 3
"""Values of the map: the patch stays as it is, is updated without a token, with one, or moves along with its cell."""
JPEG_QUALITY: Final = 90
RETRY_SECONDS: Final = 2.0
"""Pause before a source that failed is opened again."""
LONGEST_RECORDING: Final = 3600.0
"""A recording ends by itself after so many seconds: a forgotten page must not fill the disk."""
MAX_LISTED: Final = 200
"""Newest recordings that a page can choose from."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What pages show for one picture."""

    number: int
    """Rises from view to view."""
    version: int
    """Of the settings that it was made with."""
    arrived: float
    """When the picture was there, in seconds of ``time.monotonic``."""
    header: dict[str, Any]
    """Figures, as JSON."""
    camera: bytes
    """The picture that was encoded, as JPEG; empty for recordings."""
    picture: bytes
    """The reconstruction, as JPEG."""
    token_map: bytes
    """One of ``HELD``, ``UPDATED``, ``TOKEN`` and ``MOVED`` per patch, raster order."""


class Audience(Protocol):
    """Who watches; called by the engine's thread."""

    def present(self) -> bool:
        """Whether anybody does: without, nothing is encoded."""

    def show(self, view: View) -> None:
        """A new view."""

    def changed(self) -> None:
        """The state has changed."""

    def tell(self, text: str, owner: int | None = None) -> None:
        """Something went wrong, for everybody or for the page ``owner``."""

    def refuse(self, text: str, owner: int) -> None:
        """A picture that page ``owner`` sent cannot be used."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What is to be shown."""

    kind: str = "source"
    """``"source"``, ``"webcam"`` or ``"recording"``."""
    name: str | None = None
    """Name of the recording."""
    owner: int | None = None
    """Page whose webcam it is."""


class Engine:
    """Runs the tokenizer on what pages choose to see; use it in a ``with`` statement.

    Args:
        tokenizer: The model.
        spec: What :func:`open_source` takes, or a ``.ttk`` file.
        audience: Who watches.
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
        """What the sliders say; replaced as a whole."""
        self._defaults = self.settings
        self.failure: BaseException | None = None
        """The bug that ended the thread, if any."""
        self._tokenizer = tokenizer
        self._spec, self._opened = spec, opened
        self._is_file = spec.lower().endswith(".ttk")
        self._given = _short_name(spec)
        self._audience = audience
        self._folder = record_to
        self._lock = threading.Lock()
        self._choice, self._shown_choice = Choice(), Choice()
        self._feed: Feed | None = None
        self._stopping = threading.Event()
        self._record = False
        self._writer: Writer | None = None
        self._recorded_from = 0.0
        self._recordings: list[str] = []
        self._number = self._skipped = 0
        self._start = time.monotonic()
        self._sent: deque[tuple[float, int]] = deque()
        self._times: deque[float] = deque(maxlen=60)
        self._problem: str | None = None
        self._begin(self.settings)
        self._list_recordings()
        self._thread = threading.Thread(target=self._run, name="tatok demo")

    # --- asked for by pages, from any thread ------------------------------------------------------

    def change(self, changes: dict[str, Any]) -> Settings:
        """Change settings, from the next picture on.

        Raises:
            MessageError: One of them cannot be.
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
        if choice.kind == "recording" and choice.name not in self._recordings:
            raise MessageError("there is no such recording")
        with self._lock:
            self._choice = choice
            if choice.kind == "recording":
                self._record = False
            if self._feed is not None:
                self._feed.stop()

    def left(self, owner: int) -> None:
        """A page has gone; if it gave its webcam, the source is shown again."""
        with self._lock:
            mine = self._choice.owner == owner
        if mine:
            self.choose(Choice())

    def record(self, on: bool) -> None:
        """Begin or end a recording, with the next picture.

        Raises:
            MessageError: There is no folder for it, or a recording is being shown.
        """
        if on and self._folder is None:
            raise MessageError("nothing can be recorded: start 'tatok demo' with --record-to FOLDER")
        if on and isinstance(self._feed, RecordingFeed):
            raise MessageError("this is a recording already; choose a camera to record")
        self._record = on

    def offer(self, owner: int, data: bytes) -> None:
        """A webcam picture, as JPEG, from the page that was chosen for it; late ones from others are ignored."""
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
        """Let the recording run, or pause it.

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
        """Everything but the pictures, as JSON."""
        feed, writer, choice = self._feed, self._writer, self._shown_choice
        backend = self._tokenizer.backend
        return {
            "settings": self.settings.report(),
            "defaults": self._defaults.report(),
            "source": {"kind": choice.kind, "name": None if feed is None else feed.name, "owner": choice.owner},
            "given": {"name": self._given, "file": self._is_file},
            "playback": feed.report() if isinstance(feed, RecordingFeed) else None,
            "recording": {
                "allowed": self._folder is not None,
                "name": None if writer is None else writer.path.name,
            },
            "recordings": self._recordings,
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
        except Exception as error:  # a bug of ours: the server ends and says so
            self.failure = error
            self._audience.tell(f"unexpected {type(error).__name__}: {error}")
            self._audience.changed()
        finally:
            self._end_recording()

    def _watch(self) -> None:
        """Shows one feed until another one is chosen, it ends, or it fails."""
        choice = self._choice
        feed: Feed | None = None
        try:
            feed = self._open(choice)
            with self._lock:
                self._feed, self._shown_choice = feed, choice
                if self._stopping.is_set() or self._choice is not choice:
                    return
            self._problem = None
            self._begin(self.settings)
            self._audience.changed()
            for item in feed:
                if isinstance(item, Played):
                    self._wait_for_audience(choice)
                if self._stopping.is_set() or self._choice is not choice:
                    return
                self._take(item)
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
        """A recording stands still while nobody looks."""
        while not self._audience.present() and self._choice is choice:
            if self._stopping.wait(0.1):
                return

    def _open(self, choice: Choice) -> Feed:
        if choice.kind == "webcam":
            owner = -1 if choice.owner is None else choice.owner
            return WebcamFeed(lambda text: self._audience.refuse(text, owner))
        if choice.kind == "recording":
            assert self._folder is not None and choice.name is not None
            return RecordingFeed(self._folder / choice.name, self._tokenizer)
        if self._is_file:
            return RecordingFeed(Path(self._spec), self._tokenizer)
        opened, self._opened = self._opened, None
        return SourceFeed(self._spec, opened)

    def _begin(self, settings: Settings) -> None:
        """A new encoder and decoder."""
        self._encoder = StreamEncoder(self._tokenizer, max_loss_db=settings.max_loss_db)
        self._decoder = StreamDecoder(self._tokenizer)
        self._mode = settings.mode
        self._rate: RateControl | None = None
        self._picture: Image | None = None

    def _take(self, item: Shot | Played) -> None:
        self._follow_recording(item)
        if isinstance(item, Played):
            self._show_played(item)
        elif self._audience.present() or self._writer is not None:
            self._show_shot(item)

    # --- one picture ----------------------------------------------------------------------------------

    def _show_shot(self, shot: Shot) -> None:
        settings = self.settings
        begun = time.monotonic()
        image = scaled(shot.image, settings.size)
        if settings.mode != self._mode:
            self._begin(settings)
        elif shot.restarted:
            self._encoder.request_keyframe()
        self._number += 1
        stamp = round((begun - self._start) * 1e6)
        try:
            encoded = self._encode(image, settings, stamp)
        except InputError as error:  # a budget that no picture fits into: say so, and go on with other settings
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
            self._write(packet)
            if isinstance(tokens, TokenFrame) and settings.mode == "fixed":
                self._picture = self._tokenizer.decode(tokens)
            else:
                self._picture = self._decoder.decode(packet).image
        height, width = image.shape[:2]
        picture = self._picture
        if picture is None or picture.shape != image.shape:
            picture = np.zeros_like(image)
        header = self._figures(tokens, len(packet), begun, width, height) | {
            "psnr": round(psnr(image, picture), 3),
            "encode_ms": round(1000 * (packed - begun), 2),
            "packet_ms": round(1000 * (packed - shot.arrived), 2),
            "dropped": shot.dropped,
            "skipped": self._skipped,
            "mode": settings.mode,
            "limit_kbps": settings.max_kbps if settings.mode == "adaptive" else None,
        }
        self._publish(header, settings.version, shot.arrived, image, picture, tokens)

    def _encode(self, image: Image, settings: Settings, stamp: int) -> tuple[TokenFrame | DeltaFrame, bytes] | None:
        """Tokens and packet of a picture; None where the bandwidth has nothing left for it."""
        if settings.mode == "fixed":
            frame = self._tokenizer.encode(image, budget=EVERY_TOKEN, index=self._number, timestamp_us=stamp)
            return frame, self._tokenizer.pack(frame)
        encoder = self._encoder
        encoder.max_loss_db = settings.max_loss_db
        encoder.budget = budget = settings.budget
        rate = self._rate_control(settings)
        if rate is not None:
            left = rate.left(stamp)
            if left < SMALLEST_PACKET:
                return None
            encoder.budget = replace(budget, max_bits=max(int(left * SPENT_AT_ONCE), SMALLEST_PACKET))
        try:
            encoded = encoder.encode(image, index=self._number, timestamp_us=stamp)
        except KeyframeTooLarge as error:
            if rate is None or error.bits > rate.bits:
                raise InputError(
                    f"{settings.max_kbps:g} kbit/s are too few for {image.shape[1]}x{image.shape[0]} pixels: "
                    f"a keyframe needs {error.bits / 1000:.1f} kbit"
                ) from None
            if error.bits > left:
                return None
            encoder.budget = replace(budget, max_bits=error.bits)
            encoded = encoder.encode(image, index=self._number, timestamp_us=stamp)
        if rate is not None:
            rate.spend(stamp, 8 * len(encoded.packet))
        return encoded.tokens, encoded.packet

    def _rate_control(self, settings: Settings) -> RateControl | None:
        """Keeps the bandwidth; a new one knows what was sent before it."""
        if settings.max_kbps is None:
            self._rate = None
        elif self._rate is None or self._rate.bits != int(settings.max_kbps * 1000):
            self._rate = RateControl(settings.max_kbps)
            for when, bits in self._sent:
                self._rate.spend(round((when - self._start) * 1e6), bits)
        return self._rate

    def _show_played(self, played: Played) -> None:
        self._number += 1
        height, width = played.image.shape[:2]
        header = self._figures(played.tokens, played.size, time.monotonic(), width, height) | {
            "psnr": None,
            "encode_ms": None,
            "packet_ms": None,
            "mode": "recording",
            "frame": played.number,
            "seconds": round(played.seconds, 3),
        }
        self._publish(header, self.settings.version, played.arrived, None, played.image, played.tokens)

    def _figures(
        self, tokens: TokenFrame | DeltaFrame | None, size: int, now: float, width: int, height: int
    ) -> dict[str, Any]:
        """What is known of the packet of every frame."""
        self._sent.append((now, 8 * size))
        self._times.append(now)
        while self._sent[0][0] <= now - WINDOW_US / 1e6:
            self._sent.popleft()
        while self._times[0] < now - 2:
            self._times.popleft()
        rows, columns = patch_grid(width, height)
        cell_rows, cell_columns = cell_grid(width, height)
        updated = 0 if tokens is None else tokens.n_updated if isinstance(tokens, DeltaFrame) else tokens.n_patches
        span = self._times[-1] - self._times[0]
        return {
            "time": round(now - self._start, 3),
            "kind": "skipped" if tokens is None else "delta" if isinstance(tokens, DeltaFrame) else "key",
            "width": width,
            "height": height,
            "grid": [rows, columns],
            "patch_tokens": 0 if tokens is None else tokens.n_tokens,
            "global_tokens": 0 if tokens is None else int(tokens.global_ids.size),
            "vectors": tokens.n_vectors if isinstance(tokens, DeltaFrame) else 0,
            "updated": updated,
            "fixed_tokens": rows * columns + cell_rows * cell_columns,
            "kbps": round(sum(bits for _, bits in self._sent) / 1000, 2),
            "fps": round((len(self._times) - 1) / span, 2) if span > 0 else 0.0,
        }

    def _publish(
        self,
        header: dict[str, Any],
        version: int,
        arrived: float,
        image: Image | None,
        picture: Image,
        tokens: TokenFrame | DeltaFrame | None,
    ) -> None:
        rows, columns = header["grid"]
        token_map = map_of(tokens, rows * columns)
        camera = b"" if image is None else jpeg(image)
        reconstruction = jpeg(picture)
        header["server_ms"] = round(1000 * (time.monotonic() - arrived), 2)
        self._audience.show(View(self._number, version, arrived, header, camera, reconstruction, token_map.tobytes()))

    # --- recordings -----------------------------------------------------------------------------------

    def _follow_recording(self, item: Shot | Played) -> None:
        """Begin or end a recording as it was asked for."""
        wanted = self._record and isinstance(item, Shot)
        if self._writer is not None and (not wanted or time.monotonic() - self._recorded_from > LONGEST_RECORDING):
            self._record = False
            self._end_recording()
        elif self._writer is None and wanted:
            self._begin_recording()

    def _begin_recording(self) -> None:
        assert self._folder is not None
        name = time.strftime("tatok-%Y%m%d-%H%M%S")
        path, count = self._folder / f"{name}.ttk", 1
        while path.exists() or path.with_name(f"{path.name}.part").exists():
            count += 1
            path = self._folder / f"{name}-{count}.ttk"
        feed = self._feed
        metadata = {"source": "" if feed is None else feed.name, "backend": self._tokenizer.backend.name}
        try:
            self._writer = Writer(path, self._tokenizer.entropy_model, name=self._tokenizer.name, metadata=metadata)
        except TaTokError as error:
            self._record = False
            self._audience.tell(str(error))
            return
        self._recorded_from = time.monotonic()
        self._encoder.request_keyframe()  # a recording begins with a frame that stands alone
        self._audience.changed()

    def _write(self, packet: bytes) -> None:
        if self._writer is None:
            return
        try:
            self._writer.write_packet(packet)
        except TaTokError as error:
            self._record = False
            self._audience.tell(f"the recording has ended: {error}")
            self._end_recording()

    def _end_recording(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            writer.close(partial=True)
        except TaTokError as error:
            self._audience.tell(str(error))
        self._list_recordings()
        self._audience.changed()

    def _list_recordings(self) -> None:
        if self._folder is None:
            return
        found = [path for path in self._folder.glob("*.ttk") if path.is_file()]
        # By name: names begin with the time, and files that were copied have new times.
        self._recordings = sorted((path.name for path in found), reverse=True)[:MAX_LISTED]


def _short_name(spec: str) -> str:
    """What to call a source on the page."""
    if spec.startswith("synthetic"):
        return "synthetic camera"
    path = Path(spec)
    return path.resolve().name or spec if path.exists() else without_secrets(spec)


def scaled(image: Image, size: int) -> Image:
    """The picture with a longer side of at most ``size`` pixels, and none below what can be tokenized."""
    height, width = image.shape[:2]
    factor = min(size / max(height, width), 1.0)
    new = tuple(max(round(side * factor), min(MIN_SIDE, side)) for side in (width, height))
    if new == (width, height):
        return image
    return np.asarray(cv2.resize(image, new, interpolation=cv2.INTER_AREA), np.uint8)


def map_of(tokens: TokenFrame | DeltaFrame | None, patches: int) -> NDArray[np.uint8]:
    """What happened to each patch, uint8 ``(patches,)``."""
    result = np.full(patches, HELD, np.uint8)
    if isinstance(tokens, DeltaFrame):
        if tokens.n_vectors:
            moves = tokens.motion().any(-1).repeat(CELL // PATCH, 0).repeat(CELL // PATCH, 1)
            result[moves.ravel()] = MOVED
        result[tokens.updated] = UPDATED
    elif tokens is not None:
        result[:] = UPDATED
    if tokens is not None:
        result[tokens.positions] = TOKEN
    return result


def jpeg(image: Image) -> bytes:
    """An RGB picture as JPEG."""
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    if not done:
        raise FormatError("a picture cannot be written as JPEG")
    return data.tobytes()
