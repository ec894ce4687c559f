"""An entropy model made of plain arithmetic, frames to go with it, and the golden files.

``python tests/helpers/example_frames.py`` writes the golden files again: only when the format changes on purpose.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from helpers.paths import GOLDEN
from tatok_edge.format.packet import body_crc, pack, pack_delta
from tatok_edge.format.protocol import Codes, Grid, Mask, Places
from tatok_edge.format.writer import Writer
from tatok_edge.geometry import patch_grid
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

LEVELS = (8, 8, 8, 5, 5, 5)
VOCABULARY = 64000
TAG = bytes.fromhex("0123456789abcdef")


def row(level: int, seed: int, length: int = 8) -> list[int]:
    """Frequencies of one symbol with ``level`` values, in a row of ``length``."""
    weights = [(seed * 2654435761 + k * 40503) % 65536 % 97 + 1 for k in range(level)]
    freqs = [1 + weight * (4096 - level) // sum(weights) for weight in weights]
    freqs[seed % level] += 4096 - sum(freqs)
    return freqs + [0] * (length - level)


class _RowModel:
    """An entropy model whose rows do not depend on other codes of the same grid."""

    levels: tuple[int, ...]

    def global_freqs(self, cells: tuple[int, int]) -> NDArray[np.uint16]:
        """Rows of the codes of all cells."""
        raise NotImplementedError

    def patch_freqs(
        self, global_codes: NDArray[np.int32], cells: tuple[int, int], positions: NDArray[np.int32], kept: int
    ) -> NDArray[np.uint16]:
        """Rows of the codes of the patches at ``positions``, of ``kept`` in the packet."""
        raise NotImplementedError

    def _rows(self, cells: NDArray[np.int32], grid: tuple[int, int]) -> NDArray[np.uint16]:
        rows = self.global_freqs(grid)
        length = rows.shape[1]
        return np.ascontiguousarray(rows.reshape(grid[0] * grid[1], -1, length)[cells].reshape(-1, length))

    def encode_globals(self, encoder: RangeEncoder, codes: Codes, cells: Places, grid: Grid) -> None:
        encoder.symbols(codes.reshape(-1), self._rows(cells, grid))

    def decode_globals(self, decoder: RangeDecoder, cells: Places, grid: Grid) -> Codes:
        dims = len(self.levels)
        return decoder.symbols(self._rows(cells, grid), len(cells) * dims).reshape(-1, dims)

    def encode_keep_map(self, encoder: RangeEncoder, keep: Mask, global_codes: Codes) -> None:
        """As a bitmap, so a packet never says that the model has coded it."""
        encoder.bitmap(keep)

    def decode_keep_map(self, decoder: RangeDecoder, kept: int, global_codes: Codes, grid: Grid) -> Mask:
        return decoder.bitmap(*grid, kept)

    def encode_patches(
        self, encoder: RangeEncoder, codes: Codes, positions: Places, global_codes: Codes, grid: Grid
    ) -> None:
        rows = self.patch_freqs(global_codes, (grid[0] // 4, grid[1] // 4), positions, len(positions))
        encoder.symbols(codes.reshape(-1), rows)

    def decode_patches(self, decoder: RangeDecoder, positions: Places, global_codes: Codes, grid: Grid) -> Codes:
        dims, kept = len(self.levels), len(positions)
        codes = np.empty((kept, dims), np.int32)
        for start in range(0, kept, 1 << 15):  # rows of a large frame would take much memory
            part = positions[start : start + (1 << 15)]
            rows = self.patch_freqs(global_codes, (grid[0] // 4, grid[1] // 4), part, kept)
            codes[start : start + len(part)] = decoder.symbols(rows, len(part) * dims).reshape(-1, dims)
        return codes


class StaticModel(_RowModel):
    """Rows that depend on all that they may depend on: cell, globals, position and number of kept tokens."""

    def __init__(self, tag: bytes = TAG, levels: tuple[int, ...] = LEVELS) -> None:
        self.tag = tag
        self.levels = levels

    def global_rows(self, cells: tuple[int, int]) -> list[list[int]]:
        count = cells[0] * cells[1]
        return [
            row(level, cell % 5 + d, max(self.levels)) for cell in range(count) for d, level in enumerate(self.levels)
        ]

    def patch_rows(
        self, global_codes: list[list[int]], cells: tuple[int, int], positions: list[int], kept: int
    ) -> list[list[int]]:
        rows = []
        for position in positions:
            y, x = divmod(position, cells[1] * 4)
            seed = global_codes[y // 4 * cells[1] + x // 4][0] * 7 + (y % 4 * 4 + x % 4) * 3 + kept % 3
            rows += [row(level, seed + d, max(self.levels)) for d, level in enumerate(self.levels)]
        return rows

    def global_freqs(self, cells: tuple[int, int]) -> NDArray[np.uint16]:
        return np.array(self.global_rows(cells), np.uint16)

    def patch_freqs(
        self, global_codes: NDArray[np.int32], cells: tuple[int, int], positions: NDArray[np.int32], kept: int
    ) -> NDArray[np.uint16]:
        rows = self.patch_rows(global_codes.tolist(), cells, positions.tolist(), kept)
        return np.array(rows, np.uint16).reshape(-1, max(self.levels))


class UniformModel(_RowModel):
    """Every code equally likely, as far as 4096ths go; fast for large frames. The model of the worked example."""

    def __init__(self, tag: bytes = TAG, levels: tuple[int, ...] = LEVELS) -> None:
        self.tag = tag
        self.levels = levels
        self.token = np.zeros((len(levels), max(levels)), np.uint16)
        for d, level in enumerate(levels):
            self.token[d, :level] = 4096 // level
            self.token[d, 0] += 4096 % level

    def rows(self, count: int) -> list[list[int]]:
        return self.token.tolist() * count

    def global_freqs(self, cells: tuple[int, int]) -> NDArray[np.uint16]:
        return np.tile(self.token, (cells[0] * cells[1], 1))

    def patch_freqs(
        self, global_codes: NDArray[np.int32], cells: tuple[int, int], positions: NDArray[np.int32], kept: int
    ) -> NDArray[np.uint16]:
        return np.tile(self.token, (len(positions), 1))


def int32(values: object) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def make_frame(
    width: int, height: int, kept: int, seed: int = 0, *, index: int = 0, timestamp_us: int = 0, tag: bytes = TAG
) -> TokenFrame:
    """A frame of arithmetic nonsense, the same on every machine."""
    rows, columns = patch_grid(width, height)
    count = rows * columns
    scores = [(i * 2654435761 + seed * 97) % 2**32 for i in range(count)]
    positions = sorted(sorted(range(count), key=scores.__getitem__)[:kept])
    return TokenFrame(
        ids=int32([(p * 7919 + seed * 31 + 5) % VOCABULARY for p in positions]),
        positions=int32(positions),
        global_ids=int32([(c * 104729 + seed * 17 + 3) % VOCABULARY for c in range(count // 16)]),
        width=width,
        height=height,
        model=tag,
        index=index,
        timestamp_us=timestamp_us,
    )


def example_frame() -> TokenFrame:
    """The frame of the worked example in docs/format.md."""
    return TokenFrame(
        ids=int32([33000, 12345, 63999]),
        positions=int32([2, 3, 13]),
        global_ids=int32([40000, 777]),
        width=60,
        height=32,
        model=TAG,
        index=7,
        timestamp_us=233333,
    )


def spread(count: int, seed: int) -> list[int]:
    """0 to ``count - 1`` in an order without pattern, the same on every machine."""
    return sorted(range(count), key=lambda i: (i * 2654435761 + seed * 97) % 2**32)


def make_delta(
    before: TokenFrame,
    updated: int,
    tokens: int,
    cells: int,
    seed: int = 0,
    *,
    index: int | None = None,
    timestamp_us: int = 0,
    vectors: int = 0,
) -> tuple[DeltaFrame, NDArray[np.int32]]:
    """So many updates of arithmetic nonsense to a frame, and the global ids of all its cells after them."""
    places = sorted(spread(before.n_patches, seed)[:updated])
    positions = sorted(places[i] for i in spread(updated, seed + 1)[:tokens])
    hc, wc = before.cell_grid
    changed = sorted(spread(hc * wc, seed + 2)[:cells]) if places else []
    window = (0, 0, 0, 0)
    if places:
        rows = [place // (4 * wc) // 4 for place in places]
        columns = [place % (4 * wc) // 4 for place in places]
        top, left = max(0, min(rows) - seed % 2), max(0, min(columns) - seed % 3)
        window = (top, left, max(rows) + 1 - top, max(columns) + 1 - left)
    after = before.global_ids.copy()
    after[changed] = [(c * 7919 + seed * 31 + 11) % VOCABULARY for c in changed]
    delta = DeltaFrame(
        updated=int32(places),
        positions=int32(positions),
        ids=int32([(p * 104729 + seed * 17 + 7) % VOCABULARY for p in positions]),
        cells=int32(changed),
        global_ids=after[changed],
        width=before.width,
        height=before.height,
        model=before.model,
        index=before.index + 1 if index is None else index,
        reference=before.index,
        follows=seed * 2654435761 % 2**32,
        window=window,
        timestamp_us=timestamp_us,
        turns=int32(sorted(spread(hc * wc, seed + 3)[:vectors])),
        # Neighbours differ by 23, so no two in a row are equal; none is (0, 0).
        vectors=int32([((i * 23 + seed) % 61 + 1, (i * 37 + seed) % 125 - 62) for i in range(vectors)]).reshape(-1, 2),
    )
    return delta, after


def example_delta() -> tuple[DeltaFrame, NDArray[np.int32]]:
    """The update of :func:`example_frame` in docs/format.md, and the global ids after it."""
    delta = DeltaFrame(
        updated=int32([3, 4, 12, 13]),
        positions=int32([4, 12]),
        ids=int32([4321, 56789]),
        cells=int32([1]),
        global_ids=int32([778]),
        width=60,
        height=32,
        model=TAG,
        index=8,
        reference=7,
        follows=body_crc(pack(example_frame(), UniformModel())),
        window=(0, 0, 1, 2),
        timestamp_us=266667,
    )
    return delta, int32([40000, 778])


def golden_stream() -> tuple[TokenFrame, list[tuple[DeltaFrame, NDArray[np.int32]]]]:
    """A key frame and what comes after it: all codings of the maps, nothing, everything, a gap, motion."""
    key = make_frame(360, 232, 500, 5, index=1000, timestamp_us=0)
    deltas: list[tuple[DeltaFrame, NDArray[np.int32]]] = []
    state = key
    for number, (updated, tokens, cells, index, vectors) in enumerate(
        [
            (300, 120, 40, 1001, 0),
            (200, 3, 0, 1002, 0),
            (9, 5, 4, 1003, 0),
            (0, 0, 0, 1004, 0),
            (1536, 1536, 96, 1200, 0),
            (1536, 0, 1, 1201, 0),
            (300, 120, 40, 1202, 11),
            (0, 0, 0, 1203, 96),
        ]
    ):
        delta, after = make_delta(
            state, updated, tokens, cells, number, index=index, timestamp_us=40000 * number, vectors=vectors
        )
        deltas.append((delta, after))
        state = replace(state, global_ids=after, index=index)
    return key, deltas


def golden_frames() -> list[TokenFrame]:
    """What the golden file holds: bitmap, gaps, nothing and everything kept, and another size."""
    return [
        make_frame(96, 64, 40, 1, index=0, timestamp_us=-40000),
        make_frame(200, 150, 5, 2, index=1, timestamp_us=0),
        make_frame(96, 64, 0, 3, index=2, timestamp_us=40000),
        make_frame(32, 32, 16, 4, index=300, timestamp_us=1_764_000_000_000_000),
    ]


def write_golden(folder: Path) -> None:
    """The golden files, into ``folder``."""
    metadata = {"camera": "Tür 2", "gain": 1.5}
    with Writer(
        folder / "frames.ttk", StaticModel(), name="static", fps=Fraction(30000, 1001), metadata=metadata
    ) as writer:
        for frame in golden_frames():
            writer.write(frame)
    with Writer(folder / "example.ttk", UniformModel(), name="uniform", fps=30) as writer:
        writer.write(example_frame())
    key, deltas = golden_stream()
    with Writer(folder / "stream.ttk", StaticModel(), name="static", fps=25) as writer:
        writer.write(key)
        for delta, after in deltas:
            writer.write_packet(pack_delta(delta, StaticModel(), after, embed_model=False))


if __name__ == "__main__":
    for old in GOLDEN.glob("*"):
        old.unlink()
    write_golden(GOLDEN)
