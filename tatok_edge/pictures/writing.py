"""Writes pictures: to a picture file, a folder of PNG files, or an MP4 video.

The output gets its name when it is complete. A failure leaves an earlier output as it was.
"""

from __future__ import annotations

import os
import re
import shutil
from abc import abstractmethod
from pathlib import Path

import cv2

from tatok_edge.errors import InputError
from tatok_edge.files import Draft, check_target, replace_folder, replaced_file, temporary_name
from tatok_edge.geometry import Image

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings that :func:`write_image` takes."""
VIDEO_SUFFIX = ".mp4"
"""Ending of videos (MPEG-4 Part 2, which every OpenCV with FFmpeg can write)."""
JPEG_QUALITY = 95
"""Quality of JPEG and WebP pictures: high, so that losses of the tokenizer show and those of JPEG do not."""


_OWN_FRAME = re.compile(r"\d{6,}\.png")


class Output(Draft):
    """Takes RGB pictures one by one; a context manager that keeps the output if its block succeeds.

    Args:
        path: The target.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        """Number of pictures so far."""

    def write(self, image: Image, number: int) -> None:
        """Adds a picture.

        Args:
            image: uint8 RGB (height, width, 3).
            number: Number of the frame, which names its file in a folder.

        Raises:
            InputError: Its size differs from the pictures before (videos).
            OSError: It cannot be written.
        """
        self._write(image, number)
        self.written += 1

    @abstractmethod
    def _write(self, image: Image, number: int) -> None: ...

    def commit(self) -> None:
        """Completes the output and gives it its name; without pictures, removes it.

        Raises:
            OSError: It cannot be written.
        """
        if self.written:
            self._commit()
        else:
            self.abort()

    @abstractmethod
    def _commit(self) -> None: ...


def open_output(path: str | Path, *, fps: float, frames: int) -> Output:
    """Opens an output for ``frames`` decoded pictures.

    Args:
        path: A picture file, an ``.mp4`` video, or a folder (a name without an ending, or one that exists).
        fps: Frame rate of a video.
        frames: Number of pictures that will come; a picture file takes one.

    Raises:
        InputError: The name has another ending, or a picture file is to hold several frames.
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


def write_image(path: str | Path, image: Image) -> None:
    """Writes one RGB picture. An earlier file is replaced when the new one is complete.

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
    with replaced_file(target) as temporary:
        temporary.write_bytes(data.tobytes())


class _PictureOutput(Output):
    """A picture file."""

    def _write(self, image: Image, number: int) -> None:
        self._image = image

    def _commit(self) -> None:
        write_image(self.path, self._image)

    def abort(self) -> None:
        pass


class _FolderOutput(Output):
    """A folder of 000000.png, 000001.png, ... It replaces an earlier folder as a whole."""

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

    def _commit(self) -> None:
        replace_folder(self._temporary, self.path)

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

    def _commit(self) -> None:
        assert self._writer is not None
        self._writer.release()
        # OpenCV does not report a failed write, as on a full disk: the result is opened again before it gets its name.
        check = cv2.VideoCapture(str(self._temporary))
        whole = check.isOpened() and round(check.get(cv2.CAP_PROP_FRAME_COUNT)) == self.written
        check.release()
        if not whole:
            raise OSError(f"{self.path}: the video could not be written whole; is the disk full?")
        os.replace(self._temporary, self.path)

    def abort(self) -> None:
        if self._writer is not None:
            self._writer.release()
        self._temporary.unlink(missing_ok=True)
