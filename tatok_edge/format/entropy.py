"""The bundle's entropy model: integer frequencies for the coder, the same on every machine.

The last bits of network floats differ between machines, so a coder that used them would decode garbage. The
frequencies therefore come from small integer networks: for the global tokens (``cells``), the depth map (``depths``),
the first tokens of the patches (``patches``) and their further tokens (``deeper``). Their inputs are the neighbours
that are already coded. The networks of patches also read the surrounding global tokens and the number of tokens per
patch. Those of patch tokens read the tokens ahead in the same stack, and the token that the patch held before. The
logits adapt to each packet, by gradient steps on the coding cost. ``runtime/cpp/token_coder.hpp`` runs the networks.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BundleError
from tatok_edge.format.protocol import Codes, Depths, Grid, Places, Stacks
from tatok_edge.runtime.cpu.coder import EXP_SIZE, RangeDecoder, RangeEncoder, TokenModel

LOGIT_STEP = 16
"""The table of exponentials has steps of 1/16 nat."""
HIDDEN_SHIFT = 10
LOGIT_BITS = 16
"""Sums of the last layer are in units of 2^-16 nat."""
HIDDEN_MAX = 255
SHARE_LIMITS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96)
"""The tokens per patch enter as one of eleven classes: at most 1/32, 1/16, 1/8, 1/4, 1/2, 3/4, 1, 3/2, 2, 3, more."""
SHARES = len(SHARE_LIMITS) + 1
PHASES = 16
"""Patches in a cell."""
MAX_TABLE_BYTES = 1 << 28
"""Largest size of all arrays together, unpacked."""

FORM = 3
"""Version of the tables: this coder would decode garbage with another one."""

LAYERS = ("w1", "b1", "w2", "b2", "w3", "b3")
_LOG2 = np.log2(np.maximum(np.arange(4097), 1) / 4096).astype(np.float32)
"""Log2 probability of each frequency."""


class NetworkKind(NamedTuple):
    """What a network predicts and reads."""

    levels: tuple[int, ...]
    """Values of each dimension that it predicts."""
    of_patches: bool
    """Whether it reads the cells around, the share and the place in the cell."""
    shallower: int = 0
    """Most tokens ahead in the same stack that it reads."""
    held: bool = False
    """Whether it reads the token that was held before."""


def network_kinds(levels: tuple[int, ...], depth: int) -> dict[str, NetworkKind]:
    """The networks of a model by name; ``deeper`` only where a patch can have several tokens."""
    kinds = {
        "cells": NetworkKind(levels, False),
        "depths": NetworkKind((depth + 1,), True),
        "patches": NetworkKind(levels, True, 0, True),
    }
    if depth > 1:
        kinds["deeper"] = NetworkKind(levels, True, depth - 1, True)
    return kinds


def share_class(tokens: int, patches: int) -> int:
    """Class of the tokens per patch, in integers."""
    for index, limit in enumerate(SHARE_LIMITS):
        if 32 * tokens <= limit * patches:
            return index
    return len(SHARE_LIMITS)


class IntegerEntropyModel:
    """Frequencies for the coder of one bundle; see :class:`tatok_edge.format.protocol.EntropyModel`.

    Args:
        levels: FSQ levels per code dimension.
        depth: Most tokens of a patch, K.
        tag: Eight bytes that name the bundle.
        tables: Arrays of :func:`load_tables`.

    Raises:
        ValueError: The arrays do not fit.
    """

    def __init__(
        self, levels: tuple[int, ...], depth: int, tag: bytes, tables: Mapping[str, NDArray[np.integer]]
    ) -> None:
        self.levels = levels
        self.depth = depth
        self.tag = tag
        self.tables = tables
        self._nets = _token_models(tables, levels, depth)

    def encode_globals(self, encoder: RangeEncoder, codes: Codes, cells: Places, grid: Grid) -> None:
        self._nets["cells"].encode(encoder, codes, _one_each(cells, grid))

    def decode_globals(self, decoder: RangeDecoder, cells: Places, grid: Grid) -> Codes:
        codes = np.zeros((len(cells), len(self.levels)), np.int32)
        self._nets["cells"].decode(decoder, codes, _one_each(cells, grid))
        return codes

    def encode_depths(self, encoder: RangeEncoder, depths: Depths, global_codes: Codes) -> None:
        share = share_class(int(depths.sum()), depths.size)
        self._nets["depths"].encode_depths(encoder, depths, global_codes, share)

    def decode_depths(self, decoder: RangeDecoder, tokens: int, global_codes: Codes, grid: Grid) -> Depths:
        share = share_class(tokens, grid[0] * grid[1])
        return self._nets["depths"].decode_depths(decoder, tokens, grid, global_codes, share)

    def encode_patches(
        self,
        encoder: RangeEncoder,
        stacks: Stacks,
        global_codes: Codes,
        given: NDArray[np.uint8] | None = None,
        held: Stacks | None = None,
    ) -> None:
        share = share_class(len(stacks.codes), stacks.depths.size)
        for depth, net in self._planes(stacks.depths):
            net.encode(encoder, *stacks, depth, global_codes, share, given, held)

    def decode_patches(
        self,
        decoder: RangeDecoder,
        stacks: Stacks,
        global_codes: Codes,
        given: NDArray[np.uint8] | None = None,
        held: Stacks | None = None,
    ) -> None:
        share = share_class(len(stacks.codes), stacks.depths.size)
        for depth, net in self._planes(stacks.depths):
            net.decode(decoder, *stacks, depth, global_codes, share, given, held)

    def patch_log2_probs(self, codes: Codes, positions: Places, global_codes: Codes, grid: Grid) -> NDArray[np.float32]:
        """Log2 probability that :meth:`encode_patches` gives each level of each code, ``(sum(levels), T)``.

        Args:
            codes: Codes of the tokens of a key packet, int32 ``(T, D)``.
            positions: Patch of each token, int32 ``(T,)``, never falling.
            global_codes: Codes of all cells, int32 ``(G, D)``.
            grid: Rows and columns of patches.
        """
        depths = np.bincount(positions, minlength=grid[0] * grid[1]).astype(np.int32).reshape(grid)
        share = share_class(len(codes), depths.size)
        out = np.empty((len(codes), sum(self.levels)), np.uint16)
        for depth, net in self._planes(depths):
            net.frequencies(out, codes, depths, depth, global_codes, share)
        return _LOG2[out].T

    def _planes(self, depths: Depths) -> list[tuple[int, TokenModel]]:
        """The depths that a depth map has, each with its network."""
        deepest = int(depths.max(initial=0))
        if deepest > self.depth:
            raise ValueError(f"depths must be at most {self.depth}, the depth of the model, got {deepest}")
        return [(depth, self._nets["deeper" if depth > 1 else "patches"]) for depth in range(1, deepest + 1)]


def _one_each(cells: Places, grid: Grid) -> Depths:
    """Depth map of one token at each of some cells."""
    depths = np.zeros(grid, np.int32)
    depths.ravel()[cells] = 1
    return depths


def _token_models(tables: Mapping[str, NDArray[Any]], levels: tuple[int, ...], depth: int) -> dict[str, TokenModel]:
    models = {}
    for name, kind in network_kinds(levels, depth).items():
        arrays: dict[str, Any] = {layer: np.ascontiguousarray(tables[f"{name}_{layer}"]) for layer in LAYERS}
        if kind.of_patches:
            arrays |= {"cell_levels": levels, "shares": SHARES}
        try:
            models[name] = TokenModel(kind.levels, tables["exp"], **arrays, shallower=kind.shallower, held=kind.held)
        except (TypeError, ValueError) as error:
            raise ValueError(f"network '{name}': {error}") from None
    return models


def exp_table() -> NDArray[np.int32]:
    """``round(2**16 * exp(-i / 16))``; stored in the bundle, so that no machine has to compute it again."""
    return np.round(65536 * np.exp(-np.arange(EXP_SIZE) / LOGIT_STEP)).astype(np.int32)


def save_tables(tables: Mapping[str, NDArray[np.integer]]) -> bytes:
    """The arrays as an ``.npz`` file."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = dict(tables)
    np.savez_compressed(buffer, form=np.int32(FORM), **arrays)
    return buffer.getvalue()


def load_tables(data: bytes, levels: tuple[int, ...], depth: int, name: str) -> dict[str, NDArray[np.integer]]:
    """Parse and check the arrays of :func:`save_tables`; never unpickles.

    Args:
        data: The file.
        levels: FSQ levels of the model.
        depth: Most tokens of a patch.
        name: Name of the bundle, for messages.

    Raises:
        BundleError: an array is missing, or has a wrong shape, type or value.
    """
    fields = ["exp", *(f"{net}_{layer}" for net in network_kinds(levels, depth) for layer in LAYERS)]
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(info.file_size for info in archive.infolist())
        if unpacked > MAX_TABLE_BYTES:  # a small file can unpack into more than fits into memory
            raise ValueError(f"{unpacked} bytes unpacked, at most {MAX_TABLE_BYTES} are allowed")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            form = int(file["form"]) if "form" in file.files else 0
            tables = {field: file[field] for field in fields} if form == FORM else {}
    except Exception as error:
        raise BundleError(f"{name}: the entropy tables cannot be read ({error}); install the model again") from error
    if form != FORM:
        raise BundleError(
            f"{name}: its entropy tables are of {'a later' if form > FORM else 'an earlier'} form; install the model "
            "again, or fit them again with python -m tatok_edge.training.entropy"
        )
    try:
        _token_models(tables, levels, depth)
    except ValueError as error:
        raise BundleError(f"{name}: the entropy tables do not fit: {error}") from None
    return tables
