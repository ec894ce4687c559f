"""The tokens that a stream holds for every patch and cell of its picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.tokens.checks import Int32Array, depths_of
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame


@dataclass(frozen=True, slots=True, eq=False)
class HeldTokens:
    """The tokens of every patch and cell after the latest packet of a stream, as integers that both ends know.

    Frames and deltas make new instances; the arrays of one are never written to.

    Example:
        >>> held = tatok_edge.HeldTokens.of_frame(tokenizer.encode(image), tokenizer.depth)
        >>> held.ids.shape, held.depths.sum()  # (patches, K), all tokens
    """

    global_ids: Int32Array
    """Ids of the global tokens of all cells, int32 ``(G,)``."""
    depths: Int32Array
    """Tokens of each patch, int32 ``(N,)``, from 0 to K."""
    ids: Int32Array
    """Ids of the tokens of each patch, int32 ``(N, K)``; 0 behind its last token."""

    @property
    def depth(self) -> int:
        """Most tokens of a patch, K."""
        return int(self.ids.shape[1])

    @classmethod
    def of_frame(cls, frame: TokenFrame, depth: int) -> HeldTokens:
        """The tokens of a frame of a model with up to ``depth`` tokens per patch.

        Raises:
            InputError: A patch has more tokens.
        """
        depths = frame.depth_map().reshape(-1)
        check_depth(depths, depth)
        ids = np.zeros((frame.n_patches, depth), np.int32)
        ids[frame.positions, frame.depths - 1] = frame.ids
        return cls(frame.global_ids, depths, ids)

    def updated(self, delta: DeltaFrame) -> HeldTokens:
        """The tokens after a delta.

        Raises:
            InputError: The delta is of another picture size, refines a patch without a token, or gives a patch more
                tokens than the model allows.
        """
        if delta.n_patches != self.depths.size or delta.n_cells != self.global_ids.size:
            raise InputError(
                f"delta must be of a picture of {self.depths.size} patches and {self.global_ids.size} cells, as the "
                f"held tokens are, got {delta.n_patches} and {delta.n_cells}"
            )
        before = self.starts(delta)
        depths, ids = self.depths.copy(), self.ids.copy()
        depths[delta.updated] = before[delta.updated]
        ids[delta.renewed_map().reshape(-1)] = 0
        depths += np.bincount(delta.positions, minlength=depths.size).astype(np.int32)
        check_depth(depths, self.depth)
        ids[delta.positions, before[delta.positions] + depths_of(delta.positions) - 1] = delta.ids
        global_ids = self.global_ids.copy()
        global_ids[delta.cells] = delta.global_ids
        return HeldTokens(global_ids, depths, ids)

    def starts(self, delta: DeltaFrame) -> Int32Array:
        """Tokens ahead of those of ``delta`` in each stack, int32 ``(N,)``: held ones of refined patches, else 0.

        Raises:
            InputError: The delta refines a patch without a token.
        """
        starts = np.zeros_like(self.depths)
        starts[delta.refined] = self.depths[delta.refined]
        bare = delta.refined[starts[delta.refined] == 0]
        if bare.size:
            raise InputError(f"refined must hold patches with a token only, got {bare[0]}, which has none")
        return starts


def check_depth(depths: NDArray[np.int32], most: int) -> None:
    """Check that no stack is deeper than a model allows.

    Args:
        depths: Tokens of each patch, ``(N,)``.
        most: Depth of the model.

    Raises:
        InputError: A stack is deeper.
    """
    deepest = int(depths.max(initial=0))
    if deepest > most:
        raise InputError(
            f"positions must hold each patch at most {most} times, the depth of the model, "
            f"got patch {int(np.argmax(depths))} {deepest} times"
        )
