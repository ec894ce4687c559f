"""Frames, batches and budgets: what they hold, and what they do not take."""

from __future__ import annotations

import gc
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.example_frames import TAG, int32, make_delta, make_frame
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import InputError, TaTokError
from tatok_edge.geometry import cell_grid, patch_grid, touched_cells
from tatok_edge.stream.state import turns_of
from tatok_edge.tokens.batch import TokenBatch
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

# --- frames -------------------------------------------------------------------------------------


def test_a_frame_says_what_it_is() -> None:
    frame = make_frame(100, 70, 30, index=4, timestamp_us=-5)
    assert frame.cell_grid == (3, 4)
    assert frame.grid == (12, 16)
    assert (frame.n_patches, frame.n_tokens, frame.n_globals) == (192, 30, 12)
    keep = frame.keep_map()
    assert keep.shape == (12, 16)
    assert keep.dtype == np.bool_
    np.testing.assert_array_equal(np.flatnonzero(keep), frame.positions)
    assert repr(frame) == (
        "TokenFrame(100x70, 30 of 192 patch tokens, 12 global tokens, model=0123456789abcdef, index=4, timestamp_us=-5)"
    )


def test_a_frame_holds_the_arrays_that_it_is_given() -> None:
    ids = int32([1, 2])
    frame = TokenFrame(ids, int32([0, 9]), int32([5]), 32, 32, TAG)
    assert frame.ids is ids
    assert np.from_dlpack(frame.ids).ctypes.data == ids.ctypes.data


def test_frames_are_equal_by_content_and_survive_pickling() -> None:
    frame = make_frame(64, 64, 9)
    assert frame == make_frame(64, 64, 9)
    assert frame != make_frame(64, 64, 9, seed=1)
    assert frame != make_frame(64, 64, 9, index=1)
    assert frame != make_frame(64, 64, 8)
    assert frame != "frame"
    assert pickle.loads(pickle.dumps(frame)) == frame
    with pytest.raises(TypeError, match="unhashable"):
        hash(frame)
    with pytest.raises(AttributeError):
        frame.width = 5  # type: ignore[misc]


@pytest.mark.parametrize(("size", "cells"), [((32, 32), (1, 1)), ((33, 32), (1, 2)), ((640, 480), (15, 20))])
def test_grids_round_up_to_whole_cells(size: tuple[int, int], cells: tuple[int, int]) -> None:
    assert cell_grid(*size) == cells
    assert patch_grid(*size) == (4 * cells[0], 4 * cells[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": [1, 2]}, "ids must be a numpy array of int32, got list"),
        ({"ids": np.array([1, 2])}, r"ids must be int32, got int64; convert it with \.astype"),
        ({"ids": np.array([1.0, 2.0])}, "ids must be int32, got float64"),
        ({"ids": int32([[1, 2]])}, r"ids must have one dimension, got shape \(1, 2\)"),
        ({"ids": int32([1, -2])}, "ids must not be negative, got -2"),
        ({"ids": int32([1, 2, 3, 4])[::2]}, "ids must be contiguous"),
        ({"ids": int32([1])}, "positions must be as many as ids, got 2 for 1 ids"),
        ({"positions": int32([3, 3])}, "positions must be strictly increasing, got 3 then 3"),
        ({"positions": int32([4, 3])}, "positions must be strictly increasing, got 4 then 3"),
        ({"positions": int32([-1, 3])}, "positions must be from 0 to 31 for this image, got -1"),
        ({"positions": int32([0, 32])}, "positions must be from 0 to 31 for this image, got 32"),
        ({"global_ids": int32([1])}, "global_ids must be 1 x 2 = 2 for a 64x32 image, got 1"),
        ({"width": 31}, "width must be from 32 to 16384 pixels, got 31"),
        ({"height": 16385}, "height must be from 32 to 16384 pixels, got 16385"),
        ({"width": 64.0}, r"width must be an integer, got 64\.0"),
        ({"width": True}, "width must be an integer, got True"),
        ({"model": b"short"}, "model must be the 8 bytes of the bundle's tag, got 5 bytes"),
        ({"model": "01234567"}, "model must be the 8 bytes of the bundle's tag, got str"),
        ({"index": -1}, r"index must be from 0 to 2\^63 - 1, got -1"),
        ({"timestamp_us": 1 << 63}, "timestamp_us must fit a signed 64-bit number"),
    ],
)
def test_what_a_frame_does_not_take(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "ids": int32([1, 2]),
        "positions": int32([0, 9]),
        "global_ids": int32([5, 6]),
        "width": 64,
        "height": 32,
        "model": TAG,
    }
    TokenFrame(**values)
    with pytest.raises(InputError, match=message) as caught:
        TokenFrame(**{**values, **change})
    assert isinstance(caught.value, (TaTokError, ValueError))
    assert "\n" not in str(caught.value)


# --- deltas -------------------------------------------------------------------------------------


def test_a_delta_says_what_it_is() -> None:
    delta, _ = make_delta(make_frame(100, 70, 30, index=4), 50, 20, 3, index=6, timestamp_us=-5)
    assert (delta.cell_grid, delta.grid) == ((3, 4), (12, 16))
    assert (delta.n_patches, delta.n_updated, delta.n_tokens, delta.n_updated_cells) == (192, 50, 20, 3)
    for chosen, positions in ((delta.update_map(), delta.updated), (delta.keep_map(), delta.positions)):
        assert (chosen.shape, chosen.dtype) == ((12, 16), np.bool_)
        np.testing.assert_array_equal(np.flatnonzero(chosen), positions)
    assert repr(delta) == (
        "DeltaFrame(100x70, 50 of 192 patches updated, 20 patch tokens, 3 of 12 global tokens, "
        "0 vectors, window=(0, 0, 3, 4), model=0123456789abcdef, index=6, reference=4, follows=00000000, "
        "timestamp_us=-5)"
    )


def test_deltas_are_equal_by_content_and_survive_pickling() -> None:
    frame = make_frame(100, 70, 30, index=4)
    delta, _ = make_delta(frame, 50, 20, 3)
    assert delta == make_delta(frame, 50, 20, 3)[0]
    for other in (
        make_delta(frame, 50, 20, 3, seed=1),
        make_delta(frame, 50, 20, 3, index=9),
        make_delta(frame, 50, 20, 3, timestamp_us=1),
        make_delta(frame, 51, 20, 3),
        make_delta(frame, 50, 21, 3),
        make_delta(frame, 50, 20, 2),
        (frame, None),
    ):
        assert delta != other[0]
    assert pickle.loads(pickle.dumps(delta)) == delta
    with pytest.raises(TypeError, match="unhashable"):
        hash(delta)
    with pytest.raises(AttributeError):
        delta.reference = 5  # type: ignore[misc]


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_touched_cells_are_those_of_the_updated_patches(rows: int, columns: int, draw: st.DataObject) -> None:
    places = draw.draw(st.sets(st.tuples(st.integers(0, 4 * rows - 1), st.integers(0, 4 * columns - 1))))
    update_map = np.zeros((4 * rows, 4 * columns), np.bool_)
    for y, x in places:
        update_map[y, x] = True
    touched = touched_cells(update_map)
    assert touched.shape == (rows, columns)
    assert set(zip(*np.nonzero(touched), strict=True)) == {(y // 4, x // 4) for y, x in places}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updated": [0, 5, 9]}, "updated must be a numpy array of int32, got list"),
        ({"updated": int32([5, 0, 9])}, "updated must be strictly increasing, got 5 then 0"),
        ({"updated": int32([0, 5, 32])}, "updated must be from 0 to 31 for this image, got 32"),
        ({"updated": int32([])}, "positions must be among updated, got 0, which is not updated"),
        ({"positions": int32([0, 8])}, "positions must be among updated, got 8, which is not updated"),
        ({"positions": int32([5, 5])}, "positions must be strictly increasing, got 5 then 5"),
        ({"positions": int32([5, 99])}, "positions must be from 0 to 31 for this image, got 99"),
        ({"ids": int32([1])}, "positions must be as many as ids, got 2 for 1 ids"),
        ({"ids": int32([1, -2])}, "ids must not be negative, got -2"),
        ({"ids": np.array([1, 2])}, "ids must be int32, got int64"),
        ({"cells": int32([0, 1])}, "cells must be as many as global_ids, got 2 for 1 global_ids"),
        ({"cells": int32([2])}, "cells must be from 0 to 1 for this image, got 2"),
        ({"cells": int32([-1])}, "cells must be from 0 to 1 for this image, got -1"),
        ({"updated": int32([]), "positions": int32([]), "ids": int32([])}, "cells must be empty .* updated, got 1"),
        (
            {name: int32([]) for name in ("updated", "positions", "ids", "cells", "global_ids")},
            r"window must be \(0, 0, 0, 0\) where no patch is updated, got \(0, 0, 1, 2\)",
        ),
        ({"window": (0, 0, 1, 1)}, r"window must hold all cells that contain an updated patch, got \(0, 0, 1, 1\)"),
        ({"window": (0, 1, 1, 2)}, r"window must lie in the 1 x 2 cells of this image, got \(0, 1, 1, 2\)"),
        ({"window": (0, -1, 1, 2)}, r"window must lie in the 1 x 2 cells"),
        ({"window": (0, 0, 0, 0)}, r"window must lie in the 1 x 2 cells"),
        ({"window": (0, 0, 1)}, r"window must be four integers .*, got \(0, 0, 1\)"),
        ({"window": None}, "window must be four integers .*, got None"),
        (
            {"turns": int32([0])},
            r"vectors must be an int32 numpy array \(1, 2\), one for each of turns, got int32 \(0, 2\)",
        ),
        ({"turns": int32([2]), "vectors": int32([[1, 0]])}, "turns must be"),
        ({"turns": int32([0]), "vectors": int32([[0, 63]])}, "vectors must be from -62 to 62 half pixels"),
        ({"turns": int32([0]), "vectors": int32([[0, 0]])}, r"vectors must differ .* the first one from \(0, 0\)"),
        ({"turns": int32([0, 1]), "vectors": int32([[3, 4], [3, 4]])}, "vectors must differ from the one before"),
        ({"window": (0, 0, 1.0, 2)}, r"window must be an integer, got 1\.0"),
        ({"follows": -1}, r"follows must be from 0 to 2\^32 - 1, got -1"),
        ({"follows": 1 << 32}, r"follows must be from 0 to 2\^32 - 1, got 4294967296"),
        ({"global_ids": int32([-7])}, "global_ids must not be negative, got -7"),
        ({"width": 31}, "width must be from 32 to 16384 pixels, got 31"),
        ({"model": b"short"}, "model must be the 8 bytes of the bundle's tag, got 5 bytes"),
        ({"index": 3}, r"reference must be from 0 to below index \(3\), got 3"),
        ({"index": 0, "reference": 0}, r"reference must be from 0 to below index \(0\), got 0"),
        ({"reference": -1}, r"reference must be from 0 to below index \(4\), got -1"),
        ({"reference": 1.0}, r"reference must be an integer, got 1\.0"),
        ({"timestamp_us": 1 << 63}, "timestamp_us must fit a signed 64-bit number"),
    ],
)
def test_what_a_delta_does_not_take(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "updated": int32([0, 5, 9]),
        "positions": int32([0, 5]),
        "ids": int32([1, 2]),
        "cells": int32([1]),
        "global_ids": int32([5]),
        "width": 64,
        "height": 32,
        "model": TAG,
        "index": 4,
        "reference": 3,
        "follows": 9,
        "window": (0, 0, 1, 2),
    }
    DeltaFrame(**values)
    with pytest.raises(InputError, match=message) as caught:
        DeltaFrame(**{**values, **change})
    assert "\n" not in str(caught.value)


@given(st.lists(st.integers(-2, 2), min_size=12, max_size=12), st.integers(0, 12))
def test_motion_is_that_of_its_turns(values: list[int], still: int) -> None:
    dense = int32([(v, -v) for v in values]).reshape(3, 4, 2)
    dense.reshape(-1, 2)[:still] = 0
    turns, vectors = turns_of(dense)
    delta, _ = make_delta(make_frame(100, 70, 30), 0, 0, 0)
    delta = replace(delta, turns=turns, vectors=vectors)
    assert delta.n_vectors == len(turns)
    np.testing.assert_array_equal(delta.motion(), dense)


# --- batches ------------------------------------------------------------------------------------


def test_a_batch_gives_back_its_frames() -> None:
    frames = [
        make_frame(64, 32, 5, 1, index=7, timestamp_us=10),
        make_frame(32, 32, 0, 2, index=8, timestamp_us=20),
        make_frame(100, 70, 192, 3, index=9, timestamp_us=30),
    ]
    batch = TokenBatch.from_frames(frames)
    assert len(batch) == 3
    assert batch.cu_seqlens.tolist() == [0, 5, 5, 197]
    assert batch.cu_globals.tolist() == [0, 2, 3, 15]
    assert batch.cu_seqlens.dtype == batch.cu_globals.dtype == np.int32
    assert batch.sizes == ((64, 32), (32, 32), (100, 70))
    assert batch.frames() == frames
    assert batch == TokenBatch.from_frames(frames)
    assert batch != TokenBatch.from_frames(frames[:2])
    assert "3 frames, 197 patch tokens, 15 global tokens" in repr(batch)


def test_frames_of_a_batch_are_views_that_keep_it_alive() -> None:
    batch = TokenBatch.from_frames([make_frame(64, 32, 5, 1), make_frame(64, 32, 6, 2)])
    frame = batch.frames()[1]
    assert frame.ids.base is not None
    assert np.shares_memory(frame.ids, batch.ids)
    expected = make_frame(64, 32, 6, 2, index=0)
    del batch
    gc.collect()
    assert frame == expected


@given(st.lists(st.tuples(st.integers(32, 130), st.integers(32, 130), st.floats(0, 1)), min_size=1, max_size=4))
def test_any_frames_go_through_a_batch(sizes: list[tuple[int, int, float]]) -> None:
    frames = []
    for number, (width, height, share) in enumerate(sizes):
        rows, columns = patch_grid(width, height)
        frames.append(make_frame(width, height, int(share * rows * columns), number, index=number))
    assert TokenBatch.from_frames(frames).frames() == frames


def test_what_a_batch_does_not_take() -> None:
    frame = make_frame(64, 32, 5)
    with pytest.raises(InputError, match="at least one TokenFrame"):
        TokenBatch.from_frames([])
    with pytest.raises(InputError, match=r"one model, got 2 \(0123456789abcdef, 7a7a7a7a7a7a7a7a\)"):
        TokenBatch.from_frames([frame, make_frame(64, 32, 5, tag=b"z" * 8)])
    good: dict[str, Any] = {
        "ids": frame.ids,
        "positions": frame.positions,
        "cu_seqlens": int32([0, 5]),
        "global_ids": frame.global_ids,
        "cu_globals": int32([0, 2]),
        "sizes": ((64, 32),),
        "model": TAG,
    }
    assert TokenBatch(**good).frames() == [frame]
    for change, message in [
        ({"cu_seqlens": int32([0, 4])}, "cu_seqlens must rise from 0 to 5, got 0 to 4"),
        ({"cu_seqlens": int32([0, 2, 5])}, "cu_seqlens must have 2 entries for 1 images, got 3"),
        ({"cu_globals": int32([0, 1])}, "cu_globals must rise from 0 to 2"),
        ({"positions": int32([0, 1, 2, 3, 99])}, "frame 0 of the batch: positions must be from 0 to 31"),
        ({"sizes": ((64, 64),)}, "frame 0 of the batch: global_ids must be 2 x 2 = 4"),
        ({"sizes": ((64, 20),)}, "frame 0 of the batch: height must be from 32"),
        ({"indices": (1, 2)}, r"indices must be one per image \(1\), got 2"),
    ]:
        with pytest.raises(InputError, match=message):
            TokenBatch(**{**good, **change})
    hostile = {
        "sizes": ((64, 32),) * 3,
        "cu_seqlens": int32([0, 2**31 - 1, -(2**31), 5]),
        "cu_globals": int32([0, 2, 2, 2]),
    }
    with pytest.raises(InputError, match="cu_seqlens must rise"):
        TokenBatch(**{**good, **hostile})


# --- budgets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "limits"),
    [
        (TokenBudget(), (0, 100)),
        (TokenBudget(keep=0.25), (0, 25)),
        (TokenBudget(keep=0.0), (0, 0)),
        (TokenBudget(max_tokens=7), (0, 7)),
        (TokenBudget(max_tokens=1000), (0, 100)),
        (TokenBudget(keep=0.5, max_tokens=60), (0, 50)),
        (TokenBudget(keep=0.5, max_tokens=40), (0, 40)),
        (TokenBudget(min_tokens=5), (5, 100)),
        (TokenBudget(min_tokens=50, max_tokens=40), (40, 40)),
        (TokenBudget(min_tokens=500), (100, 100)),
    ],
)
def test_limits_of_a_budget(budget: TokenBudget, limits: tuple[int, int]) -> None:
    assert budget.limits(100) == limits


def test_budgets_take_numpy_numbers_and_are_values() -> None:
    budget = TokenBudget(tau=np.float32(0.5), max_tokens=np.int64(3))  # type: ignore[arg-type]
    assert type(budget.tau) is float
    assert type(budget.max_tokens) is int
    assert budget == TokenBudget(tau=0.5, max_tokens=3)
    assert len({budget, TokenBudget(tau=0.5, max_tokens=3)}) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tau": 0}, "tau must be above 0 and at most 1, got 0"),
        ({"tau": 1.01}, r"tau must be above 0 and at most 1, got 1\.01"),
        ({"tau": float("nan")}, "tau must be above 0 and at most 1, got nan"),
        ({"tau": "0.5"}, r"tau must be a number, got '0\.5'"),
        ({"tau": None}, "tau must be a number, got NoneType"),
        ({"keep": -0.1}, r"keep must be from 0 to 1 \(a share of the patches\), got -0\.1"),
        ({"keep": 35}, "keep must be from 0 to 1"),
        ({"max_tokens": -1}, "max_tokens must be at least 0, got -1"),
        ({"max_tokens": 2.5}, r"max_tokens must be an integer, got 2\.5"),
        ({"max_tokens": True}, "max_tokens must be an integer, got True"),
        ({"max_bits": 0}, "max_bits must be at least 1, got 0"),
        ({"min_tokens": -3}, "min_tokens must be at least 0, got -3"),
        ({"floor_bits": -1}, "floor_bits must be a finite number of bits from 0, got -1"),
        ({"floor_bits": float("inf")}, "floor_bits must be a finite number"),
        ({"score": "variance"}, "score must be 'residual', 'information' or 'entropy', got 'variance'"),
    ],
)
def test_what_a_budget_does_not_take(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TokenBudget(**values)
