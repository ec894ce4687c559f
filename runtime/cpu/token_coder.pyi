"""Types of the token coder; ``docs/format.md`` says what it computes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tatok_edge.runtime.cpu.range_coder import RangeDecoder, RangeEncoder

CONTEXT_TOKENS: int
INPUT_SCALE: int
EXP_SIZE: int

_Ints = NDArray[np.int32]

def input_sizes(
    dims: int, cell_dims: int = 0, shares: int = 0, shallower: int = 0, held: bool = False
) -> tuple[int, ...]: ...

class TokenModel:
    @property
    def levels(self) -> tuple[int, ...]: ...
    @property
    def cell_levels(self) -> tuple[int, ...]: ...
    def __init__(
        self,
        levels: Sequence[int],
        exp: _Ints,
        w1: NDArray[np.int16],
        b1: _Ints,
        w2: NDArray[np.int16],
        b2: _Ints,
        w3: NDArray[np.int16],
        b3: _Ints,
        cell_levels: Sequence[int] = (),
        shares: int = 0,
        shallower: int = 0,
        held: bool = False,
    ) -> None: ...
    def encode(
        self,
        encoder: RangeEncoder,
        codes: _Ints,
        depths: _Ints,
        depth: int = 1,
        cell_codes: _Ints | None = None,
        share: int = 0,
        given: NDArray[np.uint8] | None = None,
        held: tuple[_Ints, _Ints] | None = None,
    ) -> None: ...
    def decode(
        self,
        decoder: RangeDecoder,
        codes: _Ints,
        depths: _Ints,
        depth: int = 1,
        cell_codes: _Ints | None = None,
        share: int = 0,
        given: NDArray[np.uint8] | None = None,
        held: tuple[_Ints, _Ints] | None = None,
    ) -> None: ...
    def frequencies(
        self,
        out: NDArray[np.uint16],
        codes: _Ints,
        depths: _Ints,
        depth: int = 1,
        cell_codes: _Ints | None = None,
        share: int = 0,
        given: NDArray[np.uint8] | None = None,
        held: tuple[_Ints, _Ints] | None = None,
    ) -> None: ...
    def encode_depths(self, encoder: RangeEncoder, depths: _Ints, cell_codes: _Ints, share: int) -> None: ...
    def decode_depths(
        self, decoder: RangeDecoder, count: int, grid: tuple[int, int], cell_codes: _Ints, share: int
    ) -> _Ints: ...
