"""The session that runs the networks on the CPU with ONNX Runtime."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, one_line
from tatok_edge.runtime.session import GraphName, Session, Tensors


class _Gate:
    """Keeps threads out of ONNX Runtime while Python ends.

    Python ends a daemon thread where it next takes the lock of the interpreter. Inside of ONNX Runtime that aborts the
    process.
    """

    def __init__(self) -> None:
        self._reset()
        atexit.register(self._close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._closed = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Counts a call of ONNX Runtime; once Python ends, threads wait here for ever."""
        with self._changed:
            while self._closed and threading.current_thread() is not threading.main_thread():
                self._changed.wait()
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: not self._inside, EXIT_SECONDS)


EXIT_SECONDS = 10.0
"""Longest time that the end of Python waits for calls of ONNX Runtime."""
_GATE = _Gate()


class OnnxSession(Session):
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
            options.enable_mem_pattern = name not in ("cell_context", "context", "patch_encoder")
            try:
                session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise BackendError(
                    f"ONNX Runtime {ort.__version__} cannot load graph {name!r}: {one_line(error)}"
                ) from error
            self._sessions[name] = session
            self._outputs[name] = [output.name for output in session.get_outputs()]

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """See :meth:`Session.run`."""
        session = self._sessions.get(graph)
        if session is None:
            raise BackendError("this session is closed; load the tokenizer again")
        try:
            with _GATE.inside():
                values = session.run(None, dict(inputs))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed in graph {graph!r}: {one_line(error)}") from error
        return dict(zip(self._outputs[graph], values, strict=True))

    def close(self) -> None:
        """See :meth:`Session.close`."""
        self._sessions.clear()
