"""Sessions: what runs the networks of a bundle. One small protocol, one implementation per engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tatok_edge.errors import BackendError

GraphName = Literal["global_encoder", "context", "patch_encoder", "decoder"]
Tensors = dict[str, "NDArray[np.float32] | NDArray[np.int32]"]


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs the networks, and why."""

    name: str
    """``"onnxruntime"``."""
    version: str
    """Version of the engine."""
    device: str
    """``"cpu"``."""
    precision: str
    """Precision of the graphs."""
    threads: int
    """Threads that one graph uses."""
    reason: str
    """Why this backend was taken."""

    def __str__(self) -> str:
        return f"{self.name} {self.version} on {self.device}, {self.precision}, {self.threads} threads ({self.reason})"


class Session(Protocol):
    """Runs the graphs of one bundle. Safe to call from several threads."""

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Run one graph on C-contiguous arrays; returns its outputs by name."""
        ...

    def close(self) -> None:
        """Free what the session holds; a closed session raises :class:`BackendError`."""
        ...


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
    graphs: Mapping[str, bytes], *, backend: str = "auto", threads: int | None = None, precision: str = "fp32"
) -> tuple[Session, Backend]:
    """Open the session that ``backend`` asks for.

    Args:
        graphs: Serialised ONNX models by name.
        backend: ``"auto"`` or ``"onnxruntime"``.
        threads: Threads that one graph uses; by default the cores of this process, at most 8.
        precision: Precision of the graphs, for the report.

    Raises:
        BackendError: an unknown backend, or one that cannot run here.
    """
    if backend not in ("auto", "onnxruntime"):
        raise BackendError(f"unknown backend {backend!r}: this version has 'onnxruntime' (and 'auto', which takes it)")
    if threads is None:
        count, why = default_threads(), "threads: the cores of this process, at most 8"
    else:
        if not 1 <= threads <= 256:
            raise BackendError(f"threads must be between 1 and 256, got {threads}")
        count, why = threads, "threads: as asked for"
    reason = "asked for by name" if backend != "auto" else "auto: the only backend of this version"
    session = OnnxSession(graphs, threads=count)
    return session, Backend("onnxruntime", ort.__version__, "cpu", precision, count, f"{reason}; {why}")
