"""What the page on streams promises, measured: equal ends, small objects, noise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from helpers.streams import same
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge import StreamDecoder, StreamEncoder, Tokenizer
from tatok_edge.geometry import Image
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.state import StreamState

FRAMES = 1000 if os.environ.get("TATOK_HYPOTHESIS") == "explore" else 60
"""Frames through a bad channel; ``make explore`` takes the long way."""


def channel(packets: Iterator[bytes], rng: np.random.Generator) -> Iterator[list[bytes]]:
    """What a bad channel delivers after each packet: it loses, repeats and delays them."""
    delayed: list[tuple[int, bytes]] = []
    for number, packet in enumerate(packets):
        luck = rng.random()
        if luck >= 0.03:  # else it is lost
            late = int(rng.integers(1, 5)) if luck < 0.15 else 0
            delayed.append((number + late, packet))
            if luck > 0.9:
                delayed.append((number + int(rng.integers(0, 6)), packet))
        yield [packet for due, packet in delayed if due <= number]
        delayed = [(due, packet) for due, packet in delayed if due > number]


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), refresh=st.sampled_from(["key", "rolling"]))
def test_both_ends_are_equal_whatever_the_channel_does(
    tokenizer: Tokenizer, seed: int, refresh: Literal["key", "rolling"]
) -> None:
    rng = np.random.default_rng(seed)
    scene = [render(Scene(width=96, height=64, seed=seed % 50), number) for number in range(20)]
    encoder = StreamEncoder(tokenizer, keyframe_interval=12, refresh=refresh)
    decoder = StreamDecoder(tokenizer)
    states: dict[int, StreamState] = {}
    equal = 0

    def packets() -> Iterator[bytes]:
        for number in range(FRAMES):
            place = number % (2 * len(scene) - 2)
            frame = encoder.encode(scene[min(place, 2 * len(scene) - 2 - place)])
            assert encoder.state is not None
            states[frame.index] = encoder.state.copy()
            states.pop(frame.index - 40, None)
            yield frame.packet

    for delivered in channel(packets(), rng):
        for packet in delivered:
            decoded = decoder.decode(packet)
            state = decoder.state
            if state is None or state.index not in states:
                continue
            if not decoder.needs_keyframe:
                assert same(state, states[state.index]), state.index
                equal += 1
            elif decoded.complete:
                pytest.fail("a picture is complete, and a keyframe is needed")
    assert equal > FRAMES / 10


def test_a_small_object_is_seen_in_its_first_frame_and_noise_is_not(
    tokenizer: Tokenizer, rng: np.random.Generator
) -> None:
    scene = 40 + render(Scene(width=320, height=240), 0).astype(np.float32) * (175 / 255)

    def noisy(picture: Image) -> Image:
        return np.clip(np.rint(picture + rng.normal(0, 3, picture.shape)), 0, 255).astype(np.uint8)

    encoder = StreamEncoder(tokenizer)
    encoder.encode(noisy(scene))
    updated = [encoder.encode(noisy(scene)).n_updated for _ in range(20)]
    assert np.mean(updated) <= 0.02 * 1200
    for _ in range(12):
        trial = encoder.fork()
        y, x = int(rng.integers(0, 225)), int(rng.integers(0, 305))
        with_object = scene.copy()
        with_object[y : y + 16, x : x + 16] += 30 if rng.random() < 0.5 else -30
        positions = trial.encode(noisy(with_object)).tokens.positions
        rows, columns = np.divmod(positions, 40)
        near = (rows * 8 < y + 16) & (rows * 8 + 8 > y) & (columns * 8 < x + 16) & (columns * 8 + 8 > x)
        assert near.any(), (y, x)
