"""Golden files and the worked example of docs/format.md: written bytes never change."""

from __future__ import annotations

import os
import re
from fractions import Fraction
from pathlib import Path

from helpers import coder_reference as plain
from helpers.example_frames import (
    GOLDEN,
    TAG,
    UniformModel,
    example_delta,
    example_frame,
    golden_frames,
    golden_stream,
    write_golden,
)
from helpers.packets import (
    MODEL,
    PAGE,
    as_dict,
    delta_as_dict,
    held_as_plain,
    models_of,
)

from tatok_edge.errors import FormatError, TaTokError
from tatok_edge.format.packet import pack, pack_delta, unpack_delta
from tatok_edge.format.reader import Reader
from tatok_edge.tokens.held import HeldTokens


def test_golden_files_are_written_and_read_as_ever(tmp_path: Path) -> None:
    write_golden(tmp_path)
    names = sorted(os.listdir(GOLDEN))
    assert names == sorted(os.listdir(tmp_path)) == ["example.ttk", "frames.ttk", "stream.ttk"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name
    with Reader(GOLDEN / "frames.ttk", MODEL) as reader:
        assert list(reader) == golden_frames()
        assert reader.metadata == {"camera": "Tür 2", "gain": 1.5}
        assert reader.fps == Fraction(30000, 1001)
        assert reader.depth == 2
    with Reader(GOLDEN / "example.ttk", UniformModel()) as reader:
        assert list(reader) == [example_frame()]


def test_the_golden_stream_is_read_as_ever_and_equals_the_reference() -> None:
    key, deltas = golden_stream()
    with Reader(GOLDEN / "stream.ttk", MODEL) as reader:
        assert len(reader) == 1 + len(deltas)
        assert reader[0] == key
        for packet, (delta, held) in zip(reader.packets(1), deltas, strict=True):
            assert unpack_delta(packet, MODEL, held) == delta
            plain_held = held_as_plain(held)
            expected, _ = plain.pack_delta(delta_as_dict(delta), plain_held, models_of(MODEL), tag=None, gaps=None)
            assert packet == expected
            assert plain.unpack_delta(packet, plain_held, models_of(MODEL)) == delta_as_dict(delta)


def page_block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, kind
    return found[1]


def page_bytes(kind: str) -> bytes:
    """The hex columns of a block: what stands ahead of two spaces."""
    return bytes.fromhex("".join(line.split("  ")[0] for line in page_block(kind).splitlines()))


def test_the_worked_example_of_the_page_is_what_the_code_writes() -> None:
    assert page_bytes("hex packet") == pack(example_frame(), UniformModel())
    held = HeldTokens.of_frame(example_frame(), 2)
    assert page_bytes("hex delta") == pack_delta(example_delta(), UniformModel(), held, embed_model=False)
    assert unpack_delta(page_bytes("hex delta"), UniformModel(), held) == example_delta()
    assert page_bytes("hex file") == (GOLDEN / "example.ttk").read_bytes()


def test_the_steps_of_the_page_are_those_of_the_reference() -> None:
    models = models_of(UniformModel())
    packet, coder = plain.pack(as_dict(example_frame()), models, tag=TAG, gaps=None)
    assert packet == page_bytes("hex packet")
    check_steps(page_block("steps"), coder)
    held = held_as_plain(HeldTokens.of_frame(example_frame(), 2))
    packet, coder = plain.pack_delta(delta_as_dict(example_delta()), held, models, tag=None, gaps=None)
    assert packet == page_bytes("hex delta")
    check_steps(page_block("delta steps"), coder)


def check_steps(block: str, coder: plain.Encoder) -> None:
    """The lines of the page against what the reference coded."""
    replay = plain.Encoder()
    lines = block.splitlines()[1:]
    assert len(lines) == len(coder.steps)
    for number, (line, (start, frequency)) in enumerate(zip(lines, coder.steps, strict=True)):
        replay.encode(start, frequency)
        state = replay.low.to_bytes(replay.shifts + 4, "big").hex()
        numbers = [int(line[:2]), *map(int, line[34:54].split())]
        assert numbers == [number, start, frequency]
        assert line[54:].split() == [*([state[:-8]] if replay.shifts else []), state[-8:], f"{replay.range:08x}"]


def test_errors_are_the_projects_own() -> None:
    assert issubclass(FormatError, TaTokError)
    assert issubclass(FormatError, ValueError)
