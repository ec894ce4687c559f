"""Pictures and folders of pictures."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import cv2
import numpy as np

from tatok_edge.errors import SourceError
from tatok_edge.files import read_regular
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.pictures.jpeg import START, jpeg_end
from tatok_edge.pictures.stated import stated_size
from tatok_edge.sources.folders import FolderContent, folder_content
from tatok_edge.sources.kinds import HEAD_BYTES, is_animation, kind_of_data
from tatok_edge.sources.opencv import rgb
from tatok_edge.sources.source import Source, SourceFrame

NO_PICTURE: Final = "not a picture that OpenCV can decode, or a damaged one"


def read_image(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Image:
    """Reads one picture.

    Args:
        path: A file in a format that OpenCV decodes, or AVIF or HEIC, which FFmpeg decodes. Alpha is dropped, grey
            becomes RGB, 16 bits become 8, and the picture is turned as its EXIF orientation says.
        limits: Largest file and picture.

    Returns:
        RGB picture, uint8 (height, width, 3).

    Raises:
        SourceError: The file is missing, cut off or not a picture, or too small or too large.
    """
    try:
        data = read_regular(path, limits.max_file)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from None
    if data is None:
        limits.refuse("max_file", os.stat(path).st_size, f"{path} is larger", SourceError)
    if cut := _cut_off(data):
        raise SourceError(f"{path}: {cut}")
    size = stated_size(data)
    if size is not None:
        limits.check_pixels(*size, f"{path}: the picture", SourceError)  # decoding takes memory for all of it
    elif data[4:8] != b"ftyp":
        raise SourceError(f"{path}: {NO_PICTURE}")
    image = _portable(path, data) if data.startswith(b"P") else _decoded(path, data, limits)
    height, width = image.shape[:2]
    if not (MIN_SIDE <= width <= MAX_SIDE and MIN_SIDE <= height <= MAX_SIDE):
        raise SourceError(f"{path}: is {width}x{height}; width and height must be from {MIN_SIDE} to {MAX_SIDE} pixels")
    return image


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
    """A single picture; of an animation the first one.

    Args:
        path: The file, see :func:`read_image`.
        limits: See there.

    Raises:
        SourceError: It cannot be read.
    """

    def __init__(self, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self._image = read_image(path, limits)
        super().__init__(str(path), self._image, fps=None, frames=1)
        with path.open("rb") as file:
            if is_animation(file.read(HEAD_BYTES)):
                self.notes.append(f"{path}: an animation, of which the first picture is taken; make it a video")

    def _read(self) -> Iterator[SourceFrame]:
        yield SourceFrame(self._image, 0, 0)


class FolderSource(Source):
    """The pictures of a folder. Pictures that cannot be read are left out and reported at the end.

    Args:
        folder: The folder.
        fps: Frame rate; without one, all time stamps are 0.
        content: What is in the folder, if it is known already.
        limits: See :func:`read_image`.

    Raises:
        SourceError: It holds no picture that can be read.
    """

    def __init__(
        self,
        folder: Path,
        fps: float | None,
        content: FolderContent | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self._limits = limits
        content = content or folder_content(folder)
        self._paths = content.pictures or list_images(folder)
        first, reason = None, ""
        for path in self._paths:
            try:
                first = read_image(path, limits)
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
                image = read_image(path, self._limits)
            except SourceError as error:
                bad.append(str(error))
                continue
            yield SourceFrame(image, index, round(index / self.fps * 1e6) if self.fps else 0)
        if bad:
            self.problem = f"left out {len(bad)} of {len(self._paths)} pictures; the first: {bad[0]}"


def _decoded(path: str | Path, data: bytes, limits: Limits) -> Image:
    """A picture, decoded by OpenCV where it can.

    Raises:
        SourceError: It is damaged, a video, or of a format that is not decoded here.
    """
    if kind_of_data(data) == "video":  # FFmpeg would give its first frame
        raise SourceError(f"{path}: holds a video, and not a picture; give it an ending of videos, such as .mp4")
    try:
        # Not with imread, which silently paints the missing part of a JPEG that is cut off grey.
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{path}: cannot be decoded ({error.err})") from None
    if image is not None:
        return rgb(image)
    if data[4:8] == b"ftyp":
        return _still(path, data, limits)
    raise SourceError(f"{path}: {NO_PICTURE}")


def _portable(path: str | Path, data: bytes) -> Image:
    """A PBM, PGM, PPM or PAM picture, by FFmpeg: OpenCV does not scale values whose largest is not 255 or 65535.

    Raises:
        SourceError: It is damaged or cut off.
    """
    # Imported here, because other pictures do not need PyAV.
    from tatok_edge.pictures.pyav import ColorRange, RgbConverter, VideoCodecContext, av, reason

    try:
        frame = VideoCodecContext.create("ppm", "r").decode(av.Packet(data))[0]
        frame.color_range = ColorRange.JPEG  # FFmpeg 7 takes 16-bit grey for limited range
        return RgbConverter()(frame)
    except (av.FFmpegError, ValueError, IndexError) as error:
        why = reason(error) if isinstance(error, av.FFmpegError) else str(error)
        raise SourceError(f"{path}: a damaged picture, or one that is cut off ({why})") from None


def _still(path: str | Path, data: bytes, limits: Limits) -> Image:
    """An AVIF or HEIC picture that OpenCV does not decode, by FFmpeg.

    Raises:
        SourceError: FFmpeg does not decode it either, or it is put together of tiles.
    """
    name = "AVIF" if data[8:11] == b"avi" else "HEIC"
    fix = "; convert it to PNG or JPEG first, as with 'heif-convert IN OUT.png' of libheif"
    # Imported here, because other pictures do not need PyAV.
    from tatok_edge.pictures.pyav import Disposition, RgbConverter, av, reason

    try:
        with av.open(io.BytesIO(data), "r") as container:
            streams = container.streams.video
            if any(stream.disposition & Disposition.dependent for stream in streams):
                raise SourceError(f"{path}: a picture in {name} that is put together of tiles, which are not read{fix}")
            # Others are its alpha and its preview.
            chosen = next((stream for stream in streams if stream.disposition & Disposition.default), None)
            chosen = chosen or streams[0]
            limits.check_pixels(chosen.width, chosen.height, f"{path}: the picture", SourceError)
            chosen.codec_context.options = {"max_pixels": str(limits.max_pixels)}
            frame = next(container.decode(chosen), None)
            if frame is not None and not frame.is_corrupt:
                return RgbConverter()(frame)
            why = "damaged"
    except (av.FFmpegError, ValueError, IndexError, StopIteration) as error:
        why = reason(error) if isinstance(error, av.FFmpegError) else str(error)
    raise SourceError(f"{path}: a picture in {name} that cannot be decoded here ({why}){fix}")


def _cut_off(data: bytes) -> str:
    """Says that a file is empty or cut off; an empty string where no sign of that is found."""
    if not data:
        return "is empty"
    if data.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" not in data:
        return "a PNG that is cut off"
    if data.startswith(START) and jpeg_end(data) is None:
        return "a JPEG that is cut off"
    return ""
