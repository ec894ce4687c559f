"""The bandwidth of a link."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from tatok_edge.errors import InputError
from tatok_edge.stream.frame import KeyframeTooLarge, StreamFrame
from tatok_edge.tokens.budget import TokenBudget

WINDOW_US: Final = 1_000_000
"""Time over which the bandwidth holds, in microseconds."""
USED: Final = 0.93
"""Share of the bandwidth that frames use in the mean. Some bits are always left."""
MOST: Final = 0.4
"""Largest share of what is left of a second that one frame takes, so that frames after a large one are not skipped."""
CAUGHT_UP: Final = 0.3
"""A frame may take more bits than its own, up to this share more, where earlier frames of the second took fewer."""
FIRST_SHARE: Final = 0.3
"""Share of the bits of a second that the first frame may take."""
SMALLEST_KBPS: Final = 4.0
"""Smallest bandwidth that is accepted, in kbit/s."""
SMALLEST_PACKET: Final = 240
"""A frame is skipped if fewer bits than this remain."""


class RateControl:
    """Keeps the packets of every second within a bandwidth.

    Args:
        max_kbps: Bandwidth in kilobits (1000 bits) per second.

    Raises:
        InputError: The bandwidth is too small for any stream.
    """

    def __init__(self, max_kbps: float) -> None:
        if not max_kbps >= SMALLEST_KBPS:
            raise InputError(f"max_kbps must be at least {SMALLEST_KBPS:g} kbit/s, got {max_kbps:g}")
        self.bits = int(max_kbps * 1000)
        """Bits in each second."""
        self._sent: deque[tuple[int, int]] = deque()
        self._total = 0

    def left(self, timestamp_us: int) -> int:
        """Bits that remain of the second that ends at ``timestamp_us``."""
        while self._sent and self._sent[0][0] <= timestamp_us - WINDOW_US:
            self._total -= self._sent.popleft()[1]
        return self.bits - self._total

    def spend(self, timestamp_us: int, bits: int) -> None:
        """Count a packet."""
        self._sent.append((timestamp_us, bits))
        self._total += bits

    def _of_frame(self, timestamp_us: int, left: int) -> int:
        """Bits for a frame: those of its time since the frame before, and some of what is left of earlier ones."""
        if not self._sent:
            return int(FIRST_SHARE * left)
        own = USED * self.bits * min(timestamp_us - self._sent[-1][0], WINDOW_US) / WINDOW_US
        saved = left / self.bits - own / self.bits - (1 - USED)
        return int(min(own * (1 + CAUGHT_UP * saved), MOST * left))

    def encode(
        self, timestamp_us: int, budget: TokenBudget, encode: Callable[[TokenBudget], StreamFrame]
    ) -> StreamFrame | None:
        """Encode a frame within the bandwidth, and count its packet.

        Args:
            timestamp_us: Time of the frame in microseconds.
            budget: Limits for the packet besides the bandwidth.
            encode: Encodes the frame with a budget; an error must leave its encoder as it was.

        Returns:
            The frame; None where too few bits remain, so that it is skipped.

        Raises:
            KeyframeTooLarge: A keyframe needs more bits than a whole second has.
        """
        left = self.left(timestamp_us)
        if left < SMALLEST_PACKET:
            return None
        share = max(self._of_frame(timestamp_us, left), SMALLEST_PACKET)
        try:
            encoded = encode(replace(budget, max_bits=min(share, budget.max_bits or share)))
        except KeyframeTooLarge as error:
            if error.bits > self.bits:
                raise
            if error.bits > left:
                return None
            encoded = encode(replace(budget, max_bits=error.bits))
        self.spend(timestamp_us, 8 * len(encoded.packet))
        return encoded
