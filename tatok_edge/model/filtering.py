"""Choice of the kept patch tokens: Dynamic Token Filtering, and the search for tokens that fit into ``max_bits``."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.format.packet import pack
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.session import TokenFilter
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame


def token_filter(patches: int, budget: TokenBudget, depth: int) -> TokenFilter:
    """Limits of a budget for an image with ``patches`` patches, and a model of depth ``depth``."""
    smallest, largest = budget.limits(patches, depth)
    return TokenFilter(budget.tau, smallest, largest, budget.floor_bits)


def filter_tokens(scores: NDArray[np.float32], limits: TokenFilter) -> NDArray[np.int32]:
    """Dynamic Token Filtering of one image.

    Args:
        scores: Scores ``(N, depth)`` of its tokens.
        limits: How many to keep.

    Returns:
        Patch of each kept token, in raster order: a patch comes as often as it has tokens.

    Raises:
        InputError: A score is not finite.
    """
    try:
        positions, _, _ = kernels.dtf(
            scores[None],
            tau=limits.tau,
            min_tokens=limits.min_tokens,
            max_tokens=limits.max_tokens,
            floor_bits=limits.floor_bits,
        )
    except ValueError as error:
        raise InputError(f"tokens cannot be ranked: {error}") from None
    return positions


def stack_mask(positions: NDArray[np.int32], patches: NDArray[np.int32], depth: int) -> NDArray[np.bool_]:
    """Which tokens of the stacks of ``patches`` are among the tokens at ``positions``, bool ``(P, depth)``.

    Args:
        positions: Patch of each token, ``(T,)``, never falling.
        patches: The different patches among them, ``(P,)``, rising.
        depth: Length of the stacks.
    """
    begins = np.searchsorted(positions, patches)
    counts = np.diff(begins, append=positions.size)
    return counts[:, None] > np.arange(depth)


def prefix_scores(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores ``(K, N)`` of tokens as the filter takes them: ``(N, K)``, never rising over depth."""
    return np.ascontiguousarray(np.minimum.accumulate(scores, axis=0).T)


def subset(frame: TokenFrame, chosen: NDArray[np.int32]) -> TokenFrame:
    """The tokens ``chosen`` (indices into the frame's tokens, rising) of a frame."""
    return dataclasses.replace(frame, ids=frame.ids[chosen], positions=frame.positions[chosen])


def fit_bits(frame: TokenFrame, scores: NDArray[np.float32], max_bits: int, model: IntegerEntropyModel) -> TokenFrame:
    """Keep as many of the best tokens as fit into ``max_bits``.

    Args:
        frame: The tokens.
        scores: Scores of all tokens that may be kept, ``(N, depth)``.
        max_bits: Largest size of the packet in bits.
        model: Entropy model of the bundle.

    Raises:
        InputError: The global tokens alone need more bits.
    """
    kept = scores[frame.positions, frame.depths - 1][:, None]

    def best(count: int) -> TokenFrame:
        if count >= frame.n_tokens:
            return frame
        # Of equal scores the earlier token is kept, so stacks stay whole.
        return subset(frame, filter_tokens(kept, TokenFilter(1.0, 0, count, 0.0)))

    def bits(candidate: TokenFrame) -> int:
        return 8 * len(pack(candidate, model))

    if bits(frame) <= max_bits:
        return frame
    low, high, smallest = 0, frame.n_tokens, bits(best(0))
    if smallest > max_bits:
        raise InputError(
            f"max_bits = {max_bits} is less than the {smallest} bits that a {frame.width}x{frame.height} image "
            "needs for its global tokens alone; allow more bits or make the image smaller"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if bits(best(middle)) <= max_bits:
            low = middle
        else:
            high = middle
    return best(low)
