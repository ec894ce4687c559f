"""The options of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from tatok_edge.training.config import Variant
from tatok_edge.training.data import Use


@dataclass(slots=True)
class Options:
    """Everything that decides what a run computes."""

    config: str = "tatok-s8"
    variant: Variant = "tatok"
    """The model, or a baseline to compare it with."""
    depth: int | None = None
    """Most tokens of a patch; ``None`` takes that of ``config``."""
    use: Use = "ship"
    seed: int = 0
    batch: int = 16
    crop: int = 128
    lr: float = 1.5e-3
    prior_weight: float = 2e-4
    """Loss per bit and patch, felt by the prior and the globals."""
    rate_weight: float = 2e-5
    """Loss per bit and patch, felt by the patch encoder."""
    refinement_prior: float = 0.3
    """The loss per bit of tokens 2 to ``depth``, as a share of ``prior_weight``."""
    local_weight: float = 0.05
    """Loss for what the linear local reconstruction leaves, of models of several tokens per patch."""
    hold: float = 0.0
    """Share of the run at the peak rate, before the rate falls."""
    mean_weight: float = 0.1
    seam_weight: float = 0.15
    """Loss for steps of the error across patch borders, which show as a grid in smooth areas."""
    ema: float = 0.999
    entropy_images: int = 2000
    """Crops that the entropy model is fitted to at the end; :mod:`tatok_edge.training.entropy` fits it for longer."""
    entropy_steps: int = 3000
    """Steps of that fit."""
    minutes: float | None = None
    steps: int | None = None
