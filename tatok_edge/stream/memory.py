"""The memory of an encoder from frame to frame, and drafts of the next memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tatok_edge.runtime.cpu import kernels
from tatok_edge.stream.change import ChangeEstimates
from tatok_edge.stream.curves import ErrorCurves
from tatok_edge.stream.frame import CameraFrame, StreamFrame
from tatok_edge.stream.history import PatchHistory, Refresh
from tatok_edge.stream.price import Price
from tatok_edge.stream.state import StreamState, Update


class Scratch:
    """Memory to work in, for pictures of one size; its content does not last from frame to frame.

    Args:
        state: A state of a picture of that size.
    """

    def __init__(self, state: StreamState) -> None:
        self.motion = kernels.motion_scratch(*state.picture.shape[:2])
        """Memory of the motion search."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What an encoder remembers after a frame.

    A frame makes a new memory. Only ``state`` and ``camera`` are written in place, and only by :meth:`Draft.commit`.
    """

    state: StreamState
    """The state; the receiver holds the same."""
    camera: NDArray[np.uint8]
    """The camera's pixels of each patch as of its last change, uint8 RGB, padded to whole cells."""
    scratch: Scratch
    """Memory to work in."""
    estimates: ChangeEstimates
    """Noise and usual change of the scene."""
    history: PatchHistory
    """The past of each patch."""
    vectors: NDArray[np.int32]
    """Motion vectors found last, int32 ``(hc, wc, 2)``: where the next search begins."""
    refresh: Refresh
    """Progress between keyframes."""
    price: Price
    """The price of a token."""
    curves: ErrorCurves
    """What tokens do remove in this scene."""

    def copy(self) -> Memory:
        """A memory that changes independently."""
        state = self.state.copy()
        return replace(self, state=state, camera=self.camera.copy(), scratch=Scratch(state))


@dataclass(frozen=True, slots=True)
class Draft:
    """A packet, and what the encoder remembers once it is committed. Making a draft changes no memory."""

    result: StreamFrame
    """The encoded frame."""
    frame: CameraFrame
    """The frame of the camera."""
    memory: Memory
    """The memory after the frame, except for what is written in place."""
    update: Update | None = None
    """What a delta writes to the state; None for a keyframe, which has a new one."""
    crc: int = 0
    """Checksum of the packet."""
    changed: NDArray[np.int32] | None = None
    """Patches whose camera pixels are taken from the frame; None for a keyframe, which has new ones."""

    def commit(self) -> Memory:
        """Write what is written in place; returns the memory after the frame. It cannot fail."""
        if self.update is not None:
            self.memory.state.apply(self.update, self.crc)
        if self.changed is not None:
            kernels.update_reference(self.frame.image, self.frame.bgr, self.memory.camera, self.changed)
        return self.memory
