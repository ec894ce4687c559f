"""Delta packets of a stream: the packet, and what the encoder remembers after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.packet import body_crc, pack_delta
from tatok_edge.model.encode import code_patches
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import noise_limit, per_value
from tatok_edge.stream.choice import HELD
from tatok_edge.stream.curves import ErrorCurves, anchored
from tatok_edge.stream.frame import StreamFrame
from tatok_edge.stream.history import BASE, PatchHistory
from tatok_edge.stream.key import fitted, fixed_rate_errors
from tatok_edge.stream.limits import within_budget
from tatok_edge.stream.look import Look
from tatok_edge.stream.memory import Draft
from tatok_edge.stream.plan import DeltaPlan
from tatok_edge.stream.price import loss_db, target_of
from tatok_edge.stream.state import held_ahead, update_of
from tatok_edge.stream.windows import in_motion, turns_of
from tatok_edge.tokens.delta import DeltaFrame


def draft_delta(plan: DeltaPlan, codes: NDArray[np.int32]) -> Draft:
    """Make a delta packet, and what the encoder remembers after it.

    Args:
        plan: The plan.
        codes: Codes of the stacks of the encoded patches ``(E, K * D)``.
    """
    look, frame, clock = plan.look, plan.frame, plan.frame.clock
    options, memory, offers, tokenizer = look.options, look.memory, plan.offers, look.options.tokenizer
    with clock.stage("pack"):
        ids, coded = _stacks(plan, codes)

        def packed(chosen: NDArray[np.int32]) -> tuple[DeltaFrame, bytes]:
            delta = _delta(plan, chosen, ids)
            return delta, pack_delta(delta, tokenizer.entropy_model, held_ahead(memory.state.held, delta.cells.size))

        most = options.budget.limits(frame.n_patches, tokenizer.depth)[1]
        cut_at, chosen, delta, packet = within_budget(offers, look.price, options.budget, most, packed)
    prior = None
    if plan.renewal is not None and np.array_equal(np.flatnonzero(delta.renewed_map()), plan.renewal.patches):
        prior = plan.renewal.prior
    update = update_of(delta, memory.state, tokenizer, clock, prior)
    with clock.stage("update"):
        error = per_value(kernels.patch_change(frame.image, frame.bgr, update.picture)[0])
        history, curves = _remembered(plan, chosen, ids, coded, update.decoded.ravel(), error)
        changed: NDArray[np.integer] = plan.changed
        if delta.n_vectors:  # the earlier pixels of the camera are elsewhere now
            changed = np.union1d(changed, np.flatnonzero(in_motion(delta.motion())))
        changed = np.union1d(changed, np.flatnonzero(delta.renewed_map()))
        estimate = history.fixed_error(look.detail)
        lost = loss_db(float(error.mean()), target_of(estimate, options.max_loss_db))
        price = memory.price.after(lost, offers.tokens(chosen) / frame.n_patches)
        if options.fill and options.budget.max_bits:
            price = memory.price.filled(plan.size, 8 * len(packet), cut_at > look.price)
    estimates = look.estimates
    if price.probe_due:
        measured, curves = _fixed_rate(look, curves)
        history = history.measured(measured, look.detail)
        price = price.probed(loss_db(estimate, float(measured.mean())))
        estimates = estimates.limited(noise_limit(memory.camera))
    after = replace(
        memory,
        estimates=estimates,
        history=history,
        vectors=plan.found.vectors,
        refresh=plan.refresh,
        price=price,
        curves=curves,
    )
    result = StreamFrame(delta, packet, plan.n_encoded, clock.seconds)
    return Draft(result, frame, after, update, body_crc(packet), changed.astype(np.int32))


def _stacks(plan: DeltaPlan, codes: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Ids of the whole stacks of the offered patches ``(C, K)``, and which of them are known ``(C,)``."""
    offers, tokenizer, history = plan.offers, plan.look.options.tokenizer, plan.history
    ids = history.ids[offers.patches]
    coded = history.coded[offers.patches] & (offers.held != HELD)
    if plan.renewal is not None and len(codes):
        place = np.searchsorted(offers.patches, plan.renewal.encoded)
        new = kernels.ids_from_codes(codes.reshape(-1, len(tokenizer.levels)), tokenizer.levels)
        ids[place] = new.reshape(len(place), tokenizer.depth)
        coded[place] = True
    return ids, coded


def _delta(plan: DeltaPlan, chosen: NDArray[np.int32], ids: NDArray[np.int32]) -> DeltaFrame:
    """The delta with the chosen depths ``(C,)``; ``ids`` are those of whole stacks ``(C, K)``."""
    offers, frame, state, renewal = plan.offers, plan.frame, plan.look.memory.state, plan.renewal
    acts = chosen != HELD
    starts = np.maximum(offers.held, 0)
    depth = np.arange(ids.shape[1])
    sent = (depth >= starts[:, None]) & (depth < chosen[:, None])
    refined = acts & (offers.held != HELD)
    cells = np.zeros(0, np.int32)
    renewed = acts & ~refined
    if renewal is not None and renewed.any():
        cells = np.intersect1d(renewal.cells, np.union1d(offers.cells[renewed], renewal.announced)).astype(np.int32)
    turns, vectors = turns_of(plan.found.motion)
    return DeltaFrame(
        updated=offers.patches[acts],
        positions=np.repeat(offers.patches, sent.sum(1)),
        ids=ids[sent],
        cells=cells,
        global_ids=np.zeros(0, np.int32) if renewal is None else renewal.global_ids[cells],
        width=state.width,
        height=state.height,
        model=plan.look.options.tokenizer.tag,
        index=frame.index,
        timestamp_us=frame.timestamp_us,
        reference=state.index,
        follows=state.crc,
        refined=offers.patches[refined],
        turns=turns,
        vectors=vectors,
    )


def _remembered(
    plan: DeltaPlan,
    chosen: NDArray[np.int32],
    ids: NDArray[np.int32],
    coded: NDArray[np.bool_],
    decoded: NDArray[np.bool_],
    error: NDArray[np.float32],
) -> tuple[PatchHistory, ErrorCurves]:
    """The past of each patch after the packet, and what was learned from its errors ``(N,)``."""
    offers, history, noise = plan.offers, plan.history, plan.look.estimates.of_frame
    acts = np.flatnonzero(chosen != HELD)
    patches, depths = offers.patches[acts], chosen[acts]
    measured, expected = error[patches], offers.errors[acts, depths]
    new = offers.held[acts] == HELD
    curves = plan.look.memory.curves.after(depths[new], expected[new], measured[new], noise)
    curves = curves.after_refining((offers.now[acts] - expected)[~new], (plan.found.error[patches] - measured)[~new])
    values = {name: getattr(history, name).copy() for name in PatchHistory.__dataclass_fields__}
    values["settled"][decoded] += (error - plan.found.error)[decoded]  # what is beside an update changes with it
    values["settled"][patches] = measured
    values["drift"][patches[new]] = 0
    values["curves"][patches] = anchored(offers.errors[acts], depths, measured, noise)
    values["ids"][patches[new]] = ids[acts][new]
    values["coded"][patches[new]] = coded[acts][new]
    # What renewing could do with one token says what the fixed rate does in this frame.
    renewing = offers.held == HELD
    seen = offers.patches[renewing]
    usual = plan.look.detail[seen] + BASE
    values["predicted"][seen] = plan.look.memory.curves.fixed_rate(offers.errors[renewing]) / usual
    return PatchHistory(**values), curves


def _fixed_rate(look: Look, curves: ErrorCurves) -> tuple[NDArray[np.float32], ErrorCurves]:
    """The squared error that the fixed rate leaves in each patch of the frame, ``(N,)``; the curves that fit it."""
    frame, tokenizer = look.frame, look.options.tokenizer
    networks, clock = tokenizer.networks, frame.clock
    with clock.stage("probe"):
        image, bgr = frame.image, frame.bgr
        prior = networks.prior(networks.global_codes(image, bgr, clock), clock)
        codes = code_patches(networks, [image], bgr, [prior], [frame.patches()], tokenizer.coding, clock)[0]
        errors = fixed_rate_errors(frame, look.options, prior, codes)
        return errors, fitted(frame, look.options, prior, curves, errors, look.estimates.of_frame)[1]
