"""The choice of actions: one ranking of patches, depths and actions at one price per token.

A patch is held, renewed with 0 to K tokens, or refined by further tokens. The action with the largest value is taken:
the squared error that it removes, times the frames for which it lasts, less the price of its tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

RENEWAL_COST: Final = 1 / 8
"""Cost of renewing a patch besides its tokens, in tokens: its share of the global token of its cell, and its place."""
HELD: Final = -1
"""The depth of a patch that is held."""
HIGHEST: Final = 1e8
"""A price that no gain exceeds: at it, only forced actions are left."""


@dataclass(frozen=True, slots=True)
class Offers:
    """What could be done with some patches of a frame."""

    patches: NDArray[np.int32]
    """The patches ``(C,)``, ascending."""
    now: NDArray[np.float32]
    """Error of each as it is shown, ``(C,)``, in grey levels squared per value."""
    errors: NDArray[np.float32]
    """Error of each after the action that ends with 0 to K tokens, ``(C, K + 1)``."""
    worth: NDArray[np.float32]
    """Frames for which an action lasts, times the weight of an error, ``(C,)``."""
    held: NDArray[np.int32]
    """Tokens that a refined patch keeps, ``(C,)``; :data:`HELD` where the action would renew the patch."""
    forced: NDArray[np.bool_]
    """Patches that are renewed at any price, ``(C,)``."""
    visible: NDArray[np.bool_]
    """Patches that differ visibly from what is shown, ``(C,)``."""
    cells: NDArray[np.int32]
    """Cell of each patch, ``(C,)``."""
    deepest: int
    """Most tokens of a patch that the budget allows."""

    def of(self, chosen: NDArray[np.bool_]) -> Offers:
        """The offers of some of the patches, from their mask ``(C,)``."""
        chosen_ones: dict[str, Any] = {name: values[chosen] for name, values in self._per_patch().items()}
        return replace(self, **chosen_ones)

    def joined(self, other: Offers) -> Offers:
        """These offers and those of other patches."""
        order = np.argsort(np.concatenate([self.patches, other.patches]), kind="stable")
        others = other._per_patch()
        both: dict[str, Any] = {
            name: np.concatenate([values, others[name]])[order] for name, values in self._per_patch().items()
        }
        return replace(self, **both)

    def _per_patch(self) -> dict[str, NDArray[Any]]:
        """The fields with one entry for each patch."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}

    def costs(self) -> NDArray[np.float32]:
        """Cost of each action in tokens, ``(C, K + 1)``; infinite where it does not exist."""
        depth = np.arange(self.errors.shape[1], dtype=np.float32)
        renewing = np.broadcast_to(depth + np.float32(RENEWAL_COST), self.errors.shape)
        further = depth - self.held[:, None]
        refining = np.where(further > 0, further, np.float32(np.inf))
        costs = np.where(self.held[:, None] == HELD, renewing, refining)
        costs[:, self.deepest + 1 :] = np.inf
        return costs

    def at(self, price: float) -> NDArray[np.int32]:
        """Tokens of each patch after the best action at a price, ``(C,)``; :data:`HELD` where it is held.

        The best patch of a cell with visible differences gets a token at any price, unless a patch of the cell has one
        anyway. Depths never rise with the price.
        """
        values = (self.now[:, None] - self.errors) * self.worth[:, None] - np.float32(price) * self.costs()
        best = values.argmax(1)
        value = np.take_along_axis(values, best[:, None], 1)[:, 0]
        chosen = np.where((value > 0) | self.forced, best, HELD).astype(np.int32)
        if self.visible.any():
            seen = self.cells[(chosen > 0) & (self.held == HELD)]
            best = self.most_visible()
            chosen[best[~np.isin(self.cells[best], seen)]] = 1
        return chosen

    def most_visible(self) -> NDArray[np.int64]:
        """The place in :attr:`patches` of the best visible patch of each cell that has one, by its first token."""
        index = np.flatnonzero(self.visible)
        gains = self.now[index] - self.errors[index, 1]
        order = index[np.lexsort((-gains, self.cells[index]))]
        best: NDArray[np.int64] = order[np.diff(self.cells[order], prepend=-1) != 0]
        return best

    def tokens(self, chosen: NDArray[np.int32]) -> int:
        """Tokens that the chosen actions send."""
        sent = chosen - np.maximum(self.held, 0)
        return int(sent[chosen != HELD].sum())

    def size(self, chosen: NDArray[np.int32]) -> float:
        """Rough size of the packet of chosen actions, in tokens."""
        return self.tokens(chosen) + RENEWAL_COST * float(np.count_nonzero(chosen != HELD))

    def gain(self, chosen: NDArray[np.int32]) -> float:
        """Squared error that the chosen actions remove, summed over the patches."""
        acts = np.flatnonzero(chosen != HELD)
        return float((self.now[acts] - self.errors[acts, chosen[acts]]).sum(dtype=np.float64))


def lowest_price(price: float, holds: Callable[[float], bool], highest: float = HIGHEST) -> float:
    """The lowest price from ``price`` up at which ``holds`` is true, within 1/2000; at most ``highest``.

    Args:
        price: The price at which nothing is cut.
        holds: Whether a limit holds at a price; true above some price.
    """
    if holds(price):
        return price
    low, high = max(price, 1e-3), highest
    while high > 1.0005 * low:
        middle = float(np.sqrt(low * high))
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
