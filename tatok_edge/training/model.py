"""The TaTok model in PyTorch: global encoder, context, patch encoder, decoder.

Pixels are in [-1, 1] (``value / 127.5 - 1``). Images have heights and widths
that are multiples of 32. Grids: *cells* are 32x32 pixels, *patches* 8x8.

Everything but the patch encoder is a convolution without normalisation, so that
an inference engine keeps one blocked channel layout from input to output; the
patch encoder is an MLP over single patches, so that any subset of patches of any
images is one flat batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tatok_edge.geometry import CELL, PATCH, THUMBNAIL, WINDOW
from tatok_edge.training.config import ModelConfig

PIXELS = PATCH * PATCH * 3
WINDOW_PIXELS = WINDOW * WINDOW * 3
LOGIT_RANGE = 8.0  # exp(8) times 64 levels stays inside float16


# --- pixels to grids and back ----------------------------------------------------------------


def image_to_cells(image: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` to thumbnail cells ``(B, 192, H/32, W/32)``, channels in (y, x, rgb) order."""
    thumbnail = F.avg_pool2d(image, THUMBNAIL)
    return pixels_to_grid(thumbnail, CELL // THUMBNAIL)


def pixels_to_grid(image: Tensor, side: int) -> Tensor:
    """Images ``(B, C, H, W)`` to squares ``(B, side*side*C, H/side, W/side)``, channels in (y, x, c) order."""
    b, c, h, w = image.shape
    grid = image.reshape(b, c, h // side, side, w // side, side)
    return grid.permute(0, 3, 5, 1, 2, 4).reshape(b, side * side * c, h // side, w // side)


def grid_to_pixels(grid: Tensor, side: int) -> Tensor:
    """Inverse of :func:`pixels_to_grid`."""
    b, channels, h, w = grid.shape
    c = channels // (side * side)
    image = grid.reshape(b, side, side, c, h, w).permute(0, 3, 4, 1, 5, 2)
    return image.reshape(b, c, h * side, w * side)


def image_to_windows(image: Tensor, patch: int = PATCH, window: int = WINDOW) -> Tensor:
    """Images ``(B, 3, H, W)`` to 16x16 windows around each patch ``(B, H/8, W/8, 768)``, values in (y, x, rgb) order.

    Outside the image the edge is repeated.
    """
    margin = (window - patch) // 2
    padded = F.pad(image, (margin,) * 4, mode="replicate")
    windows = padded.unfold(2, window, patch).unfold(3, window, patch)
    return windows.permute(0, 2, 3, 4, 5, 1).flatten(3)


def window_centre_index(patch: int = PATCH, window: int = WINDOW) -> Tensor:
    """Indices of the 192 values of a flat window that belong to the patch in its middle."""
    index = torch.arange(window * window * 3).reshape(window, window, 3)
    margin = (window - patch) // 2
    return index[margin : margin + patch, margin : margin + patch].flatten()


# --- finite scalar quantization -----------------------------------------------------------------


class FSQ(nn.Module):
    """Finite scalar quantization: ``L`` equally wide bins on (-1, 1) per dimension.

    Mentzer et al., "Finite Scalar Quantization", arXiv 2309.15505, with bins of equal
    width for even and odd ``L``.
    """

    levels: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float32), persistent=False)

    def _levels(self, dim: int, ndim: int) -> Tensor:
        shape = [1] * ndim
        shape[dim] = -1
        return self.levels.reshape(shape)

    def codes(self, x: Tensor, dim: int) -> Tensor:
        """Unbounded values to integer codes ``0 .. L-1`` (as floats) along ``dim``."""
        half = self._levels(dim, x.ndim) * 0.5
        index = torch.floor(torch.tanh(x) * half + half)
        return torch.minimum(index.clamp_min(0.0), 2 * half - 1)

    def values(self, codes: Tensor, dim: int) -> Tensor:
        """Integer codes to bin centres in (-1, 1)."""
        return (codes * 2 + 1) / self._levels(dim, codes.ndim) - 1

    def forward(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns ``codes``, their values with a straight-through gradient, and the bounded input."""
        soft = torch.tanh(x)
        codes = self.codes(x.detach(), dim)
        hard = self.values(codes, dim)
        return codes, soft + (hard - soft).detach(), soft


# --- building blocks --------------------------------------------------------------------------


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _scale_preserving(module: nn.Module) -> None:
    """Initialise so that activations keep their scale: nothing normalises them."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, (Block, MlpBlock)):
            nn.init.kaiming_normal_(layer.expand.weight, nonlinearity="relu")
            _zero(layer.project)


class Block(nn.Module):
    """Depthwise convolution, then a two-layer MLP over channels; residual, starts as the identity."""

    def __init__(self, width: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.expand = nn.Conv2d(width, width * expansion, 1)
        self.project = nn.Conv2d(width * expansion, width, 1)
        _zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.project(F.relu(self.expand(self.depthwise(x)))))


class MlpBlock(nn.Module):
    """Residual two-layer MLP; starts as the identity."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, width * expansion)
        self.project = nn.Linear(width * expansion, width)
        _zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.project(F.relu(self.expand(x))))


def _blocks(count: int, width: int, expansion: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(*(Block(width, expansion, kernel) for _ in range(count)))


# --- the four networks ------------------------------------------------------------------------


class GlobalEncoder(nn.Module):
    """Thumbnail cells ``(B, 192, h, w)`` to unbounded global codes ``(B, D, h, w)``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.global_width
        self.skip = nn.Conv2d(PIXELS, config.dims, 1)
        self.stem = nn.Conv2d(PIXELS, width, 1)
        self.blocks = _blocks(config.global_blocks, width, config.expansion, config.kernel)
        self.out = nn.Conv2d(width, config.dims, 1)
        _scale_preserving(self)
        _zero(self.out)

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
    """``(B, sum(levels), h, w)`` log2 of the probability of each level of each code dimension."""
    entropy: Tensor
    """``(B, h, w)`` bits: the conditional entropy of the patch's code given the globals."""
    expected: Tensor
    """``(B, D, h, w)`` conditional mean of the code values."""


class Context(nn.Module):
    """Global code values ``(B, D, h, w)`` to the :class:`Prior` on the four times finer patch grid."""

    group: Tensor
    centres: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        cell_width, width = config.global_width, config.context_width
        self.stem = nn.Conv2d(config.dims, cell_width, 1)
        self.cell_blocks = _blocks(config.cell_blocks, cell_width, config.expansion, config.kernel)
        self.thumbnail_skip = nn.Conv2d(config.dims, PIXELS, 1)
        self.thumbnail = nn.Conv2d(cell_width, PIXELS, 1)
        self.to_patches = nn.Conv2d(cell_width, width, 1)
        # A patch is 2x2 thumbnail pixels; 4x4 of them, one more on each side, interpolate it.
        self.upsample = nn.Conv2d(3, PIXELS, 4, stride=2)
        self.from_mean = nn.Conv2d(PIXELS, width, 1)
        self.blocks = _blocks(config.context_blocks, width, config.expansion, config.kernel)
        self.mean = nn.Conv2d(width, PIXELS, 1)
        self.logits = nn.Conv2d(width, sum(config.levels), 1)
        _scale_preserving(self)
        for layer in (self.thumbnail, self.mean, self.logits):
            _zero(layer)
        self.fsq = FSQ(config.levels)
        group = torch.zeros(config.dims, sum(config.levels))
        centres = torch.zeros(config.dims, sum(config.levels))
        start = 0
        for d, level in enumerate(config.levels):
            group[d, start : start + level] = 1
            centres[d, start : start + level] = (torch.arange(level) * 2 + 1) / level - 1
            start += level
        # As 1x1 convolutions: sums over the levels of a dimension without splitting channels.
        self.register_buffer("group", group[:, :, None, None], persistent=False)
        self.register_buffer("centres", centres[:, :, None, None], persistent=False)

    def forward(self, values: Tensor) -> Prior:
        cells = self.cell_blocks(self.stem(values))
        active = F.relu(cells)
        pixels = self.thumbnail_skip(values) + self.thumbnail(active)
        thumbnail = F.pixel_shuffle(pixels, CELL // THUMBNAIL)
        thumbnail = torch.cat([thumbnail[:, :, :1], thumbnail, thumbnail[:, :, -1:]], 2)
        thumbnail = torch.cat([thumbnail[:, :, :, :1], thumbnail, thumbnail[:, :, :, -1:]], 3)
        mean = self.upsample(thumbnail)
        coarse = F.interpolate(self.to_patches(active), scale_factor=4.0, mode="bilinear", align_corners=False)
        context = self.blocks(coarse + self.from_mean(mean))
        active = F.relu(context)
        mean = mean + self.mean(active)
        logits = LOGIT_RANGE * torch.tanh(self.logits(active).float() / LOGIT_RANGE)
        log2_probs, entropy, expected = self.distribution(logits)
        return Prior(context, mean.float(), log2_probs, entropy, expected)

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounded logits to log2 probabilities, their entropy in bits, and the expected code values."""
        with torch.autocast(logits.device.type, enabled=False):
            weights = torch.exp(logits)
            total = F.conv2d(weights, self.group)
            log_total = torch.log(total)
            spread = F.conv2d(log_total, self.group.transpose(0, 1))
            log2_probs = (logits - spread) * (1 / math.log(2))
            surprise = F.conv2d(weights * -log2_probs, self.group) / total
            expected = F.conv2d(weights, self.centres) / total
        return log2_probs, surprise.sum(1).clamp_min(0.0), expected


class PatchEncoder(nn.Module):
    """Windows ``(..., 768)``, context ``(..., Dc)`` and mean ``(..., 192)`` to unbounded codes ``(..., D)``.

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
        _scale_preserving(self)
        _zero(self.out)
        self.register_buffer("centre", window_centre_index(config.patch, config.window), persistent=False)

    def forward(self, windows: Tensor, context: Tensor, mean: Tensor) -> Tensor:
        residual = windows[..., self.centre] - mean
        features = torch.cat([windows, context, mean], -1)
        return cast(Tensor, self.skip(residual) + self.out(F.relu(self.blocks(self.stem(features)))))


class Decoder(nn.Module):
    """Patch states and their prior to pixels ``(B, 192, h, w)`` in [-1, 1], (y, x, rgb) order.

    A state is the code values (of a kept patch) or their conditional mean (of a dropped one),
    the keep bit, and the entropy in units of 16 bits: ``(B, D + 2, h, w)``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, pixels = config.decoder_width, 3 * config.patch**2
        self.skip = nn.Conv2d(config.dims + 2, pixels, 1)
        self.stem = nn.Conv2d(config.dims + 2 + config.context_width + pixels, width, 1)
        self.blocks = _blocks(config.decoder_blocks, width, config.expansion, config.kernel)
        self.narrow = nn.Conv2d(width, config.head_width, 1)
        # Every patch's pixels come from 3x3 patches: neighbours overlap, so no seams.
        self.out = nn.Conv2d(config.head_width, pixels, 3, padding=1)
        _scale_preserving(self)
        with torch.no_grad():
            # A few code values stand beside hundreds of context and mean values: weigh them so that they are heard.
            self.stem.weight[:, : config.dims + 2] *= 8
            self.stem.weight[:, config.dims + 2 :] *= 0.7
            for name, weight in self.blocks.named_parameters():
                if name.endswith(("depthwise.weight", "expand.weight")):
                    weight.mul_(0.5)
        _zero(self.out)

    def forward(self, state: Tensor, context: Tensor, mean: Tensor) -> Tensor:
        x = self.stem(torch.cat([state, context, mean], 1))
        # No ReLU after the blocks: while "out" is still zero, training can push the whole stream below it for good.
        detail = self.out(self.narrow(self.blocks(x)))
        return cast(Tensor, mean + self.skip(state) + detail)


def decoder_state(values: Tensor, keep: Tensor, prior_expected: Tensor, entropy: Tensor) -> Tensor:
    """Code values ``(B, D, h, w)`` and keep bits ``(B, 1, h, w)`` to the state that :class:`Decoder` takes."""
    held = torch.where(keep > 0, values, prior_expected)
    return torch.cat([held, keep, entropy[:, None] / 16], 1)


@dataclass(slots=True)
class Encoded:
    """All codes of a batch of images, with what the prior says of them."""

    global_codes: Tensor
    """``(B, D, H/32, W/32)`` integers as floats."""
    prior: Prior
    codes: Tensor
    """``(B, D, H/8, W/8)`` integers as floats."""
    values: Tensor
    """Code values, straight-through."""
    information: Tensor
    """``(B, H/8, W/8)`` bits: ``-log2 q(code | globals)``."""
    slope: Tensor
    """``(B, H/8, W/8)`` zeros whose gradient is that of the information with respect to the codes."""


class TaTok(nn.Module):
    """The whole model, or one of the baselines that it is compared with (``config.variant``).

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
        bits = [level_bits for level in config.levels for level_bits in [math.log2(level)] * level]
        return Prior(
            context=zero[:, :0],
            mean=zero.expand(-1, 3 * config.patch**2, -1, -1),
            log2_probs=zero - torch.tensor(bits, device=image.device)[:, None, None],
            entropy=zero[:, 0] + math.log2(config.vocabulary),
            expected=zero.expand(-1, config.dims, -1, -1),
        )

    def encode(self, image: Tensor) -> Encoded:
        """Images ``(B, 3, H, W)`` in [-1, 1] to all codes; H and W are multiples of 32."""
        config = self.config
        global_codes, global_values = self.global_tokens(image)
        prior = self.no_prior(image) if config.fixed_rate else self.context(global_values)
        windows = image_to_windows(image, config.patch, config.window)
        raw = self.patch_encoder(windows, prior.context.permute(0, 2, 3, 1), prior.mean.permute(0, 2, 3, 1))
        codes, values, soft = self.fsq(raw.float().permute(0, 3, 1, 2), 1)
        information, slope = self.information(codes, soft, prior.log2_probs)
        return Encoded(global_codes, prior, codes, values, information, slope)

    def information(self, codes: Tensor, soft: Tensor, log2_probs: Tensor) -> tuple[Tensor, Tensor]:
        """Bits of each patch's code, ``(B, h, w)``, and a term of value zero that carries their slope.

        The gradient of the first reaches the prior (and the globals) through the probabilities, that of
        the second reaches the patch encoder through the slope between neighbouring levels: two
        weights, because codes that give way too early never learn to carry detail.
        """
        total: Tensor | None = None
        slope: Tensor | None = None
        start = 0
        for d, level in enumerate(self.config.levels):
            table = log2_probs[:, start : start + level]
            start += level
            index = codes[:, d : d + 1].long()
            bits = -table.gather(1, index)
            up = (index + 1).clamp_max(level - 1)
            down = (index - 1).clamp_min(0)
            rise = (table.gather(1, down) - table.gather(1, up)).detach() / ((up - down) * (2 / level))
            position = soft[:, d : d + 1]
            change = rise * (position - position.detach())
            total = bits if total is None else total + bits
            slope = change if slope is None else slope + change
        assert total is not None and slope is not None
        return total[:, 0], slope[:, 0]

    def decode(self, encoded: Encoded, keep: Tensor) -> Tensor:
        """Reconstruct images ``(B, 3, H, W)`` from the patches with ``keep`` ``(B, h, w)`` set."""
        prior = encoded.prior
        state = decoder_state(encoded.values, keep[:, None].float(), prior.expected, prior.entropy)
        return grid_to_pixels(self.decoder(state, prior.context, prior.mean).float(), self.config.patch)


# --- analytic start -----------------------------------------------------------------------------


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
    spread = math.atanh(0.66)
    centre = samples.mean(0)
    covariance = (samples - centre).T @ (samples - centre) / len(samples)
    variance, vectors = torch.linalg.eigh(covariance)
    variance, vectors = variance.flip(0)[:dims], vectors.flip(1)[:, :dims]
    weight = (vectors / variance.clamp_min(1e-8).sqrt() * spread).T
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
