"""Where frames come from: pictures, folders of pictures, videos, cameras, RTSP streams and the rendered camera clip.

:func:`open_source` turns what a user names into a :class:`Source`. The first frame is read at once, so a source that
opens is one that delivers. Files never lose a frame. Live sources hand over the newest frame and count what they
dropped, so a slow consumer lags by one frame and not by seconds.
"""

from __future__ import annotations

import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import SourceError
from tatok_edge.synthetic import Scene, render
from tatok_edge.tokens import MAX_SIDE, MIN_SIDE

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that count as pictures; any other file is read as a video."""
OPEN_TIMEOUT_MS = 10_000
"""How long an RTSP server may take to answer."""
READ_TIMEOUT_MS = 10_000
"""How long an RTSP stream may stay silent before it counts as ended."""
LENGTH_TOLERANCE = 0.02
"""A video may end this share of its stated length early (at least two frames): many containers only estimate it."""

Image = NDArray[np.uint8]

_CAMERA = re.compile(r"(?:/dev/video)?(\d{1,3})")
_SCENE_LIMITS = {"frames": (1, 1_000_000), "width": (MIN_SIDE, 4096), "height": (MIN_SIDE, 4096), "fps": (1, 1000)}


@dataclass(frozen=True, slots=True, eq=False)
class SourceFrame:
    """One frame as a source delivers it."""

    image: Image
    """RGB picture, uint8 (height, width, 3)."""
    index: int
    """Number of the frame in its source, from 0; pictures that cannot be read and dropped frames count too."""
    timestamp_us: int
    """Time of the frame in microseconds from the first one; 0 for pictures."""


class Source(ABC):
    """An open source of frames: a context manager to iterate over once.

    Args:
        name: What to call it in messages and files; holds no password.
        first: The first frame's picture.
        fps: Frames per second, if known.
        frames: Number of frames, if known.
        live: Whether frames are lost when nobody takes them.
    """

    def __init__(self, name: str, first: Image, *, fps: float | None, frames: int | None, live: bool = False) -> None:
        self.name = name
        self.fps = fps
        self.frames = frames
        self.live = live
        self.height, self.width = first.shape[:2]
        self.problem: str | None = None
        """Why the source ended early or left something out, in one line; known once the iteration is over."""
        self.dropped = 0
        """Frames that a live source threw away because a newer one was there."""
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[SourceFrame]:
        for frame in self._read():
            if self._stopped.is_set():
                return
            yield frame

    @abstractmethod
    def _read(self) -> Iterator[SourceFrame]:
        """Delivers the frames in order; sets :attr:`problem` where some are missing."""

    def stop(self) -> None:
        """Ends the iteration before the next frame; may be called from a signal handler or another thread."""
        self._stopped.set()

    def close(self) -> None:
        """Releases the file or device."""
        self.stop()

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(spec: str | int | Path) -> Source:
    """Opens what a user named.

    Args:
        spec: Path of a picture, a folder of pictures or a video file; number (or ``/dev/videoN``) of a camera;
            ``rtsp://`` URL; or ``synthetic``, the rendered camera clip, with settings as in
            ``synthetic:frames=120,width=640,height=480,fps=30,seed=0``.

    Returns:
        A source whose first frame is there.

    Raises:
        SourceError: It does not exist or cannot be read; the message says what would do.
    """
    text = str(spec)
    if text == "synthetic" or text.startswith("synthetic:"):
        return _SyntheticSource(text, _parse_scene(text))
    if camera := _CAMERA.fullmatch(text):
        return _open_camera(int(camera.group(1)))
    if "://" in text:
        return _open_stream(text)
    path = Path(text)
    if text and path.is_dir():
        return _FolderSource(path)
    if not text or not path.exists():
        raise SourceError(
            f"{text or 'an empty name'}: no such file; a source is a picture, a folder of pictures, a video file, "
            "a camera number, an rtsp:// URL or 'synthetic'"
        )
    if path.suffix.lower() == ".ttk":
        raise SourceError(f"{text}: this is a token file already; 'tatok decode' turns it into pictures")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return _ImageSource(path)
    if not os.access(path, os.R_OK):
        raise SourceError(f"{text}: cannot be read (permission denied)")
    return _VideoSource(path)


def read_image(path: str | Path) -> Image:
    """Reads one picture.

    Args:
        path: A file in a format that OpenCV decodes. Alpha is dropped, grey becomes RGB, 16 bits become 8, and a
            camera's orientation note is obeyed.

    Returns:
        RGB picture, uint8 (height, width, 3).

    Raises:
        SourceError: The file is missing, cut off or no picture, or its size is not one that can be tokenized.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    if cut := _cut_off(data):
        raise SourceError(f"{path}: {cut}")
    try:
        # From memory, not with imread: imread paints the missing part of a JPEG that is cut off grey, without a word.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{path}: cannot be decoded ({error.err})") from None
    if image is None:
        raise SourceError(f"{path}: not a picture that OpenCV can decode, or a damaged one")
    height, width = image.shape[:2]
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise SourceError(f"{path}: is {width}x{height}; width and height must be from {MIN_SIDE} to {MAX_SIDE} pixels")
    return _rgb(image)


def list_images(folder: str | Path) -> list[Path]:
    """The pictures directly in ``folder``, in the order people expect (``2.png`` before ``10.png``).

    Raises:
        SourceError: The folder cannot be read or holds no picture.
    """
    try:
        paths = [path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]
    except OSError as error:
        raise SourceError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if not paths:
        raise SourceError(f"{folder}: holds no picture (looked for *{', *'.join(IMAGE_SUFFIXES)})")
    return sorted(paths, key=_natural_order)


def _natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts numbers inside names by value."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


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


class _ImageSource(Source):
    """A single picture."""

    def __init__(self, path: Path) -> None:
        self._image = read_image(path)
        super().__init__(str(path), self._image, fps=None, frames=1)

    def _read(self) -> Iterator[SourceFrame]:
        yield SourceFrame(self._image, 0, 0)


class _FolderSource(Source):
    """The pictures of a folder. One that cannot be read is left out and reported at the end."""

    def __init__(self, folder: Path) -> None:
        self._paths = list_images(folder)
        first, reason = None, ""
        for path in self._paths:
            try:
                first = read_image(path)
                break
            except SourceError as error:
                reason = reason or str(error)
        if first is None:
            raise SourceError(f"{folder}: none of its {len(self._paths)} pictures can be read; the first: {reason}")
        super().__init__(str(folder), first, fps=None, frames=len(self._paths))

    def _read(self) -> Iterator[SourceFrame]:
        bad: list[str] = []
        for index, path in enumerate(self._paths):
            try:
                image = read_image(path)
            except SourceError as error:
                bad.append(str(error))
                continue
            yield SourceFrame(image, index, 0)
        if bad:
            self.problem = f"left out {len(bad)} of {len(self._paths)} pictures; the first: {bad[0]}"


class _VideoSource(Source):
    """A video file."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        first = _next_image(self._capture)
        if first is None:
            self._capture.release()
            raise SourceError(
                f"{path}: not a video or picture that OpenCV can read, or it is damaged; "
                "'tatok doctor' shows what this OpenCV can do"
            )
        self._first = first
        self._start_ms = self._capture.get(cv2.CAP_PROP_POS_MSEC)
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(str(path), first, fps=_plausible_fps(self._capture), frames=count if count > 0 else None)

    def _read(self) -> Iterator[SourceFrame]:
        image: Image | None = self._first
        index = 0
        while image is not None:
            milliseconds = max(self._capture.get(cv2.CAP_PROP_POS_MSEC) - self._start_ms, 0.0)
            yield SourceFrame(_rgb(image), index, round(milliseconds * 1000))
            image = _next_image(self._capture)
            index += 1
        if self.frames is not None and self.frames - index > max(2, LENGTH_TOLERANCE * self.frames):
            self.problem = f"{self.name} breaks off after {index} of {self.frames} frames"

    def close(self) -> None:
        super().close()
        self._capture.release()


class _LiveSource(Source):
    """A camera or network stream, read by a thread of its own that keeps only the newest frame."""

    def __init__(self, name: str, capture: cv2.VideoCapture, first: Image) -> None:
        super().__init__(name, first, fps=_plausible_fps(capture), frames=None, live=True)
        self._capture = capture
        self._newest: tuple[Image, int, float] | None = (first, 0, time.monotonic())
        self._ended = False
        self._arrived = threading.Condition()
        # A daemon, so that a driver that hangs in a read cannot keep the program alive.
        self._thread = threading.Thread(target=self._pump, name=f"tatok source {name}", daemon=True)
        self._thread.start()

    def _pump(self) -> None:
        index = 0
        while not self._stopped.is_set():
            image = _next_image(self._capture)
            index += 1
            with self._arrived:
                if image is None:
                    self._ended = True
                else:
                    self.dropped += self._newest is not None
                    self._newest = (image, index, time.monotonic())
                self._arrived.notify()
            if image is None:
                return

    def _read(self) -> Iterator[SourceFrame]:
        start: float | None = None
        taken = 0
        while True:
            with self._arrived:
                while self._newest is None and not self._ended and not self._stopped.is_set():
                    self._arrived.wait(0.1)
                newest, self._newest = self._newest, None
            if newest is None:
                break
            image, index, moment = newest
            start = moment if start is None else start
            taken += 1
            yield SourceFrame(_rgb(image), index, round((moment - start) * 1e6))
        if not self._stopped.is_set():
            self.problem = f"{self.name} stopped sending after {taken} frames"

    def close(self) -> None:
        super().close()
        self._thread.join(timeout=READ_TIMEOUT_MS / 1000 + 1)
        if not self._thread.is_alive():  # otherwise the thread still uses it
            self._capture.release()


class _SyntheticSource(Source):
    """The rendered camera clip."""

    def __init__(self, name: str, scene: Scene) -> None:
        self._scene = scene
        super().__init__(name, render(scene, 0), fps=scene.fps, frames=scene.frames)

    def _read(self) -> Iterator[SourceFrame]:
        for index in range(self._scene.frames):
            yield SourceFrame(render(self._scene, index), index, round(index / self._scene.fps * 1e6))


def _open_camera(number: int) -> Source:
    source = _open_live(f"camera {number}", cv2.VideoCapture(number))
    if source is None:
        listed = ", ".join(f"{path} ({name})" for path, name in find_cameras()) or "none"
        raise SourceError(
            f"camera {number} cannot be opened; video devices here: {listed}; without a camera, try 'synthetic'"
        )
    return source


def _open_stream(url: str) -> Source:
    scheme = url.split("://", 1)[0].lower()
    name = re.sub(r"(?<=://)[^/@]*@", "", url)  # a user name and password stay out of messages and files
    if scheme not in ("rtsp", "rtsps"):
        raise SourceError(f"{name}: a stream is an rtsp:// or rtsps:// URL, got {scheme}://")
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT_MS]
    source = _open_live(name, cv2.VideoCapture(url, cv2.CAP_FFMPEG, limits))
    if source is None:
        raise SourceError(f"{name}: no stream came; check address, path and password")
    return source


def _open_live(name: str, capture: cv2.VideoCapture) -> Source | None:
    """A live source once a first frame has come, else None with the capture released."""
    first = _next_image(capture)
    if first is None:
        capture.release()
        return None
    return _LiveSource(name, capture, first)


def _parse_scene(text: str) -> Scene:
    types = {field.name: int if field.type == "int" else float for field in fields(Scene)}
    values: dict[str, int | float] = {}
    for item in text.partition(":")[2].split(","):
        if not item:
            continue
        key, _, value = item.partition("=")
        if key not in types:
            raise SourceError(f"{text}: unknown setting {key!r}; settings are {', '.join(types)}")
        try:
            number = types[key](value)
        except ValueError:
            raise SourceError(f"{text}: {key} must be a number, got {value!r}") from None
        low, high = _SCENE_LIMITS.get(key, (0, 2**31 - 1))
        if not low <= number <= high:
            raise SourceError(f"{text}: {key} must be from {low} to {high}, got {value}")
        values[key] = number
    return Scene(**values)  # type: ignore[arg-type]  # the types were taken from its fields


def _plausible_fps(capture: cv2.VideoCapture) -> float | None:
    """The frame rate a capture states; None where it states nonsense, as cameras and streams do."""
    fps = float(capture.get(cv2.CAP_PROP_FPS))
    return fps if 0.01 <= fps <= 1000 else None


def _next_image(capture: cv2.VideoCapture) -> Image | None:
    """The next BGR picture of a capture, None at its end or where it could not be opened."""
    more, image = capture.read()
    return np.asarray(image, np.uint8) if more else None


def _rgb(image: cv2.typing.MatLike) -> Image:
    """RGB from OpenCV's BGR, as an array of its own."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _cut_off(data: bytes) -> str:
    """Says that a file is empty or ends too early, as far as its bytes tell; an empty string when they do not."""
    if not data:
        return "is empty"
    for name, magic, end in (("PNG", b"\x89PNG\r\n\x1a\n", b"IEND"), ("JPEG", b"\xff\xd8\xff", b"\xff\xd9")):
        if data.startswith(magic) and end not in data:
            return f"a {name} that is cut off"
    return ""
