"""The parts of a stream encoder: selection, windows, packet sizes, noise."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.stream.change import noise_limit
from tatok_edge.stream.rate import fit
from tatok_edge.stream.selection import best_per_cell, choose
from tatok_edge.stream.state import cell_of, inside, window_around


@given(
    losses=st.lists(st.floats(0, 1e4, width=32), min_size=0, max_size=60),
    lives=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1.2),
)
def test_choose_takes_the_fewest_that_are_worth_most(losses: list[float], lives: int, share: float) -> None:
    loss = np.array(losses, np.float32)
    life = np.random.default_rng(lives).uniform(1, 8, len(loss)).astype(np.float32)
    allowed = share * float(loss.sum(dtype=np.float64))
    chosen, limit = choose(loss, life, allowed)
    value = loss * life
    assert loss[~chosen].sum(dtype=np.float64) <= allowed * (1 + 1e-9) or not loss[~chosen].any()
    if chosen.any():
        assert value[chosen].min() >= value[~chosen & (loss > 0)].max(initial=0)
        # One token fewer would be too few.
        worst = np.flatnonzero(chosen)[np.argmin(value[chosen])]
        assert loss[~chosen].sum(dtype=np.float64) + loss[worst] > allowed * (1 - 1e-6)
        assert limit <= value[chosen].min()


def test_best_per_cell() -> None:
    scores = np.array([1, 5, 3, 9, 2, 7], np.float32)
    cells = np.array([0, 0, 1, 1, 1, 4], np.int32)
    among = np.array([True, True, True, False, True, True])
    assert sorted(best_per_cell(scores, among, cells)) == [1, 2, 5]
    assert len(best_per_cell(scores, np.zeros(6, np.bool_), cells)) == 0


@given(most=st.integers(0, 400), limit=st.integers(0, 500))
def test_fit_takes_what_fits(most: int, limit: int) -> None:
    count, packet = fit(lambda count: (count, b"x" * (10 + count)), most, 8 * limit)
    assert len(packet) <= limit or count == 0
    assert count <= most
    if 10 + most <= limit:
        assert count == most
    elif limit >= 10:
        assert count >= limit - 10 - max(1, most >> 7)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_windows_hold_their_cells(rows: int, columns: int, data: st.DataObject) -> None:
    cells = np.unique(data.draw(st.lists(st.integers(0, rows * columns - 1), min_size=1))).astype(np.int32)
    top, left, height, width = window_around(cells, (rows, columns))
    assert top >= 0 and left >= 0 and top + height <= rows and left + width <= columns
    row, column = np.divmod(cells, columns)
    assert (row >= top).all() and (row < top + height).all() and (column >= left).all()
    assert (column < left + width).all()
    positions = np.arange(rows * columns * 16, dtype=np.int32)
    positions = positions[np.isin(cell_of(positions, 4 * columns), cells)]
    source = inside(positions, (top, left, height, width), 4 * columns)
    assert (np.diff(source) > 0).all() and source.min() >= 0 and source.max() < 16 * height * width
    y, x = np.divmod(positions, 4 * columns)
    assert np.array_equal(np.divmod(source, 4 * width), (y - 4 * top, x - 4 * left))


def test_noise_limit_follows_the_noise(rng: np.random.Generator) -> None:
    flat = np.full((64, 96, 3), 120.0)
    limits = []
    for sigma in (0.0, 2.0, 4.0, 40.0):
        noisy = np.clip(np.rint(flat + rng.normal(0, sigma, flat.shape)), 0, 255).astype(np.uint8)
        limits.append(noise_limit(noisy))
    assert limits[0] == 8.0 and 12 < limits[1] < 40 and 2.5 < limits[2] / limits[1] < 5 and limits[3] == 200.0
