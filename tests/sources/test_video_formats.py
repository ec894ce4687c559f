"""Every format of docs/videos.md is read: all frames, at the times that ffprobe counts, in the right colours."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.video_formats import FORMATS, Format, count, listed, make, table

from tatok_edge.sources.open import open_source


def name(chosen: Format) -> str:
    return "-".join(filter(None, (chosen.ending, chosen.encoder, chosen.pixels, chosen.also.replace(" ", "_"))))


@pytest.mark.parametrize("chosen", FORMATS, ids=name)
def test_format(chosen: Format, tmp_path: Path) -> None:
    path = make(chosen, tmp_path)
    counted = count(path)
    with open_source(path) as source:
        frames = list(source)
    assert source.problem is None
    assert len(frames) == len(counted.times_us) >= 3
    expected = [round(1e6 * number / counted.rate) for number in range(len(frames))]
    if None not in counted.times_us:
        expected = [time for time in counted.times_us if time is not None]
    assert [frame.timestamp_us for frame in frames] == pytest.approx(expected, abs=1)
    first = decoded_by_ffmpeg(path, frames[0].image.shape)
    assert np.abs(frames[0].image.astype(int) - first).mean() < 2


def decoded_by_ffmpeg(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The first picture of a video."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-frames:v", "1", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(data, np.uint8).reshape(shape).astype(int)


def test_the_page_lists_these_formats() -> None:
    assert len(FORMATS) >= 30
    assert listed() == table(), "run python tests/helpers/video_formats.py"
