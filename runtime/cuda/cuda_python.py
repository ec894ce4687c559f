"""The CUDA driver through cuda-python, NVIDIA's own bindings."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from tatok_edge.errors import one_line
from tatok_edge.runtime.cuda.driver import CudaError, Implementation

_PORTABLE, _MAPPED = 1, 2  # flags of cuMemHostAlloc


class CudaPython:
    """The primary context of a GPU.

    Args:
        driver: The module ``cuda.bindings.driver``.
    """

    name: Implementation = "cuda-python"

    def __init__(self, driver: Any) -> None:
        self._bindings = _Bindings(driver)
        self._call = self._bindings.call
        self._device: Any = None
        self._context: Any = None
        self.memory = _Memory(self._bindings)
        self.streams = _Streams(self._bindings)
        self.graphs = _Graphs(self._bindings)

    def open(self, ordinal: int) -> None:
        try:
            self._call("cuInit", 0)
        except (RuntimeError, OSError) as error:  # the bindings' own, where there is no driver library
            raise CudaError("cuInit", one_line(error)) from error
        self._device = self._call("cuDeviceGet", ordinal)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)

    def close(self) -> None:
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def push(self) -> None:
        self._call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        self._call("cuCtxPopCurrent")

    def describe(self) -> tuple[str, int, int, bool]:
        name = self._call("cuDeviceGetName", 256, self._device).split(b"\0")[0].decode("utf-8", "replace")
        kinds = self._bindings.driver.CUdevice_attribute
        major, minor, integrated = (
            int(self._call("cuDeviceGetAttribute", kind, self._device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                kinds.CU_DEVICE_ATTRIBUTE_INTEGRATED,
            )
        )
        return name, major, minor, bool(integrated)


class _Bindings:
    """Calls of the bindings, with their status checked."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a call, without its status; a tuple where there are several."""
        status, *results = getattr(self.driver, name)(*arguments)
        if status != self.driver.CUresult.CUDA_SUCCESS:
            raise CudaError(name, getattr(status, "name", str(status)))
        return results[0] if len(results) == 1 else tuple(results)


class _Memory:
    """See :class:`tatok_edge.runtime.cuda.driver.DriverMemory`."""

    def __init__(self, bindings: _Bindings) -> None:
        self._call = bindings.call

    def available(self) -> tuple[int, int]:
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, nbytes: int) -> int:
        return int(self._call("cuMemAlloc", nbytes))

    def free(self, pointer: int) -> None:
        self._call("cuMemFree", pointer)

    def allocate_host(self, nbytes: int, mapped: bool) -> int:
        return int(self._call("cuMemHostAlloc", nbytes, _PORTABLE | (_MAPPED if mapped else 0)))

    def free_host(self, pointer: int) -> None:
        self._call("cuMemFreeHost", pointer)

    def device_pointer(self, host_pointer: int) -> int:
        return int(self._call("cuMemHostGetDevicePointer", host_pointer, 0))

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", target, source, nbytes, stream)

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", target, source, nbytes, stream)

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None:
        self._call("cuMemsetD8Async", target, value, nbytes, stream)


class _Streams:
    """See :class:`tatok_edge.runtime.cuda.driver.DriverStreams`."""

    def __init__(self, bindings: _Bindings) -> None:
        self._driver, self._call = bindings.driver, bindings.call

    def create(self) -> int:
        return int(self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def synchronize(self, stream: int) -> None:
        self._call("cuStreamSynchronize", stream)

    def wait(self, stream: int, other: int) -> None:
        event = self._call("cuEventCreate", int(self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING))
        try:
            self._call("cuEventRecord", event, other)
            self._call("cuStreamWaitEvent", stream, event, 0)
        finally:
            self._call("cuEventDestroy", event)

    def elapsed(self, stream: int, work: Callable[[], None]) -> float:
        events = [self._call("cuEventCreate", 0) for _ in range(2)]
        try:
            self._call("cuEventRecord", events[0], stream)
            work()
            self._call("cuEventRecord", events[1], stream)
            self._call("cuEventSynchronize", events[1])
            return float(self._call("cuEventElapsedTime", *events))
        finally:
            for event in events:
                self._call("cuEventDestroy", event)


class _Graphs:
    """See :class:`tatok_edge.runtime.cuda.driver.DriverGraphs`."""

    def __init__(self, bindings: _Bindings) -> None:
        self._driver, self._call = bindings.driver, bindings.call
        self._graphs: dict[int, Any] = {}

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        # Of this thread only: other threads may go on allocating meanwhile.
        self._call("cuStreamBeginCapture", stream, self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        try:
            work()
        except BaseException:
            with contextlib.suppress(CudaError):
                self._call("cuGraphDestroy", self._call("cuStreamEndCapture", stream))
            raise
        graph = self._call("cuStreamEndCapture", stream)
        try:
            executable = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        self._graphs[int(executable)] = executable
        return int(executable)

    def launch(self, graph: int, stream: int) -> None:
        self._call("cuGraphLaunch", self._graphs[graph], stream)

    def destroy(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", self._graphs.pop(graph))
