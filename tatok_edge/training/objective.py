"""The training objective: nested dropout of (patch, depth) pairs by their scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tatok_edge.geometry import PATCH
from tatok_edge.training.filtering import residual_scores, select, visual_weights
from tatok_edge.training.model import Encoded, TaTok, grid_to_pixels
from tatok_edge.training.options import Options

FEWEST = 0.04
"""Smallest budget in training, in tokens per patch."""


def training_shares(count: int, depth: int, generator: torch.Generator) -> Tensor:
    """Tokens per patch: log-uniform from 4 % to ``depth``; all of them for a part of the images.

    That part is 30 % for one token per patch, 15 % for more, which need all tokens more often anyway.
    """
    uniform = torch.rand(2, count, generator=generator)
    partial = depth * torch.exp(uniform[1] * math.log(FEWEST / depth))
    return torch.where(uniform[0] < (0.3 if depth == 1 else 0.15), torch.full((count,), float(depth)), partial)


def training_scores(model: TaTok, image: Tensor, encoded: Encoded, generator: torch.Generator) -> Tensor:
    """Scores ``(B, K, h, w)`` that filter in training; mixed, so that the decoder knows all of them."""
    chance = torch.rand(len(image), generator=generator).to(image.device)[:, None, None, None]
    scores = residual_scores(model, image, encoded).detach()
    return torch.where(chance < 0.5, scores * visual_weights(image, model.config.patch), scores)


def seam_error(error: Tensor, patch: int = PATCH) -> Tensor:
    """Mean squared step of an error image ``(B, C, H, W)`` across the borders between patches, per image."""
    across = error[:, :, :, patch::patch] - error[:, :, :, patch - 1 : -1 : patch]
    down = error[:, :, patch::patch] - error[:, :, patch - 1 : -1 : patch]
    return (across.pow(2).mean((1, 2, 3)) + down.pow(2).mean((1, 2, 3))) / 2


def loss(model: TaTok, image: Tensor, options: Options, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """The training objective and its parts for images ``(B, 3, H, W)`` in [-1, 1]."""
    encoded = model.encode(image)
    depth = model.config.depth
    share = training_shares(len(image), depth, generator).to(image.device)
    if model.config.fixed_rate:
        share = torch.full_like(share, depth)
    keep = select(training_scores(model, image, encoded, generator), share)
    output = model.decode(encoded, keep)
    error = (output - image) / 2
    mse = error.pow(2).mean((1, 2, 3))
    mean = grid_to_pixels(encoded.prior.mean, model.config.patch)
    mean_mse = ((mean - image) / 2).pow(2).mean((1, 2, 3))
    bits = encoded.information.mean((2, 3))
    weights = torch.full((depth,), options.prior_weight * options.refinement_prior, device=image.device)
    weights[0] = options.prior_weight
    # The root gives smooth pictures, whose error is small but visible, the weight that PSNR gives them;
    # at an error of 0.003 (25 dB) it has the slope of the plain squared error.
    seams = seam_error(error, model.config.patch)
    distortion = (mse + options.seam_weight * seams + 1e-5).sqrt() * (2 * math.sqrt(0.003))
    total = distortion + options.mean_weight * mean_mse + (weights * bits).sum(1)
    total = total + options.rate_weight * encoded.slope.mean((2, 3)).sum(1)
    local = torch.stack([left.pow(2).mean((1, 2, 3)) / 4 for left in encoded.left]).mean(0)
    total = total + options.local_weight * local
    parts = {"mse": mse.mean().detach(), "mean_mse": mean_mse.mean().detach(), "bits": bits.mean().detach()}
    full = (share >= depth).float()
    # NaN where no image keeps all; nothing here waits for the device.
    parts["psnr_all"] = (-10 * torch.log10(mse.detach()) * full).sum() / full.sum()
    parts["loss"] = total.mean().detach()
    return total.mean(), parts
