"""How many tokens to keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tatok_edge.errors import InputError
from tatok_edge.tokens.checks import integer, real, set_field

MAX_PASSES = 64
"""Most passes that a budget may spend on refining."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """How many patch tokens to keep. All given limits apply together; the smallest decides.

    Raises:
        InputError: A value is outside its range; the message names it and the range.
    """

    tau: float = 1.0
    """Share of the total score to keep, above 0 and up to 1."""
    keep: float | None = None
    """Largest share of the patches to keep, 0 to 1."""
    max_tokens: int | None = None
    """Largest number of patch tokens."""
    max_bits: int | None = None
    """Largest size of the packed frame in bits, header included."""
    min_tokens: int = 0
    """Smallest number of patch tokens; gives way to the maxima."""
    floor_bits: float = 0.0
    """Tokens with a score below this number of bits are dropped."""
    score: Literal["residual", "information", "entropy"] = "residual"
    """Score that ranks the patches. ``residual``: squared difference between pixels and mean; gives the best picture,
    and is fast, because only kept patches are encoded. ``information``: bits of the patch token; every patch is encoded
    first. ``entropy``: bits expected from the global tokens alone; the pixels of the patch are not used."""
    refine: int = 0
    """Passes of refining, 0 to 64: a better picture from as many tokens, for more time. Each pass runs the decoder and
    its derivative. From 3 passes on, other patches may be kept, but not in streams."""

    def __post_init__(self) -> None:
        set_field(self, "tau", real("tau", self.tau))
        if not 0.0 < self.tau <= 1.0:
            raise InputError(f"tau must be above 0 and at most 1, got {self.tau:g}")
        if self.keep is not None:
            set_field(self, "keep", real("keep", self.keep))
            if not 0.0 <= self.keep <= 1.0:
                raise InputError(f"keep must be from 0 to 1 (a share of the patches), got {self.keep:g}")
        for name, smallest in (("max_tokens", 0), ("max_bits", 1), ("min_tokens", 0)):
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
        if self.score not in ("residual", "information", "entropy"):
            raise InputError(f"score must be 'residual', 'information' or 'entropy', got {self.score!r}")
        if self.floor_bits > 0 and self.score == "residual":
            raise InputError("floor_bits needs a score in bits: give score 'information' or 'entropy' with it")

    def limits(self, n_patches: int) -> tuple[int, int]:
        """Smallest and largest number of tokens for a frame of ``n_patches`` patches.

        ``max_bits`` is not in it: how many tokens fit depends on their code lengths.
        """
        largest = n_patches
        if self.keep is not None:
            largest = min(largest, round(self.keep * n_patches))
        if self.max_tokens is not None:
            largest = min(largest, self.max_tokens)
        return min(self.min_tokens, largest), largest
