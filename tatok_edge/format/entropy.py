"""The bundle's entropy model: integer frequencies for the coder, the same on every machine.

The last bits of network floats differ between machines, so a coder that used them would decode garbage. The
frequencies therefore come from three small integer networks: for the global tokens, the kept map and the patch tokens.
Their inputs are the neighbours that are already coded. The last two networks also read the surrounding global tokens
and the share of kept patches. The logits adapt to each packet, by gradient steps on the coding cost.
``runtime/cpp/token_coder.hpp`` runs the networks.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BundleError
from tatok_edge.format.protocol import Codes, Grid, Mask, Places
from tatok_edge.runtime.cpu.coder import EXP_SIZE, RangeDecoder, RangeEncoder, TokenModel

LOGIT_STEP = 16
"""Integer logits are in units of 1/16 nat."""
HIDDEN_SHIFT = 10
OUTPUT_SHIFT = 12
HIDDEN_MAX = 255
SHARE_LIMITS = (32, 16, 8, 4, 3, 2)
"""The share of kept patches enters as one of seven classes: at most 1/32, 1/16, 1/8, 1/4, 1/3, 1/2, more."""
SHARES = len(SHARE_LIMITS) + 1
PHASES = 16
"""Patches in a cell."""
MAX_TABLE_BYTES = 1 << 28
"""Largest size of all arrays together, unpacked."""

FORM = 2
"""Version of the tables: this coder would decode garbage with another one."""

GRIDS = ("global", "keep", "patch")
LAYERS = ("w1", "b1", "w2", "b2", "w3", "b3")
_FIELDS = ("exp", *(f"{grid}_{layer}" for grid in GRIDS for layer in LAYERS))
_LOG2 = np.log2(np.maximum(np.arange(4097), 1) / 4096).astype(np.float32)
"""Log2 probability of each frequency."""


def share_class(kept: int, patches: int) -> int:
    """Class of the share ``kept / patches``, in integers."""
    for index, limit in enumerate(SHARE_LIMITS):
        if kept * limit <= patches:
            return index
    return len(SHARE_LIMITS)


class IntegerEntropyModel:
    """Frequencies for the coder of one bundle; see :class:`tatok_edge.format.protocol.EntropyModel`.

    Args:
        levels: FSQ levels per code dimension.
        tag: Eight bytes that name the bundle.
        tables: Arrays of :func:`load_tables`.

    Raises:
        ValueError: The arrays do not fit.
    """

    def __init__(self, levels: tuple[int, ...], tag: bytes, tables: Mapping[str, NDArray[np.integer]]) -> None:
        self.levels = levels
        self.tag = tag
        self.tables = tables
        self._globals, self._keep, self._patches = _token_models(tables, levels)

    def encode_globals(self, encoder: RangeEncoder, codes: Codes, cells: Places, grid: Grid) -> None:
        self._globals.encode(encoder, codes, cells, grid)

    def decode_globals(self, decoder: RangeDecoder, cells: Places, grid: Grid) -> Codes:
        return self._globals.decode(decoder, cells, grid)

    def encode_keep_map(self, encoder: RangeEncoder, keep: Mask, global_codes: Codes) -> None:
        share = share_class(int(np.count_nonzero(keep)), keep.size)
        self._keep.encode_map(encoder, keep, global_codes, share)

    def decode_keep_map(self, decoder: RangeDecoder, kept: int, global_codes: Codes, grid: Grid) -> Mask:
        share = share_class(kept, grid[0] * grid[1])
        return self._keep.decode_map(decoder, kept, grid, global_codes, share)

    def encode_patches(
        self, encoder: RangeEncoder, codes: Codes, positions: Places, global_codes: Codes, grid: Grid
    ) -> None:
        share = share_class(len(positions), grid[0] * grid[1])
        self._patches.encode(encoder, codes, positions, grid, global_codes, share)

    def patch_log2_probs(self, codes: Codes, positions: Places, global_codes: Codes, grid: Grid) -> NDArray[np.float32]:
        """Log2 probability that :meth:`encode_patches` gives each level of each code, ``(sum(levels), T)``."""
        share = share_class(len(positions), grid[0] * grid[1])
        return _LOG2[self._patches.frequencies(codes, positions, grid, global_codes, share)].T

    def decode_patches(self, decoder: RangeDecoder, positions: Places, global_codes: Codes, grid: Grid) -> Codes:
        share = share_class(len(positions), grid[0] * grid[1])
        return self._patches.decode(decoder, positions, grid, global_codes, share)


def _token_models(tables: Mapping[str, NDArray[Any]], levels: tuple[int, ...]) -> list[TokenModel]:
    models = []
    for grid, own in zip(GRIDS, (levels, (2,), levels), strict=True):
        arrays: list[Any] = [tables[f"{grid}_{layer}"] for layer in LAYERS]
        cells: tuple[Any, ...] = () if grid == "global" else (levels, SHARES)
        try:
            models.append(TokenModel(own, tables["exp"], *arrays, *cells))
        except (TypeError, ValueError) as error:
            raise ValueError(f"network '{grid}': {error}") from None
    return models


def exp_table() -> NDArray[np.int32]:
    """``round(2**16 * exp(-i / 16))``; stored in the bundle, so that no machine has to compute it again."""
    return np.round(65536 * np.exp(-np.arange(EXP_SIZE) / LOGIT_STEP)).astype(np.int32)


def save_tables(tables: Mapping[str, NDArray[np.integer]]) -> bytes:
    """The arrays as an ``.npz`` file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {name: tables[name] for name in _FIELDS}
    np.savez_compressed(buffer, form=np.int32(FORM), **arrays)
    return buffer.getvalue()


def load_tables(data: bytes, levels: tuple[int, ...], name: str) -> dict[str, NDArray[np.integer]]:
    """Parse and check the arrays of :func:`save_tables`; never unpickles.

    Raises:
        BundleError: an array is missing, or has a wrong shape, type or value.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > MAX_TABLE_BYTES:  # a small file can unpack into more than fits into memory
            raise ValueError(f"{unpacked} bytes unpacked, at most {MAX_TABLE_BYTES} are allowed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            form = int(file["form"]) if "form" in file.files else 0
            tables = {field: file[field] for field in _FIELDS} if form == FORM else {}
    except Exception as error:
        raise BundleError(f"{name}: the entropy tables cannot be read ({error}); install the model again") from error
    if form != FORM:
        raise BundleError(
            f"{name}: its entropy tables are of {'a later' if form > FORM else 'an earlier'} form; install the model "
            "again, or fit them again with python -m tatok_edge.training.entropy"
        )
    try:
        _token_models(tables, levels)
    except ValueError as error:
        raise BundleError(f"{name}: the entropy tables do not fit: {error}") from None
    return tables
