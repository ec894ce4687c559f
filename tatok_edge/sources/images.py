"""Pictures and folders of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tatok_edge.errors import SourceError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image
from tatok_edge.sources.opencv import rgb
from tatok_edge.sources.source import Source, SourceFrame

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings of picture files. A file with another ending is read as a video."""


def read_image(path: str | Path) -> Image:
    """Reads one picture.

    Args:
        path: A file in a format that OpenCV decodes. Alpha is dropped, grey becomes RGB, 16 bits become 8, and the
            picture is turned as its EXIF orientation says.

    Returns:
        RGB picture, uint8 (height, width, 3).

    Raises:
        SourceError: The file is missing, cut off or not a picture, or too small or too large.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    if cut := _cut_off(data):
        raise SourceError(f"{path}: {cut}")
    try:
        # Not with imread, which silently paints the missing part of a JPEG that is cut off grey.
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
    """The pictures directly in ``folder``, in natural order (``2.png`` before ``10.png``).

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


class ImageSource(Source):
    """A single picture.

    Args:
        path: The file, see :func:`read_image`.

    Raises:
        SourceError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._image = read_image(path)
        super().__init__(str(path), self._image, fps=None, frames=1)

    def _read(self) -> Iterator[SourceFrame]:
        yield SourceFrame(self._image, 0, 0)


class FolderSource(Source):
    """The pictures of a folder. Pictures that cannot be read are left out and reported at the end.

    Args:
        folder: The folder.
        fps: Frame rate; without one, all time stamps are 0.

    Raises:
        SourceError: It holds no picture that can be read.
    """

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


def _cut_off(data: bytes) -> str:
    """Says that a file is empty or cut off; an empty string where no sign of that is found."""
    if not data:
        return "is empty"
    for name, magic, end in (("PNG", b"\x89PNG\r\n\x1a\n", b"IEND"), ("JPEG", b"\xff\xd8\xff", b"\xff\xd9")):
        if data.startswith(magic) and end not in data:
            return f"a {name} that is cut off"
    return ""
