"""Types of the entropy coder; ``docs/format.md`` says what it computes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

class RangeEncoder:
    def symbols(self, symbols: NDArray[np.int32], freqs: NDArray[np.uint16]) -> None: ...
    def bitmap(self, keep: NDArray[np.uint8], places: NDArray[np.uint8] | None = None) -> None: ...
    def gaps(self, positions: NDArray[np.int32]) -> None: ...
    def copy(self) -> RangeEncoder: ...
    def __len__(self) -> int: ...
    def finish(self) -> bytes: ...

class RangeDecoder:
    def __init__(self, data: bytes | bytearray | memoryview) -> None: ...
    def symbols(self, freqs: NDArray[np.uint16], count: int) -> NDArray[np.int32]: ...
    def bitmap(
        self, height: int, width: int, count: int, places: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]: ...
    def gaps(self, count: int, cells: int) -> NDArray[np.int32]: ...
    def finish(self) -> None: ...

CONTEXT_TOKENS: int
INPUT_SCALE: int
EXP_SIZE: int

class TokenModel:
    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def cell_levels(self) -> tuple[int, ...]: ...
    def __init__(
        self,
        levels: Sequence[int],
        exp: NDArray[np.int32],
        w1: NDArray[np.int16],
        b1: NDArray[np.int32],
        w2: NDArray[np.int16],
        b2: NDArray[np.int32],
        w3: NDArray[np.int16],
        b3: NDArray[np.int32],
        cell_levels: Sequence[int] = (),
        shares: int = 0,
    ) -> None: ...
    def encode(
        self,
        encoder: RangeEncoder,
        codes: NDArray[np.int32],
        positions: NDArray[np.int32],
        grid: tuple[int, int],
        cell_codes: NDArray[np.int32] | None = None,
        share: int = 0,
    ) -> None: ...
    def decode(
        self,
        decoder: RangeDecoder,
        positions: NDArray[np.int32],
        grid: tuple[int, int],
        cell_codes: NDArray[np.int32] | None = None,
        share: int = 0,
    ) -> NDArray[np.int32]: ...
    def frequencies(
        self,
        codes: NDArray[np.int32],
        positions: NDArray[np.int32],
        grid: tuple[int, int],
        cell_codes: NDArray[np.int32] | None = None,
        share: int = 0,
    ) -> NDArray[np.uint16]: ...
    def encode_map(
        self, encoder: RangeEncoder, keep: NDArray[np.uint8], cell_codes: NDArray[np.int32], share: int
    ) -> None: ...
    def decode_map(
        self, decoder: RangeDecoder, count: int, grid: tuple[int, int], cell_codes: NDArray[np.int32], share: int
    ) -> NDArray[np.uint8]: ...

def encode_symbols(symbols: NDArray[np.int32], freqs: NDArray[np.uint16]) -> bytes: ...
def decode_symbols(
    data: bytes | bytearray | memoryview, freqs: NDArray[np.uint16], count: int
) -> NDArray[np.int32]: ...
def encode_bitmap(keep: NDArray[np.uint8]) -> bytes: ...
def decode_bitmap(data: bytes | bytearray | memoryview, height: int, width: int, count: int) -> NDArray[np.uint8]: ...
