"""What the encoder remembers of every patch, and of the interval between keyframes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.windows import patches_of

LIVES: Final = (2.0, 32.0)
"""Smallest and largest number of frames for which what is sent is expected to last."""
FIRST_LIFE: Final = 8.0
"""Number of frames for which a token of a new scene is expected to last."""
SURE: Final = 0.85
"""Share of the predicted error of the fixed rate that is believed, whatever the last measurement says."""
BASE: Final = np.float32(50)
"""The error of the fixed rate is taken as proportional to the detail of a patch plus this, in grey levels squared: flat
patches have an error, too."""


@dataclass(frozen=True, slots=True)
class PatchHistory:
    """The past of each patch. The arrays are never written to; each frame makes new ones."""

    age: NDArray[np.float32]
    """Frames since the camera's pixels last changed by more than noise, ``(N,)``."""
    settled: NDArray[np.float32]
    """Error of the shown patch as of its last update or move, ``(N,)``, in grey levels squared per value."""
    drift: NDArray[np.float32]
    """Energy of the changes since the last renewal, ``(N,)``, in grey levels squared per value."""
    curves: NDArray[np.float32]
    """Predicted error after 0 to K tokens, as of the last renewal, ``(N, K + 1)``."""
    ids: NDArray[np.int32]
    """Ids of the whole stack as of the last renewal, ``(N, K)``: those that were sent, and the next ones."""
    fixed: NDArray[np.float32]
    """Error of the fixed rate as a share of the patch's detail plus :data:`BASE`, as last measured, ``(N,)``."""
    predicted: NDArray[np.float32]
    """The same as last predicted from what one token could do, or measured, ``(N,)``."""
    coded: NDArray[np.bool_]
    """Patches whose :attr:`ids` are known, ``(N,)``."""

    def lives(self) -> NDArray[np.float32]:
        """For how many frames a token of each patch is expected to last, ``(N,)``: as long as it has been still."""
        lives: NDArray[np.float32] = np.minimum(LIVES[0] + self.age, LIVES[1])
        return lives

    def fixed_errors(self, detail: NDArray[np.float32]) -> NDArray[np.float32]:
        """Expected squared errors of the fixed rate in a frame, from the detail of its patches, ``(N,)``."""
        errors: NDArray[np.float32] = self.predicted * (detail + BASE)
        return errors

    def fixed_error(self, detail: NDArray[np.float32]) -> float:
        """Expected mean squared error of the fixed rate in a frame, between two estimates.

        The prediction from what one token can do is too large where the cells around a patch hold old global tokens.
        The estimate from the last measurement misses new content.
        """
        measured = float((self.fixed * (detail + BASE)).mean(dtype=np.float64))
        predicted = float(self.fixed_errors(detail).mean(dtype=np.float64))
        return min(max(measured, SURE * predicted), predicted)

    def measured(self, errors: NDArray[np.float32], detail: NDArray[np.float32]) -> PatchHistory:
        """The history after the errors of the fixed rate were measured, ``(N,)``."""
        share = errors / (detail + BASE)
        return replace(self, fixed=share, predicted=share)

    def seen(self, changed: NDArray[np.bool_], change: NDArray[np.float32]) -> PatchHistory:
        """The history one frame later.

        Args:
            changed: Patches whose pixels have changed by more than noise, ``(N,)``.
            change: Energy of the change beyond noise, ``(N,)``.
        """
        age = np.where(changed, np.float32(0), self.age + 1)
        return replace(self, age=age, drift=self.drift + np.where(changed, change, np.float32(0)))


@dataclass(frozen=True, slots=True)
class Refresh:
    """The progress of the interval between keyframes, or of the round of a rolling refresh."""

    since_key: int = 0
    """Frames since the last keyframe."""
    next_cell: int = 0
    """First cell of the next turn of the rolling refresh, in raster order."""

    def key_due(self, options: StreamOptions) -> bool:
        """Whether the interval makes the next frame a keyframe."""
        return options.refresh == "key" and 0 < options.keyframe_interval <= self.since_key + 1

    def renewed_cells(self, cell_grid: tuple[int, int]) -> NDArray[np.bool_]:
        """The cells that the rolling refresh has renewed since its round began, bool ``(hc, wc)``."""
        places: NDArray[np.bool_] = np.arange(cell_grid[0] * cell_grid[1]) < self.next_cell
        return places.reshape(cell_grid)

    def turn(
        self, options: StreamOptions, cell_grid: tuple[int, int]
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32], Refresh]:
        """The next turn of the rolling refresh.

        Returns:
            Which patches are renewed in any case ``(N,)``, the cells whose global token is sent in any case, and the
            progress after the turn.
        """
        rows, columns = cell_grid
        turn = np.zeros((rows, columns), np.bool_)
        announced, following = np.zeros(0, np.int64), self.next_cell
        if options.refresh == "rolling" and options.keyframe_interval:
            start, count = self.next_cell, -(-rows * columns // options.keyframe_interval)
            turn.ravel()[start : start + count] = True
            following = start + count if start + count < rows * columns else 0
            # A round begins with all global tokens, so that a new receiver can read the codes from there on.
            announced = np.arange(rows * columns) if start == 0 else np.flatnonzero(turn)
        progress = Refresh(self.since_key + 1, following)
        return patches_of(turn).ravel(), announced.astype(np.int32), progress
