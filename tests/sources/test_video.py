"""Video files."""

import os
import re
import shutil
import struct
import subprocess
import sys
import time
import wave
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.live_sources import needs
from helpers.paths import shared
from helpers.video_formats import count

from tatok_edge.errors import SourceError
from tatok_edge.pictures.pyav import av, turned
from tatok_edge.sources.decoding import StampChoice
from tatok_edge.sources.open import open_source


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
    there, whole_size = len(data) // 2, len(data)
    assert source.problem == f"{path} breaks off after {count} of 82 frames: {there} of {whole_size} bytes are there"


def joined(suffix: str, path: Path) -> Path:
    """A stream without a container: 6 pictures of 64x48, then 6 of 96x72, brighter and brighter."""
    path = path / f"joined{suffix}"
    data = b""
    for number in range(12):
        size = (48, 64, 3) if number < 6 else (72, 96, 3)
        data += cv2.imencode(".jpg", np.full(size, 20 * number, np.uint8))[1].tobytes()
    path.write_bytes(data)
    return path


def test_video_that_changes_its_size_goes_on_in_the_new_one(tmp_path: Path) -> None:
    with open_source(joined(".mjpeg", tmp_path)) as source:
        frames = list(source)
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 6 + [(72, 96, 3)] * 6
    assert [frame.restarted for frame in frames] == [False] * 6 + [True] + [False] * 5
    assert np.allclose([frame.image.mean() for frame in frames], [20 * index for index in range(12)], atol=4)
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


@pytest.mark.parametrize(("suffix", "share"), [(".mkv", 0.5), (".mkv", 0.9), (".avi", 0.6), (".mp4", 0.7)])
def test_files_that_are_cut_off_say_how_much_is_missing(suffix: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (10, 48, 64, 3), np.uint8)
    with av.open(str(path), "w", options={"movflags": "+faststart"} if suffix == ".mp4" else {}) as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for picture in noise:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    data = path.read_bytes()
    with open_source(path) as source:
        assert len(list(source)) == 10
    assert source.problem is None
    there = int(share * len(data))
    path.write_bytes(data[:there])
    with open_source(path) as source:
        count = len(list(source))
    assert 10 * share - 4 < count < 10  # the frame that is cut, and what decoding threads still held
    assert source.problem is not None
    assert re.fullmatch(
        rf"{re.escape(str(path))} breaks off after {count}( of 10)? frames: {there} of \d+ bytes are there",
        source.problem,
    )


def test_an_mp4_whose_recorder_was_killed_says_so(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed.mp4"
    data = clip.read_bytes()
    path.write_bytes(data[: data.index(b"moov") - 4])
    with pytest.raises(SourceError, match=r"the index \(moov\) of this MP4 is missing"):
        open_source(path)


def test_an_empty_file_and_sound_alone(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(SourceError, match=r"empty\.mp4: is empty"):
        open_source(tmp_path / "empty.mp4")
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    with pytest.raises(SourceError, match=r"sound\.wav: holds no video$"):
        open_source(tmp_path / "sound.wav")


ONE = 1 << 16


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((ONE, 0, 0, ONE), [[1, 2], [3, 4]]),
        ((-ONE, 0, 0, -ONE), [[4, 3], [2, 1]]),
        ((0, ONE, -ONE, 0), [[3, 1], [4, 2]]),  # a quarter turn clockwise
        ((0, -ONE, ONE, 0), [[2, 4], [1, 3]]),  # anticlockwise
        ((-ONE, 0, 0, ONE), [[2, 1], [4, 3]]),  # a mirror, as front cameras set it
        ((ONE, 0, 0, -ONE), [[3, 4], [1, 2]]),
    ],
)
def test_pictures_are_turned_as_their_display_matrix_says(
    matrix: tuple[int, int, int, int], expected: list[list[int]]
) -> None:
    picture = np.repeat(np.array([[1, 2], [3, 4]], np.uint8)[..., None], 3, axis=2)
    a, b, c, d = matrix
    shown = turned(picture, np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], np.int32))
    assert shown[..., 0].tolist() == expected


@pytest.mark.parametrize(
    ("stamps", "chosen"),
    [
        ([(None, 0), (None, 1), (None, 2)], [0, 1, 2]),
        ([(5, None), (6, None)], [5, 6]),
        ([(7, 0), (7, 1), (7, 2), (7, 3)], [7, 1, 2, 3]),  # PTS that stand still
        ([(None, None)], [None]),
    ],
)
def test_time_stamps_with_fewer_faults_count(
    stamps: list[tuple[int | None, int | None]], chosen: list[int | None]
) -> None:
    times = StampChoice()
    assert [times(pts, dts) for pts, dts in stamps] == chosen


def test_without_pyav_the_message_says_how_to_get_it(clip: Path) -> None:
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import tatok_edge\n"
        "tatok_edge.open_source('synthetic:frames=1').close()\n"
        f"tatok_edge.open_source({str(clip)!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("tatok_edge.errors.SourceError: PyAV, which reads and writes videos")
    assert done.stderr.rstrip().endswith("pip install 'av<19'")


# --- what a library that is trusted gets wrong ------------------------------------------------------


def ffmpeg(*arguments: object) -> None:
    needs(shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None, "apt install ffmpeg")
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.mark.parametrize(("suffix", "start"), [(".mp4", 1.3), (".mov", 2.5)])
def test_frames_that_an_edit_list_hides_are_not_missing(suffix: str, start: float, tmp_path: Path) -> None:
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=20:duration=5"]
    ffmpeg(*picture, "-c:v", "libx264", "-g", 40, "-bf", 3, "-pix_fmt", "yuv420p", whole)
    ffmpeg("-ss", start, "-i", whole, "-t", 1.5, "-c", "copy", cut)
    counted = count(cut).times_us
    with open_source(cut) as source:
        frames = list(source)
    assert (len(frames), source.problem) == (len(counted), None)
    assert [frame.timestamp_us for frame in frames] == pytest.approx(counted, abs=1)


def test_a_video_that_is_both_turned_and_trimmed(tmp_path: Path) -> None:
    """As phones write it after a trim: an edit list, and a display matrix of a quarter turn clockwise."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=10:duration=3"]
    ffmpeg(*picture, "-c:v", "libx264", "-g", 10, "-bf", 2, "-pix_fmt", "yuv420p", whole)
    ffmpeg("-ss", 1.25, "-i", whole, "-c", "copy", cut)
    with open_source(cut) as source:
        upright = [frame.image for frame in source]
    data = bytearray(cut.read_bytes())
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", 0, ONE, 0, -ONE, 0, 0, 64 * ONE, 0, 1 << 30)
    cut.write_bytes(data)
    with open_source(cut) as source:
        frames = list(source)
    assert (len(frames), source.width, source.height, source.problem) == (len(upright), 64, 96, None)
    assert [frame.timestamp_us for frame in frames] == pytest.approx(count(cut).times_us, abs=1)
    assert all(np.array_equal(a.image, np.rot90(b, -1)) for a, b in zip(frames, upright, strict=True))


@pytest.mark.parametrize("order", [("interlaced", "progressive"), ("progressive", "interlaced", "progressive")])
def test_interlaced_pictures_in_the_middle(order: tuple[str, ...], tmp_path: Path) -> None:
    picture = ["-f", "lavfi", "-i", "testsrc2=size=160x96:rate=50:duration=0.24,gblur=sigma=4"]
    kinds = {"progressive": ["-r", 25], "interlaced": ["-vf", "tinterlace=4", "-flags", "+ilme+ildct"]}
    for kind, options in kinds.items():
        ffmpeg(*picture, *options, "-c:v", "mpeg2video", "-b:v", "4M", tmp_path / f"{kind}.ts")
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join((tmp_path / f"{kind}.ts").read_bytes() for kind in order))
    command = ["ffmpeg", "-v", "quiet", "-i", str(path), "-fps_mode", "passthrough", "-f", "rawvideo"]
    raw = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], check=True, capture_output=True).stdout
    wanted = np.frombuffer(raw, np.uint8).reshape(-1, 96, 160, 3).astype(int)
    with open_source(path) as source:
        frames = [frame.image for frame in source]
    assert len(frames) == len(wanted) >= 5 * len(order)
    assert max(np.abs(frame - right).mean() for frame, right in zip(frames, wanted, strict=True)) < 4


@pytest.mark.parametrize(("chroma", "width", "height"), [("420jpeg", 95, 63), ("422", 97, 64), ("mono", 65, 63)])
def test_y4m_of_odd_sizes_and_other_chroma_from_a_pipe(chroma: str, width: int, height: int) -> None:
    """Grey that gets brighter; chroma rows and columns are rounded up."""
    across = 0 if chroma == "mono" else (width + 1) // 2
    down = (height + 1) // 2 if chroma == "420jpeg" else height
    given = f"YUV4MPEG2 W{width} H{height} F10:1 Ip C{chroma}\n".encode()
    for number in range(3):
        given += b"FRAME\n" + bytes([60 + 60 * number]) * (width * height) + bytes([128]) * (2 * across * down)
    read, write = os.pipe()
    os.write(write, given)  # less than a pipe holds
    os.close(write)
    before = os.dup(0)
    os.dup2(read, 0)
    try:
        with open_source("-") as source:
            frames = list(source)
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read)
    assert (source.problem, [frame.timestamp_us for frame in frames]) == (None, [0, 100_000, 200_000])
    limited = chroma != "mono"  # the range of Y4M, where it does not say another
    for number, frame in enumerate(frames):
        value = 60 + 60 * number
        assert frame.image.shape == (height, width, 3)
        assert np.abs(frame.image - ((value - 16) * 255 / 219 if limited else value)).max() <= 1.5
