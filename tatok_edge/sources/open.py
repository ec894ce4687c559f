"""Where frames come from: pictures, folders, videos, arrays, cameras, RTSP, GStreamer and the rendered camera clip.

:func:`open_source` turns what a user names into a :class:`Source`. The first frame is read at once, so a source that
opens is one that delivers. Files never lose a frame. Live sources hand over the newest frame and count what they
dropped, so a slow consumer lags by one frame and not by seconds; :mod:`tatok_edge.sources.live` says how they survive
losses.
A frame that a decoder cannot read is left out or repaired as OpenCV does it, and the rest of the file is delivered.
A video that changes its size is scaled by OpenCV to the size it began with (before 4.13 it freezes); elsewhere a new
size sets ``restarted``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sized
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from tatok_edge.errors import SourceError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image
from tatok_edge.sources import gstreamer, live
from tatok_edge.sources.live import find_cameras, next_image, plausible_fps, rgb
from tatok_edge.sources.source import RisingClock, Source, SourceFrame, without_secrets
from tatok_edge.sources.synthetic import Scene, render

__all__ = [
    "IMAGE_SUFFIXES",
    "Image",
    "Source",
    "SourceFrame",
    "find_cameras",
    "list_images",
    "open_source",
    "read_image",
]

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of the files that count as pictures; any other file is read as a video."""
LENGTH_TOLERANCE = 0.02
"""A video may end this share of its stated length early (at least two frames): many containers only estimate it."""

OnLag = Literal["auto", "drop", "wait"]

_CAMERA = re.compile(r"(?:/dev/video)?(\d{1,3})")
_SCENE_LIMITS = {
    "frames": (1, 1_000_000),
    "width": (MIN_SIDE, 4096),
    "height": (MIN_SIDE, 4096),
    "fps": (1, 1000),
    "live": (0, 1),
}


def open_source(
    spec: str | int | Path | Iterable[Image],
    *,
    fps: float | None = None,
    on_lag: OnLag = "auto",
    retry_seconds: float | None = live.RETRY_SECONDS,
) -> Source:
    """Opens what a user named.

    Args:
        spec: One of

            - the path of a picture, a folder of pictures or a video file;
            - the number of a camera, ``/dev/videoN``, or its lasting name under ``/dev/v4l/``;
            - an ``rtsp://`` or ``rtsps://`` URL;
            - ``csi:0`` or ``csi:0,width=1280,height=720,fps=30,flip=2``, a Jetson's CSI camera;
            - ``gst:`` and a GStreamer pipeline, without or with an ``appsink`` at its end;
            - ``synthetic``, the rendered camera clip, with settings as in
              ``synthetic:frames=120,width=640,height=480,fps=30,seed=0``; with ``live=1`` it comes in real time like a
              camera, without end unless ``frames`` is given;
            - RGB pictures, uint8 (height, width, 3): an array of them, a list, a generator.
        fps: Frame rate of what has none: needed for arrays, possible for a folder of pictures.
        on_lag: What a live source does while nobody takes its frames. ``"drop"``: keep the newest and count the others.
            ``"wait"``: keep four, then read no more, and leave it to the camera or server to wait or drop.
            ``"auto"`` is ``"drop"``. Files always wait and never drop.
        retry_seconds: How long a live source that vanished is sought, in seconds from its last frame, before the
            iteration ends with ``problem`` set; None for ever, 0 not at all.

    Returns:
        A source whose first frame is there.

    Raises:
        SourceError: It does not exist or cannot be read; the message says what would do.
    """
    if on_lag not in ("auto", "drop", "wait"):
        raise SourceError(f"on_lag must be 'auto', 'drop' or 'wait', got {on_lag!r}")
    if retry_seconds is not None and not retry_seconds >= 0:
        raise SourceError(f"retry_seconds must be at least 0, or None for ever, got {retry_seconds}")
    if fps is not None and not 0 < fps <= _SCENE_LIMITS["fps"][1]:
        raise SourceError(f"fps must be above 0 and at most {_SCENE_LIMITS['fps'][1]}, got {fps}")
    if not isinstance(spec, str | int | os.PathLike):
        return _ArraySource(spec, fps)
    text = os.fspath(spec) if isinstance(spec, os.PathLike) else str(spec)
    if fps is not None and not Path(text).is_dir():
        raise SourceError(f"{without_secrets(text)}: fps is for arrays and folders of pictures; this has its own times")
    return _open_named(text, fps, drop=on_lag != "wait", retry_seconds=retry_seconds)


def _open_named(text: str, fps: float | None, *, drop: bool, retry_seconds: float | None) -> Source:
    kind, colon, settings = text.partition(":")
    if kind == "synthetic":
        scene, frames, is_live = _parse_scene(text)
        return live.open_synthetic(text, scene, frames, drop=drop) if is_live else _SyntheticSource(text, scene)
    if kind == "gst" and colon:
        return gstreamer.open_pipeline(settings, drop=drop, retry_seconds=retry_seconds)
    if kind == "csi":
        return gstreamer.open_csi(text, drop=drop, retry_seconds=retry_seconds)
    if camera := _CAMERA.fullmatch(text):
        return live.open_camera(camera.group(1), drop=drop, retry_seconds=retry_seconds)
    if text.startswith("/dev/v4l/"):
        return live.open_camera(text, drop=drop, retry_seconds=retry_seconds)
    if "://" in text:
        return live.open_rtsp(text, drop=drop, retry_seconds=retry_seconds)
    bag, _, topic = text.partition("#")
    if Path(bag).suffix.lower() in (".mcap", ".db3") or Path(bag).is_dir():
        from tatok_edge.robotics.bags import bag as robotics_bags
        from tatok_edge.sources import (
            bag as robotics_source,  # what bags need is nothing that other sources should wait for
        )

        if robotics_bags.is_bag(bag):
            return robotics_source.BagSource(bag, topic or None)
    path = Path(text)
    if text and path.is_dir():
        return _FolderSource(path, fps)
    if not text or not path.exists():
        raise SourceError(
            f"{text or 'an empty name'}: no such file; a source is a picture, a folder of pictures, a video file, "
            "a ROS 2 bag, a camera number, an rtsp:// URL, csi:0, a gst: pipeline or 'synthetic'"
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
    return rgb(image)


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


class _ImageSource(Source):
    """A single picture."""

    def __init__(self, path: Path) -> None:
        self._image = read_image(path)
        super().__init__(str(path), self._image, fps=None, frames=1)

    def _read(self) -> Iterator[SourceFrame]:
        yield SourceFrame(self._image, 0, 0)


class _FolderSource(Source):
    """The pictures of a folder. One that cannot be read is left out and reported at the end."""

    def __init__(self, folder: Path, fps: float | None) -> None:
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
        super().__init__(str(folder), first, fps=fps, frames=len(self._paths))

    def _read(self) -> Iterator[SourceFrame]:
        bad: list[str] = []
        for index, path in enumerate(self._paths):
            try:
                image = read_image(path)
            except SourceError as error:
                bad.append(str(error))
                continue
            yield SourceFrame(image, index, round(index / self.fps * 1e6) if self.fps else 0)
        if bad:
            self.problem = f"left out {len(bad)} of {len(self._paths)} pictures; the first: {bad[0]}"


class _VideoSource(Source):
    """A video file."""

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path))
        first = next_image(self._capture)
        if first is None:
            self._capture.release()
            raise SourceError(
                f"{path}: not a video or picture that OpenCV can read, or it is damaged; "
                "'tatok doctor' shows what this OpenCV can do"
            )
        self._first = first
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        super().__init__(str(path), first, fps=plausible_fps(self._capture), frames=count if count > 0 else None)

    def _read(self) -> Iterator[SourceFrame]:
        clock = RisingClock(self.fps)
        image: Image | None = self._first
        index = 0
        while image is not None:
            yield SourceFrame(rgb(image), index, clock(self._stamp_us()))
            image = next_image(self._capture)
            index += 1
        if self.frames is not None and self.frames - index > max(2, LENGTH_TOLERANCE * self.frames):
            self.problem = f"{self.name} breaks off after {index} of {self.frames} frames"

    def _stamp_us(self) -> int:
        milliseconds = float(self._capture.get(cv2.CAP_PROP_POS_MSEC))
        return round(milliseconds * 1000) if np.isfinite(milliseconds) else 0

    def close(self) -> None:
        super().close()
        self._capture.release()


class _ArraySource(Source):
    """Pictures that the caller has or makes; each is copied, so that a buffer may be used again for the next one."""

    def __init__(self, pictures: Iterable[Any], fps: float | None) -> None:
        if isinstance(pictures, np.ndarray) and pictures.ndim == 3:
            raise SourceError("got a single picture; give a list of pictures or an array (frames, height, width, 3)")
        if not isinstance(pictures, Iterable):
            raise SourceError(
                f"a source is a name, a number, a path, or something that yields pictures, got {type(pictures)}"
            )
        if fps is None:
            raise SourceError("pictures from arrays need their frame rate: open_source(pictures, fps=30)")
        self._rate = fps
        self._pictures = iter(pictures)
        try:
            self._first = _checked(next(self._pictures), 0)
        except StopIteration:
            raise SourceError("got no picture: the list, array or generator is empty") from None
        count = len(pictures) if isinstance(pictures, Sized) else None
        super().__init__("arrays", self._first, fps=fps, frames=count)

    def _read(self) -> Iterator[SourceFrame]:
        yield SourceFrame(self._first, 0, 0)
        for index, picture in enumerate(self._pictures, 1):
            yield SourceFrame(_checked(picture, index), index, round(index / self._rate * 1e6))


class _SyntheticSource(Source):
    """The rendered camera clip."""

    def __init__(self, name: str, scene: Scene) -> None:
        self._scene = scene
        super().__init__(name, render(scene, 0), fps=scene.fps, frames=scene.frames)

    def _read(self) -> Iterator[SourceFrame]:
        for index in range(self._scene.frames):
            yield SourceFrame(render(self._scene, index), index, round(index / self._scene.fps * 1e6))


def _parse_scene(text: str) -> tuple[Scene, int | None, bool]:
    """The scene that ``synthetic:...`` describes, its number of frames if that was given, and whether it is live."""
    types = {field.name: int if field.type == "int" else float for field in fields(Scene)} | {"live": int}
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
    is_live = bool(values.pop("live", 0))
    frames = int(values["frames"]) if "frames" in values else None
    return Scene(**values), frames, is_live  # type: ignore[arg-type]  # the types were taken from its fields


def _checked(picture: Any, index: int) -> Image:
    """A copy of a picture that a caller gave, uint8 (height, width, 3)."""
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise SourceError(f"picture {index} is {array.dtype} {array.shape}; RGB, uint8 (height, width, 3), is needed")
    height, width = array.shape[:2]
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise SourceError(
            f"picture {index} is {width}x{height}; width and height must be from {MIN_SIDE} to {MAX_SIDE} pixels"
        )
    return np.array(array, order="C")


def _cut_off(data: bytes) -> str:
    """Says that a file is empty or ends too early, as far as its bytes tell; an empty string when they do not."""
    if not data:
        return "is empty"
    for name, magic, end in (("PNG", b"\x89PNG\r\n\x1a\n", b"IEND"), ("JPEG", b"\xff\xd8\xff", b"\xff\xd9")):
        if data.startswith(magic) and end not in data:
            return f"a {name} that is cut off"
    return ""
