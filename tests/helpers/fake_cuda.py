"""Stand-ins for the CUDA driver: ``cuda.bindings.driver``, and ``pycuda.driver`` with the driver library.

They keep "device" memory on the host and refuse the calls that CUDA would refuse.
"""

from __future__ import annotations

import ctypes
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np

TOTAL = 1 << 20


class World:
    """A GPU with 1 MiB: it says what is allocated, which threads have the context, and refuses the rest."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.contexts = 0
        self.current: dict[int, int] = {}
        self.memory: dict[int, Any] = {}
        self.host: dict[int, Any] = {}
        self.streams: set[int] = {0}
        self.events: set[int] = set()
        self.graphs: dict[int, list[Any]] = {}
        self.recording: list[Any] | None = None
        self.next = 1000

    def needs_context(self, call: str) -> None:
        self.calls.append(call)
        assert self.contexts > 0, f"{call} without a retained context"
        assert self.current.get(threading.get_ident(), 0) > 0, f"{call} without a current context"

    def push(self) -> None:
        assert self.contexts > 0
        self.current[threading.get_ident()] = self.current.get(threading.get_ident(), 0) + 1

    def pop(self) -> None:
        assert self.current.get(threading.get_ident(), 0) > 0
        self.current[threading.get_ident()] -= 1

    def allocate(self, kept: dict[int, Any], nbytes: int) -> int | None:
        if sum(len(memory) for memory in self.memory.values()) + nbytes > TOTAL:
            return None
        memory = (ctypes.c_uint8 * nbytes)()
        kept[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    def handle(self) -> int:
        self.next += 1
        return self.next

    def enqueue(self, stream: int, work: Any) -> None:
        assert stream in self.streams, f"unknown stream {stream}"
        if self.recording is not None:
            self.recording.append(work)
        else:
            work()

    @property
    def clean(self) -> bool:
        """Whether nothing is left."""
        left = (self.memory, self.host, self.streams - {0}, self.events, self.graphs)
        return not any(left) and self.contexts == 0 and not any(self.current.values())


class Status:
    """A member of CUresult."""

    def __init__(self, name: str) -> None:
        self.name = name


OK, NO_MEMORY, INVALID = Status("CUDA_SUCCESS"), Status("CUDA_ERROR_OUT_OF_MEMORY"), Status("CUDA_ERROR_INVALID_VALUE")


def bindings(world: World) -> Any:
    """A stand-in for ``cuda.bindings.driver``."""
    return SimpleNamespace(
        CUresult=SimpleNamespace(CUDA_SUCCESS=OK),
        CUdevice_attribute=SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="MAJOR",
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="MINOR",
            CU_DEVICE_ATTRIBUTE_INTEGRATED="INTEGRATED",
        ),
        CUstream_flags=SimpleNamespace(CU_STREAM_NON_BLOCKING=1),
        CUevent_flags=SimpleNamespace(CU_EVENT_DISABLE_TIMING=2),
        CUstreamCaptureMode=SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread"),
        **_contexts(world),
        **_memory(world),
        **_streams(world),
        **_graphs(world),
    )


def _contexts(world: World) -> dict[str, Any]:
    """Calls for the device and its primary context."""

    def retain(device: int) -> tuple[Any, str]:
        world.contexts += 1
        return OK, "context"

    def release(device: int) -> tuple[Any]:
        world.contexts -= 1
        return (OK,)

    def push(context: str) -> tuple[Any]:
        world.push()
        return (OK,)

    def pop() -> tuple[Any, str]:
        world.pop()
        return OK, "context"

    attributes = {"MAJOR": 8, "MINOR": 7, "INTEGRATED": 1}
    return {
        "cuInit": lambda flags: (OK,),
        "cuDeviceGet": lambda ordinal: (OK, ordinal) if ordinal == 0 else (Status("CUDA_ERROR_INVALID_DEVICE"), 0),
        "cuDevicePrimaryCtxRetain": retain,
        "cuDevicePrimaryCtxRelease": release,
        "cuCtxPushCurrent": push,
        "cuCtxPopCurrent": pop,
        "cuDeviceGetName": lambda length, device: (OK, b"Stand-in GPU\0\0\0"),
        "cuDeviceGetAttribute": lambda kind, device: (OK, attributes[kind]),
    }


def _memory(world: World) -> dict[str, Any]:
    """Allocations, copies and fills."""

    def move(target: int, source: int, nbytes: int, stream: int) -> tuple[Any]:
        world.needs_context("copy")
        world.enqueue(stream, lambda: ctypes.memmove(target, source, nbytes))
        return (OK,)

    def fill(target: int, value: int, nbytes: int, stream: int) -> tuple[Any]:
        world.needs_context("fill")
        world.enqueue(stream, lambda: ctypes.memset(target, value, nbytes))
        return (OK,)

    def allocate(kept: dict[int, Any], nbytes: int) -> tuple[Any, int]:
        world.needs_context("allocate")
        pointer = world.allocate(kept, nbytes)
        return (OK, pointer) if pointer else (NO_MEMORY, 0)

    def free(kept: dict[int, Any], pointer: int) -> tuple[Any]:
        world.needs_context("free")
        return (OK,) if kept.pop(pointer, None) is not None else (INVALID,)

    return {
        "cuMemGetInfo": lambda: (OK, TOTAL // 2, TOTAL),
        "cuMemAlloc": lambda nbytes: allocate(world.memory, nbytes),
        "cuMemFree": lambda pointer: free(world.memory, pointer),
        "cuMemHostAlloc": lambda nbytes, flags: allocate(world.host, nbytes),
        "cuMemFreeHost": lambda pointer: free(world.host, pointer),
        "cuMemHostGetDevicePointer": lambda pointer, flags: (OK, pointer),
        "cuMemcpyHtoDAsync": move,
        "cuMemcpyDtoHAsync": move,
        "cuMemcpyDtoDAsync": move,
        "cuMemsetD8Async": fill,
    }


def _streams(world: World) -> dict[str, Any]:
    """Streams and events."""

    def create(kept: set[int], flags: int) -> tuple[Any, int]:
        world.needs_context("create")
        handle = world.handle()
        kept.add(handle)
        return OK, handle

    def destroy(kept: set[int], handle: int) -> tuple[Any]:
        world.needs_context("destroy")
        kept.remove(handle)
        return (OK,)

    def known(*handles: int) -> tuple[Any]:
        world.needs_context("use")
        assert all(handle in world.streams | world.events for handle in handles)
        return (OK,)

    return {
        "cuStreamCreate": lambda flags: create(world.streams, flags),
        "cuStreamDestroy": lambda stream: destroy(world.streams, stream),
        "cuStreamSynchronize": known,
        "cuEventCreate": lambda flags: create(world.events, flags),
        "cuEventDestroy": lambda event: destroy(world.events, event),
        "cuEventRecord": known,
        "cuEventSynchronize": known,
        "cuEventElapsedTime": lambda start, end: (*known(start, end), 1.5),
        "cuStreamWaitEvent": lambda stream, event, flags: known(stream, event),
    }


def _graphs(world: World) -> dict[str, Any]:
    """Recorded work."""

    def begin(stream: int, mode: str) -> tuple[Any]:
        world.needs_context("begin")
        if stream == 0:
            return (Status("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),)
        world.recording = []
        return (OK,)

    def end(stream: int) -> tuple[Any, int]:
        world.needs_context("end")
        handle, world.recording, recorded = world.handle(), None, world.recording
        assert recorded is not None
        world.graphs[handle] = recorded
        return OK, handle

    def instantiate(graph: int, flags: int) -> tuple[Any, int]:
        handle = world.handle()
        world.graphs[handle] = world.graphs[graph]
        return OK, handle

    def launch(graph: int, stream: int) -> tuple[Any]:
        world.needs_context("launch")
        for work in world.graphs[graph]:
            work()
        return (OK,)

    def destroy_graph(graph: int) -> tuple[Any]:
        world.needs_context("destroy")
        del world.graphs[graph]
        return (OK,)

    return {
        "cuStreamBeginCapture": begin,
        "cuStreamEndCapture": end,
        "cuGraphInstantiate": instantiate,
        "cuGraphLaunch": launch,
        "cuGraphDestroy": destroy_graph,
        "cuGraphExecDestroy": destroy_graph,
    }


def pycuda_modules(world: World, driver: Any = None) -> tuple[Any, Any]:
    """Stand-ins for ``pycuda.driver`` and the driver library; streams free themselves as pycuda's do."""
    driver = driver or bindings(world)
    return _pycuda_driver(world, driver), _driver_library(driver)


class PyCudaError(Exception):
    """``pycuda.driver.Error``."""


class PyCudaMemoryError(PyCudaError):
    """``pycuda.driver.MemoryError``."""


class _Allocation:
    """What pycuda returns for memory on the device, and keeps for pinned memory."""

    def __init__(self, world: World, kept: dict[int, Any], nbytes: int) -> None:
        world.needs_context("allocate")
        pointer = world.allocate(kept, nbytes)
        if pointer is None:
            raise PyCudaMemoryError("cuMemAlloc failed: out of memory")
        self.world, self.kept, self.pointer = world, kept, pointer

    def __int__(self) -> int:
        return self.pointer

    def get_device_pointer(self) -> int:
        return self.pointer

    def free(self) -> None:
        self.world.needs_context("free")
        del self.kept[self.pointer]


def _pycuda_driver(world: World, driver: Any) -> Any:
    """A stand-in for ``pycuda.driver``."""

    def pagelocked(shape: int, dtype: Any, mem_flags: int) -> Any:
        allocation = _Allocation(world, world.host, shape)
        array = np.frombuffer(world.host[allocation.pointer], dtype)
        return SimpleNamespace(ctypes=array.ctypes, base=allocation)

    class Stream:
        def __init__(self, flags: int) -> None:
            self.handle = driver.cuStreamCreate(flags)[1]

        def __del__(self) -> None:
            world.streams.discard(self.handle)

    class Context:
        def push(self) -> None:
            world.push()

        @staticmethod
        def pop() -> None:
            world.pop()

        def detach(self) -> None:
            world.contexts -= 1

    class Gpu:
        def __init__(self, ordinal: int) -> None:
            if ordinal:
                raise PyCudaError("cuDeviceGet failed: invalid device ordinal")

        def retain_primary_context(self) -> Context:
            world.contexts += 1
            return Context()

        def name(self) -> str:
            return "Stand-in GPU"

        def compute_capability(self) -> tuple[int, int]:
            return 8, 7

        def get_attribute(self, kind: str) -> int:
            return 1

    return SimpleNamespace(
        Error=PyCudaError,
        MemoryError=PyCudaMemoryError,
        init=lambda: None,
        Device=Gpu,
        Context=Context,
        Stream=Stream,
        device_attribute=SimpleNamespace(INTEGRATED="INTEGRATED"),
        host_alloc_flags=SimpleNamespace(PORTABLE=1, DEVICEMAP=2),
        mem_get_info=lambda: (TOTAL // 2, TOTAL),
        mem_alloc=lambda nbytes: _Allocation(world, world.memory, nbytes),
        pagelocked_empty=pagelocked,
    )


def _driver_library(driver: Any) -> Any:
    """A stand-in for the driver library, as ctypes sees it."""

    def plain(name: str) -> Any:
        def call(*arguments: Any) -> int:
            values = [a.value if isinstance(a, (ctypes.c_uint64, ctypes.c_void_p)) else a for a in arguments]
            assert all(isinstance(a, (ctypes.c_uint64, ctypes.c_void_p)) or a < 1 << 31 for a in arguments)
            return 0 if getattr(driver, name)(*values)[0] is OK else 1

        return call

    def create_event(out: Any, flags: int) -> int:
        out._obj.value = driver.cuEventCreate(flags)[1]
        return 0

    def elapsed(out: Any, start: Any, end: Any) -> int:
        out._obj.value = driver.cuEventElapsedTime(start.value, end.value)[1]
        return 0

    def error_name(status: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_STAND_IN"
        return 0

    names = ("cuStreamSynchronize", "cuEventRecord", "cuEventSynchronize", "cuStreamWaitEvent", "cuMemsetD8Async")
    versioned = ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuMemcpyDtoDAsync", "cuEventDestroy")
    return SimpleNamespace(
        **{name: plain(name) for name in names},
        **{f"{name}_v2": plain(name) for name in versioned},
        cuEventCreate=create_event,
        cuEventElapsedTime=elapsed,
        cuGetErrorName=error_name,
    )
