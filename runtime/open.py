"""Which backend runs the networks, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import onnxruntime as ort

from tatok_edge.errors import BackendError
from tatok_edge.runtime.cores import default_threads
from tatok_edge.runtime.nvidia import driver_library
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.session import Backend, Session

BackendName = Literal["auto", "onnxruntime", "tensorrt", "tensorrt-rtx"]
BACKENDS: tuple[BackendName, ...] = ("auto", "onnxruntime", "tensorrt", "tensorrt-rtx")
"""Names that :func:`open_session` takes. ``"auto"`` is TensorRT where there are engines for this machine's GPU, and
ONNX Runtime on the CPU elsewhere."""


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
        stream: CUDA stream to work on, as :func:`tatok_edge.runtime.cuda.arrays.stream_handle` takes it; by default
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
        count, why = default_threads(), "threads: the cores that this process may use, at most 8"
    else:
        count, why = threads, "threads: as asked for"
    session = OnnxSession(graphs, threads=count)
    return session, Backend("onnxruntime", ort.__version__, "cpu", precision, count, f"{reason}; {why}")


def _has_driver() -> bool:
    """Whether there is an NVIDIA driver. Cheap, because every load on a machine without one asks."""
    try:
        driver_library()
    except OSError:
        return False
    return True
