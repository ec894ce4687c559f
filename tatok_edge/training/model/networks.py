"""The networks of the model: global encoder, context, patch encoder, decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_edge.geometry import CELL, CELL_SIDE, THUMBNAIL
from tatok_edge.training.config import ModelConfig
from tatok_edge.training.model.grids import PIXELS, window_centre_index
from tatok_edge.training.model.layers import FSQ, MlpBlock, blocks, scale_preserving, zero

LOGIT_RANGE = 8.0  # exp(8) times 64 levels stays inside float16


class GlobalEncoder(nn.Module):
    """Thumbnail cells ``(B, 192, h, w)`` to unbounded global codes ``(B, D, h, w)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.global_width
        self.skip = nn.Conv2d(PIXELS, config.dims, 1)
        self.stem = nn.Conv2d(PIXELS, width, 1)
        self.blocks = blocks((config.kernel,) * config.global_blocks, width, config.expansion)
        self.out = nn.Conv2d(width, config.dims, 1)
        scale_preserving(self)
        zero(self.out)

    def forward(self, cells: Tensor) -> Tensor:
        return cast(Tensor, self.skip(cells) + self.out(F.relu(self.blocks(self.stem(cells)))))


@dataclass(slots=True)
class Prior:
    """What the global tokens say about the patches; all maps are on the patch grid."""

    context: Tensor
    """``(B, Dc, h, w)`` features."""
    mean: Tensor
    """``(B, 192, h, w)`` mean pixels of each patch, in [-1, 1], (y, x, rgb) order."""
    log2_probs: Tensor
    """``(B, K * sum(levels), h, w)`` log2 of the probability of each level of each code dimension."""
    entropy: Tensor
    """``(B, K, h, w)`` bits: the conditional entropy of each token of the patch given the globals."""
    expected: Tensor
    """``(B, K * D, h, w)`` conditional mean of the code values."""


class Context(nn.Module):
    """Global code values ``(B, D, h, w)`` to the :class:`Prior` on the four times finer patch grid.

    :meth:`cells` works on the grid of cells, where it is cheap, and gives the mean pixels, so scores need no more.
    :meth:`patches` works on each patch for itself, so that it is computed only where a patch is coded.
    """

    group: Tensor
    centres: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        cell_width, width = config.global_width, config.context_width
        self.stem = nn.Conv2d(config.dims, cell_width, 1)
        self.cell_blocks = blocks((config.kernel,) * config.cell_blocks, cell_width, config.expansion)
        self.thumbnail_skip = nn.Conv2d(config.dims, PIXELS, 1)
        self.thumbnail = nn.Conv2d(cell_width, PIXELS, 1)
        self.to_patches = nn.Conv2d(cell_width, width, 1)
        # A patch is 2x2 thumbnail pixels; 4x4 of them, one more on each side, interpolate it.
        self.upsample = nn.Conv2d(3, PIXELS, 4, stride=2)
        self.from_thumbnail = nn.Conv2d(3, width, 4, stride=2)
        # Each of the 16 places of a cell reads the cell in its own way: nothing else tells patches apart.
        self.places = nn.Conv2d(cell_width, CELL_SIDE**2 * width, 1)
        self.place_means = nn.Conv2d(cell_width, CELL_SIDE**2 * PIXELS, 1)
        self.blocks = blocks((1,) * config.context_blocks, width, config.expansion)
        self.logits = nn.Conv2d(width, sum(config.stack_levels), 1)
        scale_preserving(self)
        for layer in (self.thumbnail, self.places, self.place_means, self.logits):
            zero(layer)
        self.fsq = FSQ(config.levels)
        group = torch.zeros(len(config.stack_levels), sum(config.stack_levels))
        centres = torch.zeros(len(config.stack_levels), sum(config.stack_levels))
        start = 0
        for d, level in enumerate(config.stack_levels):
            group[d, start : start + level] = 1
            centres[d, start : start + level] = (torch.arange(level) * 2 + 1) / level - 1
            start += level
        # As 1x1 convolutions: sums over the levels of a dimension without splitting channels.
        self.register_buffer("group", group[:, :, None, None], persistent=False)
        self.register_buffer("centres", centres[:, :, None, None], persistent=False)

    def forward(self, values: Tensor) -> Prior:
        coarse, mean = self.cells(values)
        context, *rest = self.patches(coarse)
        return Prior(context, mean.float(), *rest)

    def cells(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What the cells say of patches: features ``(B, Dc, 4h, 4w)`` and mean pixels ``(B, 192, 4h, 4w)``."""
        cells = self.cell_blocks(self.stem(values))
        active = F.relu(cells)
        pixels = self.thumbnail_skip(values) + self.thumbnail(active)
        thumbnail = F.pixel_shuffle(pixels, CELL // THUMBNAIL)
        thumbnail = torch.cat([thumbnail[:, :, :1], thumbnail, thumbnail[:, :, -1:]], 2)
        thumbnail = torch.cat([thumbnail[:, :, :, :1], thumbnail, thumbnail[:, :, :, -1:]], 3)
        coarse = F.interpolate(self.to_patches(active), scale_factor=4.0, mode="bilinear", align_corners=False)
        coarse = coarse + F.pixel_shuffle(self.places(active), CELL_SIDE) + self.from_thumbnail(thumbnail)
        return coarse, self.upsample(thumbnail) + F.pixel_shuffle(self.place_means(active), CELL_SIDE)

    def patches(self, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Context, log2 probabilities, entropy and expected code values of patches, as :class:`Prior` has them.

        They come from the features that :meth:`cells` gives. No patch reads another: any set of them goes.
        """
        context = self.blocks(coarse)
        logits = LOGIT_RANGE * torch.tanh(self.logits(F.relu(context)).float() / LOGIT_RANGE)
        return context, *self.distribution(logits)

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounded logits to log2 probabilities, the entropy of each token in bits, and the expected code values."""
        with torch.autocast(logits.device.type, enabled=False):
            weights = torch.exp(logits)
            total = F.conv2d(weights, self.group)
            log_total = torch.log(total)
            spread = F.conv2d(log_total, self.group.transpose(0, 1))
            log2_probs = (logits - spread) * (1 / math.log(2))
            surprise = F.conv2d(weights * -log2_probs, self.group) / total
            expected = F.conv2d(weights, self.centres) / total
            entropy = torch.stack([token.sum(1) for token in surprise.chunk(self.config.depth, 1)], 1)
        return log2_probs, entropy.clamp_min(0.0), expected


class PatchEncoder(nn.Module):
    """Windows ``(..., 768)``, context ``(..., Dc)`` and mean ``(..., 192)`` to unbounded codes of token 1 ``(..., D)``.

    No patch talks to another, so the leading dimensions are free.
    """

    centre: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, pixels = config.encoder_width, 3 * config.patch**2
        self.skip = nn.Linear(pixels, config.dims)
        self.stem = nn.Linear(3 * config.window**2 + config.context_width + pixels, width)
        self.blocks = nn.Sequential(*(MlpBlock(width, config.mlp_expansion) for _ in range(config.encoder_blocks)))
        self.out = nn.Linear(width, config.dims)
        scale_preserving(self)
        zero(self.out)
        self.register_buffer("centre", window_centre_index(config.patch, config.window), persistent=False)

    def hidden(self, windows: Tensor, context: Tensor, mean: Tensor) -> Tensor:
        """What the patch encoder knows of a patch ``(..., encoder_width)``; refinements read it too."""
        return F.relu(cast(Tensor, self.blocks(self.stem(torch.cat([windows, context, mean], -1)))))

    def first(self, residual: Tensor, hidden: Tensor) -> Tensor:
        """Unbounded codes of token 1 from the residual of the mean ``(..., 192)`` and :meth:`hidden`."""
        return cast(Tensor, self.skip(residual) + self.out(hidden))

    def forward(self, windows: Tensor, context: Tensor, mean: Tensor) -> Tensor:
        return self.first(windows[..., self.centre] - mean, self.hidden(windows, context, mean))


class Refinement(nn.Module):
    """Unbounded codes ``(..., D)`` of a further token of a patch.

    It reads ``left`` ``(..., 192)``, the residual after the linear local reconstruction of the tokens before it, the
    patch encoder's hidden features, and the code values of the tokens before it ``(..., number * D)``. So it
    also mends the quantization error of those tokens.
    """

    def __init__(self, config: ModelConfig, number: int) -> None:
        super().__init__()
        width, pixels = config.refinement_width, 3 * config.patch**2
        self.skip = nn.Linear(pixels, config.dims)
        self.stem = nn.Linear(pixels + config.encoder_width + number * config.dims, width)
        self.block = MlpBlock(width, 2)
        self.out = nn.Linear(width, config.dims)
        scale_preserving(self)
        zero(self.out)

    def forward(self, left: Tensor, hidden: Tensor, values: Tensor) -> Tensor:
        features = self.stem(torch.cat([left, hidden, values], -1))
        return cast(Tensor, self.skip(left) + self.out(F.relu(self.block(features))))


class Decoder(nn.Module):
    """Patch states and their prior to pixels ``(B, 192, h, w)`` in [-1, 1], (y, x, rgb) order.

    A state is, for each of the K tokens of a patch, the code values (of a kept token) or their conditional mean (of a
    dropped one); then the K keep bits; then the K entropies in units of 16 bits: ``(B, K * (D + 2), h, w)``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, pixels = config.decoder_width, 3 * config.patch**2
        state = config.depth * (config.dims + 2)
        self.skip = nn.Conv2d(state, pixels, 1)
        self.stem = nn.Conv2d(state + config.context_width + pixels, width, 1)
        self.blocks = blocks(config.kernels, width, config.expansion)
        self.narrow = nn.Conv2d(width, config.head_width, 1)
        # Every patch's pixels come from 3x3 patches: neighbours overlap, so no seams.
        self.out = nn.Conv2d(config.head_width, pixels, 3, padding=1)
        scale_preserving(self)
        with torch.no_grad():
            # A few code values stand beside hundreds of context and mean values: weigh them so that they are heard.
            self.stem.weight[:, :state] *= 8
            self.stem.weight[:, state:] *= 0.7
            for name, weight in self.blocks.named_parameters():
                if name.endswith(("depthwise.weight", "expand.weight")):
                    weight.mul_(0.5)
        zero(self.out)

    def forward(self, state: Tensor, context: Tensor, mean: Tensor) -> Tensor:
        x = self.stem(torch.cat([state, context, mean], 1))
        # No ReLU after the blocks: while "out" is still zero, training can push the whole stream below it for good.
        detail = self.out(self.narrow(self.blocks(x)))
        return cast(Tensor, mean + self.skip(state) + detail)
