"""Places: windows around some patches or cells, and motion vectors as maps of cells and patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE, PATCH

WINDOW_COST: Final = 16
"""Places that take as long to compute as one more window does, whatever its size."""


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of a grid of patches or cells that holds some of them and those around them."""

    members: NDArray[np.int64]
    """Which of the wanted places it gives."""
    corner: tuple[int, int]
    """Its first row and column."""
    size: tuple[int, int]
    """Its rows and columns."""


def windows_of(wanted: NDArray[np.int32], grid: tuple[int, int], reach: int) -> list[Window]:
    """Windows that hold the wanted places of a grid (at least one) and ``reach`` more on each side: one around all, cut
    in two as long as that saves work."""
    places = np.stack(np.divmod(wanted.astype(np.int64), grid[1]))
    waiting, windows = [np.arange(len(wanted))], []
    while waiting:
        members = waiting.pop()
        halves = _cut(places[:, members], grid, reach)
        if halves is not None:
            waiting += [members[halves[0]], members[halves[1]]]
            continue
        # A window stays in the picture: where it touches the edge, a network sees the edge as in the whole grid.
        first, last = _box(places[:, members].min(1), places[:, members].max(1), grid, reach)
        windows.append(Window(members, (int(first[0]), int(first[1])), tuple((last - first).tolist())))
    return windows


def _box(
    low: NDArray[np.int64], high: NDArray[np.int64], grid: tuple[int, int], reach: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The window around places between two corners ``(2, ...)``: its first place, and the place behind its last one."""
    end = np.array(grid).reshape(2, *[1] * (low.ndim - 1))
    return np.maximum(low - reach, 0), np.minimum(high + reach + 1, end)


def _cut(places: NDArray[np.int64], grid: tuple[int, int], reach: int) -> tuple[NDArray[np.int64], ...] | None:
    """The two parts of places ``(2, P)`` whose windows cost least together; None where one window costs less."""

    def cost(low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
        first, last = _box(low, high, grid, reach)
        height, width = last - first
        area: NDArray[np.int64] = height * width
        return area

    least, parts = int(cost(places.min(1), places.max(1))) - WINDOW_COST, None
    for axis in (0, 1):
        order = np.argsort(places[axis], kind="stable")
        along = places[:, order]
        before = cost(np.minimum.accumulate(along, 1), np.maximum.accumulate(along, 1))[:-1]
        back = along[:, ::-1]
        behind = cost(np.minimum.accumulate(back, 1), np.maximum.accumulate(back, 1))[-2::-1]
        costs = before + behind
        if len(costs) and costs.min() < least:
            least, at = int(costs.min()), int(costs.argmin()) + 1
            parts = order[:at], order[at:]
    return parts


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
