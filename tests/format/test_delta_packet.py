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
    held_as_plain,
    make_delta_packet,
    make_packet,
    models_of,
    with_crc,
)
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import MAX_HEADER, peek, verify
from tatok_edge.format.packet import body_crc, pack, pack_delta, unpack, unpack_delta, unpack_delta_cells
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens

# --- delta packets: what users do ---------------------------------------------------------------

KEY = make_frame(100, 70, 120, index=40)
HELD = HeldTokens.of_frame(KEY, 2)


def delta_of(updated: int, tokens: int, cells: int, seed: int = 0, **how: Any) -> DeltaFrame:
    """An update of ``KEY``."""
    return make_delta(HELD, KEY, updated, tokens, cells, seed, **how)


@pytest.mark.parametrize(
    ("updated", "tokens", "cells"),
    [(0, 0, 0), (1, 0, 0), (1, 1, 1), (30, 12, 4), (2, 1, 12), (30, 60, 0), (192, 0, 12), (192, 300, 12)],
)
@pytest.mark.parametrize("embed_model", [True, False])
@pytest.mark.parametrize("vectors", [0, 1, 12])
@pytest.mark.parametrize("refined", [0, 0.5, 1])
def test_a_delta_comes_back(
    updated: int, tokens: int, cells: int, embed_model: bool, vectors: int, refined: float
) -> None:
    delta = delta_of(updated, tokens, cells, index=42, timestamp_us=-5, vectors=vectors, refined=refined)
    data = pack_delta(delta, MODEL, HELD, embed_model=embed_model)
    for kind in (bytes, bytearray, memoryview):
        read = unpack_delta(kind(data), MODEL, HELD)
        assert read == delta
        for name in DELTA_ARRAYS:
            assert getattr(read, name).dtype == np.int32
    assert HELD.global_ids.tolist() == KEY.global_ids.tolist()  # what the caller holds is left alone
    info = peek(data)
    assert info == verify(data)
    assert info.model == (TAG if embed_model else None)
    assert (info.kind, info.size, info.n_tokens) == ("delta", len(data), delta.n_tokens)
    assert (info.version, info.n_vectors, info.n_refined) == (1, vectors, delta.refined.size)
    assert (info.width, info.height, info.index, info.reference, info.timestamp_us) == (100, 70, 42, 40, -5)
    assert (info.n_patches, info.n_updated, info.n_updated_cells) == (192, updated, delta.n_updated_cells)
    assert info.follows == delta.follows
    changed, ids = unpack_delta_cells(data, MODEL)  # needs nothing but the packet
    assert (changed.tolist(), ids.tolist()) == (delta.cells.tolist(), delta.global_ids.tolist())


def test_a_frame_in_which_nothing_changed_takes_next_to_nothing() -> None:
    key = make_frame(640, 480, 100, index=29)
    held = HeldTokens.of_frame(key, 2)
    delta = make_delta(held, key, 0, 0, 0, timestamp_us=1_000_000)
    data = pack_delta(delta, MODEL, held, embed_model=False)
    assert len(data) <= 22
    assert peek(data).header_size + 4 == len(data)
    assert unpack_delta(data, MODEL, held) == delta


def test_a_scene_that_only_gets_sharper_takes_its_tokens_and_two_maps() -> None:
    model, key = UniformModel(), make_frame(640, 480, 2000)
    held = HeldTokens.of_frame(key, 2)
    able = int(((held.depths > 0) & (held.depths < 2)).sum())
    delta = make_delta(held, key, 4800, able, 0, refined=1)
    sharper = replace(delta, updated=delta.refined, positions=delta.refined, ids=delta.ids[:able])
    data = pack_delta(sharper, model, held)
    assert unpack_delta(data, model, held) == sharper
    assert len(data) < able * np.log2(LEVELS).sum() / 8 + 4800 / 8 + 60


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
        width=640,
        height=480,
        model=TAG,
        index=1,
        reference=0,
        follows=0,
    )
    held = HeldTokens.of_frame(key, 2)
    data = pack_delta(delta, model, held)
    codes = 33 * np.log2(LEVELS).sum() / 8
    maps = peek(data).size - peek(data).header_size - 4 - codes
    assert maps < 40  # 600 uncoded for the update map alone
    assert unpack_delta(data, model, held) == delta


def test_deltas_larger_than_a_part_of_the_tables_come_back() -> None:
    model, key = UniformModel(), make_frame(1600, 1600, 20_000)
    held = HeldTokens.of_frame(key, 2)
    delta = make_delta(held, key, 39_000, 60_000, 2000, refined=0.5)
    assert unpack_delta(pack_delta(delta, model, held), model, held) == delta


def test_key_and_delta_packets_are_not_taken_for_each_other() -> None:
    delta = delta_of(5, 5, 1)
    for call in (lambda data: unpack_delta(data, MODEL, HELD), lambda data: unpack_delta_cells(data, MODEL)):
        with pytest.raises(FormatError, match="frame 40 is a key packet: it stands alone and is read by unpack"):
            call(pack(KEY, MODEL))
    with pytest.raises(FormatError, match="frame 41 is a delta packet: it updates frame 40 of its stream"):
        unpack(pack_delta(delta, MODEL, HELD), MODEL)
    with pytest.raises(InputError, match="must be a TokenFrame, got DeltaFrame; pack_delta packs"):
        pack(delta, MODEL)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="must be a DeltaFrame, got TokenFrame; pack packs"):
        pack_delta(KEY, MODEL, HELD)  # type: ignore[arg-type]


def test_a_delta_that_does_not_fit_is_not_packed() -> None:
    delta = delta_of(20, 5, 3)
    small = HeldTokens.of_frame(make_frame(64, 64, 9), 2)
    deep = HeldTokens.of_frame(KEY, 3)
    for wrong, message in (
        (small, "delta must be of a picture of 64 patches and 4 cells, as the held tokens are, got 192 and 12"),
        (deep, f"held must have up to 2 tokens per patch, as model {TAG.hex()}, got 3"),
        (KEY.global_ids, "held must be the HeldTokens of the stream ahead of the delta, got ndarray"),
    ):
        with pytest.raises(InputError, match=message):
            pack_delta(delta, MODEL, wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"made by model {TAG.hex()}, cannot pack it with model {OTHER_TAG.hex()}"):
        pack_delta(delta, StaticModel(OTHER_TAG), HELD)
    unknown = replace(delta, ids=int32([64_000] * delta.n_tokens))
    with pytest.raises(InputError, match=r"delta does not fit model 0123456789abcdef: .*64000"):
        pack_delta(unknown, MODEL, HELD)
    bare = int(np.flatnonzero(HELD.depths == 0)[0])
    full = int(np.flatnonzero(HELD.depths == 2)[0])
    for patch, message in ((bare, f"got {bare}, which has none"), (full, f"got patch {full} 3 times")):
        only = int32([patch])
        refined = replace(
            delta,
            updated=only,
            refined=only,
            positions=only,
            ids=only,
            cells=int32([]),
            global_ids=int32([]),
        )
        with pytest.raises(InputError, match=message):
            pack_delta(refined, MODEL, HELD)


def test_a_delta_is_read_only_with_the_state_that_it_updates() -> None:
    delta = delta_of(20, 5, 3)
    data = pack_delta(delta, MODEL, HELD)
    other = HeldTokens.of_frame(make_frame(64, 64, 0), 2)
    with pytest.raises(
        FormatError, match=r"frame 41 is of a 100x70 image with 12 global tokens, .* update has 4; .* at a key packet"
    ):
        unpack_delta(data, MODEL, other)
    for call in (lambda model: unpack_delta(data, model, HELD), lambda m: unpack_delta_cells(data, m)):
        with pytest.raises(FormatError, match=f"made by model {TAG.hex()}, not by model {OTHER_TAG.hex()}"):
            call(StaticModel(OTHER_TAG))
    with pytest.raises(InputError, match="held must be the HeldTokens of the stream ahead of the delta, got ndarray"):
        unpack_delta(data, MODEL, KEY.global_ids)  # type: ignore[arg-type]
    unknown = HeldTokens(np.full(12, -1, np.int32), HELD.depths, HELD.ids)
    with pytest.raises(InputError, match=r"held does not fit model 0123456789abcdef: .*-1"):
        unpack_delta(data, MODEL, unknown)


def test_the_number_of_a_state_covers_all_packets_up_to_it() -> None:
    delta = delta_of(20, 5, 3)
    after = HELD.updated(delta)
    still = make_delta(after, delta, 0, 0, 0)
    for embed_model in (True, False):  # the same with and without the tag
        key = pack(KEY, MODEL, embed_model=embed_model)
        first = body_crc(key)
        assert first == zlib.crc32(key[peek(key).header_size : -4])
        packet = pack_delta(replace(delta, follows=first), MODEL, HELD, embed_model=embed_model)
        second = body_crc(packet)
        assert second == zlib.crc32(key[peek(key).header_size : -4] + packet[peek(packet).header_size : -4])
        assert second != body_crc(pack_delta(replace(delta, follows=first ^ 1), MODEL, HELD))
        nothing = pack_delta(replace(still, follows=second), MODEL, after, embed_model=embed_model)
        assert body_crc(nothing) == second


# --- delta packets: properties ------------------------------------------------------------------


Case = tuple[StaticModel, HeldTokens, DeltaFrame]


@st.composite
def any_delta(draw: st.DrawFn) -> Case:
    """A model, the tokens that a stream holds, and an update of them."""
    width, height, seed = draw(st.integers(32, 140)), draw(st.integers(32, 140)), draw(st.integers(0, 999))
    depth = draw(st.integers(1, 4))
    reference = draw(st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 2)))
    index = draw(st.one_of(st.just(reference + 1), st.integers(reference + 1, 2**63 - 1)))
    n = cell_count(width, height) * 16
    key = make_frame(width, height, draw(st.integers(0, n * depth)), seed, index=reference, depth=depth)
    held = HeldTokens.of_frame(key, depth)
    updated = min(n, draw(st.one_of(st.sampled_from([0, 1, n]), st.integers(0, 8), st.integers(0, n))))
    tokens = draw(st.one_of(st.sampled_from([0, updated, updated * depth]), st.integers(0, updated * depth)))
    cells = draw(st.one_of(st.sampled_from([0, n]), st.integers(0, n // 16)))
    time = draw(st.integers(-(2**63), 2**63 - 1))
    vectors = min(n // 16, draw(st.sampled_from([0, 0, 1, 3, n])))
    refined = draw(st.sampled_from([0.0, 0.0, 0.5, 1.0]))
    delta = make_delta(
        held,
        key,
        updated,
        tokens,
        cells,
        seed,
        index=index,
        timestamp_us=time,
        vectors=vectors,
        refined=refined,
    )
    return StaticModel(depth=depth), held, delta


def cell_count(width: int, height: int) -> int:
    return -(-width // 32) * -(-height // 32)


@given(any_delta())
def test_delta_packets_equal_those_of_the_reference(case: Case) -> None:
    model, held, delta = case
    data = pack_delta(delta, model, held)
    assert peek(data).header_size <= MAX_HEADER
    plain_held, models = held_as_plain(held), models_of(model)
    assert data == plain.pack_delta(delta_as_dict(delta), plain_held, models, tag=TAG, gaps=None)[0]
    assert plain.unpack_delta(data, plain_held, models) == delta_as_dict(delta)
    for gaps in (False, True):  # both codings of maps are read, whichever a writer chose
        packet, _ = plain.pack_delta(delta_as_dict(delta), plain_held, models, tag=TAG, gaps=gaps)
        assert unpack_delta(packet, model, held) == delta


Step = tuple[float, float, int, int, float]


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(
            st.floats(0, 1), st.floats(0, 1), st.integers(0, 12), st.integers(1, 9), st.sampled_from([0, 0.5, 1])
        ),
        max_size=5,
    ),
)
def test_a_chain_of_deltas_leaves_the_same_state_on_both_sides(depth: int, steps: list[Step]) -> None:
    model = StaticModel(depth=depth)
    state: TokenFrame | DeltaFrame = make_frame(100, 70, 120, index=40, depth=depth)
    here = there = HeldTokens.of_frame(state, depth)
    for seed, (share, kept, cells, step, refined) in enumerate(steps):
        updated = int(share * KEY.n_patches)
        tokens = int(kept * updated * depth)
        delta = make_delta(here, state, updated, tokens, cells, seed, index=state.index + step, refined=refined)
        read = unpack_delta(pack_delta(delta, model, here), model, there)
        here, there, state = here.updated(delta), there.updated(read), delta
        for name in ("global_ids", "depths", "ids"):
            assert np.array_equal(getattr(here, name), getattr(there, name))


# --- delta packets: attacks ---------------------------------------------------------------------


def test_a_delta_packet_that_is_cut_off_anywhere_is_told() -> None:
    for change in (
        delta_of(40, 30, 5, vectors=4, refined=0.5),
        delta_of(0, 0, 0),
        delta_of(0, 0, 0, vectors=3),
    ):
        data = pack_delta(change, MODEL, HELD)
        for end in range(len(data)):
            for call in (lambda d: unpack_delta(d, MODEL, HELD), lambda d: unpack_delta_cells(d, MODEL), verify):
                with pytest.raises(FormatError, match=r"cut off|empty"):
                    call(data[:end])


def test_every_flipped_bit_of_a_delta_packet_is_told() -> None:
    data = pack_delta(delta_of(40, 30, 5, vectors=4, refined=0.5), MODEL, HELD)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError) as caught:
            unpack_delta(flipped, MODEL, HELD)
        assert "\n" not in str(caught.value)


@given(any_delta(), st.data())
def test_damage_to_a_delta_that_the_crc_does_not_see_gives_a_delta_or_an_error(case: Case, draw: st.DataObject) -> None:
    model, held, delta = case
    data = bytearray(pack_delta(delta, model, held))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(1, len(data) - 5))] = draw.draw(st.integers(0, 255))
    try:
        unpack_delta_cells(with_crc(bytes(data)), model)
        read = unpack_delta(with_crc(bytes(data)), model, held)
    except FormatError:
        return
    assert isinstance(read, DeltaFrame)
    held.updated(read)


SMALL = HeldTokens.of_frame(make_frame(64, 64, 40), 2)


@given(st.lists(st.integers(0, 70), min_size=5, max_size=5), st.binary(max_size=40))
def test_any_counts_and_body_of_a_delta_give_a_delta_or_an_error(counts: list[int], body: bytes) -> None:
    packet = make_delta_packet(*counts, body=body)
    try:
        read = unpack_delta(packet, MODEL, SMALL)
    except FormatError:
        return
    assert unpack_delta(pack_delta(read, MODEL, SMALL), MODEL, SMALL) == read


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (make_delta_packet(1, 0, body=b"\0"), "does not end where its content does"),
        (make_delta_packet(1, 64, 9, 1), "the entropy-coded body is cut off"),
        (make_delta_packet(1, 60, 0, 0, body=b"\xff" * 9), "damaged or from another model"),
        (make_delta_packet(1, 64, 64, 4, body=b"\1" * 9), "cut off|damaged"),
        (make_delta_packet(1, 64, 129, 0), "must be from 0 to 128, 2 for each of 64 patches, got 129"),
        (make_delta_packet(1, 64, 64, 0, 60), r"of its patches can be refined, its header says 60"),
        (make_delta_packet(1, 12, 24, 0, 9), "its patches cannot have 24 tokens, as the header says|cut off|refined"),
        (make_delta_packet(1, 200, 300), "number of updated patches must be from 0 to 64, got 200"),
        (make_packet(9, 0, 64, 64, flags=1), "a packet must have 12 to 67108864 bytes, its header says 11"),
        (make_packet(9, 0, 64, 64, 3, flags=1), "header takes|cut off in its header"),
    ],
)
def test_bad_delta_packets_are_told(packet: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        unpack_delta(packet, MODEL, SMALL)
    assert "\n" not in str(caught.value)


def test_an_absurd_delta_packet_costs_bounded_memory() -> None:
    patches, cells = 1024 * 1024, 256 * 256
    model = UniformModel()
    held = HeldTokens(np.zeros(cells, np.int32), np.zeros(patches, np.int32), np.zeros((patches, 2), np.int32))
    for counts, body in (
        ((patches, patches, cells), b"\x12\x34" * 10),
        ((patches, 2 * patches, 0), b"\x12\x34" * 10),
        ((patches, patches // 2, 0), b"\x12\x34" * 10),
        ((patches // 2, patches // 4, 0), b"\x12\x34" * 10),
        ((patches // 64, 0, 9), b""),
    ):
        packet = make_delta_packet(1, *counts, body=body, side=8192)
        tracemalloc.start()
        with pytest.raises(FormatError, match=r"cut off|damaged|does not end"):
            unpack_delta(packet, model, held)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 150 * patches  # bytes per patch: see docs/format.md
