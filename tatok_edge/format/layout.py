"""The parts of a ``.ttk`` file around its packets: the header at the start and the index at the end."""

from __future__ import annotations

import json
import os
import struct
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Final

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import MAX_PACKET, MIN_PACKET, PacketInfo, packet_size, verify
from tatok_edge.format.protocol import EntropyModel
from tatok_edge.format.varint import read_varint, varint
from tatok_edge.tokens.checks import MAX_DEPTH, TAG_BYTES

MAGIC: Final = b"\x89TTK\r\n\x1a\n"
"""First bytes of every file; as in PNG, they show a transfer that changed line ends or dropped the high bit."""
END_MAGIC: Final = b"TTKE"
VERSION: Final = 1
"""Version of the file format that is written; the newest that is read."""
MAX_METADATA: Final = 64 << 10
"""Largest size of the metadata as JSON in bytes."""
MAX_NAME: Final = 255
"""Largest size of a model name as UTF-8 in bytes."""
MAX_FRAMES: Final = 1 << 24
"""Largest number of packets in a file."""

_INDEX: Final = 0xAE
_PREFIX: Final = struct.Struct("<8sBI")
_FOOTER: Final = struct.Struct("<QI4s")
_MAX_HEADER: Final = 128 << 10
_MAX_LEVELS: Final = 16
_MAX_LEVEL: Final = 4096
_MAX_RATE: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The header of a file."""

    name: str
    """Name of the model that made the file."""
    tag: bytes
    """Tag of that model, 8 bytes."""
    levels: tuple[int, ...]
    """FSQ levels of that model."""
    depth: int
    """Most tokens of a patch of that model."""
    fps: Fraction | None
    """Frames per second; None where the frames have no rate."""
    metadata: dict[str, Any]
    """Data that the user stored with the file."""


@dataclass(frozen=True, slots=True)
class PacketIndex:
    """Places of the packets in a file."""

    sizes: array[int]
    """Size of each packet in bytes, times two, plus one for a key packet."""
    offsets: array[int]
    """Offset of each packet in bytes."""
    damage: str | None = None
    """Damage of the file as a whole, in one line; None for a complete file."""

    def __len__(self) -> int:
        return len(self.sizes)

    def is_key(self, number: int) -> bool:
        """Whether a packet is a key packet."""
        return bool(self.sizes[number] & 1)

    def size(self, number: int) -> int:
        """Size of a packet in bytes."""
        return self.sizes[number] >> 1


def read_header(file: BinaryIO, path: Path) -> tuple[FileHeader, int]:
    """The header at the start of a file, and the offset of the first packet.

    Raises:
        FormatError: It is not a ``.ttk`` file, is too new, damaged, or cut off in its header.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    prefix = file.read(_PREFIX.size)
    if prefix[: len(MAGIC)] != MAGIC:
        start = prefix[: len(MAGIC)].hex(" ") or "nothing"
        raise FormatError(f"{path} is not a .ttk file: it begins with {start}, not with {MAGIC.hex(' ')}")
    if len(prefix) < _PREFIX.size:
        raise FormatError(f"{path} is cut off in its header, after {size} bytes; nothing can be read")
    _, version, length = _PREFIX.unpack(prefix)
    if version > VERSION or version == 0:
        raise FormatError(
            f"{path} has format version {version}, this release reads up to {VERSION}; update tatok-edge to read it"
        )
    if length > _MAX_HEADER:
        raise FormatError(f"{path} is damaged: its header says {length} bytes, at most {_MAX_HEADER} are allowed")
    payload = file.read(length)
    crc = file.read(4)
    if len(crc) < 4:
        raise FormatError(f"{path} is cut off in its header, after {size} bytes; nothing can be read")
    if zlib.crc32(payload, zlib.crc32(prefix)) != int.from_bytes(crc, "little"):
        raise FormatError(f"{path} is damaged: the CRC of its header is wrong; nothing can be read safely")
    try:
        header = _parse_header(payload)
    except FormatError as error:
        raise FormatError(f"{path} has a damaged header: {error}") from None
    return header, _PREFIX.size + length + 4


def read_index(file: BinaryIO, start: int) -> PacketIndex:
    """Places of the packets after ``start``: from the index, or by a scan where the index is missing or damaged."""
    size = file.seek(0, os.SEEK_END)
    index = _stored_index(file, start, size)
    return index if isinstance(index, PacketIndex) else _scan(file, start, size, index)


def check_model(info: PacketInfo, tag: bytes, owner: str) -> None:
    """Check that a packet was made by the model of its file.

    Raises:
        FormatError: Another model made it.
    """
    if info.model is not None and info.model != tag:
        raise FormatError(f"packet was made by model {info.model.hex()}, {owner} is of model {tag.hex()}")


def reason(error: OSError) -> str:
    """The cause of a failed operation on a file, in words."""
    return error.strerror or str(error)


def header_bytes(model: EntropyModel, name: str, fps: Fraction | float | None, metadata: Mapping[str, Any]) -> bytes:
    """The header of a file.

    Raises:
        InputError: An argument does not fit.
    """
    encoded = name.encode() if name.isprintable() else b""
    if not 1 <= len(encoded) <= MAX_NAME:
        raise InputError(f"name must be 1 to {MAX_NAME} bytes of printable text, got {name!r:.80}")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        document = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata must be JSON-compatible: {error}") from None
    if len(document) > MAX_METADATA:
        raise InputError(f"metadata must be at most {MAX_METADATA} bytes as JSON, got {len(document)}")
    if not 1 <= len(model.levels) <= _MAX_LEVELS or any(not 2 <= level <= _MAX_LEVEL for level in model.levels):
        raise InputError(f"levels must be 1 to {_MAX_LEVELS} numbers from 2 to {_MAX_LEVEL}, got {model.levels}")
    if not 1 <= model.depth <= MAX_DEPTH:
        raise InputError(f"the depth of a model must be from 1 to {MAX_DEPTH}, got {model.depth}")
    if len(model.tag) != TAG_BYTES:
        raise InputError(f"the tag of a model must have {TAG_BYTES} bytes, got {len(model.tag)}")
    rate = _rate(fps)
    payload = bytearray(model.tag)
    payload += varint(len(encoded)) + encoded
    payload += varint(len(model.levels)) + b"".join(varint(level) for level in model.levels)
    payload += varint(model.depth)
    payload += varint(rate.numerator) + varint(rate.denominator)
    payload += varint(len(document)) + document
    header = _PREFIX.pack(MAGIC, VERSION, len(payload)) + payload
    return header + zlib.crc32(header).to_bytes(4, "little")


def index_bytes(sizes: array[int], where: int) -> bytes:
    """The index of a file, which begins at offset ``where``; ``sizes`` as in :class:`PacketIndex`."""
    block = bytearray((_INDEX,))
    block += varint(len(sizes))
    for entry in sizes:
        block += varint(entry)
    place = where.to_bytes(8, "little")
    return bytes(block) + _FOOTER.pack(where, zlib.crc32(place, zlib.crc32(block)), END_MAGIC)


def _rate(fps: Fraction | float | None) -> Fraction:
    """Frames per second as a fraction; cameras state 29.97 and mean 30000/1001. Zero means no rate."""
    if fps is None:
        return Fraction(0)
    try:
        rate = Fraction(fps)
        if not isinstance(fps, (Fraction, int)):
            rate = rate.limit_denominator(1001)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"fps must be a positive number or None, got {fps!r}") from None
    if not 0 < rate <= _MAX_RATE or rate.denominator > _MAX_RATE or rate.numerator > _MAX_RATE:
        raise InputError(f"fps must be a positive number that fits 32-bit fractions, got {fps}")
    return rate


def _parse_header(payload: bytes) -> FileHeader:
    length, at = read_varint(payload, TAG_BYTES, "length of the model name", MAX_NAME, 1)
    name = _text(payload[at : at + length], length, "model name")
    if not name.isprintable():
        raise FormatError("the model name holds control characters")
    count, at = read_varint(payload, at + length, "number of levels", _MAX_LEVELS, 1)
    levels = []
    for _ in range(count):
        level, at = read_varint(payload, at, "level", _MAX_LEVEL, 2)
        levels.append(level)
    depth, at = read_varint(payload, at, "depth", MAX_DEPTH, 1)
    numerator, at = read_varint(payload, at, "frame rate", _MAX_RATE)
    denominator, at = read_varint(payload, at, "frame rate", _MAX_RATE, 1)
    fps = Fraction(numerator, denominator) if numerator else None
    length, at = read_varint(payload, at, "length of the metadata", MAX_METADATA, 2)
    text = _text(payload[at : at + length], length, "metadata")
    try:
        metadata = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"its metadata is no JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise FormatError(f"its metadata must be a JSON object, got {type(metadata).__name__}")
    return FileHeader(name, payload[:TAG_BYTES], tuple(levels), depth, fps, metadata)


def _text(data: bytes, length: int, name: str) -> str:
    if len(data) < length:
        raise FormatError(f"it ends inside the {name}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FormatError(f"the {name} is not UTF-8") from None


def _no_constant(value: str) -> Any:
    raise ValueError(f"{value} is not JSON")


def _stored_index(file: BinaryIO, start: int, size: int) -> PacketIndex | str:
    """The index at the end of a file, or its damage in words."""
    cut = f"it ends without an index at byte {size}: cut off, or still being written"
    if size < start + _FOOTER.size:
        return cut
    file.seek(size - _FOOTER.size)
    footer = file.read(_FOOTER.size)
    where, crc, magic = _FOOTER.unpack(footer)
    if magic != END_MAGIC:
        return cut
    damaged = f"its index at the end (byte {where}) is damaged"
    length = size - _FOOTER.size - where
    most = (where - start) // MIN_PACKET
    if where < start or not 2 <= length <= 6 + 5 * min(most, MAX_FRAMES):
        return damaged
    file.seek(where)
    block = file.read(length)
    if zlib.crc32(footer[:8], zlib.crc32(block)) != crc or block[0] != _INDEX:
        return damaged
    sizes, offsets, offset = array("Q"), array("Q"), start
    try:
        count, at = read_varint(block, 1, "number of packets", min(most, MAX_FRAMES))
        for _ in range(count):
            entry, at = read_varint(block, at, "packet size", MAX_PACKET << 1 | 1, MIN_PACKET << 1)
            sizes.append(entry)
            offsets.append(offset)
            offset += entry >> 1
    except FormatError:
        return damaged
    if offset != where or at != length:
        return damaged
    return PacketIndex(sizes, offsets)


def _scan(file: BinaryIO, start: int, size: int, damage: str) -> PacketIndex:
    """Places of the packets, found one after the other up to the first place without a whole packet."""
    sizes, offsets, offset = array("Q"), array("Q"), start
    whole = 0
    stopped = None
    while offset < size and len(sizes) < MAX_FRAMES:
        file.seek(offset)
        head = file.read(6)
        if head[:1] == bytes((_INDEX,)):
            break
        try:
            length = packet_size(head)
        except FormatError:
            stopped = f"no packet begins at byte {offset}"
            break
        if length > size - offset:
            stopped = f"the packet at byte {offset} is cut off"
            break
        key = 0  # decoding never begins at a damaged packet
        file.seek(offset)
        data = file.read(length)
        offsets.append(offset)
        offset += length
        try:
            key = verify(data).kind == "key"
        except FormatError:
            pass  # reported when the frame is read, if good frames follow
        else:
            whole = len(sizes) + 1
        sizes.append(length << 1 | key)
    dropped = len(sizes) - whole
    if dropped:
        stopped = f"the packet at byte {offsets[whole]} is damaged, no good packet follows"
    note = f"; {stopped}" if stopped else ""
    return PacketIndex(sizes[:whole], offsets[:whole], f"{damage}{note}; {whole} whole frames were found")
