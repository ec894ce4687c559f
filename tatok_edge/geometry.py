"""The sizes of pictures, patches and cells, and the grids they make.

Every other module takes them from here; ``runtime/cpp/geometry.hpp`` has the same for the native code.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray

PATCH = 8
"""Side of a patch in pixels: one patch token each."""
CELL = 32
"""Side of the image area that one global token describes, in pixels."""
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
    return rows * (CELL // PATCH), columns * (CELL // PATCH)


def touched_cells(update_map: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which cells contain an updated patch: bool ``(rows, columns)`` of the patch grid to that of the cell grid."""
    rows, columns = update_map.shape
    side = CELL // PATCH
    touched = update_map.reshape(rows // side, side, columns // side, side).any(axis=(1, 3))
    return cast("NDArray[np.bool_]", touched)
