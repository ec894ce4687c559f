"""One frame as one self-delimiting, CRC-checked packet of bytes; ``docs/format.md`` is the specification.

A packet travels alone (socket, message queue) or in a ``.ttk`` file (:mod:`tatok_edge.container`). Codes are
entropy-coded with integer tables only, so that every machine reads what any other wrote.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .errors import FormatError, InputError
from .runtime._coder import RangeDecoder, RangeEncoder
from .runtime._kernels import codes_from_ids, ids_from_codes
from .tokens import MAX_SIDE, MIN_SIDE, TAG_BYTES, TokenFrame, cell_grid, patch_grid

SYNC: Final = 0xA9
"""First byte of every packet."""
VERSION: Final = 1
"""Version of the packet format that is written; the newest that is read."""
MAX_PACKET: Final = 64 << 20
"""Largest size of a packet in bytes."""
MIN_PACKET: Final = 12
"""Smallest size of a packet in bytes."""
MAX_HEADER: Final = 56
"""So many bytes from the start of a packet hold its whole header."""

_DELTA: Final = 0b0001
_HAS_MODEL: Final = 0b0010
_GAPS: Final = 0b0100
_UPDATE_GAPS: Final = 0b1000

_CHUNK: Final = 1 << 15
"""Tokens whose frequency tables are made at a time: bounds the memory that a packet can ask for."""
_GAPS_SHARE: Final = 32
"""Gaps are tried where fewer than one patch in so many is kept; above, the bitmap is always shorter."""

Buffer = bytes | bytearray | memoryview


class EntropyModel(Protocol):
    """The integer frequency tables of a model bundle."""

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels per code dimension."""
        ...

    @property
    def tag(self) -> bytes:
        """Tag of the bundle, 8 bytes."""
        ...

    def global_freqs(self, cells: tuple[int, int]) -> NDArray[np.uint16]:
        """Rows for the codes of the global tokens, cell-major: ``(rows * columns * D, L)``, each sums to 4096."""
        ...

    def patch_freqs(
        self, global_codes: NDArray[np.int32], cells: tuple[int, int], positions: NDArray[np.int32], kept: int
    ) -> NDArray[np.uint16]:
        """Rows for the codes of the patches at ``positions``, token-major: ``(P * D, L)``, each sums to 4096.

        A row depends on the global codes ``(G, D)``, on its own position and on ``kept``, the number of tokens in
        the packet, and on nothing else: large frames are asked for in parts.
        """
        ...


@dataclass(frozen=True, slots=True)
class PacketInfo:
    """What the header of a packet says; no model is needed to read it."""

    version: int
    """Version of the packet format."""
    kind: Literal["key", "delta"]
    """``"key"`` stands alone; ``"delta"`` updates what earlier packets of its stream left."""
    size: int
    """Bytes of the whole packet."""
    header_size: int
    """Bytes ahead of the entropy-coded body."""
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
    positions: Literal["bitmap", "gaps"]
    """How the positions of the tokens are coded."""
    model: bytes | None
    """Tag of the model; None where the file around the packet carries it."""
    reference: int | None = None
    """Delta packets: number of the frame whose state is updated."""
    n_updated: int | None = None
    """Delta packets: number of patches that are updated."""

    @property
    def n_patches(self) -> int:
        """Number of patches of the frame, kept or not."""
        rows, columns = patch_grid(self.width, self.height)
        return rows * columns

    @property
    def n_globals(self) -> int:
        """Number of cells of the frame; a delta packet may carry fewer global tokens."""
        rows, columns = cell_grid(self.width, self.height)
        return rows * columns


def pack(frame: TokenFrame, model: EntropyModel, *, embed_model: bool = True) -> bytes:
    """A frame as a key packet.

    Args:
        frame: What to pack; made by ``model``.
        model: Entropy model of the bundle.
        embed_model: Whether the packet carries the tag of the model (8 bytes). Leave it out only where the reader
            has the tag from elsewhere, as in a ``.ttk`` file.

    Raises:
        InputError: The frame is of another model, or holds ids that the model does not know.
    """
    if frame.model != model.tag:
        raise InputError(
            f"frame was made by model {frame.model.hex()}, cannot pack it with model {model.tag.hex()}; "
            f"use the tokenizer that made it"
        )
    cells = frame.cells
    encoder = RangeEncoder()
    try:
        global_codes = codes_from_ids(frame.global_ids, model.levels)
        encoder.symbols(global_codes.reshape(-1), model.global_freqs(cells))
        gaps = _gaps_are_shorter(frame)
        if gaps:
            encoder.gaps(frame.positions)
        else:
            encoder.bitmap(_bitmap(frame))
        for part in _chunks(frame.n_tokens):
            codes = codes_from_ids(frame.ids[part], model.levels)
            rows = model.patch_freqs(global_codes, cells, frame.positions[part], frame.n_tokens)
            encoder.symbols(codes.reshape(-1), rows)
    except ValueError as error:
        raise InputError(f"frame does not fit model {model.tag.hex()}: {error}") from None
    flags = (_HAS_MODEL if embed_model else 0) | (_GAPS if gaps else 0)
    rest = bytearray()
    rest += varint(frame.index)
    rest += varint(_zigzag(frame.timestamp_us))
    rest += varint(frame.width)
    rest += varint(frame.height)
    if embed_model:
        rest += frame.model
    rest += varint(frame.n_tokens)
    rest += encoder.finish()
    packet = bytearray((SYNC, VERSION << 4 | flags))
    packet += varint(len(rest) + 4)
    packet += rest
    packet += zlib.crc32(packet).to_bytes(4, "little")
    if len(packet) > MAX_PACKET:
        raise InputError(f"frame packs into {len(packet)} bytes, at most {MAX_PACKET} are allowed; keep fewer tokens")
    return bytes(packet)


def unpack(data: Buffer, model: EntropyModel) -> TokenFrame:
    """The frame in a key packet.

    Args:
        data: Exactly one packet; :func:`packet_size` says where it ends.
        model: Entropy model of the bundle that made it.

    Raises:
        FormatError: The packet is cut off, damaged, too new, of another model, or a delta packet.
    """
    view = _view(data)
    info = verify(view)
    if info.kind == "delta":
        raise FormatError(
            f"packet of frame {info.index} is a delta packet: it updates frame {info.reference} of its stream and "
            f"needs a stream decoder that has read from the key packet on"
        )
    if info.model is not None and info.model != model.tag:
        raise FormatError(
            f"packet of frame {info.index} was made by model {info.model.hex()}, not by model {model.tag.hex()}; "
            f"load the model that made it"
        )
    cells = cell_grid(info.width, info.height)
    grid = patch_grid(info.width, info.height)
    dims = len(model.levels)
    decoder = RangeDecoder(view[info.header_size : info.size - 4])
    try:
        symbols = decoder.symbols(model.global_freqs(cells), info.n_globals * dims)
        global_codes = symbols.reshape(-1, dims)
        if info.positions == "gaps":
            positions = decoder.gaps(info.n_tokens, info.n_patches)
        else:
            positions = np.flatnonzero(decoder.bitmap(*grid, info.n_tokens)).astype(np.int32)
        ids = np.empty(info.n_tokens, np.int32)
        for part in _chunks(info.n_tokens):
            rows = model.patch_freqs(global_codes, cells, positions[part], info.n_tokens)
            codes = decoder.symbols(rows, (part.stop - part.start) * dims).reshape(-1, dims)
            ids[part] = ids_from_codes(codes, model.levels)
        decoder.finish()
        return TokenFrame(
            ids=ids,
            positions=positions,
            global_ids=ids_from_codes(global_codes, model.levels),
            width=info.width,
            height=info.height,
            model=model.tag,
            index=info.index,
            timestamp_us=info.timestamp_us,
        )
    except ValueError as error:
        raise FormatError(f"packet of frame {info.index}: {error}") from None


def packet_size(data: Buffer) -> int:
    """Bytes of the packet that begins with ``data``; the first 6 bytes are enough.

    Raises:
        FormatError: No packet begins here, or ``data`` ends ahead of the length.
    """
    return _framing(_view(data))[0]


def peek(data: Buffer) -> PacketInfo:
    """What the header of a packet says; the first ``MAX_HEADER`` bytes are enough. The CRC is not checked.

    Raises:
        FormatError: The header is cut off, damaged or too new.
    """
    view = _view(data)
    size, at = _framing(view)
    version, flags = view[1] >> 4, view[1] & 0x0F
    if version > VERSION:
        raise FormatError(
            f"packet has format version {version}, this release reads up to {VERSION}; update tatok-edge to read it"
        )
    index, at = read_varint(view, at, "index", (1 << 63) - 1)
    timestamp, at = read_varint(view, at, "timestamp", (1 << 64) - 1)
    width, at = read_varint(view, at, "width", MAX_SIDE, MIN_SIDE)
    height, at = read_varint(view, at, "height", MAX_SIDE, MIN_SIDE)
    rows, columns = patch_grid(width, height)
    model = None
    if flags & _HAS_MODEL:
        model = bytes(view[at : at + TAG_BYTES])
        at += TAG_BYTES
        if len(model) < TAG_BYTES:
            raise FormatError(f"packet is cut off in its header, after {len(view)} bytes")
    reference = updated = None
    most = rows * columns
    if flags & _DELTA:
        back, at = read_varint(view, at, "distance to the reference frame", index, 1)
        updated, at = read_varint(view, at, "number of updated patches", rows * columns)
        reference = index - back
        most = updated
    elif flags & _UPDATE_GAPS:
        raise FormatError("packet is damaged: a key packet has no update map, but its flags name the coding of one")
    tokens, at = read_varint(view, at, "number of tokens", most)
    if at > size - 4:
        raise FormatError(f"packet is damaged: its header takes {at} bytes of {size}")
    return PacketInfo(
        version=version,
        kind="delta" if flags & _DELTA else "key",
        size=size,
        header_size=at,
        index=index,
        timestamp_us=timestamp >> 1 ^ -(timestamp & 1),
        width=width,
        height=height,
        n_tokens=tokens,
        positions="gaps" if flags & _GAPS else "bitmap",
        model=model,
        reference=reference,
        n_updated=updated,
    )


def verify(data: Buffer) -> PacketInfo:
    """What the header says, once length and CRC of the packet have been checked; no model is needed.

    Raises:
        FormatError: The packet is cut off, followed by other bytes, damaged or too new.
    """
    view = _view(data)
    size, _ = _framing(view)
    if len(view) < size:
        raise FormatError(f"packet is cut off: it has {size} bytes, {len(view)} came")
    if len(view) > size:
        raise FormatError(f"packet has {size} bytes, {len(view)} came; pass one packet at a time")
    stored = int.from_bytes(view[size - 4 :], "little")
    found = zlib.crc32(view[: size - 4])
    if stored != found:
        raise FormatError(f"packet is damaged: its CRC is {found:08x}, it should be {stored:08x}")
    return peek(view)


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
        FormatError: ``data`` ends inside it, it is longer than it need be, or outside ``smallest`` to ``largest``.
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


def _view(data: Buffer) -> memoryview:
    try:
        return memoryview(data).cast("B")
    except TypeError:
        raise InputError(f"a packet must be contiguous bytes, got {type(data).__name__}") from None


def _framing(view: memoryview) -> tuple[int, int]:
    """Size of the packet and offset of what follows its length: the same in every version of the format."""
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


def _zigzag(value: int) -> int:
    """Signed 64-bit to unsigned, small magnitudes to small numbers."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _bitmap(frame: TokenFrame) -> NDArray[np.uint8]:
    return frame.keep_map().view(np.uint8)


def _gaps_are_shorter(frame: TokenFrame) -> bool:
    if frame.n_tokens * _GAPS_SHARE >= frame.n_patches:
        return False
    gaps, bitmap = RangeEncoder(), RangeEncoder()
    gaps.gaps(frame.positions)
    bitmap.bitmap(_bitmap(frame))
    return len(gaps.finish()) < len(bitmap.finish())
