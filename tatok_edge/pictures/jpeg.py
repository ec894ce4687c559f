"""The structure of JPEG files: their size in pixels, and where they end. Nothing is decoded."""

from __future__ import annotations

import re
from typing import Final

START: Final = b"\xff\xd8\xff"
"""First bytes of a JPEG."""
END: Final = b"\xff\xd9"

_SCAN, _EOI = 0xDA, 0xD9
_ALONE = (0x01, 0xD8, *range(0xD0, 0xD8))
"""Markers without a length."""
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
"""A marker that ends the coded pixels: neither a stuffed byte nor a restart marker."""


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that a JPEG states in its frame header; None where it states none."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(data[place : place + 2], "big") for place in (at + 5, at + 7))
            return width, height
        at += 2 if marker in _ALONE else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def jpeg_end(data: bytes) -> int | None:
    """Where a JPEG ends; None where it is cut off.

    Bytes may follow: drivers hand over the whole buffer of a camera. A thumbnail in the header has an end of its own,
    so the end mark alone says nothing.
    """
    at = 2
    while at + 2 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == _EOI:
            return at + 2
        if marker == 0xFF:
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2:
                return None
            at += 2 + length
            if marker == _SCAN:
                found = _AFTER_SCAN.search(data, at)
                if found is None:
                    return None
                at = found.start()
    return None
