"""Fixtures of the training's tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tatok_edge.training.data import CropSource


@pytest.fixture(scope="module")
def source(pictures: Path) -> CropSource:
    """Crops of the rendered pictures, on the CPU."""
    import torch

    from tatok_edge.training.data import CropSource, read_pictures

    return CropSource(read_pictures(pictures, "all"), torch.device("cpu"), min_side=64)


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the curves, which take longer to draw than the tiny model to train."""
    from tatok_edge.training import train

    monkeypatch.setattr(train, "plot_curves", lambda *_: None)
