"""On a GPU: each implementation of the CUDA calls moves values, and gives its memory back."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_edge.errors import BackendError
from tatok_edge.runtime.cuda.device import Device, open_device
from tatok_edge.runtime.cuda.driver import IMPLEMENTATIONS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_implementation_moves_values(name: str, device: Device) -> None:
    try:
        other = open_device(name)
    except BackendError as error:
        pytest.skip(str(error))
    with other:
        assert (other.name, other.sm) == (device.name, device.sm)
        free, total = other.memory()
        assert 0 < free <= total
        stream, pinned = other.create_stream(), other.pinned((256, 1024), np.float32)
        pinned.array[:] = np.random.default_rng(0).standard_normal((256, 1024), np.float32)
        first, second = other.allocate(pinned.array.nbytes), other.allocate(pinned.array.nbytes)
        result = other.pinned((256, 1024), np.float32)
        other.copy_to_device(first, pinned.array, stream)
        other.copy_on_device(second, first, pinned.array.nbytes, stream)
        other.copy_to_host(result.array, second, stream)
        other.synchronize(stream)
        assert result.array.tobytes() == pinned.array.tobytes()
        mapped = other.pinned(16, np.uint8, mapped=True)
        assert mapped.device_pointer is not None
        other.fill(mapped.device_pointer, 7, 16, stream)
        other.synchronize(stream)
        assert (mapped.array == 7).all()
        assert other.elapsed(stream, lambda: other.fill(first, 0, 1 << 20, stream)) > 0
        with pytest.raises(BackendError, match=r"MiB left"):
            other.allocate(1 << 50)


def test_memory_comes_back_after_many_devices(device: Device) -> None:
    before, _ = device.memory()
    for _ in range(20):
        with open_device(device.implementation) as other:
            other.allocate(8 << 20)
            other.pinned(1 << 20, np.uint8)
            other.create_stream()
    after, _ = device.memory()
    assert before - after < 8 << 20
