"""The options of a stream encoder, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from tatok_edge.errors import InputError
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.budget import TokenBudget

MAX_LOSS_DB: Final = 0.4
"""Default for the PSNR that a stream may lose against the fixed rate, in dB."""


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
    """PSNR that the shown picture may lose against the fixed rate, in dB."""
    keyframe_interval: int
    """Frames from one keyframe to the next, or of one round of the rolling refresh; 0 for the first keyframe only."""
    refresh: Literal["key", "rolling"]
    """What the interval repeats: whole keyframes, or a few cells in every frame."""
    motion: bool
    """Whether shown pixels may move with the camera."""
    fill: bool
    """Whether packets use all bits of the budget."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_loss_db <= 20.0:
            raise InputError(f"max_loss_db must be from 0 to 20 dB, got {self.max_loss_db:g}")
        if not 0 <= self.keyframe_interval < 1 << 31:
            raise InputError(f"keyframe_interval must be a number of frames from 0, got {self.keyframe_interval}")
        if self.refresh not in ("key", "rolling"):
            raise InputError(f"refresh must be 'key' or 'rolling', got {self.refresh!r}")
        if self.budget.score not in ("residual", "visual"):
            raise InputError(
                f"score must be 'residual' or 'visual' for a stream, whose tokens are ranked by the error that they "
                f"remove; got {self.budget.score!r}"
            )
        if self.budget.min_tokens:
            raise InputError(
                f"min_tokens must be 0 for a stream, whose packets carry changes only; got {self.budget.min_tokens}"
            )
        if self.budget.refine:
            raise InputError(
                f"refine must be 0 for a stream, which corrects its tokens by further ones; got {self.budget.refine}"
            )

    @property
    def depth(self) -> int:
        """Most tokens of a patch."""
        return self.budget.depth(self.tokenizer.depth)
