"""The CUDA driver through pycuda."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tatok_edge.runtime.cuda.driver import OUT_OF_MEMORY, CudaError, Implementation


class PyCuda:
    """The primary context of a GPU, with memory and streams of pycuda, so pycuda's arrays can share them.

    pycuda's copies take only streams that pycuda made. Streams of other packages are accepted here, so all work on a
    stream calls the driver library directly. There are no CUDA graphs.

    Args:
        driver: The module ``pycuda.driver``.
        library: The driver library, ``libcuda.so.1``.
    """

    name: Implementation = "pycuda"
    graphs = None

    def __init__(self, driver: Any, library: Any) -> None:
        self._calls = _Calls(driver, library)
        self._driver, self._errors = driver, self._calls.errors
        self._device: Any = None
        self._context: Any = None
        self.memory = _Memory(self._calls)
        self.streams = _Streams(self._calls)

    def open(self, ordinal: int) -> None:
        with self._errors("init"):
            self._driver.init()
            self._device = self._driver.Device(ordinal)
            self._context = self._device.retain_primary_context()

    def close(self) -> None:
        with self._errors("detach"):
            self._calls.objects.clear()
            self._context.detach()

    def push(self) -> None:
        with self._errors("push"):
            self._context.push()

    def pop(self) -> None:
        with self._errors("pop"):
            self._driver.Context.pop()

    def describe(self) -> tuple[str, int, int, bool]:
        with self._errors("describe"):
            major, minor = self._device.compute_capability()
            integrated = self._device.get_attribute(self._driver.device_attribute.INTEGRATED)
            return str(self._device.name()), int(major), int(minor), bool(integrated)


class _Calls:
    """Calls of pycuda and of the driver library, with their errors, and the objects that pycuda made."""

    def __init__(self, driver: Any, library: Any) -> None:
        self.driver = driver
        self._library = library
        self.objects: dict[int, Any] = {}
        """Memory and streams by pointer; pycuda frees them with the object."""

    @contextlib.contextmanager
    def errors(self, call: str) -> Iterator[None]:
        try:
            yield
        except self.driver.MemoryError as error:
            raise CudaError(call, OUT_OF_MEMORY) from error
        except self.driver.Error as error:
            raise CudaError(call, str(error)) from error

    def library(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status:
            text = ctypes.c_char_p()
            known = self._library.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value is not None
            raise CudaError(name, text.value.decode() if known and text.value else f"error {status}")


class _Memory:
    """See :class:`tatok_edge.runtime.cuda.driver.DriverMemory`."""

    def __init__(self, calls: _Calls) -> None:
        self._driver, self._objects = calls.driver, calls.objects
        self._errors, self._library_call = calls.errors, calls.library

    def available(self) -> tuple[int, int]:
        with self._errors("mem_get_info"):
            free, total = self._driver.mem_get_info()
            return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        with self._errors("mem_alloc"):
            made = self._driver.mem_alloc(nbytes)
        self._objects[int(made)] = made
        return int(made)

    def free(self, pointer: int) -> None:
        with self._errors("free"):
            self._objects.pop(pointer).free()

    def allocate_host(self, nbytes: int, mapped: bool) -> int:
        flags = self._driver.host_alloc_flags
        with self._errors("pagelocked_empty"):
            made = self._driver.pagelocked_empty(
                nbytes, np.uint8, mem_flags=flags.PORTABLE | (flags.DEVICEMAP if mapped else 0)
            )
        self._objects[made.ctypes.data] = made
        return int(made.ctypes.data)

    def free_host(self, pointer: int) -> None:
        with self._errors("free_host"):
            self._objects.pop(pointer).base.free()

    def device_pointer(self, host_pointer: int) -> int:
        with self._errors("get_device_pointer"):
            return int(self._objects[host_pointer].base.get_device_pointer())

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemcpyHtoDAsync_v2", *map(_handle, (target, source, nbytes, stream)))

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemcpyDtoHAsync_v2", *map(_handle, (target, source, nbytes, stream)))

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemcpyDtoDAsync_v2", *map(_handle, (target, source, nbytes, stream)))

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemsetD8Async", _handle(target), value, _handle(nbytes), _handle(stream))


class _Streams:
    """See :class:`tatok_edge.runtime.cuda.driver.DriverStreams`."""

    def __init__(self, calls: _Calls) -> None:
        self._driver, self._objects = calls.driver, calls.objects
        self._errors, self._library_call = calls.errors, calls.library

    def create(self) -> int:
        with self._errors("Stream"):
            made = self._driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        self._objects[int(made.handle)] = made
        return int(made.handle)

    def destroy(self, stream: int) -> None:
        del self._objects[stream]

    def synchronize(self, stream: int) -> None:
        self._library_call("cuStreamSynchronize", _handle(stream))

    def wait(self, stream: int, other: int) -> None:
        event = ctypes.c_void_p()
        self._library_call("cuEventCreate", ctypes.byref(event), 2)  # CU_EVENT_DISABLE_TIMING
        try:
            self._library_call("cuEventRecord", event, _handle(other))
            self._library_call("cuStreamWaitEvent", _handle(stream), event, 0)
        finally:
            self._library_call("cuEventDestroy_v2", event)

    def elapsed(self, stream: int, work: Callable[[], None]) -> float:
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._library_call("cuEventCreate", ctypes.byref(event), 0)
        try:
            self._library_call("cuEventRecord", events[0], _handle(stream))
            work()
            self._library_call("cuEventRecord", events[1], _handle(stream))
            self._library_call("cuEventSynchronize", events[1])
            result = ctypes.c_float()
            self._library_call("cuEventElapsedTime", ctypes.byref(result), *events)
            return result.value
        finally:
            for event in events:
                self._library_call("cuEventDestroy_v2", event)


def _handle(value: int) -> ctypes.c_uint64:
    """Pointers, sizes and streams of the driver are 64 bits wide; ctypes alone would pass 32."""
    return ctypes.c_uint64(value)
