"""A camera topic of a bag as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.bags import CAMERA, Array, camera_bag, raw_message

from tatok_edge.errors import SourceError
from tatok_edge.sources.bag import BagSource


def test_bag_source(bag: Path, clip: list[Array], tmp_path: Path) -> None:
    with BagSource(bag) as source:
        found = list(source)
    assert [frame.index for frame in found] == list(range(12))
    assert all(np.array_equal(frame.image, image) for frame, image in zip(found, clip, strict=True))
    assert found[0].timestamp_us == 0
    stamps = [frame.timestamp_us for frame in found]
    assert stamps == sorted(set(stamps))
    assert source.problem is None
    path = camera_bag(tmp_path / "in.mcap", [raw_message(clip[0]), raw_message(clip[1], "16UC1")])
    with BagSource(path, CAMERA) as source:
        assert len(list(source)) == 1
    assert source.problem is not None
    assert "left out 1 messages" in source.problem
    path = camera_bag(tmp_path / "depth.mcap", [raw_message(clip[1], "16UC1")])
    with pytest.raises(SourceError, match="16UC1"):
        BagSource(path)
