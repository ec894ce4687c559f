"""Arrays and streams of other packages: PyTorch, CuPy, pycuda, Numba, JAX.

An array in device memory comes in through ``__cuda_array_interface__`` or DLPack, without a copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tatok_edge.errors import InputError


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """An array in device memory that belongs to another package."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    strides: tuple[int, ...]
    """In bytes."""
    producer: int | None
    """Stream that writes its values: wait for it with ``Device.wait``. None where no wait is needed."""
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
        InputError: another type of object.
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
    """An array with the DLPack protocol."""

    def __dlpack__(self, *, stream: Any = None) -> Any: ...

    def __dlpack_device__(self) -> Any: ...


OnDevice = CudaArray | DlpackArray
"""An array that :func:`device_array` accepts."""


def is_on_device(value: object) -> bool:
    """Whether this is an array of another package that :func:`device_array` may accept, and not numpy's."""
    if isinstance(value, np.ndarray):
        return False
    return any(hasattr(type(value), name) for name in ("__cuda_array_interface__", "__dlpack_device__"))


def device_array(value: Any, *, stream: int = 0) -> DeviceArray:
    """An array in device memory through ``__cuda_array_interface__`` or DLPack, without a copy.

    Args:
        value: An array of PyTorch, CuPy, pycuda, Numba, JAX, ...
        stream: Stream that will use it; a DLPack producer makes that stream wait for the values.

    Raises:
        InputError: neither protocol, memory that is not on a GPU, or a dtype that numpy does not have.
    """
    # For arrays on the CPU, PyTorch's __cuda_array_interface__ raises an error of PyTorch.
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
    """The array that a DLPack capsule describes, on any device.

    The capsule is kept, not consumed: the memory lives as long as it does.

    Raises:
        InputError: not a DLPack capsule, a capsule that was used before, or a dtype that numpy does not have.
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
