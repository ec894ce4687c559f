"""Types of the token coder; ``docs/format.md`` says what it computes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tatok_edge.runtime.cpu.range_coder import RangeDecoder, RangeEncoder

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
