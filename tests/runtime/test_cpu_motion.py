"""Memory of the motion search on the CPU: kept by the caller, or allocated for one call."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_edge.runtime.cpu import kernels


@pytest.mark.parametrize("size", [(64, 96), (33, 65), (1, 1)])
def test_motion_is_the_same_in_used_memory(rng: np.random.Generator, size: tuple[int, int]) -> None:
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    rows, columns = -(-size[0] // 32), -(-size[1] // 32)
    padded = np.pad(image, ((0, rows * 32 - size[0]), (0, columns * 32 - size[1]), (0, 0)), mode="edge")
    picture = np.ascontiguousarray(np.roll(padded, (2, -3), (0, 1)))
    active, expected = np.ones((rows, columns), np.uint8), np.zeros((rows, columns, 2), np.int32)
    kernels.find_motion(image, False, picture, active, 1 << 14, 500, expected)
    scratch = kernels.motion_scratch(*size)
    scratch[:] = rng.integers(0, 256, scratch.shape, np.uint8)
    for _ in range(2):
        vectors = np.zeros_like(expected)
        kernels.find_motion(image, False, picture, active, 1 << 14, 500, vectors, scratch)
        np.testing.assert_array_equal(vectors, expected)


def test_memory_of_another_size_is_an_error() -> None:
    image = np.zeros((64, 32, 3), np.uint8)
    scratch, vectors = kernels.motion_scratch(32, 32), np.zeros((2, 1, 2), np.int32)
    with pytest.raises(ValueError, match=r"^scratch must have shape \(\d+,\), got \(\d+,\)$"):
        kernels.find_motion(image, False, image, np.ones((2, 1), np.uint8), 0, 0, vectors, scratch)
    with pytest.raises(ValueError, match="height and width must be at least 1, got 0 and 5"):
        kernels.motion_scratch(0, 5)
