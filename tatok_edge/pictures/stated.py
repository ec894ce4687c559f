"""The size that a picture file states. Nothing is decoded: a small file can unpack into more than fits into memory."""

from __future__ import annotations

import re
import struct
from typing import Final

from tatok_edge.pictures.jpeg import START, jpeg_size

PNG: Final = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG."""
_CODESTREAM = b"\xff\x4f\xff\x51"
"""First bytes of the pixels of a JPEG 2000: their size follows."""
_PNM_FIELD = re.compile(rb"(?:\s|#[^\n]*\n)+(\d{1,9})(?=\s)")
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257

Size = tuple[int, int]


def stated_size(data: bytes) -> Size | None:
    """Width and height of a PNG, JPEG, WebP, AVIF, HEIC, JPEG 2000, TIFF, BMP or PNM file.

    Where a file can state several sizes, the largest one.

    Args:
        data: The file.

    Returns:
        Width and height in pixels; None where the file is of another kind, or states no size.
    """
    try:
        return _of_kind(data)
    except struct.error:  # cut off
        return None


def _of_kind(data: bytes) -> Size | None:
    if data.startswith(PNG):
        return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else None
    if data.startswith(START):
        return jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[4:8] == b"ftyp":
        return _largest(struct.unpack_from(">II", data, at.end() + 4) for at in re.finditer(b"ispe", data))
    if data[4:8] == b"jP  " or data.startswith(_CODESTREAM):
        return _jpeg2000(data)
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(data, "<" if data[:2] == b"II" else ">")
    if data[:2] == b"BM":
        return _bmp(data)
    return _pnm(data) if re.match(rb"P[1-7]\s", data) else None


def _largest(sizes: object) -> Size | None:
    return max(sizes, key=lambda size: size[0] * size[1], default=None)  # type: ignore[call-overload, no-any-return]


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg2000(data: bytes) -> Size | None:
    sizes = []
    for at in re.finditer(re.escape(_CODESTREAM), data):
        right, bottom, left, top = struct.unpack_from(">IIII", data, at.end() + 4)
        sizes.append((max(right - left, 0), max(bottom - top, 0)))
    return _largest(sizes)


def _tiff(data: bytes, order: str) -> Size | None:
    """The size in the first directory of a TIFF."""
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    fields: dict[int, int] = {}
    for number in range(count):
        tag, kind = struct.unpack_from(order + "HH", data, at + 2 + 12 * number)
        (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 10 + 12 * number)
        fields[tag] = max(value, fields.get(tag, 0))
    if _TIFF_WIDTH not in fields or _TIFF_HEIGHT not in fields:
        return None
    return fields[_TIFF_WIDTH], fields[_TIFF_HEIGHT]


def _bmp(data: bytes) -> Size:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    return abs(width), abs(height)


def _pnm(data: bytes) -> Size | None:
    if data[:2] == b"P7":
        header = data[: data.find(b"ENDHDR")]
        found = [re.search(rb"^%s\s+(\d{1,9})\s*$" % name, header, re.MULTILINE) for name in (b"WIDTH", b"HEIGHT")]
        return (int(found[0][1]), int(found[1][1])) if found[0] and found[1] else None
    width = _PNM_FIELD.match(data, 2)
    height = _PNM_FIELD.match(data, width.end()) if width else None
    return (int(width[1]), int(height[1])) if width and height else None
