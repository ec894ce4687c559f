"""The price of a token: a controller that keeps the shown picture as good as the fixed rate, less the allowed loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

STEP: Final = 0.7
"""Change of the logarithm of the price for each dB that a frame lost."""
DEBT_SHARE: Final = 0.1
"""Weight of what earlier frames lost in sum, against what the newest one lost."""
CREDIT: Final = 4.0
"""What earlier frames gained counts up to this sum, in dB. Half of it is aimed at, so that the mean loss over frames
stays below the allowed one."""
MAX_STEP: Final = 0.5
"""Largest change of the logarithm of the price in one frame."""
FEW: Final = 1 / 64
"""Tokens per patch and frame of a stream that gains next to nothing from sending fewer. Below it the price hardly
rises, so that it is not out of reach when something happens."""
VALUE_LIMITS: Final = (1 / 4, 1e4)
"""Smallest and largest price, in frames: times the squared error to aim at."""
TOKEN_BITS: Final = (2.0, 400.0)
"""Smallest and largest guess of the bits of a packet for each of its tokens."""
CUT_MORE: Final = 1.2
"""Where a packet had to be cut, a token is guessed to take more bits by this factor."""
FIRST_VALUE: Final = 4.0
"""Smallest price of a new scene, in frames. Its first picture may be black, and says little about the next ones."""
FULL: Final = 0.95
"""Share of its bits that a full packet uses."""
WRONG_DB: Final = 0.2
"""A change of what the estimates are wrong by makes the next measurement come earlier beyond this, in dB."""
PROBES: Final = (4, 128)
"""Smallest and largest number of frames between measurements of the fixed rate."""


@dataclass(frozen=True, slots=True)
class Price:
    """The price of a token: squared error per value, times the frames for which it is removed, that a token removes."""

    value: float
    """The price in frames: a share of the error to aim at, so that it fits a scene that gets brighter or busier."""
    debt: float = 0.0
    """What all frames so far lost beyond the allowed loss, summed over frames, in dB; negative where they gained."""
    unmeasured: int = 0
    """Frames since the fixed rate was last measured."""
    interval: int = PROBES[0]
    """Frames from the last measurement to the next one."""
    token_bits: float = 16.0
    """Bits of a packet for each token of its guessed size: gives the price of packets that use all bits of a budget."""
    wrong: float = 0.0
    """PSNR of the fixed rate less its estimate at the last measurement, in dB; corrects the estimates after it."""

    @property
    def probe_due(self) -> bool:
        """Whether the fixed rate is to be measured with the frame that this price follows."""
        return self.unmeasured >= self.interval

    def at(self, target: float) -> float:
        """The price in grey levels squared times frames, from the mean squared error to aim at."""
        return self.value * (target + 1)

    def after(self, lost: float, sent: float) -> Price:
        """The price after a frame: lower where the frames so far lost too much, else higher.

        Args:
            lost: What the frame lost beyond the allowed loss, in dB.
            sent: Tokens of the frame per patch.
        """
        lost += self.wrong
        debt = max(self.debt + lost, -CREDIT)
        step = STEP * (lost + DEBT_SHARE * (debt + CREDIT / 2))
        step = min(max(step, -MAX_STEP * min(sent / FEW, 1)), MAX_STEP)
        value = min(max(self.value * math.exp(-step), VALUE_LIMITS[0]), VALUE_LIMITS[1])
        return replace(self, value=value, debt=debt, unmeasured=self.unmeasured + 1)

    def filled(self, size: float, bits: int, cut: bool) -> Price:
        """The price after a packet that was to use all bits of its budget.

        Args:
            size: Size of the packet in tokens, as it was guessed.
            bits: Bits of the packet.
            cut: Whether tokens were left out because the packet had too many bits.
        """
        found = bits / max(size, 1.0)
        if cut:
            found = max(found, self.token_bits * CUT_MORE)
        token_bits = min(max(math.sqrt(self.token_bits * found), TOKEN_BITS[0]), TOKEN_BITS[1])
        return replace(self, token_bits=token_bits, unmeasured=self.unmeasured + 1)

    def after_key(self, lost: float) -> Price:
        """The price after a keyframe, which measures the fixed rate; ``lost`` as for :meth:`after`."""
        return replace(self, debt=max(self.debt + lost, -CREDIT), unmeasured=0)

    def probed(self, wrong: float) -> Price:
        """The price after the fixed rate was measured.

        Args:
            wrong: PSNR of the fixed rate less its estimate, in dB. It is assumed to have changed evenly since the
                measurement before, so that each frame since then lost its part of the change.
        """
        debt = max(self.debt + (wrong - self.wrong) * (self.unmeasured + 1) / 2, -CREDIT)
        interval = self.interval // 2 if abs(wrong - self.wrong) > WRONG_DB else 2 * self.interval
        return replace(self, debt=debt, unmeasured=0, wrong=wrong, interval=min(max(interval, PROBES[0]), PROBES[1]))


def loss_db(error: float, fixed_error: float) -> float:
    """PSNR that one mean squared error loses against another, in dB; both count one grey level squared more."""
    return 10 * math.log10((error + 1) / (fixed_error + 1))


def target_of(fixed_error: float, max_loss_db: float) -> float:
    """The mean squared error to aim at, from that of the fixed rate and the allowed loss in dB."""
    target: float = fixed_error * 10 ** (max_loss_db / 10)
    return target
