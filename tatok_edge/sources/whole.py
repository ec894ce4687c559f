"""Whether a video file is cut off: its container says how many bytes there should be.

MP4 and MOV, Matroska and WebM, and AVI state their size. Other formats (MPEG-TS, MPEG-PS, FLV, Ogg) are made to be cut.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import BinaryIO

_BOXES = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"sidx", b"mfra", b"free", b"skip", b"wide", b"uuid", b"meta")
"""Boxes of MP4 and MOV files at their outermost level. Anything else behind the last box is no part of the video."""
_EBML = b"\x1a\x45\xdf\xa3"
_SEGMENT = b"\x18\x53\x80\x67"
_AVI_SLACK = 8
"""Bytes by which writers of AVI miscount."""


@dataclass(frozen=True, slots=True)
class Extent:
    """How long a file is, and should be."""

    size: int
    """Bytes that are there."""
    stated: int | None = None
    """Bytes that the container says; None where it does not say."""
    fragmented: bool = False
    """Whether it is an MP4 in fragments, whose number of frames is known only at its end."""
    index: bool = True
    """Whether the index of an MP4 is there (``moov``); without it, nothing can be read."""

    @property
    def cut_off(self) -> bool:
        """Whether bytes are missing at the end."""
        return self.stated is not None and self.stated > self.size


def extent(file: BinaryIO) -> Extent:
    """The extent of a video file; its position is moved."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(12)
    if start[4:8] in _BOXES:
        return _boxes(file, size)
    if start[:4] == _EBML:
        return Extent(size, _segment_end(file))
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        stated = 8 + int.from_bytes(start[4:8], "little")
        return Extent(size, stated if stated > size + _AVI_SLACK else size)
    return Extent(size)


def _boxes(file: BinaryIO, size: int) -> Extent:
    """The extent of an MP4 or MOV file: its outermost boxes, one after the other."""
    at, fragmented, index = 0, False, False
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if kind not in _BOXES or length < 8:  # a length of 0: up to the end of the file
            at = size
            break
        fragmented |= kind == b"moof"
        index |= kind == b"moov"
        at += length
    return Extent(size, max(at, size), fragmented, index)


def _segment_end(file: BinaryIO) -> int | None:
    """Where the segment of a Matroska file ends; None if it does not say, as in a live recording."""
    file.seek(4)
    header = _ebml_size(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    if file.read(4) != _SEGMENT:
        return None
    length = _ebml_size(file)
    return None if length is None else file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """The size that begins here: its leading zero bits say its length. None if it is unknown or cut off."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    count = 8 - first[0].bit_length()
    rest = file.read(count)
    value = int.from_bytes(first + rest, "big") & ((1 << 7 * (count + 1)) - 1)
    return None if len(rest) < count or value == (1 << 7 * (count + 1)) - 1 else value
