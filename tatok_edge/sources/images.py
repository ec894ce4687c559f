"""Pictures and folders of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from tatok_edge.errors import SourceError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image
from tatok_edge.pictures.jpeg import START, jpeg_end
from tatok_edge.sources.folders import FolderContent, folder_content
from tatok_edge.sources.opencv import rgb
from tatok_edge.sources.source import Source, SourceFrame


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
        raise SourceError(f"{path}: {_why_not(data)}")
    height, width = image.shape[:2]
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise SourceError(f"{path}: is {width}x{height}; width and height must be from {MIN_SIDE} to {MAX_SIDE} pixels")
    return rgb(image)


def list_images(folder: str | Path) -> list[Path]:
    """The pictures directly in ``folder``, in natural order (``2.png`` before ``10.png``).

    Raises:
        SourceError: The folder cannot be read or holds no picture.
    """
    content = folder_content(folder)
    if not content.pictures:
        beside = content.beside()
        raise SourceError(f"{folder}: holds no picture" + (f", but {beside}" if beside else " and nothing else"))
    return content.pictures


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
        content: What is in the folder, if it is known already.

    Raises:
        SourceError: It holds no picture that can be read.
    """

    def __init__(self, folder: Path, fps: float | None, content: FolderContent | None = None) -> None:
        content = content or folder_content(folder)
        self._paths = content.pictures or list_images(folder)
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
        if beside := content.beside():
            self.notes.append(f"{folder}: its {len(self._paths)} pictures are taken, and not {beside}")

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


def _why_not(data: bytes) -> str:
    """Why OpenCV gives no picture for a file."""
    if data[4:8] == b"ftyp":
        name = "AVIF" if data[8:11] == b"avi" else "HEIC"
        return (
            f"a picture in {name}, which OpenCV {cv2.__version__} here does not decode, or a damaged one; "
            "convert it to PNG or JPEG first"
        )
    return "not a picture that OpenCV can decode, or a damaged one"


def _cut_off(data: bytes) -> str:
    """Says that a file is empty or cut off; an empty string where no sign of that is found."""
    if not data:
        return "is empty"
    if data.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" not in data:
        return "a PNG that is cut off"
    if data.startswith(START) and jpeg_end(data) is None:
        return "a JPEG that is cut off"
    return ""
