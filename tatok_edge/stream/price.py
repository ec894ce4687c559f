"""The price of a token: a controller that keeps the shown picture as good as the fixed rate, less the allowed loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

AIM_DB: Final = 0.1
"""The controller aims this much above its target, in dB, so that the mean over frames does not fall below it."""
STEP: Final = 1.0
"""Change of the logarithm of the price per unit of the logarithm of error over target, in each frame."""
DEBT_SHARE: Final = 0.1
"""Weight of the sum of earlier excesses against the newest one: what was lost is made up for."""
DEBT_DECAY: Final = 0.9
"""Share of that sum that is left after a frame: what was lost long ago is not made up for."""
MAX_STEP: Final = 0.5
"""Largest change of the logarithm of the price in one frame."""
AT_ONCE: Final = 16.0
"""Largest factor between the price of a frame and the one before. The price follows target over error of the picture
that is shown before the frame: what appears suddenly finds a low price at once."""
FEW: Final = 1 / 64
"""Tokens per patch and frame of a stream that gains next to nothing from sending fewer. Below it the price hardly
rises, so that it is not out of reach when something happens."""
PRICE_LIMITS: Final = (1.0, 1e6)
"""Smallest and largest price, in grey levels squared times frames."""
FULL: Final = 0.95
"""Share of its bits that a full packet uses."""
FALL_TO_FILL: Final = 0.7
"""Factor of the price after a packet that was not full."""
FIRST_PROBE: Final = 2
"""Frames from a keyframe to the next measurement of the fixed rate. The interval doubles with each measurement."""
LONGEST_PROBE: Final = 128
"""Largest number of frames between measurements."""


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a token: squared error per value, times the frames for which it is removed, that a token removes."""

    value: float
    """The price of the next frame, before its own error is known."""
    debt: float = 0.0
    """Sum of the excesses of earlier frames, the logarithm of error over target."""
    until_probe: int = FIRST_PROBE
    """Frames until the next measurement of the fixed rate."""
    probe_interval: int = FIRST_PROBE
    """Frames from the last measurement to the next one."""

    def now(self, error: float, target: float) -> float:
        """The price for a frame.

        Args:
            error: Mean squared error of the picture that is shown before the frame.
            target: The mean squared error to aim at.
        """
        factor = min(max((target + 1) / (error + 1), 1 / AT_ONCE), AT_ONCE)
        return max(self.value * factor, PRICE_LIMITS[0])

    def after(self, error: float, target: float, sent: float) -> Price:
        """The price after a frame: lower where the error of the shown picture is above the target, else higher.

        Args:
            error: Mean squared error of the shown picture after the frame.
            target: The mean squared error to aim at.
            sent: Tokens of the frame per patch.
        """
        # An error below one grey level squared is as good as none.
        excess = math.log((error + 1) / (target + 1))
        debt = DEBT_DECAY * self.debt + excess
        step = STEP * (excess + DEBT_SHARE * debt)
        step = min(max(step, -MAX_STEP * min(sent / FEW, 1)), MAX_STEP)
        value = min(max(self.value * math.exp(-step), PRICE_LIMITS[0]), PRICE_LIMITS[1])
        return Price(value, debt, self.until_probe - 1, self.probe_interval)

    def filled(self, cut_at: float, used: float) -> Price:
        """The price after a frame whose packet is to use all bits of its budget.

        Args:
            cut_at: The price at which the packet fitted.
            used: Share of the bits that the packet used.
        """
        value = cut_at if cut_at > self.value else self.value
        value = min(max(value * (FALL_TO_FILL if used < FULL else 1.0), PRICE_LIMITS[0]), PRICE_LIMITS[1])
        return replace(self, value=value, until_probe=self.until_probe - 1)

    def probed(self) -> Price:
        """The price after the fixed rate was measured."""
        interval = min(2 * self.probe_interval, LONGEST_PROBE)
        return replace(self, until_probe=interval, probe_interval=interval)


def target_of(fixed_error: float, max_loss_db: float) -> float:
    """The mean squared error to aim at, from that of the fixed rate and the allowed loss in dB."""
    target: float = fixed_error * 10 ** ((max_loss_db - AIM_DB) / 10)
    return target
