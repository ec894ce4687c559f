"""Checks of the images that callers pass in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.arrays import DeviceArray, OnDevice

AnyImage = Union[Image, "OnDevice"]
"""An image on the host, or on the tokenizer's GPU as an array of PyTorch, CuPy, pycuda, ..."""


def on_device(image: object, name: str, stream: int) -> Image | DeviceArray:
    """Check an image for a session that takes frames. An image on the GPU is not copied.

    Raises:
        InputError: wrong type, shape or size; the message says which are allowed.
    """
    from tatok_edge.runtime.cuda.arrays import device_array, is_on_device

    if not is_on_device(image):
        check_image(image, name)
        return cast("Image", image)
    try:
        array = device_array(image, stream=stream)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    _check_pixels(array.dtype, array.shape, name)
    return array


def check_image(image: object, name: str = "image") -> None:
    """Check that ``image`` is uint8 ``(H, W, 3)`` of 32 to 16384 pixels a side.

    Raises:
        InputError: wrong type, shape or size; the message says which are allowed.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"{name} must be a numpy array uint8 (H, W, 3), got {type(image).__name__}")
    _check_pixels(image.dtype, image.shape, name)


def _check_pixels(dtype: np.dtype[Any], shape: tuple[int, ...], name: str) -> None:
    if dtype != np.uint8:
        raise InputError(f"{name} must be uint8 with values 0 to 255, got {dtype}; convert it first")
    if len(shape) != 3 or shape[2] != 3:
        raise InputError(f"{name} must have shape (H, W, 3), got {shape}")
    height, width = shape[:2]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InputError(
            f"{name} is {width}x{height} pixels; width and height must be between {MIN_SIDE} and {MAX_SIDE}"
        )
