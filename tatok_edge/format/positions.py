"""The coding of positions: kept maps, update maps and motion vectors."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.protocol import Grid, Mask, Places
from tatok_edge.geometry import MAX_VECTOR
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder

_GAPS_SHARE: Final = 32
"""Gaps are tried where fewer than one place in 32 is set; above, the bitmap is always shorter."""


def map_of(chosen: Places, grid: Grid) -> Mask:
    """Map with ones at some raster indices, uint8 ``(rows, columns)``."""
    ones = np.zeros(grid, np.uint8)
    ones.ravel()[chosen] = 1
    return ones


def encode_map(encoder: RangeEncoder, ranks: Places, chosen: Mask, places: Mask | None = None) -> bool:
    """Code a map as gaps or as a bitmap, the shorter of both; returns True for gaps.

    Args:
        encoder: The coder to append to.
        ranks: Number of each chosen place among the places, int32 ``(n,)``.
        chosen: The chosen places as a map.
        places: Map of the places, or None for all.
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


def decode_map(
    decoder: RangeDecoder,
    coding: Literal["bitmap", "gaps", "network"],
    count: int,
    grid: Grid,
    places: Places | None = None,
) -> Places:
    """Inverse of :func:`encode_map`.

    Args:
        decoder: The coder to read from.
        coding: ``"gaps"``, or a bitmap.
        count: Number of chosen places.
        grid: Rows and columns of the map.
        places: Raster indices of the places, or None for all.

    Returns:
        Raster indices of the chosen places, int32 ``(count,)``.

    Raises:
        ValueError: The data is cut off or damaged.
    """
    if coding != "gaps":
        return decode_bitmap(decoder, count, grid, None if places is None else map_of(places, grid))
    if places is None:
        return decoder.gaps(count, grid[0] * grid[1])
    return places[decoder.gaps(count, places.size)]


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
