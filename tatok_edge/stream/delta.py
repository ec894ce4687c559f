"""Delta packets of a stream: which patches are updated, which get a token, and the packet."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.packet import body_crc, pack_delta
from tatok_edge.geometry import CELL_SIDE, PATCH
from tatok_edge.model.networks import Clock, Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates, noise_limit
from tatok_edge.stream.frame import CameraFrame, StreamFrame
from tatok_edge.stream.keyframe import features_of, ids_of_cells
from tatok_edge.stream.memory import DeltaWrites, Draft, Memory
from tatok_edge.stream.motion import FoundMotion
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.quality import Measured, Quality, ShownPicture, assembled, look, measurement_due, probe
from tatok_edge.stream.rate import fit
from tatok_edge.stream.selection import (
    Candidates,
    Limiter,
    PatchHistory,
    Refresh,
    best_per_cell,
    choose,
    find_candidates,
)
from tatok_edge.stream.state import StreamState, Window, cell_of, in_motion, inside, turns_of, window_around
from tatok_edge.tokens.delta import DeltaFrame

SAME_SHARE: Final = 1.0
"""A new token equal to the held one is not sent if the squared change of its patch's mean is below this share of the
patch's loss."""
TOKEN_PRICE: Final = 8
"""Rough size of an update with a token, in updates without one."""


@dataclass(frozen=True, slots=True)
class Update:
    """The networks' part of a delta plan: candidates, their prior, and who gets a token."""

    cells: NDArray[np.int32]
    """Cells whose global token is sent, ascending."""
    global_codes: NDArray[np.int32]
    """Codes of the global tokens after the frame ``(D, hc, wc)``."""
    window: Window
    """Cells whose context is computed."""
    prior: Prior
    """Prior of the patches in the window."""
    limiter: Limiter
    """Keeps the tokens within the budget."""
    cost: NDArray[np.float32]
    """Squared error per value that each candidate adds if it is updated without a token, ``(C,)``."""
    token: NDArray[np.bool_]
    """Which candidates get a token ``(C,)``, as far as that is known."""
    encoded: NDArray[np.int32]
    """Patches that go through the patch encoder, ascending."""
    features: NDArray[np.float32] | None
    """Their features, one row each; None without patches."""


@dataclass(frozen=True, slots=True)
class DeltaPlan:
    """What a delta packet encodes, before the patch encoder."""

    frame: CameraFrame
    """The frame."""
    options: StreamOptions
    """Options of the encoder."""
    memory: Memory
    """What the encoder remembers of the frames before."""
    estimates: ChangeEstimates
    """Noise and usual change, measured with this frame."""
    quality: Quality
    """Error in the scene, and the allowance, before this frame."""
    found: FoundMotion
    """Motion, and the held loss after it."""
    history: PatchHistory
    """History of the patches up to this frame, without its updates."""
    refresh: Refresh
    """Progress between keyframes, after this frame's turn."""
    candidates: Candidates
    """Patches that may be updated."""
    update: Update | None
    """Their codes and costs; None without candidates."""

    @property
    def encoded(self) -> NDArray[np.int32]:
        """Patches that go through the patch encoder, ascending."""
        return np.zeros(0, np.int32) if self.update is None else self.update.encoded

    @property
    def features(self) -> NDArray[np.float32] | None:
        """Their features, one row each; None without patches."""
        return None if self.update is None else self.update.features


def plan_delta(
    frame: CameraFrame,
    options: StreamOptions,
    memory: Memory,
    found: FoundMotion,
    estimates: ChangeEstimates,
    changes: tuple[NDArray[np.float32], NDArray[np.float32]],
    *,
    scene_cut: bool,
) -> DeltaPlan:
    """Plan a delta packet; changes nothing but scratch memory.

    Args:
        frame: The frame.
        options: Options of the encoder.
        memory: What the encoder remembers.
        found: Motion.
        estimates: Noise and usual change, measured with this frame.
        changes: Change of each patch in full detail and in means of 4x4 pixels, ``(N,)``, in grey levels squared.
        scene_cut: The scene has changed, but no keyframe is allowed.
    """
    quality = memory.quality
    if scene_cut:
        quality = replace(quality, until_probe=0)  # nothing that is known of the scene holds any longer
    with frame.clock.stage("change"):
        history = replace(memory.history, held_loss=found.held_loss).older()
        refreshed, announced, refresh = memory.refresh.turn(options, frame.cells)
        candidates = find_candidates(frame, options, estimates, changes, history, quality.threshold, refreshed)
    update = None
    if len(candidates.patches):
        update = _plan_update(frame, options, memory, quality, candidates, history.lives(), announced)
    return DeltaPlan(
        frame, options, memory, estimates, quality, found, history, refresh, candidates=candidates, update=update
    )


def _plan_update(
    frame: CameraFrame,
    options: StreamOptions,
    memory: Memory,
    quality: Quality,
    candidates: Candidates,
    life: NDArray[np.float32],
    announced: NDArray[np.int32],
) -> Update:
    networks, clock, columns, state = options.tokenizer.networks, frame.clock, frame.grid[1], memory.state
    patches = candidates.patches
    codes = networks.global_codes(frame.image, frame.bgr, clock)
    with clock.stage("select"):
        cells = cell_of(patches, columns)
        touched = np.zeros(state.global_ids.size, np.bool_)
        touched[cells] = True
        window = window_around(np.flatnonzero(touched), state.cells)
        touched[announced] = True
        mixed = np.where(touched.reshape(state.cells), codes, state.global_codes)
        differs = (mixed != state.global_codes).any(0).ravel()
        differs[announced] = True
        top, left, height, width = window
        area = mixed[:, top : top + height, left : left + width]
    prior = networks.prior(area, clock)
    limiter = Limiter(options.budget, frame, patches, window, prior)
    with clock.stage("select"):
        source = inside(patches, window, columns)
        residual = kernels.patch_residual(frame.image, frame.bgr, prior.mean, source, patches, columns)
        cost = residual * np.float32(quality.scale)
        loss = candidates.loss[patches]
        held = float(candidates.loss.sum(dtype=np.float64) - loss.sum(dtype=np.float64))
        token, _ = choose(np.minimum(cost, loss), life[patches], quality.allowed(options.max_loss_db) - held)
        token[best_per_cell(cost, candidates.visible, cells)] = True
        token = limiter.before_codes(token, cost)
    with clock.stage("gather"):
        chosen = patches if options.recompute == "always" else patches[token]
        source, buffer = inside(chosen, window, columns), memory.buffer
        kernels.scatter_columns(prior.context, source, buffer.context, chosen)
        kernels.scatter_columns(prior.mean, source, buffer.mean, chosen)
        encoded = np.arange(frame.n_patches, dtype=np.int32) if options.recompute == "always" else chosen
        features = features_of(frame, options, buffer.context, buffer.mean, encoded)
    return Update(
        cells=np.flatnonzero(differs).astype(np.int32),
        global_codes=mixed,
        window=window,
        prior=prior,
        limiter=limiter,
        cost=cost,
        token=token,
        encoded=encoded,
        features=features,
    )


# --- the packet ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a delta packet may carry, ranked."""

    plan: DeltaPlan
    """The plan."""
    token: NDArray[np.bool_]
    """Which candidates get a token ``(C,)``."""
    codes: NDArray[np.int32]
    """Codes of these tokens ``(T, D)``."""
    repeated: NDArray[np.int32]
    """Patches whose new token is the held one: they are as good as updated."""
    loss: NDArray[np.float32]
    """Squared error per value that each patch of the frame adds if it is held, ``(N,)``."""
    cost: NDArray[np.float32]
    """Squared error per value that each candidate adds if it is updated without a token, ``(C,)``."""
    order: NDArray[np.int64]
    """The candidates that are worth an update, best first."""
    global_ids: NDArray[np.int32]
    """Token ids of all cells after the frame ``(hc * wc,)``."""

    def delta(self, count: int) -> DeltaFrame:
        """The delta with the best ``count`` updates, and those of the rolling refresh."""
        plan, update, state = self.plan, self.plan.update, self.plan.memory.state
        candidates, frame, tokenizer = plan.candidates, plan.frame, plan.options.tokenizer
        active = np.zeros(len(candidates.patches), np.bool_)
        active[self.order[:count]] = True
        with_token = active & self.token
        active |= candidates.refreshed
        cells, window = np.zeros(0, np.int32), (0, 0, 0, 0)
        if update is not None and active.any():
            cells, window = update.cells, update.window
        turns, vectors = turns_of(plan.found.motion)
        return DeltaFrame(
            updated=candidates.patches[active],
            positions=candidates.patches[with_token],
            ids=kernels.ids_from_codes(self.codes, tokenizer.levels)[with_token[self.token]],
            cells=cells,
            global_ids=self.global_ids[cells],
            window=window,
            width=state.width,
            height=state.height,
            model=tokenizer.tag,
            index=frame.index,
            timestamp_us=frame.timestamp_us,
            reference=state.index,
            follows=state.crc,
            turns=turns,
            vectors=vectors,
        )

    def packed(self, count: int) -> tuple[DeltaFrame, bytes]:
        """The same delta and its packet."""
        delta, entropy_model = self.delta(count), self.plan.options.tokenizer.entropy_model
        global_ids = self.global_ids if delta.n_updated else self.plan.memory.state.global_ids
        return delta, pack_delta(delta, entropy_model, global_ids)


def draft_delta(plan: DeltaPlan, codes: NDArray[np.int32]) -> Draft:
    """Make a delta packet, and what the encoder remembers after it.

    Args:
        plan: The plan.
        codes: Codes of the encoded patches ``(E, D)``.
    """
    frame, options, clock, state = plan.frame, plan.options, plan.frame.clock, plan.memory.state
    shown = _shown_before(plan)
    with clock.stage("select"):
        contents = _contents(plan, codes)
        without_token = contents.loss.copy()
        patches = plan.candidates.patches
        without_token[patches] = np.minimum(contents.loss[patches], contents.cost)
    if options.budget.refine and len(contents.codes):
        contents = replace(contents, codes=_refined(plan, contents))
    with clock.stage("pack"):
        delta, packet = fit(contents.packed, len(contents.order), options.budget.max_bits)
    with clock.stage("update"):
        history, loss = _history_after(plan, contents, delta)
        quality = plan.quality.with_threshold(without_token, plan.history.lives(), options.max_loss_db)
        prior = plan.update.prior if plan.update is not None and delta.n_updated else None
        writes = DeltaWrites(frame, delta, body_crc(packet), prior, options.tokenizer.levels, contents.repeated)
        shown = _shown_after(shown, plan, state, delta)
        quality = quality.one_frame_later(moving=shown is not None)
        memory = replace(
            plan.memory,
            estimates=plan.estimates,
            history=history,
            search=plan.found.search,
            refresh=replace(plan.refresh, since_key=plan.refresh.since_key + 1),
            quality=quality,
            shown=shown,
        )
    result = StreamFrame(delta, packet, len(plan.encoded), clock.seconds)
    return _measured(plan, Draft(result, memory, writes), writes, loss)


def _contents(plan: DeltaPlan, codes: NDArray[np.int32]) -> _Contents:
    """What the packet may carry; ``codes`` are those of the encoded patches ``(E, D)``."""
    update, patches, state = plan.update, plan.candidates.patches, plan.memory.state
    loss, nothing = plan.candidates.loss.copy(), np.zeros(0, np.int32)
    levels = plan.options.tokenizer.levels
    if update is None:
        return _Contents(
            plan,
            token=np.zeros(0, np.bool_),
            codes=np.zeros((0, len(levels)), np.int32),
            repeated=nothing,
            loss=loss,
            cost=np.zeros(0, np.float32),
            order=np.zeros(0, np.int64),
            global_ids=state.global_ids,
        )
    token = update.limiter.after_codes(update.token, update.encoded, codes, levels)
    codes = np.ascontiguousarray(codes[np.searchsorted(update.encoded, patches[token])])
    same = _says_the_same(plan, update, token, codes)
    # The held token is what a new one would be: the patch is as good as updated.
    repeated = patches[token][same]
    loss[repeated] = 0.0
    token = token.copy()
    token[np.flatnonzero(token)[same]] = False
    # Best first: what an update gains for its bits.
    gain = np.where(token, loss[patches] / TOKEN_PRICE, loss[patches] - update.cost)
    order = np.argsort(-gain, kind="stable")
    return _Contents(
        plan,
        token=token,
        codes=np.ascontiguousarray(codes[~same]),
        repeated=repeated,
        loss=loss,
        cost=update.cost,
        order=order[token[order] | (gain[order] > 0)],
        global_ids=ids_of_cells(update.global_codes, levels),
    )


def _says_the_same(
    plan: DeltaPlan, update: Update, token: NDArray[np.bool_], codes: NDArray[np.int32]
) -> NDArray[np.bool_]:
    """Which of the new tokens equal the held ones, with a mean that has hardly changed, ``(T,)``."""
    candidates, state = plan.candidates, plan.memory.state
    moved = state.moved if plan.found.motion is None else state.moved | in_motion(plan.found.motion).ravel()
    chosen = candidates.patches[token]
    same: NDArray[np.bool_] = kernels.ids_from_codes(codes, plan.options.tokenizer.levels) == state.ids[chosen]
    same &= ~candidates.refreshed[token] & ~moved[chosen]
    here = chosen[same]
    if len(here):
        change = update.prior.mean[:, inside(here, update.window, plan.frame.grid[1])] - state.mean[:, here]
        energy = (change * change).mean(0) * np.float32(127.5**2)
        same[same] = energy < SAME_SHARE * candidates.loss[here]
    return same


def _refined(plan: DeltaPlan, contents: _Contents) -> NDArray[np.int32]:
    """The codes ``(T, D)`` of all tokens, refined beside what the window of the packet shows after it."""
    delta, update, frame = contents.delta(len(contents.order)), plan.update, plan.frame
    if update is None:
        return contents.codes
    tokenizer, state, prior = plan.options.tokenizer, plan.memory.state, update.prior
    top, left, height, width = (CELL_SIDE * side for side in delta.window)
    rows, columns = state.grid
    tokens, updated = (inside(patches, delta.window, columns) for patches in (delta.positions, delta.updated))

    def window(held: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
        area = held.reshape(-1, rows, columns)[:, top : top + height, left : left + width]
        values = area.reshape(len(held), -1).copy()
        values[:, updated] = new[:, updated]
        return values

    with frame.clock.stage("refine"):
        states = kernels.decoder_state(contents.codes, tokens, prior.expected, prior.entropy, tokenizer.levels)
        moved = state.moved_after(delta).reshape(rows, columns)
        hidden = moved[top : top + height, left : left + width].flatten()
        states = window(state.state, states)
        context, mean = window(state.context, prior.context), window(state.mean, prior.mean)
        rates = tokenizer.rates(update.global_codes)
    return tokenizer.refiner().correct(
        frame.image[top * PATCH : (top + height) * PATCH, left * PATCH : (left + width) * PATCH],
        frame.bgr,
        states,
        context,
        mean,
        tokens,
        contents.codes,
        lambda codes, _: rates(codes, delta.positions),
        plan.options.budget.refine,
        frame.clock,
        hidden=hidden,
    )


# --- what the encoder remembers --------------------------------------------------------------------


def _history_after(plan: DeltaPlan, contents: _Contents, delta: DeltaFrame) -> tuple[PatchHistory, NDArray[np.float32]]:
    """The history after the packet, and the loss of each patch of the frame after it ``(N,)``."""
    loss, held_loss = contents.loss.copy(), plan.found.held_loss.copy()
    held_loss[contents.repeated] = 0.0
    cost = contents.cost[np.searchsorted(plan.candidates.patches, delta.updated)]
    for losses in (loss, held_loss):
        losses[delta.updated] = cost
        losses[delta.positions] = 0.0
    return plan.history.updated(delta.updated, held_loss), loss


def _shown_before(plan: DeltaPlan) -> ShownPicture | None:
    """The picture of a receiver before the packet; None if no pixels have moved and none will."""
    memory = plan.memory
    if memory.shown is not None or plan.found.motion is None:
        return memory.shown
    with plan.frame.clock.stage("probe"):
        pixels = memory.state.pixels(plan.options.tokenizer.networks, Clock())
        return ShownPicture(assembled(pixels, memory.state.grid))


def _shown_after(
    shown: ShownPicture | None, plan: DeltaPlan, state: StreamState, delta: DeltaFrame
) -> ShownPicture | None:
    """The picture of a receiver after the packet; None if no pixels have moved."""
    if shown is None or not state.moved_after(delta).any():
        return None
    return shown.after(plan.found.motion, delta.updated)


def _measured(plan: DeltaPlan, draft: Draft, writes: DeltaWrites, loss: NDArray[np.float32]) -> Draft:
    """The draft after the measurement that is due, if any.

    A measurement decodes the entries after the packet. It may fail, so it works on copies of what the packet changes.
    """
    frame, options, memory = plan.frame, plan.options, draft.memory
    due = measurement_due(memory.quality, memory.shown, options)
    if due is None:
        return draft
    state = memory.state.copy()
    writes.to_state(state)
    before = Measured(memory.quality, memory.search, memory.shown, memory.history.held_loss)
    reference, estimates = memory.reference, memory.estimates
    if due == "look":
        after = look(frame, options, state, before)
    else:
        after = probe(frame, options, state, loss, before)
        reference = reference.copy()
        writes.to_reference(reference)
        estimates = replace(estimates, noise_limit=noise_limit(reference.picture))
    memory = replace(
        memory,
        state=state,
        reference=reference,
        estimates=estimates,
        history=replace(memory.history, held_loss=after.held_loss),
        search=after.search,
        quality=after.quality,
        shown=after.shown,
    )
    writes = replace(writes, state_is_new=True, reference_is_new=due == "probe")
    return Draft(draft.result, memory, writes)
