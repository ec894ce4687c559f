"""Frames, deltas and batches: what they hold, and what they do not take."""

from __future__ import annotations

import gc
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from helpers.token_frames import TAG, delta_of, frame_of, frame_with, int32
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import InputError, TaTokError
from tatok_edge.geometry import cell_grid, patch_grid
from tatok_edge.stream.windows import turns_of
from tatok_edge.tokens.batch import TokenBatch
from tatok_edge.tokens.checks import MAX_DEPTH
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

# --- frames -------------------------------------------------------------------------------------


def test_a_frame_says_what_it_is() -> None:
    depth_map = np.zeros((12, 16), np.int32)
    depth_map[0, 3], depth_map[5, 7], depth_map[11, 15] = 1, 4, 2
    frame = frame_of(depth_map, 100, 70, index=4, timestamp_us=-5)
    assert frame.cell_grid == (3, 4)
    assert frame.grid == (12, 16)
    assert (frame.n_patches, frame.n_tokens, frame.n_globals) == (192, 7, 12)
    assert frame.positions.tolist() == [3, 87, 87, 87, 87, 191, 191]
    assert frame.depths.tolist() == [1, 1, 2, 3, 4, 1, 2]
    assert frame.depths.dtype == frame.depth_map().dtype == np.int32
    np.testing.assert_array_equal(frame.depth_map(), depth_map)
    assert repr(frame) == (
        "TokenFrame(100x70, 7 patch tokens in 3 of 192 patches, 12 global tokens, model=0123456789abcdef, index=4, "
        "timestamp_us=-5)"
    )


@given(st.lists(st.integers(0, MAX_DEPTH), min_size=32, max_size=32))
def test_depths_and_depth_map_are_those_of_the_stacks(depths: list[int]) -> None:
    frame = frame_of(depths)
    assert frame.depth_map().shape == (4, 8)
    assert frame.depth_map().ravel().tolist() == depths
    assert frame.depths.tolist() == [number for depth in depths for number in range(1, depth + 1)]
    assert frame.positions.tolist() == [patch for patch, depth in enumerate(depths) for _ in range(depth)]


def test_a_frame_holds_the_arrays_that_it_is_given() -> None:
    ids = int32([1, 2])
    frame = TokenFrame(ids, int32([0, 9]), int32([5]), 32, 32, TAG)
    assert frame.ids is ids
    assert np.from_dlpack(frame.ids).ctypes.data == ids.ctypes.data


def test_frames_are_equal_by_content_and_survive_pickling() -> None:
    frame = frame_with(64, 64, 9)
    assert frame == frame_with(64, 64, 9)
    assert frame != frame_with(64, 64, 9, seed=1)
    assert frame != frame_with(64, 64, 9, index=1)
    assert frame != frame_with(64, 64, 8)
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
        ({"positions": int32([4, 3])}, "positions must not fall, got 4 then 3"),
        (
            {"positions": int32([3] * 9), "ids": int32([0] * 9)},
            "positions must hold each index at most 8 times, got 3 9 times or more",
        ),
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
    delta = delta_of({17: 2, 20: 0, 21: 1, 190: 3}, 100, 70, refined=[21, 190], cells=[5], index=6, timestamp_us=-5)
    assert (delta.cell_grid, delta.grid) == ((3, 4), (12, 16))
    assert (delta.n_patches, delta.n_updated, delta.n_tokens, delta.n_updated_cells) == (192, 4, 6, 1)
    assert delta.positions.tolist() == [17, 17, 21, 190, 190, 190]
    for chosen, places in ((delta.update_map(), [17, 20, 21, 190]), (delta.renewed_map(), [17, 20])):
        assert (chosen.shape, chosen.dtype) == ((12, 16), np.bool_)
        assert np.flatnonzero(chosen).tolist() == places
    assert repr(delta) == (
        "DeltaFrame(100x70, 4 of 192 patches updated (2 refined), 6 patch tokens, 1 of 12 global tokens, "
        "0 vectors, model=0123456789abcdef, index=6, reference=5, follows=00000000, "
        "timestamp_us=-5)"
    )


def test_deltas_are_equal_by_content_and_survive_pickling() -> None:
    def made(**changes: Any) -> DeltaFrame:
        return delta_of({3: 1, 4: 0, 9: 2}, cells=[0, 1], **changes)

    delta = made()
    assert delta == made()
    for other in (
        made(seed=1),
        made(index=9),
        made(timestamp_us=1),
        made(refined=[9]),
        delta_of({3: 1, 4: 0, 8: 2}, cells=[0, 1]),
        delta_of({3: 1, 4: 0, 9: 3}, cells=[0, 1]),
        delta_of({3: 1, 4: 0, 9: 2}, cells=[1]),
        frame_with(64, 32, 3),
    ):
        assert delta != other
    assert pickle.loads(pickle.dumps(delta)) == delta
    with pytest.raises(TypeError, match="unhashable"):
        hash(delta)
    with pytest.raises(AttributeError):
        delta.reference = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updated": [0, 5, 9]}, "updated must be a numpy array of int32, got list"),
        ({"updated": int32([5, 0, 9])}, "updated must not fall, got 5 then 0"),
        ({"updated": int32([0, 5, 5, 9])}, "updated must hold each index once, got 5 2 times or more"),
        ({"updated": int32([0, 5, 32])}, "updated must be from 0 to 31 for this image, got 32"),
        ({"updated": int32([])}, "positions must be among updated, got 0, which is not updated"),
        ({"positions": int32([0, 8])}, "positions must be among updated, got 8, which is not updated"),
        ({"positions": int32([5, 0])}, "positions must not fall, got 5 then 0"),
        (
            {"positions": int32([5] * 9), "ids": int32([0] * 9)},
            "positions must hold each index at most 8 times, got 5 9 times or more",
        ),
        ({"refined": int32([5, 5])}, "refined must hold each index once, got 5 2 times or more"),
        ({"refined": int32([32])}, "refined must be from 0 to 31 for this image, got 32"),
        ({"refined": int32([7])}, "refined must be among updated, got 7, which is not"),
        ({"refined": int32([9])}, "refined must be among positions, got 9, which is not"),
        ({"refined": [5]}, "refined must be a numpy array of int32, got list"),
        ({"positions": int32([5, 99])}, "positions must be from 0 to 31 for this image, got 99"),
        ({"ids": int32([1])}, "positions must be as many as ids, got 2 for 1 ids"),
        ({"ids": int32([1, -2])}, "ids must not be negative, got -2"),
        ({"ids": np.array([1, 2])}, "ids must be int32, got int64"),
        ({"cells": int32([0, 1])}, "cells must be as many as global_ids, got 2 for 1 global_ids"),
        ({"cells": int32([2])}, "cells must be from 0 to 1 for this image, got 2"),
        ({"cells": int32([-1])}, "cells must be from 0 to 1 for this image, got -1"),
        ({"updated": int32([]), "positions": int32([]), "ids": int32([])}, "cells must be empty .* renewed, got 1"),
        (
            {"turns": int32([0])},
            r"vectors must be an int32 numpy array \(1, 2\), one for each of turns, got int32 \(0, 2\)",
        ),
        ({"turns": int32([2]), "vectors": int32([[1, 0]])}, "turns must be"),
        ({"turns": int32([0]), "vectors": int32([[0, 63]])}, "vectors must be from -62 to 62 half pixels"),
        ({"turns": int32([0]), "vectors": int32([[0, 0]])}, r"vectors must differ .* the first one from \(0, 0\)"),
        ({"turns": int32([0, 1]), "vectors": int32([[3, 4], [3, 4]])}, "vectors must differ from the one before"),
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
    delta = replace(delta_of({}, 100, 70), turns=turns, vectors=vectors)
    assert delta.n_vectors == len(turns)
    np.testing.assert_array_equal(delta.motion(), dense)


# --- batches ------------------------------------------------------------------------------------


def test_a_batch_gives_back_its_frames() -> None:
    frames = [
        frame_with(64, 32, 5, 1, index=7, timestamp_us=10),
        frame_with(32, 32, 0, 2, index=8, timestamp_us=20),
        frame_with(100, 70, 192, 3, index=9, timestamp_us=30),
    ]
    batch = TokenBatch.from_frames(frames)
    assert len(batch) == 3
    assert batch.cu_seqlens.tolist() == [0, 5, 5, 197]
    assert batch.cu_globals.tolist() == [0, 2, 3, 15]
    assert batch.cu_seqlens.dtype == batch.cu_globals.dtype == batch.depths.dtype == np.int32
    assert batch.depths.tolist() == [depth for frame in frames for depth in frame.depths]
    assert batch.depths.max() > 1
    assert batch.sizes == ((64, 32), (32, 32), (100, 70))
    assert batch.frames() == frames
    assert batch == TokenBatch.from_frames(frames)
    assert batch != TokenBatch.from_frames(frames[:2])
    assert "3 frames, 197 patch tokens, 15 global tokens" in repr(batch)


def test_frames_of_a_batch_are_views_that_keep_it_alive() -> None:
    batch = TokenBatch.from_frames([frame_with(64, 32, 5, 1), frame_with(64, 32, 6, 2)])
    frame = batch.frames()[1]
    assert frame.ids.base is not None
    assert np.shares_memory(frame.ids, batch.ids)
    expected = frame_with(64, 32, 6, 2, index=0)
    del batch
    gc.collect()
    assert frame == expected


@given(st.lists(st.tuples(st.integers(32, 130), st.integers(32, 130), st.floats(0, 1)), min_size=1, max_size=4))
def test_any_frames_go_through_a_batch(sizes: list[tuple[int, int, float]]) -> None:
    frames = []
    for number, (width, height, share) in enumerate(sizes):
        rows, columns = patch_grid(width, height)
        frames.append(frame_with(width, height, int(share * 3 * rows * columns), number, index=number))
    assert TokenBatch.from_frames(frames).frames() == frames


def test_what_a_batch_does_not_take() -> None:
    frame = frame_with(64, 32, 5)
    with pytest.raises(InputError, match="at least one TokenFrame"):
        TokenBatch.from_frames([])
    with pytest.raises(InputError, match=r"one model, got 2 \(0123456789abcdef, 7a7a7a7a7a7a7a7a\)"):
        TokenBatch.from_frames([frame, frame_with(64, 32, 5, tag=b"z" * 8)])
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
        ({"positions": int32([0, 1, 2, 3, 1])}, "frame 0 of the batch: positions must not fall, got 3 then 1"),
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


def test_a_batch_is_a_sequence_of_frames() -> None:
    frames = [frame_with(64, 96, 5, 1), frame_with(96, 64, 0, 2, index=1), frame_with(32, 32, 9, 3, index=2)]
    batch = TokenBatch.from_frames(iter(frames))
    assert list(batch) == frames
    assert (batch[0], batch[-1]) == (frames[0], frames[2])
    assert batch[1:] == TokenBatch.from_frames(frames[1:])
    with pytest.raises(IndexError, match="holds 3 frames"):
        _ = batch[3]
    with pytest.raises(InputError, match=r"frames\[0\] must be a TokenFrame, got bytes"):
        TokenBatch.from_frames([b"packet"])  # type: ignore[list-item]
