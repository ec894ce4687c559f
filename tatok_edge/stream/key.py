"""Keyframes of a stream: plan, packet, and what the encoder remembers after it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.packet import body_crc, pack
from tatok_edge.geometry import PATCH
from tatok_edge.model.networks import Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates, camera_picture, detail_of, noise_limit, per_value
from tatok_edge.stream.choice import Offers, lowest_price
from tatok_edge.stream.curves import ErrorCurves, anchored
from tatok_edge.stream.frame import CameraFrame, KeyframeTooLarge, StreamFrame
from tatok_edge.stream.history import BASE, FIRST_LIFE, PatchHistory, Refresh
from tatok_edge.stream.limits import within_budget
from tatok_edge.stream.memory import Draft, Memory, Scratch
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.price import FIRST_VALUE, Price, loss_db, target_of
from tatok_edge.stream.state import state_of
from tatok_edge.stream.windows import cell_of
from tatok_edge.tokens.frame import TokenFrame


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """What a keyframe encodes, before the patch encoder."""

    frame: CameraFrame
    """The frame."""
    options: StreamOptions
    """Options of the encoder."""
    memory: Memory | None
    """What the encoder remembers of the scene; None in a new scene."""
    estimates: ChangeEstimates
    """Noise and usual change, measured with this frame."""
    scene_cut: bool
    """Whether a scene cut caused the keyframe."""
    global_codes: NDArray[np.int32]
    """Codes of the global tokens ``(D, hc, wc)``."""
    prior: Prior
    """Prior of all patches."""
    features: NDArray[np.float32]
    """Features of all patches, one row each."""

    @property
    def n_encoded(self) -> int:
        """Patches that go through the patch encoder."""
        return self.frame.n_patches


def plan_key(
    frame: CameraFrame,
    options: StreamOptions,
    memory: Memory | None,
    estimates: ChangeEstimates,
    *,
    scene_cut: bool = False,
) -> KeyPlan:
    """Plan a keyframe; changes nothing.

    Args:
        frame: The frame.
        options: Options of the encoder.
        memory: What the encoder remembers of the scene; None in a new scene.
        estimates: Noise and usual change, measured with this frame.
        scene_cut: A scene cut caused the keyframe.
    """
    networks = options.tokenizer.networks
    global_codes = networks.global_codes(frame.image, frame.bgr, frame.clock)
    prior = networks.prior(global_codes, frame.clock)
    with frame.clock.stage("gather"):
        features = networks.features(frame.n_patches)
        every = frame.patches()
        kernels.gather_features(
            frame.image, frame.bgr, prior.context, prior.mean, every, every, frame.grid[1], out=features
        )
    return KeyPlan(frame, options, memory, estimates, scene_cut, global_codes, prior, features)


def draft_key(plan: KeyPlan, codes: NDArray[np.int32]) -> Draft:
    """Make the packet of a keyframe, and what the encoder remembers after it.

    Args:
        plan: The plan.
        codes: Codes of the stacks of all patches ``(N, K * D)``.

    Raises:
        KeyframeTooLarge: The global tokens alone need more bits than the budget allows.
    """
    frame, options, memory, clock = plan.frame, plan.options, plan.memory, plan.frame.clock
    tokenizer, noise = options.tokenizer, plan.estimates.of_frame
    with clock.stage("select"):
        detail = detail_of(frame)
        curves = ErrorCurves.start(tokenizer.depth) if memory is None else memory.curves
        fixed = fixed_rate_errors(frame, options, plan.prior, codes)
        errors, curves = fitted(frame, options, plan.prior, curves, fixed, noise)
        offers, target = _offers(plan, errors), target_of(float(fixed.mean()), options.max_loss_db)
        price = Price(_first_price(offers, target) / (target + 1)) if memory is None else memory.price
        ids = kernels.ids_from_codes(codes.reshape(-1, len(tokenizer.levels)), tokenizer.levels)
        ids = ids.reshape(frame.n_patches, tokenizer.depth)
    tokens, packet = _packet(plan, offers, price.at(target), ids)
    state = state_of(tokens, body_crc(packet), tokenizer, clock, plan.prior)
    with clock.stage("update"):
        error = per_value(kernels.patch_change(frame.image, frame.bgr, state.picture)[0])
        camera = camera_picture(frame)
        still = np.zeros(frame.n_patches, np.float32) if memory is None else memory.history.age + 1
        history = PatchHistory(
            age=np.full(frame.n_patches, FIRST_LIFE, np.float32) if memory is None else still,
            settled=error,
            drift=np.zeros(frame.n_patches, np.float32),
            curves=anchored(errors, state.held.depths, error, noise),
            ids=ids,
            fixed=fixed / (detail + BASE),
            predicted=fixed / (detail + BASE),
            coded=np.ones(frame.n_patches, np.bool_),
        )
        limit = noise_limit(camera)
        after = Memory(
            state=state,
            camera=camera,
            scratch=Scratch(state) if memory is None else memory.scratch,
            estimates=plan.estimates.limited(limit),
            history=history,
            vectors=np.zeros((*frame.cell_grid, 2), np.int32),
            refresh=Refresh(),
            price=price.after_key(loss_db(float(error.mean()), target)),
            curves=curves,
        )
    return Draft(StreamFrame(tokens, packet, plan.n_encoded, clock.seconds, plan.scene_cut), frame, after)


def fixed_rate_errors(
    frame: CameraFrame, options: StreamOptions, prior: Prior, codes: NDArray[np.int32]
) -> NDArray[np.float32]:
    """Squared error of each patch with its first token, ``(N,)``; ``codes`` are those of all patches."""
    tokenizer = options.tokenizer
    first = np.ascontiguousarray(codes[:, : len(tokenizer.levels)])
    state = kernels.decoder_state(first, frame.patches(), prior.expected, prior.entropy, tokenizer.levels)
    pixels = tokenizer.networks.pixels(state, prior.context, prior.mean, frame.grid, frame.clock)
    return kernels.patch_error(pixels, frame.image, frame.bgr, frame.grid[1])


def fitted(
    frame: CameraFrame,
    options: StreamOptions,
    prior: Prior,
    curves: ErrorCurves,
    fixed: NDArray[np.float32],
    noise: float,
) -> tuple[NDArray[np.float32], ErrorCurves]:
    """Error curves through the measured errors of the fixed rate.

    Args:
        frame: The frame.
        options: Options of the encoder.
        prior: Prior of all patches.
        curves: What was learned so far.
        fixed: Error of each patch with its first token, ``(N,)``.
        noise: Energy per value of the noise of the frame.

    Returns:
        Predicted errors of all patches ``(N, K + 1)``, and the curves with the scale of the fixed rate.
    """
    patches = frame.patches()
    scores = kernels.patch_scores(
        frame.image, frame.bgr, prior.mean, patches, patches, frame.grid[1], options.tokenizer.coding.basis
    )
    errors = curves.of(residual_energy(frame, prior.mean), scores, noise)
    return anchored(errors, np.ones(frame.n_patches, np.int32), fixed, noise), curves.calibrated(errors, fixed)


def residual_energy(frame: CameraFrame, mean: NDArray[np.float32]) -> NDArray[np.float32]:
    """Energy per value of what the mean pixels ``(192, N)`` leave of all patches, ``(N,)``."""
    rows, columns = frame.grid
    picture = kernels.assemble(mean, columns, rows * PATCH, columns * PATCH, False)
    return per_value(kernels.patch_change(frame.image, frame.bgr, picture)[0])


def _offers(plan: KeyPlan, errors: NDArray[np.float32]) -> Offers:
    """The tokens that each patch could have; without any it shows its prior, at no cost."""
    frame, options, patches = plan.frame, plan.options, plan.frame.patches()
    none = np.zeros(frame.n_patches, np.bool_)
    new = np.full(frame.n_patches, FIRST_LIFE, np.float32)
    life = new if plan.memory is None else plan.memory.history.lives()
    return Offers(
        patches=patches,
        now=errors[:, 0],
        errors=errors,
        worth=life * frame.weights(options.budget),
        held=np.zeros(frame.n_patches, np.int32),
        forced=none,
        visible=none,
        cells=cell_of(patches, frame.grid[1]),
        deepest=options.depth,
    )


def _first_price(offers: Offers, target: float) -> float:
    """The highest price at which the mean squared error of the keyframe is within the target, but not too low a one."""
    every = np.arange(len(offers.patches))

    def too_bad(at: float) -> bool:
        depths = np.maximum(offers.at(at), 0)
        return float(offers.errors[every, depths].mean(dtype=np.float64)) > target

    return lowest_price(FIRST_VALUE * (target + 1), too_bad)


def _packet(plan: KeyPlan, offers: Offers, price: float, ids: NDArray[np.int32]) -> tuple[TokenFrame, bytes]:
    """The packet with the best tokens that the budget allows; ``ids`` are those of all stacks ``(N, K)``."""
    frame, options, tokenizer = plan.frame, plan.options, plan.options.tokenizer
    max_bits = options.budget.max_bits
    cell_codes = np.ascontiguousarray(plan.global_codes.reshape(len(tokenizer.levels), -1).T)
    global_ids = kernels.ids_from_codes(cell_codes, tokenizer.levels)

    def packed(chosen: NDArray[np.int32]) -> tuple[TokenFrame, bytes]:
        depths = np.maximum(chosen, 0)
        tokens = TokenFrame(
            ids=ids[np.arange(tokenizer.depth) < depths[:, None]],
            positions=np.repeat(frame.patches(), depths),
            global_ids=global_ids,
            width=frame.width,
            height=frame.height,
            model=tokenizer.tag,
            index=frame.index,
            timestamp_us=frame.timestamp_us,
        )
        return tokens, pack(tokens, tokenizer.entropy_model)

    with frame.clock.stage("pack"):
        most = options.budget.limits(frame.n_patches, tokenizer.depth)[1]
        _, _, tokens, packet = within_budget(offers, price, options.budget, most, packed)
    bits = 8 * len(packet)
    if max_bits is not None and bits > max_bits:
        raise KeyframeTooLarge(
            f"a keyframe of {frame.width}x{frame.height} pixels needs {bits} bits for its global tokens alone, "
            f"the limit is {max_bits}; allow more bits or make the image smaller",
            bits,
        )
    return tokens, packet
