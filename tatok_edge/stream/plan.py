"""Plans of deltas: what a frame could send, decided before the patch encoder runs.

Planning runs the global encoder and the context network. It changes nothing but scratch memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.model.networks import CellContext, Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import per_value
from tatok_edge.stream.choice import HELD, Offers, lowest_price
from tatok_edge.stream.frame import CameraFrame
from tatok_edge.stream.history import PatchHistory, Refresh
from tatok_edge.stream.limits import within_tokens
from tatok_edge.stream.look import Look
from tatok_edge.stream.motion import FoundMotion, find_motion
from tatok_edge.stream.pixels import pixels_of, put_patches
from tatok_edge.stream.price import VALUE_LIMITS
from tatok_edge.stream.state import context_of, held_ahead
from tatok_edge.stream.windows import cell_of
from tatok_edge.tokens.budget import TokenBudget

VISIBLE: Final = 144.0
"""A rise of the error above this energy is visible everywhere, in grey levels squared. Its cell gets a token now."""
NEW: Final = 4.0
"""What changes after so many still frames is new; what has changed all the time has no claim to a token."""
URGENT: Final = 4.0
"""A patch does not wait for its turn where updating it is worth the price so many times."""
TURNS: Final = (4, 2)
"""Frames from one turn to the next, and parts of the picture that take turns. Patches that wait for their turn are
updated together: the networks see an area around each patch, so that many close patches cost little more than one."""
CROWDED: Final = 0.25
"""Nothing waits where more than this share of the patches has changed: the networks see most of the picture anyway."""
SPARED: Final = 0.9
"""Where so large a share of the cells with offered patches has a renewed one, the others send their global token, too:
the context need not be computed again without them."""
EAGERNESS: Final = 0.6
"""Share of the price at which a patch is looked at more closely: before that, its error after an update is a guess."""
MOST_SIMPLER: Final = 4.0
"""Largest factor by which a patch is guessed to be simpler, or less simple, than it was."""


@dataclass(frozen=True, slots=True)
class Area:
    """Some patches under their new global tokens."""

    global_ids: NDArray[np.int32]
    """Ids of the global tokens after the frame ``(hc * wc,)``."""
    context: CellContext
    """What they say of the patches, one column for each."""


@dataclass(frozen=True, slots=True)
class Renewal:
    """What renewing patches needs of the networks."""

    patches: NDArray[np.int32]
    """The patches that may be renewed, ascending."""
    cells: NDArray[np.int32]
    """Cells whose global token changes with these patches or is announced, ascending."""
    announced: NDArray[np.int32]
    """Cells whose global token is sent whether it changes or not, ascending."""
    global_ids: NDArray[np.int32]
    """Ids of the global tokens after the frame ``(hc * wc,)``."""
    prior: Prior
    """Their prior, one column each."""
    encoded: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """Those that go through the patch encoder, ascending."""
    features: NDArray[np.float32] | None = None
    """Features of these, one row each; None without patches."""


@dataclass(frozen=True, slots=True)
class DeltaPlan:
    """What a delta packet encodes, before the patch encoder."""

    look: Look
    """What was seen of the frame."""
    found: FoundMotion
    """Motion, and the error of the shown picture after it."""
    history: PatchHistory
    """The past of each patch up to this frame, without its updates."""
    changed: NDArray[np.int32]
    """Patches whose pixels have changed by more than noise."""
    refresh: Refresh
    """Progress between keyframes, after this frame's turn."""
    offers: Offers
    """What could be done."""
    renewal: Renewal | None
    """What renewing needs; None where nothing is renewed."""
    size: float
    """Size of the packet in tokens, as guessed from the past."""

    @property
    def frame(self) -> CameraFrame:
        """The frame."""
        return self.look.frame

    @property
    def features(self) -> NDArray[np.float32] | None:
        """Features of the patches that go through the patch encoder; None without patches."""
        return None if self.renewal is None else self.renewal.features

    @property
    def n_encoded(self) -> int:
        """Patches that go through the patch encoder."""
        return 0 if self.renewal is None else len(self.renewal.encoded)


def plan_delta(look: Look) -> DeltaPlan:
    """Plan a delta packet; changes nothing but scratch memory."""
    frame, options, memory, estimates = look.frame, look.options, look.memory, look.estimates
    found = find_motion(look)
    with frame.clock.stage("select"):
        changed = estimates.changed(look.change)
        beyond_noise = np.maximum(look.change - np.float32(estimates.noise or 0), 0)
        history, moved = found.history.seen(changed, beyond_noise), found.moved
        history = replace(history, curves=history.curves.copy())
        worth = history.lives() * frame.weights(options.budget)
        refreshed, announced, refresh = memory.refresh.turn(options, frame.cell_grid)
        depths = held_ahead(memory.state.held, len(announced)).depths
        visible = changed & (found.error - history.settled > np.float32(VISIBLE)) & (found.history.age >= NEW)
        outdated = (history.drift > 0) | moved
        guesses = _guesses(look, found.error, history, worth, outdated)
        look = replace(look, price=_price_now(look, guesses))
        size = guesses.size(guesses.at(look.price))
        turn = _turn(look) | (changed.mean() > CROWDED)
        due = turn | (guesses.at(URGENT * look.price) != HELD)
        wanted = outdated & (guesses.at(EAGERNESS * look.price) != HELD)
        wanted |= (depths == 0) & (guesses.at(look.price) > 0)
        wanted = wanted & due | visible | refreshed
        refinable = np.flatnonzero(history.coded & (depths > 0) & ~moved & ~wanted & due).astype(np.int32)
        known = _refinements(look, history, worth, refinable)
    renewal, offers = None, known
    if wanted.any():
        patches = np.flatnonzero(wanted).astype(np.int32)
        new_ids = _global_ids(look)
        area = _area_of(patches, new_ids, announced, look)
        new = _renewal_offers(look, found, worth, patches, area)
        # What shows its global token alone gains nothing from another one, as long as nothing has changed.
        bare = (depths == 0)[patches] & ~outdated[patches]
        new.errors[bare, 0] = np.maximum(new.now[bare], new.errors[bare, 0])
        # A patch without tokens that is held once more need not be looked at again until the price falls.
        history.curves[patches[bare]] = new.errors[bare]
        forced = refreshed[patches] if _limited(options.budget) else (refreshed | ~turn)[patches]
        new = replace(new, forced=forced, visible=visible[patches])
        most = options.budget.limits(frame.n_patches, options.tokenizer.depth)[1]
        _, fitting = within_tokens(known.joined(new), look.price, options.budget, most)
        renewal = _plan_renewal(replace(look, price=fitting), new, new_ids, announced, area)
        # Where all global tokens are sent, no patch can be refined (see held_ahead).
        whole = renewal is not None and len(renewal.cells) == frame.n_cells
        offers = new if whole else known.joined(new)
    return DeltaPlan(
        look=look,
        found=found,
        history=history,
        changed=np.flatnonzero(changed).astype(np.int32),
        refresh=refresh,
        offers=offers,
        renewal=renewal,
        size=size,
    )


def _limited(budget: TokenBudget) -> bool:
    """Whether a budget limits the packets."""
    return budget != TokenBudget(score=budget.score, max_depth=budget.max_depth)


def _turn(look: Look) -> NDArray[np.bool_]:
    """The patches whose turn it is, ``(N,)``: bands of the picture, one after the other."""
    rows, columns = look.frame.grid
    frames, parts = TURNS
    turn = np.zeros((rows, columns), np.bool_)
    number, rest = divmod(look.memory.refresh.since_key, frames)
    if rest == 0:
        part = number % parts
        turn[rows * part // parts : rows * (part + 1) // parts] = True
    return turn.ravel()


def _price_now(look: Look, guesses: Offers) -> float:
    """The price of the frame: lower where the usual one would leave more error than the target.

    It falls at most as far as the error of the shown picture exceeds the target. Where packets use all bits of a
    budget, it is the lowest one at which they are guessed to fit.
    """
    target, error = look.target, float(guesses.now.mean(dtype=np.float64))
    price, max_bits = look.memory.price, look.options.budget.max_bits
    if look.options.fill and max_bits:
        return lowest_price(
            VALUE_LIMITS[0] * (target + 1), lambda at: guesses.size(guesses.at(at)) * price.token_bits <= max_bits
        )
    if error <= target:
        return look.price

    def too_bad(price: float) -> bool:
        return error - guesses.gain(guesses.at(price)) / len(guesses.now) > target

    if not too_bad(look.price):
        return look.price
    return lowest_price(look.price * (target + 1) / (error + 1), too_bad, look.price)


def _guesses(
    look: Look,
    error: NDArray[np.float32],
    history: PatchHistory,
    worth: NDArray[np.float32],
    outdated: NDArray[np.bool_],
) -> Offers:
    """What renewing patches may do, before any network runs: as in the past, as far as the detail is the same."""
    usual = history.fixed_errors(look.detail) / np.maximum(history.curves[:, 1], 1)
    scale = np.where(outdated, np.clip(usual, 1 / MOST_SIMPLER, MOST_SIMPLER), 1).astype(np.float32)
    patches, none = look.frame.patches(), np.zeros(len(error), np.bool_)
    return Offers(
        patches=patches,
        now=error,
        errors=history.curves * scale[:, None],
        worth=worth,
        held=np.full(len(patches), HELD, np.int32),
        forced=none,
        visible=none,
        cells=patches,
        deepest=look.options.depth,
    )


def _refinements(look: Look, history: PatchHistory, worth: NDArray[np.float32], patches: NDArray[np.int32]) -> Offers:
    """What the next tokens of the held stacks of ``patches`` could do; changes since then reduce it."""
    none = np.zeros(len(patches), np.bool_)
    now, curves = history.settled[patches], history.curves[patches]
    gains = (now[:, None] - curves) * np.float32(look.memory.curves.gain_correction) - history.drift[patches, None]
    return Offers(
        patches=patches,
        now=now,
        errors=now[:, None] - gains,
        worth=worth[patches],
        held=look.memory.state.held.depths[patches],
        forced=none,
        visible=none,
        cells=cell_of(patches, look.frame.grid[1]),
        deepest=look.options.depth,
    )


def _global_ids(look: Look) -> NDArray[np.int32]:
    """Ids of the global tokens of the frame ``(hc * wc,)``."""
    frame, tokenizer = look.frame, look.options.tokenizer
    codes = tokenizer.networks.global_codes(frame.image, frame.bgr, frame.clock)
    return kernels.ids_from_codes(np.ascontiguousarray(codes.reshape(len(codes), -1).T), tokenizer.levels)


def _area_of(
    patches: NDArray[np.int32],
    new_ids: NDArray[np.int32],
    announced: NDArray[np.int32],
    look: Look,
) -> Area:
    """``patches`` (ascending) under new global tokens: those of their own cells, and announced ones."""
    state = look.memory.state
    touched = np.zeros(new_ids.size, np.bool_)
    touched[cell_of(patches, look.frame.grid[1])] = True
    touched[announced] = True
    global_ids = np.where(touched, new_ids, state.held.global_ids)
    return Area(global_ids, context_of(patches, global_ids, state, look.options.tokenizer, look.frame.clock))


def _renewal_offers(
    look: Look, found: FoundMotion, worth: NDArray[np.float32], patches: NDArray[np.int32], area: Area
) -> Offers:
    """What renewing ``patches`` could do; their context need not be known."""
    frame, options = look.frame, look.options
    columns = frame.grid[1]
    with frame.clock.stage("select"):
        mean = area.context.mean
        picture = found.picture.copy()
        put_patches(picture, patches, pixels_of(mean))
        residual = per_value(kernels.patch_change(frame.image, frame.bgr, picture)[0])[patches]
        every = np.arange(len(patches), dtype=np.int32)
        scores = kernels.patch_scores(
            frame.image, frame.bgr, mean, every, patches, columns, options.tokenizer.coding.basis
        )
        none = np.zeros(len(patches), np.bool_)
        return Offers(
            patches=patches,
            now=found.error[patches],
            errors=look.memory.curves.of(residual, scores, look.estimates.of_frame),
            worth=worth[patches],
            held=np.full(len(patches), HELD, np.int32),
            forced=none,
            visible=none,
            cells=cell_of(patches, columns),
            deepest=options.depth,
        )


def _plan_renewal(
    look: Look, offers: Offers, new_ids: NDArray[np.int32], announced: NDArray[np.int32], area: Area
) -> Renewal | None:
    """What renewing needs at the price: new global tokens only where a patch is renewed.

    ``area`` has all offered patches.
    """
    frame, networks, held = look.frame, look.options.tokenizer.networks, look.memory.state.held
    chosen = offers.at(look.price)
    best = offers.most_visible()
    encoded = chosen > 0
    if _limited(look.options.budget):
        encoded[best] = True  # at a higher price, which a limit may ask for, a cell may need the token of another patch
    renewed = (chosen != HELD) | encoded
    if not renewed.any():
        return None
    patches, columns = offers.patches[renewed], frame.grid[1]
    touched = np.unique(offers.cells)
    if len(np.unique(offers.cells[renewed])) >= SPARED * len(touched):
        announced = np.union1d(announced, touched).astype(np.int32)
        area = replace(area, context=area.context.of(np.flatnonzero(renewed)))
    else:
        area = _area_of(patches, new_ids, announced, look)
    sent = area.global_ids != held.global_ids
    sent[announced] = True
    prior = networks.prior_of(area.context, None, frame.clock)
    cells = np.flatnonzero(sent).astype(np.int32)
    renewal = Renewal(patches, cells, announced, area.global_ids, prior)
    with frame.clock.stage("gather"):
        coded = offers.patches[encoded]
        if not len(coded):
            return renewal
        source = np.searchsorted(patches, coded).astype(np.int32)
        features = networks.features(len(coded))
        kernels.gather_features(frame.image, frame.bgr, prior.context, prior.mean, source, coded, columns, out=features)
        return replace(renewal, encoded=coded, features=features)
