"""The CUDA driver as :class:`tatok_edge.runtime.cuda.device.Device` calls it: the protocol of its implementations.

Pointers, sizes, streams and graphs are integers. Every call raises :class:`CudaError` when the driver refuses it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Implementation = Literal["cuda-python", "pycuda"]
IMPLEMENTATIONS: tuple[Implementation, ...] = ("cuda-python", "pycuda")
"""In the order in which they are tried."""
OUT_OF_MEMORY = "CUDA_ERROR_OUT_OF_MEMORY"
"""Error code of an allocation without enough memory."""


class CudaError(Exception):
    """A call of the CUDA driver that failed, by the name of its code; ``Device`` turns it into a BackendError."""

    def __init__(self, call: str, code: str) -> None:
        super().__init__(f"{call}: {code}")
        self.call, self.code = call, code


class Driver(Protocol):
    """One GPU's primary context, with its memory, its streams and its graphs."""

    name: Implementation

    @property
    def memory(self) -> DriverMemory:
        """Memory of the device and page-locked memory of the host."""
        ...

    @property
    def streams(self) -> DriverStreams:
        """Streams."""
        ...

    @property
    def graphs(self) -> DriverGraphs | None:
        """CUDA graphs; None where the implementation has none."""
        ...

    def open(self, ordinal: int) -> None:
        """Retain the primary context of a GPU."""
        ...

    def close(self) -> None:
        """Release the context."""
        ...

    def push(self) -> None:
        """Make the context current in this thread."""
        ...

    def pop(self) -> None:
        """Make the context current that was current before."""
        ...

    def describe(self) -> tuple[str, int, int, bool]:
        """Name, major and minor SM version, and whether host and device share their memory."""
        ...


class DriverMemory(Protocol):
    """Allocations and copies. Copies and fills are put on a stream and not waited for."""

    def available(self) -> tuple[int, int]:
        """Free and total bytes."""
        ...

    def allocate(self, nbytes: int) -> int: ...

    def free(self, pointer: int) -> None: ...

    def allocate_host(self, nbytes: int, mapped: bool) -> int:
        """Page-locked memory; ``mapped`` lets the device see it too."""
        ...

    def free_host(self, pointer: int) -> None: ...

    def device_pointer(self, host_pointer: int) -> int:
        """Address on the device of mapped memory of the host."""
        ...

    def to_device(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def to_host(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def on_device(self, target: int, source: int, nbytes: int, stream: int) -> None: ...

    def fill(self, target: int, value: int, nbytes: int, stream: int) -> None: ...


class DriverStreams(Protocol):
    """Streams that do not wait for the default stream."""

    def create(self) -> int: ...

    def destroy(self, stream: int) -> None: ...

    def synchronize(self, stream: int) -> None: ...

    def wait(self, stream: int, other: int) -> None:
        """Let later work on ``stream`` wait for the work that is on ``other`` now."""
        ...

    def elapsed(self, stream: int, work: Callable[[], None]) -> float:
        """Milliseconds of the work that ``work`` puts on the stream; waits for it."""
        ...


class DriverGraphs(Protocol):
    """Recorded work."""

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Record the work that ``work`` puts on the stream as an executable graph."""
        ...

    def launch(self, graph: int, stream: int) -> None: ...

    def destroy(self, graph: int) -> None: ...
