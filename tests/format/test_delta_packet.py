"""Delta packets: packing, unpacking, damage; the bytes are those of docs/format.md."""

from __future__ import annotations

import tracemalloc
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers import coder_reference as plain
from helpers.example_frames import (
    LEVELS,
    TAG,
    StaticModel,
    UniformModel,
    int32,
    make_delta,
    make_frame,
)
from helpers.packets import (
    DELTA_ARRAYS,
    MODEL,
    OTHER_TAG,
    delta_as_dict,
    make_delta_packet,
    make_packet,
    with_crc,
)
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import MAX_HEADER, peek, verify
from tatok_edge.format.packet import body_crc, pack, pack_delta, unpack, unpack_delta, unpack_delta_cells
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

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
        (KEY.global_ids, "must agree with the delta in its cells; pass the ids of all cells once the delta is applied"),
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
