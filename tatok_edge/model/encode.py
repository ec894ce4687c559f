"""The order of encoding: score, filter, context, code.

The global tokens of an image give the prior of its patches. Then

1. *score*: each patch gets a score;
2. *filter*: the budget keeps the patches with the best scores;
3. *context*: the pixels and the context of each kept patch are gathered into a feature row;
4. *code*: the patch encoder turns the rows of all images into codes, in one call.

The score ``information`` and refining need the codes of all patches: there, context and code come first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.model.bundle import Bundle
from tatok_edge.model.filtering import filter_patches, fit_bits
from tatok_edge.model.networks import Clock, Networks, Prior
from tatok_edge.model.refine import Refiner, RefineTask, rates_of
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.session import EncodedFrame
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame


@dataclass(frozen=True, slots=True)
class Candidate:
    """An encoded image whose tokens are to be refined."""

    image: Image
    """uint8 ``(H, W, 3)``."""
    prior: Prior
    """Prior of its ``N`` patches."""
    every_code: NDArray[np.int32]
    """Codes of all patches, ``(N, D)``."""
    tokens: EncodedFrame
    """The kept tokens."""
    scores: NDArray[np.float32]
    """Scores of all patches, ``(N,)``."""


Refine = Callable[[Candidate], EncodedFrame]
"""Corrects the tokens of an image."""


def encode_images(
    networks: Networks,
    images: Sequence[Image],
    budget: TokenBudget,
    bgr: bool,
    levels: tuple[int, ...],
    clock: Clock,
    refine: Refine | None = None,
) -> list[EncodedFrame]:
    """Tokens of images on the CPU.

    Args:
        networks: The networks.
        images: Checked images, uint8 ``(H, W, 3)``, of any sizes.
        budget: Limits of each image; ``max_bits`` is left to the caller.
        bgr: The channels are in BGR order.
        levels: FSQ levels per code dimension.
        clock: Adds up the time of each stage.
        refine: Called for each image where the budget asks for refining.

    Raises:
        InputError: The patches cannot be ranked.
    """
    global_codes, priors = [], []
    for image in images:
        codes = networks.global_codes(image, bgr, clock)
        priors.append(networks.prior(codes, clock))
        global_codes.append(codes)
    if budget.score != "information" and refine is None:
        scores = score_patches(images, bgr, priors, budget, clock)
        with clock.stage("dtf"):
            kept = [filter_patches(of_image, budget) for of_image in scores]
        kept_codes = code_patches(networks, images, bgr, priors, kept, clock)
        return [EncodedFrame(*parts) for parts in zip(global_codes, kept, kept_codes, scores, strict=True)]
    if budget.score != "information":
        scores = score_patches(images, bgr, priors, budget, clock)
    everything = [np.arange(prior.entropy.size, dtype=np.int32) for prior in priors]
    every_code = code_patches(networks, images, bgr, priors, everything, clock)
    if budget.score == "information":
        with clock.stage("score"):
            scores = [
                kernels.information(prior.log2_probs, codes, positions, levels)
                for prior, codes, positions in zip(priors, every_code, everything, strict=True)
            ]
    results = []
    for number, prior in enumerate(priors):
        with clock.stage("dtf"):
            positions = filter_patches(scores[number], budget)
        with clock.stage("ids"):
            codes = every_code[number][positions]
        tokens = EncodedFrame(global_codes[number], positions, codes, scores[number])
        if refine is not None:
            tokens = refine(Candidate(images[number], prior, every_code[number], tokens, scores[number]))
        results.append(tokens)
    return results


def refine_tokens(
    refiner: Refiner,
    bundle: Bundle,
    model: IntegerEntropyModel,
    budget: TokenBudget,
    bgr: bool,
    clock: Clock,
    candidate: Candidate,
) -> EncodedFrame:
    """Refine the tokens of an image, after dropping tokens that do not fit into ``max_bits``."""
    tokens, image, prior, scores = candidate.tokens, candidate.image, candidate.prior, candidate.scores
    positions = tokens.positions
    if budget.max_bits is not None:  # the refiner must not count on tokens that are dropped
        with clock.stage("max_bits"):
            frame = token_frame(tokens, bundle, (image.shape[1], image.shape[0]))
            positions = fit_bits(frame, scores, budget.max_bits, model).positions
    task = RefineTask(
        image=image,
        bgr=bgr,
        context=prior.context,
        mean=prior.mean,
        rates=rates_of(model, tokens.global_codes),
        passes=budget.refine,
        clock=clock,
    )
    positions, codes = refiner.refine(task, prior, candidate.every_code, positions, scores=scores)
    return EncodedFrame(tokens.global_codes, positions, codes, scores)


def score_patches(
    images: Sequence[Image], bgr: bool, priors: Sequence[Prior], budget: TokenBudget, clock: Clock
) -> list[NDArray[np.float32]]:
    """Scores ``(N,)`` of all patches of each image, where the score does not need their codes."""
    with clock.stage("score"):
        if budget.score == "entropy":
            return [prior.entropy for prior in priors]
        scores = []
        for image, prior in zip(images, priors, strict=True):
            everything = np.arange(prior.entropy.size, dtype=np.int32)
            columns = patch_grid(image.shape[1], image.shape[0])[1]
            scores.append(kernels.patch_residual(image, bgr, prior.mean, everything, everything, columns))
        return scores


def code_patches(
    networks: Networks,
    images: Sequence[Image],
    bgr: bool,
    priors: Sequence[Prior],
    kept: Sequence[NDArray[np.int32]],
    clock: Clock,
) -> list[NDArray[np.int32]]:
    """Codes ``(T, D)`` of the patches ``kept`` of each image, all in one flat batch."""
    counts = [len(positions) for positions in kept]
    if sum(counts) == 0:
        return [np.zeros((0, len(prior.expected)), np.int32) for prior in priors]
    with clock.stage("gather"):
        features = networks.features(sum(counts))
        start = 0
        for image, prior, positions in zip(images, priors, kept, strict=True):
            columns = patch_grid(image.shape[1], image.shape[0])[1]
            rows = features[start : start + len(positions)]
            kernels.gather_features(image, bgr, prior.context, prior.mean, positions, columns, out=rows)
            start += len(positions)
    codes = networks.patch_codes(features, clock)
    return list(np.split(codes, np.cumsum(counts)[:-1]))


def token_frame(
    tokens: EncodedFrame, bundle: Bundle, size: tuple[int, int], index: int = 0, timestamp_us: int = 0
) -> TokenFrame:
    """The frame of encoded tokens, for an image of ``size`` (width, height)."""
    global_codes = np.ascontiguousarray(tokens.global_codes.reshape(len(bundle.levels), -1).T)
    return TokenFrame(
        ids=kernels.ids_from_codes(tokens.codes, bundle.levels),
        positions=tokens.positions,
        global_ids=kernels.ids_from_codes(global_codes, bundle.levels),
        width=size[0],
        height=size[1],
        model=bundle.tag,
        index=index,
        timestamp_us=timestamp_us,
    )
