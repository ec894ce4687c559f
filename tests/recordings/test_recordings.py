"""``tatok_edge.open``: frames of token files by number, in turn and in slices, with tokens, times and pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tatok_edge
from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render

PICTURES = [render(Scene(width=96, height=64), number) for number in range(9)]


@pytest.fixture(scope="module")
def stream(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream with keyframes 0, 4 and 8; do not write to it."""
    path = tmp_path_factory.mktemp("recordings") / "stream.ttk"
    frames = tatok_edge.Stream(tokenizer, iter(PICTURES), fps=30, keyframe_interval=4)
    with frames, Writer(path, tokenizer.entropy_model, name=tokenizer.name) as writer:
        for frame in frames:
            writer.write_packet(frame.packet)
    return path


def test_a_stream_is_read_without_a_word_about_its_model(stream: Path) -> None:
    with tatok_edge.open(stream) as recording:
        assert len(recording) == 9
        frames = list(recording)
        assert [frame.kind for frame in frames] == ["key", *["delta"] * 3, "key", *["delta"] * 3, "key"]
        assert [frame.time for frame in frames] == pytest.approx([number / 30 for number in range(9)], abs=1e-6)
        decoder = tatok_edge.StreamDecoder(recording.tokenizer)
        for frame in frames:
            expected = decoder.decode(frame.packet)
            assert expected.image is not None
            assert np.array_equal(frame.image, expected.image)
            assert frame.n_tokens == frame.tokens.n_tokens
            assert frame.n_bytes == len(frame.packet)
            assert (frame.width, frame.height) == (96, 64)
        assert "stream.ttk" in repr(recording)
    with pytest.raises(tatok_edge.InputError, match="is closed; open it again"):
        _ = recording[0].packet


def test_any_order_gives_the_same_frames(stream: Path, tokenizer: Tokenizer) -> None:
    with tatok_edge.open(stream, tokenizer=tokenizer) as recording:
        in_turn = [(frame.image, frame.tokens, frame.held) for frame in recording]
        for number in (8, 2, -2, 1, 5, 5):
            frame = recording[number]
            image, tokens, held = in_turn[number]
            assert np.array_equal(frame.image, image)
            assert frame.tokens == tokens
            assert np.array_equal(frame.held.ids, held.ids)
            assert np.array_equal(frame.held.depths, held.depths)
        assert [frame.number for frame in recording[2:7:2]] == [2, 4, 6]
        assert recording[20:] == []
        with pytest.raises(IndexError, match="holds 9 frames"):
            _ = recording[9]
    tokenizer.decode(in_turn[0][1])  # the caller's model stays open


def test_a_file_of_pictures(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokens = [tokenizer.encode(picture, index=number) for number, picture in enumerate(PICTURES[:3])]
    with Writer(tmp_path / "pictures.ttk", tokenizer.entropy_model, name=tokenizer.name) as writer:
        for one in tokens:
            writer.write(one)
    with tatok_edge.open(tmp_path / "pictures.ttk", tokenizer=tokenizer) as recording:
        assert [frame.tokens for frame in recording] == tokens
        assert np.array_equal(recording[1].image, tokenizer.decode(tokens[1]))


def test_what_is_no_recording(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video at all, but long enough")
    with pytest.raises(tatok_edge.FormatError, match="open_source opens pictures and videos"):
        tatok_edge.open(tmp_path / "a.mp4")
    with pytest.raises(tatok_edge.SourceError, match="No such file"):
        tatok_edge.open(tmp_path / "none.ttk")
    with pytest.raises(tatok_edge.InputError, match="topic is for bags"):
        tatok_edge.open(tmp_path / "a.ttk", topic="/camera")
    with Writer(tmp_path / "path.ttk", tokenizer.entropy_model, name=str(tmp_path)) as writer:
        writer.write(tokenizer.encode(PICTURES[0]))
    with pytest.raises(tatok_edge.BundleError, match="does not ship"):
        tatok_edge.open(tmp_path / "path.ttk")
    with tatok_edge.open(tmp_path / "path.ttk", tokenizer=tokenizer) as recording:
        assert recording[0].image.shape == (64, 96, 3)


def test_a_damaged_frame_costs_no_other(stream: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = bytearray(stream.read_bytes())
    with tatok_edge.Reader(stream) as reader:
        data[reader.offset(5) + 20] ^= 1
    (tmp_path / "bad.ttk").write_bytes(data)
    with tatok_edge.open(tmp_path / "bad.ttk", tokenizer=tokenizer) as recording:
        with pytest.raises(tatok_edge.FormatError, match="frame 5"):
            _ = recording[5]
        with pytest.raises(tatok_edge.FormatError, match="frame 6"):
            _ = recording[6].image
        assert recording[4].image.shape == recording[8].image.shape == (64, 96, 3)
