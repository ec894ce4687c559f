"""Images, values and checks that the tests of the kernels share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

LEVELS = (8, 8, 8, 5, 5, 5)
SEEDS = st.integers(0, 2**32 - 1)


def assert_same(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal in dtype, shape and every bit of every value."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], Callable[[], bool]]:
    """An array to write into, and a function that says whether the memory around it is untouched."""
    size = int(np.prod(shape))
    memory = np.full(size + 128, 77, dtype)
    inside = memory[64 : 64 + size].reshape(shape)
    return inside, lambda: bool((memory[:64] == 77).all() and (memory[64 + size :] == 77).all())


def strided_image(height: int, width: int, layout: str, seed: int) -> NDArray[np.uint8]:
    """A random (height, width, 3) image in memory laid out in one of the ways that cameras and slices bring."""
    random = np.random.default_rng(seed)

    def pixels(*shape: int) -> NDArray[np.uint8]:
        return random.integers(0, 256, shape, np.uint8)

    layouts: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "contiguous": lambda: pixels(height, width, 3),
        "cropped": lambda: pixels(height + 3, width + 5, 3)[1 : 1 + height, 2 : 2 + width],
        "channels reversed": lambda: pixels(height, width, 3)[:, :, ::-1],
        "rotated": lambda: pixels(height, width, 3)[::-1, ::-1],
        "all reversed": lambda: pixels(height, width, 3)[::-1, ::-1, ::-1],
        "every second": lambda: pixels(2 * height, 2 * width, 3)[::2, ::2],
        "four channels": lambda: pixels(height, width, 4)[:, :, :3],
        "planes": lambda: pixels(3, height, width).transpose(1, 2, 0),
        "columns": lambda: pixels(width, height, 3).transpose(1, 0, 2),
        "one colour": lambda: np.broadcast_to(pixels(height, width, 1), (height, width, 3)),
        "one row": lambda: np.broadcast_to(pixels(1, width, 3), (height, width, 3)),
    }
    image = layouts[layout]()
    assert image.shape == (height, width, 3)
    image.flags.writeable = False
    return image


LAYOUTS = (
    "contiguous",
    "cropped",
    "channels reversed",
    "rotated",
    "all reversed",
    "every second",
    "four channels",
    "planes",
    "columns",
    "one colour",
    "one row",
)
IMAGES = st.builds(strided_image, st.integers(1, 100), st.integers(1, 100), st.sampled_from(LAYOUTS), SEEDS)


def grid_of(image: NDArray[np.uint8]) -> tuple[int, int]:
    height, width, _ = image.shape
    return -(-height // 32) * 4, -(-width // 32) * 4


def padded_shape(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    h, w = grid_of(image)
    return h * 8, w * 8, 3


PIXELS = st.one_of(
    st.floats(-1.25, 1.25, width=32),
    st.sampled_from([-1.0, 1.0, 0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40]),
    st.integers(0, 255).map(lambda v: float(np.float32((v + 0.5 - 127.5) / 127.5))),  # halfway between two values
)
