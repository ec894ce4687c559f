"""The sizes of pictures, patches and cells, and the grids they make.

Every other module takes them from here; ``runtime/cpp/geometry.hpp`` has the same for the native code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""A picture, uint8 ``(H, W, 3)``, RGB unless a function says otherwise."""

PATCH = 8
"""Side of a patch in pixels: one patch token each."""
CELL = 32
"""Side of the image area that one global token describes, in pixels."""
WINDOW = 16
"""Side of the window around a patch that the patch encoder sees, in pixels."""
THUMBNAIL = 4
"""The global encoder sees the image averaged over squares of this many pixels."""
PATCH_VALUES = PATCH * PATCH * 3
"""Values of a patch: rows of pixels, RGB."""
WINDOW_VALUES = WINDOW * WINDOW * 3
"""Values of the window around a patch."""
CELL_SIDE = CELL // PATCH
"""Patches along one side of a cell."""
MAX_VECTOR = 62
"""Largest part of a motion vector, in half pixels."""
MIN_SIDE = 32
"""Smallest width and height of an image, in pixels."""
MAX_SIDE = 16384
"""Largest width and height of an image, in pixels."""


def cell_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of global tokens of an image of ``width`` x ``height`` pixels."""
    return -(-height // CELL), -(-width // CELL)


def patch_grid(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of ``width`` x ``height`` pixels, once padded to whole cells."""
    rows, columns = cell_grid(width, height)
    return rows * CELL_SIDE, columns * CELL_SIDE


class PictureSize:
    """Base of the classes with ``width`` and ``height`` of a picture in pixels: its grids of patches and cells."""

    __slots__ = ()

    width: int
    height: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return patch_grid(self.width, self.height)

    @property
    def cell_grid(self) -> tuple[int, int]:
        """Rows and columns of the cell grid: one global token each."""
        return cell_grid(self.width, self.height)

    @property
    def n_patches(self) -> int:
        """Number of patches of the picture, with a token or without."""
        rows, columns = self.grid
        return rows * columns

    @property
    def n_cells(self) -> int:
        """Number of cells of the picture."""
        rows, columns = self.cell_grid
        return rows * columns
