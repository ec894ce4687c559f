"""Sessions run the networks of a bundle. Two small protocols; each backend implements the first or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tatok_edge.runtime.cuda.arrays import DeviceArray
    from tatok_edge.runtime.tensorrt.choice import EngineSet


GraphName = Literal["global_encoder", "cell_context", "context", "patch_encoder", "decoder", "refiner"]
Tensors = dict[str, "NDArray[np.float32] | NDArray[np.int32]"]


@dataclass(frozen=True, slots=True)
class Backend:
    """The backend that runs the networks, and why it was taken."""

    name: str
    """``"onnxruntime"``, ``"tensorrt"`` or ``"tensorrt-rtx"``."""
    version: str
    """Version of the engine."""
    device: str
    """``"cpu"``, or the name of the GPU."""
    precision: str
    """``"fp32"``, ``"fp16"`` (TensorRT), or ``"int8"``: the graphs that the bundle has in int8, all else in fp32."""
    threads: int
    """Threads of the host that one graph uses: 1 on a GPU."""
    reason: str
    """Why this backend was taken."""

    def __str__(self) -> str:
        threads = f", {self.threads} threads" if self.device == "cpu" else ""
        return f"{self.name} {self.version} on {self.device}, {self.precision}{threads} ({self.reason})"


class Session(Protocol):
    """Runs the graphs of one bundle. Safe to call from several threads.

    A class that inherits from it runs graphs only, until it says otherwise.
    """

    @property
    def frames(self) -> FrameSession | None:
        """Encodes and decodes whole frames where the networks run; None where only graphs run."""
        return None

    @property
    def engines(self) -> EngineSet | None:
        """The TensorRT engines that it runs; None where it runs the ONNX graphs."""
        return None

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Run one graph on C-contiguous arrays; returns its outputs by name."""
        ...

    def close(self) -> None:
        """Free the networks; a closed session raises :class:`BackendError`."""
        ...


@dataclass(frozen=True, slots=True)
class TokenFilter:
    """Limits of Dynamic Token Filtering, as ``kernels.dtf`` takes them; they count tokens of all depths."""

    tau: float
    min_tokens: int
    max_tokens: int
    floor_bits: float


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """How frames are to be encoded."""

    filters: Sequence[TokenFilter]
    """One for each frame."""
    levels: Sequence[int]
    """FSQ levels of each code dimension."""
    depth: int
    """Most tokens of a patch that may be kept, at most K of the model."""
    basis: NDArray[np.int16]
    """Directions of the scores, ``(K, D, 192)``, as ``kernels.patch_scores`` takes them."""
    score: str
    """What ranks the tokens: ``"residual"``, ``"visual"``, ``"entropy"`` or ``"information"``."""
    with_scores: bool
    """Whether the scores are returned."""
    bgr: bool
    """The channels of the frames are in BGR order."""


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """Tokens of a frame with ``N`` patches in stacks of up to ``K``, as codes with ``D`` dimensions."""

    global_codes: NDArray[np.int32]
    """Codes of the cells, ``(D, hc, wc)``."""
    positions: NDArray[np.int32]
    """Patch of each token, ``(T,)``, never falling: a patch comes as often as it has tokens."""
    codes: NDArray[np.int32]
    """Codes of the tokens, ``(T, D)``."""
    scores: NDArray[np.float32] | None
    """Scores of all tokens that the request allows, ``(N, depth)``, where the request asks for them."""


@dataclass(frozen=True, slots=True)
class DecodeRequest:
    """Tokens of one frame, and how the picture is wanted."""

    global_codes: NDArray[np.int32]
    """Codes of the cells, ``(D, hc, wc)``."""
    positions: NDArray[np.int32]
    """Patch of each token, ``(T,)``, never falling."""
    codes: NDArray[np.int32]
    """Codes of the tokens, ``(T, D)``."""
    levels: Sequence[int]
    """FSQ levels of each code dimension."""
    size: tuple[int, int]
    """Height and width of the picture in pixels."""
    bgr: bool
    """The channels of the picture in BGR order."""


Stage = Callable[[str], AbstractContextManager[None]]
"""Counts the time of a named block."""


class FrameSession(Protocol):
    """Encodes and decodes whole frames on a GPU: the networks and all steps between them."""

    @property
    def stream(self) -> int:
        """The CUDA stream that it works on."""
        ...

    def encode_frames(
        self, frames: Sequence[NDArray[np.uint8] | DeviceArray], request: EncodeRequest, stage: Stage
    ) -> list[EncodedFrame]:
        """Tokens of frames, uint8 ``(H, W, 3)`` of any strides: the same tokens as graphs and CPU kernels give."""
        ...

    def decode_frame(self, request: DecodeRequest, stage: Stage) -> NDArray[np.uint8]:
        """The picture of tokens, uint8 ``(H, W, 3)``, in memory of the host."""
        ...

    def decode_into(self, request: DecodeRequest, out: DeviceArray, stage: Stage) -> None:
        """Write the picture of tokens into device memory: ``out`` is uint8 ``(H, W, 3)`` in C order."""
        ...
