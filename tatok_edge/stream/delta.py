"""Delta packets of a stream: the packet, and what the encoder remembers after it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.packet import body_crc, pack_delta
from tatok_edge.geometry import CELL_SIDE, PATCH
from tatok_edge.model.networks import Clock
from tatok_edge.model.refine import RefineTask, rates_of
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import noise_limit
from tatok_edge.stream.frame import StreamFrame
from tatok_edge.stream.memory import DeltaWrites, Draft
from tatok_edge.stream.plan import DeltaPlan, Update
from tatok_edge.stream.quality import Measured, ShownPicture, assembled, look, measurement_due, probe
from tatok_edge.stream.rate import fit
from tatok_edge.stream.selection import (
    PatchHistory,
)
from tatok_edge.stream.state import StreamState, ids_of_cells, in_motion, inside, turns_of
from tatok_edge.tokens.delta import DeltaFrame

SAME_SHARE: Final = 1.0
"""A new token equal to the held one is not sent if the squared change of its patch's mean is below this share of the
patch's loss."""
TOKEN_PRICE: Final = 8
"""Rough size of an update with a token, in updates without one."""


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
        rates = rates_of(tokenizer.entropy_model, update.global_codes)
    task = RefineTask(
        image=frame.image[top * PATCH : (top + height) * PATCH, left * PATCH : (left + width) * PATCH],
        bgr=frame.bgr,
        context=context,
        mean=mean,
        rates=lambda codes, _: rates(codes, delta.positions),
        passes=plan.options.budget.refine,
        clock=frame.clock,
    )
    return tokenizer.refiner().correct(task, states, tokens, contents.codes, hidden=hidden)


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

    A measurement decodes the state after the packet. It may fail, so it works on copies of what the packet changes.
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
