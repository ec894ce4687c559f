"""TaTok Edge: camera frames to short, variable-length sequences of discrete tokens, and back.

>>> import tatok_edge
>>> tokenizer = tatok_edge.Tokenizer.load("tatok-s8")
>>> frame = tokenizer.encode(image, budget=tatok_edge.TokenBudget(keep=0.35))
>>> picture = tokenizer.decode(frame)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import list_models as list_models
    from .container import Reader as Reader
    from .container import Writer as Writer
    from .errors import BackendError as BackendError
    from .errors import BundleError as BundleError
    from .errors import FormatError as FormatError
    from .errors import InputError as InputError
    from .errors import SourceError as SourceError
    from .errors import TaTokError as TaTokError
    from .frames import Source as Source
    from .frames import SourceFrame as SourceFrame
    from .sources import open_source as open_source
    from .stream import MultiStream as MultiStream
    from .stream import Stream as Stream
    from .stream_decoder import DecodedFrame as DecodedFrame
    from .stream_decoder import StreamDecoder as StreamDecoder
    from .stream_encoder import StreamEncoder as StreamEncoder
    from .stream_encoder import StreamFrame as StreamFrame
    from .stream_encoder import encode_frames as encode_frames
    from .tokenizer import EncodeResult as EncodeResult
    from .tokenizer import Tokenizer as Tokenizer
    from .tokens import DeltaFrame as DeltaFrame
    from .tokens import TokenBatch as TokenBatch
    from .tokens import TokenBudget as TokenBudget
    from .tokens import TokenFrame as TokenFrame

_WHERE = {
    "BackendError": "errors",
    "BundleError": "errors",
    "DecodedFrame": "stream_decoder",
    "DeltaFrame": "tokens",
    "EncodeResult": "tokenizer",
    "FormatError": "errors",
    "InputError": "errors",
    "MultiStream": "stream",
    "Reader": "container",
    "Source": "frames",
    "SourceError": "errors",
    "SourceFrame": "frames",
    "Stream": "stream",
    "StreamDecoder": "stream_decoder",
    "StreamEncoder": "stream_encoder",
    "StreamFrame": "stream_encoder",
    "TaTokError": "errors",
    "TokenBatch": "tokens",
    "TokenBudget": "tokens",
    "TokenFrame": "tokens",
    "Tokenizer": "tokenizer",
    "Writer": "container",
    "encode_frames": "stream_encoder",
    "list_models": "bundle",
    "open_source": "sources",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used, so that importing the package costs next to nothing.
    if name not in _WHERE:
        raise AttributeError(f"module 'tatok_edge' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
