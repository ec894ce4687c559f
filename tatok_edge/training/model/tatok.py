"""The whole model: pictures to stacks of codes and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from tatok_edge.geometry import CELL
from tatok_edge.training.config import ModelConfig
from tatok_edge.training.model.grids import grid_to_pixels, image_to_cells, image_to_windows
from tatok_edge.training.model.layers import FSQ
from tatok_edge.training.model.networks import Context, Decoder, GlobalEncoder, PatchEncoder, Prior, Refinement


def decoder_state(values: Tensor, keep: Tensor, prior_expected: Tensor, entropy: Tensor) -> Tensor:
    """The state that :class:`Decoder` takes.

    Args:
        values: Code values ``(B, K * D, h, w)``.
        keep: Keep bits ``(B, K, h, w)``.
        prior_expected: Conditional means ``(B, K * D, h, w)``: they take the place of dropped tokens.
        entropy: Bits ``(B, K, h, w)``.
    """
    of_dims = keep.repeat_interleave(values.shape[1] // keep.shape[1], 1)
    held = torch.where(of_dims > 0, values, prior_expected)
    return torch.cat([held, keep, entropy / 16], 1)


@dataclass(slots=True)
class Encoded:
    """All codes of a batch of images, with what the prior says of them."""

    global_codes: Tensor
    """``(B, D, H/32, W/32)`` integers as floats."""
    prior: Prior
    codes: Tensor
    """``(B, K * D, H/8, W/8)`` integers as floats; those of token 1 first."""
    values: Tensor
    """Code values, straight-through."""
    information: Tensor
    """``(B, K, H/8, W/8)`` bits: ``-log2 q(code | globals)`` of each token."""
    slope: Tensor
    """``(B, K, H/8, W/8)`` zeros whose gradient is that of the information with respect to the codes."""
    left: tuple[Tensor, ...]
    """What a linear reconstruction of tokens 1 to k leaves of the residual, ``(B, H/8, W/8, 192)`` for each k."""


class TaTok(nn.Module):
    """The whole model, or one of the baselines that it is compared with (``config.variant``).

    ::

        image ─ cells ─ global_encoder ─ fsq ─ context ─> prior (context, mean, probabilities of the codes)
        window, context, mean ─ patch_encoder ─ fsq ─> z1        left1 = x - mean - local1(z1)
        left1, hidden, z1 ─ refinement ─ fsq ─> z2               left2 = left1 - local2(z2)   ... to z_depth
        kept z, keep bits, context, mean ─ decoder ─> pixels

    Shapes are those of the model; the grid of ``"patch16"`` has half as many rows and columns.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.fsq = FSQ(config.levels)
        if not config.fixed_rate:
            self.global_encoder = GlobalEncoder(config)
            self.context = Context(config)
        self.patch_encoder = PatchEncoder(config)
        self.decoder = Decoder(config)
        self.refinements = nn.ModuleList(Refinement(config, number) for number in range(1, config.depth))
        # Linear local reconstruction of each token: what the next token need not say.
        self.local = nn.ModuleList(nn.Linear(config.dims, 3 * config.patch**2) for _ in range(config.depth))
        for layer in self.local:
            nn.init.zeros_(cast(nn.Linear, layer).weight)
            nn.init.zeros_(cast(nn.Linear, layer).bias)

    def global_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and values ``(B, D, H/32, W/32)`` of the global tokens; no rows for a fixed-rate tokenizer."""
        if self.config.fixed_rate:
            none = image.new_zeros((len(image), self.config.dims, 0, image.shape[3] // CELL))
            return none, none
        codes, values, _ = self.fsq(self.global_encoder(image_to_cells(image)).float(), 1)
        if self.config.variant == "no-globals":
            return torch.zeros_like(codes), torch.zeros_like(values)
        return codes, values

    def no_prior(self, image: Tensor) -> Prior:
        """The prior of a fixed-rate tokenizer: no context, no mean, every code as likely as any other."""
        config = self.config
        grid = (len(image), 1, image.shape[2] // config.patch, image.shape[3] // config.patch)
        zero = image.new_zeros(grid)
        bits = [level_bits for level in config.stack_levels for level_bits in [math.log2(level)] * level]
        return Prior(
            context=zero[:, :0],
            mean=zero.expand(-1, 3 * config.patch**2, -1, -1),
            log2_probs=zero - torch.tensor(bits, device=image.device)[:, None, None],
            entropy=(zero + math.log2(config.vocabulary)).expand(-1, config.depth, -1, -1),
            expected=zero.expand(-1, len(config.stack_levels), -1, -1),
        )

    def encode(self, image: Tensor) -> Encoded:
        """Images ``(B, 3, H, W)`` in [-1, 1] to all codes; H and W are multiples of 32."""
        config = self.config
        global_codes, global_values = self.global_tokens(image)
        prior = self.no_prior(image) if config.fixed_rate else self.context(global_values)
        codes, values, soft, left = self.patch_codes(image, prior)
        information, slope = self.information(codes, soft, prior.log2_probs)
        return Encoded(global_codes, prior, codes, values, information, slope, left)

    def patch_codes(self, image: Tensor, prior: Prior) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        """Codes, values and bounded input of the quantizer ``(B, K * D, h, w)``, and :attr:`Encoded.left`."""
        config = self.config
        windows = image_to_windows(image, config.patch, config.window)
        context, mean = prior.context.permute(0, 2, 3, 1), prior.mean.permute(0, 2, 3, 1)
        residual = windows[..., self.patch_encoder.centre] - mean
        hidden = self.patch_encoder.hidden(windows, context, mean)
        quantized = [self.fsq(self.patch_encoder.first(residual, hidden).float(), 3)]
        left: list[Tensor] = []
        for number in range(1, config.depth):
            left.append(self.local_left(number, left[-1] if left else residual, quantized[-1][1]))
            so_far = torch.cat([values for _, values, _ in quantized], -1)
            raw = self.refinements[number - 1](left[-1], hidden, so_far)
            quantized.append(self.fsq(raw.float(), 3))
        left.append(self.local_left(config.depth, left[-1] if left else residual, quantized[-1][1]))
        codes, values, soft = (torch.cat(parts, -1).permute(0, 3, 1, 2) for parts in zip(*quantized, strict=True))
        return codes, values, soft, tuple(left)

    def local_left(self, number: int, left: Tensor, values: Tensor) -> Tensor:
        """What the linear reconstruction of token ``number`` leaves of what the tokens before it left."""
        with torch.autocast(left.device.type, enabled=False):
            return left - cast(Tensor, self.local[number - 1](values.float()))

    def score_basis(self) -> Tensor:
        """Orthonormal directions ``(K, D, 192)`` that each token adds to those before it."""
        weights = torch.cat([cast(nn.Linear, layer).weight for layer in self.local], 1)
        basis, _ = torch.linalg.qr(weights.detach().float())
        return cast(Tensor, basis.T.reshape(self.config.depth, self.config.dims, -1))

    def information(self, codes: Tensor, soft: Tensor, log2_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of each token, ``(B, K, h, w)``, and a term of value zero that carries their slope.

        The gradient of the first reaches the prior (and the globals) through the probabilities, that of
        the second reaches the patch encoder through the slope between neighbouring levels: two
        weights, because codes that give way too early never learn to carry detail.
        """
        totals: list[Tensor] = []
        slopes: list[Tensor] = []
        start = 0
        for d, level in enumerate(self.config.stack_levels):
            table = log2_probs[:, start : start + level]
            start += level
            index = codes[:, d : d + 1].long()
            bits = -table.gather(1, index)
            up = (index + 1).clamp_max(level - 1)
            down = (index - 1).clamp_min(0)
            rise = (table.gather(1, down) - table.gather(1, up)).detach() / ((up - down) * (2 / level))
            position = soft[:, d : d + 1]
            change = rise * (position - position.detach())
            if d % self.config.dims == 0:
                totals.append(bits)
                slopes.append(change)
            else:
                totals[-1] = totals[-1] + bits
                slopes[-1] = slopes[-1] + change
        return torch.cat(totals, 1), torch.cat(slopes, 1)

    def decode(self, encoded: Encoded, keep: Tensor) -> Tensor:
        """Reconstruct images ``(B, 3, H, W)`` from the tokens with ``keep`` ``(B, K, h, w)`` set."""
        prior = encoded.prior
        state = decoder_state(encoded.values, keep.float(), prior.expected, prior.entropy)
        return grid_to_pixels(self.decoder(state, prior.context, prior.mean).float(), self.config.patch)
