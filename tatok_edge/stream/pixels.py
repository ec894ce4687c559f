"""Incremental decoding: the pixels of a few patches, from windows of the patch grid.

The decoder sees a few patches around each one (its *reach*). A window that holds a patch, with the reach on each side
or up to the edge of the picture, gives the pixels that the whole grid gives. All windows of a call have one size, so
they are one batch for every backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import PATCH
from tatok_edge.model.networks import Clock, Networks
from tatok_edge.runtime.cpu import kernels

TILES: Final = (1, 2, 4, 8)
"""Sides of the squares that updated patches are gathered in, in patches, to find the cheapest windows."""


@dataclass(frozen=True, slots=True)
class Maps:
    """What the decoder reads of some patches."""

    state: NDArray[np.float32]
    """States ``(K * (D + 2), N)``."""
    context: NDArray[np.float32]
    """Context ``(Dc, N)``."""
    mean: NDArray[np.float32]
    """Mean pixels ``(192, N)``."""

    def named(self) -> dict[str, NDArray[np.float32]]:
        """The arrays by the names of the decoder's inputs."""
        return {"state": self.state, "context": self.context, "mean": self.mean}

    def copy(self) -> Maps:
        """Arrays that change independently."""
        return Maps(self.state.copy(), self.context.copy(), self.mean.copy())

    def write(self, patches: NDArray[np.int32], columns: Maps) -> None:
        """Write ``columns``, one for each of ``patches``."""
        every = np.arange(len(patches), dtype=np.int32)
        for name, target in self.named().items():
            kernels.scatter_columns(columns.named()[name], every, target, patches)


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one size that hold some patches with the decoder's reach around them."""

    size: tuple[int, int]
    """Rows and columns of a window, in patches."""
    corners: NDArray[np.int64]
    """First row and column of each window, ``(B, 2)``."""
    window: NDArray[np.int64]
    """The window that gives each patch, ``(U,)``."""

    @property
    def cost(self) -> int:
        """Patches that the decoder computes."""
        return len(self.corners) * self.size[0] * self.size[1]


def reach_of(manifest: Mapping[str, Any]) -> int:
    """The decoder's reach in patches, from the sizes in the manifest of its bundle."""
    config = manifest["config"]
    kernels_ = config.get("decoder_kernels") or [5] * config["decoder_blocks"]
    return int(sum(side // 2 for side in kernels_)) + 1


def windows_of(patches: NDArray[np.int32], grid: tuple[int, int], reach: int) -> Windows:
    """The cheapest windows for ``patches`` (at least one) of a picture: small squares, or one box around all."""
    row, column = np.divmod(patches.astype(np.int64), grid[1])
    top, left = max(int(row.min()) - reach, 0), max(int(column.min()) - reach, 0)
    bottom, right = min(int(row.max()) + reach + 1, grid[0]), min(int(column.max()) + reach + 1, grid[1])
    best = Windows((bottom - top, right - left), np.array([[top, left]]), np.zeros(len(patches), np.int64))
    for tile in TILES:
        side = tile + 2 * reach
        if side > min(grid):
            continue
        tiles, window = np.unique(row // tile * grid[1] + column // tile, return_inverse=True)
        # A window stays in the picture: where it touches the edge, the decoder sees the edge as in the whole grid.
        corners = np.stack(np.divmod(tiles, grid[1]), 1) * tile - reach
        corners = np.clip(corners, 0, np.array(grid) - side)
        squares = Windows((side, side), corners, window.reshape(-1))
        if squares.cost < best.cost:
            best = squares
    return best


def decode_patches(
    networks: Networks,
    held: Maps,
    patches: NDArray[np.int32],
    columns: Maps,
    shown: NDArray[np.int32],
    grid: tuple[int, int],
    reach: int,
    clock: Clock,
) -> NDArray[np.uint8]:
    """Pixels of patches after an update of some patches, beside what is held of all others.

    Args:
        networks: The networks.
        held: What is held of all patches of the picture, before the update; not written to.
        patches: The updated patches ``(U,)``, ascending, at least one.
        columns: Their new values, one column each.
        shown: The patches whose pixels are wanted ``(S,)``, ascending, at least one.
        grid: Rows and columns of the patch grid.
        reach: The decoder's reach.
        clock: Counts the time.

    Returns:
        uint8 ``(S, 8, 8, 3)``, RGB.
    """
    with clock.stage("decode"):
        windows = windows_of(shown, grid, reach)
        (rows, width), count = windows.size, len(windows.corners)
        slot = np.full(grid, -1, np.int32)
        slot.ravel()[patches] = np.arange(len(patches), dtype=np.int32)
        areas = [np.s_[..., y : y + rows, x : x + width] for y, x in windows.corners.tolist()]
        slots = np.stack([slot[area] for area in areas])
        new = slots >= 0
        inputs = {}
        for name, values in held.named().items():
            shaped = values.reshape(-1, *grid)
            batch = np.empty((count, len(values), rows, width), np.float32)
            for number, area in enumerate(areas):
                batch[number] = shaped[area]
            batch.transpose(0, 2, 3, 1)[new] = columns.named()[name].T[slots[new]]
            inputs[name] = batch
        pixels = networks.session.run("decoder", inputs)["pixels"]
        row, column = np.divmod(shown, grid[1])
        corner = windows.corners[windows.window]
        chosen = pixels[windows.window, :, row - corner[:, 0], column - corner[:, 1]]
        return pixels_of(np.ascontiguousarray(chosen.T, np.float32))


def pixels_of(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pixels of patches, uint8 ``(U, 8, 8, 3)``, from their values ``(192, U)`` in [-1, 1]."""
    count = values.shape[1]
    strip = kernels.assemble(values, count, PATCH, PATCH * count, False)
    return strip.reshape(PATCH, count, PATCH, 3).transpose(1, 0, 2, 3)


def put_patches(picture: NDArray[np.uint8], patches: NDArray[np.int32], pixels: NDArray[np.uint8]) -> None:
    """Write the pixels of patches, ``(U, 8, 8, 3)``, into a picture that is padded to whole cells."""
    rows, columns = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    row, column = np.divmod(patches, columns)
    picture.reshape(rows, PATCH, columns, PATCH, 3)[row, :, column] = pixels
