"""Time stamps that rise whatever a file says."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.sources.source import RisingClock


@given(st.lists(st.integers(-(10**9), 10**12), min_size=1), st.sampled_from([None, 0.5, 25.0, 1000.0]))
def test_time_stamps_rise_whatever_comes(stamps: list[int], fps: float | None) -> None:
    clock = RisingClock(fps)
    out = [clock(stamp) for stamp in stamps]
    assert out[0] == 0
    assert all(a < b for a, b in pairwise(out))


@given(st.lists(st.integers(1, 10**9), min_size=1), st.integers(-(10**9), 10**9))
def test_time_stamps_that_rise_are_kept(steps: list[int], start: int) -> None:
    clock = RisingClock(25)
    stamps = np.cumsum([start, *steps]).tolist()
    assert [clock(stamp) for stamp in stamps] == [stamp - start for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "becomes"),
    [
        ([0, 40, 40, 80], [0, 40_000, 40_001, 80_000]),
        ([0, 40, 120, 80, 160], [0, 40_000, 120_000, 120_001, 160_000]),
        ([5000, 5040, 0, 40, 80], [0, 40_000, 80_000, 120_000, 160_000]),
        ([900, 800, 700, 600, 640], [0, 1, 40_001, 80_001, 120_001]),
        ([0, 0, 0, 0], [0, 40_000, 80_000, 120_000]),
    ],
)
def test_time_stamps_that_do_not_rise(stamps: list[int], becomes: list[int]) -> None:
    clock = RisingClock(25)
    assert [clock(1000 * stamp) for stamp in stamps] == becomes
