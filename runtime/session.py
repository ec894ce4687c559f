"""Sessions: what runs the networks of a bundle. One small protocol, one implementation per engine."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tatok_edge.errors import BackendError

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.device import DeviceArray

BackendName = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[BackendName, ...] = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")
"""Names that :func:`open_session` takes. ``"auto"`` is TensorRT where there are engines for this machine's GPU, and
ONNX Runtime on the CPU elsewhere."""

GraphName = Literal["global_encoder", "context", "patch_encoder", "decoder", "refiner"]
Tensors = dict[str, "NDArray[np.float32] | NDArray[np.int32]"]


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs the networks, and why."""

    name: str
    """``"onnxruntime"``, ``"tensorrt"`` or ``"tensorrt-rtx"``."""
    version: str
    """Version of the engine."""
    device: str
    """``"cpu"``, or the name of the GPU."""
    precision: str
    """``"fp32"``, ``"fp16"`` (TensorRT), or ``"int8"``: the decoder in int8, all else in fp32."""
    threads: int
    """Threads of the host that one graph uses: 1 on a GPU."""
    reason: str
    """Why this backend was taken."""

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return f"{self.name} {self.version} on {self.device}, {self.precision}{threads} ({self.reason})"


class Session(Protocol):
    """Runs the graphs of one bundle. Safe to call from several threads."""

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Run one graph on C-contiguous arrays; returns its outputs by name."""
        ...

    def close(self) -> None:
        """Free what the session holds; a closed session raises :class:`BackendError`."""
        ...


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Limits of Dynamic Token Filtering, as ``_kernels.dtf`` takes them."""

    tau: float
    min_tokens: int
    max_tokens: int
    floor_bits: float


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """What :meth:`FrameSession.encode_frames` makes of a frame with ``N`` patches."""

    global_codes: NDArray[np.int32]
    """Codes of the cells, ``(D, hc, wc)``."""
    positions: NDArray[np.int32]
    """Kept patches, ``(T,)``, ascending."""
    codes: NDArray[np.int32]
    """Their codes, ``(T, D)``."""
    scores: NDArray[np.float32] | None
    """What the patches were ranked by, ``(N,)``, where it was asked for."""


Stage = Callable[[str], AbstractContextManager[None]]
"""Counts the time of a named block."""


class FrameSession(Session, Protocol):
    """A session that also does what lies between the networks, where they are: frames in, tokens out, and back."""

    @property
    def stream(self) -> int:
        """The CUDA stream that it works on."""
        ...

    def encode_frames(
        self,
        frames: Sequence[NDArray[np.uint8] | DeviceArray],
        *,
        bgr: bool,
        score: str,
        filters: Sequence[TokenFilter],
        levels: Sequence[int],
        with_scores: bool,
        stage: Stage,
    ) -> list[EncodedFrame]:
        """Tokens of frames, uint8 ``(H, W, 3)`` of any strides; those that the graphs and CPU kernels would give."""
        ...

    def decode_frame(
        self,
        global_codes: NDArray[np.int32],
        codes: NDArray[np.int32],
        positions: NDArray[np.int32],
        size: tuple[int, int],
        *,
        bgr: bool,
        levels: Sequence[int],
        out: DeviceArray | None,
        stage: Stage,
    ) -> NDArray[np.uint8] | None:
        """The frame of tokens, uint8 ``(*size, 3)``, or None where it was written to ``out``, contiguous."""
        ...


def as_frame_session(session: Session) -> FrameSession | None:
    """The session, if it is one that takes frames."""
    return cast("FrameSession", session) if getattr(session, "takes_frames", False) else None


class OnnxSession:
    """ONNX Runtime on the CPU.

    Args:
        graphs: Serialised ONNX models by name.
        threads: Threads that one graph uses.

    Raises:
        BackendError: ONNX Runtime refuses a graph.
    """

    def __init__(self, graphs: Mapping[str, bytes], *, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        # Frames come at camera rate: threads that spin between them would burn the cores that the rest needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._outputs: dict[str, list[str]] = {}
        for name, data in graphs.items():
            # Token counts and windows change from call to call, and a memory pattern is planned anew for every shape:
            # in streams the context took 1.5 times as long with it. The other graphs see frames of one size.
            options.enable_mem_pattern = name not in ("context", "patch_encoder")
            try:
                session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise BackendError(
                    f"ONNX Runtime {ort.__version__} cannot load graph {name!r}: {_one_line(error)}"
                ) from error
            self._sessions[name] = session
            self._outputs[name] = [output.name for output in session.get_outputs()]

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """See :class:`Session`."""
        session = self._sessions.get(graph)
        if session is None:
            raise BackendError("this session is closed; load the tokenizer again")
        try:
            values = session.run(None, dict(inputs))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph {graph!r}: {_one_line(error)}") from error
        return dict(zip(self._outputs[graph], values, strict=True))

    def close(self) -> None:
        """See :class:`Session`."""
        self._sessions.clear()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def default_threads() -> int:
    """Cores that this process may use, at most 8: more cost more in waiting than they bring at camera sizes."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(available, 8))


def open_session(
    graphs: Mapping[str, bytes],
    *,
    backend: str = "auto",
    threads: int | None = None,
    precision: str = "fp32",
    engines: str | Path | None = None,
    model: str = "MODEL",
    stream: Any = None,
) -> tuple[Session, Backend]:
    """Open the session that ``backend`` asks for.

    Args:
        graphs: Serialised ONNX models by name.
        backend: One of :data:`BACKENDS`. ``"auto"`` falls back to the CPU and says why in :attr:`Backend.reason`;
            a backend that was named runs, or is an error.
        threads: Threads that one graph uses on the CPU; by default the cores of this process, at most 8.
        precision: Precision of the graphs; ``"int8"`` runs on the CPU only (TensorRT's is chosen by ``tatok build``).
        engines: Folder of the TensorRT engines; by default the user's cache, where ``tatok build`` puts them.
        model: Name or path of the bundle, for messages.
        stream: CUDA stream to work on, as :func:`tatok_edge.runtime.cuda.device.stream_handle` takes it; by default
            one of the session's own.

    Raises:
        BackendError: an unknown backend, or one that cannot run here.
    """
    if backend not in BACKENDS:
        names = ", ".join(repr(name) for name in BACKENDS)
        raise BackendError(f"unknown backend {backend!r}: this version has {names}")
    if threads is not None and not 1 <= threads <= 256:
        raise BackendError(f"threads must be between 1 and 256, got {threads}")
    if precision == "int8" and backend not in ("auto", "onnxruntime"):
        raise BackendError(
            f"precision int8 runs on the CPU, not with backend {backend!r}, whose precision 'tatok build' chooses: "
            "take backend onnxruntime, or precision fp32"
        )
    reason = "asked for by name"
    if backend == "auto" and precision == "int8":
        reason = "auto: the CPU, because precision int8 runs there"
    elif backend == "auto" and not _has_driver():
        reason = "auto: the CPU, because this machine has no NVIDIA driver"
    elif backend != "onnxruntime":
        from tatok_edge.runtime.tensorrt import session as tensorrt_session

        folder = None if engines is None else Path(engines)
        try:
            return tensorrt_session.open_tensorrt(graphs, backend, folder=folder, model=model, stream=stream)
        except BackendError as error:
            if backend != "auto":
                raise
            reason = f"auto: the CPU, because {error}"
    if threads is None:
        count, why = default_threads(), "threads: the cores of this process, at most 8"
    else:
        count, why = threads, "threads: as asked for"
    session = OnnxSession(graphs, threads=count)
    return session, Backend("onnxruntime", ort.__version__, "cpu", precision, count, f"{reason}; {why}")


def _has_driver() -> bool:
    """Whether there is an NVIDIA driver. Cheap, because every load on a machine without one asks."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True
