"""Plans: what a frame encodes, decided before the patch encoder runs.

Planning runs the global encoder and the context network. It changes nothing but scratch memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tatok_edge.model.networks import Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates
from tatok_edge.stream.frame import CameraFrame
from tatok_edge.stream.memory import Memory
from tatok_edge.stream.motion import FoundMotion, MotionSearch
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.quality import TYPICAL_SCALE, Quality
from tatok_edge.stream.selection import (
    LONGEST_LIFE,
    Candidates,
    Limiter,
    PatchHistory,
    Refresh,
    best_per_cell,
    choose,
    find_candidates,
)
from tatok_edge.stream.state import Window, cell_of, inside, window_around


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
    limiter = Limiter(options.budget, frame, patches, (0, 0, *frame.cell_grid), prior)
    quality = Quality() if memory is None else memory.quality
    history, search = None, MotionSearch(np.zeros((*frame.cell_grid, 2), np.int32))
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
        features = _features_of(frame, options, prior.context, prior.mean, encoded)
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


@dataclass(frozen=True, slots=True)
class Update:
    """The part of a delta plan that needs the networks: prior, cost and tokens of the candidates."""

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
        quality = replace(quality, until_probe=0)  # the estimates are of another scene
    with frame.clock.stage("change"):
        history = replace(memory.history, held_loss=found.held_loss).older()
        refreshed, announced, refresh = memory.refresh.turn(options, frame.cell_grid)
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
        window = window_around(np.flatnonzero(touched), state.cell_grid)
        touched[announced] = True
        mixed = np.where(touched.reshape(state.cell_grid), codes, state.global_codes)
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
        features = _features_of(frame, options, buffer.context, buffer.mean, encoded)
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


def _features_of(
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
