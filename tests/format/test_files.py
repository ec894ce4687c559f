"""``.ttk`` files: write, read, jump."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.example_frames import (
    LEVELS,
    TAG,
    StaticModel,
    golden_frames,
    make_delta,
    make_frame,
)
from helpers.packets import (
    MODEL,
    OTHER_TAG,
    make_delta_packet,
    write_file,
)
from helpers.paths import ROOT

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import peek
from tatok_edge.format.packet import pack, pack_delta, unpack, unpack_delta
from tatok_edge.format.reader import Reader
from tatok_edge.format.writer import Writer
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens


def test_a_file_gives_back_its_frames(clip: Path, frames: list[TokenFrame]) -> None:
    with Reader(clip, MODEL) as reader:
        assert len(reader) == 12
        assert list(reader) == frames
        assert (reader.name, reader.tag, reader.levels, reader.depth, reader.fps) == ("static", TAG, LEVELS, 2, 30)
        assert reader.metadata == {"camera": 2}
        assert reader.complete
        assert reader.damage is None
        assert "12 frames, model static 0123456789abcdef, complete" in repr(reader)
    assert os.listdir(clip.parent) == ["clip.ttk"]


def test_frames_are_reached_in_any_order(clip: Path, frames: list[TokenFrame]) -> None:
    with Reader(clip, MODEL) as reader:
        assert reader[7] == frames[7]
        assert reader[0] == frames[0]
        assert reader[-1] == frames[-1]
        assert reader[np.int64(3)] == frames[3]
        assert list(reader.frames(4, 6)) == frames[4:6]
        assert list(reader.frames(-2)) == frames[-2:]
        assert reader.is_key(2)
        for number in (12, -13):
            with pytest.raises(IndexError, match=rf"frame {number} is not in .*clip\.ttk: it holds 12 frames"):
                reader[number]
        with pytest.raises(TypeError):
            reader["3"]  # type: ignore[index]


def test_headers_and_packets_need_no_model(clip: Path, frames: list[TokenFrame]) -> None:
    with Reader(clip) as reader:
        assert [reader.info(i).n_tokens for i in range(12)] == [7 * i for i in range(12)]
        assert unpack(reader.packet(3), MODEL) == frames[3]
        assert clip.read_bytes()[reader.offset(3) :].startswith(reader.packet(3))
        with pytest.raises(InputError, match="opened without a model"):
            reader[0]


def test_frames_of_any_size_and_an_empty_file(tmp_path: Path) -> None:
    mixed = golden_frames()
    with Reader(write_file(tmp_path / "mixed.ttk", mixed), MODEL) as reader:
        assert list(reader) == mixed
        assert reader.fps is None
        assert reader.metadata == {}
    with Reader(write_file(tmp_path / "empty.ttk", []), MODEL) as reader:
        assert len(reader) == 0
        assert list(reader) == []
        assert reader.complete


def read_stream(reader: Reader, number: int) -> HeldTokens:
    """The tokens after packet ``number``, from the key packet ahead of it on."""
    held: HeldTokens | None = None
    for packet in reader.packets(reader.keyframe_before(number), number + 1):
        if peek(packet).kind == "key":
            held = HeldTokens.of_frame(unpack(packet, MODEL), 2)
        else:
            assert held is not None
            held = held.updated(unpack_delta(packet, MODEL, held))
    assert held is not None
    return held


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Twelve packets of a stream; 0, 5 and 6 are key packets."""
    path = tmp_path / "stream.ttk"
    state: TokenFrame | DeltaFrame = make_frame(100, 70, 60)
    held = HeldTokens.of_frame(make_frame(100, 70, 60), 2)
    with Writer(path, MODEL, name="static", fps=25) as writer:
        for number in range(12):
            if number in (0, 5, 6):
                state = make_frame(100, 70, 60, number, index=number)
                held = HeldTokens.of_frame(state, 2)
                writer.write(state)
            else:
                state = make_delta(held, state, 10 * number, 5 * number, number, number, refined=0.5)
                writer.write_packet(pack_delta(state, MODEL, held, embed_model=number % 2 == 0))
                held = held.updated(state)
    return path


def test_a_stream_is_decoded_from_the_key_packet_ahead_of_any_frame(stream: Path) -> None:
    with Reader(stream, MODEL) as reader:
        assert [reader.keyframe_before(number) for number in range(12)] == [0] * 5 + [5] + [6] * 6
        assert reader.keyframe_before(-1) == 6
        assert reader.complete
        packets = list(reader.packets())
        assert packets == [reader.packet(number) for number in range(12)]
        assert list(reader.packets(3, 5)) == packets[3:5]
        assert [peek(packet).kind for packet in reader.packets(4, 7)] == ["delta", "key", "key"]
        for number in range(12):
            held = read_stream(reader, number)
            if reader.is_key(number):
                whole = HeldTokens.of_frame(reader[number], 2)
                assert np.array_equal(held.ids, whole.ids)
                assert np.array_equal(held.global_ids, whole.global_ids)
            else:
                assert reader.info(number).reference == number - 1
                with pytest.raises(FormatError, match=rf"frame {number} at byte .* needs a stream decoder"):
                    reader[number]
        assert [frame.index for frame in reader.frames(on_error="skip")] == [0, 5, 6]
        for number in (12, -13):
            with pytest.raises(IndexError, match="it holds 12 frames"):
                reader.keyframe_before(number)
    with Reader(stream) as reader:  # raw packets need no model
        assert list(reader.packets()) == packets


def test_a_damaged_stream_is_told_and_its_other_packets_are_given(stream: Path) -> None:
    data = bytearray(stream.read_bytes())
    with Reader(stream) as reader:
        packets = list(reader.packets())
        offsets = {number: reader.offset(number) for number in (2, 6)}
    for offset in offsets.values():
        data[offset + 12] ^= 4
    for damaged in (data, data[:-20]):  # with and without the index
        stream.write_bytes(damaged)
        with Reader(stream, MODEL) as reader:
            with pytest.raises(FormatError, match=rf"frame 2 at byte {offsets[2]}: packet is damaged: its CRC"):
                list(reader.packets())
            good = list(reader.packets(on_error="skip"))
            assert good == [packet for number, packet in enumerate(packets) if number not in offsets]
            assert len(reader.problems) == 2
            with pytest.raises(InputError, match="on_error must be"):
                next(reader.packets(on_error="ignore"))  # type: ignore[arg-type]
            # Without the index, nobody knows what a damaged packet was.
            assert reader.keyframe_before(7) == (6 if reader.complete else 5)


def test_a_stream_without_its_key_packet_is_told(tmp_path: Path) -> None:
    path = tmp_path / "tail.ttk"
    key = make_frame(100, 70, 60, index=40)
    held = HeldTokens.of_frame(key, 2)
    with Writer(path, MODEL, name="static") as writer:
        delta = make_delta(held, key, 5, 5, 1)
        writer.write_packet(pack_delta(delta, MODEL, held))
        with pytest.raises(InputError, match="must be a TokenFrame, got DeltaFrame"):
            writer.write(delta)  # type: ignore[arg-type]
    with Reader(path, MODEL) as reader:
        assert len(reader) == 1
        with pytest.raises(FormatError, match=r"tail\.ttk: frame 0 cannot be decoded: no key packet is at"):
            reader.keyframe_before(0)


def test_packets_are_copied_without_a_model_in_between(clip: Path, tmp_path: Path, frames: list[TokenFrame]) -> None:
    with Reader(clip, MODEL) as reader, Writer(tmp_path / "cut.ttk", MODEL, name="static") as writer:
        for number in (3, 4):
            writer.write_packet(reader.packet(number))
        writer.write_packet(pack(frames[5], MODEL))
        writer.write_packet(make_delta_packet(3, 40, 12, 2, body=b"body"))
        with pytest.raises(FormatError, match="packet was made by model"):
            writer.write_packet(pack(make_frame(64, 64, 3, tag=OTHER_TAG), StaticModel(OTHER_TAG)))
        with pytest.raises(FormatError, match="cut off"):
            writer.write_packet(reader.packet(3)[:-1])
    with Reader(tmp_path / "cut.ttk", MODEL) as reader:
        assert list(reader.frames(0, 3)) == frames[3:6]
        assert [reader.is_key(i) for i in range(4)] == [True, True, True, False]
        with pytest.raises(FormatError, match=r"frame 3 at byte \d+: .* needs a stream decoder"):
            reader[3]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [
        (None, None),
        (25, Fraction(25)),
        (29.97002997, Fraction(30000, 1001)),
        (29.97, Fraction(2997, 100)),
        (0.5, Fraction(1, 2)),
        (Fraction(90000, 3003), Fraction(30000, 1001)),
    ],
)
def test_frame_rates_come_back(tmp_path: Path, fps: Any, expected: Fraction | None) -> None:
    with Reader(write_file(tmp_path / "a.ttk", [], fps=fps)) as reader:
        assert reader.fps == expected


def test_an_existing_file_stays_until_the_new_one_is_whole(clip: Path, frames: list[TokenFrame]) -> None:
    before = clip.read_bytes()

    def record() -> None:
        with Writer(clip, MODEL, name="static") as writer:
            writer.write(frames[0])
            assert clip.read_bytes() == before
            raise RuntimeError("camera was unplugged")

    with pytest.raises(RuntimeError, match="camera"):
        record()
    assert clip.read_bytes() == before
    assert os.listdir(clip.parent) == ["clip.ttk"]
    write_file(clip, frames[:2])
    with Reader(clip, MODEL) as reader:
        assert list(reader) == frames[:2]


def test_an_interrupted_recording_is_kept_when_asked(tmp_path: Path, frames: list[TokenFrame]) -> None:
    path = tmp_path / "long.ttk"

    def record() -> None:
        with Writer(path, MODEL, name="static") as writer:
            try:
                for frame in frames[:5]:
                    writer.write(frame)
                raise KeyboardInterrupt
            except KeyboardInterrupt:
                writer.close(partial=True)
                raise

    with pytest.raises(KeyboardInterrupt):
        record()
    with Reader(path, MODEL) as reader:
        assert reader.complete
        assert list(reader) == frames[:5]
    assert os.listdir(tmp_path) == ["long.ttk"]


def test_interrupted_ahead_of_the_first_frame_leaves_the_output_alone(clip: Path) -> None:
    before = clip.read_bytes()
    Writer(clip, MODEL, name="static").close(partial=True)
    assert clip.read_bytes() == before
    assert os.listdir(clip.parent) == ["clip.ttk"]


KILLED = """
import os, sys
from pathlib import Path
from helpers.example_frames import StaticModel, make_frame
from tatok_edge.format.writer import Writer
writer = Writer(Path(sys.argv[1]), StaticModel(), name="static")
for i in range(3):
    writer.write(make_frame(64, 64, 10, i, index=i))
os._exit(9)
"""


def test_a_killed_process_leaves_a_readable_file(tmp_path: Path) -> None:
    path = tmp_path / "killed.ttk"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    for count in (1, 2):  # what the first one left is not overwritten by the second
        result = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=tmp_path, env=environment, check=False)
        assert result.returncode == 9
        assert len(os.listdir(tmp_path)) == count
    for name in ("killed.ttk.part", "killed.ttk.part1"):
        with Reader(tmp_path / name, MODEL) as reader:
            assert list(reader) == [make_frame(64, 64, 10, i, index=i) for i in range(3)]
            assert not reader.complete
            assert re.search("ends without an index at byte .*; 3 whole frames were found", reader.damage or "")
