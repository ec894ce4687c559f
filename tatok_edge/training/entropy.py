"""Fit the integer entropy model of :mod:`tatok_edge.entropy` to the codes of a trained model."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..entropy import (
    HIDDEN_SHIFT,
    INPUT_SCALE,
    LOGIT_STEP,
    NEIGHBOURS,
    OUTPUT_SHIFT,
    PHASES,
    SHARE_LIMITS,
    TOTAL,
    cell_inputs,
    exp_table,
    share_inputs,
)
from .data import CropSource
from .model import TaTok

WIDTH = 96
CROP = 256


def frequencies(counts: NDArray[np.integer]) -> NDArray[np.uint16]:
    """Counts to positive integers that sum to 4096, in proportion."""
    level = len(counts)
    weights = counts.astype(np.int64) + 1
    freqs = 1 + weights * (TOTAL - level) // weights.sum()
    freqs[freqs.argmax()] += TOTAL - freqs.sum()
    return cast("NDArray[np.uint16]", freqs.astype(np.uint16))


@torch.no_grad()
def collect(
    model: TaTok, source: CropSource, images: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, NDArray[np.int64]]:
    """Codes of random crops, filtered at random shares as a user would filter them.

    Returns:
        inputs ``(n, I)`` int32 per cell, codes ``(n, 16, D)`` int64 and kept ``(n, 16)`` bool of its patches,
        and counts ``(D, L)`` of the global codes.
    """
    generator = torch.Generator().manual_seed(seed)
    levels = model.config.levels
    inputs, codes, kept = [], [], []
    counts = np.zeros((len(levels), max(levels)), np.int64)
    for _ in range(images // 8):
        encoded = model.encode(source.crops(8, CROP, generator))
        for i in range(8):
            share = math.exp(math.log(0.03) * float(torch.rand((), generator=generator)))
            if float(torch.rand((), generator=generator)) < 0.15:
                share = 1.0
            scores = encoded.information[i].flatten()
            count = max(1, round(share * scores.numel()))
            mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
            mask[scores.topk(count).indices] = True
            hc, wc = encoded.global_codes.shape[2:]
            global_codes = encoded.global_codes[i].flatten(1).T.int().cpu().numpy()
            for d in range(len(levels)):
                counts[d] += np.bincount(global_codes[:, d], minlength=max(levels))
            x = cell_inputs(global_codes, (hc, wc), levels)
            row = share_inputs(count, scores.numel())
            inputs.append(torch.from_numpy(np.concatenate([x, np.broadcast_to(row, (len(x), len(row)))], 1)))
            grid = encoded.codes[i].cpu().reshape(len(levels), hc, 4, wc, 4)
            codes.append(grid.permute(1, 3, 2, 4, 0).reshape(hc * wc, PHASES, len(levels)).long())
            kept.append(mask.cpu().reshape(hc, 4, wc, 4).permute(0, 2, 1, 3).reshape(hc * wc, PHASES))
    return torch.cat(inputs), torch.cat(codes), torch.cat(kept), counts


class _Net(nn.Module):
    """The float twin: hidden activations in [0, 4), which become 0..255."""

    def __init__(self, inputs: int, states: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, PHASES * states)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).clamp(0, 255 / INPUT_SCALE)
        x = self.second(x).clamp(0, 255 / INPUT_SCALE)
        out: Tensor = self.third(x)
        return out.reshape(len(x), PHASES, -1)


def fit(
    model: TaTok, source: CropSource, *, images: int = 640, steps: int = 1500, seed: int = 0
) -> dict[str, NDArray[np.integer]]:
    """Fit the tables on crops of the training pictures; a few minutes on a CPU."""
    levels = model.config.levels
    inputs, codes, kept, counts = collect(model, source, images, seed + 99)
    torch.manual_seed(seed)
    net = _Net(NEIGHBOURS * len(levels) + len(SHARE_LIMITS) + 1, sum(levels))
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    useful = kept.any(1).nonzero()[:, 0]
    for _ in range(steps):
        index = useful[torch.randint(len(useful), (1024,), generator=generator)]
        logits = net(inputs[index].float() / INPUT_SCALE)
        mask = kept[index]
        start, total = 0, logits.new_zeros(())
        for d, level in enumerate(levels):
            chosen = logits[..., start : start + level][mask]
            total = total + F.cross_entropy(chosen, codes[index, :, d][mask])
            start += level
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        scheduler.step()
    hidden, output = 1 << HIDDEN_SHIFT, (1 << OUTPUT_SHIFT) * LOGIT_STEP

    def integers(values: Tensor, scale: float) -> NDArray[np.int32]:
        return np.round(values.detach().double().numpy() * scale).astype(np.int32)

    global_freqs = np.zeros((len(levels), max(levels)), np.uint16)
    for d, level in enumerate(levels):
        global_freqs[d, :level] = frequencies(counts[d, :level])
    return {
        "global_freqs": global_freqs,
        "exp": exp_table(),
        "w1": integers(net.first.weight.T, hidden),
        "b1": integers(net.first.bias, hidden * INPUT_SCALE),
        "w2": integers(net.second.weight.T, hidden),
        "b2": integers(net.second.bias, hidden * INPUT_SCALE),
        "w3": integers(net.third.weight.T, output / INPUT_SCALE),
        "b3": integers(net.third.bias, output),
    }
