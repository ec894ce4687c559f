"""Frames of tokens as batches of PyTorch tensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_runs import run
from helpers.token_frames import frame_with

import tatok_edge
from tatok_edge.datasets import open_dataset

torch = pytest.importorskip("torch", reason="collate makes PyTorch tensors")
FRAMES = [frame_with(96, 64, 17, 1, index=3), frame_with(64, 64, 0, 2), frame_with(160, 96, 40, 3, timestamp_us=7)]


def test_padded_batches_hold_every_token_once() -> None:
    batch = tatok_edge.collate(FRAMES, padding=-1)
    assert batch["ids"].shape == batch["mask"].shape == (3, 40)
    assert batch["mask"].sum(dim=1).tolist() == [17, 0, 40]
    for row, frame in enumerate(FRAMES):
        for name in ("ids", "positions", "depths"):
            assert batch[name].dtype == torch.int64
            assert np.array_equal(batch[name][row][batch["mask"][row]], getattr(frame, name))
        assert np.array_equal(batch["global_ids"][row][batch["global_mask"][row]], frame.global_ids)
    assert (batch["ids"][~batch["mask"]] == -1).all()
    assert (batch["depths"][~batch["mask"]] == 0).all()
    assert batch["sizes"].tolist() == [[96, 64], [64, 64], [160, 96]]
    assert (batch["indices"].tolist(), batch["timestamps_us"].tolist()) == ([3, 0, 0], [0, 0, 7])


def test_ragged_batches_are_those_of_token_batch() -> None:
    batch = tatok_edge.collate(FRAMES, layout="ragged")
    expected = tatok_edge.TokenBatch.from_frames(FRAMES)
    for name in ("ids", "positions", "depths", "cu_seqlens", "global_ids", "cu_globals"):
        assert np.array_equal(batch[name], getattr(expected, name))
    assert batch["cu_seqlens"].dtype == torch.int32


def test_a_data_loader_takes_it(tmp_path: Path) -> None:
    done = run("synthetic:frames=5,width=96,height=64", "-o", "tokens", "--keep", "0.5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(tmp_path / "tokens")
    loader = partial(torch.utils.data.DataLoader, dataset, batch_size=2)
    assert [len(batch["ids"]) for batch in loader(collate_fn=tatok_edge.collate)] == [2, 2, 1]
    ragged = list(loader(collate_fn=partial(tatok_edge.collate, layout="ragged")))
    assert np.array_equal(ragged[1]["ids"], dataset.batch([2, 3]).ids)


def test_what_is_no_batch() -> None:
    with pytest.raises(tatok_edge.InputError, match="at least one frame"):
        tatok_edge.collate([])
    with pytest.raises(tatok_edge.InputError, match="'padded' or 'ragged'"):
        tatok_edge.collate(FRAMES, layout="dense")  # type: ignore[arg-type]
    with pytest.raises(tatok_edge.InputError, match=r"frames\[1\] must be a TokenFrame"):
        tatok_edge.collate([FRAMES[0], b"packet"])  # type: ignore[list-item]
