"""What goes into the encoding of a frame, and what comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.geometry import Image, PictureSize
from tatok_edge.model.networks import Clock
from tatok_edge.runtime.cpu import kernels
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame


class KeyframeTooLarge(InputError):
    """A keyframe needs more bits than its budget allows, even without patch tokens.

    Example:
        >>> encoder = tatok_edge.StreamEncoder(tokenizer, budget=tatok_edge.TokenBudget(max_bits=8))
        >>> try:
        ...     encoder.encode(image)
        ... except tatok_edge.KeyframeTooLarge as error:
        ...     print(error.bits, "bits are needed")
    """

    bits: int
    """Bits that the keyframe needs."""

    def __init__(self, message: str, bits: int) -> None:
        super().__init__(message)
        self.bits = bits


@dataclass(frozen=True, slots=True)
class CameraFrame(PictureSize):
    """A frame of a camera that is being encoded."""

    image: Image
    """Pixels, uint8 ``(H, W, 3)``."""
    bgr: bool
    """Whether the channels are in BGR order."""
    index: int
    """Number of the frame."""
    timestamp_us: int
    """Time of the frame in microseconds."""
    clock: Clock = field(default_factory=Clock, repr=False)
    """Wall time of each stage so far."""

    @property
    def width(self) -> int:  # type: ignore[override]  # read-only
        """Width of the image in pixels."""
        return int(self.image.shape[1])

    @property
    def height(self) -> int:  # type: ignore[override]  # read-only
        """Height of the image in pixels."""
        return int(self.image.shape[0])

    def patches(self) -> NDArray[np.int32]:
        """All patches in raster order, ``(N,)``."""
        return np.arange(self.n_patches, dtype=np.int32)

    def weights(self, budget: TokenBudget) -> NDArray[np.float32]:
        """How much an error counts in each patch, ``(N,)``."""
        if budget.score == "visual":
            return kernels.visual_weights(self.image)
        return np.ones(self.n_patches, np.float32)


@dataclass(frozen=True, slots=True)
class StreamFrame:
    """One encoded frame of a stream.

    Example:
        >>> frame = tatok_edge.StreamEncoder(tokenizer).encode(image)
        >>> frame.kind, frame.n_tokens, frame.n_updated, len(frame.packet)
    """

    tokens: TokenFrame | DeltaFrame
    """Tokens in the packet."""
    packet: bytes = field(repr=False)
    """The packet (``docs/format.md``)."""
    n_encoded: int
    """Patches that went through the patch encoder."""
    seconds: dict[str, float] = field(repr=False)
    """Wall time of each stage in seconds."""
    scene_cut: bool = False
    """Whether a scene cut caused the keyframe."""
    latency_ms: float | None = None
    """Time from the arrival of the frame to its packet; None where it is not known."""
    dropped: int = 0
    """Frames that the source has dropped so far."""

    @property
    def kind(self) -> Literal["key", "delta"]:
        """Kind of the packet; a keyframe can be decoded alone."""
        return "key" if isinstance(self.tokens, TokenFrame) else "delta"

    @property
    def index(self) -> int:
        """Number of the frame."""
        return self.tokens.index

    @property
    def timestamp_us(self) -> int:
        """Time of the frame in microseconds."""
        return self.tokens.timestamp_us

    @property
    def n_tokens(self) -> int:
        """Patch tokens in the packet."""
        return self.tokens.n_tokens

    @property
    def n_globals(self) -> int:
        """Global tokens in the packet."""
        return int(self.tokens.global_ids.size)

    @property
    def n_vectors(self) -> int:
        """Motion vectors in the packet."""
        tokens = self.tokens
        return 0 if isinstance(tokens, TokenFrame) else tokens.n_vectors

    @property
    def n_updated(self) -> int:
        """Patches that the packet updates."""
        tokens = self.tokens
        return tokens.n_patches if isinstance(tokens, TokenFrame) else tokens.n_updated
