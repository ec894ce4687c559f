"""What a file is: by its first bytes, and where these say nothing, by its ending."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Final, Literal

from tatok_edge.format.layout import MAGIC as TOKENS

Kind = Literal["picture", "video", "bag", "tokens", "other"]

IMAGE_SUFFIXES: Final = (
    ".avif",
    ".bmp",
    ".dib",
    ".heic",
    ".heif",
    ".jp2",
    ".jpe",
    ".jpeg",
    ".jpg",
    ".pbm",
    ".pgm",
    ".png",
    ".pnm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
)
"""Endings of picture files."""
VIDEO_SUFFIXES: Final = (
    ".3gp",
    ".avi",
    ".flv",
    ".gif",
    ".m2ts",
    ".m4v",
    ".mjpeg",
    ".mjpg",
    ".mkv",
    ".mov",
    ".mp4",
    ".mpeg",
    ".mpg",
    ".mts",
    ".ogv",
    ".ts",
    ".webm",
    ".wmv",
    ".y4m",
)
"""Endings of video files. A video that is given by its own path may have any ending."""
BAG_SUFFIXES: Final = (".mcap", ".db3")
"""Endings of bags."""

_PICTURES_IN_A_ROW = (".mjpeg", ".mjpg")
"""Endings of videos that begin as a picture does."""
HEAD_BYTES: Final = 200
"""First bytes of a file that say what it is."""
_TS_PACKET = 188
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
_PICTURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|BM.{4}\0{4}|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-7][ \t\r\n#]"
    rb"|\0\0\0\x0cjP  |.{4}ftyp(?:" + b"|".join(_PICTURE_BRANDS) + rb")",
    re.DOTALL,
)
_VIDEO = re.compile(
    rb".{4}(?:ftyp|moov|mdat|wide|free|skip)|\x1aE\xdf\xa3|RIFF.{4}AVI |FLV\x01|OggS|\0\0\x01[\xba\xb3]"
    rb"|\x30\x26\xb2\x75|YUV4MPEG2|GIF8|\0\0\0\x01",
    re.DOTALL,
)
_BAG = re.compile(rb"\x89MCAP0\r\n|SQLite format 3\0|#ROSBAG V")
_ANIMATION = re.compile(rb"\x89PNG\r\n\x1a\n.{25,150}acTL|.{4}ftyp(?:avis|msf1|hevc|heis)", re.DOTALL)
_WEBP_FLAGS = 20
"""Place of the flags in an extended WebP."""


def kind_of(path: Path, *, look: bool = True) -> Kind:
    """What a file is.

    Args:
        path: An existing file. Only regular files are looked into: reading takes something out of a pipe.
        look: Look at its first bytes even if its ending says what it is.
    """
    named = _kind_of_name(path)
    if named != "other" and not look:
        return named
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return named
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return named
    if path.suffix.lower() in _PICTURES_IN_A_ROW:
        return named
    return kind_of_data(head) or named


def kind_of_data(head: bytes) -> Kind | None:
    """What begins with these bytes; None where they are of no known kind."""
    if head.startswith(TOKENS):
        return "tokens"
    if _BAG.match(head):
        return "bag"
    if _PICTURE.match(head):
        return "picture"
    transport = len(head) > _TS_PACKET and head[0] == head[_TS_PACKET] == 0x47
    return "video" if transport or _VIDEO.match(head) else None


def is_animation(head: bytes) -> bool:
    """Whether a picture that begins with these :data:`HEAD_BYTES` holds several, one after the other."""
    if head.startswith(b"RIFF") and head[8:16] == b"WEBPVP8X":
        return bool(head[_WEBP_FLAGS] & 2)
    return _ANIMATION.match(head) is not None


def _kind_of_name(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES:
        return "picture"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    if suffix in BAG_SUFFIXES:
        return "bag"
    return "tokens" if suffix == ".ttk" else "other"
