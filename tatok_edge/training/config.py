"""Sizes of the model, in one place.

Every module of :mod:`tatok_edge.training.model` reads its widths from a
:class:`ModelConfig`; the config travels in the checkpoint and in the bundle.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from tatok_edge.geometry import PATCH, WINDOW

Variant = Literal["tatok", "patch8", "patch16", "no-globals"]
"""``"tatok"`` is the model; the others are baselines for comparison, and are never exported.

``"patch8"`` and ``"patch16"`` are fixed-rate tokenizers: an FSQ autoencoder with one token per patch of that many
pixels, without globals, prior and filtering. ``"no-globals"`` is TaTok whose globals are constant, so that the prior
sees nothing of the picture.
"""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Widths and depths of one TaTok model."""

    name: str
    """Name of the model, as ``Tokenizer.load`` takes it."""
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """FSQ levels per code dimension, for patch and global codes alike."""
    depth: int = 1
    """Most tokens of a patch. Each token refines those before it."""
    global_width: int = 128
    """Channels of the blocks on the cell grid (global encoder and context)."""
    global_blocks: int = 2
    """Blocks of the global encoder."""
    cell_blocks: int = 2
    """Blocks of the context on the cell grid."""
    context_width: int = 96
    """Channels of the context map on the patch grid."""
    context_blocks: int = 3
    """Blocks of the context on the patch grid."""
    encoder_width: int = 192
    """Channels of the patch encoder's MLP."""
    encoder_blocks: int = 2
    """Residual blocks of the patch encoder's MLP."""
    refinement_width: int = 128
    """Channels of the MLPs that give tokens 2 to ``depth`` of a patch."""
    decoder_width: int = 128
    """Channels of the decoder's blocks."""
    decoder_blocks: int = 5
    """Blocks of the decoder."""
    head_width: int = 64
    """Channels ahead of the decoder's overlapping output convolution."""
    expansion: int = 4
    """Channel expansion inside a convolutional block."""
    mlp_expansion: int = 3
    """Channel expansion inside a block of the patch encoder."""
    kernel: int = 5
    """Side of the depthwise kernels on the cell grid."""
    decoder_kernels: tuple[int, ...] = ()
    """Side of the depthwise kernel of each block of the decoder; empty: 5 each."""
    variant: Variant = "tatok"
    """The model, or a baseline of it; made by :func:`variant_of`."""

    def __post_init__(self) -> None:
        if not self.levels or any(not 2 <= level <= 64 for level in self.levels):
            raise ValueError(f"levels must be between 2 and 64 each, got {self.levels}")
        if not 1 <= self.depth <= 8:
            raise ValueError(f"depth must be between 1 and 8, got {self.depth}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        if any(side % 2 == 0 for side in self.decoder_kernels):
            raise ValueError(f"decoder_kernels must be odd, got {self.decoder_kernels}")
        if self.decoder_kernels and len(self.decoder_kernels) != self.decoder_blocks:
            raise ValueError(
                f"decoder_kernels must have one side for each of {self.decoder_blocks} blocks, "
                f"got {self.decoder_kernels}"
            )
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {', '.join(get_args(Variant))}, got {self.variant!r}")

    @property
    def dims(self) -> int:
        """Code dimensions per token."""
        return len(self.levels)

    @property
    def stack_levels(self) -> tuple[int, ...]:
        """FSQ levels of all code dimensions of a patch: those of token 1 first."""
        return self.levels * self.depth

    @property
    def kernels(self) -> tuple[int, ...]:
        """Side of the depthwise kernel of each block of the decoder."""
        return self.decoder_kernels or (5,) * self.decoder_blocks

    @property
    def vocabulary(self) -> int:
        """Number of different token ids."""
        size = 1
        for level in self.levels:
            size *= level
        return size

    @property
    def fixed_rate(self) -> bool:
        """Whether every patch is a token, with neither globals nor prior."""
        return self.variant in ("patch8", "patch16")

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return 2 * PATCH if self.variant == "patch16" else PATCH

    @property
    def window(self) -> int:
        """Side of the window around a patch that the patch encoder sees, in pixels."""
        return self.patch * WINDOW // PATCH

    def to_dict(self) -> dict[str, object]:
        """The config as JSON-compatible values."""
        values = dataclasses.asdict(self)
        values["levels"] = list(self.levels)
        values["decoder_kernels"] = list(self.decoder_kernels)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> ModelConfig:
        """Inverse of :meth:`to_dict`; unknown keys are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown model config keys {unknown}; known are {sorted(known)}")
        found = dict(values)
        for name in {"levels", "decoder_kernels"} & set(found):
            integers = found[name]
            if not isinstance(integers, (list, tuple)):
                raise ValueError(f"{name} must be a list of integers, got {integers!r}")
            found[name] = tuple(int(v) for v in integers)
        return cls(**found)  # type: ignore[arg-type]


def variant_of(config: ModelConfig, variant: Variant) -> ModelConfig:
    """A model's config as one of its variants, of the same size (``"tatok-s8"``: 3.4 to 3.6 M parameters each).

    A fixed-rate tokenizer has one token per patch, no global encoder and no context. Its decoder has more blocks
    instead, for a fair comparison. At patch 16 it has fewer than at patch 8: its windows and patches are four times
    larger.
    """
    if variant not in ("patch8", "patch16"):
        return dataclasses.replace(config, variant=variant)
    blocks = config.decoder_blocks + config.depth + 3  # three for what a cell says of its places
    if variant == "patch8":
        blocks += config.global_blocks + config.cell_blocks + config.context_blocks
    return dataclasses.replace(
        config, variant=variant, depth=1, context_width=0, decoder_blocks=blocks, decoder_kernels=()
    )


CONFIGS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        ModelConfig(
            name="tatok-s8",
            depth=4,
            cell_blocks=4,
            decoder_kernels=(3, 3, 3, 3, 1),
        ),
        ModelConfig(
            name="tatok-b8",
            depth=4,
            decoder_kernels=(3, 3, 3, 3, 3, 1, 1, 1),
            refinement_width=256,
            global_width=256,
            global_blocks=3,
            cell_blocks=3,
            context_width=192,
            context_blocks=4,
            encoder_width=384,
            encoder_blocks=3,
            decoder_width=320,
            decoder_blocks=8,
            head_width=160,
        ),
        ModelConfig(
            name="tatok-tiny",
            depth=2,
            refinement_width=16,
            global_width=16,
            global_blocks=1,
            cell_blocks=1,
            context_width=16,
            context_blocks=1,
            encoder_width=32,
            encoder_blocks=1,
            decoder_width=32,
            decoder_blocks=1,
            head_width=16,
            expansion=2,
            mlp_expansion=2,
        ),
    )
}
"""The named sizes: ``tatok-s8`` runs in real time on a CPU, ``tatok-b8`` is for GPUs, ``tatok-tiny`` for tests.

The heavy context work of ``tatok-s8`` is on the cell grid, and its decoder sees five patches around a patch.
"""
