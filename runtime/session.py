"""Sessions: what runs the networks of a bundle. One small protocol; each backend implements it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.arrays import DeviceArray


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
