"""The session that runs TensorRT and TensorRT-RTX engines, and how it is opened.

The session never builds engines: they come from ``tatok build``. A shape outside their profiles is an error that names
the command to widen them. Only the independent rows of the patch encoder are split over several runs, where a call has
more rows than the largest profile.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import traceback
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.closing import Closing
from tatok_edge.errors import BackendError, InputError
from tatok_edge.runtime.cuda import device
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.arrays import DeviceArray, stream_handle
from tatok_edge.runtime.cuda.device import Device
from tatok_edge.runtime.cuda.kernels import Frames, Kernels
from tatok_edge.runtime.session import (
    Backend,
    DecodeRequest,
    EncodedFrame,
    EncodeRequest,
    FrameSession,
    GraphName,
    Session,
    Stage,
    Tensors,
)
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin
from tatok_edge.runtime.tensorrt.choice import EngineSet, EngineTarget, find_engines, smallest_fitting
from tatok_edge.runtime.tensorrt.flavour import FLAVOURS, Flavour, FlavourName
from tatok_edge.runtime.tensorrt.frames import DeviceFrames
from tatok_edge.runtime.tensorrt.manifest import EngineMismatch, build_command, read_manifest
from tatok_edge.runtime.tensorrt.programs import PADDED, Program, Programs
from tatok_edge.runtime.tensorrt.store import cache_folder

DEVICE_VARIABLE = "TATOK_DEVICE"
"""Environment variable that names the package for memory and streams: ``cuda-python`` or ``pycuda``."""
_STAGED_ROW_BYTES = 32 << 20  # of feature rows that are uploaded at once
_ALIGNMENT = 256
_PROBE_BYTES = 32 * 32 * 3
_NO_DRIVER = "there is no usable NVIDIA driver or GPU on this machine (see nvidia-smi)"


class TensorRTSession(Session, Closing):
    """Runs a model's engines on one GPU. With CUDA kernels it also encodes and decodes frames: see :attr:`frames`.

    Opening allocates all memory and runs every profile once. There is one stream, so calls from several threads wait
    for one another. It is a context manager; without :meth:`close` everything is freed with the object, or at exit.

    Args:
        flavour: The TensorRT that runs them.
        found: The engines.
        gpu: The GPU; the session closes it.
        kernels: The CUDA kernels; without them frames are prepared on the CPU.
        stream: The stream to work on, an integer handle; by default a new one. Nobody else may use it during a call.

    Raises:
        BackendError: an engine cannot be used, or too little memory; everything is freed.
    """

    def __init__(
        self,
        flavour: Flavour,
        found: EngineSet,
        gpu: Device,
        *,
        kernels: Kernels | None = None,
        stream: int | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._device = gpu
        self._engines = found
        self._frames: DeviceFrames | None = None
        programs: Programs | None = None
        try:
            stream = self._stream = gpu.create_stream() if stream is None else stream
            with gpu.current():
                self._programs = programs = Programs(flavour, gpu, self._stream)
                programs.load(found)
                self._stage_rows = self._plan_rows(programs.by_name[PADDED])
                self._upload = gpu.pinned(self._largest(upload=True), np.uint8)
                self._download = gpu.pinned(self._largest(upload=False), np.uint8)
                if kernels is not None:
                    self._frames = DeviceFrames(programs, gpu, kernels, self._stream)
        except BaseException as error:
            # TensorRT's objects must be freed before their memory, and the traceback refers to some.
            with contextlib.suppress(BackendError), gpu.current():
                traceback.clear_frames(error.__traceback__)
            _release(gpu, programs, stream)
            raise
        self._finalizer = weakref.finalize(self, _release, gpu, programs, self._stream)

    # --- abilities --------------------------------------------------------------------------------

    @property
    def frames(self) -> FrameSession | None:
        """This session if it has CUDA kernels, which prepare frames on the GPU; None without kernels."""
        return self if self._frames is not None else None

    @property
    def engines(self) -> EngineSet:
        """The engines."""
        return self._engines

    @property
    def stream(self) -> int:
        """Handle of the stream of all work."""
        return self._stream

    @property
    def cuda_graphs(self) -> str:
        """Whether engines run as CUDA graphs, and if not, why."""
        off = self._programs.graphs_off
        if off is None:
            return "used"
        return (
            f"not used: {off}" if not self._programs.recorded else f"used for {self._programs.recorded} shapes: {off}"
        )

    def __repr__(self) -> str:
        return f"TensorRTSession({self._device!r}{'' if self._finalizer.alive else ', closed'})"

    # --- networks ---------------------------------------------------------------------------------

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """See :class:`tatok_edge.runtime.session.Session`. The outputs are new arrays.

        Raises:
            InputError: shapes that no profile takes, or a wrong dtype.
            BackendError: TensorRT or the driver fails, or the session is closed.
        """
        with self._running():
            program = self._programs.by_name[graph]
            key = program.key({name: array.shape for name, array in inputs.items()})
            for name, array in inputs.items():
                if array.dtype != program.dtypes[name]:
                    raise InputError(
                        f"{graph}: {name} has dtype {array.dtype}, the engine takes {program.dtypes[name]}"
                    )
            if graph == PADDED:
                return self._run_rows(program, inputs["features"])
            program.profile(key)  # before anything is written
            self._put(program, inputs)
            shapes = self._programs.execute(graph, dict(zip(program.inputs, key, strict=True)))
            views = self._get(program, shapes)
            return cast(Tensors, {name: view.copy() for name, view in views.items()})

    def _run_rows(self, program: Program, features: NDArray[Any]) -> Tensors:
        """The patch encoder: any number of rows, as many at once as a profile and the page-locked memory hold."""
        edges = [profile["features"].max for profile in program.manifest.profiles]
        if features.ndim != 2 or features.shape[1] != edges[-1][1]:
            program.profile((features.shape,))  # says what is allowed
        results: dict[str, list[NDArray[Any]]] = {name: [] for name in program.outputs}
        for start in range(0, max(len(features), 1), self._stage_rows):
            part = features[start : start + self._stage_rows]
            edge = edges[smallest_fitting([rows for rows, _ in edges], max(len(part), 1))]
            self._put(program, {"features": part})
            shapes = self._programs.execute(PADDED, {"features": edge})
            views = self._get(program, {name: (len(part), *shape[1:]) for name, shape in shapes.items()})
            for name, view in views.items():
                results[name].append(view.copy())
        return cast(
            Tensors,
            {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in results.items()},
        )

    def _put(self, program: Program, arrays: Mapping[str, NDArray[Any]]) -> None:
        start = 0
        for name, array in arrays.items():
            view = self._upload.array[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(view, array)
            if view.size:
                self._device.copy_to_device(program.pointers[name], view, self._stream)
            start += _aligned(array.nbytes)

    def _get(self, program: Program, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
        """Views of the outputs, after waiting for them."""
        start, views = 0, {}
        for name, shape in shapes.items():
            kind = program.dtypes[name]
            nbytes = int(np.prod(shape)) * kind.itemsize
            view = self._download.array[start : start + nbytes].view(kind).reshape(shape)
            if view.size:
                self._device.copy_to_host(view, program.pointers[name], self._stream)
            views[name] = view
            start += _aligned(nbytes)
        self._device.synchronize(self._stream)
        return views

    @staticmethod
    def _plan_rows(program: Program) -> int:
        """Rows of the patch encoder that are staged at once: the largest profile within the staging limit."""
        shapes = [profile["features"].max for profile in program.manifest.profiles]
        fitting = [rows for rows, width in shapes if rows * width * 4 <= _STAGED_ROW_BYTES]
        return max(fitting, default=shapes[0][0])

    def _largest(self, *, upload: bool) -> int:
        """Largest size in bytes of a graph's inputs, or outputs."""
        most = 0
        for program in self._programs.by_name.values():
            sizes = [_aligned(program.sizes[name]) for name in (program.inputs if upload else program.outputs)]
            if upload and program.name == PADDED:
                sizes = [_aligned(self._stage_rows * program.manifest.profiles[0]["features"].max[1] * 4)]
            most = max(most, sum(sizes))
        return most

    # --- frames -----------------------------------------------------------------------------------

    def encode_frames(
        self, frames: Sequence[NDArray[np.uint8] | DeviceArray], request: EncodeRequest, stage: Stage
    ) -> list[EncodedFrame]:
        """See :meth:`tatok_edge.runtime.session.FrameSession.encode_frames`."""
        with self._running():
            return self._device_frames().encode(frames, request, stage)

    def decode_frame(self, request: DecodeRequest, stage: Stage) -> NDArray[np.uint8]:
        """See :meth:`tatok_edge.runtime.session.FrameSession.decode_frame`."""
        with self._running():
            return self._device_frames().decode(request, stage)

    def decode_into(self, request: DecodeRequest, out: DeviceArray, stage: Stage) -> None:
        """See :meth:`tatok_edge.runtime.session.FrameSession.decode_into`."""
        with self._running():
            self._device_frames().decode_into(request, out, stage)

    def _device_frames(self) -> DeviceFrames:
        if self._frames is None:
            raise BackendError(f"this session has no CUDA kernels: {cuda_kernels.HOW_TO_BUILD}")
        return self._frames

    # --- life -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Context of one call: it holds the lock, makes the GPU current, and at the end waits for the stream."""
        with self._lock:
            if not self._finalizer.alive:
                raise BackendError("this session is closed; load the tokenizer again")
            with self._device.current():
                try:
                    yield
                except BaseException:
                    with contextlib.suppress(BackendError):
                        self._device.synchronize(self._stream)
                    raise

    def close(self) -> None:
        """Wait for a call that runs, and free everything; a second call does nothing."""
        with self._lock:
            self._finalizer()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _release(gpu: Device, programs: Programs | None, stream: int | None) -> None:
    """Frees a session's engines, then its memory, then the GPU."""
    with contextlib.suppress(BackendError), gpu.current():
        if stream is not None:
            with contextlib.suppress(BackendError):
                gpu.synchronize(stream)
        if programs is not None:
            programs.drop()
    gpu.close()


# --- opening --------------------------------------------------------------------------------------


def open_tensorrt(
    graphs: Mapping[str, bytes], backend: str, *, folder: Path | None, model: str, stream: Any
) -> tuple[TensorRTSession, Backend]:
    """A session with the engines that ``tatok build`` made from these graphs.

    Args:
        graphs: Serialised ONNX models by name; the engines must be built from them.
        backend: ``"tensorrt"``, ``"tensorrt-rtx"``, or ``"auto"`` for the first of them that has engines.
        folder: Folder of the engines; by default the user's cache.
        model: Name or path of the bundle, for messages.
        stream: As :func:`stream_handle` takes it; None for a new one.

    Raises:
        InputError: ``stream`` is no stream.
        BackendError: no driver, no TensorRT, no fitting engine, or too little memory. The message says what to do.
    """
    handle = None if stream is None else stream_handle(stream)
    folder = cache_folder() if folder is None else folder
    if tensorrt_flavour.gpu_architecture() is None:
        raise BackendError(f"{_NO_DRIVER}: take backend 'onnxruntime', which runs on the CPU")
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in graphs.items()}
    named = [facts.name for facts in FLAVOURS.values() if facts.backend == backend]
    wanted = named or _built(folder, hashes)
    if not wanted:
        raise BackendError(f"there are no engines of {model} in {folder}: run '{build_command(model)}'")
    problems = []
    for name in wanted:
        try:
            flavour = tensorrt_flavour.find_flavour(name)
        except BackendError as error:  # nothing is loaded yet, so the next flavour may still be
            problems.append(str(error))
            continue
        return _open(flavour, hashes, folder, model, handle, "auto" if backend == "auto" else "asked for by name")
    raise BackendError("; ".join(problems))


def _built(folder: Path, hashes: Mapping[str, str]) -> list[FlavourName]:
    """The flavours that have engines of these graphs."""
    flavours = set()
    for path in folder.glob("*.json") if folder.is_dir() else []:
        with contextlib.suppress(EngineMismatch):
            manifest = read_manifest(path)
            if hashes.get(manifest.graph) == manifest.onnx_sha256:
                flavours.add(manifest.flavour)
    return [name for name in FLAVOURS if name in flavours]


def _open(
    flavour: Flavour, hashes: Mapping[str, str], folder: Path, model: str, stream: int | None, reason: str
) -> tuple[TensorRTSession, Backend]:
    gpu = device.open_device(os.environ.get(DEVICE_VARIABLE, "auto"))
    name, sm = gpu.name, gpu.sm
    try:
        found = _find(flavour, hashes, folder, model, sm)
        kernels, where = _find_kernels(gpu)
    except BaseException:
        gpu.close()
        raise
    session = TensorRTSession(flavour, found, gpu, kernels=kernels, stream=stream)
    precision = next(iter(found.manifests.values())).precision
    reason = f"{reason}; engines in {folder}; CUDA graphs {session.cuda_graphs}; {where}"
    backend = Backend(flavour.facts.backend, flavour.version, f"{name} (SM {sm})", precision, 1, reason)
    return session, backend


def _find(flavour: Flavour, hashes: Mapping[str, str], folder: Path, model: str, sm: str) -> EngineSet:
    """The engines that fit the graphs, the TensorRT and the GPU."""

    def found(version: str | None, sha256: str | None) -> dict[str, EngineTarget]:
        return {
            graph: EngineTarget(
                model, digest, flavour.name, flavour.version, sm, plugin_version=version, plugin_sha256=sha256
            )
            for graph, digest in hashes.items()
        }

    try:
        return find_engines(folder, found(None, None), list(hashes))
    except EngineMismatch as error:
        if error.kind != "plugin":
            raise
    plugin = tensorrt_plugin.register(flavour)  # only engines with a plugin get here
    return find_engines(folder, found(plugin.version, plugin.sha256), list(hashes))


def _find_kernels(gpu: Device) -> tuple[Kernels | None, str]:
    """The CUDA kernels, or None, and where frames are prepared, in words."""
    try:
        kernels = cuda_kernels.load()
        if kernels.emulated:
            raise BackendError(f"{kernels.path} has kernels for the CPU; {cuda_kernels.HOW_TO_BUILD}")
        # One launch shows whether the library has code for this GPU, and loads it.
        memory = gpu.allocate(2 * _PROBE_BYTES)
        with gpu.current():
            kernels.image_to_cells(Frames.packed(memory, 1, 32, 32), memory + _PROBE_BYTES)
            gpu.synchronize(0)
        gpu.free(memory)
    except BackendError as error:
        return None, f"frames prepared on the CPU, because {error}"
    return kernels, "frames prepared on the GPU"
