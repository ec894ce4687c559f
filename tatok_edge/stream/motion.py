"""Motion: vectors that move held pixels with the camera, and giving up on them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE, PATCH_VALUES
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates, Reference
from tatok_edge.stream.frame import CameraFrame
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.selection import PatchHistory
from tatok_edge.stream.state import in_motion, sources, turns_of

MOTION_CAP: Final = 3.0
"""A patch that differs by more than this is assumed to need a token in any case. The unit is the loss at which a
patch gets a token."""
MOTION_COST: Final = 1.0
"""Cost of a motion vector, in tokens."""
LARGEST_CAP: Final = 1 << 22
"""Upper limit of the cap of the motion search, a squared difference summed over a patch of one channel."""
VECTOR_BITS: Final = 24
"""Upper limit of the size of a motion vector in a packet, in bits, besides one bit for each cell."""
MOTION_SHARE: Final = 0.1
"""Tokens that motion must save in a frame, as a share of the number of patches. Measuring the cost of motion needs an
occasional decode, which a smaller saving does not pay for."""
LEAST_MOVING_GAIN: Final = 0.1
"""A measurement with a gain below this value counts as failed: motion costs more than it saves."""
FAR_BEYOND: Final = 4.0
"""A measured loss above this factor times the allowed loss ends motion at once."""
FAILURES: Final = 2
"""Failed measurements in a row that end motion."""
MOTION_PAUSE: Final = 60
"""Frames without motion after it has failed."""


@dataclass(frozen=True, slots=True)
class MotionSearch:
    """Where the search for motion vectors begins, and whether motion suits the scene."""

    vectors: NDArray[np.int32]
    """Vectors found last, int32 ``(hc, wc, 2)``, in half pixels."""
    moves_from: int = 0
    """Number of the first frame that may use motion again."""
    failures: int = 0
    """Failed measurements in a row."""

    def judged(self, excess: float, allowed: float, gain: float, index: int) -> tuple[MotionSearch, bool]:
        """The same after a measurement of the error of moved pixels, and whether motion is given up.

        Args:
            excess: Additional error of the shown picture, as a share of the error of all tokens.
            allowed: The allowed share.
            gain: Share of the allowance in use, after the measurement.
            index: Number of the frame.
        """
        if excess > FAR_BEYOND * allowed:
            failures = self.failures + FAILURES
        else:
            failures = self.failures + 1 if gain < LEAST_MOVING_GAIN else 0
        if failures >= FAILURES:
            return replace(self, moves_from=index + MOTION_PAUSE, failures=0), True
        return replace(self, failures=failures), False


@dataclass(frozen=True, slots=True)
class FoundMotion:
    """The result of a search for motion."""

    search: MotionSearch
    """Where the next search begins."""
    motion: NDArray[np.int32] | None
    """Vector of each cell, int32 ``(hc, wc, 2)``, in half pixels; None where nothing moves."""
    changes: NDArray[np.int32]
    """Squared differences of each patch to the picture after the move, int32 ``(2, N)``."""
    held_loss: NDArray[np.float32]
    """Held loss of each patch after the move, ``(N,)``."""


def find_motion(
    frame: CameraFrame,
    options: StreamOptions,
    reference: Reference,
    search: MotionSearch,
    history: PatchHistory,
    estimates: ChangeEstimates,
    threshold: float,
) -> FoundMotion:
    """Find vectors where they save tokens.

    Args:
        frame: The frame.
        options: Options of the encoder.
        reference: The reference picture; only its scratch buffers are written.
        search: Where the search begins.
        history: History of the patches up to the frame before.
        estimates: Noise up to the frame before.
        threshold: Loss times life above which a patch gets a token.
    """
    with frame.clock.stage("change"):
        changes = reference.changes(frame)
    with frame.clock.stage("motion"):
        still = FoundMotion(search, None, changes, history.held_loss)
        # With a rolling refresh, a receiver that joins late could never tell which moved pixels are right.
        allowed = options.motion and options.refresh != "rolling" and frame.index >= search.moves_from
        if not (allowed and 0 < threshold < np.inf):
            return still
        noise = np.float32((estimates.noise or 0.0) / 16)
        lives = history.lives()
        now = _tokens_of_cells(changes, history.held_loss, noise, lives, threshold, frame.cell_grid)
        active = now > MOTION_COST
        if not active.any():
            return still
        cap = int(min(MOTION_CAP * 64 * threshold / float(np.median(lives)), LARGEST_CAP))
        motion = search.vectors.copy()
        kernels.find_motion(
            frame.image,
            frame.bgr,
            reference.picture,
            active.view(np.uint8),
            cap,
            int(MOTION_COST * cap),
            motion,
            scratch=reference.motion_scratch,
        )
        still = replace(still, search=replace(search, vectors=motion))
        if not motion.any():
            return still
        moved = reference.moved_changes(frame, motion)
        held_loss = history.held_loss[sources(motion)]
        moving = in_motion(motion).ravel()
        # The gain of refining is not moved along: interpolation may lose it, which only a decode would show.
        held_loss[moving] = np.maximum(held_loss[moving], 0)
        vectors = len(turns_of(motion)[0])
        after = _tokens_of_cells(moved, held_loss, noise, lives, threshold, frame.cell_grid)
        saved = float((now - after).sum()) - MOTION_COST * vectors
        bits = VECTOR_BITS * vectors + now.size
        if saved <= MOTION_SHARE * frame.n_patches or bits > (options.budget.max_bits or np.inf) / 4:
            return still
        return replace(still, motion=motion, changes=moved, held_loss=held_loss)


def _tokens_of_cells(
    changes: NDArray[np.int32],
    held_loss: NDArray[np.float32],
    noise: np.float32,
    lives: NDArray[np.float32],
    threshold: float,
    cell_grid: tuple[int, int],
) -> NDArray[np.float32]:
    """Rough number of tokens that each cell needs, ``(hc, wc)``."""
    coarse = changes[1].astype(np.float32) * np.float32(1 / PATCH_VALUES)
    value = (held_loss + np.maximum(coarse - noise, 0)) * lives
    rows, columns = cell_grid
    patches = np.minimum(value / threshold, 1).reshape(rows, CELL_SIDE, columns, CELL_SIDE)
    tokens: NDArray[np.float32] = patches.sum((1, 3))
    return tokens
