"""The memory of an encoder from frame to frame, and drafts of the next memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tatok_edge.model.networks import Prior
from tatok_edge.stream.change import ChangeEstimates, Reference
from tatok_edge.stream.frame import CameraFrame, StreamFrame
from tatok_edge.stream.motion import MotionSearch
from tatok_edge.stream.quality import Quality, ShownPicture
from tatok_edge.stream.selection import PatchHistory, Refresh
from tatok_edge.stream.state import StreamState
from tatok_edge.tokens.delta import DeltaFrame


class PriorBuffer:
    """Room for context and mean of patches that are being encoded, as the feature kernel reads them.

    Args:
        state: Entries of the keyframe, which give the shapes and the first values.
    """

    def __init__(self, state: StreamState) -> None:
        self.context = state.context.copy()
        """Context ``(Dc, N)``."""
        self.mean = state.mean.copy()
        """Mean pixels ``(192, N)``."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What an encoder remembers after a frame.

    A frame makes a new memory. Only the large arrays of ``state`` and ``reference`` are written in place, and only by
    :meth:`Draft.commit`.
    """

    state: StreamState
    """The state; the receiver holds the same."""
    reference: Reference
    """The picture that changes are measured against."""
    buffer: PriorBuffer
    """Scratch memory."""
    estimates: ChangeEstimates
    """Noise and usual change of the scene."""
    history: PatchHistory
    """Loss, age and life of each patch."""
    search: MotionSearch
    """Where the search for motion begins."""
    refresh: Refresh
    """Progress between keyframes."""
    quality: Quality
    """Error in the scene, and the allowance."""
    shown: ShownPicture | None = None
    """The picture of a receiver; None where no pixels have moved."""

    def copy(self) -> Memory:
        """A memory that changes independently."""
        state = self.state.copy()
        return replace(self, state=state, reference=self.reference.copy(), buffer=PriorBuffer(state))


@dataclass(frozen=True, slots=True)
class Draft:
    """A packet, and what the encoder remembers once it is committed. Making a draft changes no memory."""

    result: StreamFrame
    """The encoded frame."""
    memory: Memory
    """The memory after the frame, except for what ``writes`` writes."""
    writes: DeltaWrites | None = None
    """What a delta writes in place; None for a keyframe."""

    def commit(self) -> Memory:
        """Write what is written in place; returns the memory after the frame."""
        if self.writes is not None:
            self.writes.to(self.memory)
        return self.memory


@dataclass(frozen=True, slots=True)
class DeltaWrites:
    """What a delta packet changes in the large arrays of a memory."""

    frame: CameraFrame
    """The frame."""
    delta: DeltaFrame
    """The update."""
    crc: int
    """Checksum of the packet."""
    prior: Prior | None
    """Prior of the patches under the window; None where no patch is updated."""
    levels: tuple[int, ...]
    """FSQ levels."""
    repeated: NDArray[np.int32]
    """Patches whose token and mean are still right: only their reference is updated."""
    state_is_new: bool = False
    """The state is a copy that has been written already."""
    reference_is_new: bool = False
    """The reference is a copy that has been written already."""

    def to(self, memory: Memory) -> None:
        """Write what has not been written yet."""
        with self.frame.clock.stage("update"):
            if not self.state_is_new:
                self.to_state(memory.state)
            if not self.reference_is_new:
                self.to_reference(memory.reference)

    def to_state(self, state: StreamState) -> None:
        """Write the state."""
        state.apply(self.delta, self.crc, self.prior, self.levels)

    def to_reference(self, reference: Reference) -> None:
        """Write the reference picture; its moved picture must be that of this frame."""
        if self.delta.n_vectors:
            reference.move()
        reference.update(self.frame, np.concatenate([self.repeated, self.delta.updated]))
