"""An entropy model made of plain arithmetic, frames to go with it, and the golden files.

``python tests/format_helpers.py`` writes the golden files again: only when the format changes on purpose.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tatok_edge.container import Writer
from tatok_edge.tokens import TokenFrame, patch_grid

LEVELS = (8, 8, 8, 5, 5, 5)
VOCABULARY = 64000
TAG = bytes.fromhex("0123456789abcdef")
GOLDEN = Path(__file__).parent / "golden"


def row(level: int, seed: int, length: int = 8) -> list[int]:
    """Frequencies of one symbol with ``level`` values, in a row of ``length``."""
    weights = [(seed * 2654435761 + k * 40503) % 65536 % 97 + 1 for k in range(level)]
    freqs = [1 + weight * (4096 - level) // sum(weights) for weight in weights]
    freqs[seed % level] += 4096 - sum(freqs)
    return freqs + [0] * (length - level)


class StaticModel:
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


class UniformModel:
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


if __name__ == "__main__":
    for old in GOLDEN.glob("*"):
        old.unlink()
    write_golden(GOLDEN)
