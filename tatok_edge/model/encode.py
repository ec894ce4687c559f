"""The order of encoding: score, filter, context, code.

The global tokens of an image give the mean pixels of its patches. Then

1. *score*: each token that a patch can have gets a score, before any code is known;
2. *filter*: the budget keeps the tokens with the best scores; a patch then has a stack of 0 to K tokens;
3. *context*: the context of each patch with a token is computed, and gathered with its pixels into a feature row;
4. *code*: the patch encoder turns the rows of all images into the codes of stacks, in one call; each patch takes the
   tokens that it keeps.

The score ``information`` and refining need the codes of all patches: there, context and code come first. The score
``entropy`` needs the context of all patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.model.bundle import Bundle
from tatok_edge.model.filtering import filter_tokens, fit_bits, prefix_scores, stack_mask, token_filter
from tatok_edge.model.networks import CellContext, Clock, Networks, Prior
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
    """Codes of the stacks of all patches, ``(N, K * D)``."""
    tokens: EncodedFrame
    """The kept tokens."""
    scores: NDArray[np.float32]
    """Scores of the tokens that the budget allows, ``(N, depth)``."""


Refine = Callable[[Candidate], EncodedFrame]
"""Corrects the tokens of an image."""


@dataclass(frozen=True, slots=True)
class Coding:
    """How a bundle codes patches."""

    levels: tuple[int, ...]
    """FSQ levels per code dimension."""
    depth: int
    """Most tokens of a patch, K."""
    basis: NDArray[np.int16]
    """Directions of the scores, ``(K, D, 192)``."""


def encode_images(
    networks: Networks,
    images: Sequence[Image],
    budget: TokenBudget,
    bgr: bool,
    coding: Coding,
    clock: Clock,
    refine: Refine | None = None,
) -> list[EncodedFrame]:
    """Tokens of images on the CPU.

    Args:
        networks: The networks.
        images: Checked images, uint8 ``(H, W, 3)``, of any sizes.
        budget: Limits of each image; ``max_bits`` is left to the caller.
        bgr: The channels are in BGR order.
        coding: How the bundle codes patches.
        clock: Adds up the time of each stage.
        refine: Called for each image where the budget asks for refining.

    Raises:
        InputError: The tokens cannot be ranked, or the budget does not go with the depth of the model.
    """
    filters = [token_filter(patches_of(image), budget, coding.depth) for image in images]
    global_codes = [networks.global_codes(image, bgr, clock) for image in images]
    cells = [networks.cell_context(codes, clock) for codes in global_codes]
    everything = budget.score == "information" or refine is not None
    patches: list[NDArray[np.int32]]
    some: list[Prior | None]
    if everything or budget.score == "entropy":
        priors = [networks.prior_of(of_image, None, clock) for of_image in cells]
    if everything:
        patches = [np.arange(patches_of(image), dtype=np.int32) for image in images]
        stacks = code_patches(networks, images, bgr, priors, patches, coding, clock)
    if budget.score == "information":
        scores = [information_scores(*of, budget, coding, clock) for of in zip(priors, stacks, strict=True)]
    elif budget.score == "entropy":
        scores = [prefix_scores(prior.entropy[: budget.depth(coding.depth)]) for prior in priors]
    else:
        scores = residual_scores(images, bgr, cells, budget, coding, clock)
    with clock.stage("dtf"):
        kept = [filter_tokens(*of) for of in zip(scores, filters, strict=True)]
    if not everything:
        patches = [different(positions) for positions in kept]
        if budget.score == "entropy":
            some = [prior.of(positions) for prior, positions in zip(priors, patches, strict=True)]
        else:
            some = [networks.prior_of(*of, clock) if len(of[1]) else None for of in zip(cells, patches, strict=True)]
        stacks = code_patches(networks, images, bgr, some, patches, coding, clock)
    results = []
    for number, positions in enumerate(kept):
        with clock.stage("ids"):
            mask = stack_mask(positions, patches[number], coding.depth)
            codes = stacks[number].reshape(*mask.shape, len(coding.levels))[mask]
        tokens = EncodedFrame(global_codes[number], positions, codes, scores[number])
        if refine is not None:
            tokens = refine(Candidate(images[number], priors[number], stacks[number], tokens, scores[number]))
        results.append(tokens)
    return results


def patches_of(image: Image) -> int:
    """Number of patches of an image."""
    rows, columns = patch_grid(image.shape[1], image.shape[0])
    return rows * columns


def different(positions: NDArray[np.int32]) -> NDArray[np.int32]:
    """The different ones of positions that never fall."""
    return positions[np.diff(positions, prepend=-1) > 0]


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


def residual_scores(
    images: Sequence[Image],
    bgr: bool,
    cells: Sequence[CellContext],
    budget: TokenBudget,
    coding: Coding,
    clock: Clock,
) -> list[NDArray[np.float32]]:
    """Scores ``residual`` or ``visual`` ``(N, depth)`` of all tokens of each image that the budget allows."""
    depth = budget.depth(coding.depth)
    with clock.stage("score"):
        scores = []
        for image, of_cells in zip(images, cells, strict=True):
            everything = np.arange(patches_of(image), dtype=np.int32)
            columns = patch_grid(image.shape[1], image.shape[0])[1]
            basis = coding.basis[:depth]
            of_image = kernels.patch_scores(image, bgr, of_cells.mean, everything, everything, columns, basis)
            if budget.score == "visual":
                of_image *= kernels.visual_weights(image)[:, None]
            scores.append(of_image)
        return scores


def information_scores(
    prior: Prior, stacks: NDArray[np.int32], budget: TokenBudget, coding: Coding, clock: Clock
) -> NDArray[np.float32]:
    """Bits of the tokens of the stacks ``(N, K * D)`` of an image as scores ``(N, depth)``, never rising over depth."""
    everything = np.arange(len(stacks), dtype=np.int32)
    dims, rows = len(coding.levels), sum(coding.levels)
    with clock.stage("score"):
        bits = []
        for token in range(budget.depth(coding.depth)):
            codes = np.ascontiguousarray(stacks[:, token * dims : (token + 1) * dims])
            probs = prior.log2_probs[token * rows : (token + 1) * rows]
            bits.append(kernels.information(probs, codes, everything, coding.levels))
        return prefix_scores(np.stack(bits))


def code_patches(
    networks: Networks,
    images: Sequence[Image],
    bgr: bool,
    priors: Sequence[Prior | None],
    patches: Sequence[NDArray[np.int32]],
    coding: Coding,
    clock: Clock,
) -> list[NDArray[np.int32]]:
    """Codes of the stacks ``(P, K * D)`` of some patches of each image, all in one flat batch.

    A prior has a column for each of these patches; that of an image without patches may be ``None``.
    """
    counts = [len(positions) for positions in patches]
    if sum(counts) == 0:
        return [np.zeros((0, coding.depth * len(coding.levels)), np.int32) for _ in priors]
    with clock.stage("gather"):
        features = networks.features(sum(counts))
        start = 0
        for image, prior, positions in zip(images, priors, patches, strict=True):
            if prior is None:
                continue
            columns = patch_grid(image.shape[1], image.shape[0])[1]
            rows, every = features[start : start + len(positions)], np.arange(len(positions), dtype=np.int32)
            kernels.gather_features(image, bgr, prior.context, prior.mean, every, positions, columns, out=rows)
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
