"""What the tests on a GPU share."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import pytest
from numpy.typing import NDArray

from tatok_edge.runtime.cuda.device import Device


def unavailable(reason: str) -> NoReturn:
    """Skips, or fails where a GPU is required."""
    if os.environ.get("TATOK_REQUIRE_GPU") == "1":
        pytest.fail(f"TATOK_REQUIRE_GPU is set, and {reason}")
    pytest.skip(reason)


class Memory:
    """Arrays on the device, on one stream."""

    def __init__(self, device: Device) -> None:
        self.device, self.stream = device, device.create_stream()
        self.pointers: list[int] = []

    def put(self, array: NDArray[Any]) -> int:
        pointer = self.device.allocate(array.nbytes)
        self.pointers.append(pointer)
        self.device.copy_to_device(pointer, np.ascontiguousarray(array), self.stream)
        self.device.synchronize(self.stream)  # the array may be a temporary
        return pointer

    def empty(self, shape: tuple[int, ...], dtype: Any) -> tuple[int, Callable[[], NDArray[Any]]]:
        """Memory full of 0x4D, and a function that reads it and checks that what follows it is untouched."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        pointer = self.device.allocate(size + 256)
        self.pointers.append(pointer)
        self.device.fill(pointer, 0x4D, size + 256, self.stream)

        def read() -> NDArray[Any]:
            everything = np.empty(size + 256, np.uint8)
            self.device.copy_to_host(everything, pointer, self.stream)
            self.device.synchronize(self.stream)
            assert (everything[size:] == 0x4D).all()
            return everything[:size].view(dtype).reshape(shape)

        return pointer, read

    def clear(self) -> None:
        for pointer in self.pointers:
            self.device.free(pointer)
        self.pointers.clear()
