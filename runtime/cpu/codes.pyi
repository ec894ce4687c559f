"""Types of the kernels; ``reference.py`` says what they compute."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def information(
    log2_probs: NDArray[np.float32],
    codes: NDArray[np.int32],
    positions: NDArray[np.int32],
    levels: Sequence[int],
) -> NDArray[np.float32]: ...
def decoder_state(
    codes: NDArray[np.int32],
    positions: NDArray[np.int32],
    expected: NDArray[np.float32],
    entropy: NDArray[np.float32],
    levels: Sequence[int],
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def ids_from_codes(codes: NDArray[np.int32], levels: Sequence[int]) -> NDArray[np.int32]: ...
def codes_from_ids(ids: NDArray[np.int32], levels: Sequence[int]) -> NDArray[np.int32]: ...
