"""Types of the kernels; ``reference.py`` says what they compute."""

import numpy as np
from numpy.typing import NDArray

def dtf(
    scores: NDArray[np.float32],
    *,
    tau: float = 1.0,
    min_tokens: int = 0,
    max_tokens: int | None = None,
    floor_bits: float = 0.0,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]: ...
