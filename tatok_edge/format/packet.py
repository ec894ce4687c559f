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
    HAS_MODEL,
    MAX_PACKET,
    MOTION,
    NETWORK,
    REFINED,
    SYNC,
    VERSION,
    DeltaInfo,
    PacketInfo,
    as_view,
    peek,
    verify,
)
from tatok_edge.format.positions import (
    decode_bitmap,
    decode_depths,
    decode_map,
    decode_motion,
    encode_depths,
    encode_map,
    encode_motion,
    map_of,
)
from tatok_edge.format.protocol import Codes, Depths, EntropyModel, Grid, Places, Stacks
from tatok_edge.format.varint import Buffer, varint
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder
from tatok_edge.runtime.cpu.kernels import codes_from_ids, ids_from_codes
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens, check_depth


def pack(frame: TokenFrame, model: EntropyModel, *, embed_model: bool = True) -> bytes:
    """A frame as a key packet.

    Args:
        frame: The frame to pack; made by ``model``.
        model: Entropy model of the bundle.
        embed_model: Whether the packet carries the tag of the model (8 bytes). Leave it out only where the reader
            has the tag from elsewhere, as in a ``.ttk`` file.

    Raises:
        InputError: The frame is of another model, has more tokens in a patch than the model allows, or holds ids that
            the model does not know.
    """
    _check_frame(frame, TokenFrame, model)
    depths = frame.depth_map()
    check_depth(depths, model.depth)
    cells = frame.cell_grid
    encoder = RangeEncoder()
    try:
        global_codes = codes_from_ids(frame.global_ids, model.levels)
        model.encode_globals(encoder, global_codes, _all_cells(cells), cells)
        encoder, flag = _encode_shortest(encoder, depths, model, global_codes)
        model.encode_patches(encoder, Stacks(codes_from_ids(frame.ids, model.levels), depths), global_codes)
    except ValueError as error:
        raise InputError(f"frame does not fit model {model.tag.hex()}: {error}") from None
    return _assemble(frame, varint(frame.n_tokens), encoder.finish(), flag, embed_model)


def pack_delta(delta: DeltaFrame, model: EntropyModel, held: HeldTokens, *, embed_model: bool = True) -> bytes:
    """A delta as a delta packet.

    Args:
        delta: The delta to pack; made by ``model``.
        model: Entropy model of the bundle.
        held: The tokens that the stream holds ahead of ``delta``.
        embed_model: Whether the packet carries the tag of the model (8 bytes). Leave it out only where the reader
            has the tag from elsewhere, as in a ``.ttk`` file.

    Raises:
        InputError: The delta is of another model, holds ids that the model does not know, or does not go with
            ``held``.
    """
    _check_frame(delta, DeltaFrame, model)
    _check_held(held, model)
    after = held.updated(delta)
    cells = delta.cell_grid
    encoder = RangeEncoder()
    if delta.n_vectors:
        encode_motion(encoder, delta.turns, delta.vectors, cells)
    if delta.n_updated:
        try:
            global_codes = codes_from_ids(after.global_ids, model.levels)
            update_map = delta.update_map()
            encode_map(encoder, delta.updated, update_map.view(np.uint8))
            encoder.bitmap(map_of(delta.cells, cells))
            model.encode_globals(encoder, global_codes[delta.cells], delta.cells, cells)
            refinable = _refinable(delta.updated, held)
            encode_map(
                encoder,
                np.searchsorted(refinable, delta.refined).astype(np.int32),
                map_of(delta.refined, delta.grid),
                map_of(refinable, delta.grid),
            )
            sent = np.bincount(delta.positions, minlength=delta.n_patches).astype(np.int32).reshape(delta.grid)
            encode_depths(encoder, sent, *_bounds(delta.updated, delta.refined, held, delta.grid), model.depth)
            before = _stacks(held, model.levels, delta.grid)
            stacks = _stacks(after, model.levels, delta.grid)
            given = _given(stacks.depths, sent)
            model.encode_patches(encoder, stacks, global_codes, given, before)
        except ValueError as error:
            raise InputError(f"delta does not fit model {model.tag.hex()}: {error}") from None
    flags = DELTA | (MOTION if delta.n_vectors else 0) | (REFINED if delta.refined.size else 0)
    return _assemble(delta, _counts(delta), encoder.finish(), flags, embed_model)


def unpack(data: Buffer, model: EntropyModel, *, limits: Limits = DEFAULT_LIMITS) -> TokenFrame:
    """The frame in a key packet.

    Args:
        data: Exactly one packet; :func:`packet_size` says where it ends.
        model: Entropy model of the bundle that made it.
        limits: Largest packet and picture.

    Raises:
        FormatError: The packet is cut off, damaged, too new, too large, of another model, or a delta packet.
    """
    view = as_view(data)
    info = checked(view, limits)
    if isinstance(info, DeltaInfo):
        raise FormatError(
            f"packet of frame {info.index} is a delta packet: it updates frame {info.reference} of its stream and "
            f"needs a stream decoder that has read from the key packet on"
        )
    _check_tag(info, model)
    decoder = RangeDecoder(view[info.body])
    with _refusing_damage(info):
        _check_count(info, info.n_patches, model)
        global_codes = model.decode_globals(decoder, _all_cells(info.cell_grid), info.cell_grid)
        if info.depth_map == "network":
            depths = model.decode_depths(decoder, info.n_tokens, global_codes, info.grid)
        else:
            none = np.zeros(info.grid, np.int32)
            depths = decode_depths(decoder, info.n_tokens, none, none + np.int32(model.depth), model.depth)
        codes = np.zeros((info.n_tokens, len(model.levels)), np.int32)
        model.decode_patches(decoder, Stacks(codes, depths), global_codes)
        decoder.finish()
        return TokenFrame(
            ids=ids_from_codes(codes, model.levels),
            positions=_positions(depths),
            global_ids=ids_from_codes(global_codes, model.levels),
            width=info.width,
            height=info.height,
            model=model.tag,
            index=info.index,
            timestamp_us=info.timestamp_us,
        )


def unpack_delta(data: Buffer, model: EntropyModel, held: HeldTokens) -> DeltaFrame:
    """The delta in a delta packet.

    Args:
        data: Exactly one packet; :func:`packet_size` says where it ends.
        model: Entropy model of the bundle that made it.
        held: The tokens that the stream holds ahead of the delta. The caller makes sure that they are those of frame
            ``peek(data).reference``.

    Raises:
        FormatError: The packet is cut off, damaged, too new, of another model, of another image size than ``held``,
            or a key packet.
        InputError: ``held`` is of another model.
    """
    view = as_view(data)
    info = _verified_delta(view, model, None)
    _check_held(held, model)
    if held.global_ids.size != info.n_cells or held.depths.size != info.n_patches:
        raise FormatError(
            f"packet of frame {info.index} is of a {info.width}x{info.height} image with {info.n_cells} global "
            f"tokens, the frame to update has {held.global_ids.size}; a stream changes size at a key packet"
        )
    try:
        global_codes = codes_from_ids(held.global_ids, model.levels)
        before = _stacks(held, model.levels, info.grid)
    except ValueError as error:
        raise InputError(f"held does not fit model {model.tag.hex()}: {error}") from None
    decoder = RangeDecoder(view[info.body])
    with _refusing_damage(info):
        _check_count(info, info.n_updated, model)
        update = _decode_update(decoder, info, model)
        global_codes[update.cells] = update.codes
        refined, sent = _decode_sent(decoder, info, update.patches, held)
        stacks = _after(before, update.patches, refined, sent)
        given = _given(stacks.depths, sent)
        model.decode_patches(decoder, stacks, global_codes, given, before)
        decoder.finish()
        return DeltaFrame(
            updated=update.patches,
            positions=_positions(sent),
            ids=ids_from_codes(stacks.codes[given == 0], model.levels),
            cells=update.cells,
            global_ids=ids_from_codes(update.codes, model.levels),
            width=info.width,
            height=info.height,
            model=model.tag,
            index=info.index,
            reference=info.reference,
            follows=info.follows,
            timestamp_us=info.timestamp_us,
            refined=refined,
            turns=update.turns,
            vectors=update.vectors,
        )


def unpack_delta_cells(
    data: Buffer, model: EntropyModel, *, limits: Limits = DEFAULT_LIMITS
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The global tokens in a delta packet; they can be read without the state.

    Returns:
        Raster indices of their cells, int32 ``(C,)``, strictly increasing, and their ids, int32 ``(C,)``.

    Raises:
        FormatError: The packet is cut off, damaged, too new, too large, of another model, or a key packet.
    """
    view = as_view(data)
    info = _verified_delta(view, model, limits)
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


def checked(data: Buffer, limits: Limits) -> PacketInfo:
    """As :func:`verify`; also refuses what is larger than ``limits``, before anything is decoded.

    Raises:
        FormatError: The packet is cut off, followed by other bytes, damaged, too new or too large.
    """
    view = as_view(data)
    limits.check("max_packet", len(view), "a packet", FormatError)
    info = verify(view)
    limits.check_pixels(info.width, info.height, f"the picture in the packet of frame {info.index}", FormatError)
    return info


def _verified_delta(view: memoryview, model: EntropyModel, limits: Limits | None) -> DeltaInfo:
    """The checked header of a delta packet; ``limits`` are None where its size must be that of what is held."""
    info = verify(view) if limits is None else checked(view, limits)
    if not isinstance(info, DeltaInfo):
        raise FormatError(f"packet of frame {info.index} is a key packet: it stands alone and is read by unpack")
    _check_tag(info, model)
    return info


def _check_held(held: object, model: EntropyModel) -> None:
    if not isinstance(held, HeldTokens):
        raise InputError(f"held must be the HeldTokens of the stream ahead of the delta, got {type(held).__name__}")
    if held.depth != model.depth:
        raise InputError(
            f"held must have up to {model.depth} tokens per patch, as model {model.tag.hex()}, got {held.depth}"
        )


def _check_count(info: PacketInfo, patches: int, model: EntropyModel) -> None:
    if info.n_tokens > patches * model.depth:
        raise ValueError(
            f"number of tokens must be from 0 to {patches * model.depth}, {model.depth} for each of {patches} patches, "
            f"got {info.n_tokens}"
        )


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
    packet = bytearray((SYNC, VERSION << 4 | flags))
    packet += varint(len(rest) + CRC_BYTES)
    packet += rest
    packet += zlib.crc32(packet).to_bytes(CRC_BYTES, "little")
    if len(packet) > MAX_PACKET:
        raise InputError(f"frame packs into {len(packet)} bytes, at most {MAX_PACKET} are allowed; keep fewer tokens")
    return bytes(packet)


def _counts(delta: DeltaFrame) -> bytes:
    """The fields of the header of a delta packet after the model."""
    head = varint(delta.index - delta.reference) + delta.follows.to_bytes(4, "little") + varint(delta.n_updated)
    if delta.n_vectors:
        head += varint(delta.n_vectors)
    if delta.refined.size:
        head += varint(delta.refined.size)
    if delta.n_updated:
        head += varint(delta.n_tokens)
    if delta.n_updated > delta.refined.size:
        head += varint(delta.n_updated_cells)
    return head


def _encode_shortest(
    encoder: RangeEncoder, depths: Depths, model: EntropyModel, global_codes: Codes
) -> tuple[RangeEncoder, int]:
    """Code the depth map of a key packet in the shortest way; returns the coder to continue with, and the flag."""
    by_model = encoder.copy()
    none = np.zeros_like(depths)
    encode_depths(encoder, depths, none, none + np.int32(model.depth), model.depth)
    if 0 < depths.sum() < depths.size * model.depth:
        model.encode_depths(by_model, depths, global_codes)
        if len(by_model) < len(encoder):
            return by_model, NETWORK
    return encoder, 0


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
    patches = decode_map(decoder, info.n_updated, info.grid)
    cells = decode_bitmap(decoder, info.n_updated_cells, info.cell_grid)
    return _Update(turns, vectors, patches, cells, model.decode_globals(decoder, cells, info.cell_grid))


def _decode_sent(decoder: RangeDecoder, info: DeltaInfo, updated: Places, held: HeldTokens) -> tuple[Places, Depths]:
    """Refined patches ``(R,)``, and how many tokens of each patch are in a delta packet."""
    refinable = _refinable(updated, held)
    if info.n_refined > refinable.size:
        raise ValueError(f"{refinable.size} of its patches can be refined, its header says {info.n_refined}")
    refined = decode_map(decoder, info.n_refined, info.grid, refinable)
    bounds = _bounds(updated, refined, held, info.grid)
    return refined, decode_depths(decoder, info.n_tokens, *bounds, held.depth)


def _refinable(updated: Places, held: HeldTokens) -> Places:
    """Updated patches that can be refined: they have a token, and not as many as the model allows."""
    depths = held.depths[updated]
    return updated[(depths > 0) & (depths < held.depth)]


def _bounds(updated: Places, refined: Places, held: HeldTokens, grid: Grid) -> tuple[Depths, Depths]:
    """Fewest and most tokens of each patch in a delta packet."""
    least, most = np.zeros(grid, np.int32), np.zeros(grid, np.int32)
    least.ravel()[refined] = 1
    most.ravel()[updated] = held.depth
    most.ravel()[refined] -= held.depths[refined]
    return least, most


def _stacks(held: HeldTokens, levels: tuple[int, ...], grid: Grid) -> Stacks:
    """Held tokens as stacks of codes."""
    there = np.arange(held.depth, dtype=np.int32) < held.depths[:, None]
    return Stacks(codes_from_ids(held.ids[there], levels), held.depths.reshape(grid))


def _after(before: Stacks, updated: Places, refined: Places, sent: Depths) -> Stacks:
    """The stacks after a delta; the codes of the tokens in it are 0."""
    stays = before.depths.copy()
    renewed = np.setdiff1d(updated, refined, assume_unique=True)
    stays.ravel()[renewed] = 0
    depths = stays + sent
    codes = np.zeros((int(depths.sum()), before.codes.shape[1]), np.int32)
    codes[_given(depths, sent) == 1] = before.codes[np.repeat(stays.ravel() > 0, before.depths.ravel())]
    return Stacks(codes, depths)


def _given(depths: Depths, sent: Depths) -> NDArray[np.uint8]:
    """1 for each token of stacks that a delta packet does not hold, uint8 ``(T,)``: it holds the last ones."""
    counts, new = depths.ravel(), sent.ravel()
    left = np.repeat(np.cumsum(counts), counts) - np.arange(int(counts.sum()))
    return (left > np.repeat(new, counts)).view(np.uint8)


def _positions(depths: Depths) -> Places:
    """Patch of each token, int32 ``(T,)``, from the number of tokens of each patch."""
    return np.repeat(np.arange(depths.size, dtype=np.int32), depths.ravel())
