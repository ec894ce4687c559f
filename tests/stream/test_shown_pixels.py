"""Incremental decoding against decoding the whole grid, and the places of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge import StreamEncoder, Tokenizer
from tatok_edge.model.networks import Clock
from tatok_edge.runtime.cpu import kernels
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.change import noise_limit
from tatok_edge.stream.pixels import Maps, decode_patches, put_patches, reach_of
from tatok_edge.stream.state import context_of, empty_state
from tatok_edge.stream.windows import around, windows_of


def maps_of(tokenizer: Tokenizer, grid: tuple[int, int], seed: int) -> Maps:
    """What is held of a picture."""
    encoder = StreamEncoder(tokenizer)
    encoder.encode(render(Scene(width=8 * grid[1], height=8 * grid[0], seed=seed), 0))
    assert encoder.state is not None
    return encoder.state.maps


@pytest.mark.parametrize("share", [0.002, 0.01, 0.05, 0.3, 1.0])
def test_updated_patches_are_those_of_the_whole_grid(tokenizer: Tokenizer, share: float) -> None:
    rng, grid = np.random.default_rng(1), (28, 36)
    count = grid[0] * grid[1]
    held, new = maps_of(tokenizer, grid, 2), maps_of(tokenizer, grid, 3)
    patches = np.sort(rng.choice(count, max(1, int(share * count)), replace=False)).astype(np.int32)
    columns = Maps(*(np.take(values, patches, 1) for values in new.named().values()))
    reach = reach_of(tokenizer.bundle.manifest)
    shown = np.union1d(patches, rng.choice(count, 5)).astype(np.int32)
    pixels = decode_patches(tokenizer.networks, held, patches, columns, shown, grid, reach, Clock())
    after = held.copy()
    after.write(patches, columns)
    whole = tokenizer.networks.pixels(after.state, after.context, after.mean, grid, Clock())
    expected = kernels.assemble(whole, grid[1], 8 * grid[0], 8 * grid[1], False)
    picture = expected.copy()
    put_patches(picture, shown, pixels)
    difference = np.abs(picture.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_corners_and_edges(tokenizer: Tokenizer) -> None:
    grid, reach = (16, 20), reach_of(tokenizer.bundle.manifest)
    held = maps_of(tokenizer, grid, 4)
    whole = tokenizer.networks.pixels(held.state, held.context, held.mean, grid, Clock())
    expected = kernels.assemble(whole, 20, 128, 160, False)
    for patch in (0, 19, 300, 319, 10, 160, 170):
        one = np.array([patch], np.int32)
        columns = Maps(*(np.take(values, one, 1) for values in held.named().values()))
        pixels = decode_patches(tokenizer.networks, held, one, columns, one, grid, reach, Clock())
        picture = expected.copy()
        put_patches(picture, one, pixels)
        assert np.abs(picture.astype(int) - expected).max() <= 1, patch


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 6), st.data())
@settings(max_examples=60)
def test_windows_hold_each_patch_and_what_the_decoder_sees(
    rows: int, columns: int, reach: int, data: st.DataObject
) -> None:
    patches = np.unique(data.draw(st.lists(st.integers(0, rows * columns - 1), min_size=1))).astype(np.int32)
    windows = windows_of(patches, (rows, columns), reach)
    assert sorted(np.concatenate([window.members for window in windows]).tolist()) == list(range(len(patches)))
    for window in windows:
        (top, left), (height, width) = window.corner, window.size
        row, column = np.divmod(patches[window.members], columns)
        assert top >= 0 and top + height <= rows and left >= 0 and left + width <= columns
        assert (top <= np.maximum(row - reach, 0)).all() and (left <= np.maximum(column - reach, 0)).all()
        assert (top + height >= np.minimum(row + reach + 1, rows)).all()
        assert (left + width >= np.minimum(column + reach + 1, columns)).all()
    assert sum(window.size[0] * window.size[1] for window in windows) <= rows * columns


def test_patches_far_apart_get_small_windows_of_their_own() -> None:
    def sizes(*patches: int) -> list[tuple[int, int]]:
        return sorted(window.size for window in windows_of(np.array(patches, np.int32), (40, 60), 4))

    far = 30 * 60 + 50  # row 30, column 50
    assert sizes(5 * 60 + 5, far) == [(9, 9), (9, 9)]
    assert sizes(5 * 60 + 5, 5 * 60 + 6, 6 * 60 + 7) == [(10, 11)]
    assert sizes(0, 1, far) == [(5, 6), (9, 9)]


@given(st.integers(2, 12), st.integers(2, 12), st.data())
@settings(max_examples=20)
def test_context_around_some_patches_is_nearly_that_of_all_cells(
    tokenizer: Tokenizer, rows: int, columns: int, data: st.DataObject
) -> None:
    size = empty_state(32 * columns, 32 * rows, tokenizer)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    ids = rng.integers(0, int(np.prod(tokenizer.levels)), size.n_cells).astype(np.int32)
    chosen = data.draw(st.lists(st.integers(0, size.n_patches - 1), min_size=1, max_size=9))
    patches = np.unique(chosen).astype(np.int32)
    codes = kernels.codes_from_ids(ids, tokenizer.levels).T.reshape(-1, rows, columns)
    whole = tokenizer.networks.cell_context(codes, Clock()).of(patches)
    some = context_of(patches, ids, size, tokenizer, Clock())
    assert some.mean.shape == whole.mean.shape and some.coarse.shape == whole.coarse.shape
    assert np.abs(some.mean - whole.mean).mean() * 127.5 < 0.5
    # Columns are in the order of the patches: those of other patches would differ by far more.
    assert (np.abs(some.mean[:, :, None] - whole.mean[:, None]).mean(0).argmin(1) == np.arange(len(patches))).all()


def test_noise_limit_follows_the_noise(rng: np.random.Generator) -> None:
    flat = np.full((64, 96, 3), 120.0)
    limits = []
    for sigma in (0.0, 2.0, 4.0, 40.0):
        noisy = np.clip(np.rint(flat + rng.normal(0, sigma, flat.shape)), 0, 255).astype(np.uint8)
        limits.append(noise_limit(noisy))
    assert limits[0] == 8.0 and 12 < limits[1] < 40 and 2.5 < limits[2] / limits[1] < 5 and limits[3] == 200.0


def test_around_is_a_square_around_each_mark() -> None:
    marks = np.zeros((9, 12), np.bool_)
    marks[0, 0] = marks[5, 6] = True
    expected = np.zeros_like(marks)
    expected[:3, :3] = expected[3:8, 4:9] = True
    np.testing.assert_array_equal(around(marks, 2), expected)
