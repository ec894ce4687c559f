"""The networks of a bundle, for the tokenizer and streams. Inputs and outputs are plain arrays of one image."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BundleError
from tatok_edge.geometry import PATCH_VALUES, WINDOW_VALUES
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.session import Session, Tensors


@dataclass(frozen=True, slots=True)
class CellContext:
    """Output of the context network on the grid of cells, for ``N`` patches in raster order."""

    coarse: NDArray[np.float32]
    """Features ``(Dc, N)``, from which the context of each patch is computed."""
    mean: NDArray[np.float32]
    """Mean pixels ``(192, N)`` in [-1, 1], (y, x, rgb) order."""

    def of(self, patches: NDArray[np.integer]) -> CellContext:
        """The columns of some patches."""
        return CellContext(np.take(self.coarse, patches, axis=1), np.take(self.mean, patches, axis=1))


@dataclass(slots=True)
class Prior:
    """What the global tokens say of ``N`` patches, in raster order: the output of the context network."""

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

    def of(self, patches: NDArray[np.int32]) -> Prior:
        """The prior of some of the patches, in their order."""
        return Prior(**{field.name: np.take(getattr(self, field.name), patches, axis=1) for field in fields(self)})


_Maps = TypeVar("_Maps", CellContext, Prior)


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
            codes = self.session.run("global_encoder", {"cells": cells[None]})
            return cast("NDArray[np.int32]", _output(codes, "codes", np.int32, (1, None, *cells.shape[1:]))[0])

    def cell_context(self, global_codes: NDArray[np.int32], clock: Clock) -> CellContext:
        """What cells with ``global_codes``, int32 ``(D, rows, columns)``, say of the patches under them."""
        with clock.stage("cell_context"):
            outputs = self.session.run("cell_context", {"codes": np.ascontiguousarray(global_codes[None])})
        return _flat(outputs, CellContext)

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
            coarse, mean = cells.coarse, cells.mean
            if patches is not None:
                coarse, mean = (np.take(value, patches, axis=1) for value in (coarse, mean))
            outputs = self.session.run("context", {"coarse": coarse[None, :, None]})
            return _flat({**outputs, "mean": mean[None, :, None]}, Prior)

    def features(self, count: int) -> NDArray[np.float32]:
        """Empty array for the feature rows of ``count`` patches; ``kernels.gather_features`` fills it."""
        return np.empty((count, WINDOW_VALUES + self.context_width + PATCH_VALUES), np.float32)

    def patch_codes(self, features: NDArray[np.float32], clock: Clock) -> NDArray[np.int32]:
        """Codes of the stacks ``(P, K * D)`` of patches from any images, one feature row each."""
        with clock.stage("patch_encoder"):
            outputs = self.session.run("patch_encoder", {"features": features})
            return cast("NDArray[np.int32]", _output(outputs, "codes", np.int32, (len(features), None)))

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
            outputs = self.session.run("decoder", shaped)
            pixels = cast("NDArray[np.float32]", _output(outputs, "pixels", np.float32, (1, PATCH_VALUES, *grid)))
        return pixels.reshape(PATCH_VALUES, -1)


def _flat(outputs: Tensors, kind: type[_Maps]) -> _Maps:
    """Maps ``(1, C, h, w)`` of one image as ``(C, h * w)``.

    Raises:
        BundleError: An output is missing, or is no such map.
    """
    maps = [_output(outputs, field.name, np.float32, (1, None, None, None)) for field in fields(kind)]
    return kind(*(cast("NDArray[np.float32]", value.reshape(value.shape[1], -1)) for value in maps))


def _output(
    outputs: Tensors, name: str, kind: type[np.generic], shape: tuple[int | None, ...]
) -> NDArray[np.float32] | NDArray[np.int32]:
    """An output of a graph; None in ``shape`` allows any length. The kernels rely on types and shapes.

    Raises:
        BundleError: The output is missing, or has another type or shape.
    """
    value = outputs.get(name)
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != kind
        or value.ndim != len(shape)
        or any(wanted not in (None, got) for wanted, got in zip(shape, value.shape, strict=True))
    ):
        got = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise BundleError(
            f"a graph of the model gives {got} as {name!r}, not {np.dtype(kind)} {shape}; the bundle is damaged, or "
            "was made for another version: export or install it again"
        )
    return value


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
