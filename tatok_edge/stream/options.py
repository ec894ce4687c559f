"""The options of a stream encoder, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tatok_edge.errors import InputError
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.budget import TokenBudget

MAX_LOSS_DB: Final = 0.4
"""Default for the PSNR that a stream may lose against all tokens of every frame, in dB."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """The options of a stream encoder for one frame.

    Raises:
        InputError: An option is out of its range.
    """

    tokenizer: Tokenizer
    """The model."""
    budget: TokenBudget
    """Limits for each packet."""
    max_loss_db: float
    """PSNR that holding and filtering may cost, in dB."""
    keyframe_interval: int
    """Frames from one keyframe to the next, or of one round of the rolling refresh; 0 for the first keyframe only."""
    refresh: Literal["key", "rolling"]
    """What the interval repeats: whole keyframes, or a few cells in every frame."""
    motion: bool
    """Whether held pixels may move with the camera."""
    recompute: Literal["changed", "always"]
    """Which patches are encoded: those that get a token, or all."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_loss_db <= 20.0:
            raise InputError(f"max_loss_db must be from 0 to 20 dB, got {self.max_loss_db:g}")
        if not 0 <= self.keyframe_interval < 1 << 31:
            raise InputError(f"keyframe_interval must be a number of frames from 0, got {self.keyframe_interval}")
        if self.refresh not in ("key", "rolling"):
            raise InputError(f"refresh must be 'key' or 'rolling', got {self.refresh!r}")
        if self.recompute not in ("changed", "always"):
            raise InputError(f"recompute must be 'changed' or 'always', got {self.recompute!r}")
