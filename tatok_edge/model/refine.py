"""Refining: the error of the decoded picture chooses and corrects the tokens (analysis by synthesis).

The encoder makes each token from the pixels around its patch. The effect of a token on the picture also depends on the
tokens beside it, and only the decoder sees that effect. A *pass* runs the bundle's refiner, which is the decoder with
its derivative. The error of each patch shows where further tokens help most. The slope of the total error shows which
codes should move by a level, as steps of Newton's method on integers. Refined tokens are ordinary tokens: the decoder
needs no change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.geometry import CELL_SIDE, PATCH, PATCH_VALUES, Image, patch_grid
from tatok_edge.model.filtering import filter_tokens
from tatok_edge.model.networks import Clock, Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.session import Session, TokenFilter
from tatok_edge.tokens.checks import depths_of

Rates = Callable[[NDArray[np.int32], NDArray[np.int32]], NDArray[np.float32]]
"""Takes codes ``(T, D)`` of the tokens at positions ``(T,)``. Returns the log2 probability that the entropy model
gives each level of each code, ``(sum(levels), T)``."""

RATE_WEIGHT = 0.15
"""Squared error that one bit is worth, summed over pixels in [-1, 1]: about the slope of the rate-distortion curve at
half of the tokens."""
LARGE = np.float32(1 << 14)
"""More than the squared error of any patch, as a gain that keeps a token."""
DAMPING = 2.5
"""Factor on the curvature. It makes steps smaller, because neighbours move in the same pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineTask:
    """A picture to refine tokens for, and the effort to spend on it."""

    image: Image
    """uint8 ``(H, W, 3)``."""
    bgr: bool
    """The channels are in BGR order."""
    context: NDArray[np.float32]
    """Context of its ``N`` patches, ``(Dc, N)``."""
    mean: NDArray[np.float32]
    """Mean of its patches, ``(192, N)``."""
    rates: Rates
    """Cost of codes."""
    passes: int
    """Number of runs of the decoder and its derivative, at least 1."""
    clock: Clock
    """Adds up the time."""


class Refiner:
    """Runs the refiner of a bundle; safe to call from several threads.

    Args:
        session: Runs the graph ``refiner``.
        curvature: Squared norm of the decoder's response to a code, per dimension of a stack and squared change of its
            value.
        levels: FSQ levels per code dimension.
    """

    def __init__(self, session: Session, curvature: Sequence[float], levels: Sequence[int]) -> None:
        self._session = session
        self._curvature = np.array(curvature, np.float32).reshape(-1, len(levels))
        self._levels = tuple(levels)

    def refine(
        self,
        task: RefineTask,
        prior: Prior,
        stacks: NDArray[np.int32],
        kept: NDArray[np.int32],
        *,
        scores: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Correct the tokens of one image and, where ``scores`` are given, choose them again; their number stays.

        Args:
            task: The image; positions for its ``rates`` are those of the image.
            prior: Prior of its ``N`` patches.
            stacks: Codes ``(N, K * D)`` of all patches; without ``scores``, only those of ``kept`` are read.
            kept: Patch of each token ``(T,)`` that the budget keeps, never falling.
            scores: First scores of the tokens that may be kept, ``(N, depth)``; from 3 passes on, others may be kept.

        Returns:
            Positions ``(T,)``, never falling, and codes ``(T, D)``.
        """
        count = kept.size
        if count == 0:
            return kept, np.empty((0, len(self._levels)), np.int32)
        picture, passes, rates, clock = _Picture(task), task.passes, task.rates, task.clock
        codes = stacks.reshape(len(stacks), -1, len(self._levels)).copy()
        positions, done = kept, 0

        def state_of(positions: NDArray[np.int32]) -> NDArray[np.float32]:
            chosen = codes[positions, depths_of(positions) - 1]
            return kernels.decoder_state(chosen, positions, prior.expected, prior.entropy, self._levels)

        if scores is not None and count < scores.size and passes >= 3:
            # Tokens are added in stages: each stage takes the tokens that gain most.
            done = stages = (passes + 2) // 2
            allowed = scores.shape[1]
            everything, _ = self._run(picture, state_of(np.repeat(_all(len(stacks)), allowed)), clock)
            positions = _best(scores, count // stages)
            for stage in range(2, stages + 1):
                error, slope = self._run(picture, state_of(positions), clock)
                with clock.stage("refine"):
                    tokens = depths_of(positions) - 1
                    chosen = codes[positions, tokens]
                    codes[positions, tokens] = self._moved(
                        chosen,
                        positions,
                        tokens,
                        rates(chosen, positions),
                        slope,
                        picture.every_second(positions, stage),
                    )
                    gains = _gains(scores, error - everything, np.bincount(positions, minlength=len(stacks)))
                    positions = _best(gains, count * stage // stages)
        tokens = depths_of(positions) - 1
        chosen = codes[positions, tokens]
        self._correct(picture, state_of(positions), positions, tokens, chosen, rates, passes - done, clock)
        return positions, chosen

    def correct(
        self,
        task: RefineTask,
        state: NDArray[np.float32],
        positions: NDArray[np.int32],
        depths: NDArray[np.int32],
        codes: NDArray[np.int32],
        *,
        hidden: NDArray[np.bool_],
    ) -> NDArray[np.int32]:
        """Correct some of the tokens of a picture; all others stay.

        Args:
            task: The picture; its ``rates`` are called with ``positions``.
            state: Input of the decoder, ``(K * (D + 2), N)``; changed in place.
            positions: Patch of each token that may change, ``(T,)``, never falling.
            depths: Depth of these tokens in their stacks, ``(T,)``, from 1.
            codes: Their codes ``(T, D)``, the same as in ``state``.
            hidden: Patches ``(N,)`` whose pixels are not shown.

        Returns:
            The corrected codes ``(T, D)``.
        """
        picture = _Picture(task)
        picture.weight[:, hidden] = 0
        codes = codes.copy()
        self._correct(picture, state, positions, depths - 1, codes, task.rates, task.passes, task.clock)
        return codes

    def _correct(
        self,
        picture: _Picture,
        state: NDArray[np.float32],
        positions: NDArray[np.int32],
        tokens: NDArray[np.int32],
        codes: NDArray[np.int32],
        rates: Rates,
        passes: int,
        clock: Clock,
    ) -> None:
        """As :meth:`correct`, but changes ``state`` and ``codes`` in place; ``tokens`` count from 0."""
        levels = np.array(self._levels, np.float32)
        rows = tokens[:, None] * len(levels) + np.arange(len(levels))
        for number in range(passes):
            _, slope = self._run(picture, state, clock)
            with clock.stage("refine"):
                # The first pass moves all patches. Later passes move every second one, so patches follow neighbours.
                turn = picture.every_second(positions, passes - number) if number else np.ones(positions.size, np.bool_)
                codes[:] = self._moved(codes, positions, tokens, rates(codes, positions), slope, turn)
                state[rows, positions[:, None]] = (2 * codes + 1) / levels - 1

    def _run(
        self, picture: _Picture, state: NDArray[np.float32], clock: Clock
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Squared error ``(N,)`` of each patch, and slope ``(K * D, N)`` of their sum along the code values."""
        with clock.stage("refine"):
            inputs = {
                "state": state,
                "context": picture.context,
                "mean": picture.mean,
                "target": picture.target,
                "weight": picture.weight,
            }
            outputs = self._session.run(
                "refiner", {name: value.reshape(1, -1, *picture.grid) for name, value in inputs.items()}
            )
        error, slope = outputs["error"].reshape(-1), outputs["slope"].reshape(self._curvature.size, -1)
        return cast("NDArray[np.float32]", error), cast("NDArray[np.float32]", slope)

    def _moved(
        self,
        codes: NDArray[np.int32],
        positions: NDArray[np.int32],
        tokens: NDArray[np.int32],
        log2_probs: NDArray[np.float32],
        slope: NDArray[np.float32],
        turn: NDArray[np.bool_],
    ) -> NDArray[np.int32]:
        """Codes ``(T, D)`` with one dimension of one token of a patch moved by one level, where that should pay.

        Args:
            codes: Codes ``(T, D)``.
            positions: Patch of each token, ``(T,)``, never falling.
            tokens: Number of each token in its stack, ``(T,)``, from 0.
            log2_probs: Log2 probability of each level, ``(sum(levels), T)``.
            slope: Slope of the error along the code values of all patches, ``(K * D, N)``.
            turn: Tokens that may move, ``(T,)``.
        """
        best = np.zeros(len(codes), np.float32)
        dims, steps = np.zeros(len(codes), np.intp), np.zeros(len(codes), np.int32)
        start = 0
        for dim, level in enumerate(self._levels):
            bits = -log2_probs[start : start + level]
            start += level
            here = codes[:, dim]
            cost = np.take_along_axis(bits, here[None], 0)[0]
            width = np.float32(2 / level)
            rise = slope[tokens * len(self._levels) + dim, positions] * width
            curve = np.float32(DAMPING) * self._curvature[tokens, dim] * width * width
            for step in (1, -1):
                there = here + step
                inside = (there >= 0) & (there < level)
                more = np.take_along_axis(bits, np.where(inside, there, here)[None], 0)[0] - cost
                change = step * rise + curve + np.float32(RATE_WEIGHT) * more
                better = inside & (change < best)
                best[better] = change[better]
                dims[better], steps[better] = dim, step
        # One token of a stack moves at a time: they mend the same pixels.
        begins = np.flatnonzero(np.diff(positions, prepend=-1))
        least = np.repeat(np.minimum.reduceat(best, begins), np.diff(begins, append=len(codes)))
        steps[(best > least) | ~turn] = 0
        moved = codes.copy()
        moved[np.arange(len(codes)), dims] += steps
        return moved


class _Picture:
    """Inputs of the refiner that stay the same in all passes."""

    def __init__(self, task: RefineTask) -> None:
        image = task.image
        self.grid = patch_grid(image.shape[1], image.shape[0])
        self.context, self.mean = task.context, task.mean
        self.target, self.weight = _target(image, task.bgr, self.grid)

    def every_second(self, positions: NDArray[np.int32], turn: int) -> NDArray[np.bool_]:
        """Mask of the patches on one colour of a chessboard; the colour changes with ``turn``."""
        rows, columns = np.divmod(positions, self.grid[1])
        colour: NDArray[np.bool_] = (rows + columns) % 2 == turn % 2
        return colour


def rates_of(model: IntegerEntropyModel, global_codes: NDArray[np.int32]) -> Rates:
    """Cost of patch tokens given global tokens with codes ``(D, hc, wc)``."""
    dims, hc, wc = global_codes.shape
    rows = np.ascontiguousarray(global_codes.reshape(dims, -1).T)
    grid = (hc * CELL_SIDE, wc * CELL_SIDE)
    return lambda codes, positions: model.patch_log2_probs(codes, positions, rows, grid)


def _target(
    image: NDArray[np.uint8], bgr: bool, grid: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pixels of each patch in [-1, 1] and their weight, ``(192, N)`` each: 1 inside the image, 0 outside."""
    height, width = image.shape[:2]
    rows, columns = grid
    margin = ((0, rows * PATCH - height), (0, columns * PATCH - width), (0, 0))

    def squares(values: NDArray[np.float32]) -> NDArray[np.float32]:
        split = np.pad(values, margin).reshape(rows, PATCH, columns, PATCH, 3)
        return np.ascontiguousarray(split.transpose(1, 3, 4, 0, 2)).reshape(PATCH_VALUES, rows * columns)

    pixels = (image[..., ::-1] if bgr else image).astype(np.float32) / np.float32(127.5) - 1
    return squares(pixels), squares(np.ones_like(pixels))


def _all(count: int) -> NDArray[np.int32]:
    return np.arange(count, dtype=np.int32)


def _gains(scores: NDArray[np.float32], lacking: NDArray[np.float32], depths: NDArray[np.intp]) -> NDArray[np.float32]:
    """Expected gain of each token, ``(N, depth)``; of those that are kept, more than any.

    Args:
        scores: First scores of the tokens.
        lacking: Error of each patch beyond that with all tokens, ``(N,)``: its next tokens share it as their scores.
        depths: Tokens that each patch keeps, ``(N,)``.
    """
    kept = np.arange(scores.shape[1]) < depths[:, None]
    left = np.where(kept, np.float32(0), scores)
    share = left / np.maximum(left.sum(1, keepdims=True), np.float32(1e-12))
    gains: NDArray[np.float32] = np.where(kept, LARGE, share * np.maximum(lacking, 0)[:, None]).astype(np.float32)
    return gains


def _best(scores: NDArray[np.float32], count: int) -> NDArray[np.int32]:
    """Positions of the ``count`` tokens with the highest scores ``(N, depth)``."""
    return filter_tokens(scores, TokenFilter(1.0, count, count, 0.0))
