"""Keyframes of a stream: which patches get a token, and the packet."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.packet import body_crc, pack
from tatok_edge.model.networks import Clock, Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates, Reference, noise_limit
from tatok_edge.stream.frame import CameraFrame, KeyframeTooLarge, StreamFrame
from tatok_edge.stream.memory import Draft, Memory, PriorBuffer
from tatok_edge.stream.motion import MotionSearch
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.quality import (
    FIRST_GAIN,
    FIRST_PROBE,
    SCALE_LIMITS,
    TYPICAL_SCALE,
    Quality,
)
from tatok_edge.stream.rate import fit
from tatok_edge.stream.selection import LONGEST_LIFE, Limiter, PatchHistory, Refresh, choose
from tatok_edge.stream.state import StreamState
from tatok_edge.tokens.frame import TokenFrame


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """What a keyframe encodes, before the patch encoder."""

    frame: CameraFrame
    """The frame."""
    options: StreamOptions
    """Options of the encoder."""
    new_scene: bool
    """Whether nothing is known of the scene: first frame, another size or a scene cut."""
    scene_cut: bool
    """Whether a scene cut caused the keyframe."""
    estimates: ChangeEstimates
    """Noise and usual change, measured with this frame."""
    quality: Quality
    """Error in the scene, and the allowance, before this frame."""
    history: PatchHistory | None
    """History of the patches up to the frame before; None in a new scene."""
    search: MotionSearch
    """Where the search for motion begins after the frame."""
    global_codes: NDArray[np.int32]
    """Codes of the global tokens ``(D, hc, wc)``."""
    prior: Prior
    """Prior of all patches."""
    limiter: Limiter
    """Keeps the tokens within the budget."""
    life: NDArray[np.float32]
    """For how many frames a token of each patch is expected to last, ``(N,)``."""
    cost: NDArray[np.float32]
    """Squared error per value that each patch adds without a token, ``(N,)``, in grey levels squared."""
    token: NDArray[np.bool_]
    """Which patches get a token ``(N,)``, as far as that is known."""
    encoded: NDArray[np.int32]
    """Patches that go through the patch encoder, ascending."""
    features: NDArray[np.float32] | None
    """Their features, one row each; None without patches."""


def plan_key(
    frame: CameraFrame,
    options: StreamOptions,
    memory: Memory | None,
    estimates: ChangeEstimates,
    *,
    new_scene: bool,
    scene_cut: bool = False,
) -> KeyPlan:
    """Plan a keyframe; changes nothing.

    Args:
        frame: The frame.
        options: Options of the encoder.
        memory: What the encoder remembers; None before the first frame, which is a new scene.
        estimates: Noise and usual change, measured with this frame.
        new_scene: Nothing is known of the scene.
        scene_cut: A scene cut caused the keyframe.
    """
    networks, patches = options.tokenizer.networks, np.arange(frame.n_patches, dtype=np.int32)
    global_codes = networks.global_codes(frame.image, frame.bgr, frame.clock)
    prior = networks.prior(global_codes, frame.clock)
    limiter = Limiter(options.budget, frame, patches, (0, 0, *frame.cells), prior)
    quality = Quality() if memory is None else memory.quality
    history, search = None, MotionSearch(np.zeros((*frame.cells, 2), np.int32))
    with frame.clock.stage("select"):
        residual = kernels.patch_residual(frame.image, frame.bgr, prior.mean, patches, patches, frame.grid[1])
        if new_scene or memory is None:
            quality = replace(quality, scale=TYPICAL_SCALE)
            life = np.full(len(patches), LONGEST_LIFE, np.float32)
        else:
            history, search = memory.history, replace(search, moves_from=memory.search.moves_from)
            life = history.lives()
        cost = residual * np.float32(quality.scale)
        # The loss is measured against all tokens: a new scene is encoded whole to know their error.
        token = choose(cost, life, 0.0 if new_scene else quality.allowed(options.max_loss_db))[0]
        token = limiter.before_codes(token, cost)
    everything = options.recompute == "always" or (new_scene and options.max_loss_db > 0)
    with frame.clock.stage("gather"):
        encoded = patches if everything else patches[token]
        features = features_of(frame, options, prior.context, prior.mean, encoded)
    return KeyPlan(
        frame=frame,
        options=options,
        new_scene=new_scene,
        scene_cut=scene_cut,
        estimates=estimates,
        quality=quality,
        history=history,
        search=search,
        global_codes=global_codes,
        prior=prior,
        limiter=limiter,
        life=life,
        cost=cost,
        token=token,
        encoded=encoded,
        features=features,
    )


def features_of(
    frame: CameraFrame,
    options: StreamOptions,
    context: NDArray[np.float32],
    mean: NDArray[np.float32],
    patches: NDArray[np.int32],
) -> NDArray[np.float32] | None:
    """Features of ``patches``, one row each; None without patches.

    Args:
        frame: The frame.
        options: Options of the encoder.
        context: Context of all patches of the frame ``(Dc, N)``; only that of ``patches`` is read.
        mean: Mean pixels of all patches ``(192, N)``; only those of ``patches`` are read.
        patches: Raster indices, ascending.
    """
    if len(patches) == 0:
        return None
    features = options.tokenizer.networks.features(len(patches))
    kernels.gather_features(frame.image, frame.bgr, context, mean, patches, frame.grid[1], out=features)
    return features


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
    rates = tokenizer.rates(plan.global_codes)
    _, codes[kept] = tokenizer.refiner().refine(
        frame.image, frame.bgr, plan.prior, codes, kept, rates, passes, frame.clock
    )
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
    """The entries after the packet; ``codes`` are those of all patches ``(N, D)``."""
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


def ids_of_cells(global_codes: NDArray[np.int32], levels: tuple[int, ...]) -> NDArray[np.int32]:
    """Token ids ``(hc * wc,)`` of the codes of global tokens ``(D, hc, wc)``."""
    flat = np.ascontiguousarray(global_codes.reshape(len(global_codes), -1).T)
    return kernels.ids_from_codes(flat, levels)
