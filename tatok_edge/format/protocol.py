"""The entropy model of a bundle, as packets need it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder

Codes = NDArray[np.int32]
"""FSQ codes of some tokens, int32 ``(T, D)``."""
Places = NDArray[np.int32]
"""Raster indices in a grid, int32 ``(T,)``, strictly increasing."""
Mask = NDArray[np.uint8]
"""Zeros and ones, uint8 ``(rows, columns)``."""
Grid = tuple[int, int]
"""Rows and columns."""


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
    def tag(self) -> bytes:
        """Tag of the bundle, 8 bytes."""
        ...

    def encode_globals(self, encoder: RangeEncoder, codes: Codes, cells: Places, grid: Grid) -> None:
        """Append the codes of the global tokens of ``cells``; ``grid`` is that of the cells."""
        ...

    def decode_globals(self, decoder: RangeDecoder, cells: Places, grid: Grid) -> Codes:
        """Read the codes of the global tokens of ``cells``."""
        ...

    def encode_keep_map(self, encoder: RangeEncoder, keep: Mask, global_codes: Codes) -> None:
        """Append the kept map of all patches, given the codes of all cells."""
        ...

    def decode_keep_map(self, decoder: RangeDecoder, kept: int, global_codes: Codes, grid: Grid) -> Mask:
        """Read a kept map with ``kept`` ones; ``grid`` is that of the patches."""
        ...

    def encode_patches(
        self, encoder: RangeEncoder, codes: Codes, positions: Places, global_codes: Codes, grid: Grid
    ) -> None:
        """Append the codes of all patch tokens of a packet.

        Args:
            encoder: The coder to append to.
            codes: Codes of the patch tokens, int32 ``(T, D)``.
            positions: Patches of the tokens in ``grid``, int32 ``(T,)``.
            global_codes: Codes of all cells, int32 ``(G, D)``.
            grid: Rows and columns of patches.
        """
        ...

    def decode_patches(self, decoder: RangeDecoder, positions: Places, global_codes: Codes, grid: Grid) -> Codes:
        """Read the codes of the patch tokens at ``positions``."""
        ...
