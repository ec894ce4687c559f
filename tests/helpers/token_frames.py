"""Frames and deltas of any stacks, with ids that do not matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import cell_grid, patch_grid
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

TAG = bytes.fromhex("0123456789abcdef")
VOCABULARY = 64000


def int32(values: object) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def frame_of(
    depths: Sequence[int] | NDArray[np.int32], width: int = 64, height: int = 32, *, seed: int = 0, **header: Any
) -> TokenFrame:
    """A frame whose patches have so many tokens, in raster order."""
    random = np.random.default_rng(seed)
    counts = np.ravel(depths)
    rows, columns = cell_grid(width, height)
    return TokenFrame(
        ids=random.integers(0, VOCABULARY, counts.sum(), np.int32),
        positions=np.repeat(np.arange(counts.size, dtype=np.int32), counts),
        global_ids=random.integers(0, VOCABULARY, rows * columns, np.int32),
        width=width,
        height=height,
        model=TAG,
        **header,
    )


def frame_with(width: int, height: int, tokens: int, seed: int = 0, *, tag: bytes = TAG, **header: Any) -> TokenFrame:
    """A frame with ``tokens`` tokens in stacks of up to 3, at random."""
    rows, columns = patch_grid(width, height)
    slots = np.random.default_rng(seed).permutation(3 * rows * columns)[:tokens]
    made = frame_of(np.bincount(slots // 3, minlength=rows * columns), width, height, seed=seed, **header)
    return TokenFrame(**{name: getattr(made, name) for name in made.__slots__} | {"model": tag})


def delta_of(
    stacks: Mapping[int, int],
    width: int = 64,
    height: int = 32,
    *,
    refined: Sequence[int] = (),
    cells: Sequence[int] = (),
    seed: int = 0,
    index: int = 1,
    **header: Any,
) -> DeltaFrame:
    """A delta that updates the patches of ``stacks`` with so many tokens each."""
    random = np.random.default_rng(seed)
    updated = sorted(stacks)
    positions = [patch for patch in updated for _ in range(stacks[patch])]
    values: dict[str, Any] = {
        "updated": int32(updated),
        "refined": int32(refined),
        "positions": int32(positions),
        "ids": random.integers(0, VOCABULARY, len(positions), np.int32),
        "cells": int32(cells),
        "global_ids": random.integers(0, VOCABULARY, len(cells), np.int32),
        "width": width,
        "height": height,
        "model": TAG,
        "index": index,
        "reference": index - 1,
        "follows": 0,
    }
    return DeltaFrame(**values | header)
