"""Types of the kernels; ``reference.py`` says what they compute."""

import numpy as np
from numpy.typing import NDArray

def patch_scores(
    image: NDArray[np.uint8],
    bgr: bool,
    mean: NDArray[np.float32],
    source: NDArray[np.int32],
    positions: NDArray[np.int32],
    grid_width: int,
    basis: NDArray[np.int16],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def visual_weights(image: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]: ...
