"""Codes, ids and the input of the decoder, on the CPU: equal to the numpy specification bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_cases import LEVELS, SEEDS, assert_same, guarded
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels

LEVEL_SETS = st.one_of(st.just(LEVELS), st.lists(st.integers(2, 16), min_size=1, max_size=7).map(tuple))


def random_codes(random: np.random.Generator, count: int, levels: tuple[int, ...]) -> NDArray[np.int32]:
    return random.integers(0, levels, (count, len(levels))).astype(np.int32)


@given(seed=SEEDS, levels=LEVEL_SETS, count=st.integers(0, 50))
def test_ids_and_codes_equal_reference(seed: int, levels: tuple[int, ...], count: int) -> None:
    codes = random_codes(np.random.default_rng(seed), count, levels)
    ids = kernels.ids_from_codes(codes, levels)
    assert_same(ids, reference.ids_from_codes(codes, levels))
    assert_same(kernels.codes_from_ids(ids, levels), codes)
    assert_same(reference.codes_from_ids(ids, levels), codes)


def test_ids_cover_the_vocabulary() -> None:
    ids = np.arange(64_000, dtype=np.int32)
    codes = kernels.codes_from_ids(ids, LEVELS)
    assert codes[1].tolist() == [1, 0, 0, 0, 0, 0]  # dimension 0 is the least significant
    assert_same(kernels.ids_from_codes(codes, list(LEVELS)), ids)


@given(seed=SEEDS, levels=LEVEL_SETS, count=st.integers(0, 50), patches=st.integers(1, 200))
def test_information_equals_reference(seed: int, levels: tuple[int, ...], count: int, patches: int) -> None:
    random = np.random.default_rng(seed)
    # Slightly positive ones too, so that the clamp at 0 has something to do.
    log2_probs = (0.01 - random.gamma(1.0, 2.0, (sum(levels), patches))).astype(np.float32)
    log2_probs[random.random(log2_probs.shape) < 0.02] = -np.inf
    log2_probs[random.random(log2_probs.shape) < 0.3] = 0.001
    codes = random_codes(random, count, levels)
    positions = random.integers(0, patches, count).astype(np.int32)
    actual = kernels.information(log2_probs, codes, positions, levels)
    assert_same(actual, reference.information(log2_probs, codes, positions, levels))
    assert (actual >= 0).all()


@given(
    seed=SEEDS,
    levels=LEVEL_SETS,
    share=st.floats(0, 1),
    patches=st.integers(1, 200),
    depth=st.integers(1, 8),
)
def test_decoder_state_equals_reference(
    seed: int, levels: tuple[int, ...], share: float, patches: int, depth: int
) -> None:
    random = np.random.default_rng(seed)
    stacks = np.where(random.random(patches) < share, random.integers(0, depth + 1, patches), 0)
    positions = np.repeat(np.arange(patches, dtype=np.int32), stacks)
    codes = random_codes(random, len(positions), levels)
    expected = random.uniform(-1, 1, (depth * len(levels), patches)).astype(np.float32)
    entropy = random.uniform(0, 16, (depth, patches)).astype(np.float32)
    state = reference.decoder_state(codes, positions, expected, entropy, levels)
    assert state.shape == (depth * (len(levels) + 2), patches)
    assert_same(kernels.decoder_state(codes, positions, expected, entropy, levels), state)
    out, untouched = guarded(state.shape, np.float32)
    assert kernels.decoder_state(codes, positions, expected, entropy, levels, out) is out
    assert_same(out, state)
    assert untouched()


def test_decoder_state_by_hand() -> None:
    """Two dimensions, up to three tokens, four patches: of depth 2, 0, 1 and 3."""
    codes = np.array([[0, 1], [3, 0], [1, 1], [2, 0], [3, 1], [0, 0]], np.int32)
    positions = np.array([0, 0, 2, 3, 3, 3], np.int32)
    expected = np.arange(24, dtype=np.float32).reshape(6, 4) / 32
    entropy = np.full((3, 4), 8, np.float32)
    state = kernels.decoder_state(codes, positions, expected, entropy, (4, 2))
    values, keep, bits = state[:6].reshape(3, 2, 4), state[6:9], state[9:]
    assert keep.T.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert values[0].T.tolist() == [[-0.75, 0.5], [1 / 32, 5 / 32], [-0.25, 0.5], [0.25, -0.5]]
    assert values[1].T.tolist() == [[0.75, -0.5], [9 / 32, 13 / 32], [10 / 32, 14 / 32], [0.75, 0.5]]
    assert values[2].T.tolist() == [[16 / 32, 20 / 32], [17 / 32, 21 / 32], [18 / 32, 22 / 32], [-0.75, -0.5]]
    assert (bits == 0.5).all()


@pytest.mark.parametrize(
    ("positions", "message"),
    [([0, 0, 3, 3, 3, 3], "got 3 at 5"), ([0, 2, 1], "got 1 at 2"), ([2, 2, 2, 2, 3], "got 2 at 3")],
)
def test_positions_that_are_no_stacks(positions: list[int], message: str) -> None:
    expected, entropy = np.zeros((6, 4), np.float32), np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match=f"positions must never fall and come at most 3 times each, {message}"):
        kernels.decoder_state(
            np.zeros((len(positions), 2), np.int32), np.array(positions, np.int32), expected, entropy, (4, 2)
        )
