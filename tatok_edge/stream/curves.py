"""Error curves: the squared error that a patch will have after 0, 1, ... K tokens, before any of them is known.

The energy of a patch's residual and its share in the directions of each token say what tokens can remove. What they
do remove is learned from the pictures that the encoder decodes anyway.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

OUTSIDE: Final = 0.75
"""Share of the energy outside the directions of the tokens that remains as error; the decoder removes the rest without
being told. The mean over training pictures, nearly the same at every depth."""
INSIDE: Final = 0.03
"""Share of the energy in the directions of the tokens that remains as error: quantization. Measured likewise."""
LEARNED_FROM: Final = 500
"""Updates after which a correction has followed half of what they showed."""
CORRECTION_LIMITS: Final = (0.5, 2.0)
"""Smallest and largest correction of an error curve."""


@dataclass(frozen=True, slots=True)
class ErrorCurves:
    """Predicts errors; learns from measured ones."""

    corrections: NDArray[np.float32]
    """Measured over predicted error after 0 to K tokens, ``(K + 1,)``."""
    gain_correction: float = 1.0
    """Measured over predicted gain of refining."""
    fixed_scale: float = 1.0
    """Error of the fixed rate over the predicted error after one token without :attr:`corrections`, in the mean, as
    last measured."""

    @classmethod
    def start(cls, depth: int) -> ErrorCurves:
        """Curves of a model with up to ``depth`` tokens per patch, before the first measurement."""
        return cls(np.ones(depth + 1, np.float32))

    def of(self, residual: NDArray[np.float32], scores: NDArray[np.float32], noise: float) -> NDArray[np.float32]:
        """The error of patches after 0 to K tokens, ``(P, K + 1)``, never rising, the noise of the frame included.

        Args:
            residual: Energy per value of what the mean leaves of each patch, ``(P,)``.
            scores: Energy in the directions of each token, ``(P, K)``.
            noise: Energy per value of the noise of the frame; no token removes it.
        """
        removable = np.zeros((len(residual), scores.shape[1] + 1), np.float32)
        np.cumsum(scores, axis=1, out=removable[:, 1:])
        left = np.maximum(residual[:, None] - np.float32(noise) - removable, 0)
        errors = (np.float32(OUTSIDE) * left + np.float32(INSIDE) * removable) * self.corrections
        return np.minimum.accumulate(errors, axis=1) + np.float32(noise)

    def calibrated(self, errors: NDArray[np.float32], fixed: NDArray[np.float32]) -> ErrorCurves:
        """The curves after the errors of the fixed rate were measured, from predicted ``(N, K + 1)`` and measured
        ones ``(N,)``."""
        ratio = (float(fixed.mean()) + 1) / (float(errors[:, 1].mean()) + 1)
        return replace(self, fixed_scale=ratio * float(self.corrections[1]))

    def fixed_rate(self, errors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expected errors of the fixed rate ``(P,)``, from predicted ones ``(P, K + 1)``.

        The corrections are those of patches beside others that are held, so they are left out.
        """
        expected: NDArray[np.float32] = errors[:, 1] * np.float32(self.fixed_scale / self.corrections[1])
        return expected

    def after(
        self, depths: NDArray[np.int32], expected: NDArray[np.float32], measured: NDArray[np.float32], noise: float
    ) -> ErrorCurves:
        """The curves after renewed patches were decoded.

        Args:
            depths: Tokens of each, ``(P,)``.
            expected: Their predicted errors, ``(P,)``.
            measured: Their errors, ``(P,)``.
            noise: Energy per value of the noise of the frame.
        """
        most = len(self.corrections)
        counts = np.bincount(depths, minlength=most)
        sums = [np.bincount(depths, np.maximum(e - noise, 0), minlength=most) for e in (measured, expected)]
        step = counts / (counts + LEARNED_FROM)
        ratio = (sums[0] + 1) / (sums[1] + 1)
        corrections = self.corrections * np.power(np.clip(ratio, *CORRECTION_LIMITS), step)
        return replace(self, corrections=np.clip(corrections, *CORRECTION_LIMITS).astype(np.float32))

    def after_refining(self, expected: NDArray[np.float32], measured: NDArray[np.float32]) -> ErrorCurves:
        """The curves after refined patches were decoded; predicted and measured gains, ``(P,)``."""
        if not len(expected):
            return self
        ratio = (float(measured.sum()) + 1) / (float(expected.sum()) + 1)
        step = len(expected) / (len(expected) + LEARNED_FROM)
        correction = self.gain_correction * float(np.clip(ratio, *CORRECTION_LIMITS)) ** step
        return replace(self, gain_correction=float(np.clip(correction, *CORRECTION_LIMITS)))


def anchored(
    errors: NDArray[np.float32], depths: NDArray[np.int32], measured: NDArray[np.float32], noise: float
) -> NDArray[np.float32]:
    """Error curves through measured errors.

    Args:
        errors: Predicted errors after 0 to K tokens, ``(P, K + 1)``.
        depths: Tokens of each patch when it was measured, ``(P,)``.
        measured: The measured errors, ``(P,)``.
        noise: Energy per value of the noise of the frame.
    """
    predicted = np.take_along_axis(errors, depths[:, None], 1)[:, 0]
    clean = np.float32(noise)
    ratio = (np.maximum(measured - clean, 0) + 1) / (np.maximum(predicted - clean, 0) + 1)
    ratio = np.clip(ratio, *CORRECTION_LIMITS).astype(np.float32)
    anchored: NDArray[np.float32] = (errors - clean) * ratio[:, None] + clean
    return anchored
