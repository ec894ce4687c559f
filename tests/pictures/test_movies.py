"""Videos and animations that are written: they play, and frames keep their times."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runs import psnr
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import InputError
from tatok_edge.pictures import movies
from tatok_edge.pictures.movies import LONGEST_GAP, FrameTimes
from tatok_edge.pictures.pyav import av
from tatok_edge.pictures.writing import open_output
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render

TIMES = [0, 33_333, 66_667, 100_000, 500_000, 900_000, 933_333, 3_000_000]
"""A variable rate: 30 frames per second, then few."""


def pictures(count: int, width: int = 96, height: int = 64) -> list[np.ndarray]:
    return [render(Scene(width=width, height=height), number) for number in range(count)]


def write(path: Path, images: list[np.ndarray], times: list[int] | None = None, fps: float = 30) -> None:
    with open_output(path, fps=fps, frames=len(images)) as output:
        for number, image in enumerate(images):
            output.write(image, number, times[number] if times else None)


@pytest.mark.parametrize(("suffix", "step_us"), [(".mp4", 12), (".mkv", 501), (".gif", 5001)])
def test_frames_keep_their_times(suffix: str, step_us: int, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    images = pictures(len(TIMES))
    write(path, images, [1_000_000_000 + time for time in TIMES])
    with open_source(path) as source:
        frames = list(source)
    assert source.problem is None
    assert np.allclose([frame.timestamp_us for frame in frames], TIMES, rtol=0, atol=step_us)
    for frame, image in zip(frames, images, strict=True):
        assert frame.image.shape == image.shape
        assert psnr(frame.image, image) > 28


@pytest.mark.parametrize("fps", [0.5, 12, 24000 / 1001, 29.97, 30, 240])
def test_any_frame_rate(fps: float, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, pictures(5), fps=fps)
    with open_source(path) as source:
        frames = list(source)
    assert source.fps == pytest.approx(fps, rel=0.001)
    expected = [number * 1e6 / fps for number in range(5)]
    assert np.allclose([frame.timestamp_us for frame in frames], expected, atol=12)


def test_browsers_can_play_it_while_it_loads(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write(path, pictures(3))
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.color_range == 1  # limited
        assert stream.codec_context.colorspace == 1  # BT.709
        assert float(stream.duration * stream.time_base) == pytest.approx(0.1, abs=0.001)  # with the last frame


def test_without_an_h264_encoder_mpeg4_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movies, "ENCODERS", ("h264_of_another_build", "mpeg4"))
    path = tmp_path / "clip.mp4"
    images = pictures(len(TIMES))
    write(path, images, TIMES)
    with open_source(path) as source:
        frames = list(source)
    assert np.allclose([frame.timestamp_us for frame in frames], TIMES, rtol=0, atol=34)
    assert psnr(frames[3].image, images[3]) > 28


def test_colours_come_back(tmp_path: Path) -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (200, 120, 40)]
    path = tmp_path / "clip.mp4"
    write(path, [np.full((64, 64, 3), colour, np.uint8) for colour in colours])
    with open_source(path) as source:
        for frame, colour in zip(source, colours, strict=True):
            assert np.abs(frame.image.reshape(-1, 3).mean(axis=0) - colour).max() < 4


def test_webp_is_an_animation_or_a_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow reads animations")
    path = tmp_path / "clip.webp"
    write(path, pictures(4), [0, 100_000, 300_000, 350_000])
    with image.open(path) as opened:
        assert (opened.n_frames, opened.info["loop"]) == (4, 0)
        durations = []
        for number in range(3):
            opened.seek(number)
            opened.load()
            durations.append(opened.info["duration"])
    assert durations == [100, 200, 50]
    write(path, pictures(1))
    with image.open(path) as opened:
        assert opened.n_frames == 1


def test_gif_has_the_colours_of_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "clip.gif"
    images = pictures(3)
    write(path, images, fps=10)
    with open_source(path) as source:
        frames = list(source)
    assert [frame.timestamp_us for frame in frames] == [0, 100_000, 200_000]
    assert min(psnr(frame.image, image) for frame, image in zip(frames, images, strict=True)) > 30


@pytest.mark.parametrize("name", ["a:b.mp4", "take#2 100%.mkv", "caf\udce9.mp4", "file:x.mp4"])
def test_names_that_look_like_something_else(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, pictures(2))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    with open_source(path) as source:
        assert len(list(source)) == 2


def test_a_frame_of_another_size_is_refused_and_an_earlier_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"earlier")
    with pytest.raises(InputError, match=r"frame 1 is 64x96 but the video is 96x64"):
        write(path, [*pictures(1), *pictures(1, 64, 96)])
    assert path.read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_video_without_frames_is_not_written(tmp_path: Path) -> None:
    with open_output(tmp_path / "clip.mp4", fps=30, frames=0):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    monkeypatch.setattr(movies, "new_part", lambda _: tmp_path / "full")
    (tmp_path / "full").symlink_to("/dev/full")
    noise = np.random.default_rng(0).integers(0, 256, (4, 240, 320, 3), np.uint8)
    with pytest.raises(OSError, match=r"clip\.mkv: the video could not be written \(No space left on device\)"):
        write(tmp_path / "clip.mkv", list(noise))
    assert not list(tmp_path.iterdir())


@given(st.lists(st.one_of(st.integers(0, 10_000_000), st.integers(0, 2**62)), min_size=1, max_size=30))
def test_times_rise_whatever_the_clock_does(stamps: list[int]) -> None:
    times = FrameTimes(25, 90_000)
    ticks = [times(stamp) for stamp in stamps]
    assert ticks[0] == 0
    assert all(0 < b - a <= round(LONGEST_GAP * 90_000) for a, b in pairwise(ticks))
    if all(0 < b - a < 1_000_000 for a, b in pairwise(stamps)):
        exact = [(stamp - stamps[0]) * 0.09 for stamp in stamps]
        assert np.allclose(ticks, exact, atol=len(stamps) + 1)
