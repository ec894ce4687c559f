"""An entropy model made of plain arithmetic, frames to go with it, and the golden files.

``python tests/helpers/example_frames.py`` writes the golden files again: only when the format changes on purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.coder_reference import Token
from helpers.paths import GOLDEN
from tatok_edge.format.packet import body_crc, pack, pack_delta
from tatok_edge.format.positions import decode_depths, encode_depths
from tatok_edge.format.protocol import Codes, Depths, Grid, Places, Stacks
from tatok_edge.format.writer import Writer
from tatok_edge.geometry import patch_grid
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens

LEVELS = (8, 8, 8, 5, 5, 5)
VOCABULARY = 64000
TAG = bytes.fromhex("0123456789abcdef")


@lru_cache(1 << 12)
def row(level: int, seed: int, length: int = 8) -> list[int]:
    """Frequencies of one symbol with ``level`` values, in a row of ``length``."""
    weights = [(seed * 2654435761 + k * 40503) % 65536 % 97 + 1 for k in range(level)]
    freqs = [1 + weight * (4096 - level) // sum(weights) for weight in weights]
    freqs[seed % level] += 4096 - sum(freqs)
    return freqs + [0] * (length - level)


class _RowModel:
    """An entropy model whose rows do not depend on other patches."""

    levels: tuple[int, ...]
    depth: int

    def global_rows(self, cells: tuple[int, int]) -> list[list[int]]:
        """Rows of the codes of all cells."""
        raise NotImplementedError

    def patch_rows(
        self, global_codes: list[list[int]], cells: tuple[int, int], tokens: list[Token], total: int
    ) -> list[list[int]]:
        """Rows of the codes of tokens of one depth, of ``total`` in the frame."""
        raise NotImplementedError

    def encode_globals(self, encoder: RangeEncoder, codes: Codes, cells: Places, grid: Grid) -> None:
        encoder.symbols(codes.reshape(-1), self._global_freqs(cells, grid))

    def decode_globals(self, decoder: RangeDecoder, cells: Places, grid: Grid) -> Codes:
        dims = len(self.levels)
        return decoder.symbols(self._global_freqs(cells, grid), len(cells) * dims).reshape(-1, dims)

    def _global_freqs(self, cells: Places, grid: Grid) -> NDArray[np.uint16]:
        rows = np.array(self.global_rows(grid), np.uint16).reshape(grid[0] * grid[1], -1, max(self.levels))
        return np.ascontiguousarray(rows[cells].reshape(-1, max(self.levels)))

    def encode_depths(self, encoder: RangeEncoder, depths: Depths, global_codes: Codes) -> None:
        """As nested maps, so a packet never says that the model has coded it."""
        none = np.zeros_like(depths)
        encode_depths(encoder, depths, none, none + np.int32(self.depth), self.depth)

    def decode_depths(self, decoder: RangeDecoder, tokens: int, global_codes: Codes, grid: Grid) -> Depths:
        none = np.zeros(grid, np.int32)
        return decode_depths(decoder, tokens, none, none + np.int32(self.depth), self.depth)

    def encode_patches(
        self,
        encoder: RangeEncoder,
        stacks: Stacks,
        global_codes: Codes,
        given: NDArray[np.uint8] | None = None,
        held: Stacks | None = None,
    ) -> None:
        for tokens, rows in self._planes(stacks, global_codes, given, held):
            encoder.symbols(stacks.codes[tokens].reshape(-1), rows)

    def decode_patches(
        self,
        decoder: RangeDecoder,
        stacks: Stacks,
        global_codes: Codes,
        given: NDArray[np.uint8] | None = None,
        held: Stacks | None = None,
    ) -> None:
        for tokens, rows in self._planes(stacks, global_codes, given, held):
            stacks.codes[tokens] = decoder.symbols(rows, len(rows)).reshape(len(tokens), -1)

    def _planes(
        self, stacks: Stacks, global_codes: Codes, given: NDArray[np.uint8] | None, held: Stacks | None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint16]]]:
        """Numbers and rows of the tokens of each depth; rows of a large frame would take much memory."""
        grid = stacks.depths.shape
        counts = stacks.depths.ravel()
        positions = np.repeat(np.arange(counts.size), counts)
        depths = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
        coded = np.ones(len(positions), bool) if given is None else given == 0
        for depth in range(1, self.depth + 1):
            plane = np.flatnonzero(coded & (depths == depth))
            for start in range(0, len(plane), 1 << 15):
                part = plane[start : start + (1 << 15)]
                cells = (grid[0] // 4, grid[1] // 4)
                yield part, self.plane_freqs(stacks, global_codes, cells, part, positions[part], depth, held)

    def plane_freqs(
        self,
        stacks: Stacks,
        global_codes: Codes,
        cells: tuple[int, int],
        part: NDArray[np.intp],
        positions: NDArray[np.intp],
        depth: int,
        held: Stacks | None,
    ) -> NDArray[np.uint16]:
        """Rows of the tokens ``part`` of one depth, at ``positions``."""
        before = [[] for _ in range(stacks.depths.size)] if held is None else stacks_of(held)
        tokens = [
            Token(p, depth, stacks.codes[t - depth + 1 : t].tolist(), (before[p][depth - 1 : depth] or [None])[0])
            for t, p in zip(part.tolist(), positions.tolist(), strict=True)
        ]
        rows = self.patch_rows(global_codes.tolist(), cells, tokens, len(stacks.codes))
        return np.array(rows, np.uint16).reshape(-1, max(self.levels))


def stacks_of(stacks: Stacks) -> list[list[list[int]]]:
    """The codes of each patch."""
    ends = np.cumsum(stacks.depths.ravel())[:-1]
    return [part.tolist() for part in np.split(stacks.codes, ends)]


class StaticModel(_RowModel):
    """Rows that depend on all that they may depend on: cell, globals, position, depth, tokens ahead, held token, and
    number of tokens."""

    def __init__(self, tag: bytes = TAG, levels: tuple[int, ...] = LEVELS, depth: int = 2) -> None:
        self.tag = tag
        self.levels = levels
        self.depth = depth

    def global_rows(self, cells: tuple[int, int]) -> list[list[int]]:
        count = cells[0] * cells[1]
        return [
            row(level, cell % 5 + d, max(self.levels)) for cell in range(count) for d, level in enumerate(self.levels)
        ]

    def patch_rows(
        self, global_codes: list[list[int]], cells: tuple[int, int], tokens: list[Token], total: int
    ) -> list[list[int]]:
        rows = []
        for token in tokens:
            y, x = divmod(token.position, cells[1] * 4)
            seed = global_codes[y // 4 * cells[1] + x // 4][0] * 7 + (y % 4 * 4 + x % 4) * 3 + total % 3
            seed += (
                11 * token.depth + 5 * sum(map(sum, token.ahead)) + (0 if token.held is None else 13 + token.held[0])
            )
            rows += [row(level, seed + d, max(self.levels)) for d, level in enumerate(self.levels)]
        return rows


class UniformModel(_RowModel):
    """Every code equally likely, as far as 4096ths go; fast for large frames. The model of the worked example."""

    def __init__(self, tag: bytes = TAG, levels: tuple[int, ...] = LEVELS, depth: int = 2) -> None:
        self.tag = tag
        self.levels = levels
        self.depth = depth
        self.token = np.zeros((len(levels), max(levels)), np.uint16)
        for d, level in enumerate(levels):
            self.token[d, :level] = 4096 // level
            self.token[d, 0] += 4096 % level

    def global_rows(self, cells: tuple[int, int]) -> list[list[int]]:
        return self.token.tolist() * (cells[0] * cells[1])

    def patch_rows(
        self, global_codes: list[list[int]], cells: tuple[int, int], tokens: list[Token], total: int
    ) -> list[list[int]]:
        return self.token.tolist() * len(tokens)

    def plane_freqs(self, stacks: Stacks, global_codes: Codes, cells: Any, part: Any, *_: Any) -> NDArray[np.uint16]:
        return np.tile(self.token, (len(part), 1))

    def _global_freqs(self, cells: Places, grid: Grid) -> NDArray[np.uint16]:
        return np.tile(self.token, (len(cells), 1))


def int32(values: object) -> NDArray[np.int32]:
    return np.array(values, np.int32)


def make_frame(
    width: int,
    height: int,
    kept: int,
    seed: int = 0,
    *,
    index: int = 0,
    timestamp_us: int = 0,
    tag: bytes = TAG,
    depth: int = 2,
) -> TokenFrame:
    """A frame of arithmetic nonsense with up to ``depth`` tokens per patch, the same on every machine."""
    rows, columns = patch_grid(width, height)
    positions = stacked(rows * columns, kept, depth, seed)
    return TokenFrame(
        ids=int32([(p * 7919 + i * 50021 + seed * 31 + 5) % VOCABULARY for i, p in enumerate(positions)]),
        positions=int32(positions),
        global_ids=int32([(c * 104729 + seed * 17 + 3) % VOCABULARY for c in range(rows * columns // 16)]),
        width=width,
        height=height,
        model=tag,
        index=index,
        timestamp_us=timestamp_us,
    )


def stacked(patches: int, tokens: int, depth: int, seed: int, most: dict[int, int] | None = None) -> list[int]:
    """Positions of so many tokens in stacks of up to ``depth``; ``most`` limits the stacks of some patches."""
    limits = most if most is not None else dict.fromkeys(range(patches), depth)
    slots = [((p * 2654435761 + seed * 97) % 2**32 + (k << 30), p) for p, limit in limits.items() for k in range(limit)]
    return sorted(p for _, p in sorted(slots)[:tokens])


def example_frame() -> TokenFrame:
    """The frame of the worked example in docs/format.md."""
    return TokenFrame(
        ids=int32([33000, 12345, 63999, 24680]),
        positions=int32([2, 3, 13, 13]),
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
    held: HeldTokens,
    before: TokenFrame | DeltaFrame,
    updated: int,
    tokens: int,
    cells: int,
    seed: int = 0,
    *,
    index: int | None = None,
    timestamp_us: int = 0,
    vectors: int = 0,
    refined: float = 0.0,
) -> DeltaFrame:
    """So many updates of arithmetic nonsense to a frame; ``refined``: share of those that can be refined."""
    hc, wc = before.cell_grid
    places = sorted(spread(before.n_patches, seed)[:updated])
    able = [place for place in places if 0 < held.depths[place] < held.depth]
    again = sorted(able[i] for i in spread(len(able), seed + 4)[: round(refined * len(able))])
    again = again[: max(0, tokens)]
    most = dict.fromkeys(places, held.depth)
    most |= {place: held.depth - int(held.depths[place]) - 1 for place in again}
    positions = sorted([*again, *stacked(before.n_patches, tokens - len(again), held.depth, seed + 1, most)])
    renewed = sorted(set(places) - set(again))
    changed = sorted(spread(hc * wc, seed + 2)[:cells]) if renewed else []
    return DeltaFrame(
        updated=int32(places),
        refined=int32(again),
        positions=int32(positions),
        ids=int32([(p * 104729 + i * 50021 + seed * 17 + 7) % VOCABULARY for i, p in enumerate(positions)]),
        cells=int32(changed),
        global_ids=int32([(c * 7919 + seed * 31 + 11) % VOCABULARY for c in changed]),
        width=before.width,
        height=before.height,
        model=before.model,
        index=before.index + 1 if index is None else index,
        reference=before.index,
        follows=seed * 2654435761 % 2**32,
        timestamp_us=timestamp_us,
        turns=int32(sorted(spread(hc * wc, seed + 3)[:vectors])),
        # Neighbours differ by 23, so no two in a row are equal; none is (0, 0).
        vectors=int32([((i * 23 + seed) % 61 + 1, (i * 37 + seed) % 125 - 62) for i in range(vectors)]).reshape(-1, 2),
    )


def example_delta() -> DeltaFrame:
    """The update of :func:`example_frame` in docs/format.md."""
    return DeltaFrame(
        updated=int32([3, 4, 12, 13]),
        refined=int32([3]),
        positions=int32([3, 4, 12]),
        ids=int32([11111, 4321, 56789]),
        cells=int32([1]),
        global_ids=int32([778]),
        width=60,
        height=32,
        model=TAG,
        index=8,
        reference=7,
        follows=body_crc(pack(example_frame(), UniformModel())),
        timestamp_us=266667,
    )


def golden_stream() -> tuple[TokenFrame, list[tuple[DeltaFrame, HeldTokens]]]:
    """A key frame and what comes after it, each delta with what is held ahead of it.

    All codings of the maps, nothing, everything, refined patches, a gap, motion.
    """
    key = make_frame(360, 232, 900, 5, index=1000, timestamp_us=0)
    deltas: list[tuple[DeltaFrame, HeldTokens]] = []
    state: TokenFrame | DeltaFrame = key
    held = HeldTokens.of_frame(key, 2)
    for number, (updated, tokens, cells, index, vectors, refined) in enumerate(
        [
            (300, 120, 40, 1001, 0, 0.5),
            (200, 3, 0, 1002, 0, 0),
            (9, 5, 4, 1003, 0, 1),
            (0, 0, 0, 1004, 0, 0),
            (1536, 3072, 96, 1200, 0, 0),
            (1536, 0, 1, 1201, 0, 0),
            (300, 120, 40, 1202, 11, 0),
            (300, 90, 0, 1203, 2, 1),
            (0, 0, 0, 1204, 96, 0),
        ]
    ):
        time = 40000 * number
        delta = make_delta(
            held,
            state,
            updated,
            tokens,
            cells,
            number,
            index=index,
            timestamp_us=time,
            vectors=vectors,
            refined=refined,
        )
        deltas.append((delta, held))
        state, held = delta, held.updated(delta)
    return key, deltas


def golden_frames() -> list[TokenFrame]:
    """What the golden file holds: many tokens, few, none and all, and another size."""
    return [
        make_frame(96, 64, 60, 1, index=0, timestamp_us=-40000),
        make_frame(200, 150, 5, 2, index=1, timestamp_us=0),
        make_frame(96, 64, 0, 3, index=2, timestamp_us=40000),
        make_frame(32, 32, 32, 4, index=300, timestamp_us=1_764_000_000_000_000),
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
        for delta, held in deltas:
            writer.write_packet(pack_delta(delta, StaticModel(), held, embed_model=False))


if __name__ == "__main__":
    for old in GOLDEN.glob("*"):
        old.unlink()
    write_golden(GOLDEN)
