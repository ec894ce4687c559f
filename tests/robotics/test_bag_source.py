"""A camera topic of a bag as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.bags import CAMERA, START, TYPES, Array, camera_bag, compressed_message, raw_message

from tatok_edge.errors import SourceError
from tatok_edge.sources.bag import BagSource
from tatok_edge.sources.open import open_source

TEXT = "std_msgs/msg/String"


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


def test_topic_of_two_types(tmp_path: Path, clip: list[Array]) -> None:
    """A camera whose driver was set to another transport while it recorded, and a topic that also has texts."""
    both = [raw_message(clip[0]), compressed_message(clip[1], ".png", time=START + 10**8), TYPES[TEXT](data="?")]
    path = camera_bag(tmp_path / "in.mcap", [*both, raw_message(clip[2], time=START + 2 * 10**8)])
    with BagSource(path) as source:
        found = list(source)
    assert source.problem is None
    assert [frame.timestamp_us for frame in found] == [0, 100_000, 200_000]
    assert all(np.array_equal(frame.image, image) for frame, image in zip(found, clip, strict=False))


def test_stamps_that_run_backwards(tmp_path: Path, clip: list[Array]) -> None:
    """A recording that was played in reverse: the times of the recording count from the second stamp on."""
    path = camera_bag(tmp_path / "in.mcap", [raw_message(clip[n], time=START - n * 10**8) for n in range(5)])
    with BagSource(path) as source:
        assert [frame.timestamp_us for frame in source] == [0, 1, 1_000_001, 2_000_001, 3_000_001]


def test_bag_of_ros_1(tmp_path: Path) -> None:
    (tmp_path / "run.bag").write_bytes(b"#ROSBAG V2.0\n" + bytes(4096))
    with pytest.raises(SourceError, match=r"run\.bag: is a bag of ROS 1; convert it first: rosbags-convert --src run"):
        open_source(tmp_path / "run.bag")
