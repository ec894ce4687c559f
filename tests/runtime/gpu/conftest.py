"""A GPU with kernels, memory and a TensorRT; tests are skipped without it.

``TATOK_REQUIRE_GPU=1`` makes a failure of the skip.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers.gpu import Memory, unavailable

from tatok_edge.errors import BackendError
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.device import Device, open_device
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.tensorrt.flavour import (
    Flavour,
    find_flavour,
)


@pytest.fixture(scope="package")
def device() -> Iterator[Device]:
    """The GPU, through whichever implementation there is."""
    try:
        opened = open_device()
    except BackendError as error:
        unavailable(str(error))
    with opened:
        yield opened


@pytest.fixture(scope="package")
def kernels(device: Device, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """The kernels: those that were built before, or built now for this GPU."""
    try:
        return cuda_kernels.load()
    except BackendError:
        pass
    try:
        return cuda_kernels.load(cuda_kernels.build([device.sm], tmp_path_factory.mktemp("cuda") / "tatok_cuda.so"))
    except BackendError as error:
        unavailable(str(error))


@pytest.fixture
def memory(device: Device) -> Iterator[Memory]:
    made = Memory(device)
    yield made
    made.clear()
    device.destroy_stream(made.stream)


@pytest.fixture(scope="module")
def flavour(device: Device) -> Flavour:
    """Whichever TensorRT is installed; that is no part of having a GPU, so its lack is a skip."""
    try:
        return find_flavour()
    except BackendError as error:
        pytest.skip(str(error))
