"""Sources: what each kind delivers, and what each says when it cannot."""

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.paths import shared
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import SourceError
from tatok_edge.sources.live import scales_new_sizes
from tatok_edge.sources.open import find_cameras, list_images, open_source, read_image
from tatok_edge.sources.source import RisingClock
from tatok_edge.sources.synthetic import Scene, render


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 20-frame MP4 whose frames get brighter."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path


def picture(seed: int, width: int = 48, height: int = 40) -> np.ndarray:
    """A small picture with three different channels."""
    return render(Scene(width=width, height=height, seed=seed), 0)


def save(path: Path, rgb: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path


# --- the rendered clip ---------------------------------------------------------------------------


def test_synthetic_frames_depend_on_their_number_and_seed_only() -> None:
    scene = Scene(width=96, height=64, seed=3)
    fourth = render(scene, 4)
    render(scene, 0)
    np.testing.assert_array_equal(render(scene, 4), fourth)
    assert not np.array_equal(render(scene, 5), fourth)
    assert not np.array_equal(render(Scene(width=96, height=64, seed=4), 4), fourth)


def test_synthetic_scene_is_still_but_for_noise_and_what_moves() -> None:
    scene = Scene(width=320, height=240)
    first, later = (render(scene, index).astype(np.float32) for index in (0, 30))
    changed = np.abs(first - later).max(axis=2) > 12
    assert 0.02 < changed.mean() < 0.3
    wall = np.abs(first - later)[60:100, 130:150]
    assert 0.5 < wall.mean() < 5  # two draws of sensor noise


def test_synthetic_settings() -> None:
    with open_source("synthetic:frames=3,width=64,height=48,fps=10,seed=2") as source:
        frames = list(source)
    assert (source.fps, source.frames, source.width, source.height, source.live) == (10, 3, 64, 48, False)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.timestamp_us for frame in frames] == [0, 100_000, 200_000]
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.dtype == np.uint8


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("synthetic:size=3", "unknown setting 'size'; settings are frames, width, height, fps, seed"),
        ("synthetic:width=8", "width must be from 32 to 4096, got 8"),
        ("synthetic:frames=many", "frames must be a number, got 'many'"),
        ("synthetic:fps=0", "fps must be from 1 to 1000, got 0"),
        ("synthetic:fps=nan", "fps must be from 1 to 1000, got nan"),
    ],
)
def test_synthetic_settings_that_are_wrong(spec: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(spec)


# --- pictures ------------------------------------------------------------------------------------


def test_picture_is_rgb(tmp_path: Path) -> None:
    image = picture(1)
    with open_source(save(tmp_path / "a.png", image)) as source:
        frames = list(source)
    assert (source.frames, source.width, source.height, source.fps) == (1, 48, 40, None)
    np.testing.assert_array_equal(frames[0].image, image)


def test_grey_alpha_and_16_bit_pictures_become_rgb(tmp_path: Path) -> None:
    grey = np.full((40, 48), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([grey, grey, grey, grey]))
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 256)
    for name in ("grey", "alpha", "deep"):
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), np.full((40, 48, 3), 7, np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_picture_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", picture(1, 128, 96))
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.97):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SourceError, match=r"cut off|damaged|cannot be decoded"):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"hello", "not a picture"),
        ("text.mp4", b"hello", "not a video or picture"),
        ("frame0001.txt", b"hello", "not a video or picture"),
        ("tokens.ttk", b"hello", "tatok decode"),
    ],
)
def test_file_that_is_something_else(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path / name)


def test_picture_that_is_too_small(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((16, 40, 3), np.uint8))
    with pytest.raises(SourceError, match="is 40x16; width and height must be from 32 to 16384"):
        open_source(tmp_path / "tiny.png")


def test_folder_is_in_natural_order_with_its_own_sizes(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(tmp_path / f"f{number}.png", picture(number, 40 + number, 36))
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in list_images(tmp_path)] == ["f1.png", "f2.png", "f10.png"]
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [frame.image.shape[1] for frame in frames] == [41, 42, 50]
    assert source.frames == 3
    assert source.problem is None


def test_folder_leaves_out_what_cannot_be_read_and_says_so(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with open_source(tmp_path) as source:
        assert [frame.index for frame in source] == [0, 2]
    assert source.problem == f"left out 1 of 3 pictures; the first: {tmp_path / '1.png'}: a PNG that is cut off"


def test_folder_without_a_usable_picture(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        open_source(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"none of its 1 pictures can be read; the first: .*a\.png: is empty"):
        open_source(tmp_path)


@pytest.mark.parametrize("spec", ["", "missing.mp4", "missing/clip.mp4"])
def test_missing_file(spec: str) -> None:
    with pytest.raises(SourceError, match="no such file; a source is"):
        open_source(spec)


# --- videos --------------------------------------------------------------------------------------


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


# --- arrays --------------------------------------------------------------------------------------


def test_arrays_from_a_generator() -> None:
    buffer = np.zeros((40, 48, 3), np.uint8)

    def fill() -> Iterator[np.ndarray]:
        for number in range(5):
            buffer[:] = number  # the same memory again and again, as capture libraries do
            yield buffer

    with open_source(fill(), fps=25) as source:
        assert (source.live, source.fps, source.frames, source.width, source.height) == (False, 25, None, 48, 40)
        frames = list(source)
    assert [int(frame.image.max()) for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.timestamp_us for frame in frames] == [0, 40_000, 80_000, 120_000, 160_000]


def test_arrays_from_one_array_or_a_list_and_with_a_new_size() -> None:
    with open_source(np.zeros((3, 40, 48, 3), np.uint8), fps=10) as source:
        assert source.frames == 3
        assert len(list(source)) == 3
    pictures = [picture(1), picture(2), picture(3, 64, 40)[:, ::-1], picture(4, 64, 40)]
    with open_source(pictures, fps=10) as source:
        frames = list(source)
    assert [frame.restarted for frame in frames] == [False, False, True, False]
    assert frames[2].image.flags.c_contiguous
    for frame, expected in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(frame.image, expected)


@pytest.mark.parametrize(
    ("pictures", "fps", "says"),
    [
        ([], 30, "got no picture"),
        ([picture(1)], None, "need their frame rate"),
        ([picture(1)], 0, "fps must be above 0"),
        ([picture(1)], float("nan"), "fps must be above 0"),
        (picture(1), 30, "got a single picture"),
        ([picture(1)[..., 0]], 30, r"picture 0 is uint8 \(40, 48\); RGB"),
        ([picture(1).astype(np.float32)], 30, r"picture 0 is float32"),
        ([picture(1)[:8]], 30, "picture 0 is 48x8; width and height"),
        (None, 30, "something that yields pictures, got <class 'NoneType'>"),
        ("synthetic", 30, "fps is for arrays and folders"),
    ],
)
def test_arrays_that_are_wrong(pictures: object, fps: float | None, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(pictures, fps=fps)  # type: ignore[arg-type]


def test_bad_array_in_the_middle_is_named() -> None:
    with (
        open_source([picture(1), picture(2)[..., :2]], fps=30) as source,
        pytest.raises(SourceError, match="picture 1"),
    ):
        list(source)


def test_folder_with_a_frame_rate_has_times(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number))
    with open_source(tmp_path, fps=4) as source:
        assert [frame.timestamp_us for frame in source] == [0, 250_000, 500_000]
    assert source.fps == 4


@pytest.mark.parametrize(
    ("options", "says"), [({"on_lag": "skip"}, "on_lag must be"), ({"retry_seconds": -1}, "retry_seconds must be")]
)
def test_options_that_are_wrong(options: dict[str, object], says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source("synthetic", **options)  # type: ignore[arg-type]


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


# --- time stamps ---------------------------------------------------------------------------------


@given(st.lists(st.integers(-(10**9), 10**12), min_size=1), st.sampled_from([None, 0.5, 25.0, 1000.0]))
def test_time_stamps_rise_whatever_comes(stamps: list[int], fps: float | None) -> None:
    clock = RisingClock(fps)
    out = [clock(stamp) for stamp in stamps]
    assert out[0] == 0
    assert all(a < b for a, b in pairwise(out))


@given(st.lists(st.integers(1, 10**9), min_size=1), st.integers(-(10**9), 10**9))
def test_time_stamps_that_rise_are_kept(steps: list[int], start: int) -> None:
    clock = RisingClock(25)
    stamps = np.cumsum([start, *steps]).tolist()
    assert [clock(stamp) for stamp in stamps] == [stamp - start for stamp in stamps]


@pytest.mark.parametrize(
    ("stamps", "becomes"),
    [
        ([0, 40, 40, 80], [0, 40_000, 40_001, 80_000]),
        ([0, 40, 120, 80, 160], [0, 40_000, 120_000, 120_001, 160_000]),
        ([5000, 5040, 0, 40, 80], [0, 40_000, 80_000, 120_000, 160_000]),
        ([0, 0, 0, 0], [0, 40_000, 80_000, 120_000]),
    ],
)
def test_time_stamps_that_do_not_rise(stamps: list[int], becomes: list[int]) -> None:
    clock = RisingClock(25)
    assert [clock(1000 * stamp) for stamp in stamps] == becomes


# --- cameras and streams -------------------------------------------------------------------------


def test_camera_that_is_not_there() -> None:
    taken = {path for path, _ in find_cameras()}
    assert "/dev/video97" not in taken
    for spec in (97, "97", "/dev/video97"):
        with pytest.raises(SourceError, match=r"camera 97 cannot be opened; video devices here: .*'synthetic'"):
            open_source(spec)


def test_stream_that_does_not_answer_keeps_the_password_to_itself() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(SourceError, match="no stream came") as caught:
            open_source(f"rtsp://user:secret@127.0.0.1:{port}/live")
    assert "secret" not in str(caught.value)
    assert f"rtsp://127.0.0.1:{port}/live" in str(caught.value)


def test_other_urls_are_refused() -> None:
    with pytest.raises(SourceError, match=r"a stream is an rtsp:// or rtsps:// URL, got ftp://"):
        open_source("ftp://127.0.0.1/clip.mp4")


class _RtspHandler(socketserver.StreamRequestHandler):
    """Just enough RTSP to play Motion JPEG (RFC 2435) over the same connection, then hang up."""

    server: "_RtspServer"

    def handle(self) -> None:
        while request := self.rfile.readline().decode():
            method = request.split()[0]
            headers = dict(self._headers())
            extra, body = "", ""
            if method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                body = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
                    f"m=video 0 RTP/AVP 26\r\na=framerate:{self.server.fps}\r\na=control:track0\r\n"
                )
                extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP":
                extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            if method in ("SETUP", "PLAY"):
                extra += "Session: 1\r\n"
            self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{extra}\r\n{body}".encode())
            if method == "PLAY":
                with suppress(ConnectionError):  # the reader may leave first
                    self._play()
                return

    def _headers(self) -> Iterator[tuple[str, str]]:
        while line := self.rfile.readline().decode().strip():
            key, _, value = line.partition(":")
            yield key.lower(), value.strip()

    def _play(self) -> None:
        sequence = 0
        start = time.monotonic()
        for number, (header, tables, scan) in enumerate(self.server.pictures):
            time.sleep(max(start + number / self.server.fps - time.monotonic(), 0))
            for offset in range(0, len(scan), 1200):
                part = scan[offset : offset + 1200]
                last = offset + len(part) == len(scan)
                rtp = struct.pack(">BBHII", 0x80, 26 | last << 7, sequence, number * 90_000 // self.server.fps, 1)
                jpeg = struct.pack(">I", offset) + header
                quantisation = b"" if offset else struct.pack(">BBH", 0, 0, len(tables)) + tables
                packet = rtp + jpeg + quantisation + part
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                sequence += 1


class _RtspServer(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, pictures: list[np.ndarray], fps: int) -> None:
        super().__init__(("127.0.0.1", 0), _RtspHandler)
        self.fps = fps
        self.pictures = [_jpeg_parts(image) for image in pictures]


def _jpeg_parts(image: np.ndarray) -> tuple[bytes, bytes, bytes]:
    """RFC 2435's main header without the offset, quantisation tables and scan of a 4:2:0 JPEG."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tables, at = b"", 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDB:
            tables += data[at + 5 : at + 2 + length]
        at += 2 + length
    scan = data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") : -2]
    header = struct.pack(">BBBB", 1, 255, image.shape[1] // 8, image.shape[0] // 8)
    return header, tables, scan


@contextmanager
def rtsp_server(frames: int, fps: int) -> Iterator[str]:
    """URL of a stream of ``frames`` pictures, each two grey levels brighter than the one before."""
    pictures = [np.full((48, 64, 3), 2 * number, np.uint8) for number in range(frames)]
    with _RtspServer(pictures, fps) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"rtsp://127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.shutdown()


def test_stream_delivers_frames_until_it_ends() -> None:
    with rtsp_server(frames=30, fps=25) as url, open_source(url, retry_seconds=0) as source:
        assert source.live
        frames = list(source)
    assert (source.width, source.height, source.frames) == (64, 48, None)
    assert len(frames) + source.dropped >= 20
    assert all(a.index < b.index and a.timestamp_us < b.timestamp_us for a, b in pairwise(frames))
    brightness = [frame.image.mean() for frame in frames]
    assert brightness == sorted(brightness)
    assert source.problem == f"{url} stopped sending after {frames[-1].index + 1} frames"


def test_slow_reader_of_a_stream_gets_the_newest_frame() -> None:
    with rtsp_server(frames=60, fps=30) as url, open_source(url, retry_seconds=0) as source:
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.3)
    assert source.dropped > 20
    steps = np.diff([frame.index for frame in frames])
    assert np.median(steps) >= 6  # nine come in 0.3 s


def test_stop_wakes_a_reader_that_waits_for_a_live_frame() -> None:
    with rtsp_server(frames=80, fps=4) as url, open_source(url) as source:
        stopper = threading.Timer(0.6, source.stop)
        stopper.start()
        frames = list(source)
        assert not stopper.is_alive()
    assert 1 <= len(frames) < 40
    assert source.problem is None
