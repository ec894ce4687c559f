"""Quality: the measured loss, and the share of the allowance that follows from it.

The losses behind every selection are estimates for single patches. Only a decode can tell what an update does to the
patches around it, and how losses add up differs from scene to scene. Two measurements correct the estimates: a *probe*
encodes a whole frame and compares it with the shown picture; a *look* compares the shown picture alone, at the price of
one decode, while pixels move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import PATCH, PATCH_VALUES
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import detail
from tatok_edge.stream.frame import CameraFrame
from tatok_edge.stream.motion import MotionSearch
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.selection import choose
from tatok_edge.stream.state import StreamState, move_flags

AIM: Final = 0.95
"""Share of ``max_loss_db`` that the encoder aims at. The rest allows for errors between measurements."""
TYPICAL_SCALE: Final = 0.35
"""Error that a dropped token adds, as a share of the residual energy of its patch: the mean over many scenes."""
SCALE_LIMITS: Final = (0.15, 1.0)
"""Smallest and largest such share in one scene."""
FIRST_GAIN: Final = 0.5
"""Share of the allowance that is used in a new scene. It is below 1 because the estimates are more often too low than
too high."""
GAIN_LIMITS: Final = (0.05, 10.0)
"""Smallest and largest share of the allowance after measurements."""
GAIN_STEPS: Final = (0.3, 1.5)
"""Smallest and largest factor by which one probe changes the share. Steps up are small: a single frame that loses
little says little about the next ones."""
LOOK_STEPS: Final = (0.7, 1.3)
"""Smallest and largest factor by which one look changes the share."""
FIRST_PROBE: Final = 3
"""Frames from a new scene to the first probe. The interval doubles with each probe."""
PROBE_INTERVAL: Final = 64
"""Largest number of frames between probes."""
MOVING_INTERVAL: Final = 24
"""Largest number of frames to the next probe while pixels move."""
LOOK_INTERVAL: Final = 3
"""Frames between looks while pixels move."""
UNKNOWN_EXCESS: Final = 1.0
"""Extra error assumed for patches that were updated twice since the last decode, as a share of the mean extra error of
the others. Their pixels at the first update are not known."""


@dataclass(frozen=True, slots=True)
class Quality:
    """Error, allowance and token threshold of the scene, and the time to the next probe."""

    error: float = 0.0
    """Squared error of a frame with all tokens, summed over the patches (grey levels squared, per value)."""
    error_of_detail: float = 0.0
    """The same as a share of the frame's detail (:func:`tatok_edge.stream.change.detail`)."""
    gain: float = FIRST_GAIN
    """Share of the allowance that is used."""
    scale: float = TYPICAL_SCALE
    """Error that a dropped token adds in this scene, as a share of the residual energy of its patch."""
    threshold: float = 0.0
    """Loss times life above which a patch gets a token, as of the last frame."""
    until_probe: int = FIRST_PROBE
    """Frames until the next probe."""
    probe_interval: int = FIRST_PROBE
    """Frames from the last probe to the next one."""

    def allowed(self, max_loss_db: float) -> float:
        """Squared error that holding and filtering may add to a frame, summed over its patches."""
        return allowed_share(max_loss_db) * self.error * self.gain

    def with_error(self, error: float, frame: CameraFrame) -> Quality:
        """The same after all tokens of ``frame`` left ``error``, summed over its patches."""
        of_detail = error / max(float(detail(frame).sum(dtype=np.float64)), 1e-6)
        return replace(self, error=error, error_of_detail=of_detail)

    def with_threshold(self, loss: NDArray[np.float32], life: NDArray[np.float32], max_loss_db: float) -> Quality:
        """The same with the threshold from the loss of each patch without a token, ``(N,)``."""
        threshold = choose(loss, life, self.allowed(max_loss_db))[1] if max_loss_db > 0 else 0.0
        return replace(self, threshold=threshold)

    def corrected(self, excess: float, steps: tuple[float, float], max_loss_db: float) -> Quality:
        """The same after holding and filtering were found to add ``excess`` to the squared error, as a share of it."""
        step = np.clip(allowed_share(max_loss_db) / max(excess, 1e-6), *steps)
        return replace(self, gain=float(np.clip(self.gain * step, *GAIN_LIMITS)))

    def one_frame_later(self, moving: bool) -> Quality:
        """The same with one frame less to the next probe; ``moving`` says whether moved pixels are shown."""
        until = self.until_probe - 1
        return replace(self, until_probe=min(until, MOVING_INTERVAL) if moving else until)

    def after_probe(self) -> Quality:
        """The same with the time to the next probe."""
        interval = min(2 * self.probe_interval, PROBE_INTERVAL)
        return replace(self, until_probe=interval, probe_interval=interval)


def allowed_share(max_loss_db: float) -> float:
    """What holding and filtering may add to the squared error, as a share of it."""
    share: float = 10.0 ** (AIM * max_loss_db / 10) - 1
    return share


# --- the shown picture -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ShownPicture:
    """The picture of a receiver while pixels move: the picture of the last decode, and what happened since."""

    picture: NDArray[np.uint8]
    """Picture of the last decode, uint8 RGB, padded to whole cells; never written to."""
    later: tuple[tuple[NDArray[np.int32] | None, NDArray[np.int32]], ...] = ()
    """For each frame since: its vectors (None where nothing moved) and the patches that it updated."""

    def after(self, motion: NDArray[np.int32] | None, updated: NDArray[np.int32]) -> ShownPicture:
        """The same after one more frame."""
        return replace(self, later=(*self.later, (motion, updated)))

    def caught_up(
        self, frame: CameraFrame, state: StreamState, decoded: NDArray[np.uint8]
    ) -> tuple[ShownPicture, NDArray[np.float32], NDArray[np.bool_]]:
        """Nearly the picture that a receiver shows, from one decode for all frames since the last decode.

        Decoding every frame would cost more than motion saves. Patches that were updated twice since the last decode
        show their last update too early.

        Args:
            frame: The frame.
            state: The state after the frame.
            decoded: The decoded state, uint8 RGB, padded to whole cells.

        Returns:
            The picture, the squared error of each patch of it ``(N,)``, and which of these errors are known ``(N,)``.
        """
        grid, picture = state.grid, self.picture.copy()
        last = np.full(state.ids.size, -1)
        for number, (_, updated) in enumerate(self.later):
            last[updated] = number
        unknown = np.zeros(state.ids.size, np.bool_)
        for number, (motion, updated) in enumerate(self.later):
            if motion is not None:
                picture = kernels.move_cells(picture, motion)
                unknown = move_flags(unknown.reshape(grid), motion).ravel()
            kernels.update_reference(decoded, False, picture, updated)
            unknown[updated] = last[updated] > number
        unmoved = np.flatnonzero(~state.moved).astype(np.int32)
        kernels.update_reference(decoded, False, picture, unmoved)
        unknown[unmoved] = False
        changes = kernels.patch_change(frame.image, frame.bgr, picture)
        error = changes[0].astype(np.float32) * np.float32(1 / PATCH_VALUES)
        return ShownPicture(picture), error, ~unknown


def assembled(pixels: NDArray[np.float32], grid: tuple[int, int]) -> NDArray[np.uint8]:
    """The picture, uint8 RGB, padded to whole cells, from the pixels of all patches ``(192, N)``."""
    return kernels.assemble(pixels, grid[1], grid[0] * PATCH, grid[1] * PATCH, False)


# --- measurements ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a measurement."""

    quality: Quality
    """The corrected quality."""
    search: MotionSearch
    """The motion search; paused where motion costs too much."""
    shown: ShownPicture | None
    """The shown picture; None where no pixels have moved."""
    held_loss: NDArray[np.float32]
    """The corrected held loss of each patch, ``(N,)``."""


def measurement_due(
    quality: Quality, shown: ShownPicture | None, options: StreamOptions
) -> Literal["probe", "look"] | None:
    """Which measurement follows a frame."""
    if shown is not None and len(shown.later) >= LOOK_INTERVAL and quality.until_probe > 0:
        return "look"
    return "probe" if options.max_loss_db > 0 and quality.until_probe <= 0 else None


def probe(
    frame: CameraFrame,
    options: StreamOptions,
    state: StreamState,
    loss: NDArray[np.float32],
    before: Measured,
) -> Measured:
    """Measure what holding and filtering cost in a frame, and correct the estimates.

    Args:
        frame: The frame.
        options: Options of the encoder.
        state: The state after the frame.
        loss: Estimated loss of each patch after the frame, ``(N,)``.
        before: What was known before.
    """
    tokenizer, (image, bgr) = options.tokenizer, (frame.image, frame.bgr)
    with frame.clock.stage("probe"):
        best = _error_of_all_tokens(frame, tokenizer)
        pixels = state.pixels(tokenizer.networks, Clock())
        error, known = kernels.patch_error(pixels, image, bgr, state.grid[1]), np.ones(loss.size, np.bool_)
        quality, shown = before.quality.with_error(float(best.sum(dtype=np.float64)), frame), before.shown
        if shown is not None:
            shown, error, known = shown.caught_up(frame, state, assembled(pixels, state.grid))
        quality = quality.corrected(_excess(error, best, known), GAIN_STEPS, options.max_loss_db)
        unseen, held_loss = error - best - loss, before.held_loss.copy()
        held_loss[known] += unseen[known]
    return Measured(quality.after_probe(), before.search, shown, held_loss)


def look(frame: CameraFrame, options: StreamOptions, state: StreamState, before: Measured) -> Measured:
    """Correct the allowance by the error of moved pixels; give motion up where it does not suit the scene.

    Args:
        frame: The frame.
        options: Options of the encoder.
        state: The state after the frame.
        before: What was known before; it has a shown picture.
    """
    if before.shown is None:
        return before
    quality, held_loss = before.quality, before.held_loss
    with frame.clock.stage("probe"):
        pixels = state.pixels(options.tokenizer.networks, Clock())
        shown, error, known = before.shown.caught_up(frame, state, assembled(pixels, state.grid))
        expected = np.float32(quality.error_of_detail) * detail(frame)
        quality = replace(quality, error=float(expected.sum(dtype=np.float64)))
        excess = _excess(error, expected, known)
        quality = quality.corrected(excess, LOOK_STEPS, options.max_loss_db)
        allowed = allowed_share(options.max_loss_db)
        search, given_up = before.search.judged(excess, allowed, quality.gain, frame.index)
        if given_up:
            quality, held_loss = replace(quality, gain=FIRST_GAIN), held_loss.copy()
            held_loss[state.moved] += error[state.moved]
    return Measured(quality, search, shown, held_loss)


def _error_of_all_tokens(frame: CameraFrame, tokenizer: Tokenizer) -> NDArray[np.float32]:
    """Squared error of each patch of the fixed-rate tokenizer, ``(N,)``."""
    networks, inner = tokenizer.networks, Clock()
    patches = np.arange(frame.n_patches, dtype=np.int32)
    prior = networks.prior(networks.global_codes(frame.image, frame.bgr, inner), inner)
    features = networks.features(len(patches))
    kernels.gather_features(frame.image, frame.bgr, prior.context, prior.mean, patches, frame.grid[1], out=features)
    codes = networks.patch_codes(features, inner)
    state = kernels.decoder_state(codes, patches, prior.expected, prior.entropy, tokenizer.levels)
    pixels = networks.pixels(state, prior.context, prior.mean, frame.grid, inner)
    return kernels.patch_error(pixels, frame.image, frame.bgr, frame.grid[1])


def _excess(shown: NDArray[np.float32], best: NDArray[np.float32], known: NDArray[np.bool_]) -> float:
    """Extra error of a picture, as a share of the best one's error, from the patches whose error is known."""
    least = float(best[known].sum(dtype=np.float64))
    if least <= 0:
        return 0.0
    excess = float(shown[known].sum(dtype=np.float64)) / least - 1
    return excess * (1 + UNKNOWN_EXCESS * (1 - float(known.mean())))
