"""Types of the kernels; what they compute is said in ``reference.py``."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def dtf(
    scores: NDArray[np.float32],
    *,
    tau: float = 1.0,
    min_tokens: int = 0,
    max_tokens: int | None = None,
    floor_bits: float = 0.0,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]: ...
def image_to_cells(
    image: NDArray[np.uint8], bgr: bool = False, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]: ...
def gather_features(
    image: NDArray[np.uint8],
    bgr: bool,
    context: NDArray[np.float32],
    mean: NDArray[np.float32],
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
def patch_change(
    image: NDArray[np.uint8], bgr: bool, reference: NDArray[np.uint8], out: NDArray[np.int32] | None = None
) -> NDArray[np.int32]: ...
def update_reference(
    image: NDArray[np.uint8], bgr: bool, reference: NDArray[np.uint8], positions: NDArray[np.int32]
) -> None: ...
def find_motion(
    image: NDArray[np.uint8],
    bgr: bool,
    reference: NDArray[np.uint8],
    active: NDArray[np.uint8],
    cap: int,
    cost: int,
    vectors: NDArray[np.int32],
) -> None: ...
def move_cells(
    source: NDArray[np.uint8], vectors: NDArray[np.int32], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]: ...
def patch_error(
    pixels: NDArray[np.float32],
    image: NDArray[np.uint8],
    bgr: bool,
    grid_width: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def patch_residual(
    image: NDArray[np.uint8],
    bgr: bool,
    mean: NDArray[np.float32],
    source: NDArray[np.int32],
    positions: NDArray[np.int32],
    grid_width: int,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]: ...
def change_quantile(changes: NDArray[np.int32], share: float) -> int: ...
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
