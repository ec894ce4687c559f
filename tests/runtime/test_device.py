"""Device memory and streams: what goes wrong without a driver, arrays of others, and that both implementations keep the
rules of the CUDA driver. The drivers are those of helpers/fake_cuda.py; a real GPU is in gpu/.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.fake_cuda import World, bindings, pycuda_modules
from helpers.threads import in_threads
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import BackendError, InputError
from tatok_edge.runtime.cuda import cuda_python
from tatok_edge.runtime.cuda.arrays import device_array, from_dlpack_capsule, stream_handle
from tatok_edge.runtime.cuda.cuda_python import CudaPython
from tatok_edge.runtime.cuda.device import Device, open_device
from tatok_edge.runtime.cuda.driver import Driver
from tatok_edge.runtime.cuda.pycuda import PyCuda


@pytest.fixture(params=["cuda-python", "pycuda"])
def opened(request: pytest.FixtureRequest) -> tuple[World, Device]:
    world = World()
    driver: Driver = CudaPython(bindings(world)) if request.param == "cuda-python" else PyCuda(*pycuda_modules(world))
    return world, Device(driver)


# --- memory and streams ---------------------------------------------------------------------------


def test_values_go_to_the_device_and_back(opened: tuple[World, Device]) -> None:
    world, device = opened
    with device:
        assert (device.name, device.sm, device.shares_memory) == ("Stand-in GPU", "8.7", True)
        stream = device.create_stream()
        staging = device.pinned((3, 5), np.float32)
        staging.array[:] = np.arange(15).reshape(3, 5)
        first, second = device.allocate(60), device.allocate(60)
        device.copy_to_device(first, staging.array, stream)
        device.copy_on_device(second, first, 60, stream)
        device.fill(first, 0, 60, stream)
        result, zeros = np.empty((3, 5), np.float32), np.ones(15, np.float32)
        device.copy_to_host(result, second, stream)
        device.copy_to_host(zeros, first, 0)
        device.synchronize(stream)
        device.wait(stream, 0)
        assert device.elapsed(stream, lambda: device.fill(first, 1, 60, stream)) == 1.5
        assert result.tolist() == np.arange(15).reshape(3, 5).tolist()
        assert not zeros.any()
        device.free(second)
        device.free(staging)
        device.destroy_stream(stream)
        assert len(world.memory) == 1 and not world.host
    gc.collect()
    assert world.clean


def test_mapped_memory_is_seen_from_both_sides(opened: tuple[World, Device]) -> None:
    _, device = opened
    with device:
        shared = device.pinned(4, np.uint8, mapped=True)
        assert shared.device_pointer is not None
        device.fill(shared.device_pointer, 9, 4, 0)
        assert shared.array.tolist() == [9, 9, 9, 9]
        assert device.pinned(0, np.uint8).array.shape == (0,)
        assert device.pinned(4, np.uint8).device_pointer is None


def test_close_frees_everything_once_and_waits(opened: tuple[World, Device]) -> None:
    world, device = opened
    for _ in range(3):
        device.allocate(100)
        device.pinned(100, np.uint8)
        device.create_stream()
    device.close()
    device.close()
    gc.collect()
    assert world.clean
    assert "closed" in repr(device)
    with pytest.raises(BackendError, match="this device is closed; open it again"):
        device.allocate(1)


def test_memory_of_others_is_not_freed(opened: tuple[World, Device]) -> None:
    _, device = opened
    with device:
        pointer = device.allocate(8)
        device.free(pointer)
        with pytest.raises(InputError, match="was freed before"):
            device.free(pointer)
        with pytest.raises(InputError, match="not a stream of this device"):
            device.destroy_stream(77)
        with pytest.raises(InputError, match="at least 0"):
            device.allocate(-1)


def test_running_out_of_memory_says_how_much_there_is(opened: tuple[World, Device]) -> None:
    world, device = opened
    with device, pytest.raises(BackendError, match=r"no 4\.0 MiB left \(0 of 1 MiB are free\): use smaller profiles"):
        device.allocate(4 << 20)
    gc.collect()
    assert world.clean


def test_only_contiguous_arrays_are_copied(opened: tuple[World, Device]) -> None:
    _, device = opened
    with device:
        pointer = device.allocate(100)
        with pytest.raises(InputError, match="source must be C-contiguous"):
            device.copy_to_device(pointer, np.zeros((4, 4))[:, ::2], 0)
        frozen = np.zeros(4)
        frozen.flags.writeable = False
        with pytest.raises(InputError, match="target is read-only"):
            device.copy_to_host(frozen, pointer, 0)


def test_every_thread_has_the_context_while_it_calls(opened: tuple[World, Device]) -> None:
    world, device = opened

    def work(_: int) -> None:
        for _ in range(50):
            pointer = device.allocate(16)
            device.fill(pointer, 1, 16, 0)
            device.free(pointer)

    in_threads(4, work)
    device.close()
    assert world.clean


def test_an_error_inside_leaves_the_context_as_it_was(opened: tuple[World, Device]) -> None:
    world, device = opened
    with pytest.raises(ZeroDivisionError), device.current():
        raise ZeroDivisionError
    assert not any(world.current.values())
    device.close()


def test_recorded_work_runs_when_it_is_launched() -> None:
    world = World()
    with Device(CudaPython(bindings(world))) as device:
        assert device.has_graphs
        stream, pointer = device.create_stream(), device.allocate(4)
        value = device.pinned(4, np.uint8)
        device.fill(pointer, 1, 4, stream)
        graph = device.capture(stream, lambda: device.fill(pointer, 2, 4, stream))
        device.copy_to_host(value.array, pointer, stream)
        assert value.array.tolist() == [1] * 4
        graph.launch(stream)
        device.copy_to_host(value.array, pointer, stream)
        assert value.array.tolist() == [2] * 4
        with pytest.raises(BackendError, match="CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
            device.capture(0, lambda: None)
        with pytest.raises(ZeroDivisionError):
            device.capture(stream, lambda: divmod(1, 0))
        assert world.recording is None
    assert world.clean


def test_pycuda_has_no_graphs_and_says_so() -> None:
    with Device(PyCuda(*pycuda_modules(World()))) as device:
        assert not device.has_graphs
        with pytest.raises(BackendError, match="pycuda has no CUDA graphs"):
            device.capture(device.create_stream(), lambda: None)


@pytest.mark.parametrize("name", ["cuda-python", "pycuda"])
def test_a_gpu_that_is_not_there_is_named(name: str) -> None:
    world = World()
    driver: Driver = CudaPython(bindings(world)) if name == "cuda-python" else PyCuda(*pycuda_modules(world))
    with pytest.raises(BackendError, match=f"GPU 3 cannot be used through {name} .*nvidia-smi"):
        Device(driver, 3)
    assert world.clean


# --- without a driver, without a package ----------------------------------------------------------


def driver_is_there() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(driver_is_there(), reason="this machine has an NVIDIA driver")
@pytest.mark.parametrize("name", ["auto", "cuda-python", "pycuda"])
def test_without_a_driver_there_is_one_clear_error(name: str) -> None:
    with pytest.raises(BackendError) as raised:
        open_device(name)
    text = str(raised.value)
    assert "\n" not in text
    assert "no usable NVIDIA driver" in text or "is not installed" in text


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(BackendError, match=r"cuda-python is not installed .*pip install.*; pycuda is not installed"):
        open_device()
    with pytest.raises(InputError, match="unknown implementation 'cupy'"):
        open_device("cupy")


def test_the_bindings_have_every_name_that_is_used() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    source = Path(cuda_python.__file__).read_text("utf-8")
    functions = set(re.findall(r'_call\(\s*"(cu\w+)"', source))
    enums = set(re.findall(r"driver\.(CU\w+)\.(CU\w+)", source))
    attributes = set(re.findall(r"kinds\.(CU_\w+)", source))
    assert len(functions) > 25 and len(enums) >= 3 and len(attributes) == 3
    for function in functions:
        assert callable(getattr(driver, function)), function
    for enum, member in enums:
        assert hasattr(getattr(driver, enum), member), f"{enum}.{member}"
    for attribute in attributes:
        assert hasattr(driver.CUdevice_attribute, attribute), attribute
    # The stand-in has the same names, so a call that it takes exists.
    assert functions <= set(vars(bindings(World())))


# --- arrays and streams of others -----------------------------------------------------------------


def on_gpu(**interface: Any) -> Any:
    return SimpleNamespace(__cuda_array_interface__={"version": 3, **interface})


def test_arrays_come_in_through_the_cuda_array_interface() -> None:
    owner = on_gpu(data=(0x7000, False), shape=(2, 3, 4), typestr="|u1", stream=1)
    array = device_array(owner)
    assert (array.pointer, array.shape, array.dtype, array.strides) == (0x7000, (2, 3, 4), np.uint8, (12, 4, 1))
    assert array.contiguous and array.producer == 1 and array.owner is owner
    strided = device_array(on_gpu(data=(0x7000, True), shape=(2, 3), typestr="<f4", strides=(64, 4)))
    assert strided.strides == (64, 4) and not strided.contiguous and strided.producer is None
    assert device_array(on_gpu(data=(None, False), shape=(0,), typestr="<f4")).pointer == 0


@pytest.mark.parametrize(
    "interface",
    [
        {"shape": (1,), "typestr": "<f4"},
        {"data": (1, False), "shape": (1,), "typestr": "quux"},
        {"data": (1, False), "shape": (2, 2), "typestr": "<f4", "strides": (4,)},
        {"data": (1, False), "shape": (-2,), "typestr": "<f4"},
    ],
)
def test_a_broken_interface_is_refused(interface: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="SimpleNamespace"):
        device_array(on_gpu(**interface))


@given(
    shape=st.lists(st.integers(1, 4), max_size=3),
    dtype=st.sampled_from(["u1", "i4", "f2", "f4", "f8", "i8", "b1"]),
    turned=st.booleans(),
)
def test_dlpack_gives_pointer_shape_and_strides(shape: list[int], dtype: str, turned: bool) -> None:
    original = np.zeros(shape, dtype)
    array = original.T if turned else original
    seen = from_dlpack_capsule(array.__dlpack__())
    assert (seen.pointer, seen.shape, seen.dtype, seen.strides) == (
        *(array.ctypes.data, array.shape, array.dtype),
        array.strides,
    )


def test_dlpack_memory_lives_as_long_as_it_is_used() -> None:
    array = np.arange(1000, dtype=np.int32)
    count = sys.getrefcount(array)
    seen = from_dlpack_capsule(array.__dlpack__())
    assert sys.getrefcount(array) > count
    assert ctypes.c_int32.from_address(seen.pointer + 4 * 999).value == 999
    del seen
    gc.collect()
    assert sys.getrefcount(array) == count


class OnGpu:
    """What a producer with DLPack on a GPU looks like."""

    def __init__(self, kind: int) -> None:
        self.kind, self.stream = kind, None
        self.array = np.zeros((2, 2), np.float32)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 0

    def __dlpack__(self, *, stream: Any = None) -> object:
        self.stream = stream
        return self.array.__dlpack__()


def test_dlpack_producers_are_told_the_stream() -> None:
    producer = OnGpu(2)
    assert device_array(producer, stream=0x55).pointer == producer.array.ctypes.data
    assert producer.stream == 0x55
    device_array(producer)
    assert producer.stream == 1  # the default stream
    with pytest.raises(InputError, match="OnGpu is not in memory of a GPU"):
        device_array(OnGpu(1))


def test_the_protocol_that_orders_the_work_is_taken() -> None:
    class Both(OnGpu):
        def __init__(self, **more: Any) -> None:
            super().__init__(2)
            self.more = more

        @property
        def __cuda_array_interface__(self) -> dict[str, Any]:
            return {"data": (0x7000, False), "shape": (2, 2), "typestr": "<f4", "version": 3, **self.more}

    silent = Both()  # as PyTorch: the interface says nothing of streams
    assert device_array(silent, stream=0x55).pointer == silent.array.ctypes.data
    assert silent.stream == 0x55
    telling = Both(stream=7)  # as CuPy
    assert (device_array(telling).pointer, device_array(telling).producer, telling.stream) == (0x7000, 7, None)


def test_what_is_not_on_a_gpu_is_refused() -> None:
    with pytest.raises(InputError, match="ndarray is not in memory of a GPU"):
        device_array(np.zeros(3))
    with pytest.raises(InputError, match="got list"):
        device_array([1, 2])
    with pytest.raises(InputError, match="no DLPack capsule"):
        from_dlpack_capsule(object())
    torch = pytest.importorskip("torch")
    with pytest.raises(InputError, match="Tensor is not in memory of a GPU"):
        device_array(torch.zeros(3))


def test_streams_of_other_packages_are_taken() -> None:
    assert stream_handle(0) == 0
    assert stream_handle(np.uint64(77)) == 77
    assert stream_handle(SimpleNamespace(cuda_stream=5)) == 5  # PyTorch
    assert stream_handle(SimpleNamespace(ptr=6)) == 6  # CuPy
    assert stream_handle(SimpleNamespace(handle=7)) == 7  # pycuda
    assert stream_handle(SimpleNamespace(__cuda_stream__=lambda: (0, 8))) == 8  # cuda-core
    for wrong in (None, "stream", -1, True):
        with pytest.raises(InputError, match="a stream is an integer handle"):
            stream_handle(wrong)
