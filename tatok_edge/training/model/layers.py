"""Building blocks of the networks: the quantizer, residual blocks, and how weights start."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def zero(layer: nn.Conv2d | nn.Linear) -> None:
    """Set weights and bias to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def scale_preserving(module: nn.Module) -> None:
    """Initialise so that activations keep their scale: nothing normalises them."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for layer in module.modules():
        if isinstance(layer, (Block, MlpBlock)):
            nn.init.kaiming_normal_(layer.expand.weight, nonlinearity="relu")
            zero(layer.project)


class Block(nn.Module):
    """Depthwise convolution, then a two-layer MLP over channels; residual, starts as the identity."""

    def __init__(self, width: int, expansion: int, kernel: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.expand = nn.Conv2d(width, width * expansion, 1)
        self.project = nn.Conv2d(width * expansion, width, 1)
        zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.project(F.relu(self.expand(self.depthwise(x)))))


class MlpBlock(nn.Module):
    """Residual two-layer MLP; starts as the identity."""

    def __init__(self, width: int, expansion: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, width * expansion)
        self.project = nn.Linear(width * expansion, width)
        zero(self.project)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.project(F.relu(self.expand(x))))


def blocks(kernels: tuple[int, ...], width: int, expansion: int) -> nn.Sequential:
    """One :class:`Block` for each side of a depthwise kernel."""
    return nn.Sequential(*(Block(width, expansion, kernel) for kernel in kernels))
