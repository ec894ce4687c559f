"""Refined tokens: chosen again, and corrected, by what the decoder makes of them (analysis by synthesis).

The encoder decides on every token from the pixels around its patch. What a token does to the picture also depends on
the tokens beside it, which only the decoder knows. A *pass* runs the decoder and its derivative (the bundle's refiner)
and uses both results: the error of each patch says where further tokens help most, and the slope of the total error
says which codes should move by a level, as steps of Newton's method on integers. Tokens stay ordinary tokens: nothing
changes for whoever decodes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .networks import PATCH_VALUES, Clock, Prior
from .runtime import _kernels
from .runtime.session import Session
from .tokens import patch_grid

RATE_WEIGHT = 0.1
"""Squared error, summed over pixels in [-1, 1], that a bit is worth: about the slope of the rate-distortion curve at
half of the tokens. Refined pictures then take about as many bits as others."""
DAMPING = 2.5
"""Factor on the curvature: neighbours move in the same pass, and respond to one another."""
SIDE = 8
"""Side of a patch in pixels."""


class Refiner:
    """Runs the refiner of a bundle; safe to call from several threads.

    Args:
        session: What runs the graph ``refiner``.
        curvature: Squared norm of the decoder's response to a code, per dimension and squared change of its value.
        levels: FSQ levels per code dimension.
    """

    def __init__(self, session: Session, curvature: Sequence[float], levels: Sequence[int]) -> None:
        self._session = session
        self._curvature = tuple(curvature)
        self._levels = tuple(levels)

    def refine(
        self,
        image: NDArray[np.uint8],
        bgr: bool,
        prior: Prior,
        codes: NDArray[np.int32],
        kept: NDArray[np.int32],
        passes: int,
        clock: Clock,
        *,
        scores: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Correct the tokens of one image and, where ``scores`` are given, choose them again; their number stays.

        Args:
            image: uint8 ``(H, W, 3)``.
            bgr: The channels are in BGR order.
            prior: What the context says of its ``N`` patches.
            codes: Codes ``(N, D)`` of all patches; of those ``kept`` only, where there are no ``scores``.
            kept: Patches ``(T,)`` that the budget keeps, ascending.
            passes: How often to run the decoder and its derivative, at least 1.
            clock: Adds up the time.
            scores: What ranks the patches at first, ``(N,)``; others may be kept from 3 passes on.

        Returns:
            Positions ``(T,)``, ascending, and codes ``(T, D)``.
        """
        count, total = kept.size, len(codes)
        if count == 0:
            return kept, np.empty((0, len(self._levels)), np.int32)
        grid = patch_grid(image.shape[1], image.shape[0])
        picture = _Picture(prior, grid, *_target(image, bgr, grid))
        codes = codes.copy()
        keep = np.zeros(total, bool)
        keep[kept] = True
        done = 0
        if scores is not None and count < total and passes >= 3:
            # Tokens come in stages: each goes where the picture so far is furthest from what all tokens would give.
            stages = (passes + 2) // 2
            everything, _ = self._run(picture, np.ones(total, bool), codes, clock)
            keep = _best(scores, count // stages)
            for stage in range(2, stages + 1):
                error, slope = self._run(picture, keep, codes, clock)
                with clock.stage("refine"):
                    self._move(picture, keep, codes, slope, stage)
                    keep = _best(np.where(keep, np.float32(np.inf), error - everything), count * stage // stages)
            done = stages
        for number in range(done, passes):
            _, slope = self._run(picture, keep, codes, clock)
            with clock.stage("refine"):
                # All codes at once at first, then those of every second patch, so that neighbours see each other move.
                self._move(picture, keep, codes, slope, None if number == done else number)
        positions = np.flatnonzero(keep).astype(np.int32)
        return positions, np.ascontiguousarray(codes[positions])

    def _run(
        self, picture: _Picture, keep: NDArray[np.bool_], codes: NDArray[np.int32], clock: Clock
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Squared error ``(N,)`` of each patch, and slope ``(D, N)`` of their sum along the code values."""
        prior = picture.prior
        with clock.stage("refine"):
            positions = np.flatnonzero(keep).astype(np.int32)
            state = _kernels.decoder_state(
                np.ascontiguousarray(codes[positions]), positions, prior.expected, prior.entropy, self._levels
            )
            inputs = {
                "state": state,
                "context": prior.context,
                "mean": prior.mean,
                "target": picture.target,
                "weight": picture.weight,
            }
            outputs = self._session.run(
                "refiner", {name: value.reshape(1, -1, *picture.grid) for name, value in inputs.items()}
            )
        error, slope = outputs["error"].reshape(-1), outputs["slope"].reshape(len(self._levels), -1)
        return cast("NDArray[np.float32]", error), cast("NDArray[np.float32]", slope)

    def _move(
        self,
        picture: _Picture,
        keep: NDArray[np.bool_],
        codes: NDArray[np.int32],
        slope: NDArray[np.float32],
        turn: int | None,
    ) -> None:
        """Move one dimension of each kept code by one level, where error and bits together should fall.

        Args:
            picture: The picture.
            keep: Kept patches ``(N,)``.
            codes: Codes ``(N, D)``, changed in place.
            slope: Slope of the error, ``(D, N)``.
            turn: Only patches of one colour of a chessboard, which changes with the turn; None for all.
        """
        positions = np.flatnonzero(keep)
        if turn is not None:
            rows, columns = np.divmod(positions, picture.grid[1])
            positions = positions[(rows + columns) % 2 == turn % 2]
        chosen = codes[positions]
        best = np.zeros(positions.size, np.float32)
        dims, steps = np.zeros(positions.size, np.intp), np.zeros(positions.size, np.int32)
        start = 0
        for dim, level in enumerate(self._levels):
            bits = -picture.prior.log2_probs[start : start + level, positions]
            start += level
            here = chosen[:, dim]
            cost = np.take_along_axis(bits, here[None], 0)[0]
            width = np.float32(2 / level)
            rise = slope[dim, positions] * width
            curve = np.float32(DAMPING * self._curvature[dim]) * width * width
            for step in (1, -1):
                there = here + step
                inside = (there >= 0) & (there < level)
                more = np.take_along_axis(bits, np.where(inside, there, here)[None], 0)[0] - cost
                change = step * rise + curve + np.float32(RATE_WEIGHT) * more
                better = inside & (change < best)
                best[better] = change[better]
                dims[better], steps[better] = dim, step
        codes[positions, dims] += steps


@dataclass(frozen=True, slots=True)
class _Picture:
    """What does not change from pass to pass."""

    prior: Prior
    grid: tuple[int, int]
    target: NDArray[np.float32]
    """Pixels of each patch in [-1, 1], ``(192, N)``."""
    weight: NDArray[np.float32]
    """1 for those inside the image, 0 for others, ``(192, N)``."""


def _target(
    image: NDArray[np.uint8], bgr: bool, grid: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixels of each patch in [-1, 1] and their weight, ``(192, N)`` each: 1 inside the image, 0 outside."""
    height, width = image.shape[:2]
    rows, columns = grid
    margin = ((0, rows * SIDE - height), (0, columns * SIDE - width), (0, 0))

    def squares(values: NDArray[np.float32]) -> NDArray[np.float32]:
        split = np.pad(values, margin).reshape(rows, SIDE, columns, SIDE, 3)
        return np.ascontiguousarray(split.transpose(1, 3, 4, 0, 2)).reshape(PATCH_VALUES, rows * columns)

    pixels = (image[..., ::-1] if bgr else image).astype(np.float32) / np.float32(127.5) - 1
    return squares(pixels), squares(np.ones_like(pixels))


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.bool_]:
    """The ``count`` highest scores, the earlier of equal ones first."""
    keep = np.zeros(scores.size, bool)
    keep[np.argsort(-scores, kind="stable")[:count]] = True
    return keep
