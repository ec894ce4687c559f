"""Types of the kernels; ``reference.py`` says what they compute."""

import numpy as np
from numpy.typing import NDArray

def image_to_cells(
    image: NDArray[np.uint8], bgr: bool = False, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]: ...
def gather_features(
    image: NDArray[np.uint8],
    bgr: bool,
    context: NDArray[np.float32],
    mean: NDArray[np.float32],
    source: NDArray[np.int32],
    positions: NDArray[np.int32],
    grid_width: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def assemble(
    pixels: NDArray[np.float32],
    grid_width: int,
    height: int,
    width: int,
    bgr: bool = False,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]: ...
def scatter_columns(
    source: NDArray[np.float32],
    source_positions: NDArray[np.int32],
    target: NDArray[np.float32],
    positions: NDArray[np.int32],
) -> None: ...
