"""Types of the kernels; ``reference.py`` says what they compute."""

import numpy as np
from numpy.typing import NDArray

def motion_scratch(height: int, width: int) -> NDArray[np.uint8]: ...
def find_motion(
    image: NDArray[np.uint8],
    bgr: bool,
    reference: NDArray[np.uint8],
    active: NDArray[np.uint8],
    cap: int,
    cost: int,
    vectors: NDArray[np.int32],
    scratch: NDArray[np.uint8] | None = None,
) -> None: ...
def move_cells(
    source: NDArray[np.uint8], vectors: NDArray[np.int32], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]: ...
