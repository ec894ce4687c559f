"""How many tokens to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from tatok_edge.errors import InputError
from tatok_edge.tokens.checks import MAX_DEPTH, integer, real, set_field

Score = Literal["residual", "visual", "information", "entropy"]
"""What ranks the tokens of an image."""
SCORES: tuple[Score, ...] = get_args(Score)
MAX_PASSES = 64
"""Most passes that a budget may spend on refining."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """How many patch tokens to keep. All given limits apply together; the smallest decides.

    Raises:
        InputError: A value is outside its range; the message names it and the range.

    Example:
        >>> budget = tatok_edge.TokenBudget(keep=1.0, max_bits=20000)  # one token per patch, and 20 kbit at most
        >>> frame = tokenizer.encode(image, budget=budget)
    """

    tau: float = 1.0
    """Share of the total score to keep, above 0 and up to 1."""
    keep: float | None = None
    """Most tokens per patch on average, from 0 to the depth of the model."""
    max_tokens: int | None = None
    """Largest number of patch tokens, of all depths together."""
    max_depth: int | None = None
    """Most tokens of one patch, from 1; no limit beyond the depth of the model by default. ``TokenBudget(max_depth=1)``
    gives every patch one token: the fixed rate."""
    max_bits: int | None = None
    """Largest size of the packed frame in bits, header included."""
    min_tokens: int = 0
    """Smallest number of patch tokens; gives way to the maxima."""
    floor_bits: float = 0.0
    """Tokens with a score below this number of bits are dropped."""
    score: Score = "residual"
    """Score that ranks the tokens. ``residual``: squared error that the token can remove; gives the smallest error, and
    is fast, because only kept patches are encoded. ``visual``: the same, less where the picture is busy and hides
    errors. ``information``: bits of the token; every patch is encoded first. ``entropy``: bits expected from the global
    tokens alone; the pixels of the patch are not used."""
    refine: int = 0
    """Passes of refining, 0 to 64: a better picture from as many tokens, for more time. Each pass runs the decoder and
    its derivative. From 3 passes on, other patches may be kept, but not in streams."""

    def __post_init__(self) -> None:
        set_field(self, "tau", real("tau", self.tau))
        if not 0.0 < self.tau <= 1.0:
            raise InputError(f"tau must be above 0 and at most 1, got {self.tau:g}")
        if self.keep is not None:
            set_field(self, "keep", real("keep", self.keep))
            if not 0.0 <= self.keep <= MAX_DEPTH:
                raise InputError(f"keep must be from 0 to {MAX_DEPTH} tokens per patch, got {self.keep:g}")
        for name, smallest in (("max_tokens", 0), ("max_depth", 1), ("max_bits", 1), ("min_tokens", 0)):
            value = getattr(self, name)
            if value is not None:
                set_field(self, name, integer(name, value))
                if value < smallest:
                    raise InputError(f"{name} must be at least {smallest}, got {value}")
        set_field(self, "floor_bits", real("floor_bits", self.floor_bits))
        if not 0.0 <= self.floor_bits < float("inf"):
            raise InputError(f"floor_bits must be a finite number of bits from 0, got {self.floor_bits:g}")
        set_field(self, "refine", integer("refine", self.refine))
        if not 0 <= self.refine <= MAX_PASSES:
            raise InputError(f"refine must be from 0 to {MAX_PASSES} passes, got {self.refine}")
        if self.score not in SCORES:
            raise InputError(f"score must be one of {', '.join(SCORES)}, got {self.score!r}")
        if self.floor_bits > 0 and self.score in ("residual", "visual"):
            raise InputError("floor_bits needs a score in bits: give score 'information' or 'entropy' with it")

    def depth(self, most: int) -> int:
        """Most tokens of one patch, for a model with up to ``most``."""
        return most if self.max_depth is None else min(self.max_depth, most)

    def limits(self, n_patches: int, depth: int) -> tuple[int, int]:
        """Smallest and largest number of tokens for a frame.

        ``max_bits`` is not in it: how many tokens fit depends on their code lengths.

        Args:
            n_patches: Patches of the frame.
            depth: Depth of the model.

        Raises:
            InputError: ``keep`` is above the depth of the model.
        """
        largest = n_patches * self.depth(depth)
        if self.keep is not None:
            if self.keep > depth:
                raise InputError(
                    f"keep must be from 0 to {depth} tokens per patch, the depth of this model, got {self.keep:g}"
                )
            largest = min(largest, round(self.keep * n_patches))
        if self.max_tokens is not None:
            largest = min(largest, self.max_tokens)
        return min(self.min_tokens, largest), largest
