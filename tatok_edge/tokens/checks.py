"""Checks of the values of budgets, frames and batches."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError

TAG_BYTES = 8
"""Length of the tag that names the model of a frame."""
MAX_DEPTH = 8
"""Most tokens of a patch that any model may give."""
Int32Array = NDArray[np.int32]


def map_of(positions: Int32Array, grid: tuple[int, int]) -> NDArray[np.bool_]:
    chosen = np.zeros(grid, dtype=np.bool_)
    chosen.ravel()[positions] = True
    return chosen


def set_field(instance: object, name: str, value: object) -> None:
    object.__setattr__(instance, name, value)


def real(name: str, value: Any) -> float:
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise InputError(f"{name} must be a number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number, got {type(value).__name__}") from None


def integer(name: str, value: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be an integer, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} must be an integer, got {value!r}") from None


def check_tag(model: object) -> None:
    if not isinstance(model, bytes) or len(model) != TAG_BYTES:
        got = f"{len(model)} bytes" if isinstance(model, bytes) else type(model).__name__
        raise InputError(f"model must be the {TAG_BYTES} bytes of the bundle's tag, got {got}")


def check_vector(name: str, array: Any) -> None:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} must be a numpy array of int32, got {type(array).__name__}")
    if array.dtype != np.int32:
        raise InputError(f"{name} must be int32, got {array.dtype}; convert it with .astype(numpy.int32)")
    if array.ndim != 1:
        raise InputError(f"{name} must have one dimension, got shape {array.shape}")
    if not array.flags.c_contiguous:
        raise InputError(f"{name} must be contiguous; copy it with numpy.ascontiguousarray")


def check_ids(name: str, array: Any) -> None:
    check_vector(name, array)
    if array.size and int(array.min()) < 0:
        raise InputError(f"{name} must not be negative, got {int(array.min())}")


def check_positions(name: str, positions: Any, limit: int, repeats: int = 1) -> None:
    """Check raster indices below ``limit`` that never fall; each may come up to ``repeats`` times."""
    check_vector(name, positions)
    if not positions.size:
        return
    falls = positions[1:] < positions[:-1]
    if falls.any():
        at = int(np.argmax(falls))
        raise InputError(f"{name} must not fall, got {positions[at]} then {positions[at + 1]}")
    again = positions[repeats:] == positions[:-repeats]
    if again.any():
        wrong = positions[int(np.argmax(again))]
        times = "once" if repeats == 1 else f"at most {repeats} times"
        raise InputError(f"{name} must hold each index {times}, got {wrong} {repeats + 1} times or more")
    if positions[0] < 0 or positions[-1] >= limit:
        wrong = positions[0] if positions[0] < 0 else positions[-1]
        raise InputError(f"{name} must be from 0 to {limit - 1} for this image, got {wrong}")


def depths_of(positions: Int32Array) -> Int32Array:
    """Depth of each token of stacks at ``positions`` (never falling): 1 for the first token of a patch; a new array."""
    begins = np.flatnonzero(np.diff(positions, prepend=-1))
    lengths = np.diff(begins, append=positions.size)
    return (np.arange(positions.size) - np.repeat(begins, lengths) + 1).astype(np.int32)
