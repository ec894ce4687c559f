"""Quality of a model in training, by score and tokens per patch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tatok_edge.geometry import CELL, PATCH
from tatok_edge.training.data import IMAGE_SUFFIXES, DataError, Picture, decode_picture
from tatok_edge.training.filtering import residual_scores, select, visual_weights
from tatok_edge.training.model import TaTok, grid_to_pixels

SHARES = (4.0, 2.0, 1.0, 0.35, 0.1)
"""Tokens per patch at which a model is evaluated, up to its depth."""


def read_watched(folder: Path) -> list[Tensor]:
    """Whole pictures of a folder in order of their names, ``(1, 3, H, W)`` in [-1, 1].

    Raises:
        DataError: none there, or one whose sides are not multiples of 32.
    """
    images = []
    for path in sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        image = decode_picture(Picture(path.name, path.read_bytes()))
        if image.shape[0] % CELL or image.shape[1] % CELL:
            raise DataError(f"{path}: width and height must be multiples of {CELL}, got {image.shape[1::-1]}")
        images.append(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    if not images:
        raise DataError(f"{folder}: no images {sorted(IMAGE_SUFFIXES)} in it")
    return images


@torch.no_grad()
def evaluate_pictures(model: TaTok, images: Sequence[Tensor]) -> dict[str, float]:
    """Mean PSNR in dB, and MS-SSIM where pytorch-msssim is installed, of whole pictures by score and share."""
    try:
        from pytorch_msssim import ms_ssim
    except ImportError:
        ms_ssim = None
    device = next(model.parameters()).device
    results: dict[str, list[float]] = {}
    for pixels in images:
        image = pixels.to(device)
        encoded = model.encode(image)
        residual = residual_scores(model, image, encoded)
        scores = {"residual": residual, "visual": residual * visual_weights(image, model.config.patch)}
        target = ((image + 1) * 127.5).round()
        for share in SHARES:
            if share > model.config.depth:
                continue
            for name, score in scores.items():
                keep = select(score, torch.tensor([share], device=device))
                output = ((model.decode(encoded, keep).clamp(-1, 1) + 1) * 127.5).round()
                mse = float((output - target).pow(2).mean())
                results.setdefault(f"psnr_{name}_{share:g}", []).append(10 * math.log10(255**2 / max(mse, 1e-6)))
                if ms_ssim is not None:
                    quality = float(ms_ssim(output, target, data_range=255))
                    results.setdefault(f"ms_ssim_{name}_{share:g}", []).append(quality)
    return {key: round(sum(values) / len(values), 4) for key, values in results.items()}


@torch.no_grad()
def evaluate(model: TaTok, images: Tensor, *, batch: int = 8) -> dict[str, float]:
    """Mean PSNR in dB per kept share, by score and at random, of images in [-1, 1].

    A fixed-rate tokenizer keeps everything: ``psnr_residual_1`` is all that it has.
    """
    results: dict[str, list[float]] = {}
    generator = torch.Generator().manual_seed(1)

    def add(key: str, values: Tensor) -> None:
        results.setdefault(key, []).extend(values.tolist())

    def psnr(output: Tensor, image: Tensor) -> Tensor:
        pixels = ((output.clamp(-1, 1) + 1) * 127.5).round()
        target = ((image + 1) * 127.5).round()
        mse = ((pixels - target) / 255).pow(2).mean((1, 2, 3))
        return -10 * torch.log10(mse.clamp_min(1e-10))

    for start in range(0, len(images), batch):
        image = images[start : start + batch]
        encoded = model.encode(image)
        depth = model.config.depth
        if model.config.fixed_rate:
            everything = torch.ones_like(encoded.information)
            add("psnr_residual_1", psnr(model.decode(encoded, everything), image))
            continue
        noise = torch.rand(encoded.information.shape, generator=generator).to(image.device)
        add("bits_per_token", encoded.information.mean((1, 2, 3)))
        add("entropy_per_token", encoded.prior.entropy.mean((1, 2, 3)))
        add("psnr_mean_only", psnr(grid_to_pixels(encoded.prior.mean, PATCH), image))
        residual = residual_scores(model, image, encoded)
        scores = {"residual": residual, "visual": residual * visual_weights(image, model.config.patch)}
        for number in range(depth):
            add(f"bits_of_token_{number + 1}", encoded.information[:, number].mean((1, 2)))
        for share in SHARES:
            if share > depth:
                continue
            shares = torch.full((len(image),), share, device=image.device)
            for name, score in {**scores, "random": noise.cummin(1).values}.items():
                if share == depth and name != next(iter(scores)):
                    continue
                add(f"psnr_{name}_{share:g}", psnr(model.decode(encoded, select(score, shares)), image))
        none = torch.zeros((len(image),), device=image.device)
        add("psnr_globals_only", psnr(model.decode(encoded, select(noise, none)), image))
    return {key: sum(values) / len(values) for key, values in results.items()}
