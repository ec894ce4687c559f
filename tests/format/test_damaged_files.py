"""``.ttk`` files: bad input, full disks, damage."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.example_frames import (
    TAG,
    StaticModel,
    UniformModel,
    make_frame,
)
from helpers.packets import (
    MODEL,
    OTHER_TAG,
    write_file,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.format import layout
from tatok_edge.format import writer as writer_module
from tatok_edge.format.packet import pack
from tatok_edge.format.reader import Reader
from tatok_edge.format.varint import varint
from tatok_edge.format.writer import Writer
from tatok_edge.tokens.frame import TokenFrame


def test_a_file_cut_off_anywhere_is_read_to_its_last_whole_packet(tmp_path: Path) -> None:
    frames = [make_frame(64, 64, 5 * i, i, index=i) for i in range(5)]
    path = write_file(tmp_path / "cut.ttk", frames)
    data = path.read_bytes()
    with Reader(path, MODEL) as reader:
        ends = [reader.offset(i) + reader.info(i).size for i in range(5)]
        start = reader.offset(0)
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if length < start:
            with pytest.raises(FormatError, match=r"cut off in its header|not a \.ttk file"):
                Reader(path, MODEL)
            continue
        with Reader(path, MODEL) as reader:
            whole = sum(end <= length for end in ends)
            assert len(reader) == whole
            assert not reader.complete
            assert f"; {whole} whole frames were found" in (reader.damage or "")
            if whole:
                assert reader[whole - 1] == frames[whole - 1]


def test_a_damaged_packet_is_named_and_can_be_skipped(clip: Path, frames: list[TokenFrame]) -> None:
    data = bytearray(clip.read_bytes())
    with Reader(clip) as reader:
        offset = reader.offset(6)
    data[offset + 20] ^= 4
    for damaged in (data, data[:-30]):  # with and without the index
        clip.write_bytes(damaged)
        with Reader(clip, MODEL) as reader:
            assert reader[5] == frames[5]
            assert reader[7] == frames[7]
            for call in (lambda r: r[6], lambda r: r.info(6), lambda r: r.packet(6), list):
                with pytest.raises(
                    FormatError, match=rf"clip\.ttk: frame 6 at byte {offset}: packet is damaged: its CRC"
                ):
                    call(reader)
            good = list(reader.frames(on_error="skip"))
            assert good == [frame for frame in frames[: len(reader)] if frame.index != 6]
            assert len(reader.problems) == 1
            assert f"frame 6 at byte {offset}" in reader.problems[0]
    with Reader(clip, MODEL) as reader, pytest.raises(InputError, match="on_error must be"):
        next(reader.frames(on_error="ignore"))  # type: ignore[arg-type]


def test_a_tail_of_zeros_or_garbage_is_left_out(clip: Path, frames: list[TokenFrame]) -> None:
    data = clip.read_bytes()
    with Reader(clip) as reader:
        offset, end = reader.offset(9), reader.offset(10)
    garbage = np.random.default_rng(0).bytes(600)
    for tail in (b"\0" * 600, garbage, data[offset : offset + 30] + b"\0" * (end - offset - 30)):
        clip.write_bytes(data[:offset] + tail)
        with Reader(clip, MODEL) as reader:
            assert list(reader) == frames[:9]
            assert not reader.complete


def test_every_flipped_bit_of_a_file_is_survived(tmp_path: Path) -> None:
    model = UniformModel()
    frames = [make_frame(32, 32, 4, i, index=i) for i in range(3)]
    path = write_file(tmp_path / "a.ttk", frames, model, metadata={"a": 1})
    data = path.read_bytes()
    with Reader(path) as reader:
        start = reader.offset(0)
    told: dict[int, str] = {}
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            with Reader(path, model) as reader:
                read = list(reader.frames(on_error="skip"))
                assert read != frames or not reader.complete
                assert all(frame in frames for frame in read)
        except FormatError as error:
            told[bit // 8] = str(error)
    assert max(told) < start  # what cannot be opened at all has a damaged header
    assert all("a.ttk" in text and "\n" not in text for text in told.values())


def test_a_file_of_another_model_names_both(clip: Path) -> None:
    with pytest.raises(FormatError, match=f"made by model static \\({TAG.hex()}\\), not by .*\\({OTHER_TAG.hex()}\\)"):
        Reader(clip, StaticModel(OTHER_TAG))


def file_header(payload: bytes, version: int = 1, length: int | None = None) -> bytes:
    head = struct.pack("<8sBI", layout.MAGIC, version, len(payload) if length is None else length) + payload
    return head + zlib.crc32(head).to_bytes(4, "little")


def header_payload(
    name: bytes = b"m", levels: bytes = b"\x01\x08", depth: int = 1, rate: bytes = b"\0\x01", meta: bytes = b"{}"
) -> bytes:
    return TAG + varint(len(name)) + name + levels + varint(depth) + rate + varint(len(meta)) + meta


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a .ttk file: it begins with nothing"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "is not a .ttk file: it begins with 89 50 4e 47"),
        (layout.MAGIC.replace(b"\r\n", b"\n") + b"\0" * 30, "is not a .ttk file"),
        (layout.MAGIC, "cut off in its header, after 8 bytes"),
        (file_header(header_payload(), version=9), "format version 9, this release reads up to 1; update tatok-edge"),
        (
            file_header(header_payload(), length=2**32 - 1),
            "its header says 4294967295 bytes, at most 131072 are allowed",
        ),
        (file_header(header_payload())[:-1] + b"?", "the CRC of its header is wrong"),
        (file_header(b""), "damaged header: .*cut off"),
        (file_header(header_payload(name=b"")), "length of the model name must be from 1 to 255, got 0"),
        (file_header(header_payload(name=b"\xff\xff")), "the model name is not UTF-8"),
        (file_header(header_payload(name=b"a\x1b[31m")), "the model name holds control characters"),
        (file_header(header_payload(levels=b"\0")), "number of levels must be from 1 to 16, got 0"),
        (file_header(header_payload(levels=b"\x01\x01")), "level must be from 2 to 4096, got 1"),
        (file_header(header_payload(depth=0)), "depth must be from 1 to 8, got 0"),
        (file_header(header_payload(depth=9)), "depth must be from 1 to 8, got 9"),
        (file_header(header_payload(rate=b"\x05\x00")), "frame rate must be from 1 to 4294967295, got 0"),
        (file_header(header_payload(meta=b"[]")), "its metadata must be a JSON object, got list"),
        (file_header(header_payload(meta=b"{nope")), "its metadata is no JSON"),
        (file_header(header_payload(meta=b'{"a":NaN}')), "its metadata is no JSON: NaN is not JSON"),
        (file_header(header_payload(meta=b"[" * 60_000)), "its metadata is no JSON"),
        (file_header(header_payload(meta=b" " * 70_000)), "length of the metadata must be from 2 to 65536, got 70000"),
        (file_header(header_payload()[:-1]), "it ends inside the metadata"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "bad.ttk"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as caught:
        Reader(path, MODEL)
    assert "bad.ttk" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fields_that_a_later_release_adds_to_the_header_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "later.ttk"
    path.write_bytes(file_header(header_payload() + b"more fields"))
    with Reader(path) as reader:
        assert (reader.name, reader.levels, len(reader)) == ("m", (8,), 0)


def index_of(clip: bytes) -> int:
    return struct.unpack("<QI4s", clip[-16:])[0]


def rebuilt(clip: bytes, block: bytes, where: int | None = None) -> bytes:
    """The file with another index, whose CRC is right."""
    start = index_of(clip)
    place = (start if where is None else where).to_bytes(8, "little")
    crc = zlib.crc32(place, zlib.crc32(block))
    return clip[:start] + block + place + crc.to_bytes(4, "little") + b"TTKE"


@pytest.mark.parametrize(
    "change",
    [
        lambda clip: rebuilt(clip, b""),
        lambda clip: rebuilt(clip, b"\xae"),
        lambda clip: rebuilt(clip, b"\xae\x00"),
        lambda clip: rebuilt(clip, b"\xae" + varint(2**40)),
        lambda clip: rebuilt(clip, b"\xae" + varint(12) + varint(25) * 11),
        lambda clip: rebuilt(clip, b"\xae" + varint(12) + varint(25) * 12),
        lambda clip: rebuilt(clip, b"\xae" + varint(1) + varint(2**60)),
        lambda clip: rebuilt(clip, b"\xae" + varint(1) + varint(1)),
        lambda clip: rebuilt(clip, b"\xae" + b"\xff" * 50_000),
        lambda clip: rebuilt(clip, clip[index_of(clip) : -16], where=2**64 - 1),
        lambda clip: rebuilt(clip, clip[index_of(clip) : -16], where=0),
        lambda clip: rebuilt(clip, clip[index_of(clip) : -16] + b"\0"),
        lambda clip: clip[:-16] + b"\0" * 16,
        lambda clip: clip + b"appended",
    ],
)
def test_a_bad_index_is_replaced_by_scanning(
    clip: Path, frames: list[TokenFrame], change: Callable[[bytes], bytes]
) -> None:
    clip.write_bytes(change(clip.read_bytes()))
    with Reader(clip, MODEL) as reader:
        assert list(reader) == frames
        assert not reader.complete
        assert "; 12 whole frames were found" in (reader.damage or "")


@settings(max_examples=60)
@given(st.data())
def test_any_damage_gives_frames_or_one_line(tmp_path_factory: pytest.TempPathFactory, draw: st.DataObject) -> None:
    frames = [make_frame(32, 32, 4, i, index=i) for i in range(4)]
    path = write_file(tmp_path_factory.getbasetemp() / "any.ttk", frames)
    data = bytearray(path.read_bytes())
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, len(data) - 1))
        operation = draw.draw(st.sampled_from(["change", "insert", "remove"]))
        if operation == "remove":
            del data[at : at + draw.draw(st.integers(1, 20))]
        else:
            piece = draw.draw(st.binary(min_size=1, max_size=20))
            data[at : at + (len(piece) if operation == "change" else 0)] = piece
        if not data:
            break
    path.write_bytes(data)
    try:
        reader = Reader(path, MODEL)
    except FormatError:
        return
    with reader:
        assert all(frame in frames for frame in reader.frames(on_error="skip"))
        assert all("\n" not in problem for problem in reader.problems)
        assert all(reader.offset(number) < len(data) for number in range(len(reader)))


def test_what_cannot_be_opened_or_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot open .*none\.ttk: No such file"):
        Reader(tmp_path / "none.ttk", MODEL)
    with pytest.raises(SourceError, match=r"cannot open .*: is a folder, not a file"):
        Reader(tmp_path, MODEL)
    with pytest.raises(SourceError, match=r"cannot make .*: No such file"):
        Writer(tmp_path / "no" / "a.ttk", MODEL, name="static")
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        Writer(tmp_path, MODEL, name="static")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name must be 1 to 255 bytes of printable text, got ''"),
        ({"name": "x" * 256}, "name must be 1 to 255 bytes"),
        ({"name": "a\nb"}, "name must be 1 to 255 bytes"),
        ({"name": "m", "fps": 0}, "fps must be a positive number"),
        ({"name": "m", "fps": float("nan")}, "fps must be a positive number or None, got nan"),
        ({"name": "m", "fps": float("inf")}, "fps must be a positive number or None, got inf"),
        ({"name": "m", "fps": 1e12}, "fps must be a positive number that fits"),
        ({"name": "m", "metadata": {"a": b"bytes"}}, "metadata must be JSON-compatible"),
        ({"name": "m", "metadata": {"a": float("nan")}}, "metadata must be JSON-compatible"),
        ({"name": "m", "metadata": {"a": "x" * 65_536}}, "metadata must be at most 65536 bytes as JSON, got 65544"),
    ],
)
def test_what_a_writer_does_not_take(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Writer(tmp_path / "a.ttk", MODEL, **options)
    assert os.listdir(tmp_path) == []


class FullDisk(io.FileIO):
    """Takes ``room`` bytes, half of what comes after them, and then nothing."""

    room = 0

    def write(self, data: Any) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        size = min(len(data), self.room)
        self.room -= size
        return super().write(bytes(data[:size]))


def test_a_full_disk_keeps_the_frames_before_it(
    clip: Path, frames: list[TokenFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = clip.read_bytes()
    monkeypatch.setattr(writer_module.io, "FileIO", FullDisk)
    with Reader(clip) as reader:
        room = reader.offset(4) + 10
    monkeypatch.setattr(FullDisk, "room", room)
    writer = Writer(clip, MODEL, name="static", fps=30, metadata={"camera": 2})
    for frame in frames[:4]:
        writer.write(frame)
    for _ in range(2):
        with pytest.raises(SourceError, match=r"cannot write .*"):
            writer.write(frames[4])
    with pytest.raises(SourceError, match=r"close\(partial=True\) keeps the 4 frames before it"):
        writer.close()
    with Reader(writer.temporary, MODEL) as reader:
        assert list(reader) == frames[:4]
    assert clip.read_bytes() == before
    writer._file.room = 1000  # type: ignore[attr-defined]
    writer.close(partial=True)
    with Reader(clip, MODEL) as reader:
        assert list(reader) == frames[:4]
        assert reader.complete


def test_a_disk_that_is_full_at_the_index_keeps_the_temporary_file(
    clip: Path, frames: list[TokenFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = clip.read_bytes()
    monkeypatch.setattr(writer_module.io, "FileIO", FullDisk)
    monkeypatch.setattr(FullDisk, "room", index_of(before) + 3)
    with pytest.raises(SourceError, match=r"cannot complete .*clip\.ttk: No space left.*; its frames are in .*\.part"):
        write_file(clip, frames, fps=30, metadata={"camera": 2})
    assert clip.read_bytes() == before
    with Reader(f"{clip}.part", MODEL) as reader:
        assert list(reader) == frames


def test_closed_files_are_told(clip: Path, tmp_path: Path, frames: list[TokenFrame]) -> None:
    reader = Reader(clip, MODEL)
    reader.close()
    reader.close()
    with pytest.raises(InputError, match="is closed"):
        reader[0]
    writer = Writer(tmp_path / "b.ttk", MODEL, name="static")
    assert writer.write(frames[0]) == len(pack(frames[0], MODEL, embed_model=False))
    assert len(writer) == 1
    assert "1 frames" in repr(writer)
    writer.close()
    writer.close()
    writer.abort()
    assert writer.n_bytes < (tmp_path / "b.ttk").stat().st_size
    with pytest.raises(InputError, match="is closed"):
        writer.write(frames[0])
