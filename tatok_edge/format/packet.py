"""One frame as one self-delimiting, CRC-checked packet of bytes; ``docs/format.md`` is the specification.

A packet travels alone (socket, message queue) or in a ``.ttk`` file (:mod:`tatok_edge.format.container`). Codes are
entropy-coded in integers only, so that every machine reads what any other wrote.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Final, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.geometry import MAX_SIDE, MAX_VECTOR, MIN_SIDE, cell_grid, patch_grid
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder
from tatok_edge.runtime.cpu.kernels import codes_from_ids, ids_from_codes
from tatok_edge.tokens.checks import TAG_BYTES
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

SYNC: Final = 0xA9
"""First byte of every packet."""
VERSION: Final = 2
"""Newest version of the packet format that is read. Packets with motion have version 2, all others are written as 1."""
MAX_PACKET: Final = 64 << 20
"""Largest size of a packet in bytes."""
MIN_PACKET: Final = 12
"""Smallest size of a packet in bytes."""
MAX_HEADER: Final = 74
"""So many bytes from the start of a packet hold its whole header."""

_DELTA: Final = 0b0001
_HAS_MODEL: Final = 0b0010
_GAPS: Final = 0b0100
_UPDATE_GAPS: Final = 0b1000
_NETWORK: Final = 0b1000
"""The same flag, in key packets: positions are coded by the model."""

_GAPS_SHARE: Final = 32
"""Gaps are tried where fewer than one place in so many is set; above, the bitmap is always shorter."""

Buffer = bytes | bytearray | memoryview


class EntropyModel(Protocol):
    """What a model bundle knows about the codes of its tokens, in integers."""

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels per code dimension."""
        ...

    @property
    def tag(self) -> bytes:
        """Tag of the bundle, 8 bytes."""
        ...

    def encode_globals(
        self, encoder: RangeEncoder, codes: NDArray[np.int32], cells: NDArray[np.int32], grid: tuple[int, int]
    ) -> None:
        """Append the codes ``(C, D)`` of the global tokens of some cells.

        Args:
            encoder: What takes them.
            codes: int32 ``(C, D)``.
            cells: Raster indices of the cells in ``grid``, int32 ``(C,)``, strictly increasing.
            grid: Rows and columns of cells.

        Raises:
            ValueError: A code that the model does not know.
        """
        ...

    def decode_globals(
        self, decoder: RangeDecoder, cells: NDArray[np.int32], grid: tuple[int, int]
    ) -> NDArray[np.int32]:
        """Inverse of :meth:`encode_globals`: the codes, int32 ``(C, D)``.

        Raises:
            ValueError: The data is cut off or was not written with this model.
        """
        ...

    def encode_keep_map(self, encoder: RangeEncoder, keep: NDArray[np.uint8], global_codes: NDArray[np.int32]) -> None:
        """Append which patches are kept, uint8 ``(rows, columns)`` of zeros and ones, given the codes of all cells."""
        ...

    def decode_keep_map(
        self, decoder: RangeDecoder, kept: int, global_codes: NDArray[np.int32], grid: tuple[int, int]
    ) -> NDArray[np.uint8]:
        """Inverse of :meth:`encode_keep_map`, given the number of ones, ``kept``.

        Raises:
            ValueError: The data is cut off or was not written with this model.
        """
        ...

    def encode_patches(
        self,
        encoder: RangeEncoder,
        codes: NDArray[np.int32],
        positions: NDArray[np.int32],
        global_codes: NDArray[np.int32],
        grid: tuple[int, int],
    ) -> None:
        """Append the codes ``(T, D)`` of all patch tokens of a packet.

        Args:
            encoder: What takes them.
            codes: int32 ``(T, D)``.
            positions: Raster indices of the patches in ``grid``, int32 ``(T,)``, strictly increasing.
            global_codes: Codes of all cells, int32 ``(G, D)``.
            grid: Rows and columns of patches.

        Raises:
            ValueError: A code that the model does not know.
        """
        ...

    def decode_patches(
        self,
        decoder: RangeDecoder,
        positions: NDArray[np.int32],
        global_codes: NDArray[np.int32],
        grid: tuple[int, int],
    ) -> NDArray[np.int32]:
        """Inverse of :meth:`encode_patches`: the codes, int32 ``(T, D)``.

        Raises:
            ValueError: The data is cut off or was not written with this model.
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
    positions: Literal["bitmap", "gaps", "network"]
    """How the positions of the tokens are coded."""
    model: bytes | None
    """Tag of the model; None where the file around the packet carries it."""
    reference: int | None = None
    """Delta packets: number of the frame whose state is updated."""
    n_updated: int | None = None
    """Delta packets: number of patches that are updated."""
    n_updated_cells: int | None = None
    """Delta packets: number of global tokens that change."""
    n_vectors: int | None = None
    """Delta packets: number of motion vectors."""
    update_map: Literal["bitmap", "gaps"] | None = None
    """Delta packets: how the positions of the updated patches are coded."""
    follows: int | None = None
    """Delta packets: :func:`body_crc` of the packet that left the state which is updated."""
    window: tuple[int, int, int, int] | None = None
    """Delta packets: first row, first column, rows and columns of the cells that the updated patches are read with."""

    @property
    def n_patches(self) -> int:
        """Number of patches of the frame, kept or not."""
        rows, columns = patch_grid(self.width, self.height)
        return rows * columns

    @property
    def n_globals(self) -> int:
        """Number of cells of the frame; a delta packet carries ``n_updated_cells`` global tokens."""
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
    _check_frame(frame, TokenFrame, model)
    cells = frame.cells
    encoder = RangeEncoder()
    try:
        global_codes = codes_from_ids(frame.global_ids, model.levels)
        model.encode_globals(encoder, global_codes, _all_cells(cells), cells)
        encoder, flag = _encode_positions(encoder, frame, model, global_codes)
        codes = codes_from_ids(frame.ids, model.levels)
        model.encode_patches(encoder, codes, frame.positions, global_codes, frame.grid)
    except ValueError as error:
        raise InputError(f"frame does not fit model {model.tag.hex()}: {error}") from None
    return _assemble(frame, varint(frame.n_tokens), encoder.finish(), flag, embed_model)


def pack_delta(
    delta: DeltaFrame, model: EntropyModel, global_ids: NDArray[np.int32], *, embed_model: bool = True
) -> bytes:
    """What changes from one frame of a stream to the next as a delta packet.

    Args:
        delta: What to pack; made by ``model``.
        model: Entropy model of the bundle.
        global_ids: Ids of the global tokens of all cells once ``delta`` is applied, int32 ``(G,)``.
        embed_model: Whether the packet carries the tag of the model (8 bytes). Leave it out only where the reader
            has the tag from elsewhere, as in a ``.ttk`` file.

    Raises:
        InputError: The delta is of another model, holds ids that the model does not know, or does not go with
            ``global_ids``.
    """
    _check_frame(delta, DeltaFrame, model)
    cells = delta.cell_grid
    _check_globals(global_ids)
    if global_ids.size != cells[0] * cells[1]:
        raise InputError(
            f"global_ids must be {cells[0]} x {cells[1]} = {cells[0] * cells[1]} for a {delta.width}x{delta.height} "
            f"image, got {global_ids.size}"
        )
    if not np.array_equal(global_ids[delta.cells], delta.global_ids):
        raise InputError(
            "global_ids must hold those of the delta in its cells; pass the ids of all cells as they are after it"
        )
    head = varint(delta.index - delta.reference) + delta.follows.to_bytes(4, "little") + varint(delta.n_updated)
    encoder = RangeEncoder()
    if delta.n_vectors:
        head += varint(delta.n_vectors)
        encoder.bitmap(_map_of(delta.turns, cells))
        encoder.symbols(_vector_steps(delta.vectors), _vector_rows(delta.n_vectors))
    if not delta.n_updated:
        return _assemble(delta, head, encoder.finish() if delta.n_vectors else b"", _DELTA, embed_model)
    try:
        global_codes = codes_from_ids(global_ids, model.levels)
        update_map = delta.update_map()
        update_gaps = _encode_map(encoder, delta.updated, update_map.view(np.uint8))
        encoder.bitmap(_map_of(delta.cells, cells))
        model.encode_globals(encoder, global_codes[delta.cells], delta.cells, cells)
        ranks = np.searchsorted(delta.updated, delta.positions).astype(np.int32)
        gaps = _encode_map(encoder, ranks, delta.keep_map().view(np.uint8), update_map.view(np.uint8))
        codes = codes_from_ids(delta.ids, model.levels)
        model.encode_patches(encoder, codes, delta.positions, global_codes, delta.grid)
    except ValueError as error:
        raise InputError(f"delta does not fit model {model.tag.hex()}: {error}") from None
    flags = _DELTA | (_UPDATE_GAPS if update_gaps else 0) | (_GAPS if gaps else 0)
    head += varint(delta.n_updated_cells) + varint(delta.n_tokens) + b"".join(map(varint, delta.window))
    return _assemble(delta, head, encoder.finish(), flags, embed_model)


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
    _check_tag(info, model)
    cells = cell_grid(info.width, info.height)
    grid = patch_grid(info.width, info.height)
    decoder = RangeDecoder(view[info.header_size : info.size - 4])
    try:
        global_codes = model.decode_globals(decoder, _all_cells(cells), cells)
        if info.positions == "gaps":
            positions = decoder.gaps(info.n_tokens, info.n_patches)
        elif info.positions == "network":
            keep = model.decode_keep_map(decoder, info.n_tokens, global_codes, grid)
            positions = np.flatnonzero(keep).astype(np.int32)
        else:
            positions = _decode_bitmap(decoder, grid, info.n_tokens)
        codes = model.decode_patches(decoder, positions, global_codes, grid)
        decoder.finish()
        return TokenFrame(
            ids=ids_from_codes(codes, model.levels),
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


def unpack_delta(data: Buffer, model: EntropyModel, global_ids: NDArray[np.int32]) -> DeltaFrame:
    """What a delta packet changes.

    Args:
        data: Exactly one packet; :func:`packet_size` says where it ends.
        model: Entropy model of the bundle that made it.
        global_ids: Ids of the global tokens of all cells of the frame that the packet updates, int32 ``(G,)``. That
            it is frame ``peek(data).reference`` is for the caller to see to.

    Raises:
        FormatError: The packet is cut off, damaged, too new, of another model, of another image size than
            ``global_ids``, or a key packet.
        InputError: ``global_ids`` is no int32 array, or holds ids that the model does not know.
    """
    view = _view(data)
    info = verify(view)
    _check_delta(info, model)
    _check_globals(global_ids)
    if global_ids.size != info.n_globals:
        raise FormatError(
            f"packet of frame {info.index} is of a {info.width}x{info.height} image with {info.n_globals} global "
            f"tokens, the frame that it is to update has {global_ids.size}; a stream changes size at a key packet"
        )
    try:
        global_codes = codes_from_ids(global_ids, model.levels)
    except ValueError as error:
        raise InputError(f"global_ids does not fit model {model.tag.hex()}: {error}") from None
    grid = patch_grid(info.width, info.height)
    decoder = RangeDecoder(view[info.header_size : info.size - 4])
    try:
        turns, vectors = _decode_motion(decoder, info)
        updated, changed, changed_codes = _decode_update(decoder, info, model)
        global_codes[changed] = changed_codes
        if info.positions == "gaps":
            positions = updated[decoder.gaps(info.n_tokens, updated.size)]
        else:
            positions = _decode_bitmap(decoder, grid, info.n_tokens, _map_of(updated, grid))
        codes = model.decode_patches(decoder, positions, global_codes, grid)
        decoder.finish()
        return DeltaFrame(
            updated=updated,
            positions=positions,
            ids=ids_from_codes(codes, model.levels),
            cells=changed,
            global_ids=ids_from_codes(changed_codes, model.levels),
            width=info.width,
            height=info.height,
            model=model.tag,
            index=info.index,
            reference=cast("int", info.reference),
            follows=cast("int", info.follows),
            window=cast("tuple[int, int, int, int]", info.window),
            timestamp_us=info.timestamp_us,
            turns=turns,
            vectors=vectors,
        )
    except ValueError as error:
        raise FormatError(f"packet of frame {info.index}: {error}") from None


def unpack_delta_cells(data: Buffer, model: EntropyModel) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The global tokens in a delta packet; unlike all else in it, they are read without what it updates.

    Returns:
        Raster indices of their cells, int32 ``(C,)``, strictly increasing, and their ids, int32 ``(C,)``.

    Raises:
        FormatError: The packet is cut off, damaged, too new, of another model, or a key packet.
    """
    view = _view(data)
    info = verify(view)
    _check_delta(info, model)
    decoder = RangeDecoder(view[info.header_size : info.size - 4])
    try:
        _decode_motion(decoder, info)
        _, changed, codes = _decode_update(decoder, info, model)
        return changed, ids_from_codes(codes, model.levels)
    except ValueError as error:
        raise FormatError(f"packet of frame {info.index}: {error}") from None


def body_crc(data: Buffer) -> int:
    """Number of the state that a packet leaves, which the delta packet after it names as ``follows``.

    The CRC of all bodies from the key packet on; the same whether the packet carries the tag of the model or not.

    Raises:
        FormatError: The header is cut off, damaged or too new.
    """
    view = _view(data)
    info = peek(view)
    return zlib.crc32(view[info.header_size : info.size - 4], info.follows or 0)


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
    hc, wc = cell_grid(width, height)
    model = None
    if flags & _HAS_MODEL:
        model = bytes(view[at : at + TAG_BYTES])
        at += TAG_BYTES
        if len(model) < TAG_BYTES:
            raise FormatError(f"packet is cut off in its header, after {len(view)} bytes")
    reference = updated = updated_cells = vectors = follows = window = None
    tokens, most = 0, rows * columns
    if flags & _DELTA:
        back, at = read_varint(view, at, "distance to the reference frame", index, 1)
        follows = int.from_bytes(view[at : at + 4], "little")
        at += 4
        updated, at = read_varint(view, at, "number of updated patches", most)
        vectors = 0
        if version > 1:
            vectors, at = read_varint(view, at, "number of vectors", hc * wc, 1)
        reference, updated_cells, most, window = index - back, 0, updated, (0, 0, 0, 0)
        if updated:
            updated_cells, at = read_varint(view, at, "number of updated cells", hc * wc)
    elif flags & _NETWORK and flags & _GAPS:
        raise FormatError("packet is damaged: its flags name two codings of the positions")
    elif version > 1:
        raise FormatError("packet is damaged: a key packet has no motion, but its version is 2")
    if updated != 0:
        tokens, at = read_varint(view, at, "number of tokens", most)
    if updated:
        top, at = read_varint(view, at, "first row of the window", hc - 1)
        left, at = read_varint(view, at, "first column of the window", wc - 1)
        deep, at = read_varint(view, at, "rows of the window", hc - top, 1)
        wide, at = read_varint(view, at, "columns of the window", wc - left, 1)
        window = (top, left, deep, wide)
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
        positions="gaps" if flags & _GAPS else "network" if flags & (_NETWORK | _DELTA) == _NETWORK else "bitmap",
        model=model,
        reference=reference,
        n_updated=updated,
        n_updated_cells=updated_cells,
        n_vectors=vectors,
        follows=follows,
        window=window,
        update_map=None if updated is None else "gaps" if flags & _UPDATE_GAPS else "bitmap",
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


def _all_cells(grid: tuple[int, int]) -> NDArray[np.int32]:
    return np.arange(grid[0] * grid[1], dtype=np.int32)


def _check_frame(frame: TokenFrame | DeltaFrame, kind: type[TokenFrame | DeltaFrame], model: EntropyModel) -> None:
    if not isinstance(frame, kind):
        call = "pack_delta" if kind is TokenFrame else "pack"
        raise InputError(f"frame must be a {kind.__name__}, got {type(frame).__name__}; {call} packs the other kind")
    if frame.model != model.tag:
        raise InputError(
            f"frame was made by model {frame.model.hex()}, cannot pack it with model {model.tag.hex()}; "
            f"use the tokenizer that made it"
        )


def _check_tag(info: PacketInfo, model: EntropyModel) -> None:
    if info.model is not None and info.model != model.tag:
        raise FormatError(
            f"packet of frame {info.index} was made by model {info.model.hex()}, not by model {model.tag.hex()}; "
            f"load the model that made it"
        )


def _check_delta(info: PacketInfo, model: EntropyModel) -> None:
    if info.kind == "key":
        raise FormatError(f"packet of frame {info.index} is a key packet: it stands alone and is read by unpack")
    _check_tag(info, model)


def _check_globals(global_ids: object) -> None:
    if not isinstance(global_ids, np.ndarray) or global_ids.dtype != np.int32 or global_ids.ndim != 1:
        got = (
            f"{global_ids.dtype} {global_ids.shape}"
            if isinstance(global_ids, np.ndarray)
            else type(global_ids).__name__
        )
        raise InputError(f"global_ids must be an int32 numpy array of one dimension, got {got}")


def _assemble(frame: TokenFrame | DeltaFrame, counts: bytes, body: bytes, flags: int, embed_model: bool) -> bytes:
    """The packet around ``counts``, the fields of the header after the model, and ``body``."""
    rest = bytearray()
    rest += varint(frame.index)
    rest += varint(_zigzag(frame.timestamp_us))
    rest += varint(frame.width)
    rest += varint(frame.height)
    if embed_model:
        flags |= _HAS_MODEL
        rest += frame.model
    rest += counts
    rest += body
    version = 2 if isinstance(frame, DeltaFrame) and frame.n_vectors else 1
    packet = bytearray((SYNC, version << 4 | flags))
    packet += varint(len(rest) + 4)
    packet += rest
    packet += zlib.crc32(packet).to_bytes(4, "little")
    if len(packet) > MAX_PACKET:
        raise InputError(f"frame packs into {len(packet)} bytes, at most {MAX_PACKET} are allowed; keep fewer tokens")
    return bytes(packet)


def _encode_positions(
    encoder: RangeEncoder, frame: TokenFrame, model: EntropyModel, global_codes: NDArray[np.int32]
) -> tuple[RangeEncoder, int]:
    """Code which patches of a key packet are kept, in the shortest way; returns what goes on, and the flag of it."""
    keep = frame.keep_map().view(np.uint8)
    by_model = encoder.copy()
    flag = _GAPS if _encode_map(encoder, frame.positions, keep) else 0
    if 0 < frame.n_tokens < frame.n_patches:
        model.encode_keep_map(by_model, keep, global_codes)
        if len(by_model) < len(encoder):
            return by_model, _NETWORK
    return encoder, flag


def _encode_map(
    encoder: RangeEncoder,
    ranks: NDArray[np.int32],
    chosen: NDArray[np.uint8],
    places: NDArray[np.uint8] | None = None,
) -> bool:
    """Code which places are chosen by gaps or as a bitmap, whichever is shorter; returns whether by gaps.

    Args:
        encoder: What takes it.
        ranks: Numbers of the chosen among the places, int32 ``(n,)``.
        chosen: The same as a map, uint8 ``(rows, columns)``.
        places: Map of the places, or None where all are.
    """
    gaps = False
    if ranks.size * _GAPS_SHARE < (chosen.size if places is None else np.count_nonzero(places)):
        by_gaps, by_bitmap = RangeEncoder(), RangeEncoder()
        by_gaps.gaps(ranks)
        by_bitmap.bitmap(chosen, places)
        gaps = len(by_gaps.finish()) < len(by_bitmap.finish())
    if gaps:
        encoder.gaps(ranks)
    else:
        encoder.bitmap(chosen, places)
    return gaps


def _decode_bitmap(
    decoder: RangeDecoder, grid: tuple[int, int], count: int, places: NDArray[np.uint8] | None = None
) -> NDArray[np.int32]:
    """Raster indices of the ``count`` ones of the next bitmap, int32 ``(count,)``."""
    return np.flatnonzero(decoder.bitmap(*grid, count, places)).astype(np.int32)


def _vector_steps(vectors: NDArray[np.int32]) -> NDArray[np.int32]:
    """What each vector differs by from the one before, the first from (0, 0), as symbols ``(2 * M,)``."""
    return (np.diff(vectors, axis=0, prepend=np.zeros((1, 2), np.int32)) + 2 * MAX_VECTOR).reshape(-1).astype(np.int32)


def _vector_rows(count: int) -> NDArray[np.uint16]:
    """Rows for :func:`_vector_steps`, ``(2 * M, L)``: small steps are likely."""
    size = np.abs(np.arange(-2 * MAX_VECTOR, 2 * MAX_VECTOR + 1))
    row = 1 + 1536 // (1 + size) ** 2
    row[2 * MAX_VECTOR] += 4096 - row.sum()
    return np.ascontiguousarray(np.broadcast_to(row.astype(np.uint16), (2 * count, len(row))))


def _decode_motion(decoder: RangeDecoder, info: PacketInfo) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """What the body of a delta packet begins with: where the motion changes ``(M,)``, and the vectors ``(M, 2)``."""
    count = info.n_vectors or 0
    if not count:
        return np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    turns = _decode_bitmap(decoder, cell_grid(info.width, info.height), count)
    steps = decoder.symbols(_vector_rows(count), 2 * count).reshape(-1, 2) - 2 * MAX_VECTOR
    return turns, np.cumsum(steps, axis=0, dtype=np.int32)


def _decode_update(
    decoder: RangeDecoder, info: PacketInfo, model: EntropyModel
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """What follows in the body of a delta packet: updated patches ``(U,)``, cells ``(C,)``, their codes ``(C, D)``."""
    cells = cell_grid(info.width, info.height)
    n_updated, n_cells = info.n_updated or 0, info.n_updated_cells or 0
    if info.update_map == "gaps":
        updated = decoder.gaps(n_updated, info.n_patches)
    else:
        updated = _decode_bitmap(decoder, patch_grid(info.width, info.height), n_updated)
    changed = _decode_bitmap(decoder, cells, n_cells)
    return updated, changed, model.decode_globals(decoder, changed, cells)


def _map_of(chosen: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """Map with ones at some raster indices, uint8 ``(rows, columns)``."""
    ones = np.zeros(grid, np.uint8)
    ones.ravel()[chosen] = 1
    return ones
