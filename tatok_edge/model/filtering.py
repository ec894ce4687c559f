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


def token_filter(patches: int, budget: TokenBudget) -> TokenFilter:
    """Limits of a budget for an image with ``patches`` patches."""
    smallest, largest = budget.limits(patches)
    return TokenFilter(budget.tau, smallest, largest, budget.floor_bits)


def filter_patches(scores: NDArray[np.float32], budget: TokenBudget) -> NDArray[np.int32]:
    """Dynamic Token Filtering of one image: kept positions in raster order."""
    limits = token_filter(scores.size, budget)
    try:
        indices, _ = kernels.dtf(
            scores[None],
            tau=limits.tau,
            min_tokens=limits.min_tokens,
            max_tokens=limits.max_tokens,
            floor_bits=limits.floor_bits,
        )
    except ValueError as error:
        raise InputError(f"patches cannot be ranked: {error}") from None
    return indices


def subset(frame: TokenFrame, chosen: NDArray[np.int32]) -> TokenFrame:
    """The tokens ``chosen`` (indices into the frame's tokens, rising) of a frame."""
    return dataclasses.replace(frame, ids=frame.ids[chosen], positions=frame.positions[chosen])


def fit_bits(frame: TokenFrame, scores: NDArray[np.float32], max_bits: int, model: IntegerEntropyModel) -> TokenFrame:
    """Keep as many of the best tokens as fit into ``max_bits``.

    Args:
        frame: The tokens.
        scores: Scores of all patches, ``(N,)``.
        max_bits: Largest size of the packet in bits.
        model: Entropy model of the bundle.

    Raises:
        InputError: The global tokens alone need more bits.
    """
    kept = np.ascontiguousarray(scores[frame.positions])

    def best(count: int) -> TokenFrame:
        return frame if count >= frame.n_tokens else subset(frame, filter_patches(kept, TokenBudget(max_tokens=count)))

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
