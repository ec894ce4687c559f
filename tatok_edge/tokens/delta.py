"""The changes of one frame of a stream to the tokens of the frame before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.geometry import MAX_VECTOR
from tatok_edge.tokens.checks import Int32Array, check_positions, integer, map_of, set_field
from tatok_edge.tokens.header import FrameHeader


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DeltaFrame(FrameHeader):
    """The changes of one frame of a stream to the tokens of the frame before. The arrays are held without a copy.

    An updated patch is *renewed* or *refined*. A renewed patch loses its tokens and gets a new stack of 0 to K tokens.
    A refined patch keeps its tokens and gets further ones. All other patches and global tokens stay.

    Raises:
        InputError: An array has a wrong type, shape, order or range; the message names it and the allowed values.

    Example:
        >>> encoder = tatok_edge.StreamEncoder(tokenizer)
        >>> encoder.encode(images[0])
        >>> delta = encoder.encode(images[1]).tokens
        >>> delta.n_updated, delta.n_tokens, delta.update_map().shape
    """

    updated: Int32Array
    """Raster index of each updated patch in the patch grid, int32 ``(U,)``, strictly increasing; may be empty."""
    positions: Int32Array
    """Patch of each token, int32 ``(T,)``: raster index in the patch grid, never falling, each in ``updated``."""
    ids: Int32Array
    """Token ids, int32 ``(T,)``: mixed radix over the FSQ levels, dimension 0 least significant."""
    cells: Int32Array
    """Raster index of each cell whose global token is given, int32 ``(C,)``, strictly increasing; empty where no patch
    is updated."""
    global_ids: Int32Array
    """Ids of the global tokens of ``cells``, int32 ``(C,)``."""
    width: int
    """Width of the image in pixels, before padding."""
    height: int
    """Height of the image in pixels, before padding."""
    model: bytes
    """Tag of the model bundle that made the tokens (8 bytes)."""
    index: int
    """Number of the frame in its sequence, 1 to 2^63 - 1."""
    reference: int
    """Number of the frame that is updated, 0 to ``index - 1``."""
    follows: int
    """Number of the updated state, from :func:`tatok_edge.format.packet.body_crc`, 0 to 2^32 - 1."""
    timestamp_us: int = 0
    """Time of the frame in microseconds; a signed 64-bit number."""
    refined: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    """Raster index of each refined patch, int32 ``(R,)``, strictly increasing, each in ``updated`` and in
    ``positions``."""
    turns: Int32Array = field(default_factory=lambda: np.zeros(0, np.int32))
    """Raster index of each cell where the motion vector changes; cells before the first one do not move. int32
    ``(M,)``, strictly increasing."""
    vectors: Int32Array = field(default_factory=lambda: np.zeros((0, 2), np.int32))
    """Motion vector of each cell of ``turns``, also valid for the cells after it up to the next turn. It points to the
    content's place in the picture before: (y, x) in half pixels, int32 ``(M, 2)``, each from -62 to 62."""

    def __post_init__(self) -> None:
        self.check_header()
        set_field(self, "reference", integer("reference", self.reference))
        if not 0 <= self.reference < self.index:
            raise InputError(f"reference must be from 0 to below index ({self.index}), got {self.reference}")
        set_field(self, "follows", integer("follows", self.follows))
        if not 0 <= self.follows < 1 << 32:
            raise InputError(f"follows must be from 0 to 2^32 - 1, got {self.follows}")
        self.check_tokens()
        check_positions("updated", self.updated, self.n_patches)
        check_positions("cells", self.cells, self.n_cells)
        if self.cells.size != self.global_ids.size:
            raise InputError(
                f"cells must be as many as global_ids, got {self.cells.size} for {self.global_ids.size} global_ids"
            )
        update_map = self.update_map()
        inside = update_map.ravel()[self.positions]
        if not inside.all():
            wrong = self.positions[np.argmin(inside)]
            raise InputError(f"positions must be among updated, got {wrong}, which is not updated")
        check_positions("refined", self.refined, self.n_patches)
        for name, there in (("updated", update_map), ("positions", map_of(self.positions, self.grid))):
            inside = there.ravel()[self.refined]
            if not inside.all():
                raise InputError(f"refined must be among {name}, got {self.refined[np.argmin(inside)]}, which is not")
        renewed = self.renewed_map()
        if self.cells.size and not renewed.any():
            raise InputError(f"cells must be empty where no patch is renewed, got {self.cells.size}")
        check_positions("turns", self.turns, self.n_cells)
        _check_vectors(self.vectors, self.turns.size)

    @property
    def n_updated(self) -> int:
        """Number of updated patches, with a token or without."""
        return int(self.updated.size)

    @property
    def n_updated_cells(self) -> int:
        """Number of global tokens that change."""
        return int(self.cells.size)

    @property
    def n_vectors(self) -> int:
        """Number of motion vectors."""
        return int(self.turns.size)

    def motion(self) -> Int32Array:
        """Vector of every cell, (y, x) in half pixels, int32 ``(rows, columns, 2)`` of the cell grid; a new array."""
        rows, columns = self.cell_grid
        lengths = np.diff(self.turns, append=np.int32(rows * columns))
        dense = np.zeros((rows * columns, 2), np.int32)
        dense[rows * columns - int(lengths.sum()) :] = np.repeat(self.vectors, lengths, axis=0)
        return dense.reshape(rows, columns, 2)

    def update_map(self) -> NDArray[np.bool_]:
        """Which patches are updated, bool ``(rows, columns)`` of the patch grid; a new array."""
        return map_of(self.updated, self.grid)

    def renewed_map(self) -> NDArray[np.bool_]:
        """Which patches are renewed, bool ``(rows, columns)`` of the patch grid; a new array."""
        renewed = self.update_map()
        renewed.ravel()[self.refined] = False
        return renewed

    def __repr__(self) -> str:
        return (
            f"DeltaFrame({self.width}x{self.height}, {self.n_updated} of {self.n_patches} patches updated "
            f"({self.refined.size} refined), "
            f"{self.n_tokens} patch tokens, {self.n_updated_cells} of {self.n_cells} global tokens, "
            f"{self.n_vectors} vectors, "
            f"model={self.model.hex()}, index={self.index}, reference={self.reference}, "
            f"follows={self.follows:08x}, timestamp_us={self.timestamp_us})"
        )


def _check_vectors(vectors: Any, count: int) -> None:
    if not isinstance(vectors, np.ndarray) or vectors.dtype != np.int32 or vectors.shape != (count, 2):
        got = f"{vectors.dtype} {vectors.shape}" if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise InputError(f"vectors must be an int32 numpy array ({count}, 2), one for each of turns, got {got}")
    if not count:
        return
    if vectors.min() < -MAX_VECTOR or vectors.max() > MAX_VECTOR:
        raise InputError(f"vectors must be from {-MAX_VECTOR} to {MAX_VECTOR} half pixels")
    if not vectors[0].any() or (vectors[1:] == vectors[:-1]).all(1).any():
        raise InputError("vectors must differ from the one before, the first one from (0, 0)")
