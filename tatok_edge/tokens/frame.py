"""The tokens of one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.tokens.checks import Int32Array, depths_of
from tatok_edge.tokens.header import FrameHeader


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TokenFrame(FrameHeader):
    """The tokens of one image. The arrays are held without a copy.

    Raises:
        InputError: An array has a wrong type, shape, order or range; the message names it and the allowed values.

    Example:
        >>> frame = tokenizer.encode(image, budget=tatok_edge.TokenBudget(keep=1.0))
        >>> frame.ids, frame.positions, frame.depths, frame.global_ids  # the input of a sequence model
        >>> frame.depth_map()  # tokens of each patch, int32 (rows, columns)
    """

    ids: Int32Array
    """Token ids, int32 ``(T,)``: mixed radix over the FSQ levels, dimension 0 least significant."""
    positions: Int32Array
    """Patch of each token, int32 ``(T,)``: raster index in the patch grid, never falling. The stack of a patch, from
    its first token on, stands together: a patch of depth 3 comes three times."""
    global_ids: Int32Array
    """Ids of the global tokens, int32 ``(rows * columns of cells,)``, raster order."""
    width: int
    """Width of the image in pixels, before padding."""
    height: int
    """Height of the image in pixels, before padding."""
    model: bytes
    """Tag of the model bundle that made the tokens (8 bytes)."""
    index: int = 0
    """Number of the frame in its sequence, 0 to 2^63 - 1."""
    timestamp_us: int = 0
    """Time of the frame in microseconds; a signed 64-bit number."""

    def __post_init__(self) -> None:
        self.check_header()
        self.check_tokens()
        if self.global_ids.size != self.n_globals:
            rows, columns = self.cell_grid
            raise InputError(
                f"global_ids must be {rows} x {columns} = {self.n_globals} for a {self.width}x{self.height} image, "
                f"got {self.global_ids.size}"
            )

    @property
    def n_globals(self) -> int:
        """Number of global tokens."""
        return self.n_cells

    @property
    def depths(self) -> Int32Array:
        """Depth of each token in the stack of its patch, int32 ``(T,)``, from 1; a new array."""
        return depths_of(self.positions)

    def __repr__(self) -> str:
        return (
            f"TokenFrame({self.width}x{self.height}, {self.n_tokens} patch tokens in "
            f"{np.unique(self.positions).size} of {self.n_patches} patches, "
            f"{self.n_globals} global tokens, model={self.model.hex()}, index={self.index}, "
            f"timestamp_us={self.timestamp_us})"
        )
