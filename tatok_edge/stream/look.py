"""The first look at a frame: what has changed, how wrong the shown picture is, and the price that follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates, detail_of, per_value
from tatok_edge.stream.frame import CameraFrame
from tatok_edge.stream.memory import Memory
from tatok_edge.stream.options import StreamOptions
from tatok_edge.stream.price import target_of


@dataclass(frozen=True, slots=True)
class Look:
    """What is seen of a frame before any network runs."""

    frame: CameraFrame
    """The frame."""
    options: StreamOptions
    """Options of the encoder."""
    memory: Memory
    """What the encoder remembers of the frames before."""
    error: NDArray[np.float32]
    """Error of the shown picture in each patch, ``(N,)``, in grey levels squared per value."""
    change: NDArray[np.float32]
    """Change of each patch against the camera's earlier pixels, ``(N,)``, in grey levels squared per value."""
    detail: NDArray[np.float32]
    """Detail of each patch, ``(N,)``, in grey levels squared per value."""
    estimates: ChangeEstimates
    """Noise and usual change, measured with this frame."""
    target: float
    """The mean squared error to aim at."""
    price: float
    """The price of a token in this frame."""

    @property
    def scene_cut(self) -> bool:
        """Whether the frame begins a new scene."""
        return self.memory.estimates.is_cut(float(self.change.mean()))


def look_at(frame: CameraFrame, options: StreamOptions, memory: Memory) -> Look:
    """Look at a frame; changes nothing."""
    with frame.clock.stage("change"):
        error = per_value(kernels.patch_change(frame.image, frame.bgr, memory.state.picture)[0])
        changes = kernels.patch_change(frame.image, frame.bgr, memory.camera)[0]
        change, detail = per_value(changes), detail_of(frame)
        target = target_of(memory.history.fixed_error(detail), options.max_loss_db)
        return Look(
            frame=frame,
            options=options,
            memory=memory,
            error=error,
            change=change,
            detail=detail,
            estimates=memory.estimates.after(changes, float(change.mean())),
            target=target,
            price=memory.price.at(target),
        )
