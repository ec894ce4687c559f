"""The bundle's entropy model: integer frequencies for the coder, the same on every machine.

Network floats differ between machines in their last bits, and a coder that follows them would
decode garbage. So the frequencies come from a small network in integers: it reads the decoded global
codes and the share of kept patches, and gives every code dimension of every kept patch a row of frequencies.
Its products are evaluated with float64 matrix products of integers below 2**53, which are exact in any order.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError

TOTAL = 4096
"""Sum of every frequency row."""
LOGIT_STEP = 16
"""Integer logits are in units of 1/16 nat."""
HIDDEN_SHIFT = 10
OUTPUT_SHIFT = 12
INPUT_SCALE = 64
SHARE_LIMITS = (32, 16, 8, 4, 3, 2)
"""The share of kept patches enters as one of seven classes: at most 1/32, 1/16, 1/8, 1/4, 1/3, 1/2, more."""
NEIGHBOURS = 9
PHASES = 16
"""Patches in a cell."""
ONE_THREAD = 1 << 18
"""Multiplications that OpenBLAS does not share out among threads."""
MAX_TABLE_BYTES = 1 << 28
"""Largest size of all arrays together, unpacked."""

_FIELDS = ("global_freqs", "exp", "w1", "b1", "w2", "b2", "w3", "b3")


def share_class(kept: int, patches: int) -> int:
    """Class of the share ``kept / patches``, in integers."""
    for index, limit in enumerate(SHARE_LIMITS):
        if kept * limit <= patches:
            return index
    return len(SHARE_LIMITS)


def cell_inputs(global_codes: NDArray[np.int32], cells: tuple[int, int], levels: tuple[int, ...]) -> NDArray[np.int32]:
    """Global codes ``(hc*wc, D)`` to inputs ``(hc*wc, 9*D)``: the 3x3 cells around each, edges repeated."""
    size = np.asarray(levels, np.int32)
    values = ((2 * global_codes + 1) * INPUT_SCALE) // size - INPUT_SCALE
    grid = np.pad(values.reshape(*cells, len(levels)), ((1, 1), (1, 1), (0, 0)), mode="edge")
    hc, wc = cells
    around = [grid[dy : dy + hc, dx : dx + wc] for dy in range(3) for dx in range(3)]
    return np.concatenate(around, axis=-1).reshape(hc * wc, NEIGHBOURS * len(levels)).astype(np.int32)


def share_inputs(kept: int, patches: int) -> NDArray[np.int32]:
    """One-hot class of the share of kept patches."""
    row = np.zeros(len(SHARE_LIMITS) + 1, np.int32)
    row[share_class(kept, patches)] = INPUT_SCALE
    return row


@dataclass(frozen=True, slots=True)
class IntegerEntropyModel:
    """Frequencies for the coder of one bundle; see :class:`tatok_edge.packet.EntropyModel`."""

    levels: tuple[int, ...]
    """FSQ levels per code dimension."""
    tag: bytes
    """Eight bytes that name the bundle."""
    tables: Mapping[str, NDArray[np.integer]]
    """Arrays of :func:`load_tables`."""

    def global_freqs(self, cells: tuple[int, int]) -> NDArray[np.uint16]:
        """Rows ``(hc*wc*D, L)`` for the global codes, token-major."""
        return np.tile(self.tables["global_freqs"].astype(np.uint16), (cells[0] * cells[1], 1))

    def patch_freqs(
        self, global_codes: NDArray[np.int32], cells: tuple[int, int], positions: NDArray[np.int32], kept: int
    ) -> NDArray[np.uint16]:
        """Rows ``(P*D, L)`` for the codes of the patches at ``positions``, of ``kept`` in the packet; token-major."""
        dims, widest = len(self.levels), max(self.levels)
        if len(positions) == 0:
            return np.zeros((0, widest), np.uint16)
        grid_width = cells[1] * 4
        row, column = np.divmod(positions, grid_width)
        cell = (row // 4) * cells[1] + column // 4
        phase = (row % 4) * 4 + column % 4
        used, inverse = np.unique(cell, return_inverse=True)
        share = share_inputs(kept, cells[0] * cells[1] * PHASES)
        inputs = cell_inputs(global_codes, cells, self.levels)[used]
        x = np.concatenate([inputs, np.broadcast_to(share, (len(used), len(share)))], axis=1)
        hidden = self._layer(x, "w1", "b1")
        hidden = self._layer(hidden, "w2", "b2")
        weight, bias = self.tables["w3"], self.tables["b3"]
        logits = np.floor((_product(hidden, weight) + bias) / (1 << OUTPUT_SHIFT))
        logits = logits.reshape(len(used), PHASES, sum(self.levels))[inverse, phase]
        freqs = np.zeros((len(positions), dims, widest), np.uint16)
        start = 0
        for d, level in enumerate(self.levels):
            freqs[:, d, :level] = self._row(logits[:, start : start + level])
            start += level
        return freqs.reshape(-1, widest)

    def _layer(self, x: NDArray[np.number], weight: str, bias: str) -> NDArray[np.float64]:
        total = _product(x, self.tables[weight]) + self.tables[bias]
        return cast("NDArray[np.float64]", np.clip(np.floor(total / (1 << HIDDEN_SHIFT)), 0, 255))

    def _row(self, logits: NDArray[np.float64]) -> NDArray[np.int64]:
        table = self.tables["exp"].astype(np.int64)
        below = (logits.max(1, keepdims=True) - logits).astype(np.int64)
        weights = table[np.minimum(below, len(table) - 1)]
        level = logits.shape[1]
        freqs = 1 + weights * (TOTAL - level) // weights.sum(1, keepdims=True)
        rows = np.arange(len(freqs))
        freqs[rows, below.argmin(1)] += TOTAL - freqs.sum(1)
        return cast("NDArray[np.int64]", freqs)


def _product(x: NDArray[np.number], weight: NDArray[np.integer]) -> NDArray[np.float64]:
    """``x @ weight`` in blocks so small that the matrix library stays in this thread.

    OpenBLAS lets the threads that it has woken spin for a while, and they take the cores from the networks: on two
    cores, an encoder that packs every frame took twice as long.
    """
    rows, columns = x.astype(np.float64), weight.astype(np.float64)
    block = max(1, ONE_THREAD // columns.size)
    return np.concatenate([rows[start : start + block] @ columns for start in range(0, len(rows), block)])


def exp_table() -> NDArray[np.int32]:
    """``round(2**16 * exp(-i / 16))``; stored in the bundle, so that no machine has to compute it again."""
    return np.round(65536 * np.exp(-np.arange(178) / LOGIT_STEP)).astype(np.int32)


def save_tables(tables: Mapping[str, NDArray[np.integer]]) -> bytes:
    """The arrays as an ``.npz`` file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: tables[name] for name in _FIELDS})  # type: ignore[arg-type]
    return buffer.getvalue()


def load_tables(data: bytes, levels: tuple[int, ...], name: str) -> dict[str, NDArray[np.integer]]:
    """Parse and check the arrays of :func:`save_tables`; never unpickles.

    Raises:
        BundleError: an array is missing or has a wrong shape, type or sum.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > MAX_TABLE_BYTES:  # a small file can unpack into more than there is memory
            raise ValueError(f"{unpacked} bytes unpacked, at most {MAX_TABLE_BYTES} are allowed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            tables = {field: file[field] for field in _FIELDS}
    except Exception as error:
        raise BundleError(f"{name}: the entropy tables cannot be read ({error}); install the model again") from error
    dims, states, widest = len(levels), sum(levels), max(levels)
    width1, width2 = tables["b1"].size, tables["b2"].size
    expected = {
        "global_freqs": (dims, widest),
        "exp": (178,),
        "w1": (NEIGHBOURS * dims + len(SHARE_LIMITS) + 1, width1),
        "b1": (width1,),
        "w2": (width1, width2),
        "b2": (width2,),
        "w3": (width2, PHASES * states),
        "b3": (PHASES * states,),
    }
    for field, shape in expected.items():
        array = tables[field]
        if array.shape != shape or array.dtype.kind not in "iu" or array.dtype.itemsize > 4:
            raise BundleError(
                f"{name}: entropy table '{field}' is {array.dtype} {array.shape}, expected integers {shape}"
            )
    if max(width1, width2) > 4096:
        raise BundleError(f"{name}: entropy network is {width1}x{width2} wide, at most 4096 are allowed")
    allowed = np.arange(widest) < np.asarray(levels)[:, None]
    global_freqs = tables["global_freqs"].astype(np.int64)
    if (global_freqs.sum(1) != TOTAL).any() or (global_freqs[allowed] < 1).any() or global_freqs[~allowed].any():
        raise BundleError(f"{name}: rows of entropy table 'global_freqs' are not positive integers that sum to {TOTAL}")
    if (tables["exp"] < 0).any() or tables["exp"][0] <= 0:
        raise BundleError(f"{name}: entropy table 'exp' must start above 0 and never be negative")
    return tables
