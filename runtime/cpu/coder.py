"""The entropy coder of packets: the range coder, and the token coder that writes with it."""

from tatok_edge.runtime.cpu.range_coder import (
    RangeDecoder,
    RangeEncoder,
    decode_bitmap,
    decode_symbols,
    encode_bitmap,
    encode_symbols,
)
from tatok_edge.runtime.cpu.token_coder import CONTEXT_TOKENS, EXP_SIZE, INPUT_SCALE, TokenModel, input_sizes

__all__ = [
    "CONTEXT_TOKENS",
    "EXP_SIZE",
    "INPUT_SCALE",
    "RangeDecoder",
    "RangeEncoder",
    "TokenModel",
    "decode_bitmap",
    "decode_symbols",
    "encode_bitmap",
    "encode_symbols",
    "input_sizes",
]
