"""Video files."""

import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.paths import shared

from tatok_edge.sources.open import open_source
from tatok_edge.sources.opencv import scales_new_sizes


def test_video(clip: Path) -> None:
    with open_source(clip) as source:
        assert (source.fps, source.frames, source.width, source.height) == (25, 20, 64, 48)
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(20))
    assert [frame.timestamp_us for frame in frames] == [40_000 * index for index in range(20)]
    brightness = [frame.image.mean() for frame in frames]
    assert np.allclose(brightness, [10 * index for index in range(20)], atol=4)
    assert source.problem is None


def test_stop_ends_a_video_before_the_next_frame(clip: Path) -> None:
    with open_source(clip) as source:
        for frame in source:
            if frame.index == 4:
                source.stop()
    assert frame.index == 4
    assert source.problem is None


def test_video_that_breaks_off_delivers_what_is_whole(tmp_path: Path) -> None:
    whole = shared("videos/bear_pan.mp4")
    path = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with open_source(path) as source:
        count = sum(1 for _ in source)
    assert 10 < count < 60
    assert source.problem == f"{path} breaks off after {count} of 82 frames"


def joined(suffix: str, path: Path) -> Path:
    """A stream without a container: 6 pictures of 64x48, then 6 of 96x72, brighter and brighter."""
    path = path / f"joined{suffix}"
    data = b""
    for number in range(12):
        size = (48, 64, 3) if number < 6 else (72, 96, 3)
        data += cv2.imencode(".jpg", np.full(size, 20 * number, np.uint8))[1].tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.skipif(not scales_new_sizes(), reason=f"OpenCV {cv2.__version__} freezes when the size changes")
def test_video_that_changes_its_size_keeps_the_first_one(tmp_path: Path) -> None:
    with open_source(joined(".mjpeg", tmp_path)) as source:
        frames = list(source)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 12
    assert np.allclose([frame.image.mean() for frame in frames], [20 * index for index in range(12)], atol=4)
    assert all(frame.image.std() < 3 for frame in frames)  # scaled as a whole: no margin
    assert all(a.timestamp_us < b.timestamp_us for a, b in pairwise(frames))


def test_video_with_a_corrupt_frame_delivers_the_others(tmp_path: Path) -> None:
    path = joined(".mjpeg", tmp_path)
    data = bytearray(path.read_bytes())
    starts = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"]
    data[starts[3] + 2 : starts[4]] = bytes(starts[4] - starts[3] - 2)
    path.write_bytes(data)
    with open_source(path) as source:
        frames = list(source)
    brightness = [frame.image.mean() for frame in frames]
    assert len(frames) >= 11
    for expected in [0, 20, 40, 80, 100, 120, 220]:
        assert min(abs(value - expected) for value in brightness) < 5


def test_files_never_drop(clip: Path) -> None:
    with open_source(clip, on_lag="drop") as source:
        frames = []
        for frame in source:
            frames.append(frame.index)
            time.sleep(0.01)
    assert frames == list(range(20))
    assert source.dropped == 0


def test_closed_files_leave_no_descriptor(clip: Path) -> None:
    def use() -> None:
        with open_source(clip) as source:
            next(iter(source))

    use()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        use()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
