"""Places: patches in the picture and in the window of a packet, and motion vectors as maps of cells and patches."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE, PATCH

Window = tuple[int, int, int, int]
"""First row, first column, rows and columns of an area of cells."""

HALO: Final = 4
"""Cells on each side of the renewed cells that are passed to the context network with them: what lies beyond changes
the context by a tenth of a grey level."""


def inside(positions: NDArray[np.int32], window: Window, columns: int) -> NDArray[np.int32]:
    """Positions in a patch grid of ``columns`` columns as positions in the patch grid of a window of cells."""
    top, left, _, width = window
    row, column = np.divmod(positions, columns)
    moved = (row - top * CELL_SIDE) * (width * CELL_SIDE) + column - left * CELL_SIDE
    return np.ascontiguousarray(moved, np.int32)


def window_around(cells: NDArray[np.integer], grid: tuple[int, int]) -> Window:
    """The smallest window that holds ``cells`` (raster order, at least one) and :data:`HALO` more on each side."""
    row, column = np.divmod(cells, grid[1])
    top, left = max(int(row.min()) - HALO, 0), max(int(column.min()) - HALO, 0)
    bottom, right = min(int(row.max()) + HALO + 1, grid[0]), min(int(column.max()) + HALO + 1, grid[1])
    return top, left, bottom - top, right - left


def cell_of(positions: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """The cell of each patch, both in raster order; ``columns`` is the width of the patch grid."""
    row, column = np.divmod(positions, columns)
    return np.ascontiguousarray(row // CELL_SIDE * (columns // CELL_SIDE) + column // CELL_SIDE, np.int32)


def patches_of(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Map of the patches of marked cells; bool ``(hc, wc)`` to ``(h, w)``."""
    patches: NDArray[np.bool_] = cells.repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1)
    return patches


def around(marks: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """The marked places of a map ``(h, w)``, and those up to ``reach`` rows and columns away from one."""
    for axis in (0, 1):
        sides = [(reach + 1, reach) if a == axis else (0, 0) for a in (0, 1)]
        count = np.cumsum(np.pad(marks, sides), axis)
        places = np.arange(marks.shape[axis])
        marks = np.take(count, places + 2 * reach + 1, axis) > np.take(count, places, axis)
    return marks


def turns_of(motion: NDArray[np.int32] | None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cells where the motion vector changes, in raster order ``(M,)``, and the vectors from there on ``(M, 2)``."""
    if motion is None:
        return np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    flat = motion.reshape(-1, 2)
    turns = np.flatnonzero(np.diff(flat, axis=0, prepend=np.zeros((1, 2), np.int32)).any(1)).astype(np.int32)
    return turns, np.ascontiguousarray(flat[turns])


def in_motion(motion: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Map ``(h, w)`` of the patches in cells that move; ``motion`` is int32 ``(hc, wc, 2)``."""
    return patches_of((motion != 0).any(2))


def shifts(motion: NDArray[np.int32], offsets: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Where what is held of each patch comes from after its pixels have moved.

    Args:
        motion: Vectors of the cells, int32 ``(hc, wc, 2)``, in half pixels.
        offsets: How far each patch's pixels have moved away from what is held of it, int32 ``(h, w, 2)``, in half
            pixels.

    Returns:
        The patch that describes the pixels of each patch best, ``(N,)``, and how far they are away from it, as
        ``offsets``.
    """
    rows, columns = offsets.shape[:2]
    total = offsets + motion.repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1)
    steps = (total + PATCH) // (2 * PATCH)
    steps[~in_motion(motion)] = 0
    row = np.clip(np.arange(rows)[:, None] + steps[:, :, 0], 0, rows - 1)
    column = np.clip(np.arange(columns) + steps[:, :, 1], 0, columns - 1)
    return (row * columns + column).ravel(), (total - 2 * PATCH * steps).astype(np.int32)


def sources(motion: NDArray[np.int32]) -> NDArray[np.int64]:
    """The patch nearest to the source of each patch's pixels, ``(N,)``."""
    steps = (motion + PATCH) // (2 * PATCH)
    steps = steps.repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1)
    rows, columns = steps.shape[:2]
    row = np.clip(np.arange(rows)[:, None] + steps[:, :, 0], 0, rows - 1)
    column = np.clip(np.arange(columns) + steps[:, :, 1], 0, columns - 1)
    nearest: NDArray[np.int64] = (row * columns + column).ravel()
    return nearest


def move_flags(flags: NDArray[np.bool_], motion: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Flags ``(h, w)`` after their pixels have moved: a patch is flagged if one of its source patches was."""
    rows, columns = flags.shape
    steps = motion.repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1)
    moved = np.zeros_like(flags)
    # A patch reads from one pixel ahead of it to two behind it (interpolation), so it may touch three in a row.
    for y in (-1, 3 * PATCH // 4, PATCH + 1):
        row = np.clip((2 * PATCH * np.arange(rows)[:, None] + steps[:, :, 0] + 2 * y) // (2 * PATCH), 0, rows - 1)
        for x in (-1, 3 * PATCH // 4, PATCH + 1):
            column = np.clip((2 * PATCH * np.arange(columns) + steps[:, :, 1] + 2 * x) // (2 * PATCH), 0, columns - 1)
            moved |= flags[row, column]
    return np.where(in_motion(motion), moved, flags)
