"""The entropy model of a bundle, as packets need it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder

Codes = NDArray[np.int32]
"""FSQ codes of some tokens, int32 ``(T, D)``."""
Places = NDArray[np.int32]
"""Raster indices in a grid, int32 ``(T,)``, strictly increasing."""
Mask = NDArray[np.uint8]
"""Zeros and ones, uint8 ``(rows, columns)``."""
Depths = NDArray[np.int32]
"""Depth map: tokens of each patch, int32 ``(rows, columns)``."""
Grid = tuple[int, int]
"""Rows and columns."""


class Stacks(NamedTuple):
    """The tokens of all patches."""

    codes: Codes
    """Stack by stack in raster order, int32 ``(T, D)``."""
    depths: Depths


class EntropyModel(Protocol):
    """Codes the tokens of a model bundle with integer frequencies.

    Each ``decode_`` method is the inverse of its ``encode_`` method. The first group raises ValueError for a code
    that the model does not know, the second for data that is cut off or was written with another model.
    """

    @property
    def levels(self) -> tuple[int, ...]:
        """FSQ levels per code dimension."""
        ...

    @property
    def depth(self) -> int:
        """Most tokens of a patch, K."""
        ...

    @property
    def tag(self) -> bytes:
        """Tag of the bundle, 8 bytes."""
        ...

    def encode_globals(self, encoder: RangeEncoder, codes: Codes, cells: Places, grid: Grid) -> None:
        """Append the codes of the global tokens of ``cells``; ``grid`` is that of the cells."""
        ...

    def decode_globals(self, decoder: RangeDecoder, cells: Places, grid: Grid) -> Codes:
        """Read the codes of the global tokens of ``cells``."""
        ...

    def encode_depths(self, encoder: RangeEncoder, depths: Depths, global_codes: Codes) -> None:
        """Append the depth map of all patches, given the codes of all cells."""
        ...

    def decode_depths(self, decoder: RangeDecoder, tokens: int, global_codes: Codes, grid: Grid) -> Depths:
        """Read a depth map with so many tokens; ``grid`` is that of the patches."""
        ...

    def encode_patches(
        self,
        encoder: RangeEncoder,
        stacks: Stacks,
        global_codes: Codes,
        given: NDArray[np.uint8] | None = None,
        held: Stacks | None = None,
    ) -> None:
        """Append the codes of patch tokens: all first tokens in raster order, then all second tokens, and so on.

        Args:
            encoder: The coder to append to.
            stacks: The tokens of the frame.
            global_codes: Codes of all cells, int32 ``(G, D)``.
            given: 1 where a token is known to both sides and not coded, uint8 ``(T,)``.
            held: The tokens of the frame before.
        """
        ...

    def decode_patches(
        self,
        decoder: RangeDecoder,
        stacks: Stacks,
        global_codes: Codes,
        given: NDArray[np.uint8] | None = None,
        held: Stacks | None = None,
    ) -> None:
        """Read the codes of patch tokens into ``stacks.codes``; those that are ``given`` are there already."""
        ...
