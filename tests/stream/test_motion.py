"""Motion: the kernels against their specification, and streams of moving cameras end to end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.streams import clip, loss_of, pan_over_a_scene, run, same
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge import StreamDecoder, StreamEncoder, Tokenizer
from tatok_edge.geometry import Image
from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels as kernels
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.frame import StreamFrame
from tatok_edge.stream.windows import move_flags
from tatok_edge.tokens.budget import TokenBudget


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(threads=2)


@pytest.fixture(scope="module")
def pan() -> list[Image]:
    """A camera that pans over a still scene."""
    return pan_over_a_scene(14)


# --- kernels -----------------------------------------------------------------------------------------


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 3, 62]),
)
def test_moved_cells_equal_the_specification(cells: tuple[int, int], seed: int, largest: int) -> None:
    rng = np.random.default_rng(seed)
    source = rng.integers(0, 256, (32 * cells[0], 32 * cells[1], 3), np.uint8)
    vectors = rng.integers(-largest, largest + 1, (*cells, 2), np.int32)
    expected = reference.move_cells(source, vectors)
    out = np.empty_like(source)
    assert kernels.move_cells(source, vectors, out) is out
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(kernels.move_cells(source, vectors), expected)


def difference(image: Image, source: Image, vectors: NDArray[np.int32], cap: int, cost: int) -> list[int]:
    """What the search minimises, for each cell, in plain numpy."""
    moved = reference.move_cells(source, vectors)
    error = (image[:, :, 1].astype(np.int64) - moved[:, :, 1]) ** 2
    h, w = error.shape
    patches = np.minimum(error.reshape(h // 8, 8, w // 8, 8).sum((1, 3)), cap)
    total = patches.reshape(h // 32, 4, w // 32, 4).sum((1, 3)).ravel()
    flat = vectors.reshape(-1, 2)
    turns = np.diff(flat, axis=0, prepend=np.zeros((1, 2), np.int32)).any(1)
    return (total + cost * turns).tolist()


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("vector", [(0, 0), (4, -6), (-9, 13), (50, -46), (-61, 60)])
def test_the_search_finds_a_picture_that_moved(vector: tuple[int, int], bgr: bool) -> None:
    source = render(Scene(width=320, height=224, seed=3), 0)
    image = reference.move_cells(source, np.full((7, 10, 2), vector, np.int32))
    vectors = np.zeros((7, 10, 2), np.int32)
    given_image = image[:, :, ::-1].copy() if bgr else image
    kernels.find_motion(given_image, bgr, source, np.ones((7, 10), np.uint8), 1 << 22, 500, vectors)
    # Where the picture is smooth other vectors do as well; none may do worse than having no motion.
    assert (vectors == vector).all(2).mean() > (0.6 if max(map(abs, vector)) < 40 else 0.3)
    found = sum(difference(image, source, vectors, 1 << 22, 500))
    assert found <= sum(difference(image, source, np.zeros_like(vectors), 1 << 22, 500))


@given(st.integers(0, 2**32 - 1), st.integers(0, 1 << 22), st.integers(0, 1 << 20))
def test_no_vector_is_worse_than_none_or_the_one_before(seed: int, cap: int, cost: int) -> None:
    rng = np.random.default_rng(seed)
    image, source = rng.integers(0, 256, (2, 64, 96, 3), np.uint8)
    active = rng.integers(0, 2, (2, 3), np.uint8)
    vectors = rng.integers(-62, 63, (2, 3, 2), np.int32)
    again = vectors.copy()
    kernels.find_motion(image, False, source, active, cap, cost, vectors)
    kernels.find_motion(image, False, source, active, cap, cost, again)
    np.testing.assert_array_equal(vectors, again)
    assert np.abs(vectors).max() <= 62
    values = difference(image, source, vectors, cap, cost)
    flat = vectors.reshape(-1, 2)
    for cell in range(6):
        before = flat[cell - 1] if cell else np.zeros(2, np.int32)
        others = [before, np.zeros(2, np.int32)]
        assert cell in np.flatnonzero(active) or any((flat[cell] == other).all() for other in others)
        for other in others:
            changed = flat.copy()
            changed[cell] = other
            value = difference(image, source, changed.reshape(2, 3, 2), cap, cost)[cell]
            assert values[cell] <= value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.full((2, 3, 2), 63, np.int32)}, "vectors must be from -62 to 62"),
        ({"vectors": np.full((2, 3, 2), -(2**31), np.int32)}, "vectors must be from -62 to 62"),
        ({"vectors": np.zeros((3, 2, 2), np.int32)}, "vectors must have shape"),
        ({"active": np.ones((3, 3), np.uint8)}, "active must have shape"),
        ({"cap": -1}, "cap must be from 0"),
        ({"cost": 1 << 41}, "cap must be from 0 to 2\\^22 and cost from 0 to 2\\^40"),
    ],
)
def test_the_search_takes_nothing_else(change: dict[str, Any], message: str) -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    values = {"active": np.ones((2, 3), np.uint8), "cap": 9, "cost": 9, "vectors": np.zeros((2, 3, 2), np.int32)}
    with pytest.raises(ValueError, match=message):
        kernels.find_motion(picture, False, picture, **(values | change))


def test_moving_into_the_source_is_refused() -> None:
    picture = np.zeros((64, 96, 3), np.uint8)
    with pytest.raises(ValueError, match="share memory"):
        kernels.move_cells(picture, np.zeros((2, 3, 2), np.int32), picture)
    with pytest.raises(ValueError, match="multiples of 32"):
        kernels.move_cells(picture[:, :90].copy(), np.zeros((2, 3, 2), np.int32))


# --- streams -----------------------------------------------------------------------------------------


def test_a_pan_costs_vectors_instead_of_tokens(tokenizer: Tokenizer, pan: list[Image]) -> None:
    moving, pictures, encoder = run(tokenizer, pan)
    assert sum(frame.n_vectors for frame in moving) > 5
    assert loss_of(tokenizer, pan, pictures) < 0.6
    still, _, _ = run(tokenizer, pan, motion=False)
    assert sum(frame.n_vectors for frame in still) == 0
    assert tokens_of(moving) < 0.8 * tokens_of(still)
    assert encoder.noise < 3


@pytest.mark.parametrize("name", ["bear_pan", "paraglide_follow"])
def test_a_real_pan_takes_fewer_tokens(tokenizer: Tokenizer, name: str) -> None:
    images = clip(name, 10)
    moving, pictures, _ = run(tokenizer, images)
    assert loss_of(tokenizer, images, pictures) < 0.7
    still, _, _ = run(tokenizer, images, motion=False)
    assert tokens_of(moving) < 0.9 * tokens_of(still)


def tokens_of(frames: list[StreamFrame]) -> int:
    """Tokens of all frames after the keyframe, vectors included."""
    return sum(frame.n_tokens + frame.n_globals + frame.n_vectors for frame in frames[1:])


def test_pushed_packets_leave_the_picture_of_decoded_ones(tokenizer: Tokenizer, pan: list[Image]) -> None:
    frames, pictures, _ = run(tokenizer, pan[:12])
    assert any(frame.n_vectors for frame in frames)
    decoder = StreamDecoder(tokenizer)
    for frame in frames[:-1]:
        assert decoder.push(frame.packet) is None
    np.testing.assert_array_equal(decoder.decode(frames[-1].packet).image, pictures[-1])
    flipped = StreamDecoder(tokenizer)
    for frame in frames:
        image = flipped.decode(frame.packet, bgr=True).image
    assert image is not None
    np.testing.assert_array_equal(image[:, :, ::-1], pictures[-1])


def test_a_picture_that_was_given_out_stays_as_it_is(tokenizer: Tokenizer, pan: list[Image]) -> None:
    decoder, encoder = StreamDecoder(tokenizer), StreamEncoder(tokenizer)
    first = decoder.decode(encoder.encode(pan[0]).packet).image
    assert first is not None
    copy = first.copy()
    first[:] = 0  # what a caller does to it is his own affair, too
    for image in pan[1:4]:
        decoder.decode(encoder.encode(image).packet)
    other = StreamDecoder(tokenizer)
    np.testing.assert_array_equal(other.decode(StreamEncoder(tokenizer).encode(pan[0]).packet).image, copy)


def test_what_moves_is_flagged_while_anything_is_stale() -> None:
    """A cell that reads from a stale patch is stale; one that does not stays as it is."""
    stale = np.zeros((8, 8), np.bool_)
    stale[1, 1] = True
    vectors = np.zeros((2, 2, 2), np.int32)
    vectors[1, 1] = (-62, -62)
    vectors[0, 1] = (0, 2)
    moved = move_flags(stale, vectors)
    expected = stale.copy()
    expected[5:6, 5:6] = True
    assert moved[1, 1] and moved[:4, :4].sum() == 1
    assert moved[5, 5] and not moved[:4, 4:].any() and not moved[4:, :4].any()


@pytest.mark.parametrize("back", [False, True])
def test_who_joins_a_rolling_refresh_in_a_pan_knows_what_is_right(tokenizer: Tokenizer, back: bool) -> None:
    """Pixels that a receiver does not have yet never move into what it has; what is not marked as stale is right."""
    images, interval, joined = pan_over_a_scene(26), 8, 3
    encoder = StreamEncoder(tokenizer, refresh="rolling", keyframe_interval=interval)
    late = StreamDecoder(tokenizer)
    vectors, exact = 0, None
    for number, image in enumerate(images[::-1] if back else images):
        frame = encoder.encode(image)
        vectors += frame.n_vectors
        if number < joined:
            continue
        decoded, state = late.decode(frame.packet), encoder.state
        if decoded.image is None:
            continue
        assert state is not None
        differs = (decoded.image != state.picture[: state.height, : state.width]).any(2)
        differs = differs.reshape(differs.shape[0] // 8, 8, -1, 8).any((1, 3))
        assert not (differs & ~decoded.stale[: differs.shape[0], : differs.shape[1]]).any(), number
        if decoded.complete:
            exact = exact or number
            assert same(encoder.state, late.state), number
        else:
            assert exact is None
    assert vectors > 5
    assert exact is not None and exact <= joined + 3 * interval


def test_motion_can_be_turned_off(tokenizer: Tokenizer, pan: list[Image]) -> None:
    frames, _, _ = run(tokenizer, pan[:6], motion=False)
    assert not any(frame.n_vectors for frame in frames)


def test_vectors_leave_room_in_a_small_budget(tokenizer: Tokenizer, pan: list[Image]) -> None:
    limit = 3000
    encoder = StreamEncoder(tokenizer, keyframe_interval=0)
    encoder.encode(pan[0])
    encoder.budget = TokenBudget(max_bits=limit)
    for image in pan[1:]:
        frame = encoder.encode(image)
        assert 8 * len(frame.packet) <= limit
        assert 24 * frame.n_vectors < limit
