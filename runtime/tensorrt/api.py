"""The part of the Python API of TensorRT and TensorRT-RTX that TaTok Edge uses, as types.

mypy refuses every other use of TensorRT. A test looks up each name and its parameters in the bindings of every
supported version. Each class has the name of its counterpart; :class:`Api` is the module itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

Shape = Sequence[int]

RTX_ONLY = {("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability")}
"""Names that TensorRT does not have."""
TRT_ONLY = {
    ("IBuilderConfig", "create_timing_cache"),
    ("IBuilderConfig", "set_timing_cache"),
    ("IBuilderConfig", "get_timing_cache"),
}
"""Names that TensorRT-RTX does not have, or whose calls do nothing there."""


class IHostMemory(Protocol):
    """Bytes that TensorRT owns; ``bytes()`` copies them."""

    @property
    def nbytes(self) -> int: ...

    def __buffer__(self, flags: int, /) -> memoryview: ...


class ITimingCache(Protocol):
    """Measured times of tactics, which make later builds faster."""

    def serialize(self) -> IHostMemory: ...


class IOptimizationProfile(Protocol):
    """Range of shapes of an engine."""

    def set_shape(self, input: str, min: Shape, opt: Shape, max: Shape) -> None: ...


class ITensor(Protocol):
    """A tensor of a network."""

    name: str
    shape: Any


class INetworkDefinition(Protocol):
    """A parsed network."""

    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> ITensor: ...


class IBuilderConfig(Protocol):
    """Options of a build."""

    progress_monitor: Any
    num_compute_capabilities: int

    def set_memory_pool_limit(self, pool: int, pool_size: int) -> None: ...

    def clear_flag(self, flag: int) -> None: ...

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...

    def set_compute_capability(self, compute_capability: object, index: int) -> bool: ...

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache: ...

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...

    def get_timing_cache(self) -> ITimingCache: ...


class Builder(Protocol):
    """Builds engines."""

    def create_network(self, flags: int) -> INetworkDefinition: ...

    def create_builder_config(self) -> IBuilderConfig: ...

    def create_optimization_profile(self) -> IOptimizationProfile: ...

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None: ...


class ParserError(Protocol):
    """Why a network was refused."""

    def desc(self) -> str: ...

    def node_name(self) -> str: ...

    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Reads ONNX into a network."""

    num_errors: int

    def parse(self, model: bytes) -> bool: ...

    def get_error(self, index: int) -> ParserError: ...

    def supports_operator(self, op_name: str) -> bool: ...


class IPluginRegistry(Protocol):
    """The registered plugins."""

    def load_library(self, plugin_path: str) -> object: ...


class IExecutionContext(Protocol):
    """Runs one profile of an engine; not for two threads at once."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...

    def set_input_shape(self, name: str, shape: Shape) -> bool: ...

    def infer_shapes(self) -> list[str]: ...

    def get_tensor_shape(self, name: str) -> Shape: ...

    def set_tensor_address(self, name: str, memory: int) -> bool: ...

    def set_device_memory(self, memory: int, size: int) -> None: ...

    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ICudaEngine(Protocol):
    """A deserialised engine."""

    num_io_tensors: int
    num_optimization_profiles: int
    device_memory_size_v2: int

    def get_tensor_name(self, index: int) -> str: ...

    def get_tensor_mode(self, name: str) -> object: ...

    def get_tensor_dtype(self, name: str) -> object: ...

    def get_tensor_shape(self, name: str) -> Shape: ...

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Shape]: ...

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int: ...

    def create_execution_context(self, strategy: object) -> IExecutionContext | None: ...


class Runtime(Protocol):
    """Loads engines."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class NetworkDefinitionCreationFlag(Protocol):
    """Kinds of networks; the number of a flag differs between versions."""

    STRONGLY_TYPED: int


class BuilderFlag(Protocol):
    """Switches of a build."""

    TF32: int


class MemoryPoolType(Protocol):
    """Kinds of memory that a build may use."""

    WORKSPACE: int


class ExecutionContextAllocationStrategy(Protocol):
    """Who owns the scratch memory of a context."""

    STATIC: object
    USER_MANAGED: object


class TensorIOMode(Protocol):
    """Directions of tensors."""

    INPUT: object
    OUTPUT: object


class DataType(Protocol):
    """Types of values."""

    FLOAT: object
    INT32: object


_Builder: TypeAlias = Builder
_OnnxParser: TypeAlias = OnnxParser
_Runtime: TypeAlias = Runtime
_IPluginRegistry: TypeAlias = IPluginRegistry
_NetworkDefinitionCreationFlag: TypeAlias = NetworkDefinitionCreationFlag
_BuilderFlag: TypeAlias = BuilderFlag
_MemoryPoolType: TypeAlias = MemoryPoolType
_ExecutionContextAllocationStrategy: TypeAlias = ExecutionContextAllocationStrategy
_TensorIOMode: TypeAlias = TensorIOMode
_DataType: TypeAlias = DataType


class Api(Protocol):
    """The module ``tensorrt`` or ``tensorrt_rtx``."""

    __version__: str
    ILogger: Any
    """To be subclassed with ``log(severity, message)``."""
    IProgressMonitor: Any
    """To be subclassed with ``phase_start``, ``step_complete`` and ``phase_finish``."""
    NetworkDefinitionCreationFlag: type[_NetworkDefinitionCreationFlag]
    BuilderFlag: type[_BuilderFlag]
    MemoryPoolType: type[_MemoryPoolType]
    ExecutionContextAllocationStrategy: type[_ExecutionContextAllocationStrategy]
    TensorIOMode: type[_TensorIOMode]
    DataType: type[_DataType]

    def Builder(self, logger: object, /) -> _Builder: ...

    def OnnxParser(self, network: INetworkDefinition, logger: object, /) -> _OnnxParser: ...

    def Runtime(self, logger: object, /) -> _Runtime: ...

    def get_plugin_registry(self) -> _IPluginRegistry | None: ...

    def init_libnvinfer_plugins(self, logger: object, namespace: str, /) -> bool: ...
