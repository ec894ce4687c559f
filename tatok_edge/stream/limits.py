"""The limits of a packet: the price rises until what is chosen fits the budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tatok_edge.stream.choice import HIGHEST, Offers, lowest_price
from tatok_edge.stream.price import FULL
from tatok_edge.tokens.budget import TokenBudget

TRIALS: Final = 6
"""Most packets that are made to find one that fits."""
Packed = TypeVar("Packed")


def within_budget(
    offers: Offers,
    price: float,
    budget: TokenBudget,
    most: int,
    packed: Callable[[NDArray[np.int32]], tuple[Packed, bytes]],
) -> tuple[float, NDArray[np.int32], Packed, bytes]:
    """The best actions within a budget.

    Args:
        offers: What could be done.
        price: The price of a token; it rises where a limit asks for it.
        budget: Limits of the packet.
        most: Largest number of tokens.
        packed: Makes the packet of chosen depths ``(C,)``, and its content.

    Returns:
        The price, the depths that are chosen at it ``(C,)``, the content and the packet. The packet exceeds the limits
        only where no action at all does.
    """
    offers, price = within_tokens(offers, price, budget, most)
    best = offers.at(price)
    content, packet = packed(best)
    if budget.max_bits is None or 8 * len(packet) <= budget.max_bits:
        return price, best, content, packet
    fitting = _within_bits(offers, price, budget.max_bits, packed, best, packet)
    if fitting is None and offers.visible.any():
        offers = replace(offers, visible=np.zeros_like(offers.visible))
        best = offers.at(price)
        fitting = _within_bits(offers, price, budget.max_bits, packed, best, packed(best)[1])
    if fitting is None:
        least = offers.at(HIGHEST)
        fitting = HIGHEST, least, *packed(least)
    return fitting


def within_tokens(offers: Offers, price: float, budget: TokenBudget, most: int) -> tuple[Offers, float]:
    """The offers and the price at which the best actions send at most ``most`` tokens, and ``budget.tau`` of the gain.

    Where the visible patches alone need more tokens, they have no claim to any.
    """
    if budget.tau < 1:
        share = budget.tau * offers.gain(offers.at(price))
        price = lowest_price(price, lambda at: offers.gain(offers.at(at)) <= share)
    if offers.visible.any() and offers.tokens(offers.at(HIGHEST)) > most:
        offers = replace(offers, visible=np.zeros_like(offers.visible))
    return offers, lowest_price(price, lambda at: offers.tokens(offers.at(at)) <= most)


def _within_bits(
    offers: Offers,
    price: float,
    max_bits: int,
    packed: Callable[[NDArray[np.int32]], tuple[Packed, bytes]],
    most: NDArray[np.int32],
    packet: bytes,
) -> tuple[float, NDArray[np.int32], Packed, bytes] | None:
    """The best actions whose packet fits; ``most`` are those at ``price``, ``packet`` is theirs. None where none fits.

    Packing takes time, so the size is interpolated between packets that fit and packets that do not.
    """
    best = None
    (low, small), (high, large) = (0.0, 0), (offers.size(most), 8 * len(packet))
    for _ in range(TRIALS):
        if large <= max_bits:
            return best or (price, most, *packed(most))
        share = min(max((max_bits - small) / (large - small), 0.05), 0.95)
        aim = low + share * (high - low)
        at = lowest_price(price, lambda price: offers.size(offers.at(price)) <= aim)  # noqa: B023  # called at once
        chosen = offers.at(at)
        content, packet = packed(chosen)
        size, bits = offers.size(chosen), 8 * len(packet)
        if bits > max_bits:
            high, large = size, bits
        else:
            best, low, small = (at, chosen, content, packet), size, bits
        if FULL * max_bits <= bits <= max_bits or high - low < 1:
            break
    return best
