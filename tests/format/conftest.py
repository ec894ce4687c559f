"""Frames and a file of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.example_frames import make_frame
from helpers.packets import write_file

from tatok_edge.tokens.frame import TokenFrame


@pytest.fixture
def frames() -> list[TokenFrame]:
    return [make_frame(100, 70, 7 * i, i, index=i, timestamp_us=33_333 * i) for i in range(12)]


@pytest.fixture
def clip(tmp_path: Path, frames: list[TokenFrame]) -> Path:
    return write_file(tmp_path / "clip.ttk", frames, fps=30, metadata={"camera": 2})
