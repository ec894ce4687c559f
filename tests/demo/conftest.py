"""Fixtures of the demo's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.encoder import StreamEncoder

if TYPE_CHECKING:
    from helpers.demo_client import Demo


@pytest.fixture(scope="module")
def running_demo(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo for all tests of a file."""
    from helpers.demo_client import Demo  # needs the packages of the demo

    running = Demo(tokenizer, tmp_path_factory.mktemp("recordings"))
    yield running
    running.close()


@pytest.fixture
def demo(running_demo: Demo) -> Demo:
    """A demo with the settings that it begins with."""
    running_demo.reset()
    return running_demo


@pytest.fixture(scope="module")
def recording(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of 30 frames with a keyframe every 10."""
    path = tmp_path_factory.mktemp("recording") / "clip.ttk"
    encoder = StreamEncoder(tokenizer, keyframe_interval=10)
    scene = Scene(width=96, height=64)
    with Writer(path, tokenizer.entropy_model, name=tokenizer.name, fps=50) as writer:
        for index in range(30):
            encoded = encoder.encode(render(scene, index), index=index, timestamp_us=index * 20_000)
            writer.write_packet(encoded.packet)
    return path
