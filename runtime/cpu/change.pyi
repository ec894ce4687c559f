"""Types of the kernels; ``reference.py`` says what they compute."""

import numpy as np
from numpy.typing import NDArray

def patch_change(
    image: NDArray[np.uint8], bgr: bool, reference: NDArray[np.uint8], out: NDArray[np.int32] | None = None
) -> NDArray[np.int32]: ...
def patch_error(
    pixels: NDArray[np.float32],
    image: NDArray[np.uint8],
    bgr: bool,
    grid_width: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def update_reference(
    image: NDArray[np.uint8], bgr: bool, reference: NDArray[np.uint8], positions: NDArray[np.int32]
) -> None: ...
def change_quantile(changes: NDArray[np.int32], share: float) -> int: ...
