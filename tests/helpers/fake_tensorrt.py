"""A GPU and a TensorRT on the CPU, for tests of what runs engines.

The GPU is that of ``fake_cuda.py`` made strict: work waits on its stream until somebody synchronizes, so what is read
too early, or overwritten too early, is wrong; memory has guards around it; pointers and sizes are checked. TensorRT has
exactly the names of ``runtime/tensorrt/api.py``, "engines" are the ONNX graphs of the bundle, and ONNX Runtime computes
them on that memory. The CUDA kernels are those of the block emulator, and wait on the stream like everything else.
"""

from __future__ import annotations

import ctypes
import enum
import inspect
import json
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from helpers import engine_files, fake_cuda
from tatok_edge.export.engines.profiles import graph_profiles, parse_profiles
from tatok_edge.model.bundle import GRAPHS, Bundle
from tatok_edge.runtime.cuda import device as device_module
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.cuda_python import CudaPython
from tatok_edge.runtime.cuda.device import Device
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.cuda.pycuda import PyCuda
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.flavour import Flavour, FlavourName

GUARD = 512
VERSION = "10.3.0"
PROFILES = {
    "format_version": 1,
    "tokens": [16, 64, 200],
    "frames": [
        {"batch": [1, 1, 1], "height": [32, 64, 96], "width": [32, 96, 96]},
        {"batch": [1, 1, 2], "height": [32, 96, 128], "width": [32, 160, 160]},
    ],
}


# --- the GPU --------------------------------------------------------------------------------------


class Gpu(fake_cuda.World):
    """A GPU whose streams are lazy. Counts what is allocated, and fails where it is told to."""

    def __init__(self, *, integrated: bool = False, graphs: bool = True) -> None:
        super().__init__()
        self.integrated, self.graphs_work = integrated, graphs
        self.queues: dict[int, list[Callable[[], None]]] = {}
        self.ranges: dict[int, int] = {}
        self.backing: dict[int, Any] = {}
        self.by_pycuda = False
        self.recorded: dict[int, int] = {}
        self.problems: list[str] = []
        """What was done in a wrong order."""
        self.fail_allocation: int | None = None
        self.allocations = self.launches = self.captures = 0
        self.guard = threading.RLock()

    def allocate(self, kept: dict[int, Any], nbytes: int) -> int | None:
        self.allocations += 1
        if self.allocations == self.fail_allocation:
            return None
        memory = (ctypes.c_uint8 * (nbytes + 2 * GUARD))()
        ctypes.memset(memory, 0x5A, len(memory))
        pointer = -(-(ctypes.addressof(memory) + 1) // 256) * 256
        kept[pointer] = (ctypes.c_uint8 * nbytes).from_buffer(memory, pointer - ctypes.addressof(memory))
        self.ranges[pointer], self.backing[pointer] = nbytes, memory
        return pointer

    def check_guard(self, pointer: int) -> None:
        memory = self.backing.pop(pointer)
        data, start = bytes(memory), pointer - ctypes.addressof(memory)
        end = start + self.ranges.pop(pointer)
        assert set(data[:start] + data[end:]) == {0x5A}, "memory was written outside of an allocation"

    def holds(self, pointer: int, nbytes: int) -> bool:
        """Whether memory of the device (or mapped memory of the host) is there."""
        return any(start <= pointer and pointer + nbytes <= start + size for start, size in self.ranges.items())

    def array(self, pointer: int, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """Memory of the device as an array."""
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        assert self.holds(pointer, nbytes), f"{pointer:#x} has no {nbytes} bytes of device memory"
        return np.frombuffer((ctypes.c_uint8 * nbytes).from_address(pointer), dtype).reshape(shape)

    def enqueue(self, stream: int, work: Any) -> None:
        with self.guard:
            assert stream in self.streams, f"unknown stream {stream}"
            if self.recording is not None:
                self.recording.append(work)
            else:
                self.queues.setdefault(stream, []).append(work)

    def run(self, stream: int) -> None:
        with self.guard:
            queue = self.queues.pop(stream, [])
        for work in queue:
            work()

    def driver(self) -> Any:
        """A stand-in for ``cuda.bindings.driver``."""
        made = fake_cuda.bindings(self)

        def free(kept: dict[int, Any], pointer: int) -> tuple[Any]:
            self.needs_context("free")
            del kept[pointer]
            self.check_guard(pointer)
            return (fake_cuda.OK,)

        def synchronize(stream: int) -> tuple[Any]:
            self.needs_context("use")
            assert self.recording is None, "waiting for a stream that is being recorded"
            assert stream in self.streams
            self.run(stream)
            return (fake_cuda.OK,)

        def to_device(target: int, source: int, nbytes: int, stream: int) -> tuple[Any]:
            assert self.holds(target, nbytes)
            return move(target, source, nbytes, stream)

        def to_host(target: int, source: int, nbytes: int, stream: int) -> tuple[Any]:
            assert self.holds(source, nbytes)
            return move(target, source, nbytes, stream)

        def on_device(target: int, source: int, nbytes: int, stream: int) -> tuple[Any]:
            assert self.holds(source, nbytes) and self.holds(target, nbytes)
            return move(target, source, nbytes, stream)

        def begin(stream: int, mode: str) -> tuple[Any]:
            if not self.graphs_work:
                return (fake_cuda.Status("CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"),)
            self.captures += 1
            return begun(stream, mode)

        def launch(graph: int, stream: int) -> tuple[Any]:
            self.needs_context("launch")
            self.launches += 1
            for work in self.graphs[graph]:
                self.enqueue(stream, work)
            return (fake_cuda.OK,)

        def record(event: int, stream: int) -> tuple[Any]:
            self.recorded[event] = stream
            return known(event, stream)

        def wait(stream: int, event: int, flags: int) -> tuple[Any]:
            # What was put on the other stream runs before what comes on this one.
            with self.guard:
                for work in self.queues.pop(self.recorded[event], []):
                    self.enqueue(stream, work)
            return known(stream, event)

        known = made.cuEventRecord
        made.cuEventRecord, made.cuStreamWaitEvent = record, wait
        attribute, move, begun = made.cuDeviceGetAttribute, made.cuMemcpyDtoDAsync, made.cuStreamBeginCapture
        made.cuDeviceGetAttribute = lambda kind, device: (
            (fake_cuda.OK, int(self.integrated)) if kind == "INTEGRATED" else attribute(kind, device)
        )
        made.cuMemFree = lambda pointer: free(self.memory, pointer)
        made.cuMemFreeHost = lambda pointer: free(self.host, pointer)
        made.cuStreamSynchronize, made.cuStreamBeginCapture, made.cuGraphLaunch = synchronize, begin, launch
        made.cuMemcpyHtoDAsync, made.cuMemcpyDtoHAsync, made.cuMemcpyDtoDAsync = to_device, to_host, on_device
        return made

    def open(self, implementation: str = "cuda-python") -> Device:
        """The device."""
        driver = self.driver()
        if implementation == "cuda-python":
            return Device(CudaPython(driver))
        self.by_pycuda = True  # it frees without asking
        module, library = fake_cuda.pycuda_modules(self, driver)
        return Device(PyCuda(module, library))


class LazyKernels:
    """The emulated kernels, which wait on the stream. Their memory must be the GPU's when they run."""

    emulated = False

    def __init__(self, kernels: Kernels, gpu: Gpu) -> None:
        self._kernels, self._gpu = kernels, gpu
        self.path, self.calls = kernels.path, list[str]()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._kernels, name)

        def call(*arguments: Any, stream: int = 0, **options: Any) -> None:
            self._gpu.needs_context(name)
            self.calls.append(name)
            self._gpu.enqueue(stream, lambda: method(*arguments, **options))

        return call


# --- TensorRT -------------------------------------------------------------------------------------


class Severity(enum.Enum):
    ERROR = 1
    WARNING = 2


class ILogger:
    Severity = Severity


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class DataType(enum.Enum):
    FLOAT = 0
    INT32 = 3
    INT64 = 8


def plan_of(graph: str, model: bytes, profiles: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of an "engine"."""
    shapes = [{name: [r.min, r.opt, r.max] for name, r in profile.items()} for profile in profiles]
    return json.dumps({"graph": graph, "profiles": shapes}).encode() + b"\n" + model


class TensorRT:
    """The module."""

    __version__ = VERSION
    ILogger = ILogger
    TensorIOMode = TensorIOMode
    DataType = DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.fail: str | None = None
        """What goes wrong: the name of a method; and what TensorRT says of it."""
        self.says = "it went wrong"
        self.contexts = 0
        """How many were made."""
        self.executed: list[tuple[str, int, tuple[Any, ...]]] = []
        """Graph, profile and input shapes of what ran, in order."""
        self.change_outputs: Callable[[str, dict[str, NDArray[Any]]], None] = lambda graph, outputs: None

    def Runtime(self, logger: Any) -> Runtime:
        return Runtime(self, logger)

    def fails(self, name: str, logger: Any) -> bool:
        if self.fail == name:
            logger.log(Severity.ERROR, self.says)
        return self.fail == name


class Runtime:
    def __init__(self, module: TensorRT, logger: Any) -> None:
        self._module, self._logger = module, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._module.gpu.needs_context("deserialize")
        if self._module.fails("deserialize_cuda_engine", self._logger):
            return None
        return ICudaEngine(self._module, self._logger, serialized_engine)


class ICudaEngine:
    def __init__(self, module: TensorRT, logger: Any, plan: bytes) -> None:
        self._module, self._logger = module, logger
        header, model = plan.split(b"\n", 1)
        self._header = json.loads(header)
        self._graph = str(self._header["graph"])
        graph = onnx.load_from_string(model).graph
        self._tensors = {value.name: value for value in (*graph.input, *graph.output)}
        self._inputs = [value.name for value in graph.input]
        self._session = OnnxSession({self._graph: model}, threads=1)
        self.num_io_tensors = len(self._tensors)
        self.num_optimization_profiles = len(self._header["profiles"])
        self.device_memory_size_v2 = 4096 + len(self._graph)

    def get_tensor_name(self, index: int) -> str:
        return [*self._tensors][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        kind = self._tensors[name].type.tensor_type.elem_type
        return {onnx.TensorProto.FLOAT: DataType.FLOAT, onnx.TensorProto.INT32: DataType.INT32}[kind]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self._header["profiles"][profile_index][name]

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> IExecutionContext | None:
        self._module.gpu.needs_context("create context")
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        if self._module.fails("create_execution_context", self._logger):
            return None
        return IExecutionContext(self, self._module, self._logger)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, module: TensorRT, logger: Any) -> None:
        self._engine, self._module, self._logger = engine, module, logger
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = 0
        self._ran: dict[str, tuple[int, ...]] = {}
        module.contexts += 1

    def __del__(self) -> None:
        gpu = self._module.gpu
        if not gpu.current.get(threading.get_ident()):
            gpu.problems.append("a context ended without a current context of the GPU")
        if self._memory and self._memory not in gpu.ranges:
            gpu.problems.append("a context ended after its memory")

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._module.gpu.needs_context("set profile")
        assert stream_handle in self._module.gpu.streams
        self._profile, self._shapes = profile_index, {}
        return not self._module.fails("set_optimization_profile_async", self._logger)

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        assert self._profile is not None and name in self._engine._inputs
        if self._module.fails("set_input_shape", self._logger):
            return False
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            self._logger.log(Severity.ERROR, f"{name} {shape} out of range")
            return False
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self._engine._inputs if name not in self._shapes]

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._shapes:
            return list(self._shapes[name])
        known: dict[str, int] = {}
        for given in self._engine._inputs:
            dims = self._engine._tensors[given].type.tensor_type.shape.dim
            known |= {dim.dim_param: size for dim, size in zip(dims, self._shapes[given], strict=True) if dim.dim_param}
        if "cell_rows" in known:
            known |= {"patch_rows": 4 * known["cell_rows"], "patch_columns": 4 * known["cell_columns"]}
        return [dim.dim_value or known[dim.dim_param] for dim in self._engine._tensors[name].type.tensor_type.shape.dim]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert name in self._engine._tensors and memory % 256 == 0
        self._addresses[name] = memory
        return not self._module.fails("set_tensor_address", self._logger)

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= self._engine.device_memory_size_v2 and self._module.gpu.holds(memory, size)
        self._memory = memory

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu, engine, profile = self._module.gpu, self._engine, self._profile
        gpu.needs_context("execute")
        assert profile is not None and self._memory and not self.infer_shapes()
        assert set(self._addresses) == set(engine._tensors)
        if self._module.fails("execute_async_v3", self._logger):
            return False
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        outputs = {name: self.get_tensor_shape(name) for name in engine._tensors if name not in shapes}
        # A graph works in the memory of its context, so the context must live and have the same shapes.
        recorded = gpu.recording is not None
        assert not recorded or self._ran == shapes, "a change of shapes must have run once before it is recorded"
        self._ran = shapes

        def work() -> None:
            if recorded:
                assert self._shapes == shapes, "a graph whose context has other shapes by now"
            given = {name: gpu.array(addresses[name], shape, dtype(name)).copy() for name, shape in shapes.items()}
            made = dict(engine._session.run(engine._graph, given))
            self._module.change_outputs(engine._graph, made)
            for name, shape in outputs.items():
                assert made[name].shape == tuple(shape)
                gpu.array(addresses[name], shape, dtype(name))[...] = made[name]
            self._module.executed.append((engine._graph, profile, tuple(shapes.values())))

        def dtype(name: str) -> Any:
            return {DataType.FLOAT: np.float32, DataType.INT32: np.int32}[engine.get_tensor_dtype(name)]

        gpu.enqueue(stream_handle, work)
        return True


# --- all of it ------------------------------------------------------------------------------------


def store_engines(
    folder: Path, bundle: Bundle, profiles: Mapping[str, Any] = PROFILES, **changes: Any
) -> dict[str, Path]:
    """Puts engines of a bundle into a folder, as ``tatok build`` does; ``changes`` go into every manifest."""
    chosen = parse_profiles(profiles, "profiles")
    shapes = graph_profiles(chosen, bundle)
    plans = {graph: plan_of(graph, bundle.read(graph), shapes[graph]) for graph in GRAPHS}
    changes = {"precision": "fp32", "profile_set": chosen.tag} | changes
    made = engine_files.store_set(folder, bundle, shapes, plans=plans, **changes)
    return {graph: folder / manifest.file for graph, manifest in made.manifests.items()}


def install(
    monkeypatch: Any,
    gpu: Gpu,
    kernels: Kernels | None,
    *,
    flavour: FlavourName = "trt",
    implementation: str = "cuda-python",
) -> SimpleNamespace:
    """Makes ``open_session`` find this GPU, this TensorRT and these kernels."""
    api = TensorRT(gpu)
    lazy = None if kernels is None else LazyKernels(kernels, gpu)

    def find(wanted: str = "auto") -> Flavour:
        return Flavour(flavour, VERSION, Path("."), api)  # type: ignore[arg-type]

    def load(path: Path | None = None) -> Any:
        if lazy is None:
            raise cuda_kernels.BackendError(f"no CUDA kernels; {cuda_kernels.HOW_TO_BUILD}")
        return lazy

    from tatok_edge.runtime import open as opening

    monkeypatch.setattr(opening, "_has_driver", lambda: True)
    monkeypatch.setattr(tensorrt_flavour, "gpu_architecture", lambda device=0: "8.7")
    monkeypatch.setattr(tensorrt_flavour, "find_flavour", find)
    monkeypatch.setattr(device_module, "open_device", lambda *_: gpu.open(implementation))
    monkeypatch.setattr(cuda_kernels, "load", load)
    return SimpleNamespace(gpu=gpu, api=api, kernels=lazy)


def public(kind: type) -> set[str]:
    """Names that a class of this file gives to others."""
    made = set(vars(kind)) | set(re.findall(r"self\.([a-z]\w*) = ", inspect.getsource(kind)))
    return {name for name in made if not name.startswith("_")}


Open = Callable[..., Any]
"""Opens a tokenizer on a stand-in of a GPU."""
