"""Writes pictures: to a picture file, a folder of PNG files, a video, an animation, or standard output.

The output gets its name when it is complete. A failure leaves an earlier output as it was.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2

from tatok_edge.errors import InputError
from tatok_edge.files import check_target, new_part, replaced_file
from tatok_edge.geometry import Image
from tatok_edge.pictures.output import Output

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Endings that :func:`write_image` takes."""
VIDEO_SUFFIXES = (".mp4", ".mkv", ".gif", ".webp")
"""Endings of videos and animations. A WebP of one frame is a picture."""
JPEG_QUALITY = 95
"""Quality of JPEG and WebP pictures: high, so that losses of the tokenizer show and those of JPEG do not."""
_OWN_FRAME = re.compile(r"\d{6,}\.png")


def open_output(path: str | Path, *, fps: float, frames: int | None, raw: bool = False) -> Output:
    """Opens an output for ``frames`` decoded pictures.

    Args:
        path: A picture file, a video (``.mp4``, ``.mkv``), an animation (``.gif``, ``.webp``), a folder (a name without
            an ending, or one that exists), or ``-``: standard output, as Y4M.
        fps: Frame rate of a video whose frames come without times.
        frames: Number of pictures that will come, if known; a picture file takes one.
        raw: Write RGB bytes without any header to standard output, instead of Y4M.

    Raises:
        InputError: The name has another ending, or a picture file is to hold several frames.
        SourceError: A video needs PyAV, which is not installed.
    """
    if path == "-":
        from tatok_edge.pictures.piped import RawOutput, Y4mOutput

        return RawOutput() if raw else Y4mOutput(fps)
    target = Path(path)
    suffix = target.suffix.lower()
    endings = dict.fromkeys((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))
    check_target(path, (*endings, suffix if target.is_dir() else ""))
    if target.is_dir() or not suffix:
        return _FolderOutput(target)
    if suffix in VIDEO_SUFFIXES and not (suffix == ".webp" and frames == 1):
        from tatok_edge.pictures.movies import GifOutput, VideoOutput, WebpOutput

        kind = {".gif": GifOutput, ".webp": WebpOutput}.get(suffix, VideoOutput)
        return kind(target, fps)
    if frames != 1:
        several = "one frame" if frames is None else f"one frame of {frames}"
        raise InputError(f"{path}: a picture holds {several}; choose with --frame, or name a folder")
    return _PictureOutput(target)


def check_output(path: str | Path, *, force: bool, inputs: Sequence[str | Path]) -> None:
    """Checks the name of an output of pictures before the work begins; see :func:`tatok_edge.files.check_target`."""
    target = Path(path)
    endings = dict.fromkeys((*VIDEO_SUFFIXES, *PICTURE_SUFFIXES))
    check_target(path, (*endings, target.suffix.lower() if target.is_dir() else ""), force=force, inputs=inputs)


def write_image(path: str | Path, image: Image) -> None:
    """Writes one RGB picture. An earlier file is replaced when the new one is complete.

    Raises:
        InputError: The ending is not one of :data:`PICTURE_SUFFIXES`.
        OSError: The file cannot be written.
    """
    target = Path(path)
    check_target(path, PICTURE_SUFFIXES)
    data = _encoded(target, image)
    with replaced_file(target) as temporary:
        temporary.write_bytes(data)


def _encoded(path: Path, image: Image) -> bytes:
    """The bytes of a picture file of that name.

    Raises:
        OSError: It cannot be encoded.
    """
    suffix = path.suffix.lower()
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_WEBP_QUALITY, JPEG_QUALITY]
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(suffix, bgr, options if suffix in (".jpeg", ".jpg", ".webp") else [])
    if not encoded:
        raise OSError(f"{path}: this OpenCV cannot write {suffix} files")
    return data.tobytes()


class _PictureOutput(Output):
    """A picture file."""

    _part: Path | None = None

    def _write(self, image: Image, number: int, timestamp_us: int | None) -> None:
        self._data = _encoded(self.path, image)

    def _complete(self) -> Path:
        self._part = new_part(self.path)
        self._part.write_bytes(self._data)
        return self._part

    def _remove(self) -> None:
        if self._part is not None:
            self._part.unlink(missing_ok=True)


class _FolderOutput(Output):
    """A folder of 000000.png, 000001.png, ... It replaces an earlier folder as a whole."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if path.is_dir():
            foreign = next((entry.name for entry in path.iterdir() if not _OWN_FRAME.fullmatch(entry.name)), None)
            if foreign:
                raise InputError(f"{path}: the folder holds other files ({foreign}); name a new or an empty folder")
        self._part = new_part(path, folder=True)

    def _write(self, image: Image, number: int, timestamp_us: int | None) -> None:
        file = self._part / f"{number:06d}.png"
        file.write_bytes(_encoded(file, image))

    def _complete(self) -> Path:
        return self._part

    def _remove(self) -> None:
        shutil.rmtree(self._part, ignore_errors=True)
