"""The state that both ends of a stream hold for every patch, and how a delta packet changes it.

The state of a patch is its context, mean pixels, code (or conditional mean), keep bit and entropy, as of the frame in
which it was last updated. A delta packet carries the update map, the global tokens that changed and the patch tokens of
some updated patches. All other patches keep their state. Both ends compute the context from the same global codes, so
nothing drifts. A motion vector moves pixels of the picture before into a cell; they are shown until their patches are
updated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE, PATCH, PATCH_VALUES, PictureSize, cell_grid, patch_grid
from tatok_edge.model.networks import Clock, Networks, Prior
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

Window = tuple[int, int, int, int]
"""First row, first column, rows and columns of an area of cells."""

HALO: Final = 2
"""Cells on each side of the updated cells that are passed to the context network with them."""


@dataclass(slots=True)
class StreamState(PictureSize):
    """The state that encoder and decoder hold of a stream, flat over ``N`` patches; deltas change them in place."""

    width: int
    """Width of the images in pixels."""
    height: int
    """Height of the images in pixels."""
    index: int
    """Number of the last frame."""
    crc: int
    """Checksum of the last packet; a delta packet names the checksum of the packet that it follows."""
    global_codes: NDArray[np.int32]
    """Codes of the global tokens ``(D, hc, wc)``."""
    global_ids: NDArray[np.int32]
    """Token ids of the global tokens ``(hc * wc,)``."""
    ids: NDArray[np.int32]
    """Token id of each patch ``(N,)``, -1 where it has none."""
    context: NDArray[np.float32]
    """Context ``(Dc, N)``."""
    mean: NDArray[np.float32]
    """Mean pixels ``(192, N)`` in [-1, 1]."""
    state: NDArray[np.float32]
    """Code or conditional mean, keep bit, entropy: ``(D + 2, N)``."""
    moved: NDArray[np.bool_]
    """Which patches show moved pixels of an earlier picture instead of their own ``(N,)``."""

    def pixels(self, networks: Networks, clock: Clock) -> NDArray[np.float32]:
        """Pixels of the state, ``(192, N)`` in [-1, 1]. Patches that are :attr:`moved` show other pixels."""
        return networks.pixels(self.state, self.context, self.mean, self.grid, clock)

    def copy(self) -> StreamState:
        """Entries that change independently."""
        return replace(
            self,
            global_codes=self.global_codes.copy(),
            global_ids=self.global_ids.copy(),
            ids=self.ids.copy(),
            context=self.context.copy(),
            mean=self.mean.copy(),
            state=self.state.copy(),
            moved=self.moved.copy(),
        )

    def moved_after(self, delta: DeltaFrame) -> NDArray[np.bool_]:
        """What :attr:`moved` is after ``delta``."""
        moved = self.moved.copy()
        if delta.n_vectors:
            moved |= in_motion(delta.motion()).ravel()
        moved[delta.updated] = False
        return moved

    def apply(self, delta: DeltaFrame, crc: int, prior: Prior | None, levels: tuple[int, ...]) -> None:
        """Write what ``delta`` changes.

        Args:
            delta: The update.
            crc: Checksum of its packet.
            prior: Prior of the patches under the window of ``delta``; None where it updates no patch.
            levels: FSQ levels.
        """
        self.moved = self.moved_after(delta)
        if delta.cells.size:
            flat = self.global_codes.reshape(len(levels), -1)
            flat[:, delta.cells] = kernels.codes_from_ids(delta.global_ids, levels).T
            self.global_ids[delta.cells] = delta.global_ids
        if prior is not None:
            columns = self.grid[1]
            codes = kernels.codes_from_ids(delta.ids, levels)
            tokens = inside(delta.positions, delta.window, columns)
            state = kernels.decoder_state(codes, tokens, prior.expected, prior.entropy, levels)
            source = inside(delta.updated, delta.window, columns)
            for array, held in ((prior.context, self.context), (prior.mean, self.mean), (state, self.state)):
                kernels.scatter_columns(array, source, held, delta.updated)
            self.ids[delta.updated] = -1
            self.ids[delta.positions] = delta.ids
        self.index, self.crc = delta.index, crc


def empty_state(width: int, height: int, dims: int, context_width: int) -> StreamState:
    """Entries before the first packet."""
    rows, columns = patch_grid(width, height)
    hc, wc = cell_grid(width, height)
    patches = rows * columns
    return StreamState(
        width=width,
        height=height,
        index=-1,
        crc=0,
        global_codes=np.zeros((dims, hc, wc), np.int32),
        global_ids=np.zeros(hc * wc, np.int32),
        ids=np.full(patches, -1, np.int32),
        context=np.zeros((context_width, patches), np.float32),
        mean=np.zeros((PATCH_VALUES, patches), np.float32),
        state=np.zeros((dims + 2, patches), np.float32),
        moved=np.zeros(patches, np.bool_),
    )


def inside(positions: NDArray[np.int32], window: Window, columns: int) -> NDArray[np.int32]:
    """Positions in a patch grid of ``columns`` columns as positions in the patch grid of a window of cells."""
    top, left, _, width = window
    row, column = np.divmod(positions, columns)
    moved: NDArray[np.int32] = ((row - top * CELL_SIDE) * (width * CELL_SIDE) + column - left * CELL_SIDE).astype(
        np.int32
    )
    return moved


def window_around(cells: NDArray[np.integer], grid: tuple[int, int], halo: int = HALO) -> Window:
    """The smallest window that holds ``cells`` (raster order, at least one) and ``halo`` more on each side."""
    row, column = np.divmod(cells, grid[1])
    top, left = max(int(row.min()) - halo, 0), max(int(column.min()) - halo, 0)
    bottom, right = min(int(row.max()) + halo + 1, grid[0]), min(int(column.max()) + halo + 1, grid[1])
    return top, left, bottom - top, right - left


def cell_of(positions: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """The cell of each patch, both in raster order; ``columns`` is the width of the patch grid."""
    row, column = np.divmod(positions, columns)
    cells: NDArray[np.int32] = (row // CELL_SIDE * (columns // CELL_SIDE) + column // CELL_SIDE).astype(np.int32)
    return cells


def ids_of_cells(global_codes: NDArray[np.int32], levels: tuple[int, ...]) -> NDArray[np.int32]:
    """Token ids ``(hc * wc,)`` of the codes of global tokens ``(D, hc, wc)``."""
    flat = np.ascontiguousarray(global_codes.reshape(len(global_codes), -1).T)
    return kernels.ids_from_codes(flat, levels)


def turns_of(motion: NDArray[np.int32] | None) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Cells where the motion vector changes, in raster order ``(M,)``, and the vectors from there on ``(M, 2)``."""
    if motion is None:
        return np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    flat = motion.reshape(-1, 2)
    turns = np.flatnonzero(np.diff(flat, axis=0, prepend=np.zeros((1, 2), np.int32)).any(1)).astype(np.int32)
    return turns, np.ascontiguousarray(flat[turns])


def in_motion(motion: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Map ``(h, w)`` of the patches in cells that move; ``motion`` is int32 ``(hc, wc, 2)``."""
    moves: NDArray[np.bool_] = (motion != 0).any(2).repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1)
    return moves


def sources(motion: NDArray[np.int32]) -> NDArray[np.int64]:
    """The patch nearest to the source of each patch's pixels, ``(N,)``."""
    steps = (motion + PATCH) // (2 * PATCH)
    steps = steps.repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1)
    rows, columns = steps.shape[:2]
    row = np.clip(np.arange(rows)[:, None] + steps[:, :, 0], 0, rows - 1)
    column = np.clip(np.arange(columns) + steps[:, :, 1], 0, columns - 1)
    sources: NDArray[np.int64] = (row * columns + column).ravel()
    return sources


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


def state_of(frame: TokenFrame, crc: int, tokenizer: Tokenizer) -> StreamState:
    """The state after a keyframe.

    Raises:
        InputError: The frame is of another model.
    """
    levels, (hc, wc) = tokenizer.levels, frame.cell_grid
    rows, columns = frame.grid
    global_codes = kernels.codes_from_ids(frame.global_ids, levels)
    grid = np.ascontiguousarray(global_codes.T).reshape(len(levels), hc, wc)
    prior = tokenizer.networks.prior(grid, Clock())
    codes = kernels.codes_from_ids(frame.ids, levels)
    ids = np.full(rows * columns, -1, np.int32)
    ids[frame.positions] = frame.ids
    return StreamState(
        width=frame.width,
        height=frame.height,
        index=frame.index,
        crc=crc,
        global_codes=grid,
        global_ids=frame.global_ids.copy(),
        ids=ids,
        context=prior.context,
        mean=prior.mean,
        state=kernels.decoder_state(codes, frame.positions, prior.expected, prior.entropy, levels),
        moved=np.zeros(rows * columns, np.bool_),
    )


def prior_of(delta: DeltaFrame, state: StreamState, tokenizer: Tokenizer) -> Prior | None:
    """Prior of the patches under the window of ``delta``; None where it updates no patch."""
    if not delta.n_updated:
        return None
    levels = tokenizer.levels
    codes = state.global_codes.copy()
    if delta.cells.size:
        codes.reshape(len(levels), -1)[:, delta.cells] = kernels.codes_from_ids(delta.global_ids, levels).T
    top, left, height, width = delta.window
    return tokenizer.networks.prior(codes[:, top : top + height, left : left + width], Clock())
