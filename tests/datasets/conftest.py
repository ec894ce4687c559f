"""Fixtures of the data sets' tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.dataset_runs import BUDGET, FRAMES

from tatok_edge import TokenBudget, TokenFrame, Tokenizer, open_source
from tatok_edge.cli.main import main
from tatok_edge.sources.synthetic import Scene, render


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small videos and a folder of pictures; do not write to it."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a.mp4", "b.mp4")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (96, 64))
        for number in range(FRAMES[name]):
            writer.write(np.ascontiguousarray(render(Scene(width=96, height=64, seed=seed), number)[:, :, ::-1]))
        writer.release()
    (folder / "pictures").mkdir()
    for number in range(FRAMES["pictures"]):
        image = render(Scene(width=64 + 32 * (number % 2), height=48, seed=7), number)
        assert cv2.imwrite(str(folder / "pictures" / f"{number}.png"), image[:, :, ::-1])
    return folder


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """A flat data set of the clips; do not write to it."""
    path = tmp_path_factory.mktemp("flat") / "tokens"
    assert main(["dataset", str(clips), "-o", str(path), *BUDGET, "--fps", "25", "--workers", "1"]) == 0
    return path


@pytest.fixture(scope="session")
def expected(clips: Path, tokenizer: Tokenizer) -> list[TokenFrame]:
    """The tokens of all frames, encoded one by one."""
    frames = []
    for name in FRAMES:
        with open_source(clips / name, fps=25 if name == "pictures" else None) as source:
            frames += [
                tokenizer.encode(
                    frame.image, budget=TokenBudget(tau=0.8), index=frame.index, timestamp_us=frame.timestamp_us
                )
                for frame in source
            ]
    return frames
