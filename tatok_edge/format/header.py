"""The header of a packet: read once, by one function for key packets and one for delta packets."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final, Literal, TypedDict

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.varint import Buffer, read_varint
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, PictureSize, cell_grid, patch_grid
from tatok_edge.tokens.checks import MAX_DEPTH, TAG_BYTES

SYNC: Final = 0xA9
"""First byte of every packet."""
VERSION: Final = 1
"""Version of the packet format that is written; the newest that is read."""
MAX_PACKET: Final = 64 << 20
"""Largest size of a packet in bytes."""
MIN_PACKET: Final = 12
"""Smallest size of a packet in bytes."""
MAX_HEADER: Final = 78
"""Largest size of a header in bytes."""
CRC_BYTES: Final = 4
"""Size of the CRC at the end of a packet in bytes."""

DELTA: Final = 0b0001
"""Flag: the packet is a delta packet."""
HAS_MODEL: Final = 0b0010
"""Flag: the packet carries the tag of the model."""
NETWORK: Final = 0b0100
"""Flag of key packets: the depth map is coded by the entropy model."""
REFINED: Final = 0b0100
"""Flag of delta packets (the same bit as ``NETWORK``): some patches are refined."""
MOTION: Final = 0b1000
"""Flag of delta packets: there are motion vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketInfo(PictureSize):
    """The header of a packet; no model is needed to read it. The fields of delta packets are None in key packets."""

    version: int
    """Version of the packet format."""
    kind: Literal["key", "delta"]
    """``"key"`` stands alone; ``"delta"`` updates the state after the earlier packets of its stream."""
    size: int
    """Bytes of the whole packet."""
    header_size: int
    """Bytes before the entropy-coded body."""
    index: int
    """Number of the frame in its sequence."""
    timestamp_us: int
    """Time of the frame in microseconds."""
    width: int
    """Width of the image in pixels."""
    height: int
    """Height of the image in pixels."""
    n_tokens: int
    """Number of patch tokens in the packet."""
    depth_map: Literal["maps", "network"]
    """How the depth map is coded: as nested maps, or by the entropy model."""
    model: bytes | None
    """Tag of the model; None where the file around the packet carries it."""
    reference: int | None = None
    """Delta packets: number of the frame whose state is updated."""
    n_updated: int | None = None
    """Delta packets: number of patches that are updated."""
    n_refined: int | None = None
    """Delta packets: number of updated patches that are refined."""
    n_updated_cells: int | None = None
    """Delta packets: number of global tokens that change."""
    n_vectors: int | None = None
    """Delta packets: number of motion vectors."""
    follows: int | None = None
    """Delta packets: number of the updated state, from :func:`tatok_edge.format.packet.body_crc`."""

    @property
    def body(self) -> slice:
        """Place of the entropy-coded body in the packet."""
        return slice(self.header_size, self.size - CRC_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaInfo(PacketInfo):
    """The header of a delta packet: all of its own fields are set."""

    reference: int
    n_updated: int
    n_refined: int
    n_updated_cells: int
    n_vectors: int
    follows: int


def packet_size(data: Buffer) -> int:
    """Bytes of the packet that begins with ``data``; the first 6 bytes are enough.

    Raises:
        FormatError: No packet begins here, or ``data`` ends before the length.
    """
    return _framing(as_view(data))[0]


def peek(data: Buffer) -> PacketInfo:
    """Read the header of a packet; the first ``MAX_HEADER`` bytes are enough. The CRC is not checked.

    Raises:
        FormatError: The header is cut off, damaged or too new.
    """
    view = as_view(data)
    size, at = _framing(view)
    version, flags = view[1] >> 4, view[1] & 0x0F
    if version > VERSION:
        raise FormatError(
            f"packet has format version {version}, this release reads up to {VERSION}; update tatok-edge to read it"
        )
    fields = _Fields(view, at)
    common = _common(fields, version, flags, size)
    info = _delta(fields, common, flags) if flags & DELTA else _key(fields, common, flags)
    if info.header_size > size - CRC_BYTES:
        raise FormatError(f"packet is damaged: its header takes {info.header_size} bytes of {size}")
    return info


def verify(data: Buffer) -> PacketInfo:
    """Check length and CRC of a packet and read its header; no model is needed.

    Raises:
        FormatError: The packet is cut off, followed by other bytes, damaged or too new.
    """
    view = as_view(data)
    size = packet_size(view)
    if len(view) < size:
        raise FormatError(f"packet is cut off: it has {size} bytes, {len(view)} came")
    if len(view) > size:
        raise FormatError(f"packet has {size} bytes, {len(view)} came; pass one packet at a time")
    stored = int.from_bytes(view[size - CRC_BYTES :], "little")
    found = zlib.crc32(view[: size - CRC_BYTES])
    if stored != found:
        raise FormatError(f"packet is damaged: its CRC is {found:08x}, it should be {stored:08x}")
    return peek(view)


def as_view(data: Buffer) -> memoryview:
    """The bytes of a packet without a copy.

    Raises:
        InputError: ``data`` is no contiguous buffer.
    """
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise InputError(f"a packet must be contiguous bytes, got {type(data).__name__}") from None


class _Common(TypedDict):
    """The fields that key and delta packets share."""

    version: int
    size: int
    index: int
    timestamp_us: int
    width: int
    height: int
    model: bytes | None


class _Fields:
    """Reads the fields of a header one after the other."""

    def __init__(self, view: memoryview, at: int) -> None:
        self._view = view
        self.at = at
        """Offset of the next field."""

    def integer(self, name: str, largest: int, smallest: int = 0) -> int:
        """The next variable-length integer, from ``smallest`` to ``largest``."""
        value, self.at = read_varint(self._view, self.at, name, largest, smallest)
        return value

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes; fewer where the data ends."""
        self.at += count
        return bytes(self._view[self.at - count : self.at])


def _framing(view: memoryview) -> tuple[int, int]:
    """Size of the packet and offset of the field after its length: the same in every version of the format."""
    if not len(view):
        raise FormatError("packet is empty")
    if view[0] != SYNC:
        raise FormatError(f"no packet begins here: the first byte must be 0x{SYNC:02x}, got 0x{view[0]:02x}")
    if len(view) > 1 and view[1] >> 4 == 0:
        raise FormatError("packet is damaged: its format version is 0")
    length, at = read_varint(view, 2, "packet length", MAX_PACKET)
    size = at + length
    if not MIN_PACKET <= size <= MAX_PACKET:
        raise FormatError(f"a packet must have {MIN_PACKET} to {MAX_PACKET} bytes, its header says {size}")
    return size, at


def _common(fields: _Fields, version: int, flags: int, size: int) -> _Common:
    index = fields.integer("index", (1 << 63) - 1)
    timestamp = fields.integer("timestamp", (1 << 64) - 1)
    width = fields.integer("width", MAX_SIDE, MIN_SIDE)
    height = fields.integer("height", MAX_SIDE, MIN_SIDE)
    model = None
    if flags & HAS_MODEL:
        start = fields.at
        model = fields.take(TAG_BYTES)
        if len(model) < TAG_BYTES:
            raise FormatError(f"packet is cut off in its header, after {start + len(model)} bytes")
    return {
        "version": version,
        "size": size,
        "index": index,
        "timestamp_us": timestamp >> 1 ^ -(timestamp & 1),
        "width": width,
        "height": height,
        "model": model,
    }


def _key(fields: _Fields, common: _Common, flags: int) -> PacketInfo:
    if flags & MOTION:
        raise FormatError("packet is damaged: its flags give motion to a key packet")
    rows, columns = patch_grid(common["width"], common["height"])
    n_tokens = fields.integer("number of tokens", MAX_DEPTH * rows * columns)
    return PacketInfo(
        **common,
        kind="key",
        header_size=fields.at,
        n_tokens=n_tokens,
        depth_map="network" if flags & NETWORK else "maps",
    )


def _delta(fields: _Fields, common: _Common, flags: int) -> DeltaInfo:
    size = (common["width"], common["height"])
    (rows, columns), (hc, wc) = patch_grid(*size), cell_grid(*size)
    back = fields.integer("distance to the reference frame", common["index"], 1)
    follows = int.from_bytes(fields.take(4), "little")
    n_updated = fields.integer("number of updated patches", rows * columns)
    n_vectors = fields.integer("number of vectors", hc * wc, 1) if flags & MOTION else 0
    n_refined = fields.integer("number of refined patches", n_updated, 1) if flags & REFINED else 0
    n_tokens = fields.integer("number of tokens", MAX_DEPTH * n_updated, n_refined) if n_updated else 0
    n_updated_cells = fields.integer("number of updated cells", hc * wc) if n_updated > n_refined else 0
    return DeltaInfo(
        **common,
        kind="delta",
        header_size=fields.at,
        n_tokens=n_tokens,
        depth_map="maps",
        reference=common["index"] - back,
        n_updated=n_updated,
        n_refined=n_refined,
        n_updated_cells=n_updated_cells,
        n_vectors=n_vectors,
        follows=follows,
    )
