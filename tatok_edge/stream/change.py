"""Change of the camera's pixels: the sensor noise, scene cuts, and the detail of a frame."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import PATCH, PATCH_VALUES
from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.frame import CameraFrame

NOISE_SHARE: Final = 0.1
"""Share of the patches that are assumed to be still and flat, even with a moving camera. The change of the patch at
this rank measures the noise."""
NOISE_CORRECTION: Final = 1.13
"""Factor from the change at rank :data:`NOISE_SHARE` to the mean change where all change is noise (chi-squared
distribution with 192 degrees of freedom)."""
NOISE_MARGIN: Final = 1.45
"""A patch has changed if its change exceeds the noise energy by this factor (4.4 standard deviations)."""
MAX_NOISE: Final = 200.0
"""Upper limit of the noise energy of the difference of two frames, in grey levels squared. It corresponds to a
standard deviation of 10 grey levels per frame."""
MIN_NOISE_LIMIT: Final = 8.0
"""A noise energy up to this value is always accepted, in grey levels squared."""
NOISE_FALL: Final = 0.3
"""Weight of a new measurement of the noise that is below the estimate."""
NOISE_RISE: Final = 0.05
"""Weight of a new measurement of the noise that is above the estimate. It is small, so that moving objects are not
taken for noise."""
CUT_FACTOR: Final = 6.0
"""At a scene cut, the mean change exceeds that of the frame before by this factor."""
CUT_CHANGE: Final = 900.0
"""At a scene cut, the mean change exceeds this value, in grey levels squared."""


@dataclass(frozen=True, slots=True)
class ChangeEstimates:
    """What is usual in a scene: its noise and its change from frame to frame."""

    noise: float | None = None
    """Energy per value of the difference of two frames that only noise makes, in grey levels squared; None before
    the first measurement."""
    noise_limit: float = MAX_NOISE
    """Upper limit of the noise energy in this scene, in grey levels squared."""
    usual_change: float | None = None
    """Mean change of the last frame, in grey levels squared; None before the first measurement."""

    @property
    def of_frame(self) -> float:
        """Energy per value of the noise of one frame, in grey levels squared."""
        return (self.noise or 0.0) / 2

    @property
    def deviation(self) -> float:
        """Standard deviation of the noise of a frame, in grey levels."""
        return float(np.sqrt(self.of_frame))

    def after(self, changes: NDArray[np.int32], mean_change: float) -> ChangeEstimates:
        """The estimates after a frame.

        Args:
            changes: Squared differences of each patch to the camera's earlier pixels, ``(N,)``.
            mean_change: Their mean per value, in grey levels squared.
        """
        found = kernels.change_quantile(changes, NOISE_SHARE) * (NOISE_CORRECTION / PATCH_VALUES)
        found = min(found, self.noise_limit)
        noise = found
        if self.noise is not None:
            noise = self.noise + (found - self.noise) * (NOISE_FALL if found < self.noise else NOISE_RISE)
        return replace(self, noise=noise, usual_change=mean_change)

    def limited(self, limit: float) -> ChangeEstimates:
        """The estimates with another upper limit of the noise energy."""
        return replace(self, noise_limit=limit)

    def changed(self, change: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Which patches changed by more than noise, from the change per value ``(N,)``."""
        return change > np.float32(NOISE_MARGIN * (self.noise or 0.0))

    def is_cut(self, mean_change: float) -> bool:
        """Whether a frame with this mean change begins a new scene."""
        return mean_change > max(CUT_FACTOR * (self.usual_change or 0.0), CUT_CHANGE)


def noise_limit(image: NDArray[np.uint8]) -> float:
    """Upper limit of the noise energy of the difference of two frames: three times what one frame shows.

    The noise of the frame is read from its smoothest patches, after Immerkaer, "Fast Noise Variance Estimation"
    (1996).

    Args:
        image: uint8 ``(H, W, 3)`` with sides that are multiples of 8.
    """
    grey = image[:, :, 1].astype(np.int32)
    twice = grey[:, :-2] - 2 * grey[:, 1:-1] + grey[:, 2:]
    residual = (twice[:-2] - 2 * twice[1:-1] + twice[2:]).astype(np.float32)
    energy = np.pad(residual * residual, 1)
    height, width = grey.shape
    patches = energy.reshape(height // PATCH, PATCH, width // PATCH, PATCH).mean((1, 3)).ravel() / 36
    patches = patches[patches > 0]
    variance = float(np.quantile(patches, NOISE_SHARE)) if len(patches) else 0.0
    return min(max(3 * 2 * variance, MIN_NOISE_LIMIT), MAX_NOISE)


def per_value(changes: NDArray[np.int32]) -> NDArray[np.float32]:
    """Squared differences summed over patches as means per value, in grey levels squared."""
    means: NDArray[np.float32] = changes.astype(np.float32) * np.float32(1 / PATCH_VALUES)
    return means


def detail_of(frame: CameraFrame) -> NDArray[np.float32]:
    """Energy per value of each patch beyond means of 4x4 pixels, ``(N,)``, in grey levels squared.

    Within a scene, the error of the fixed rate is nearly proportional to it.
    """
    rows, columns = frame.grid
    black = np.zeros((rows * PATCH, columns * PATCH, 3), np.uint8)
    total, coarse = kernels.patch_change(frame.image, frame.bgr, black)
    return per_value(total - coarse)


def camera_picture(frame: CameraFrame) -> NDArray[np.uint8]:
    """The frame as RGB, padded to whole cells; a new array."""
    rows, columns = frame.grid
    picture = np.empty((rows * PATCH, columns * PATCH, 3), np.uint8)
    kernels.update_reference(frame.image, frame.bgr, picture, np.arange(frame.n_patches, dtype=np.int32))
    return picture
