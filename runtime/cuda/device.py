"""One GPU: device memory, page-locked memory, streams, copies and CUDA graphs behind one small interface.

:func:`open_device` opens a :class:`Device` through cuda-python or through pycuda. Both work in the primary context,
which PyTorch, CuPy, the CUDA kernels and TensorRT share. A call makes the context current in its own thread and only
while it runs. Pointers are integers. Arrays of other packages: :mod:`tatok_edge.runtime.cuda.arrays`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tatok_edge.closing import Closing
from tatok_edge.errors import BackendError, InputError, one_line
from tatok_edge.runtime.cuda.cuda_python import CudaPython
from tatok_edge.runtime.cuda.driver import (
    IMPLEMENTATIONS,
    OUT_OF_MEMORY,
    CudaError,
    Driver,
    DriverGraphs,
    DriverMemory,
    Implementation,
)
from tatok_edge.runtime.cuda.pycuda import PyCuda
from tatok_edge.runtime.nvidia import driver_library

_INSTALL = {
    "cuda-python": "pip install cuda-bindings (of the major version of your driver: 12 for JetPack 6)",
    "pycuda": "pip install pycuda (compiles; needs the CUDA toolkit)",
}
_NO_DRIVER = "there is no usable NVIDIA driver or GPU; see nvidia-smi"


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Page-locked memory of the host."""

    array: NDArray[Any]
    """The memory as an array; not valid after :meth:`Device.free` or :meth:`Device.close`."""
    pointer: int
    device_pointer: int | None
    """Address on the device, if the memory is mapped."""


class Graph:
    """Recorded work of a :class:`Device`, from :meth:`Device.capture`.

    Args:
        device: Its device.
        driver: The driver's graphs.
        held: Handles of the graphs that the device still has to destroy; this graph's handle is added.
        handle: The driver's handle of the graph.
    """

    def __init__(self, device: Device, driver: DriverGraphs, held: set[int], handle: int) -> None:
        self._device, self._driver, self._held, self._handle = device, driver, held, handle
        held.add(handle)

    def launch(self, stream: int) -> None:
        """Run the recorded work on a stream.

        Raises:
            BackendError: the driver refuses, or the device is closed.
        """
        with self._device.current():
            self._driver.launch(self._handle, stream)

    def destroy(self) -> None:
        """Free the graph; a running graph is freed once it has ended.

        Raises:
            InputError: the graph was destroyed before.
        """
        if self._handle not in self._held:
            raise InputError("this graph was destroyed before")
        self._held.remove(self._handle)
        with self._device.current():
            self._driver.destroy(self._handle)


class Device(Closing):
    """One GPU: memory, streams and copies. Safe to use from any thread.

    Streams are integer handles, 0 for the default stream; :func:`tatok_edge.runtime.cuda.arrays.stream_handle` gives
    the handles of other packages' streams. Copies and fills are put on a stream and not waited for. :meth:`close` frees
    everything that was allocated here.

    Args:
        driver: An implementation.
        ordinal: Number of the GPU.

    Raises:
        BackendError: no driver, or no such GPU.
    """

    def __init__(self, driver: Driver, ordinal: int = 0) -> None:
        self._driver = driver
        self.implementation: Implementation = driver.name
        """Package that the calls of the driver go through."""
        self.has_graphs = driver.graphs is not None
        """Whether :meth:`capture` works."""
        self._lock = threading.Lock()
        self._memory: set[int] = set()
        self._host: set[int] = set()
        self._streams: set[int] = set()
        self._graphs: set[int] = set()
        self._held = (self._memory, self._host, self._streams, self._graphs)  # still to be freed
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

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes the primary context current in this thread, for the kernels and TensorRT.

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
            return self._driver.memory.available()

    def allocate(self, nbytes: int) -> int:
        """Device memory of at least one byte; its pointer.

        Raises:
            BackendError: there is not enough.
        """
        with self.current():
            pointer = _allocate(self, self._driver.memory, nbytes)
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
            pointer = _allocate(self, self._driver.memory, nbytes, host=True, mapped=mapped)
            with self._lock:
                self._host.add(pointer)
            seen = self._driver.memory.device_pointer(pointer) if mapped else None
        memory = memoryview((ctypes.c_uint8 * max(nbytes, 1)).from_address(pointer))
        array = np.frombuffer(memory, np.uint8)[:nbytes].view(kind).reshape(shape)
        return HostMemory(array, pointer, seen)

    def free(self, memory: int | HostMemory) -> None:
        """Free memory of :meth:`allocate` or :meth:`pinned`."""
        host = isinstance(memory, HostMemory)
        pointer = memory.pointer if isinstance(memory, HostMemory) else memory
        with self._lock:
            kept = self._host if host else self._memory
            if pointer not in kept:
                raise InputError(f"{pointer:#x} is not memory of this device, or it was freed before")
            kept.remove(pointer)
        with self.current():
            if host:
                self._driver.memory.free_host(pointer)
            else:
                self._driver.memory.free(pointer)

    def create_stream(self) -> int:
        """A new stream, which does not wait for the default stream."""
        with self.current():
            stream = self._driver.streams.create()
        with self._lock:
            self._streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream that :meth:`create_stream` gave."""
        with self._lock:
            if stream not in self._streams:
                raise InputError(f"{stream:#x} is not a stream of this device; only its owner may destroy it")
            self._streams.remove(stream)
        with self.current():
            self._driver.streams.destroy(stream)

    def synchronize(self, stream: int) -> None:
        """Wait for everything on a stream; errors of earlier work appear here."""
        with self.current():
            self._driver.streams.synchronize(stream)

    def wait(self, stream: int, other: int) -> None:
        """Let later work on ``stream`` wait for the work that is on ``other`` now; the host does not wait."""
        with self.current():
            self._driver.streams.wait(stream, other)

    def elapsed(self, stream: int, work: Callable[[], None]) -> float:
        """Milliseconds that the GPU takes for the work that ``work`` puts on the stream; waits for it."""
        with self.current():
            return self._driver.streams.elapsed(stream, work)

    def copy_to_device(self, target: int, source: NDArray[Any], stream: int) -> None:
        """Copy a C-contiguous array. A page-locked array must not change until the stream has done the copy."""
        with self.current():
            self._driver.memory.to_device(target, _contiguous(source, "source").ctypes.data, source.nbytes, stream)

    def copy_to_host(self, target: NDArray[Any], source: int, stream: int) -> None:
        """Copy into a C-contiguous array; it is filled once the stream has done the copy."""
        if not target.flags.writeable:
            raise InputError("target is read-only; pass an array that can be written")
        with self.current():
            self._driver.memory.to_host(_contiguous(target, "target").ctypes.data, source, target.nbytes, stream)

    def copy_on_device(self, target: int, source: int, nbytes: int, stream: int) -> None:
        """Copy between two places in device memory that do not overlap."""
        with self.current():
            self._driver.memory.on_device(target, source, nbytes, stream)

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None:
        """Set bytes."""
        with self.current():
            self._driver.memory.fill(target, value, nbytes, stream)

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """Record the work that ``work`` puts on ``stream`` as a graph; it does not run.

        Raises:
            BackendError: this implementation has no graphs, the stream is the default stream, or some of the work
                cannot be recorded (an allocation, a wait).
        """
        driver = self._driver.graphs
        if driver is None:
            raise BackendError(f"capture failed on {self.name}: {self.implementation} has no CUDA graphs")
        with self.current():
            return Graph(self, driver, self._graphs, driver.capture(stream, work))

    def close(self) -> None:
        """Wait for the streams made here, free everything, and release the GPU; a second call does nothing."""
        with self._lock:
            if not self._open:
                return
            memory, host, streams, graphs = (set(held) for held in self._held)
            for held in self._held:
                held.clear()
        problems: list[BackendError] = []

        def each(values: set[int], *calls: Callable[[int], None]) -> None:
            for value in values:
                for call in calls:
                    try:
                        with self.current():
                            call(value)
                    except BackendError as error:  # go on, to free the rest
                        problems.append(error)

        each(streams, self._driver.streams.synchronize)
        if self._driver.graphs is not None:
            each(graphs, self._driver.graphs.destroy)
        each(streams, self._driver.streams.destroy)
        each(memory, self._driver.memory.free)
        each(host, self._driver.memory.free_host)
        self._open = False
        try:
            self._driver.close()
        except CudaError as error:
            problems.append(BackendError(f"{error.call} failed on {self.name}: {error.code}"))
        if problems:
            raise problems[0]


def _allocate(device: Device, driver: DriverMemory, nbytes: int, *, host: bool = False, mapped: bool = False) -> int:
    """Memory of at least one byte; its pointer."""
    if nbytes < 0:
        raise InputError(f"sizes are at least 0, got {nbytes}")
    size = max(nbytes, 1)
    try:
        return driver.allocate_host(size, mapped) if host else driver.allocate(size)
    except CudaError as error:
        if error.code != OUT_OF_MEMORY:
            raise
        free, total = driver.available()
        raise BackendError(
            f"{device.name} has no {nbytes / 2**20:.1f} MiB left ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are "
            "free): use smaller profiles, or close what else uses the GPU"
        ) from error


def _contiguous(array: NDArray[Any], name: str) -> NDArray[Any]:
    if not array.flags.c_contiguous:
        raise InputError(f"{name} must be C-contiguous; pass numpy.ascontiguousarray({name})")
    return array


def open_device(implementation: str = "auto", ordinal: int = 0) -> Device:
    """A GPU through cuda-python or pycuda; ``"auto"`` takes the first that works.

    Raises:
        InputError: an unknown name.
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
        return PyCuda(driver, driver_library())
    except OSError as error:
        raise BackendError(f"{name} finds no driver library ({one_line(error)}): {_NO_DRIVER}") from error


# --- arrays and streams of others -----------------------------------------------------------------
