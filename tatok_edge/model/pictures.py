"""Checks of the images that callers pass in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.geometry import MAX_SIDE, MIN_SIDE, Image

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.arrays import DeviceArray, OnDevice

AnyImage = Union[Image, "OnDevice"]
"""An image on the host (numpy, a ``torch.Tensor`` on the CPU, a ``PIL.Image``), or on the tokenizer's GPU as an array
of PyTorch, CuPy, pycuda, ..."""


def on_device(image: object, name: str, stream: int) -> Image | DeviceArray:
    """Check an image for a session that takes frames. An image on the GPU is not copied.

    Raises:
        InputError: wrong type, shape or size; the message says which are allowed.
    """
    from tatok_edge.runtime.cuda.arrays import device_array, is_on_device

    if not is_on_device(image) or _on_host(image) is not None:
        return check_image(image, name)
    try:
        array = device_array(image, stream=stream)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    _check_pixels(array.dtype, array.shape, name, torch=_package(image) == "torch")
    return array


def check_image(image: object, name: str = "image") -> Image:
    """The pixels of an image on the host.

    Args:
        image: uint8 ``(H, W, 3)`` of 32 to 16384 pixels a side, as an array of numpy or a ``torch.Tensor`` on the CPU
            (neither is copied), or a ``PIL.Image`` of any mode, which becomes RGB.
        name: Its name in messages.

    Raises:
        InputError: wrong type, shape or size; the message names the line that converts the image.
    """
    pixels = _on_host(image)
    if pixels is None:
        kinds = "a numpy array, a torch.Tensor on the CPU or a PIL.Image"
        raise InputError(f"{name} must be uint8 (H, W, 3) in {kinds}, got {type(image).__name__}{_fix(image)}")
    _check_pixels(pixels.dtype, pixels.shape, name, torch=_package(image) == "torch")
    return pixels


def _fix(image: object) -> str:
    """What to do with an object that is no image; an empty string where that is not known."""
    if isinstance(image, (str, bytes, os.PathLike)):
        return "; open the file first: PIL.Image.open(path), or tatok_edge.open_source(path) for videos and folders"
    if isinstance(image, (list, tuple)):
        return "; Tokenizer.encode_batch takes several images"
    device = getattr(image, "device", None)
    if _package(image) == "torch" and device is not None:
        return f" on {device}; move it: image.cpu()"
    return ""


def _on_host(image: Any) -> Image | None:
    """The array of an image on the host; None for other objects."""
    if isinstance(image, np.ndarray):
        return image
    if _package(image) == "PIL" and hasattr(image, "convert"):
        return np.asarray(image.convert("RGB"))
    if _package(image) == "torch" and getattr(getattr(image, "device", None), "type", "") == "cpu":
        array: Image = image.detach().numpy()
        return array
    return None


def _package(image: object) -> str:
    """The package that an object comes from, without importing it."""
    return next((kind.__module__.partition(".")[0] for kind in type(image).__mro__ if kind is not object), "")


def _check_pixels(dtype: np.dtype[Any], shape: tuple[int, ...], name: str, *, torch: bool) -> None:
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3:
        line = _conversion(dtype, shape, torch=torch)
        hint = f"; convert it: {line}" if line else ""
        if dtype != np.uint8:
            raise InputError(f"{name} must be uint8 with values 0 to 255, got {dtype}{hint}")
        raise InputError(f"{name} must have shape (H, W, 3), got {tuple(shape)}{hint}")
    height, width = shape[:2]
    if not (MIN_SIDE <= height <= MAX_SIDE and MIN_SIDE <= width <= MAX_SIDE):
        raise InputError(
            f"{name} is {width}x{height} pixels; width and height must be between {MIN_SIDE} and {MAX_SIDE}"
        )


def _conversion(dtype: np.dtype[Any], shape: tuple[int, ...], *, torch: bool) -> str:
    """The line that makes uint8 (H, W, 3) of an image of this kind; an empty string where none is known."""
    line = "image"
    if len(shape) == 4 and shape[0] == 1:
        line, shape = f"{line}[0]", shape[1:]
    if len(shape) == 3 and shape[2] not in (1, 3, 4) and shape[0] in (1, 3, 4):
        line = f"{line}.permute(1, 2, 0)" if torch else f"{line}.transpose(1, 2, 0)"
        shape = (*shape[1:], shape[0])
    if len(shape) == 2:
        line, shape = f"{line}[:, :, None]", (*shape, 1)
    if len(shape) != 3 or shape[2] not in (1, 3, 4):
        return ""
    if shape[2] == 1:
        line = f"{line}.repeat(1, 1, 3)" if torch else f"{line}.repeat(3, axis=2)"
    elif shape[2] == 4:
        line = f"{line}[:, :, :3]"
    if dtype == np.uint8:
        return line
    cast = "to(torch.uint8)" if torch else "astype(np.uint8)"
    if dtype.kind == "f":
        return f"({line} * 255).round().{cast} (for values from 0 to 1)"
    if dtype == np.uint16:
        return f"({line} >> 8).{cast} (for values of 16 bits)"
    return f"{line}.{cast} (for values from 0 to 255)" if dtype.kind in "iub" else ""
