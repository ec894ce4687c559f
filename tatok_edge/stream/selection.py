"""Selection: the patches that are updated, and those that get a token."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL_SIDE
from tatok_edge.model.networks import Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import LEAST_CHANGE, NOISE_MARGIN, ChangeEstimates
from tatok_edge.stream.frame import CameraFrame
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.state import Window, inside
from tatok_edge.tokens.budget import TokenBudget

VISIBLE: Final = 144.0
"""A change above this energy is visible everywhere, in grey levels squared. Its cell gets a token at once."""
CANDIDATE_SHARE: Final = 0.5
"""A changed patch is a candidate for an update if its value exceeds this share of the value of the last patch that
got no token."""
GLOBAL_BITS: Final = 16
"""Rough size of a global token in a packet, in bits."""
PATCH_BITS: Final = 6
"""Rough size of an updated patch in a packet, in bits, averaged over patches with and without a token."""
LONGEST_LIFE: Final = 8.0
"""Upper limit of the expected life of a token, in frames; also the expected life in a new scene."""
LIFE_RATE: Final = 0.3
"""Weight of the newest interval in the mean time between updates of a patch."""


@dataclass(frozen=True, slots=True)
class PatchHistory:
    """Loss, age and life of each patch. The arrays are never written to; each frame makes new ones."""

    held_loss: NDArray[np.float32]
    """Squared error per value that the held patch adds to that of all tokens, ``(N,)``, in grey levels squared;
    negative where refining has made it better."""
    age: NDArray[np.float32]
    """Frames since the last update, ``(N,)``."""
    life: NDArray[np.float32]
    """Mean time between updates, ``(N,)``, in frames."""

    def lives(self) -> NDArray[np.float32]:
        """For how many frames a new token of each patch is expected to last, ``(N,)``."""
        lives: NDArray[np.float32] = np.clip(np.maximum(self.life, self.age), 1, LONGEST_LIFE)
        return lives

    def older(self) -> PatchHistory:
        """The same one frame later."""
        return replace(self, age=self.age + np.float32(1))

    def updated(self, patches: NDArray[np.int32], held_loss: NDArray[np.float32]) -> PatchHistory:
        """The same after the update of ``patches``, with a new ``held_loss`` of all patches."""
        age, life = self.age.copy(), self.life.copy()
        life[patches] += LIFE_RATE * (age[patches] - life[patches])
        age[patches] = 0
        return PatchHistory(held_loss, age, life)


@dataclass(frozen=True, slots=True)
class Refresh:
    """The progress of the interval between keyframes, or of the round of a rolling refresh."""

    since_key: int = 0
    """Frames since the last keyframe."""
    next_cell: int = 0
    """First cell of the next turn of the rolling refresh, in raster order."""

    def key_due(self, options: StreamOptions) -> bool:
        """Whether the interval makes the next frame a keyframe."""
        return options.refresh == "key" and 0 < options.keyframe_interval <= self.since_key + 1

    def turn(
        self, options: StreamOptions, cell_grid: tuple[int, int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32], Refresh]:
        """The next turn of the rolling refresh.

        Returns:
            Which patches are updated in any case ``(N,)``, the cells whose global token is sent in any case, and the
            progress after the turn.
        """
        rows, columns = cell_grid
        turn = np.zeros((rows, columns), np.bool_)
        announced, following = np.zeros(0, np.int64), self.next_cell
        if options.refresh == "rolling" and options.keyframe_interval:
            start, count = self.next_cell, -(-rows * columns // options.keyframe_interval)
            turn.ravel()[start : start + count] = True
            following = start + count if start + count < rows * columns else 0
            # A round begins with all global tokens, so that a new receiver can read the codes from there on.
            announced = np.arange(rows * columns) if start == 0 else np.flatnonzero(turn)
        patches = turn.repeat(CELL_SIDE, 0).repeat(CELL_SIDE, 1).ravel()
        return patches, announced.astype(np.int32), replace(self, next_cell=following)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The patches that may be updated, and why."""

    loss: NDArray[np.float32]
    """Squared error per value that each patch of the frame would add if it were held, ``(N,)``."""
    patches: NDArray[np.int32]
    """The candidates ``(C,)``, ascending."""
    visible: NDArray[np.bool_]
    """Which of them have changed visibly ``(C,)``."""
    refreshed: NDArray[np.bool_]
    """Which of them are updated at any cost ``(C,)``."""


def find_candidates(
    frame: CameraFrame,
    options: StreamOptions,
    estimates: ChangeEstimates,
    changes: tuple[NDArray[np.float32], NDArray[np.float32]],
    history: PatchHistory,
    threshold: float,
    refreshed: NDArray[np.bool_],
) -> Candidates:
    """The patches that may be updated.

    Args:
        frame: The frame.
        options: Options of the encoder.
        estimates: Noise, measured with this frame.
        changes: Change of each patch in full detail and in means of 4x4 pixels, ``(N,)``, in grey levels squared.
        history: History of the patches up to this frame.
        threshold: Loss times life above which a patch gets a token.
        refreshed: Patches that are updated at any cost ``(N,)``.
    """
    change, coarse = changes
    noise = estimates.noise or 0.0
    changed = change > NOISE_MARGIN * noise
    # Detail that codes cannot follow costs next to nothing, but it has changed.
    beyond = np.where(changed, np.maximum(coarse - np.float32(noise / 16), LEAST_CHANGE), np.float32(0))
    loss = history.held_loss + beyond
    visible = changed & (change - np.float32(noise) > VISIBLE)
    life = history.lives()
    value = loss * life
    due = visible | (changed & (value > threshold)) | (history.held_loss * life > threshold)
    wanted = due | (changed & (value > CANDIDATE_SHARE * threshold))
    # Patches that can wait must not widen the window, because the time for the context grows with it.
    wanted &= box_around(due.reshape(frame.grid)).ravel()
    if options.budget.max_bits is not None:
        leave_for_later(wanted, loss, frame.cell_grid, options.budget.max_bits)
    wanted |= refreshed
    patches = np.flatnonzero(wanted).astype(np.int32)
    return Candidates(loss, patches, visible[patches], refreshed[patches])


def choose(loss: NDArray[np.float32], life: NDArray[np.float32], allowed: float) -> tuple[NDArray[np.bool_], float]:
    """The patches that get a token so that the loss of the others sums to at most ``allowed``.

    Dynamic Token Filtering over time: patches are ranked by ``loss * life``, what a token brings for as long as it
    lasts. The smallest number of best patches that leaves out no more than ``allowed`` gets a token.

    Returns:
        Their mask, and the ``loss * life`` of the best patch without a token (infinite where none needs one).
    """
    chosen = np.zeros(len(loss), np.bool_)
    value = loss * life
    order = np.argsort(value, kind="stable")
    # The sum may fall at first, where refined patches have a negative loss: the last place within the limit counts.
    below = np.flatnonzero(np.cumsum(loss[order], dtype=np.float64) <= allowed)
    dropped = int(below[-1]) + 1 if len(below) else 0
    chosen[order[dropped:]] = True
    chosen &= loss > 0
    return chosen, float(value[order[dropped]]) if dropped < len(order) else float("inf")


def box_around(marks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The smallest box of whole rows and columns that holds all ``marks`` ``(h, w)``, as a mask."""
    box = np.zeros_like(marks)
    rows, columns = np.flatnonzero(marks.any(1)), np.flatnonzero(marks.any(0))
    if len(rows):
        box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def best_per_cell(scores: NDArray[np.float32], among: NDArray[np.bool_], cells: NDArray[np.int32]) -> NDArray[np.int64]:
    """Indices of the highest score in each cell, of the patches ``among``."""
    indices = np.flatnonzero(among)
    order = indices[np.lexsort((-scores[indices], cells[indices]))]
    first = np.ones(len(order), np.bool_)
    first[1:] = cells[order[1:]] != cells[order[:-1]]
    return order[first]


def leave_for_later(
    wanted: NDArray[np.bool_], loss: NDArray[np.float32], cell_grid: tuple[int, int], max_bits: int
) -> None:
    """Keep in ``wanted`` ``(N,)`` only the cells that lose most, as many as fit roughly into ``max_bits``."""
    rows, columns = cell_grid
    area = (rows, CELL_SIDE, columns, CELL_SIDE)
    total = (loss * wanted).reshape(area).sum((1, 3)).ravel()
    bits = GLOBAL_BITS + PATCH_BITS * wanted.reshape(area).sum((1, 3)).ravel()
    order = np.argsort(-total, kind="stable")
    later = order[1:][np.cumsum(bits[order])[1:] > max_bits]
    wanted.reshape(area).transpose(0, 2, 1, 3)[np.unravel_index(later, (rows, columns))] = False


# --- the budget ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limiter:
    """Takes tokens away until a budget holds."""

    budget: TokenBudget
    """The budget."""
    frame: CameraFrame
    """The frame."""
    patches: NDArray[np.int32]
    """The candidates ``(C,)``."""
    window: Window
    """Cells under which ``prior`` lies."""
    prior: Prior
    """Prior of the patches in the window."""

    def before_codes(self, token: NDArray[np.bool_], cost: NDArray[np.float32]) -> NDArray[np.bool_]:
        """The tokens that remain if the score can be computed without codes, else all.

        Args:
            token: Which candidates get a token ``(C,)``.
            cost: Error of each candidate without a token ``(C,)``.
        """
        if self.budget.score == "information":
            return token
        scores = cost
        if self.budget.score == "entropy":
            scores = self.prior.entropy[inside(self.patches, self.window, self.frame.grid[1])]
        return self._filtered(token, scores)

    def after_codes(
        self, token: NDArray[np.bool_], encoded: NDArray[np.int32], codes: NDArray[np.int32], levels: tuple[int, ...]
    ) -> NDArray[np.bool_]:
        """The tokens that remain if the score is the information of the codes, else all.

        Args:
            token: Which candidates get a token ``(C,)``.
            encoded: Patches that were encoded, ascending ``(E,)``.
            codes: Their codes ``(E, D)``.
            levels: FSQ levels.
        """
        if self.budget.score != "information":
            return token
        chosen = self.patches[token]
        rows = np.ascontiguousarray(codes[np.searchsorted(encoded, chosen)])
        source = inside(chosen, self.window, self.frame.grid[1])
        scores = np.zeros(len(self.patches), np.float32)
        scores[token] = kernels.information(self.prior.log2_probs, rows, source, levels)
        return self._filtered(token, scores)

    def _filtered(self, token: NDArray[np.bool_], scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        budget, chosen = self.budget, np.flatnonzero(token)
        smallest, largest = budget.limits(self.frame.n_patches)
        if budget.tau == 1.0 and budget.floor_bits == 0.0 and len(chosen) <= largest:
            return token
        indices, _ = kernels.dtf(
            np.ascontiguousarray(scores[chosen])[None],
            tau=budget.tau,
            min_tokens=smallest,
            max_tokens=largest,
            floor_bits=budget.floor_bits,
        )
        kept = np.zeros_like(token)
        kept[chosen[indices]] = True
        return kept
