"""The networks of a bundle, for the tokenizer and streams. Inputs and outputs are plain arrays of one image."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import PATCH_VALUES, WINDOW_VALUES
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.session import Session, Tensors


@dataclass(frozen=True, slots=True)
class CellContext:
    """Output of the context network on the grid of cells, for ``N`` patches in raster order."""

    coarse: NDArray[np.float32]
    """Features ``(Dc, N)``."""
    smooth: NDArray[np.float32]
    """Interpolated mean pixels ``(192, N)``."""


@dataclass(slots=True)
class Prior:
    """Output of the context network for ``N`` patches, in raster order."""

    context: NDArray[np.float32]
    """Features ``(Dc, N)``."""
    mean: NDArray[np.float32]
    """Mean pixels ``(192, N)`` in [-1, 1], (y, x, rgb) order."""
    log2_probs: NDArray[np.float32]
    """Log2 probability of each level of each code dimension of a stack, ``(K * sum(levels), N)``."""
    entropy: NDArray[np.float32]
    """Conditional entropy of each token of a stack in bits, ``(K, N)``."""
    expected: NDArray[np.float32]
    """Conditional mean of the code values of a stack, ``(K * D, N)``; those of the first token first."""


class Networks:
    """Runs the graphs; safe to call from several threads."""

    def __init__(self, session: Session, context_width: int) -> None:
        self.session = session
        """Runs the graphs."""
        self.context_width = context_width
        """Channels of the context."""

    def global_codes(self, image: NDArray[np.uint8], bgr: bool, clock: Clock) -> NDArray[np.int32]:
        """Codes ``(D, hc, wc)`` of the global tokens of an image, uint8 ``(H, W, 3)``."""
        with clock.stage("cells"):
            cells = kernels.image_to_cells(image, bgr)
        with clock.stage("global_encoder"):
            return cast("NDArray[np.int32]", self.session.run("global_encoder", {"cells": cells[None]})["codes"][0])

    def cell_context(self, global_codes: NDArray[np.int32], clock: Clock) -> CellContext:
        """What cells with ``global_codes``, int32 ``(D, rows, columns)``, say of the patches under them."""
        with clock.stage("cell_context"):
            outputs = self.session.run("cell_context", {"codes": np.ascontiguousarray(global_codes[None])})
        return CellContext(**_flat(outputs))

    def prior(self, global_codes: NDArray[np.int32], clock: Clock) -> Prior:
        """The prior of the patches under the cells with ``global_codes``, int32 ``(D, rows, columns)``."""
        return self.prior_of(self.cell_context(global_codes, clock), None, clock)

    def prior_of(self, cells: CellContext, patches: NDArray[np.int32] | None, clock: Clock) -> Prior:
        """The prior of some patches, in their order; of all of them by default.

        Args:
            cells: What the cells say of the patches.
            patches: Columns of ``cells``, int32 ``(P,)``, at least one.
            clock: Adds up the time.
        """
        with clock.stage("context"):
            inputs = {"coarse": cells.coarse, "smooth": cells.smooth}
            if patches is not None:
                inputs = {name: value[:, patches] for name, value in inputs.items()}
            return Prior(
                **_flat(self.session.run("context", {name: value[None, :, None] for name, value in inputs.items()}))
            )

    def features(self, count: int) -> NDArray[np.float32]:
        """Empty array for the feature rows of ``count`` patches; ``kernels.gather_features`` fills it."""
        return np.empty((count, WINDOW_VALUES + self.context_width + PATCH_VALUES), np.float32)

    def patch_codes(self, features: NDArray[np.float32], clock: Clock) -> NDArray[np.int32]:
        """Codes of the stacks ``(P, K * D)`` of patches from any images, one feature row each."""
        with clock.stage("patch_encoder"):
            return cast("NDArray[np.int32]", self.session.run("patch_encoder", {"features": features})["codes"])

    def pixels(
        self,
        state: NDArray[np.float32],
        context: NDArray[np.float32],
        mean: NDArray[np.float32],
        grid: tuple[int, int],
        clock: Clock,
    ) -> NDArray[np.float32]:
        """Pixels ``(192, N)`` in [-1, 1] from states ``(K * (D + 2), N)``, context and mean of a whole grid."""
        with clock.stage("decoder"):
            inputs = {"state": state, "context": context, "mean": mean}
            shaped = {name: value.reshape(1, -1, *grid) for name, value in inputs.items()}
            pixels = cast("NDArray[np.float32]", self.session.run("decoder", shaped)["pixels"])
        return pixels.reshape(pixels.shape[1], -1)


def _flat(outputs: Tensors) -> dict[str, NDArray[np.float32]]:
    """Maps ``(1, C, h, w)`` of one image as ``(C, h * w)``."""
    return {name: cast("NDArray[np.float32]", value.reshape(value.shape[1], -1)) for name, value in outputs.items()}


class Clock:
    """Adds up wall time per stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """Wall time of each stage so far."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts the time of its block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
