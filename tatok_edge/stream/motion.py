"""Motion: vectors that move shown pixels with the camera, where that removes more error than it costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE, PATCH
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import per_value
from tatok_edge.stream.history import LIVES, PatchHistory
from tatok_edge.stream.look import Look
from tatok_edge.stream.windows import in_motion, move_flags, patches_of, sources, turns_of

LOST_SHARE: Final = 0.25
"""Cost of moving a patch away from its tokens, which can then not be refined, as a share of these tokens."""
VECTOR_BITS: Final = 16
"""Bits of a vector in a packet, about. Where all take more than half of a budget of bits, nothing moves."""
RENEWED_BEYOND: Final = 3.0
"""A patch whose error costs more tokens than this is assumed to be renewed in any case: no vector helps it."""


@dataclass(frozen=True, slots=True)
class FoundMotion:
    """The shown picture before a frame's updates: moved where that pays."""

    vectors: NDArray[np.int32]
    """Where the next search begins, int32 ``(hc, wc, 2)``, in half pixels."""
    motion: NDArray[np.int32] | None
    """Vector of each cell; None where nothing moves."""
    picture: NDArray[np.uint8]
    """The shown picture after the move, uint8 RGB, padded to whole cells."""
    error: NDArray[np.float32]
    """Its error in each patch, ``(N,)``, in grey levels squared per value."""
    history: PatchHistory
    """The past of each patch, that of moved ones from where their pixels come from."""
    moved: NDArray[np.bool_]
    """Which patches show moved pixels, ``(N,)``."""


def find_motion(look: Look) -> FoundMotion:
    """Find vectors where they remove more error than they cost; writes to scratch memory only."""
    frame, options, memory, error = look.frame, look.options, look.memory, look.error
    state, history = memory.state, memory.history
    still = FoundMotion(memory.vectors, None, state.picture, error, history, state.moved)
    if not options.motion:
        return still
    with frame.clock.stage("motion"):
        per_token = look.price / LIVES[0]  # what moves is soon changed again; a vector costs as much as a token
        rise = np.clip(error - history.settled, 0, RENEWED_BEYOND * per_token)
        active = _of_cells(rise, frame.cell_grid) > per_token
        if not active.any():
            return still
        vectors = memory.vectors.copy()
        in_kernel = PATCH * PATCH * per_token
        largest = PATCH * PATCH * 255**2
        kernels.find_motion(
            frame.image,
            frame.bgr,
            state.picture,
            active.view(np.uint8),
            int(min(RENEWED_BEYOND * in_kernel, largest)),
            int(min(in_kernel, largest)),
            vectors,
            scratch=memory.scratch.motion,
        )
        if not vectors.any():
            return still
        after = per_value(kernels.patch_change(frame.image, frame.bgr, kernels.move_cells(state.picture, vectors))[0])
        # What will be renewed in any case gains nothing from a vector.
        most = history.settled + np.float32(RENEWED_BEYOND * per_token)
        gain = _of_cells(np.minimum(error, most) - np.minimum(after, most), frame.cell_grid)
        lost = np.where(state.moved, 0, state.held.depths).astype(np.float32)
        gain -= _of_cells(lost, frame.cell_grid) * np.float32(LOST_SHARE * per_token)
        gain[_spoiling(vectors, memory.refresh.renewed_cells(frame.cell_grid))] = 0
        motion = _worth_it(vectors, gain, per_token)
        max_bits = options.budget.max_bits
        if not motion.any() or (max_bits and VECTOR_BITS * len(turns_of(motion)[0]) > max_bits / 2):
            return FoundMotion(vectors, None, state.picture, error, history, state.moved)
        picture = kernels.move_cells(state.picture, motion)
        after = per_value(kernels.patch_change(frame.image, frame.bgr, picture)[0])
        moving = in_motion(motion).ravel()
        return FoundMotion(vectors, motion, picture, after, _moved_history(history, motion), state.moved | moving)


def _moved_history(history: PatchHistory, motion: NDArray[np.int32]) -> PatchHistory:
    source = sources(motion)
    moved = {name: getattr(history, name)[source] for name in ("settled", "fixed", "predicted")}
    return replace(history, **moved)


def _of_cells(values: NDArray[np.float32], cell_grid: tuple[int, int]) -> NDArray[np.float32]:
    """Sums over the patches of each cell, ``(hc, wc)``."""
    rows, columns = cell_grid
    sums: NDArray[np.float32] = values.reshape(rows, CELL_SIDE, columns, CELL_SIDE).sum((1, 3))
    return sums


def _spoiling(vectors: NDArray[np.int32], renewed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells that the refresh has renewed in this round, but whose vector reads from others, ``(hc, wc)``.

    A receiver that joined at the start of the round may not know what is there yet.
    """
    if not renewed.any():
        return renewed
    unknown = patches_of(~renewed)
    rows, columns = renewed.shape
    spoiled = move_flags(unknown, vectors).reshape(rows, CELL_SIDE, columns, CELL_SIDE).any((1, 3))
    spoiling: NDArray[np.bool_] = spoiled & renewed
    return spoiling


def _worth_it(vectors: NDArray[np.int32], gain: NDArray[np.float32], cost: float) -> NDArray[np.int32]:
    """The vectors that gain more than they cost; a vector of the cell before costs nothing more."""
    motion = np.zeros_like(vectors).reshape(-1, 2)
    before = [0, 0]
    for cell, (vector, gained) in enumerate(zip(vectors.reshape(-1, 2).tolist(), gain.ravel().tolist(), strict=True)):
        before = vector if any(vector) and gained > (0 if vector == before else cost) else [0, 0]
        motion[cell] = before
    return motion.reshape(vectors.shape)
