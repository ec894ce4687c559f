"""TaTok Edge: camera frames to short, variable-length sequences of discrete tokens, and back.

>>> import tatok_edge
>>> tokenizer = tatok_edge.Tokenizer.load()
>>> frame = tokenizer.encode(image, budget=tatok_edge.TokenBudget(keep=0.35))
>>> picture = tokenizer.decode(frame)
>>> with tatok_edge.open("stream.ttk") as recording:
...     pictures = [frame.image for frame in recording]
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tatok_edge.datasets.collate import collate as collate
    from tatok_edge.errors import BackendError as BackendError
    from tatok_edge.errors import BundleError as BundleError
    from tatok_edge.errors import FormatError as FormatError
    from tatok_edge.errors import InputError as InputError
    from tatok_edge.errors import SourceError as SourceError
    from tatok_edge.errors import TaTokError as TaTokError
    from tatok_edge.format.reader import Reader as Reader
    from tatok_edge.format.writer import Writer as Writer
    from tatok_edge.limits import Limits as Limits
    from tatok_edge.model.bundle import list_models as list_models
    from tatok_edge.model.tokenizer import EncodeResult as EncodeResult
    from tatok_edge.model.tokenizer import Tokenizer as Tokenizer
    from tatok_edge.recordings.open import RecordedFrame as RecordedFrame
    from tatok_edge.recordings.open import Recording as Recording
    from tatok_edge.recordings.open import open as open
    from tatok_edge.sources.open import open_source as open_source
    from tatok_edge.sources.source import Source as Source
    from tatok_edge.sources.source import SourceFrame as SourceFrame
    from tatok_edge.stream.decoder import DecodedFrame as DecodedFrame
    from tatok_edge.stream.decoder import StreamDecoder as StreamDecoder
    from tatok_edge.stream.encoder import StreamEncoder as StreamEncoder
    from tatok_edge.stream.encoder import encode_frames as encode_frames
    from tatok_edge.stream.frame import KeyframeTooLarge as KeyframeTooLarge
    from tatok_edge.stream.frame import StreamFrame as StreamFrame
    from tatok_edge.stream.pipeline import MultiStream as MultiStream
    from tatok_edge.stream.pipeline import Stream as Stream
    from tatok_edge.tokens.batch import TokenBatch as TokenBatch
    from tatok_edge.tokens.budget import TokenBudget as TokenBudget
    from tatok_edge.tokens.delta import DeltaFrame as DeltaFrame
    from tatok_edge.tokens.frame import TokenFrame as TokenFrame
    from tatok_edge.tokens.held import HeldTokens as HeldTokens

    __version__: str

# ONNX Runtime reads this when it is imported. Without it, it stores a number of the device in the home folder and sends
# measurements to its maker.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_WHERE = {
    "BackendError": "errors",
    "BundleError": "errors",
    "DecodedFrame": "stream.decoder",
    "DeltaFrame": "tokens.delta",
    "EncodeResult": "model.tokenizer",
    "FormatError": "errors",
    "HeldTokens": "tokens.held",
    "InputError": "errors",
    "KeyframeTooLarge": "stream.frame",
    "Limits": "limits",
    "MultiStream": "stream.pipeline",
    "Reader": "format.reader",
    "RecordedFrame": "recordings.open",
    "Recording": "recordings.open",
    "Source": "sources.source",
    "SourceError": "errors",
    "SourceFrame": "sources.source",
    "Stream": "stream.pipeline",
    "StreamDecoder": "stream.decoder",
    "StreamEncoder": "stream.encoder",
    "StreamFrame": "stream.frame",
    "TaTokError": "errors",
    "TokenBatch": "tokens.batch",
    "TokenBudget": "tokens.budget",
    "TokenFrame": "tokens.frame",
    "Tokenizer": "model.tokenizer",
    "Writer": "format.writer",
    "collate": "datasets.collate",
    "encode_frames": "stream.encoder",
    "list_models": "model.bundle",
    "open": "recordings.open",
    "open_source": "sources.open",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    # Names are imported when they are first used, so that importing the package costs next to nothing.
    if name == "__version__":
        from importlib.metadata import version

        return version("tatok-edge")
    if name not in _WHERE:
        raise AttributeError(f"module 'tatok_edge' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
