"""Token filtering on the CPU equals the numpy specification bit for bit, and rejects wrong scores and limits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.kernel_cases import SEEDS, assert_same
from helpers.threads import in_threads
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels

SCORES = st.one_of(
    st.floats(0, 40, width=32),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0**-17, 3 * 2.0**-17, 2.0**-16, 2.0**-140]),  # ties and halves
    st.floats(0, 2.0**127, width=32),  # saturation
    st.sampled_from([32767.998046875, 32768.0, 128.0000152587890625, 127.99999237060546875, 8388608.0]),
)
SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 40), st.integers(1, 8))


@given(
    scores=st.one_of(
        hnp.arrays(np.float32, SHAPES, elements=SCORES),
        hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 1.0, 2.0])),
        hnp.arrays(np.float32, SHAPES, elements=st.just(3.25)),
    ),
    tau=st.one_of(st.just(1.0), st.floats(0, 1, exclude_min=True), st.sampled_from([5e-324, 1e-10, 0.5, 1 - 2**-53])),
    low=st.integers(0, 80),
    extra=st.one_of(st.none(), st.integers(0, 80)),
    floor_bits=st.one_of(st.just(0.0), st.floats(0, 45), st.sampled_from([0.5, 1.0, 2.0**-17, 32768.0, 1e300])),
)
def test_dtf_equals_reference(
    scores: NDArray[np.float32], tau: float, low: int, extra: int | None, floor_bits: float
) -> None:
    limits: dict[str, Any] = {
        "tau": tau,
        "min_tokens": low,
        "max_tokens": None if extra is None else low + extra,
        "floor_bits": floor_bits,
    }
    for actual, expected in zip(kernels.dtf(scores, **limits), reference.dtf(scores, **limits), strict=True):
        assert_same(actual, expected)


@given(scores=hnp.arrays(np.float32, SHAPES, elements=SCORES), max_tokens=st.integers(0, 300))
def test_a_kept_token_has_all_tokens_above_it(scores: NDArray[np.float32], max_tokens: int) -> None:
    positions, depths, cu_seqlens = kernels.dtf(scores, max_tokens=max_tokens)
    images, patches, depth = scores.shape
    assert (np.diff(cu_seqlens) <= max_tokens).all()
    assert (np.diff(positions) >= 0).all()
    stacks = np.bincount(positions, minlength=images * patches)
    assert stacks.max(initial=0) <= depth
    assert depths.tolist() == [k + 1 for stack in stacks for k in range(stack)]


@given(
    seed=SEEDS,
    patches=st.sampled_from([1024, 4800, 30_000]),
    tau=st.floats(0.001, 1),
    spread=st.sampled_from([1e-4, 1.0, 12.0, 1e4, 1e7]),
)
def test_dtf_equals_reference_on_frames(seed: int, patches: int, tau: float, spread: float) -> None:
    depth = 1 + seed % 4
    scores = (np.random.default_rng(seed).gamma(0.7, spread, (2, patches, depth))).astype(np.float32)
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"max_tokens": patches // 5},
        {"min_tokens": patches // 2, "floor_bits": spread},
    )
    for limits in cases:
        actual = kernels.dtf(scores, tau=tau, **limits)
        for a, e in zip(actual, reference.dtf(scores, tau=tau, **limits), strict=True):
            assert_same(a, e)


def test_dtf_by_hand() -> None:
    scores = np.array([[1, 6, 2, 6, 0, 1], [0, 0, 0, 0, 0, 0]], np.float32)[:, :, None]

    def kept(**limits: Any) -> list[list[int]]:
        positions, depths, cu = kernels.dtf(scores, **limits)
        assert (depths == 1).all()
        return [positions[cu[b] : cu[b + 1]].tolist() for b in range(2)]

    assert kept() == [[0, 1, 2, 3, 5], []]  # zero bits add nothing, so they are never needed
    assert kept(tau=12 / 16) == [[1, 3], []]
    assert kept(tau=12 / 16 + 1e-8) == [[1, 2, 3], []]
    assert kept(tau=0.01) == [[1], []]  # of equal scores the first position
    assert kept(tau=1e-300) == [[1], []]
    assert kept(tau=15 / 16) == [[0, 1, 2, 3], []]
    assert kept(max_tokens=1) == [[1], []]
    assert kept(max_tokens=0) == [[], []]
    assert kept(tau=0.01, min_tokens=3) == [[1, 2, 3], [6, 7, 8]]
    assert kept(min_tokens=100) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert kept(floor_bits=2.0) == [[1, 2, 3], []]
    assert kept(floor_bits=2.00001) == [[1, 3], []]
    assert kept(floor_bits=9.0, min_tokens=1) == [[1], [6]]


def test_stacks_by_hand() -> None:
    scores = np.array([[5, 2, 2], [1, 9, 9], [5, 5, 0], [2, 2, 2]], np.float32)[None]

    def kept(**limits: Any) -> list[str]:
        """Position and depth of each token."""
        positions, depths, _ = kernels.dtf(scores, **limits)
        return [f"{position}.{depth}" for position, depth in zip(positions, depths, strict=True)]

    # The second and third tokens of patch 1 count as 1, because its first one does.
    assert kept() == ["0.1", "0.2", "0.3", "1.1", "1.2", "1.3", "2.1", "2.2", "3.1", "3.2", "3.3"]
    assert kept(max_tokens=1) == ["0.1"]  # of equal scores the first depth, then the first position
    assert kept(max_tokens=2) == ["0.1", "2.1"]
    assert kept(max_tokens=3) == ["0.1", "2.1", "2.2"]
    assert kept(max_tokens=4) == ["0.1", "2.1", "2.2", "3.1"]
    assert kept(max_tokens=6) == ["0.1", "0.2", "2.1", "2.2", "3.1", "3.2"]
    assert kept(tau=15 / 28) == kept(max_tokens=3)
    assert kept(tau=15 / 28 + 1e-8) == kept(max_tokens=4)
    assert kept(floor_bits=2.0) == kept(max_tokens=8)
    assert kept(floor_bits=5.5, min_tokens=2) == kept(max_tokens=2)
    assert kept(min_tokens=12)[8:] == ["2.3", "3.1", "3.2", "3.3"]


def test_dtf_sums_saturated_scores_exactly() -> None:
    scores = np.full((1, 1 << 14, 4), 3e38, np.float32)
    positions, depths, _ = kernels.dtf(scores, tau=0.5)
    assert len(positions) == 1 << 15
    assert (np.bincount(depths) == [0, 1 << 14, 1 << 14]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-30])
def test_dtf_names_the_bad_score(bad: float) -> None:
    scores = np.ones((2, 50, 3), np.float32)
    scores[1, 17, 2] = bad
    with pytest.raises(ValueError, match=r"scores\[1, 17, 2\] is .*finite"):
        kernels.dtf(scores)


@pytest.mark.parametrize("depth", [0, 9])
def test_dtf_rejects_depths(depth: int) -> None:
    with pytest.raises(ValueError, match=r"1 to 8 depths \(B, N, K\), got \(1, 4, "):
        kernels.dtf(np.ones((1, 4, depth), np.float32))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"tau": 0.0}, "tau must be above 0"),
        ({"tau": 1.0000001}, "tau must be above 0"),
        ({"tau": float("nan")}, "tau must be above 0"),
        ({"min_tokens": -1}, "min_tokens=-1"),
        ({"min_tokens": 3, "max_tokens": 2}, "max_tokens=2"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"floor_bits": -0.5}, "floor_bits"),
        ({"floor_bits": float("inf")}, "floor_bits"),
        ({"floor_bits": float("nan")}, "floor_bits"),
    ],
)
def test_dtf_rejects_limits(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.dtf(np.ones((1, 4, 1), np.float32), **limits)


def test_dtf_runs_in_threads(rng: np.random.Generator) -> None:
    batches = [rng.gamma(1.0, 8.0, (3, 1600, 3)).astype(np.float32) for _ in range(4)]
    expected = [reference.dtf(scores, tau=0.4) for scores in batches]

    def work(i: int) -> None:
        for _ in range(30):
            for actual, wanted in zip(kernels.dtf(batches[i], tau=0.4), expected[i], strict=True):
                assert np.array_equal(actual, wanted)

    in_threads(4, work)
