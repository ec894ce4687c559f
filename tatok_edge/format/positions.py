"""The coding of places: depth maps, update maps and motion vectors."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.protocol import Depths, Grid, Mask, Places
from tatok_edge.geometry import MAX_VECTOR
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder

_GAPS_SHARE: Final = 32
"""Gaps are tried where fewer than one place in 32 is set; above, the bitmap is always shorter."""


def map_of(chosen: Places, grid: Grid) -> Mask:
    """Map with ones at some raster indices, uint8 ``(rows, columns)``."""
    ones = np.zeros(grid, np.uint8)
    ones.ravel()[chosen] = 1
    return ones


def encode_map(encoder: RangeEncoder, ranks: Places, chosen: Mask, places: Mask | None = None) -> None:
    """Code a map as gaps or as a bitmap, the shorter of both; a bit ahead of it says which: 1 is gaps.

    A map without a choice takes no bit: no place is chosen, or all are.

    Args:
        encoder: The coder to append to.
        ranks: Number of each chosen place among the places, int32 ``(n,)``.
        chosen: The chosen places as a map.
        places: Map of the places, or None for all.
    """
    total = chosen.size if places is None else int(np.count_nonzero(places))
    if not 0 < ranks.size < total:
        return
    gaps = False
    if ranks.size * _GAPS_SHARE < total:
        by_gaps, by_bitmap = RangeEncoder(), RangeEncoder()
        by_gaps.gaps(ranks)
        by_bitmap.bitmap(chosen, places)
        gaps = len(by_gaps.finish()) < len(by_bitmap.finish())
    encode_number(encoder, int(gaps), 1)
    if gaps:
        encoder.gaps(ranks)
    else:
        encoder.bitmap(chosen, places)


def decode_map(decoder: RangeDecoder, count: int, grid: Grid, places: Places | None = None) -> Places:
    """Inverse of :func:`encode_map`.

    Args:
        decoder: The coder to read from.
        count: Number of chosen places.
        grid: Rows and columns of the map.
        places: Raster indices of the places, or None for all.

    Returns:
        Raster indices of the chosen places, int32 ``(count,)``.

    Raises:
        ValueError: The data is cut off or damaged.
    """
    total = grid[0] * grid[1] if places is None else places.size
    if not count:
        return np.zeros(0, np.int32)
    if count == total:
        return np.arange(total, dtype=np.int32) if places is None else places
    if decode_number(decoder, 1):
        ranks = decoder.gaps(count, total)
        return ranks if places is None else places[ranks]
    return decode_bitmap(decoder, count, grid, None if places is None else map_of(places, grid))


def encode_number(encoder: RangeEncoder, value: int, largest: int) -> None:
    """Code an integer from 0 to ``largest`` in as many even bits as ``largest`` has."""
    bits = [value >> shift & 1 for shift in reversed(range(largest.bit_length()))]
    encoder.symbols(np.array(bits, np.int32), _even_rows(len(bits)))


def decode_number(decoder: RangeDecoder, largest: int) -> int:
    """Inverse of :func:`encode_number`.

    Raises:
        ValueError: The data is cut off, or the integer is above ``largest``.
    """
    value = 0
    for bit in decoder.symbols(_even_rows(largest.bit_length()), largest.bit_length()).tolist():
        value = value << 1 | bit
    if value > largest:
        raise ValueError(f"the entropy-coded body is damaged: a count of tokens is {value}, at most {largest} can be")
    return value


def encode_depths(encoder: RangeEncoder, depths: Depths, least: Depths, most: Depths, deepest: int) -> None:
    """Code how many tokens each patch gets, as nested maps.

    Map ``k`` says which patches get a ``k``-th token, among those that get the one before and for which it is neither
    sure nor too deep. The decoder must be told the number of all tokens.

    Args:
        encoder: The coder to append to.
        depths: Tokens of each patch, int32 ``(rows, columns)``.
        least: Fewest tokens of each patch, 0 or 1.
        most: Most tokens of each patch; 0 where a patch gets none.
        deepest: Most tokens of a patch of the model; map ``deepest`` is the last.
    """
    left = int(depths.sum() - least.sum())
    for depth in range(1, deepest + 1):
        places = (depths >= depth - 1) & (most >= depth) & (least < depth)
        chosen = places & (depths >= depth)
        total, count = int(np.count_nonzero(places)), int(np.count_nonzero(chosen))
        if not left:
            return
        fewest, largest = _count_range(left, total, depth, deepest, least, most)
        encode_number(encoder, count - fewest, largest - fewest)
        ranks = np.flatnonzero(chosen[places]).astype(np.int32)
        encode_map(encoder, ranks, chosen.view(np.uint8), places.view(np.uint8))
        left -= count


def decode_depths(decoder: RangeDecoder, tokens: int, least: Depths, most: Depths, deepest: int) -> Depths:
    """Inverse of :func:`encode_depths`, for a number of tokens.

    Raises:
        ValueError: The data is cut off or damaged, or the patches cannot have so many tokens.
    """
    depths = least.copy()
    left = tokens - int(least.sum())
    for depth in range(1, deepest + 1):
        if left <= 0:
            break
        places = np.flatnonzero((depths >= depth - 1) & (most >= depth) & (least < depth)).astype(np.int32)
        fewest, largest = _count_range(left, places.size, depth, deepest, least, most)
        if fewest > largest:
            raise ValueError(f"the depth map is damaged: its patches cannot have {tokens} tokens, as the header says")
        count = fewest + decode_number(decoder, largest - fewest)
        depths.ravel()[decode_map(decoder, count, _grid_of(depths), places)] = depth
        left -= count
    return depths


def _count_range(left: int, places: int, depth: int, deepest: int, least: Depths, most: Depths) -> tuple[int, int]:
    """Fewest and most patches that can get a token of a depth, where ``left`` tokens are to be given.

    Patches that are sure of the first token have room for further ones, but are no places of the first map.
    """
    room = int((most - least)[least >= depth].sum())
    return max(0, -((room - left) // (deepest - depth + 1))), min(places, left)


def decode_bitmap(decoder: RangeDecoder, count: int, grid: Grid, places: Mask | None = None) -> Places:
    """Raster indices of the ``count`` ones of the next bitmap, int32 ``(count,)``."""
    return np.flatnonzero(decoder.bitmap(*grid, count, places)).astype(np.int32)


def encode_motion(encoder: RangeEncoder, turns: Places, vectors: NDArray[np.int32], cells: Grid) -> None:
    """Code the cells ``(M,)`` where the motion vector changes, and their vectors ``(M, 2)``; M is at least 1."""
    encoder.bitmap(map_of(turns, cells))
    # Each vector is coded as its difference from the one before, the first from (0, 0).
    steps = np.diff(vectors, axis=0, prepend=np.zeros((1, 2), np.int32)) + 2 * MAX_VECTOR
    encoder.symbols(steps.reshape(-1).astype(np.int32), _step_rows(len(vectors)))


def decode_motion(decoder: RangeDecoder, count: int, cells: Grid) -> tuple[Places, NDArray[np.int32]]:
    """Inverse of :func:`encode_motion`; two empty arrays where ``count`` is 0."""
    if not count:
        return np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    turns = decode_bitmap(decoder, count, cells)
    steps = decoder.symbols(_step_rows(count), 2 * count).reshape(-1, 2) - 2 * MAX_VECTOR
    return turns, np.cumsum(steps, axis=0, dtype=np.int32)


def _step_rows(count: int) -> NDArray[np.uint16]:
    """Frequencies for the differences of ``count`` vectors, ``(2 * M, L)``: small ones are likely."""
    size = np.abs(np.arange(-2 * MAX_VECTOR, 2 * MAX_VECTOR + 1))
    row = 1 + 1536 // (1 + size) ** 2
    row[2 * MAX_VECTOR] += 4096 - row.sum()
    return np.ascontiguousarray(np.broadcast_to(row.astype(np.uint16), (2 * count, len(row))))


def _even_rows(count: int) -> NDArray[np.uint16]:
    """Frequencies for ``count`` bits that are as likely 0 as 1."""
    return np.full((count, 2), 2048, np.uint16)


def _grid_of(depths: Depths) -> Grid:
    return depths.shape[0], depths.shape[1]
