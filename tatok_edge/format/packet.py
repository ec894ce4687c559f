"""One frame as one self-delimiting, CRC-checked packet of bytes; ``docs/format.md`` is the specification.

A packet travels alone (socket, message queue) or in a ``.ttk`` file (:mod:`tatok_edge.format.writer`). Codes are
entropy-coded in integers only, so every machine reads the packets of every other machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import (
    CRC_BYTES,
    DELTA,
    GAPS,
    HAS_MODEL,
    MAX_PACKET,
    NETWORK,
    SYNC,
    UPDATE_GAPS,
    DeltaInfo,
    PacketInfo,
    as_view,
    peek,
    verify,
)
from tatok_edge.format.positions import decode_bitmap, decode_map, decode_motion, encode_map, encode_motion, map_of
from tatok_edge.format.protocol import Codes, EntropyModel, Grid, Places
from tatok_edge.format.varint import Buffer, varint
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder
from tatok_edge.runtime.cpu.kernels import codes_from_ids, ids_from_codes
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame


def pack(frame: TokenFrame, model: EntropyModel, *, embed_model: bool = True) -> bytes:
    """A frame as a key packet.

    Args:
        frame: The frame to pack; made by ``model``.
        model: Entropy model of the bundle.
        embed_model: Whether the packet carries the tag of the model (8 bytes). Leave it out only where the reader
            has the tag from elsewhere, as in a ``.ttk`` file.

    Raises:
        InputError: The frame is of another model, or holds ids that the model does not know.
    """
    _check_frame(frame, TokenFrame, model)
    cells = frame.cell_grid
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
    """A delta as a delta packet.

    Args:
        delta: The delta to pack; made by ``model``.
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
            "global_ids must agree with the delta in its cells; pass the ids of all cells once the delta is applied"
        )
    head = varint(delta.index - delta.reference) + delta.follows.to_bytes(4, "little") + varint(delta.n_updated)
    encoder = RangeEncoder()
    if delta.n_vectors:
        head += varint(delta.n_vectors)
        encode_motion(encoder, delta.turns, delta.vectors, cells)
    if not delta.n_updated:
        return _assemble(delta, head, encoder.finish() if delta.n_vectors else b"", DELTA, embed_model)
    try:
        global_codes = codes_from_ids(global_ids, model.levels)
        update_map = delta.update_map()
        update_gaps = encode_map(encoder, delta.updated, update_map.view(np.uint8))
        encoder.bitmap(map_of(delta.cells, cells))
        model.encode_globals(encoder, global_codes[delta.cells], delta.cells, cells)
        ranks = np.searchsorted(delta.updated, delta.positions).astype(np.int32)
        gaps = encode_map(encoder, ranks, delta.keep_map().view(np.uint8), update_map.view(np.uint8))
        codes = codes_from_ids(delta.ids, model.levels)
        model.encode_patches(encoder, codes, delta.positions, global_codes, delta.grid)
    except ValueError as error:
        raise InputError(f"delta does not fit model {model.tag.hex()}: {error}") from None
    flags = DELTA | (UPDATE_GAPS if update_gaps else 0) | (GAPS if gaps else 0)
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
    view = as_view(data)
    info = verify(view)
    if isinstance(info, DeltaInfo):
        raise FormatError(
            f"packet of frame {info.index} is a delta packet: it updates frame {info.reference} of its stream and "
            f"needs a stream decoder that has read from the key packet on"
        )
    _check_tag(info, model)
    decoder = RangeDecoder(view[info.body])
    with _refusing_damage(info):
        global_codes = model.decode_globals(decoder, _all_cells(info.cell_grid), info.cell_grid)
        if info.positions == "network":
            keep = model.decode_keep_map(decoder, info.n_tokens, global_codes, info.grid)
            positions = np.flatnonzero(keep).astype(np.int32)
        else:
            positions = decode_map(decoder, info.positions, info.n_tokens, info.grid)
        codes = model.decode_patches(decoder, positions, global_codes, info.grid)
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


def unpack_delta(data: Buffer, model: EntropyModel, global_ids: NDArray[np.int32]) -> DeltaFrame:
    """The delta in a delta packet.

    Args:
        data: Exactly one packet; :func:`packet_size` says where it ends.
        model: Entropy model of the bundle that made it.
        global_ids: Ids of the global tokens of all cells of the frame that the packet updates, int32 ``(G,)``. The
            caller makes sure that this is frame ``peek(data).reference``.

    Raises:
        FormatError: The packet is cut off, damaged, too new, of another model, of another image size than
            ``global_ids``, or a key packet.
        InputError: ``global_ids`` is no int32 array, or holds ids that the model does not know.
    """
    view = as_view(data)
    info = _verified_delta(view, model)
    _check_globals(global_ids)
    if global_ids.size != info.n_cells:
        raise FormatError(
            f"packet of frame {info.index} is of a {info.width}x{info.height} image with {info.n_cells} global "
            f"tokens, the frame to update has {global_ids.size}; a stream changes size at a key packet"
        )
    try:
        global_codes = codes_from_ids(global_ids, model.levels)
    except ValueError as error:
        raise InputError(f"global_ids does not fit model {model.tag.hex()}: {error}") from None
    decoder = RangeDecoder(view[info.body])
    with _refusing_damage(info):
        update = _decode_update(decoder, info, model)
        global_codes[update.cells] = update.codes
        positions = decode_map(decoder, info.positions, info.n_tokens, info.grid, update.patches)
        codes = model.decode_patches(decoder, positions, global_codes, info.grid)
        decoder.finish()
        return DeltaFrame(
            updated=update.patches,
            positions=positions,
            ids=ids_from_codes(codes, model.levels),
            cells=update.cells,
            global_ids=ids_from_codes(update.codes, model.levels),
            width=info.width,
            height=info.height,
            model=model.tag,
            index=info.index,
            reference=info.reference,
            follows=info.follows,
            window=info.window,
            timestamp_us=info.timestamp_us,
            turns=update.turns,
            vectors=update.vectors,
        )


def unpack_delta_cells(data: Buffer, model: EntropyModel) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The global tokens in a delta packet; they can be read without the state.

    Returns:
        Raster indices of their cells, int32 ``(C,)``, strictly increasing, and their ids, int32 ``(C,)``.

    Raises:
        FormatError: The packet is cut off, damaged, too new, of another model, or a key packet.
    """
    view = as_view(data)
    info = _verified_delta(view, model)
    with _refusing_damage(info):
        update = _decode_update(RangeDecoder(view[info.body]), info, model)
        return update.cells, ids_from_codes(update.codes, model.levels)


def body_crc(data: Buffer) -> int:
    """Number of the state after a packet; the next delta packet repeats it as ``follows``.

    The CRC of all bodies from the key packet on; the same whether the packet carries the tag of the model or not.

    Raises:
        FormatError: The header is cut off, damaged or too new.
    """
    view = as_view(data)
    info = peek(view)
    return zlib.crc32(view[info.body], info.follows or 0)


@contextmanager
def _refusing_damage(info: PacketInfo) -> Iterator[None]:
    """Turns a ValueError in the block, which reads the body of a packet, into a FormatError."""
    try:
        yield
    except ValueError as error:
        raise FormatError(f"packet of frame {info.index}: {error}") from None


def _zigzag(value: int) -> int:
    """Signed 64-bit to unsigned, small magnitudes to small numbers."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def _all_cells(grid: Grid) -> Places:
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


def _verified_delta(view: memoryview, model: EntropyModel) -> DeltaInfo:
    info = verify(view)
    if not isinstance(info, DeltaInfo):
        raise FormatError(f"packet of frame {info.index} is a key packet: it stands alone and is read by unpack")
    _check_tag(info, model)
    return info


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
        flags |= HAS_MODEL
        rest += frame.model
    rest += counts
    rest += body
    version = 2 if isinstance(frame, DeltaFrame) and frame.n_vectors else 1
    packet = bytearray((SYNC, version << 4 | flags))
    packet += varint(len(rest) + CRC_BYTES)
    packet += rest
    packet += zlib.crc32(packet).to_bytes(CRC_BYTES, "little")
    if len(packet) > MAX_PACKET:
        raise InputError(f"frame packs into {len(packet)} bytes, at most {MAX_PACKET} are allowed; keep fewer tokens")
    return bytes(packet)


def _encode_positions(
    encoder: RangeEncoder, frame: TokenFrame, model: EntropyModel, global_codes: NDArray[np.int32]
) -> tuple[RangeEncoder, int]:
    """Code the kept map of a key packet in the shortest way; returns the coder to continue with, and the flag."""
    keep = frame.keep_map().view(np.uint8)
    by_model = encoder.copy()
    flag = GAPS if encode_map(encoder, frame.positions, keep) else 0
    if 0 < frame.n_tokens < frame.n_patches:
        model.encode_keep_map(by_model, keep, global_codes)
        if len(by_model) < len(encoder):
            return by_model, NETWORK
    return encoder, flag


class _Update(NamedTuple):
    """The first part of the body of a delta packet; it can be read without the state."""

    turns: Places
    """Cells ``(M,)`` where the motion vector changes."""
    vectors: NDArray[np.int32]
    """Their motion vectors ``(M, 2)``."""
    patches: Places
    """Updated patches ``(U,)``."""
    cells: Places
    """Updated cells ``(C,)``."""
    codes: Codes
    """Codes of their global tokens ``(C, D)``."""


def _decode_update(decoder: RangeDecoder, info: DeltaInfo, model: EntropyModel) -> _Update:
    turns, vectors = decode_motion(decoder, info.n_vectors, info.cell_grid)
    patches = decode_map(decoder, info.update_map, info.n_updated, info.grid)
    cells = decode_bitmap(decoder, info.n_updated_cells, info.cell_grid)
    return _Update(turns, vectors, patches, cells, model.decode_globals(decoder, cells, info.cell_grid))
