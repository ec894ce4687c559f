"""Packets and ``.ttk`` files: write, read, jump, survive damage; the bytes are those of docs/format.md."""

from __future__ import annotations

import errno
import io
import os
import re
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import coder_reference as plain
from helpers.format_helpers import (
    GOLDEN,
    LEVELS,
    TAG,
    StaticModel,
    UniformModel,
    example_delta,
    example_frame,
    golden_frames,
    golden_stream,
    int32,
    make_delta,
    make_frame,
    write_golden,
)
from helpers.paths import ROOT
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, InputError, SourceError, TaTokError
from tatok_edge.format import layout
from tatok_edge.format import writer as writer_module
from tatok_edge.format.header import MAX_HEADER, PacketInfo, packet_size, peek, verify
from tatok_edge.format.packet import body_crc, pack, pack_delta, unpack, unpack_delta, unpack_delta_cells
from tatok_edge.format.reader import Reader
from tatok_edge.format.varint import read_varint, varint
from tatok_edge.format.writer import Writer
from tatok_edge.geometry import patch_grid
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

MODEL = StaticModel()
OTHER_TAG = b"other!!!"
PAGE = ROOT / "docs" / "format.md"


DELTA_ARRAYS = ("updated", "positions", "ids", "cells", "global_ids", "turns", "vectors")


def as_dict(frame: TokenFrame) -> dict[str, object]:
    return {
        "ids": frame.ids.tolist(),
        "positions": frame.positions.tolist(),
        "global_ids": frame.global_ids.tolist(),
        "width": frame.width,
        "height": frame.height,
        "index": frame.index,
        "timestamp_us": frame.timestamp_us,
    }


def delta_as_dict(delta: DeltaFrame) -> dict[str, object]:
    arrays = {name: getattr(delta, name).tolist() for name in DELTA_ARRAYS}
    numbers = {
        name: getattr(delta, name) for name in ("width", "height", "index", "reference", "follows", "timestamp_us")
    }
    return arrays | numbers | {"window": delta.window}


def write_file(path: Path, frames: list[TokenFrame], model: Any = MODEL, **options: Any) -> Path:
    with Writer(path, model, name="static", **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def with_crc(packet: bytes) -> bytes:
    """A packet whose CRC fits whatever was done to it, so that what is behind the CRC is reached."""
    return packet[:-4] + zlib.crc32(packet[:-4]).to_bytes(4, "little")


def make_packet(*fields: int, flags: int = 0, body: bytes = b"", length: int | None = None, version: int = 1) -> bytes:
    """A packet of any header fields."""
    rest = b"".join(map(varint, fields)) + body
    head = bytes([0xA9, version << 4 | flags]) + varint(len(rest) + 4 if length is None else length) + rest
    return head + zlib.crc32(head).to_bytes(4, "little")


def make_delta_packet(
    back: int,
    updated: int,
    *counts: int,
    flags: int = 0,
    body: bytes = b"",
    index: int = 9,
    side: int = 64,
    window: tuple[int, ...] = (0, 0, 2, 2),
) -> bytes:
    """A delta packet of any counts for an image of ``side`` x ``side`` pixels."""
    rest = varint(back) + b"\1\2\3\4" + b"".join(map(varint, (updated, *counts, *(window if updated else ()))))
    return make_packet(index, 0, side, side, flags=1 | flags, body=rest + body)


@pytest.fixture
def frames() -> list[TokenFrame]:
    return [make_frame(100, 70, 7 * i, i, index=i, timestamp_us=33_333 * i) for i in range(12)]


@pytest.fixture
def clip(tmp_path: Path, frames: list[TokenFrame]) -> Path:
    return write_file(tmp_path / "clip.ttk", frames, fps=30, metadata={"camera": 2})


# --- packets: what users do ---------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 5, 60, 191, 192])
@pytest.mark.parametrize("embed_model", [True, False])
def test_a_frame_comes_back(kept: int, embed_model: bool) -> None:
    frame = make_frame(100, 70, kept, index=5, timestamp_us=123_456)
    data = pack(frame, MODEL, embed_model=embed_model)
    for kind in (bytes, bytearray, memoryview):
        assert unpack(kind(data), MODEL) == frame
    info = peek(data)
    assert info == verify(data)
    assert info.model == (TAG if embed_model else None)
    assert (info.kind, info.version, info.size, info.n_tokens) == ("key", 1, len(data), kept)
    assert (info.width, info.height, info.index, info.timestamp_us) == (100, 70, 5, 123_456)
    assert (info.n_patches, info.n_globals) == (192, 12)
    assert (info.reference, info.n_updated, info.n_updated_cells, info.update_map) == (None, None, None, None)


def test_a_header_is_small() -> None:
    frame = make_frame(640, 480, 1680, index=1000, timestamp_us=33_333_333)
    info = peek(pack(frame, UniformModel(), embed_model=False))
    assert info.header_size + 4 == 20
    assert peek(pack(frame, UniformModel())).header_size + 4 == 28


def test_codes_cost_their_entropy_and_nothing_else() -> None:
    frame = make_frame(640, 480, 4800)
    info = peek(pack(frame, UniformModel()))
    ideal = (4800 + 300) * np.log2(LEVELS).sum() / 8
    assert info.size - info.header_size - 4 == pytest.approx(ideal, rel=0.001)


def test_packets_find_their_ends_in_a_stream() -> None:
    frames = [make_frame(64, 64, 10 * i, index=i) for i in range(4)]
    stream = b"".join(pack(frame, MODEL) for frame in frames)
    found, at = [], 0
    while at < len(stream):
        size = packet_size(stream[at : at + 6])
        assert peek(stream[at : at + MAX_HEADER]).size == size
        found.append(unpack(memoryview(stream)[at : at + size], MODEL))
        at += size
    assert found == frames


def test_few_tokens_are_coded_as_gaps_and_many_as_a_bitmap() -> None:
    assert peek(pack(make_frame(640, 480, 8), UniformModel())).positions == "gaps"
    assert peek(pack(make_frame(640, 480, 2000), UniformModel())).positions == "bitmap"


def test_frames_larger_than_a_part_of_the_tables_come_back() -> None:
    model = UniformModel()
    frame = make_frame(1600, 1600, 40_000)
    assert frame.n_tokens == 40_000
    assert unpack(pack(frame, model), model) == frame


def test_a_frame_of_another_model_is_not_packed() -> None:
    frame = make_frame(64, 64, 3, tag=OTHER_TAG)
    with pytest.raises(InputError, match=f"made by model {OTHER_TAG.hex()}, cannot pack it with model {TAG.hex()}"):
        pack(frame, MODEL)
    for name in ("ids", "global_ids"):
        values = as_dict(make_frame(64, 64, 3)) | {name: [64_000] * (3 if name == "ids" else 4)}
        arrays = {key: int32(values[key]) for key in ("ids", "positions", "global_ids")}
        with pytest.raises(InputError, match=r"frame does not fit model 0123456789abcdef: .*64000"):
            pack(TokenFrame(**arrays, width=64, height=64, model=TAG), MODEL)


# --- packets: properties ------------------------------------------------------------------------


@st.composite
def any_frame(draw: st.DrawFn) -> TokenFrame:
    width, height = draw(st.integers(32, 140)), draw(st.integers(32, 140))
    rows, columns = patch_grid(width, height)
    kept = draw(st.one_of(st.integers(0, 6), st.integers(0, rows * columns)))
    index = draw(st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1)))
    time = draw(st.integers(-(2**63), 2**63 - 1))
    return make_frame(
        width, height, min(kept, rows * columns), draw(st.integers(0, 999)), index=index, timestamp_us=time
    )


@given(any_frame())
def test_packets_equal_those_of_the_reference(frame: TokenFrame) -> None:
    data = pack(frame, MODEL)
    info = peek(data)
    assert info.header_size <= MAX_HEADER
    expected = [
        plain.pack(as_dict(frame), LEVELS, MODEL.global_rows, MODEL.patch_rows, tag=TAG, gaps=gaps)[0]
        for gaps in (False, True)
    ]
    assert data == expected[info.positions == "gaps"]
    assert plain.unpack(data, LEVELS, MODEL.global_rows, MODEL.patch_rows) == as_dict(frame)
    for packet in expected:  # both codings are read, whichever a writer chose
        assert unpack(packet, MODEL) == frame


@given(st.integers(0, 2**64 - 1))
@example(0)
@example(127)
@example(128)
def test_varints_come_back(value: int) -> None:
    data = varint(value)
    assert data == plain.varint(value)
    assert read_varint(b"x" + data + b"y", 1, "it", 2**64 - 1) == (value, 1 + len(data))


# --- packets: attacks ---------------------------------------------------------------------------


def test_a_packet_that_is_cut_off_anywhere_is_told() -> None:
    data = pack(make_frame(64, 64, 20), MODEL)
    for end in range(len(data)):
        for call in (lambda d: unpack(d, MODEL), verify):
            with pytest.raises(FormatError, match=r"cut off|empty"):
                call(data[:end])


def test_every_flipped_bit_is_told() -> None:
    data = pack(make_frame(64, 64, 20), MODEL)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError) as caught:
            unpack(flipped, MODEL)
        assert "\n" not in str(caught.value)


@given(st.data())
def test_damage_that_the_crc_does_not_see_gives_a_frame_or_an_error(draw: st.DataObject) -> None:
    data = bytearray(pack(make_frame(64, 64, draw.draw(st.integers(0, 64))), MODEL))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(3, len(data) - 5))] = draw.draw(st.integers(0, 255))
    packet = with_crc(bytes(data))
    try:
        frame = unpack(packet, MODEL)
    except FormatError:
        return
    assert isinstance(frame, TokenFrame)


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda tail: b"\xa9\x12" + tail)))
def test_any_bytes_are_told(data: bytes) -> None:
    for call in (lambda d: unpack(d, MODEL), verify):
        with pytest.raises(FormatError):
            call(data)
    try:
        info = peek(data)
    except FormatError:
        return
    assert isinstance(info, PacketInfo)


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"PNG" * 9, "no packet begins here: the first byte must be 0xa9, got 0x50"),
        (make_packet(0, 0, 64, 64, 0, version=3), "format version 3, this release reads up to 2; update tatok-edge"),
        (make_packet(0, 0, 64, 64, 0, version=2), "a key packet has no motion, but its version is 2"),
        (make_packet(0, 0, 64, 64, 0, version=0), "its format version is 0"),
        (make_packet(0, 0, 31, 64, 0), "width must be from 32 to 16384, got 31"),
        (make_packet(0, 0, 16385, 64, 0), "width must be from 32 to 16384, got 16385"),
        (make_packet(0, 0, 64, 1 << 60, 0), "height must be from 32 to 16384, got 1152921504606846976"),
        (make_packet(0, 0, 64, 64, 65), "number of tokens must be from 0 to 64, got 65"),
        (make_packet(1 << 63, 0, 64, 64, 0), "index must be from 0 to 9223372036854775807"),
        (make_packet(0, 1 << 64, 64, 64, 0), "timestamp must be from 0 to 18446744073709551615"),
        (make_packet(0, 0, 64, 64, 0, flags=12), "its flags name two codings of the positions"),
        (make_packet(0, 0, 64, 64, 0, length=1 << 40), "packet length must be from 0 to 67108864"),
        (
            make_packet(0, 0, 64, 64, 0, length=(64 << 20) - 2),
            "a packet must have 12 to 67108864 bytes, its header says",
        ),
        (make_packet(0, length=4), "a packet must have 12 to 67108864 bytes, its header says 7"),
        (bytes([0xA9, 0x10]) + b"\xff" * 30, "packet length is damaged: an integer of more than 10 bytes"),
        (
            bytes([0xA9, 0x10, 0x90, 0x00]) + b"\0" * 30,
            "packet length is damaged: an integer in more bytes than it needs",
        ),
        (make_packet(0, 0, 64, 64, 10), "the entropy-coded body is cut off"),
        (make_packet(0, 0, 64, 64, 0, body=b"\0" * 100), "does not end where its content does"),
        (make_packet(0, 0, 64, 64, flags=2, body=b"abc"), "packet is cut off in its header|header takes"),
        (pack(make_frame(64, 64, 3), MODEL) + b"\0", "packet has .* bytes, .* came; pass one packet at a time"),
        (
            pack(make_frame(64, 64, 3, tag=OTHER_TAG), StaticModel(OTHER_TAG)),
            f"by model {OTHER_TAG.hex()}, not by model",
        ),
    ],
)
def test_bad_packets_are_told(packet: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        unpack(packet, MODEL)
    assert "\n" not in str(caught.value)


def test_a_model_tag_reaching_into_the_crc_is_told() -> None:
    messages = set()
    for index in range(100):
        with pytest.raises(FormatError) as caught:
            unpack(make_packet(index, 0, 64, 64, flags=2, body=b"abcdef"), MODEL)
        messages.add(str(caught.value))
    assert any(re.search("packet is damaged: its header takes 1[67] bytes of 17", message) for message in messages)


def test_a_delta_packet_says_what_it_needs() -> None:
    packet = make_delta_packet(3, 40, 2, 12, flags=8, body=b"body", window=(0, 1, 2, 1))
    info = verify(packet)
    assert (info.kind, info.index, info.reference) == ("delta", 9, 6)
    assert (info.n_updated, info.n_updated_cells, info.n_tokens, info.update_map) == (40, 2, 12, "gaps")
    assert (info.follows, info.window) == (0x04030201, (0, 1, 2, 1))
    with pytest.raises(FormatError, match=r"frame 9 is a delta packet: it updates frame 6 .* needs a stream decoder"):
        unpack(packet, MODEL)
    for fields, message in [
        ((0, 40, 2, 12), "distance to the reference frame must be from 1 to 9, got 0"),
        ((10, 40, 2, 12), "distance to the reference frame must be from 1 to 9, got 10"),
        ((3, 65, 2, 12), "number of updated patches must be from 0 to 64, got 65"),
        ((3, 40, 5, 12), "number of updated cells must be from 0 to 4, got 5"),
        ((3, 40, 2, 41), "number of tokens must be from 0 to 40, got 41"),
    ]:
        with pytest.raises(FormatError, match=message):
            peek(make_delta_packet(*fields, body=b"body"))
    with pytest.raises(FormatError, match="distance to the reference frame must be from 1 to 0, got 1"):
        peek(make_delta_packet(1, 40, 2, 12, index=0))
    for window, message in [
        ((2, 0, 1, 1), "first row of the window must be from 0 to 1, got 2"),
        ((0, 2, 1, 1), "first column of the window must be from 0 to 1, got 2"),
        ((1, 0, 2, 1), "rows of the window must be from 1 to 1, got 2"),
        ((0, 1, 2, 0), "columns of the window must be from 1 to 1, got 0"),
    ]:
        with pytest.raises(FormatError, match=message):
            peek(make_delta_packet(3, 40, 2, 12, window=window))


def test_an_absurd_packet_costs_bounded_memory() -> None:
    patches = 2048 * 2048
    model = UniformModel()
    for packet in (
        make_packet(0, 0, 16384, 16384, patches, body=b"\x12\x34" * 10),
        make_packet(0, 0, 16384, 16384, patches // 2, body=b"\x12\x34" * 10, flags=4),
        make_packet(0, 0, 16384, 16384, patches // 64, body=b""),
    ):
        tracemalloc.start()
        with pytest.raises(FormatError, match=r"cut off|damaged"):
            unpack(packet, model)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 100 << 20


def test_tokens_that_cost_nothing_still_cost_bounded_memory() -> None:
    """Everything certain: an empty body is a whole 16384x16384 frame."""

    class Certain(UniformModel):
        def __init__(self) -> None:
            super().__init__()
            self.token[:] = 0
            self.token[:, 0] = 4096

    packet = make_packet(0, 0, 16384, 16384, 2048 * 2048)
    tracemalloc.start()
    frame = unpack(packet, Certain())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frame.n_tokens == 2048 * 2048
    assert peak < 46 * 2048 * 2048  # bytes per patch: see docs/format.md


def test_what_is_no_buffer_is_told() -> None:
    with pytest.raises(InputError, match="a packet must be contiguous bytes, got str"):
        unpack("packet", MODEL)  # type: ignore[arg-type]


# --- delta packets: what users do ---------------------------------------------------------------

KEY = make_frame(100, 70, 60, index=40)


@pytest.mark.parametrize(
    ("updated", "tokens", "cells"),
    [(0, 0, 0), (1, 0, 0), (1, 1, 1), (30, 12, 4), (2, 1, 12), (30, 30, 0), (192, 0, 12), (192, 192, 12)],
)
@pytest.mark.parametrize("embed_model", [True, False])
@pytest.mark.parametrize("vectors", [0, 1, 12])
def test_a_delta_comes_back(updated: int, tokens: int, cells: int, embed_model: bool, vectors: int) -> None:
    delta, after = make_delta(KEY, updated, tokens, cells, index=42, timestamp_us=-5, vectors=vectors)
    data = pack_delta(delta, MODEL, after, embed_model=embed_model)
    before = KEY.global_ids.copy()
    for kind in (bytes, bytearray, memoryview):
        read = unpack_delta(kind(data), MODEL, before)
        assert read == delta
        for name in DELTA_ARRAYS:
            assert getattr(read, name).dtype == np.int32
    assert before.tolist() == KEY.global_ids.tolist()  # what the caller holds is left alone
    info = peek(data)
    assert info == verify(data)
    assert info.model == (TAG if embed_model else None)
    assert (info.kind, info.size, info.n_tokens) == ("delta", len(data), tokens)
    assert (info.version, info.n_vectors) == (2 if vectors else 1, vectors)  # what has no motion is read by all
    assert (info.width, info.height, info.index, info.reference, info.timestamp_us) == (100, 70, 42, 40, -5)
    assert (info.n_patches, info.n_updated, info.n_updated_cells) == (192, updated, cells)
    assert (info.follows, info.window) == (delta.follows, delta.window)
    changed, ids = unpack_delta_cells(data, MODEL)  # needs nothing but the packet
    assert (changed.tolist(), ids.tolist()) == (delta.cells.tolist(), delta.global_ids.tolist())


def test_a_frame_in_which_nothing_changed_takes_next_to_nothing() -> None:
    key = make_frame(640, 480, 100, index=29)
    delta, after = make_delta(key, 0, 0, 0, timestamp_us=1_000_000)
    data = pack_delta(delta, MODEL, after, embed_model=False)
    assert len(data) <= 22
    assert peek(data).header_size + 4 == len(data)
    assert unpack_delta(data, MODEL, key.global_ids) == delta


def test_what_stays_costs_nothing() -> None:
    """One moved object: its patches, tokens and cells are paid for, the still rest is not."""
    model, key = UniformModel(), make_frame(640, 480, 2000)
    rows, columns = np.mgrid[20:28, 40:48]
    updated = (rows * 80 + columns).ravel().astype(np.int32)
    delta = DeltaFrame(
        updated=updated,
        positions=updated[::2].copy(),
        ids=int32(range(32)),
        cells=int32([110]),
        global_ids=int32([5]),
        window=(3, 8, 6, 6),
        width=640,
        height=480,
        model=TAG,
        index=1,
        reference=0,
        follows=0,
    )
    after = key.global_ids.copy()
    after[110] = 5
    data = pack_delta(delta, model, after)
    codes = 33 * np.log2(LEVELS).sum() / 8
    maps = peek(data).size - peek(data).header_size - 4 - codes
    assert maps < 40  # 600 uncoded for the update map alone
    assert unpack_delta(data, model, key.global_ids) == delta


def test_a_map_of_updates_is_coded_as_gaps_or_as_a_bitmap() -> None:
    key = make_frame(640, 480, 0)
    for updated, tokens, expected in (
        (8, 4, ("gaps", "bitmap")),
        (1000, 400, ("bitmap", "bitmap")),
        (1000, 2, ("bitmap", "gaps")),
        (140, 2, ("gaps", "gaps")),
    ):
        delta, after = make_delta(key, updated, tokens, 0)
        info = peek(pack_delta(delta, UniformModel(), after))
        assert (info.update_map, info.positions) == expected


def test_deltas_larger_than_a_part_of_the_tables_come_back() -> None:
    model, key = UniformModel(), make_frame(1600, 1600, 0)
    delta, after = make_delta(key, 39_000, 35_000, 2000)
    assert unpack_delta(pack_delta(delta, model, after), model, key.global_ids) == delta


def test_key_and_delta_packets_are_not_taken_for_each_other() -> None:
    delta, after = make_delta(KEY, 5, 5, 1)
    for call in (lambda data: unpack_delta(data, MODEL, after), lambda data: unpack_delta_cells(data, MODEL)):
        with pytest.raises(FormatError, match="frame 40 is a key packet: it stands alone and is read by unpack"):
            call(pack(KEY, MODEL))
    with pytest.raises(FormatError, match="frame 41 is a delta packet: it updates frame 40 of its stream"):
        unpack(pack_delta(delta, MODEL, after), MODEL)
    with pytest.raises(InputError, match="must be a TokenFrame, got DeltaFrame; pack_delta packs"):
        pack(delta, MODEL)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a DeltaFrame, got TokenFrame; pack packs"):
        pack_delta(KEY, MODEL, after)  # type: ignore[arg-type]


def test_a_delta_that_does_not_fit_is_not_packed() -> None:
    delta, after = make_delta(KEY, 20, 5, 3)
    for wrong, message in (
        (after[:-1], r"global_ids must be 3 x 4 = 12 for a 100x70 image, got 11"),
        (KEY.global_ids, "must hold those of the delta in its cells; pass the ids of all cells as they are after it"),
        (after.astype(np.int64), r"global_ids must be an int32 numpy array of one dimension, got int64 \(12,\)"),
        (after.reshape(3, 4), r"must be an int32 numpy array of one dimension, got int32 \(3, 4\)"),
        (after.tolist(), "must be an int32 numpy array of one dimension, got list"),
    ):
        with pytest.raises(InputError, match=message):
            pack_delta(delta, MODEL, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"made by model {TAG.hex()}, cannot pack it with model {OTHER_TAG.hex()}"):
        pack_delta(delta, StaticModel(OTHER_TAG), after)
    far = delta_as_dict(delta) | {"ids": [64_000] * 5}
    arrays = {name: int32(far[name]) for name in ("updated", "positions", "ids", "cells", "global_ids")}
    unknown = replace(delta, **arrays)
    with pytest.raises(InputError, match=r"delta does not fit model 0123456789abcdef: .*64000"):
        pack_delta(unknown, MODEL, after)
    untouched = np.setdiff1d(np.arange(12), delta.cells)[0]
    after[untouched] = 64_000
    with pytest.raises(InputError, match=r"delta does not fit model 0123456789abcdef: .*64000"):
        pack_delta(delta, MODEL, after)


def test_a_delta_is_read_only_with_the_state_that_it_updates() -> None:
    delta, after = make_delta(KEY, 20, 5, 3)
    data = pack_delta(delta, MODEL, after)
    other = make_frame(64, 64, 0)
    with pytest.raises(
        FormatError, match=r"frame 41 is of a 100x70 image with 12 global tokens, .* update has 4; .* at a key packet"
    ):
        unpack_delta(data, MODEL, other.global_ids)
    for call in (lambda model: unpack_delta(data, model, KEY.global_ids), lambda m: unpack_delta_cells(data, m)):
        with pytest.raises(FormatError, match=f"made by model {TAG.hex()}, not by model {OTHER_TAG.hex()}"):
            call(StaticModel(OTHER_TAG))
    with pytest.raises(InputError, match="global_ids must be an int32 numpy array of one dimension, got int64"):
        unpack_delta(data, MODEL, KEY.global_ids.astype(np.int64))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"global_ids does not fit model 0123456789abcdef: .*-1"):
        unpack_delta(data, MODEL, np.full(12, -1, np.int32))


def test_the_number_of_a_state_covers_all_packets_up_to_it() -> None:
    delta, after = make_delta(KEY, 20, 5, 3)
    still, _ = make_delta(replace(KEY, index=41), 0, 0, 0)
    for embed_model in (True, False):  # the same with and without the tag
        key = pack(KEY, MODEL, embed_model=embed_model)
        first = body_crc(key)
        assert first == zlib.crc32(key[peek(key).header_size : -4])
        packet = pack_delta(replace(delta, follows=first), MODEL, after, embed_model=embed_model)
        second = body_crc(packet)
        assert second == zlib.crc32(key[peek(key).header_size : -4] + packet[peek(packet).header_size : -4])
        assert second != body_crc(pack_delta(replace(delta, follows=first ^ 1), MODEL, after))
        nothing = pack_delta(replace(still, follows=second), MODEL, after, embed_model=embed_model)
        assert body_crc(nothing) == second


# --- delta packets: properties ------------------------------------------------------------------


@st.composite
def any_delta(draw: st.DrawFn) -> tuple[TokenFrame, DeltaFrame, Any]:
    """A frame, its update, and the global ids after it."""
    width, height, seed = draw(st.integers(32, 140)), draw(st.integers(32, 140)), draw(st.integers(0, 999))
    reference = draw(st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 2)))
    index = draw(st.one_of(st.just(reference + 1), st.integers(reference + 1, 2**63 - 1)))
    key = make_frame(width, height, 0, seed, index=reference)
    n = key.n_patches
    updated = min(n, draw(st.one_of(st.sampled_from([0, 1, n]), st.integers(0, 8), st.integers(0, n))))
    tokens = draw(st.one_of(st.sampled_from([0, updated]), st.integers(0, updated)))
    cells = draw(st.one_of(st.sampled_from([0, n]), st.integers(0, n // 16)))
    time = draw(st.integers(-(2**63), 2**63 - 1))
    vectors = min(n // 16, draw(st.sampled_from([0, 0, 1, 3, n])))
    return key, *make_delta(key, updated, tokens, cells, seed, index=index, timestamp_us=time, vectors=vectors)


@given(any_delta())
def test_delta_packets_equal_those_of_the_reference(case: tuple[TokenFrame, DeltaFrame, Any]) -> None:
    key, delta, after = case
    data = pack_delta(delta, MODEL, after)
    info = peek(data)
    assert info.header_size <= MAX_HEADER
    rows = (LEVELS, MODEL.global_rows, MODEL.patch_rows)
    expected = {
        ("gaps" if update_gaps else "bitmap", "gaps" if gaps else "bitmap"): plain.pack_delta(
            delta_as_dict(delta), after.tolist(), *rows, tag=TAG, update_gaps=update_gaps, gaps=gaps
        )[0]
        for update_gaps in (False, True)
        for gaps in (False, True)
    }
    assert data == expected[info.update_map or "", info.positions]
    assert plain.unpack_delta(data, key.global_ids.tolist(), *rows) == delta_as_dict(delta)
    for packet in expected.values():  # all codings are read, whichever a writer chose
        assert unpack_delta(packet, MODEL, key.global_ids) == delta


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 12), st.integers(1, 9)), max_size=5))
def test_a_chain_of_deltas_leaves_the_same_state_on_both_sides(steps: list[tuple[float, float, int, int]]) -> None:
    state, globals_held, index = KEY, KEY.global_ids, KEY.index
    tokens = dict(zip(KEY.positions.tolist(), KEY.ids.tolist(), strict=True))
    held = dict(tokens)
    for seed, (share, kept, cells, step) in enumerate(steps):
        updated = int(share * KEY.n_patches)
        delta, after = make_delta(state, updated, int(kept * updated), cells, seed, index=index + step)
        read = unpack_delta(pack_delta(delta, MODEL, after), MODEL, globals_held)
        for entries, change in ((tokens, delta), (held, read)):
            for position in change.updated.tolist():
                entries.pop(position, None)
            entries.update(zip(change.positions.tolist(), change.ids.tolist(), strict=True))
        globals_held = globals_held.copy()
        globals_held[read.cells] = read.global_ids
        assert held == tokens
        assert globals_held.tolist() == after.tolist()
        state, index = replace(state, global_ids=after, index=delta.index), delta.index


# --- delta packets: attacks ---------------------------------------------------------------------


def test_a_delta_packet_that_is_cut_off_anywhere_is_told() -> None:
    delta, after = make_delta(KEY, 40, 20, 5, vectors=4)
    for change, ids in ((delta, after), make_delta(KEY, 0, 0, 0), make_delta(KEY, 0, 0, 0, vectors=3)):
        data = pack_delta(change, MODEL, ids)
        for end in range(len(data)):
            for call in (
                lambda d: unpack_delta(d, MODEL, KEY.global_ids),
                lambda d: unpack_delta_cells(d, MODEL),
                verify,
            ):
                with pytest.raises(FormatError, match=r"cut off|empty"):
                    call(data[:end])


def test_every_flipped_bit_of_a_delta_packet_is_told() -> None:
    delta, after = make_delta(KEY, 40, 20, 5, vectors=4)
    data = pack_delta(delta, MODEL, after)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError) as caught:
            unpack_delta(flipped, MODEL, KEY.global_ids)
        assert "\n" not in str(caught.value)


@given(any_delta(), st.data())
def test_damage_to_a_delta_that_the_crc_does_not_see_gives_a_delta_or_an_error(
    case: tuple[TokenFrame, DeltaFrame, Any], draw: st.DataObject
) -> None:
    key, delta, after = case
    data = bytearray(pack_delta(delta, MODEL, after))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(1, len(data) - 5))] = draw.draw(st.integers(0, 255))
    try:
        unpack_delta_cells(with_crc(bytes(data)), MODEL)
        read = unpack_delta(with_crc(bytes(data)), MODEL, key.global_ids)
    except FormatError:
        return
    assert isinstance(read, DeltaFrame)


@given(
    st.lists(st.integers(0, 70), min_size=4, max_size=4),
    st.sampled_from([0, 4, 8, 12]),
    st.binary(max_size=40),
)
def test_any_counts_and_body_of_a_delta_give_a_delta_or_an_error(counts: list[int], flags: int, body: bytes) -> None:
    packet = make_delta_packet(*counts, flags=flags, body=body)
    before = make_frame(64, 64, 0).global_ids
    try:
        read = unpack_delta(packet, MODEL, before)
    except FormatError:
        return
    after = before.copy()
    after[read.cells] = read.global_ids
    assert unpack_delta(pack_delta(read, MODEL, after), MODEL, before) == read


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (make_delta_packet(1, 0, body=b"\0"), "does not end where its content does"),
        (make_delta_packet(1, 64, 0, 1), "the entropy-coded body is cut off"),
        (make_delta_packet(1, 60, 0, 0, flags=8, body=b"\xff" * 9), "damaged or from another model"),
        (make_delta_packet(1, 64, 0, 9, flags=4, body=b"\0" * 9), "damaged or from another model"),
        (make_delta_packet(1, 64, 4, 64, body=b"\1" * 9), "cut off|damaged"),
        (make_delta_packet(1, 64, 0, 0, window=(0, 0, 2, 1)), "window must hold all cells that contain an updated"),
        (make_delta_packet(1, 200, 300), "number of updated patches must be from 0 to 64, got 200"),
        (make_packet(9, 0, 64, 64, flags=1), "a packet must have 12 to 67108864 bytes, its header says 11"),
        (make_packet(9, 0, 64, 64, 3, flags=1), "header takes|cut off in its header"),
    ],
)
def test_bad_delta_packets_are_told(packet: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        unpack_delta(packet, MODEL, make_frame(64, 64, 0).global_ids)
    assert "\n" not in str(caught.value)


def test_an_absurd_delta_packet_costs_bounded_memory() -> None:
    patches, cells = 2048 * 2048, 512 * 512
    model, before = UniformModel(), np.zeros(512 * 512, np.int32)
    for counts, flags, body in (
        ((patches, cells, patches), 0, b"\x12\x34" * 10),
        ((patches, 0, patches), 0, b"\x12\x34" * 10),
        ((patches, 0, patches // 2), 4, b"\x12\x34" * 10),
        ((patches // 2, 0, patches // 4), 0, b"\x12\x34" * 10),
        ((patches // 2, 0, patches // 4), 12, b"\x12\x34" * 10),
        ((patches // 64, 9, 0), 8, b""),
    ):
        packet = make_delta_packet(1, *counts, flags=flags, body=body, side=16384, window=(0, 0, 512, 512))
        tracemalloc.start()
        with pytest.raises(FormatError, match=r"cut off|damaged|does not end"):
            unpack_delta(packet, model, before)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 46 * patches  # bytes per patch: see docs/format.md


# --- files: what users do -----------------------------------------------------------------------


def test_a_file_gives_back_its_frames(clip: Path, frames: list[TokenFrame]) -> None:
    with Reader(clip, MODEL) as reader:
        assert len(reader) == 12
        assert list(reader) == frames
        assert (reader.name, reader.tag, reader.levels, reader.fps) == ("static", TAG, LEVELS, 30)
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


def read_stream(reader: Reader, number: int) -> tuple[dict[int, int], list[int]]:
    """Tokens by position and global ids of all cells after packet ``number``, from the key packet ahead of it on."""
    tokens: dict[int, int] = {}
    global_ids = int32([])
    for packet in reader.packets(reader.keyframe_before(number), number + 1):
        if peek(packet).kind == "key":
            frame: Any = unpack(packet, MODEL)
            tokens, global_ids = {}, frame.global_ids.copy()
        else:
            frame = unpack_delta(packet, MODEL, global_ids)
            global_ids[frame.cells] = frame.global_ids
            tokens = {position: token for position, token in tokens.items() if position not in set(frame.updated)}
        tokens.update(zip(frame.positions.tolist(), frame.ids.tolist(), strict=True))
    return tokens, global_ids.tolist()


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Twelve packets of a stream; 0, 5 and 6 are key packets."""
    path = tmp_path / "stream.ttk"
    state = make_frame(100, 70, 60)
    with Writer(path, MODEL, name="static", fps=25) as writer:
        for number in range(12):
            if number in (0, 5, 6):
                state = make_frame(100, 70, 60, number, index=number)
                writer.write(state)
            else:
                delta, after = make_delta(state, 10 * number, 5 * number, number, number)
                writer.write_packet(pack_delta(delta, MODEL, after, embed_model=number % 2 == 0))
                state = replace(state, global_ids=after, index=number)
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
        whole: dict[int, int] = {}
        for number in range(12):
            tokens, global_ids = read_stream(reader, number)
            if reader.is_key(number):
                frame = reader[number]
                whole = dict(zip(frame.positions.tolist(), frame.ids.tolist(), strict=True))
                assert (tokens, global_ids) == (whole, frame.global_ids.tolist())
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
    delta, after = make_delta(KEY, 5, 5, 1)
    with Writer(path, MODEL, name="static") as writer:
        writer.write_packet(pack_delta(delta, MODEL, after))
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
        writer.write_packet(make_delta_packet(3, 40, 2, 12, body=b"body"))
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
from helpers.format_helpers import StaticModel, make_frame
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


# --- files: bad input ---------------------------------------------------------------------------


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
    name: bytes = b"m", levels: bytes = b"\x01\x08", rate: bytes = b"\0\x01", meta: bytes = b"{}"
) -> bytes:
    return TAG + varint(len(name)) + name + levels + rate + varint(len(meta)) + meta


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
    with pytest.raises(SourceError, match=r"cannot open .*: Is a directory"):
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


# --- what is written never changes --------------------------------------------------------------


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
        assert [reader.info(i).positions for i in range(4)] == ["bitmap", "gaps", "bitmap", "bitmap"]
    with Reader(GOLDEN / "example.ttk", UniformModel()) as reader:
        assert list(reader) == [example_frame()]


def test_the_golden_stream_is_read_as_ever_and_equals_the_reference() -> None:
    key, deltas = golden_stream()
    state, codings = key.global_ids, []
    with Reader(GOLDEN / "stream.ttk", MODEL) as reader:
        assert len(reader) == 1 + len(deltas)
        assert reader[0] == key
        for packet, (delta, after) in zip(reader.packets(1), deltas, strict=True):
            assert unpack_delta(packet, MODEL, state) == delta
            info = peek(packet)
            codings.append((info.update_map, info.positions))
            expected, _ = plain.pack_delta(
                delta_as_dict(delta),
                after.tolist(),
                LEVELS,
                MODEL.global_rows,
                MODEL.patch_rows,
                tag=None,
                update_gaps=info.update_map == "gaps",
                gaps=info.positions == "gaps",
            )
            assert packet == expected
            state = after
    assert codings[:3] == [("bitmap", "bitmap"), ("bitmap", "gaps"), ("gaps", "bitmap")]


def page_block(kind: str) -> str:
    found = re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert found, kind
    return found[1]


def page_bytes(kind: str) -> bytes:
    """The hex columns of a block: what stands ahead of two spaces."""
    return bytes.fromhex("".join(line.split("  ")[0] for line in page_block(kind).splitlines()))


def test_the_worked_example_of_the_page_is_what_the_code_writes() -> None:
    assert page_bytes("hex packet") == pack(example_frame(), UniformModel())
    delta, after = example_delta()
    assert page_bytes("hex delta") == pack_delta(delta, UniformModel(), after, embed_model=False)
    assert unpack_delta(page_bytes("hex delta"), UniformModel(), example_frame().global_ids) == delta
    assert page_bytes("hex file") == (GOLDEN / "example.ttk").read_bytes()


def test_the_steps_of_the_page_are_those_of_the_reference() -> None:
    model = UniformModel()
    packet, coder = plain.pack(
        as_dict(example_frame()),
        LEVELS,
        lambda cells: model.rows(cells[0] * cells[1]),
        lambda codes, cells, positions, kept: model.rows(len(positions)),
        tag=TAG,
        gaps=False,
    )
    assert packet == page_bytes("hex packet")
    check_steps(page_block("steps"), coder)
    delta, after = example_delta()
    packet, coder = plain.pack_delta(
        delta_as_dict(delta),
        after.tolist(),
        LEVELS,
        lambda cells: model.rows(cells[0] * cells[1]),
        lambda codes, cells, positions, kept: model.rows(len(positions)),
        tag=None,
        update_gaps=False,
        gaps=False,
    )
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
