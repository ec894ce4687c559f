"""Unsigned integers in as few bytes as they need."""

from __future__ import annotations

from tatok_edge.errors import FormatError

Buffer = bytes | bytearray | memoryview


def varint(value: int) -> bytes:
    """An unsigned integer, 7 bits a byte, low bits first, high bit set on all bytes but the last."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def read_varint(data: Buffer, at: int, name: str, largest: int, smallest: int = 0) -> tuple[int, int]:
    """Inverse of :func:`varint`: the value at offset ``at``, and the offset after it.

    Raises:
        FormatError: The integer is cut off, longer than needed, or outside ``smallest`` to ``largest``.
    """
    value = shift = 0
    while True:
        if at >= len(data):
            raise FormatError(f"data is cut off in its header, after {len(data)} bytes, at {name}")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
        if shift >= 70:
            raise FormatError(f"{name} is damaged: an integer of more than 10 bytes")
    if byte == 0 and shift > 7:
        raise FormatError(f"{name} is damaged: an integer in more bytes than it needs")
    if not smallest <= value <= largest:
        raise FormatError(f"{name} must be from {smallest} to {largest}, got {value}")
    return value, at
