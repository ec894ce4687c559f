"""Clips, comparisons of the two ends of a stream, and a session that fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from helpers.paths import shared
from tatok_edge import StreamDecoder, StreamEncoder, StreamFrame, Tokenizer, open_source
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import Image
from tatok_edge.runtime.session import GraphName, Session, Tensors
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.state import StreamState
from tatok_edge.tokens.budget import TokenBudget


class FailingSession:
    """A session that fails once after a number of calls."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.calls_left: int | None = None
        """Calls until the failure; None for no failure."""

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        if self.calls_left == 0:
            self.calls_left = None
            raise RuntimeError(f"no memory for {graph}")
        if self.calls_left is not None:
            self.calls_left -= 1
        return self._session.run(graph, inputs)

    def close(self) -> None:
        self._session.close()


def same(a: StreamState | None, b: StreamState | None) -> bool:
    """Whether two ends hold the same, bit for bit."""
    assert a is not None and b is not None
    arrays = [
        (
            x.held.global_ids,
            x.held.depths,
            x.held.ids,
            x.maps.state,
            x.maps.context,
            x.maps.mean,
            x.moved,
            x.offsets,
            x.picture,
        )
        for x in (a, b)
    ]
    return (a.index, a.crc, a.width, a.height) == (b.index, b.crc, b.width, b.height) and all(
        map(np.array_equal, *arrays)
    )


def clip(name: str, count: int) -> list[Image]:
    """The first frames of a real clip; skips the test where the clip is not there."""
    with open_source(shared(f"videos/{name}.mp4")) as source:
        return [frame.image for _, frame in zip(range(count), source, strict=False)]


def pan_over_a_scene(count: int) -> list[Image]:
    """A camera that pans over a still scene, 2.5 pixels to the right and 1 down in every frame; 240 x 160 pixels."""
    wide = render(Scene(width=512, height=288), 0)
    doubled = wide.repeat(2, 0).repeat(2, 1).astype(np.int32)
    smooth = (doubled[:-1, :-1] + doubled[1:, :-1] + doubled[:-1, 1:] + doubled[1:, 1:] + 2) // 4
    return [smooth[2 * i : 2 * i + 320 : 2, 5 * i : 5 * i + 480 : 2].astype(np.uint8) for i in range(count)]


def shown(encoder: StreamEncoder) -> Image:
    """The picture of a receiver after all packets so far."""
    state = encoder.state
    assert state is not None
    return state.picture[: state.height, : state.width]


def fixed_rate(tokenizer: Tokenizer, image: Image) -> Image:
    """The picture of the first token of every patch, which streams are compared with."""
    return tokenizer.decode(tokenizer.encode(image, budget=TokenBudget(max_depth=1)))


def run(
    tokenizer: Tokenizer, images: list[Image], **options: Any
) -> tuple[list[StreamFrame], list[Image], StreamEncoder]:
    """Encode and decode; returns the frames, the pictures, and the encoder."""
    encoder, decoder = StreamEncoder(tokenizer, **options), StreamDecoder(tokenizer)
    frames, pictures = [], []
    for image in images:
        frame = encoder.encode(image)
        decoded = decoder.decode(frame.packet)
        assert decoded.complete and decoded.image is not None
        assert same(encoder.state, decoder.state)
        frames.append(frame)
        pictures.append(decoded.image)
    return frames, pictures, encoder


def loss_of(tokenizer: Tokenizer, images: list[Image], pictures: list[Image]) -> float:
    """Mean loss of PSNR against the fixed rate, in dB."""
    best = [psnr(image, fixed_rate(tokenizer, image)) for image in images[::5]]
    pairs = zip(images[::5], pictures[::5], strict=True)
    return float(np.mean(best) - np.mean([psnr(image, picture) for image, picture in pairs]))
