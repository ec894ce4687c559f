"""Keyframes of a stream: the packet, and what the encoder remembers after it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.packet import body_crc, pack
from tatok_edge.model.networks import Clock
from tatok_edge.model.refine import RefineTask, rates_of
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import Reference, noise_limit
from tatok_edge.stream.frame import KeyframeTooLarge, StreamFrame
from tatok_edge.stream.memory import Draft, Memory, PriorBuffer
from tatok_edge.stream.plan import KeyPlan
from tatok_edge.stream.quality import (
    FIRST_GAIN,
    FIRST_PROBE,
    SCALE_LIMITS,
    Quality,
)
from tatok_edge.stream.rate import fit
from tatok_edge.stream.selection import PatchHistory, Refresh, choose
from tatok_edge.stream.state import StreamState, ids_of_cells
from tatok_edge.tokens.frame import TokenFrame


def draft_key(plan: KeyPlan, codes: NDArray[np.int32]) -> Draft:
    """Make the packet of a keyframe, and what the encoder remembers after it.

    Args:
        plan: The plan.
        codes: Codes of the encoded patches ``(E, D)``.

    Raises:
        KeyframeTooLarge: The global tokens alone need more bits than the budget allows.
    """
    frame, options = plan.frame, plan.options
    tokenizer, clock = options.tokenizer, frame.clock
    quality, cost, token = plan.quality, plan.cost, plan.token
    if plan.new_scene and options.max_loss_db > 0:
        quality, cost, enough = _calibrated(plan, codes)
        token = token & enough
    with clock.stage("select"):
        token = plan.limiter.after_codes(token, plan.encoded, codes, tokenizer.levels)
        kept = np.flatnonzero(token).astype(np.int32)
        order = kept[np.argsort(-cost[kept], kind="stable")]
        full = np.zeros((frame.n_patches, len(tokenizer.levels)), np.int32)
        full[plan.encoded] = codes
    saved = _refine(plan, kept, full)
    tokens, packet = _packet(plan, full, order)
    with clock.stage("update"):
        kept = tokens.positions
        state = _state_after(plan, tokens, packet, full)
        quality = quality.with_threshold(cost, plan.life, options.max_loss_db)
        held_loss = cost.copy()
        held_loss[kept] = -saved[kept]
        if plan.history is None:
            history = PatchHistory(held_loss, age=np.zeros(len(cost), np.float32), life=plan.life)
            quality = replace(quality, gain=FIRST_GAIN, until_probe=FIRST_PROBE, probe_interval=FIRST_PROBE)
        else:
            history = replace(plan.history, held_loss=held_loss)
        reference = Reference(frame)
        memory = Memory(
            state=state,
            reference=reference,
            buffer=PriorBuffer(state),
            estimates=replace(plan.estimates, noise_limit=noise_limit(reference.picture)),
            history=history,
            search=plan.search,
            refresh=Refresh(),
            quality=quality,
        )
    return Draft(StreamFrame(tokens, packet, len(plan.encoded), clock.seconds, plan.scene_cut), memory)


def _calibrated(plan: KeyPlan, codes: NDArray[np.int32]) -> tuple[Quality, NDArray[np.float32], NDArray[np.bool_]]:
    """Measure the error of all tokens in a new scene, and how well the cost of dropped tokens is estimated.

    Returns:
        The quality, the corrected cost of each patch ``(N,)``, and the patches that need a token ``(N,)``.
    """
    cost, allowed_loss = plan.cost, plan.options.max_loss_db
    everything = np.arange(len(cost), dtype=np.int32)
    error = float(_errors(plan, everything, codes).sum(dtype=np.float64))
    quality = plan.quality.with_error(error, plan.frame)
    token, _ = choose(cost, plan.life, quality.allowed(allowed_loss))
    if 0 < np.count_nonzero(token) < len(cost):
        # The estimate of what a dropped token costs holds on average over scenes; correct it for this one.
        kept = np.flatnonzero(token).astype(np.int32)
        added = float(_errors(plan, kept, codes).sum(dtype=np.float64)) - error
        estimate = float(cost[~token].sum(dtype=np.float64))
        scale = float(np.clip(quality.scale * added / max(estimate, 1e-6), *SCALE_LIMITS))
        cost = cost * np.float32(scale / quality.scale)
        quality = replace(quality, scale=scale)
        token, _ = choose(cost, plan.life, quality.allowed(allowed_loss))
    return quality, cost, token


def _errors(plan: KeyPlan, kept: NDArray[np.int32], codes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Squared error of each patch, ``(N,)``, if the patches ``kept`` have a token; ``codes`` is ``(N, D)``."""
    frame, prior, tokenizer = plan.frame, plan.prior, plan.options.tokenizer
    with frame.clock.stage("probe"):
        rows = np.ascontiguousarray(codes[kept])
        state = kernels.decoder_state(rows, kept, prior.expected, prior.entropy, tokenizer.levels)
        pixels = tokenizer.networks.pixels(state, prior.context, prior.mean, frame.grid, Clock())
        return kernels.patch_error(pixels, frame.image, frame.bgr, frame.grid[1])


def _refine(plan: KeyPlan, kept: NDArray[np.int32], codes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Refine the codes ``(N, D)`` of the patches ``kept`` in place, as the budget asks.

    Returns:
        Error that refining removes from each patch, ``(N,)``. It is credited to later frames.
    """
    frame, options = plan.frame, plan.options
    passes, tokenizer = options.budget.refine, options.tokenizer
    if not (passes and kept.size):
        return np.zeros(len(codes), np.float32)
    before = _errors(plan, kept, codes)
    prior, rates = plan.prior, rates_of(tokenizer.entropy_model, plan.global_codes)
    task = RefineTask(
        image=frame.image,
        bgr=frame.bgr,
        context=prior.context,
        mean=prior.mean,
        rates=rates,
        passes=passes,
        clock=frame.clock,
    )
    _, codes[kept] = tokenizer.refiner().refine(task, prior, codes, kept)
    # Without an allowance every change is sent, so there is no credit.
    share = np.float32(1 if options.max_loss_db > 0 else 0)
    return share * (before - _errors(plan, kept, codes))


def _packet(plan: KeyPlan, codes: NDArray[np.int32], order: NDArray[np.int32]) -> tuple[TokenFrame, bytes]:
    """The packet with as many tokens as the budget of bits allows; ``order`` lists their patches, best first."""
    frame, tokenizer, max_bits = plan.frame, plan.options.tokenizer, plan.options.budget.max_bits
    with frame.clock.stage("select"):
        ids = kernels.ids_from_codes(codes, tokenizer.levels)
        global_ids = ids_of_cells(plan.global_codes, tokenizer.levels)

    def packed(count: int) -> tuple[TokenFrame, bytes]:
        positions = np.sort(order[:count])
        tokens = TokenFrame(
            ids=ids[positions],
            positions=positions,
            global_ids=global_ids,
            width=frame.width,
            height=frame.height,
            model=tokenizer.tag,
            index=frame.index,
            timestamp_us=frame.timestamp_us,
        )
        return tokens, pack(tokens, tokenizer.entropy_model)

    with frame.clock.stage("pack"):
        tokens, packet = fit(packed, len(order), max_bits)
    bits = 8 * len(packet)
    if max_bits is not None and bits > max_bits:
        raise KeyframeTooLarge(
            f"a keyframe of {frame.width}x{frame.height} pixels needs {bits} bits for its global tokens alone, "
            f"the limit is {max_bits}; allow more bits or make the image smaller",
            bits,
        )
    return tokens, packet


def _state_after(plan: KeyPlan, tokens: TokenFrame, packet: bytes, codes: NDArray[np.int32]) -> StreamState:
    """The state after the packet; ``codes`` are those of all patches ``(N, D)``."""
    frame, prior, kept = plan.frame, plan.prior, tokens.positions
    held = np.full(frame.n_patches, -1, np.int32)
    held[kept] = tokens.ids
    return StreamState(
        width=frame.width,
        height=frame.height,
        index=frame.index,
        crc=body_crc(packet),
        global_codes=plan.global_codes,
        global_ids=tokens.global_ids.copy(),
        ids=held,
        context=prior.context,
        mean=prior.mean,
        state=kernels.decoder_state(codes[kept], kept, prior.expected, prior.entropy, plan.options.tokenizer.levels),
        moved=np.zeros(frame.n_patches, np.bool_),
    )
