"""Feeds of the demo: files, single pictures and recordings."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from tatok_edge.errors import FormatError
from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")


from tatok_edge.demo.feeds import Played, RecordingFeed, Shot, SourceFeed


def test_a_damaged_frame_of_a_recording_is_left_out(tokenizer: Tokenizer, recording: Path, tmp_path: Path) -> None:
    data = bytearray(recording.read_bytes())
    with Reader(recording) as reader:
        data[reader.offset(14) + 20] ^= 0xFF
    path = tmp_path / "damaged.ttk"
    path.write_bytes(data)
    feed = RecordingFeed(path, tokenizer)
    seen: list[int] = []
    for played in feed:
        assert isinstance(played, Played)
        if seen and played.number < seen[-1]:
            break
        seen.append(played.number)
    feed.close()
    assert seen == [*range(14), *range(20, 30)]


def test_an_empty_recording_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "empty.ttk"
    with Writer(path, tokenizer.entropy_model, name=tokenizer.name):
        pass
    with pytest.raises(FormatError, match="holds no frame"):
        RecordingFeed(path, tokenizer)


def test_files_are_shown_at_their_pace_over_and_over(tmp_path: Path) -> None:
    from tatok_edge.pictures.writing import open_output

    path = tmp_path / "clip.mp4"
    with open_output(path, fps=25, frames=10) as output:
        for index in range(10):
            output.write(render(Scene(width=64, height=64), index), index)
    feed = SourceFeed(str(path), open_source(path))
    begun, shots = time.monotonic(), []
    for shot in feed:
        assert isinstance(shot, Shot)
        shots.append(shot)
        if len(shots) == 25:
            break
    feed.close()
    assert time.monotonic() - begun >= 0.8 * (25 - 2) / 25
    restarts = [number for number, shot in enumerate(shots) if shot.restarted]
    assert restarts[0] == 0 and len(restarts) >= 3
    slow = SourceFeed(str(path))  # whoever is too slow sees fewer frames, in time
    begun = time.monotonic()
    for count, shot in enumerate(slow):
        if count == 4:
            break
        time.sleep(0.1)
        assert isinstance(shot, Shot)
    assert shot.dropped >= 2
    assert time.monotonic() - begun < 5
    slow.close()


def test_a_single_picture_is_shown_again_and_again(pictures: Path) -> None:
    feed = SourceFeed(str(pictures / "picture00.png"))
    shots = [shot for shot, _ in zip(feed, range(3), strict=False)]
    feed.close()
    assert len(shots) == 3 and all(np.array_equal(shots[0].image, shot.image) for shot in shots)
