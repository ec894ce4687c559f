"""Incremental decoding: the pixels of a few patches, from windows of the patch grid.

The decoder sees a few patches around each one (its *reach*). A window that holds a patch, with most of the reach on
each side or up to the edge of the picture, gives nearly the pixels that the whole grid gives. Windows of one size are
one batch. Both ends find the same windows, so they decode the same pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import PATCH, PATCH_VALUES
from tatok_edge.model.networks import Clock, Networks
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.windows import Window, windows_of

LEFT_OUT: Final = 1
"""Patches at the end of the decoder's reach that a window leaves out: what is there changes pixels by one grey level at
most."""


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


def reach_of(manifest: Mapping[str, Any]) -> int:
    """The decoder's reach in patches, from the sizes in the manifest of its bundle."""
    config = manifest["config"]
    kernels_ = config.get("decoder_kernels") or [5] * config["decoder_blocks"]
    return int(sum(side // 2 for side in kernels_)) + 1


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
        slot = np.full(grid, -1, np.int32)
        slot.ravel()[patches] = np.arange(len(patches), dtype=np.int32)
        row, column = np.divmod(shown, grid[1])
        sizes: dict[tuple[int, int], list[Window]] = {}
        for window in windows_of(shown, grid, max(reach - LEFT_OUT, 0)):
            sizes.setdefault(window.size, []).append(window)
        chosen = np.empty((PATCH_VALUES, len(shown)), np.float32)
        for (rows, width), windows in sizes.items():
            areas = [np.s_[..., y : y + rows, x : x + width] for y, x in (window.corner for window in windows)]
            slots = np.stack([slot[area] for area in areas])
            new = slots >= 0
            inputs = {}
            for name, values in held.named().items():
                shaped = values.reshape(-1, *grid)
                batch = np.stack([shaped[area] for area in areas])
                batch.transpose(0, 2, 3, 1)[new] = columns.named()[name].T[slots[new]]
                inputs[name] = batch
            pixels = networks.session.run("decoder", inputs)["pixels"]
            for own, window in zip(pixels, windows, strict=True):
                at = window.members
                chosen[:, at] = own[:, row[at] - window.corner[0], column[at] - window.corner[1]]
        return pixels_of(chosen)


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
