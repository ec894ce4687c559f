"""How training starts: a PCA codec, or the weights of a model of one token per patch."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from tatok_edge.geometry import CELL, PATCH, THUMBNAIL
from tatok_edge.training.model.grids import PIXELS, image_to_cells, pixels_to_grid
from tatok_edge.training.model.networks import Prior
from tatok_edge.training.model.tatok import TaTok

SPREAD = math.atanh(0.66)
"""One standard deviation of a principal component falls on 0.66 of the code range."""
WIDER = (1.0, 1.5, 2.2)
"""Wider code ranges that are tried for refinements: what is left has long tails."""


@torch.no_grad()
def analytic_start(model: TaTok, images: Tensor) -> None:
    """Make both levels PCA codecs, fitted to ``images`` ``(B, 3, H, W)`` in [-1, 1].

    Training then starts from a working codec: the linear skips project on principal components,
    scaled so that one standard deviation falls on 0.66 of the code range, and invert it by least
    squares; every learned branch starts at zero.
    """
    dims = model.config.dims
    prior = model.no_prior(images) if model.config.fixed_rate else _start_globals(model, images)
    patches = _rows(pixels_to_grid(images, model.config.patch) - prior.mean)
    weight, bias = _principal_components(patches, dims)
    model.patch_encoder.skip.weight.copy_(weight)
    model.patch_encoder.skip.bias.copy_(bias)
    _, values, _ = model.fsq(patches @ weight.T + bias, 1)
    weight, bias = _least_squares(values, patches)
    model.decoder.skip.weight.zero_()
    model.decoder.skip.weight[:, :dims] = weight[:, :, None, None]
    assert model.decoder.skip.bias is not None
    model.decoder.skip.bias.copy_(bias)
    start_refinements(model, images)


@torch.no_grad()
def deepen(model: TaTok, shallow: TaTok, images: Tensor) -> None:
    """Start a model of several tokens per patch from the weights of one of a single token.

    Token 1 is the code of ``shallow``; tokens 2 to K start as PCA of what the tokens before them leave
    of ``images`` ``(B, 3, H, W)``. What ``shallow`` does not have (new inputs and outputs, further blocks) starts at
    zero; depthwise kernels that are smaller keep the middle of those of ``shallow``.

    Raises:
        ValueError: ``shallow`` has several tokens per patch, or other widths.
    """
    if shallow.config.depth != 1:
        raise ValueError(
            "the model to start from must have one token per patch, or the config of the run, "
            f"got a depth of {shallow.config.depth}"
        )
    state = model.state_dict()
    for name, old in shallow.state_dict().items():
        state[name] = _widened(name, old, state[name], model)
    model.load_state_dict(state)
    start_refinements(model, images)


def _widened(name: str, old: Tensor, new: Tensor, model: TaTok) -> Tensor:
    """A weight of a model of one token per patch as that of a deeper one."""
    if old.shape == new.shape:
        return old
    dims, depth = model.config.dims, model.config.depth
    result = torch.zeros_like(new)
    if name.endswith("depthwise.weight"):
        cut = (old.shape[-1] - new.shape[-1]) // 2
        return old[:, :, cut : old.shape[-1] - cut, cut : old.shape[-1] - cut].clone()
    if name.startswith("context.logits."):
        result[: len(old)] = old
    elif name in ("decoder.skip.weight", "decoder.stem.weight"):
        bit, entropy, rest = depth * dims, depth * (dims + 1), depth * (dims + 2)
        result[:, :dims] = old[:, :dims]
        result[:, bit] = old[:, dims]
        result[:, entropy] = old[:, dims + 1]
        result[:, rest:] = old[:, dims + 2 :]
    else:
        raise ValueError(f"{name}: {tuple(old.shape)} cannot become {tuple(new.shape)}; give the same widths")
    return result


@torch.no_grad()
def start_refinements(model: TaTok, images: Tensor, *, batch: int = 16) -> None:
    """Make tokens 2 to K PCA codecs of what the tokens before them leave; their learned branches stay as they are.

    Fits the linear local reconstruction of all tokens.
    """
    dims, depth = model.config.dims, model.config.depth
    residuals, decoded, firsts = [], [], []
    for start in range(0, len(images), batch):
        image = images[start : start + batch]
        encoded = model.encode(image)
        keep = torch.zeros_like(encoded.information)
        keep[:, 0] = 1
        patch = model.config.patch
        residuals.append(_rows(pixels_to_grid(image, patch) - encoded.prior.mean))
        decoded.append(_rows(pixels_to_grid(image - model.decode(encoded, keep), patch)))
        firsts.append(_rows(encoded.values[:, :dims]))
    left, missing, values = torch.cat(residuals), torch.cat(decoded), torch.cat(firsts)
    for number in range(1, depth + 1):
        if number > 1:
            skip = cast(nn.Linear, model.refinements[number - 2].skip)
            weight, bias = _best_components(model, left)
            skip.weight.copy_(weight)
            skip.bias.copy_(bias)
            _, values, _ = model.fsq(left @ weight.T + bias, 1)
            weight, _ = _least_squares(values, missing)
            model.decoder.skip.weight[:, (number - 1) * dims : number * dims] = weight[:, :, None, None]
            missing = missing - values @ weight.T
        local = cast(nn.Linear, model.local[number - 1])
        weight, bias = _least_squares(values, left)
        local.weight.copy_(weight)
        local.bias.copy_(bias)
        left = left - values @ weight.T - bias


def _best_components(model: TaTok, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Principal components, with the code range after which least squares leave the smallest error."""
    weight, bias = _principal_components(samples, model.config.dims)
    found: list[tuple[float, Tensor, Tensor]] = []
    for wider in WIDER:
        _, values, _ = model.fsq(samples @ (weight / wider).T + bias / wider, 1)
        back, offset = _least_squares(values, samples)
        error = float((samples - values @ back.T - offset).pow(2).mean())
        found.append((error, weight / wider, bias / wider))
    _, weight, bias = min(found, key=lambda entry: entry[0])
    return weight, bias


def _start_globals(model: TaTok, images: Tensor) -> Prior:
    """The global level of the analytic start; returns the prior that it gives for ``images``."""
    cells = image_to_cells(images)
    weight, bias = _principal_components(_rows(cells), model.config.dims)
    model.global_encoder.skip.weight.copy_(weight[:, :, None, None])
    assert model.global_encoder.skip.bias is not None
    model.global_encoder.skip.bias.copy_(bias)
    _, values = model.global_tokens(images)
    weight, bias = _least_squares(_rows(values), _rows(cells))
    # pixel_shuffle wants (rgb, y, x) order where cells are (y, x, rgb).
    side = CELL // THUMBNAIL
    order = torch.arange(PIXELS).reshape(side, side, 3).permute(2, 0, 1).flatten()
    context = model.context
    context.thumbnail_skip.weight.copy_(weight[order][:, :, None, None])
    assert context.thumbnail_skip.bias is not None and context.upsample.bias is not None
    context.thumbnail_skip.bias.copy_(bias[order])
    context.upsample.weight.copy_(bilinear_upsample_weight())
    context.upsample.bias.zero_()
    return cast(Prior, context(values))


def _rows(grid: Tensor) -> Tensor:
    return grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])


def _principal_components(samples: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Weight and bias that project ``samples`` on their principal components, scaled for the quantizer."""
    centre = samples.mean(0)
    covariance = (samples - centre).T @ (samples - centre) / len(samples)
    variance, vectors = torch.linalg.eigh(covariance)
    variance, vectors = variance.flip(0)[:dims], vectors.flip(1)[:, :dims]
    weight = (vectors / variance.clamp_min(1e-8).sqrt() * SPREAD).T
    return weight, -(weight @ centre)


def _least_squares(values: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias that predict ``samples`` from ``values``."""
    design = torch.cat([values, torch.ones(len(values), 1)], 1)
    # Not the default driver: it reads memory that PyTorch leaves uninitialised, so no two runs start alike.
    solution = torch.linalg.lstsq(design, samples, driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def bilinear_upsample_weight() -> Tensor:
    """Weights ``(192, 3, 4, 4)`` that interpolate 8x8 pixels from the 4x4 thumbnail pixels around them."""
    line = torch.zeros(PATCH, 4)
    for pixel in range(PATCH):
        position = (pixel + 0.5) / THUMBNAIL + 0.5  # in thumbnail pixels, from the middle of the first
        low = math.floor(position)
        line[pixel, low] += 1 - (position - low)
        line[pixel, low + 1] += position - low
    weight = torch.zeros(PATCH, PATCH, 3, 3, 4, 4)
    for channel in range(3):
        weight[:, :, channel, channel] = line[:, None, :, None] * line[None, :, None, :]
    return weight.reshape(PIXELS, 3, 4, 4)
