"""Device memory, pinned memory and streams behind one small interface.

:func:`open_device` gives a :class:`Device` on cuda-python or on pycuda. Both work in the primary context, which
PyTorch, CuPy, the CUDA kernels and TensorRT share, and make it current only for the length of a call, in whichever
thread calls. Pointers are integers. What a caller has on the GPU already comes in through :func:`device_array`, without
a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tatok_edge.errors import BackendError, InputError, one_line

Implementation = Literal["cuda-python", "pycuda"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("cuda-python", "pycuda")
_INSTALL = {
    "cuda-python": "pip install cuda-bindings (of the major version of your driver: 12 for JetPack 6)",
    "pycuda": "pip install pycuda (compiles; needs the CUDA toolkit)",
}
_NO_DRIVER = "there is no usable NVIDIA driver or GPU; see nvidia-smi"
_PORTABLE, _MAPPED = 1, 2  # flags of cuMemHostAlloc
_OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"


class CudaError(Exception):
    """A call of the CUDA driver that failed, by the name of its code; :class:`Device` makes BackendErrors of it."""

    def __init__(self, call: str, code: str) -> None:
        super().__init__(f"{call}: {code}")
        self.call, self.code = call, code


class Driver(Protocol):
    """What an implementation provides: calls of the CUDA driver on integers. They raise :class:`CudaError`."""

    name: Implementation
    has_graphs: bool

    def open(self, ordinal: int) -> None:
        """Retain the primary context of a GPU."""
        ...

    def close(self) -> None:
        """Release it."""
        ...

    def push(self) -> None:
        """Make the context current in this thread."""
        ...

    def pop(self) -> None: ...

    def describe(self) -> tuple[str, int, int, bool]:
        """Name, major and minor SM version, and whether host and device share their memory."""
        ...

    def memory(self) -> tuple[int, int]:
        """Free and total bytes."""
        ...

    def allocate(self, nbytes: int) -> int: ...

    def free(self, pointer: int) -> None: ...

    def allocate_host(self, nbytes: int, mapped: bool) -> int: ...

    def free_host(self, pointer: int) -> None: ...

    def device_pointer(self, host_pointer: int) -> int: ...

    def create_stream(self) -> int: ...

    def destroy_stream(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def wait(self, stream: int, other: int) -> None:
        """Let what comes on ``stream`` wait for what is on ``other``."""
        ...

    def elapsed(self, stream: int, work: Callable[[], None]) -> float:
        """Milliseconds of the work that ``work`` puts on the stream; waits for it."""
        ...

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None: ...

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Record what ``work`` puts on the stream as an executable graph."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy_graph(self, graph: int) -> None: ...


# --- cuda-python ----------------------------------------------------------------------------------


class CudaPython:
    """The driver through NVIDIA's bindings.

    Args:
        driver: The module ``cuda.bindings.driver``.
    """

    name: Implementation = "cuda-python"
    has_graphs = True

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._device: Any = None
        self._context: Any = None
        self._graphs: dict[int, Any] = {}

    def _call(self, name: str, *arguments: Any) -> Any:
        """The result of a call, without its status; a tuple where there are several."""
        status, *results = getattr(self._driver, name)(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            raise CudaError(name, getattr(status, "name", str(status)))
        return results[0] if len(results) == 1 else tuple(results)

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
        kinds = self._driver.CUdevice_attribute
        major, minor, integrated = (
            int(self._call("cuDeviceGetAttribute", kind, self._device))
            for kind in (
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
                kinds.CU_DEVICE_ATTRIBUTE_INTEGRATED,
            )
        )
        return name, major, minor, bool(integrated)

    def memory(self) -> tuple[int, int]:
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

    def create_stream(self) -> int:
        return int(self._call("cuStreamCreate", int(self._driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
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

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyHtoDAsync", target, source, nbytes, stream)

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoHAsync", target, source, nbytes, stream)

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._call("cuMemcpyDtoDAsync", target, source, nbytes, stream)

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None:
        self._call("cuMemsetD8Async", target, value, nbytes, stream)

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

    def destroy_graph(self, graph: int) -> None:
        self._call("cuGraphExecDestroy", self._graphs.pop(graph))


# --- pycuda ---------------------------------------------------------------------------------------


class PyCuda:
    """Context, memory and streams of pycuda, so that they go with its arrays and its errors.

    pycuda's copies take only streams that it made itself. Streams of others are accepted here, so what goes onto a
    stream calls the driver library directly.

    Args:
        driver: The module ``pycuda.driver``.
        library: The driver library, ``libcuda.so.1``.
    """

    name: Implementation = "pycuda"
    has_graphs = False

    def __init__(self, driver: Any, library: Any) -> None:
        self._driver = driver
        self._library = library
        self._device: Any = None
        self._context: Any = None
        self._objects: dict[int, Any] = {}  # what pycuda made, by pointer: it is freed with the object

    @contextlib.contextmanager
    def _errors(self, call: str) -> Iterator[None]:
        try:
            yield
        except self._driver.MemoryError as error:
            raise CudaError(call, _OUT_OF_MEMORY) from error
        except self._driver.Error as error:
            raise CudaError(call, str(error)) from error

    def _library_call(self, name: str, *arguments: Any) -> None:
        status = int(getattr(self._library, name)(*arguments))
        if status:
            text = ctypes.c_char_p()
            known = self._library.cuGetErrorName(status, ctypes.byref(text)) == 0 and text.value is not None
            raise CudaError(name, text.value.decode() if known and text.value else f"error {status}")

    def open(self, ordinal: int) -> None:
        with self._errors("init"):
            self._driver.init()
            self._device = self._driver.Device(ordinal)
            self._context = self._device.retain_primary_context()

    def close(self) -> None:
        with self._errors("detach"):
            self._objects.clear()
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

    def memory(self) -> tuple[int, int]:
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

    def create_stream(self) -> int:
        with self._errors("Stream"):
            made = self._driver.Stream(1)  # CU_STREAM_NON_BLOCKING
        self._objects[int(made.handle)] = made
        return int(made.handle)

    def destroy_stream(self, stream: int) -> None:
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

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemcpyHtoDAsync_v2", *map(_handle, (target, source, nbytes, stream)))

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemcpyDtoHAsync_v2", *map(_handle, (target, source, nbytes, stream)))

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemcpyDtoDAsync_v2", *map(_handle, (target, source, nbytes, stream)))

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None:
        self._library_call("cuMemsetD8Async", _handle(target), value, _handle(nbytes), _handle(stream))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        raise CudaError("capture", "pycuda has no CUDA graphs")

    def launch(self, graph: int, stream: int) -> None:
        raise CudaError("launch", "pycuda has no CUDA graphs")

    def destroy_graph(self, graph: int) -> None:
        raise CudaError("destroy_graph", "pycuda has no CUDA graphs")


def _handle(value: int) -> ctypes.c_uint64:
    """Pointers, sizes and streams of the driver are 64 bits wide; ctypes alone would pass 32."""
    return ctypes.c_uint64(value)


# --- the interface --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Page-locked memory of the host."""

    array: NDArray[Any]
    """To read and write; not after :meth:`Device.free` or :meth:`Device.close`."""
    pointer: int
    device_pointer: int | None
    """Where the device sees it, if it is mapped."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Recorded work, for :meth:`Device.launch`."""

    handle: int


class Device:
    """One GPU: memory, streams and copies. Safe to use from any thread.

    Streams are integer handles, 0 for the default stream; :func:`stream_handle` takes those of other packages. Copies
    and fills are put on a stream and not waited for. Whatever was allocated here is freed by :meth:`close`.

    Args:
        driver: An implementation.
        ordinal: Number of the GPU.

    Raises:
        BackendError: no driver, or no such GPU.
    """

    def __init__(self, driver: Driver, ordinal: int = 0) -> None:
        self._driver = driver
        self._lock = threading.Lock()
        self._memory: set[int] = set()
        self._host: set[int] = set()
        self._streams: set[int] = set()
        self._graphs: set[int] = set()
        self._open = False
        if ordinal < 0:
            raise InputError(f"the number of a GPU is at least 0, got {ordinal}")
        try:
            driver.open(ordinal)
        except CudaError as error:
            raise BackendError(f"GPU {ordinal} cannot be used through {driver.name} ({error}): {_NO_DRIVER}") from error
        self._open = True
        with self.current():
            self.name, major, minor, self.shares_memory = driver.describe()
        self.sm = f"{major}.{minor}"

    def __repr__(self) -> str:
        return f"Device({self.name!r}, SM {self.sm}, {self._driver.name}{'' if self._open else ', closed'})"

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def implementation(self) -> Implementation:
        """What it works through."""
        return self._driver.name

    @property
    def has_graphs(self) -> bool:
        """Whether :meth:`capture` works."""
        return self._driver.has_graphs

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes the primary context current in this thread, as the kernels and TensorRT need it.

        Raises:
            BackendError: the device is closed, or a call of the driver inside failed.
        """
        if not self._open:
            raise BackendError("this device is closed; open it again")
        try:
            self._driver.push()
            try:
                yield
            finally:
                self._driver.pop()
        except CudaError as error:
            raise BackendError(f"{error.call} failed on {getattr(self, 'name', 'the GPU')}: {error.code}") from error

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of device memory."""
        with self.current():
            return self._driver.memory()

    def allocate(self, nbytes: int) -> int:
        """Device memory of at least one byte; its pointer.

        Raises:
            BackendError: there is not enough.
        """
        with self.current():
            pointer = self._allocated(nbytes, self._driver.allocate, max(nbytes, 1))
            with self._lock:
                self._memory.add(pointer)
        return pointer

    def pinned(self, shape: int | Sequence[int], dtype: DTypeLike, *, mapped: bool = False) -> HostMemory:
        """Page-locked memory of the host, which copies run from and to without waiting.

        Args:
            shape: Of the array.
            dtype: Of the array.
            mapped: Whether the device sees it too. Where host and device share their memory
                (:attr:`shares_memory`, on a Jetson), that saves the copy.

        Raises:
            BackendError: there is not enough.
        """
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        kind = np.dtype(dtype)
        nbytes = math.prod(shape) * kind.itemsize
        with self.current():
            pointer = self._allocated(nbytes, self._driver.allocate_host, max(nbytes, 1), mapped)
            with self._lock:
                self._host.add(pointer)
            seen = self._driver.device_pointer(pointer) if mapped else None
        memory = memoryview((ctypes.c_uint8 * max(nbytes, 1)).from_address(pointer))
        array = np.frombuffer(memory, np.uint8)[:nbytes].view(kind).reshape(shape)
        return HostMemory(array, pointer, seen)

    def _allocated(self, nbytes: int, call: Callable[..., int], *arguments: Any) -> int:
        if nbytes < 0:
            raise InputError(f"sizes are at least 0, got {nbytes}")
        try:
            return call(*arguments)
        except CudaError as error:
            if error.code != _OUT_OF_MEMORY:
                raise
            free, total = self._driver.memory()
            raise BackendError(
                f"{self.name} has no {nbytes / 2**20:.1f} MiB left ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are "
                "free): use smaller profiles, or close what else uses the GPU"
            ) from error

    def free(self, memory: int | HostMemory) -> None:
        """Free what :meth:`allocate` or :meth:`pinned` gave."""
        host = isinstance(memory, HostMemory)
        pointer = memory.pointer if isinstance(memory, HostMemory) else memory
        with self._lock:
            kept = self._host if host else self._memory
            if pointer not in kept:
                raise InputError(f"{pointer:#x} is not memory of this device, or it was freed before")
            kept.remove(pointer)
        with self.current():
            if host:
                self._driver.free_host(pointer)
            else:
                self._driver.free(pointer)

    def create_stream(self) -> int:
        """A new stream, which does not wait for the default stream."""
        with self.current():
            stream = self._driver.create_stream()
        with self._lock:
            self._streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream that :meth:`create_stream` gave."""
        with self._lock:
            if stream not in self._streams:
                raise InputError(f"{stream:#x} is not a stream of this device; those of others are theirs to destroy")
            self._streams.remove(stream)
        with self.current():
            self._driver.destroy_stream(stream)

    def synchronize(self, stream: int) -> None:
        """Wait for everything on a stream; errors of earlier work appear here."""
        with self.current():
            self._driver.synchronize(stream)

    def wait(self, stream: int, other: int) -> None:
        """Let what comes on ``stream`` wait for what is on ``other`` so far; nothing waits on the host."""
        with self.current():
            self._driver.wait(stream, other)

    def elapsed(self, stream: int, work: Callable[[], None]) -> float:
        """Milliseconds that the GPU takes for what ``work`` puts on the stream; waits for it."""
        with self.current():
            return self._driver.elapsed(stream, work)

    def copy_to_device(self, target: int, source: NDArray[Any], stream: int) -> None:
        """Copy a C-contiguous array; it must stay as it is until the stream got there (at once if not page-locked)."""
        with self.current():
            self._driver.to_device(target, _contiguous(source, "source").ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: int) -> None:
        """Copy into a C-contiguous array; it is filled once the stream got there."""
        if not target.flags.writeable:
            raise InputError("target is read-only; pass an array that can be written")
        with self.current():
            self._driver.to_host(_contiguous(target, "target").ctypes.data, source, target.nbytes, stream)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy between two places in device memory that do not overlap."""
        with self.current():
            self._driver.on_device(target, source, nbytes, stream)

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None:
        """Set bytes."""
        with self.current():
            self._driver.fill(target, value, nbytes, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """Record what ``work`` puts on ``stream``, which is not run, as a graph.

        Raises:
            BackendError: this implementation has no graphs, the stream is the default stream, or some of the work
                cannot be recorded (an allocation, a wait).
        """
        with self.current():
            handle = self._driver.capture(stream, work)
        with self._lock:
            self._graphs.add(handle)
        return Graph(handle)

    def launch(self, graph: Graph, stream: int) -> None:
        """Run recorded work on a stream."""
        with self.current():
            self._driver.launch(graph.handle, stream)

    def destroy_graph(self, graph: Graph) -> None:
        """Destroy what :meth:`capture` gave; where it still runs, once it has ended."""
        with self._lock:
            if graph.handle not in self._graphs:
                raise InputError("this graph is not of this device, or it was destroyed before")
            self._graphs.remove(graph.handle)
        with self.current():
            self._driver.destroy_graph(graph.handle)

    def close(self) -> None:
        """Wait for the streams made here, free everything, and release the GPU; a second call does nothing."""
        with self._lock:
            if not self._open:
                return
            memory, host, streams, graphs = self._memory, self._host, self._streams, self._graphs
            self._memory, self._host, self._streams, self._graphs = set(), set(), set(), set()
        problems: list[BackendError] = []

        def each(values: set[int], *calls: Callable[[int], None]) -> None:
            for value in values:
                for call in calls:
                    try:
                        with self.current():
                            call(value)
                    except BackendError as error:  # go on: what can be freed is freed
                        problems.append(error)

        each(streams, self._driver.synchronize)
        each(graphs, self._driver.destroy_graph)
        each(streams, self._driver.destroy_stream)
        each(memory, self._driver.free)
        each(host, self._driver.free_host)
        self._open = False
        try:
            self._driver.close()
        except CudaError as error:
            problems.append(BackendError(f"{error.call} failed on {self.name}: {error.code}"))
        if problems:
            raise problems[0]


def _contiguous(array: NDArray[Any], name: str) -> NDArray[Any]:
    if not array.flags.c_contiguous:
        raise InputError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")
    return array


def open_device(implementation: str = "auto", ordinal: int = 0) -> Device:
    """A GPU through cuda-python or pycuda; ``"auto"`` takes the first that works.

    Raises:
        InputError: another name.
        BackendError: neither package is installed, or there is no driver or no such GPU.
    """
    if implementation != "auto" and implementation not in IMPLEMENTATIONS:
        raise InputError(f"unknown implementation {implementation!r}: 'auto', 'cuda-python' and 'pycuda' exist")
    problems = []
    for name in IMPLEMENTATIONS:
        if implementation in ("auto", name):
            try:
                return Device(_driver(name), ordinal)
            except BackendError as error:
                problems.append(str(error))
    raise BackendError("; ".join(problems))


def _driver(name: Implementation) -> Driver:
    module = "cuda.bindings.driver" if name == "cuda-python" else "pycuda.driver"
    try:
        driver = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise BackendError(f"{name} is not installed ({error.name} is missing): {_INSTALL[name]}") from error
    except (ImportError, OSError) as error:
        raise BackendError(f"{name} cannot be imported ({one_line(error)}): {_NO_DRIVER}") from error
    if name == "cuda-python":
        return CudaPython(driver)
    try:
        return PyCuda(driver, ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"))
    except OSError as error:
        raise BackendError(f"{name} finds no driver library ({one_line(error)}): {_NO_DRIVER}") from error


# --- arrays and streams of others -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array in device memory that belongs to someone else."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    """In bytes."""
    producer: int | None
    """Stream on which its values appear: wait for it (:meth:`Device.wait`). None: they are there, or the producer has
    seen to it."""
    owner: object = field(repr=False, compare=False)
    """Keeps the memory alive."""

    @property
    def contiguous(self) -> bool:
        """Whether the values follow one another in C order."""
        return self.strides == _packed_strides(self.shape, self.dtype.itemsize)


def _packed_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def stream_handle(stream: Any) -> int:
    """The handle of a stream: an integer, or an object of PyTorch, CuPy, pycuda, Numba or cuda-core.

    Raises:
        InputError: something else.
    """
    if isinstance(stream, (int, np.integer)) and not isinstance(stream, bool) and stream >= 0:
        return int(stream)
    protocol = getattr(stream, "__cuda_stream__", None)
    if callable(protocol):
        version, handle = protocol()
        if version == 0:
            return int(handle)
    for name in ("cuda_stream", "ptr", "handle"):  # PyTorch, CuPy, pycuda and cuda-python
        value = getattr(stream, name, None)
        if isinstance(value, int):
            return value
    raise InputError(
        "a stream is an integer handle, or has __cuda_stream__, cuda_stream, ptr or handle; "
        f"got {type(stream).__name__}"
    )


class CudaArray(Protocol):
    """An array in device memory, as PyTorch, CuPy, pycuda and Numba give it."""

    @property
    def __cuda_array_interface__(self) -> Any: ...


class DlpackArray(Protocol):
    """An array that says through DLPack where it is."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


OnDevice = CudaArray | DlpackArray
"""What :func:`device_array` takes."""


def is_on_device(value: object) -> bool:
    """Whether this is an array, and not one of numpy, that :func:`device_array` may take."""
    if isinstance(value, np.ndarray):
        return False
    return any(hasattr(type(value), name) for name in ("__cuda_array_interface__", "__dlpack_device__"))


def device_array(value: Any, *, stream: int = 0) -> DeviceArray:
    """An array in device memory as it is, through ``__cuda_array_interface__`` or DLPack; nothing is copied.

    Args:
        value: An array of PyTorch, CuPy, pycuda, Numba, JAX, ...
        stream: Where it will be used; a DLPack producer makes that stream wait for the values.

    Raises:
        InputError: neither protocol, memory that is not on a GPU, or a dtype that numpy does not have.
    """
    # PyTorch refuses __cuda_array_interface__ for what is on the CPU with an error of its own.
    interface = None
    if not callable(getattr(value, "__dlpack_device__", None)) or _dlpack_kind(value) == _DLPACK_CUDA:
        with contextlib.suppress(AttributeError, RuntimeError, TypeError):
            interface = value.__cuda_array_interface__
    # PyTorch's interface does not say on which stream the values appear; its DLPack lets the stream here wait for them.
    if interface is not None and ("stream" in interface or not callable(getattr(value, "__dlpack__", None))):
        return _from_interface(interface, value)
    if not callable(getattr(value, "__dlpack__", None)) or not callable(getattr(value, "__dlpack_device__", None)):
        raise InputError(f"an array on the GPU has __cuda_array_interface__ or __dlpack__; got {type(value).__name__}")
    kind = _dlpack_kind(value)
    if kind not in (_DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED):
        raise InputError(f"{type(value).__name__} is not in memory of a GPU (DLPack device {kind})")
    # In DLPack, 1 is the legacy default stream; 0 is not allowed.
    return from_dlpack_capsule(value.__dlpack__(stream=stream or 1))


_DLPACK_CUDA, _DLPACK_CUDA_HOST, _DLPACK_CUDA_MANAGED = 2, 3, 13
_DLPACK_KINDS = {0: "i", 1: "u", 2: "f", 5: "c", 6: "b"}


def _dlpack_kind(value: Any) -> int:
    return int(value.__dlpack_device__()[0])


def _from_interface(interface: Any, owner: object) -> DeviceArray:
    try:
        pointer, _read_only = interface["data"]
        shape, dtype = tuple(int(size) for size in interface["shape"]), np.dtype(interface["typestr"])
        given = interface.get("strides")
        strides = _packed_strides(shape, dtype.itemsize) if given is None else tuple(int(step) for step in given)
        producer = interface.get("stream")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{type(owner).__name__} has a __cuda_array_interface__ that is not one: {error}") from error
    if len(strides) != len(shape) or any(size < 0 for size in shape):
        raise InputError(f"{type(owner).__name__} has shape {shape} and strides {strides}")
    # 1 is the legacy default stream, whose handle is 0 too; None says that there is nothing to wait for.
    return DeviceArray(int(pointer or 0), shape, dtype, strides, None if producer is None else int(producer), owner)


class _DLDevice(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("ordinal", ctypes.c_int32))


class _DLType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _DLDevice),
        ("ndim", ctypes.c_int32),
        ("dtype", _DLType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


def from_dlpack_capsule(capsule: object) -> DeviceArray:
    """What a DLPack capsule describes, wherever its memory is.

    The capsule is kept, not consumed: the memory lives as long as it does.

    Raises:
        InputError: it is no fresh DLPack capsule, or has a dtype that numpy does not have.
    """
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.argtypes, get.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    try:
        address = get(capsule, b"dltensor")
    except ValueError as error:
        raise InputError(f"{type(capsule).__name__} is no DLPack capsule, or one that was used before") from error
    tensor = _DLTensor.from_address(address)
    kind, bits, lanes = tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes
    if kind not in _DLPACK_KINDS or bits % 8 or lanes != 1:
        raise InputError(f"numpy has no dtype for DLPack type {kind} of {bits} bits and {lanes} lanes")
    dtype = np.dtype(f"{_DLPACK_KINDS[kind]}{bits // 8}")
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    if tensor.strides:
        strides = tuple(tensor.strides[axis] * dtype.itemsize for axis in range(tensor.ndim))
    else:
        strides = _packed_strides(shape, dtype.itemsize)
    return DeviceArray((tensor.data or 0) + tensor.byte_offset, shape, dtype, strides, None, capsule)
