"""Where pictures go: a file, a folder of PNG files, or an MP4 video.

Everything is written under a temporary name beside its target and renamed once it is whole, so a failure leaves what
was there before as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import cv2

from tatok_edge.errors import InputError
from tatok_edge.geometry import Image

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings that :func:`write_image` takes."""
VIDEO_SUFFIX = ".mp4"
"""Ending of the video that every OpenCV with FFmpeg can write (MPEG-4 Part 2)."""
JPEG_QUALITY = 95
"""Quality of JPEG and WebP pictures: theirs, not the tokenizer's, should not be what is seen."""


_OWN_FRAME = re.compile(r"\d{6,}\.png")


class Output(ABC):
    """Takes RGB pictures one by one; a context manager that keeps the result only if its block succeeds.

    Args:
        path: The target.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        """Pictures taken so far."""

    def write(self, image: Image, number: int) -> None:
        """Adds a picture.

        Args:
            image: uint8 RGB (height, width, 3).
            number: Number of the frame, which names its file in a folder.

        Raises:
            InputError: It does not fit what was written before.
            OSError: It cannot be written.
        """
        self._write(image, number)
        self.written += 1

    @abstractmethod
    def _write(self, image: Image, number: int) -> None: ...

    @abstractmethod
    def commit(self) -> None:
        """Puts what was written in its place."""

    @abstractmethod
    def abort(self) -> None:
        """Throws away what was written."""

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self.written:
            self.commit()
        else:
            self.abort()


def open_output(path: str | Path, *, fps: float, frames: int) -> Output:
    """Opens the target for ``frames`` decoded pictures.

    Args:
        path: A picture file, an ``.mp4`` video, or a folder (a name without an ending, or one that exists).
        fps: Frame rate of a video.
        frames: How many pictures will come; a picture file takes one.

    Raises:
        InputError: The name is of no kind that can be written, or the frames do not go into it.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    check_target(path, (VIDEO_SUFFIX, *PICTURE_SUFFIXES, suffix if target.is_dir() else ""))
    if target.is_dir() or not suffix:
        return _FolderOutput(target)
    if suffix == VIDEO_SUFFIX:
        return _VideoOutput(target, fps)
    if frames != 1:
        raise InputError(f"{path}: a picture holds one frame of {frames}; choose with --frame, or name a folder")
    return _PictureOutput(target)


def check_target(path: str | Path, suffixes: Sequence[str]) -> None:
    """Checks the name of a file that will be written later, so that nothing is computed in vain.

    Raises:
        InputError: The ending is not one of ``suffixes``, or the folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        endings = ", ".join(filter(None, suffixes)) + (", or have none (a folder)" if "" in suffixes else "")
        raise InputError(f"{path}: the name must end in {endings}")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it first")


def write_image(path: str | Path, image: Image) -> None:
    """Writes one RGB picture, replacing ``path`` only when it is whole.

    Raises:
        InputError: The ending is not one of :data:`PICTURE_SUFFIXES`.
        OSError: The file cannot be written.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    check_target(path, PICTURE_SUFFIXES)
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_WEBP_QUALITY, JPEG_QUALITY]
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(suffix, bgr, options if suffix in (".jpeg", ".jpg", ".webp") else [])
    if not encoded:
        raise OSError(f"{path}: this OpenCV cannot write {suffix} files")
    temporary = temporary_name(target)
    try:
        temporary.write_bytes(data.tobytes())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(target: Path) -> Path:
    """A name beside ``target``, so that a rename stays on one file system, with the same ending."""
    target = target.absolute()
    return target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")


class _PictureOutput(Output):
    def _write(self, image: Image, number: int) -> None:
        self._image = image

    def commit(self) -> None:
        write_image(self.path, self._image)

    def abort(self) -> None:
        pass


class _FolderOutput(Output):
    """A folder of 000000.png, 000001.png, ... which replaces an earlier one whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_dir():
            foreign = next((entry.name for entry in path.iterdir() if not _OWN_FRAME.fullmatch(entry.name)), None)
            if foreign:
                raise InputError(f"{path}: the folder holds other files ({foreign}); name a new or an empty folder")
        self._temporary = temporary_name(path)
        self._temporary.mkdir()

    def _write(self, image: Image, number: int) -> None:
        write_image(self._temporary / f"{number:06d}.png", image)

    def commit(self) -> None:
        replaced = self._temporary.with_name(self._temporary.name + ".old")
        if self.path.is_dir():
            os.replace(self.path, replaced)
        os.replace(self._temporary, self.path)
        shutil.rmtree(replaced, ignore_errors=True)

    def abort(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)


class _VideoOutput(Output):
    """An MP4 video. The codec takes even sizes only: an odd one grows by a repeated row or column."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(path)
        self._fps = fps
        self._temporary = temporary_name(path)
        self._writer: cv2.VideoWriter | None = None
        self._shape: tuple[int, ...] = ()

    def _write(self, image: Image, number: int) -> None:
        height, width = image.shape[:2]
        if self._writer is None:
            self._shape = image.shape
            size = (width + width % 2, height + height % 2)
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, size)
            if not self._writer.isOpened():
                raise OSError(
                    f"{self.path}: this OpenCV cannot write a {width}x{height} MP4 video at {self._fps:g} frames per "
                    "second; decode into a folder instead"
                )
        if image.shape != self._shape:
            raise InputError(
                f"{self.path}: frame {number} is {width}x{height} but the video is "
                f"{self._shape[1]}x{self._shape[0]}; decode frames of several sizes into a folder"
            )
        even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def commit(self) -> None:
        assert self._writer is not None
        self._writer.release()
        # OpenCV does not report a failed write (a full disk), so the result is opened again before it is put in place.
        check = cv2.VideoCapture(str(self._temporary))
        whole = check.isOpened() and round(check.get(cv2.CAP_PROP_FRAME_COUNT)) == self.written
        check.release()
        if not whole:
            self.abort()
            raise OSError(f"{self.path}: the video could not be written whole; is the disk full?")
        os.replace(self._temporary, self.path)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.release()
        self._temporary.unlink(missing_ok=True)
