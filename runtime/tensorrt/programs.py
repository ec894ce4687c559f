"""The engines of a model on one GPU: contexts, buffers, and CUDA graphs.

All memory is allocated once, for the largest shapes of the engines' profiles. An output of one engine and the same
input of the next share a buffer, so nothing is copied. All contexts share one block of scratch memory, so the engines
must run one after the other on one stream. The caller ensures this, and makes a CUDA context current.
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tatok_edge.errors import BackendError
from tatok_edge.runtime.cuda.device import Device, Graph
from tatok_edge.runtime.tensorrt.api import ICudaEngine, IExecutionContext, Runtime
from tatok_edge.runtime.tensorrt.choice import EngineSet, choose_profile
from tatok_edge.runtime.tensorrt.flavour import Flavour, Messages, make_logger, make_runtime
from tatok_edge.runtime.tensorrt.manifest import EngineManifest, build_command

Shape = tuple[int, ...]
Key = tuple[Shape, ...]
"""Shapes of all inputs of a graph, in their order."""

PADDED = "patch_encoder"
"""The graph with independent rows: their number is padded to the smallest fitting profile."""
RECORD_AT = 16
"""Number of the run of a shape that is recorded. Recording takes as long as several runs, and streams have many shapes
that occur a few times only."""
MAX_RECORDED = 64
"""Largest number of CUDA graphs; the least recently used one is dropped first."""
_MAX_KNOWN = 1024  # shapes whose profile and uses are remembered
_SHARED = {
    ("cell_context", "codes"): ("global_encoder", "codes"),
    ("context", "coarse"): ("cell_context", "coarse"),
    ("decoder", "context"): ("context", "context"),
    ("decoder", "mean"): ("cell_context", "mean"),
}
"""Inputs that share the buffer of another graph's output."""


@dataclass(slots=True)
class _Bound:
    """An execution context of one profile, and its current shapes."""

    context: IExecutionContext
    key: Key | None = None
    outputs: dict[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Recorded:
    """A CUDA graph, and the context whose memory it uses."""

    graph: Graph
    bound: _Bound


@dataclass(slots=True)
class Program:
    """One engine."""

    name: str
    manifest: EngineManifest
    engine: ICudaEngine
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: Mapping[str, np.dtype[Any]]
    bound: list[_Bound] = field(default_factory=list)
    """Contexts by profile."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Largest bytes of each tensor."""
    pointers: dict[str, int] = field(default_factory=dict)
    """Addresses of the tensors."""
    profiles: dict[Key, int] = field(default_factory=dict)
    """Profiles of earlier shapes."""

    def key(self, shapes: Mapping[str, Sequence[int]]) -> Key:
        """Shapes of the inputs, in their order.

        Raises:
            InputError: an input is unknown or missing.
        """
        if set(shapes) != set(self.inputs):
            choose_profile(self.manifest, shapes)  # says which
        return tuple(tuple(shapes[name]) for name in self.inputs)

    def profile(self, key: Key) -> int:
        """The smallest profile that takes these shapes.

        Raises:
            InputError: no profile takes them. The message names the tensor, its shape, the allowed shapes and the
                command that widens them.
        """
        index = self.profiles.get(key)
        if index is None:
            index = choose_profile(self.manifest, dict(zip(self.inputs, key, strict=True)))
            if len(self.profiles) >= _MAX_KNOWN:
                self.profiles.clear()
            self.profiles[key] = index
        return index


class Programs:
    """All engines of a model; :meth:`load` opens them, :meth:`drop` frees the objects of TensorRT.

    Args:
        flavour: The TensorRT that runs them.
        device: The GPU; closing it frees the memory of the engines.
        stream: The stream of all work.
    """

    def __init__(self, flavour: Flavour, device: Device, stream: int) -> None:
        self.by_name: dict[str, Program] = {}
        """Engines by graph."""
        self.graphs_off: str | None = None
        """Why no more CUDA graphs are recorded; None while they are."""
        self._flavour, self._device, self._stream = flavour, device, stream
        self._messages = Messages()
        self._logger = make_logger(flavour, self._messages)
        self._runtime: Runtime | None = None
        self._scratch, self._scratch_size = 0, 0
        self._recorded: OrderedDict[tuple[str, Key], _Recorded] = OrderedDict()
        self._uses: dict[tuple[str, Key], int] = {}
        if not device.has_graphs:
            self.graphs_off = f"{device.implementation} has no CUDA graphs"
        elif stream in (0, 1):  # CU_STREAM_LEGACY is 1
            self.graphs_off = "the default stream cannot be recorded"
        else:
            self.graphs_off = flavour.facts.graphs_off

    @property
    def recorded(self) -> int:
        """Number of CUDA graphs."""
        return len(self._recorded)

    # --- opening ----------------------------------------------------------------------------------

    def load(self, found: EngineSet) -> None:
        """Open all engines, allocate their memory, and run each of their profiles once.

        Raises:
            BackendError: an engine is damaged, refused or not the one of its manifest, or too little memory.
        """
        self._runtime = make_runtime(self._flavour, self._logger, self._messages)
        for graph in found.manifests:
            self.by_name[graph] = self._deserialise(graph, found)
        self._scratch_size = max(program.engine.device_memory_size_v2 for program in self.by_name.values())
        self._scratch = self._device.allocate(self._scratch_size)
        for program in self.by_name.values():
            for index in range(len(program.manifest.profiles)):
                program.bound.append(self._context(program, index))
                self._measure(program, index)
        self._allocate()
        for program in self.by_name.values():
            for bound in program.bound:
                self._place(program, bound.context)
            self._warm(program)
        self._device.synchronize(self._stream)

    def _deserialise(self, graph: str, found: EngineSet) -> Program:
        assert self._runtime is not None
        manifest = found.manifests[graph]
        self._messages.problems.clear()
        engine = self._runtime.deserialize_cuda_engine(found.load(graph))
        if engine is None:
            raise self._failed(f"cannot load the engine {found.folder / manifest.file}", manifest)
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = {name: engine.get_tensor_mode(name) == self._flavour.api.TensorIOMode.INPUT for name in names}
        dtypes = {name: self._dtype(engine.get_tensor_dtype(name)) for name in names}
        inputs = tuple(manifest.profiles[0])
        same = set(inputs) == {name for name in names if is_input[name]} and all(
            [tuple(map(int, shape)) for shape in engine.get_tensor_profile_shape(name, index)]
            == [profile[name].min, profile[name].opt, profile[name].max]
            for index, profile in enumerate(manifest.profiles[: engine.num_optimization_profiles])
            for name in inputs
        )
        if not same or engine.num_optimization_profiles != len(manifest.profiles) or None in dtypes.values():
            raise BackendError(
                f"the engine {found.folder / manifest.file} has other tensors or profiles than its manifest says: run "
                f"'{build_command(manifest.model, manifest)}'"
            )
        outputs = tuple(name for name in names if not is_input[name])
        return Program(
            graph, manifest, engine, inputs, outputs, {name: kind for name, kind in dtypes.items() if kind is not None}
        )

    def _dtype(self, kind: object) -> np.dtype[Any] | None:
        """The dtype of numpy for a type of the graphs; None for any other type."""
        types = self._flavour.api.DataType
        return np.dtype(np.float32) if kind == types.FLOAT else np.dtype(np.int32) if kind == types.INT32 else None

    def _context(self, program: Program, profile: int) -> _Bound:
        """A context for a profile, with its own persistent memory. All contexts share the scratch memory."""
        self._messages.problems.clear()
        strategy = self._flavour.api.ExecutionContextAllocationStrategy.USER_MANAGED
        context = program.engine.create_execution_context(strategy)
        if context is None:
            raise self._failed(f"gives no context for {program.name}", program.manifest)
        if not context.set_optimization_profile_async(profile, self._stream):
            raise self._failed(f"cannot set profile {profile} of {program.name}", program.manifest)
        self._device.synchronize(self._stream)
        context.set_device_memory(self._scratch, self._scratch_size)
        return _Bound(context)

    def _measure(self, program: Program, profile: int) -> None:
        """Add up the memory of the tensors at the largest shapes of a profile."""
        bound, ranges = program.bound[profile], program.manifest.profiles[profile]
        self._set_shapes(program, bound, tuple(ranges[name].max for name in program.inputs))
        shapes = {name: ranges[name].max for name in program.inputs} | bound.outputs
        for name, shape in shapes.items():
            nbytes = math.prod(shape) * program.dtypes[name].itemsize
            program.sizes[name] = max(program.sizes.get(name, 0), nbytes)

    def _allocate(self) -> None:
        sizes: dict[tuple[str, str], int] = {}
        for program in self.by_name.values():
            for name, nbytes in program.sizes.items():
                owner = _SHARED.get((program.name, name), (program.name, name))
                sizes[owner] = max(sizes.get(owner, 0), nbytes)
        pointers = {}
        for owner, nbytes in sizes.items():
            pointers[owner] = self._device.allocate(nbytes)
            # Padded rows are computed as well: they must hold finite numbers from the start.
            self._device.fill(pointers[owner], 0, nbytes, self._stream)
        for program in self.by_name.values():
            for name in program.sizes:
                program.pointers[name] = pointers[_SHARED.get((program.name, name), (program.name, name))]

    def _place(self, program: Program, context: IExecutionContext) -> None:
        for name, pointer in program.pointers.items():
            if not context.set_tensor_address(name, pointer):
                raise self._failed(f"refuses the memory of {name} of {program.name}", program.manifest)

    def _warm(self, program: Program) -> None:
        """Run every context once: its first run is slow."""
        for bound, ranges in zip(program.bound, program.manifest.profiles, strict=True):
            padded = program.name == PADDED
            key = tuple(ranges[name].max if padded else ranges[name].opt for name in program.inputs)
            self._set_shapes(program, bound, key)
            self._enqueue(program, bound)
            if padded:  # its shapes are known, and its contexts never change theirs
                self._record(program, key, bound)

    # --- running ----------------------------------------------------------------------------------

    def execute(self, graph: str, shapes: Mapping[str, Sequence[int]]) -> Mapping[str, Shape]:
        """Put one run of an engine on the stream; its inputs are in their buffers.

        Args:
            graph: Name of the graph.
            shapes: Shapes of the inputs.

        Returns:
            Shapes of the outputs.

        Raises:
            InputError: no profile takes these shapes.
            BackendError: TensorRT or the driver fails.
        """
        program = self.by_name[graph]
        key = program.key(shapes)
        known = self._recorded.get((graph, key))
        if known is not None:
            self._recorded.move_to_end((graph, key))
            known.graph.launch(self._stream)
            return known.bound.outputs
        index = program.profile(key)
        bound = program.bound[index]
        if bound.key != key:
            self._set_shapes(program, bound, key)
        self._enqueue(program, bound)
        if self.graphs_off is None and self._comes_again((graph, key)):
            self._record_apart(program, key, index)
        return bound.outputs

    def _comes_again(self, shape: tuple[str, Key]) -> bool:
        """Whether a shape has come often enough to be recorded."""
        if len(self._uses) >= _MAX_KNOWN:
            self._uses.clear()
        self._uses[shape] = self._uses.get(shape, 0) + 1
        return self._uses[shape] == RECORD_AT

    def _set_shapes(self, program: Program, bound: _Bound, key: Key) -> None:
        self._messages.problems.clear()
        bound.key = None
        for name, shape in zip(program.inputs, key, strict=True):
            if not bound.context.set_input_shape(name, shape):
                raise self._failed(f"refuses {name} {shape} for {program.name}", program.manifest)
        unknown = bound.context.infer_shapes()
        outputs = {name: tuple(map(int, bound.context.get_tensor_shape(name))) for name in program.outputs}
        if unknown or any(size < 0 for shape in outputs.values() for size in shape):
            raise self._failed(f"cannot tell the shapes of {program.name} for {key}", program.manifest)
        bound.key, bound.outputs = key, outputs

    def _enqueue(self, program: Program, bound: _Bound) -> None:
        self._messages.problems.clear()
        if not bound.context.execute_async_v3(self._stream):
            bound.key = None
            raise self._failed(f"cannot run {program.name}", program.manifest)

    def _record_apart(self, program: Program, key: Key, profile: int) -> None:
        """Record a shape in a context of its own: a CUDA graph is only valid for the shapes of its context."""
        try:
            bound = self._context(program, profile)
            self._place(program, bound.context)
            self._set_shapes(program, bound, key)
            self._enqueue(program, bound)  # once, so that the work after a change of shapes is not recorded
        except BackendError as error:
            self.graphs_off = f"no further context: {error}"
            return
        self._record(program, key, bound)

    def _record(self, program: Program, key: Key, bound: _Bound) -> None:
        if self.graphs_off is not None:
            return
        try:
            graph = self._device.capture(self._stream, lambda: self._enqueue(program, bound))
        except BackendError as error:
            self.graphs_off = f"{program.name} cannot be recorded: {error}"
            return
        self._recorded[program.name, key] = _Recorded(graph, bound)
        while len(self._recorded) > MAX_RECORDED:
            self._device.synchronize(self._stream)
            shape, oldest = self._recorded.popitem(last=False)
            oldest.graph.destroy()
            self._uses.pop(shape, None)

    def _failed(self, what: str, manifest: EngineManifest) -> BackendError:
        why = self._messages.first("it does not say why")
        again = build_command(manifest.model, manifest)
        hint = f"run '{again}'"
        if "memory" in why.lower():
            hint = f"close what else uses the GPU, or build for smaller frames ({again} --profiles FILE)"
        return BackendError(f"{self._flavour.title} {what}: {why}; {hint}")

    def drop(self) -> None:
        """Free graphs, contexts and engines, in this order; the buffers are the device's to free."""
        for recorded in self._recorded.values():
            with contextlib.suppress(BackendError):  # after a GPU error, free the other objects, too
                recorded.graph.destroy()
        self._recorded.clear()
        for program in self.by_name.values():
            program.bound.clear()
        self.by_name.clear()
        self._runtime = None
