"""Live sources: the newest frame in time, nothing lost without a count, and life after the source was lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import InputError, SourceError
from tatok_edge.sources import gstreamer, live
from tatok_edge.sources.live import Ended, LiveSource, Lost
from tatok_edge.sources.open import open_source
from tatok_edge.sources.source import SourceFrame, without_secrets

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = ROOT / "tests/helpers/rtsp_server.py"
CAMERA = "synthetic:live=1,width=64,height=48,fps=50"
FPS = 20


def needs(available: bool, reason: str) -> None:
    """Skips a test for want of a system package, but not in continuous integration, which has to install it."""
    if not available and os.environ.get("CI") == "true":
        pytest.fail(reason)
    if not available:
        pytest.skip(reason)


def rising(frames: list[SourceFrame]) -> bool:
    return all(a.index < b.index and a.timestamp_us < b.timestamp_us for a, b in pairwise(frames))


def take(source: Iterator[SourceFrame], count: int) -> list[SourceFrame]:
    return list(islice(source, count))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- the synthetic camera ------------------------------------------------------------------------


def test_synthetic_camera_delivers_in_real_time() -> None:
    start = time.monotonic()
    with open_source(CAMERA + ",frames=40") as source:
        assert (source.live, source.fps, source.width, source.height, source.frames) == (True, 50, 64, 48, None)
        frames = list(source)
        assert time.monotonic() - start >= 39 / 50
    assert len(frames) + source.dropped == 40
    assert rising(frames)
    assert all(frame.timestamp_us == 0 for frame in frames if frame.index == 0)
    assert abs(frames[-1].timestamp_us - 39 / 50 * 1e6) < 0.5e6
    assert not any(frame.restarted for frame in frames)
    assert source.problem is None


def test_synthetic_camera_goes_on_when_its_loop_is_over_and_moves_all_the_time() -> None:
    with open_source("synthetic:live=1,width=64,height=48,fps=500") as source:
        frames = take(iter(source), 150)
    assert frames[-1].index >= 149
    assert sum(np.array_equal(a.image, b.image) for a, b in pairwise(frames)) < 5


def test_slow_consumer_gets_the_newest_frame_and_the_others_are_counted() -> None:
    with open_source(CAMERA) as source:
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.2)
            if len(frames) == 6:
                break
        lost = frames[-1].index + 1 - len(frames)
        assert np.median(np.diff([frame.index for frame in frames])) >= 6  # ten come in 0.2 s
        assert source.dropped >= lost >= 30


def test_waiting_loses_nothing() -> None:
    with open_source(CAMERA + ",frames=30", on_lag="wait") as source:
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.03)
    assert [frame.index for frame in frames] == list(range(30))
    assert rising(frames)
    assert source.dropped == 0


@pytest.mark.parametrize("on_lag", ["drop", "wait"])
def test_stop_from_another_thread_ends_the_iteration_at_once(on_lag: str) -> None:
    with open_source("synthetic:live=1,width=64,height=48,fps=1", on_lag=on_lag) as source:
        stopped: list[float] = []

        def stop() -> None:
            source.stop()
            stopped.append(time.monotonic())

        threading.Timer(0.3, stop).start()
        frames = list(source)
        assert time.monotonic() - stopped[0] < 0.5
    assert len(frames) <= 2
    assert source.problem is None


def test_stop_from_a_signal_handler(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from tatok_edge.sources.open import open_source\n"
        f"source = open_source('{CAMERA}')\n"
        "signal.signal(signal.SIGTERM, lambda *_: source.stop())\n"
        "with source:\n"
        "    for frame in source:\n"
        "        print(frame.index, flush=True)\n"
        "print('ended', source.problem)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            assert process.stdout.readline().strip().isdecimal()
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
        assert process.wait(timeout=10) == 0
    assert rest.endswith("ended None\n")


def test_closed_sources_leave_no_thread_and_no_descriptor() -> None:
    for _ in range(2):
        with open_source(CAMERA) as source:
            take(iter(source), 3)
    threads, open_files = threading.active_count(), descriptors()
    for on_lag in ("drop", "wait"):
        for count in (0, 1, 5):
            with open_source(CAMERA, on_lag=on_lag) as source:
                take(iter(source), count)
    assert threading.active_count() == threads
    assert descriptors() == open_files


# --- a source that is lost -----------------------------------------------------------------------


class ScriptedFeed:
    """A connection that delivers what it is told: a width stands for a picture, an exception is raised."""

    bgr = False
    fps = 100.0

    def __init__(self, script: list[int | Exception | None]) -> None:
        self.script = script
        self.closed = False

    def read(self) -> np.ndarray | None:
        time.sleep(0.01)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        return None if step is None else np.full((40, step, 3), step, np.uint8)

    def close(self) -> None:
        self.closed = True


class Device:
    """A camera that can be opened as often as there are scripts; an exception stands for an attempt that fails."""

    def __init__(self, *scripts: list[int | Exception | None] | Exception) -> None:
        self.scripts = list(scripts)
        self.attempts: list[float] = []
        self.feeds: list[ScriptedFeed] = []

    def __call__(self) -> ScriptedFeed:
        self.attempts.append(time.monotonic())
        script = self.scripts.pop(0) if self.scripts else SourceError("the device is not there")
        if isinstance(script, Exception):
            raise script
        self.feeds.append(ScriptedFeed(script))
        return self.feeds[-1]


GONE = Lost("stopped sending")


def test_camera_that_comes_back_goes_on_with_a_restarted_frame() -> None:
    device = Device([40, 40, 40, GONE], SourceError("not yet"), [40, 40, Ended()])
    with LiveSource("camera 9", device, drop=False) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.restarted for frame in frames] == [False, False, False, True, False]
    assert rising(frames)
    assert frames[3].timestamp_us - frames[2].timestamp_us >= 0.5e6  # the pauses of 0.2 and 0.4 s
    assert (source.reconnects, source.problem) == (1, None)
    assert all(feed.closed for feed in device.feeds)


def test_pauses_between_attempts_grow_until_the_camera_is_given_up() -> None:
    device = Device([40, GONE])
    with LiveSource("camera 9", device, retry_seconds=2.0) as source:
        start = time.monotonic()
        frames = list(source)
        taken = time.monotonic() - start
    assert len(frames) == 1
    assert source.problem == "camera 9 stopped sending after 1 frames and did not come back within 2 s"
    assert 1.8 < taken < 4
    pauses = np.diff(device.attempts)
    assert len(pauses) >= 3
    assert all(b > 1.3 * a for a, b in pairwise(pauses[:3]))
    assert source.reconnects == 0


def test_camera_that_keeps_failing_after_it_came_back_is_given_up_too() -> None:
    device = Device([40, GONE], [GONE], [GONE], [GONE], [GONE], [GONE])
    with LiveSource("camera 9", device, retry_seconds=1.0) as source:
        assert len(list(source)) == 1
    assert source.problem is not None
    assert source.reconnects == 0
    assert all(feed.closed for feed in device.feeds)


def test_zero_retry_seconds_means_no_attempt() -> None:
    device = Device([40, GONE], [40, 40])
    with LiveSource("camera 9", device, retry_seconds=0) as source:
        assert len(list(source)) == 1
    assert source.problem == "camera 9 stopped sending after 1 frames"
    assert len(device.attempts) == 1


def test_silence_counts_as_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "READ_TIMEOUT", 0.3)
    device = Device([40, 40], [40, Ended()])
    with LiveSource("camera 9", device, drop=False) as source:
        frames = list(source)
    assert [frame.restarted for frame in frames] == [False, False, True]
    assert source.reconnects == 1


def test_driver_that_never_returns_does_not_hang_the_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(live, "OPEN_TIMEOUT", 0.2)
    hung = threading.Event()

    class Hanging(ScriptedFeed):
        def read(self) -> np.ndarray | None:
            if self.script:
                return super().read()
            hung.wait()
            return None

    with LiveSource("camera 9", lambda: Hanging([40]), retry_seconds=0.2) as source:
        assert len(list(source)) == 1
        assert source.problem is not None
        assert source.problem.startswith("camera 9 has hung for 1 s after 1 frames")
        hung.set()


def test_dropping_a_restarted_frame_restarts_with_the_next_one() -> None:
    device = Device([40, GONE], [40, 40, 40, 40, 40, None, None, Ended()])
    with LiveSource("camera 9", device) as source:
        frames = iter(source)
        first = next(frames)
        time.sleep(0.8)
        rest = list(frames)
    assert not first.restarted
    assert rest[0].restarted
    assert rest[0].index + 1 - 2 == source.dropped >= 1


def test_new_size_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device([40, 40, 56, 56, 40, Ended()])
    with LiveSource("camera 9", device, drop=False) as source:
        seen = []
        for frame in source:
            assert (source.width, source.height) == (frame.image.shape[1], frame.image.shape[0])
            seen.append((frame.image.shape[1], frame.restarted))
    assert seen == [(40, False), (40, False), (56, True), (56, False), (40, True)]
    assert source.reconnects == 0


class FrozenCapture:
    """An OpenCV capture that repeats one picture, as OpenCV before 4.13 does when a stream changes its size."""

    def read(self) -> tuple[bool, np.ndarray]:
        time.sleep(0.01)
        return True, np.full((40, 40, 3), 7, np.uint8)

    def get(self, _: int) -> float:
        return 0.0

    def release(self) -> None:
        pass


@pytest.mark.parametrize("may_freeze", [True, False])
def test_stream_that_freezes_is_opened_again(may_freeze: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "READ_TIMEOUT", 0.2)
    opened: list[float] = []

    def connect() -> live.CaptureFeed:
        opened.append(time.monotonic())
        return live.CaptureFeed(FrozenCapture(), may_freeze=may_freeze)  # type: ignore[arg-type]

    with LiveSource("camera 9", connect) as source:
        end = time.monotonic() + 1
        restarts = 0
        for frame in source:
            restarts += frame.restarted
            if time.monotonic() > end or restarts:
                break
    assert (restarts, len(opened)) == ((1, 2) if may_freeze else (0, 1))


def test_error_of_a_driver_reaches_the_consumer() -> None:
    device = Device([40, RuntimeError("rtsp://me:secret@camera/ is on fire")])
    with LiveSource("camera 9", device) as source:
        assert len(list(source)) == 1
    assert source.problem == "camera 9: RuntimeError: rtsp://camera/ is on fire"
    assert device.feeds[0].closed


def test_source_that_delivers_nothing_does_not_open() -> None:
    device = Device([GONE])
    with pytest.raises(SourceError, match=r"camera 9: no picture came \(stopped sending\)"):
        LiveSource("camera 9", device)
    assert device.feeds[0].closed


def test_close_ends_the_search_for_a_lost_camera() -> None:
    with LiveSource("camera 9", Device([40, GONE]), retry_seconds=None) as source:
        assert len(take(iter(source), 1)) == 1
        time.sleep(1.2)
        start = time.monotonic()
    assert time.monotonic() - start < 1
    assert source.problem is None


# --- RTSP ----------------------------------------------------------------------------------------


class Server:
    """The RTSP server as a process that can be killed, started again and frozen."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"rtsp://user:secret@127.0.0.1:{self.port}/live"
        self.start()

    def start(self) -> None:
        command = [SYSTEM_PYTHON, str(SERVER), str(self.port), str(FPS)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def server_packages() -> None:
    """The packages of the RTSP server."""
    code = (
        "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstRtspServer', '1.0'); "
        "from gi.repository import Gst, GstRtspServer; Gst.init(None); "
        "assert Gst.ElementFactory.find('x264enc') and Gst.ElementFactory.find('rtph264pay')"
    )
    found = Path(SYSTEM_PYTHON).exists() and subprocess.run([SYSTEM_PYTHON, "-c", code], capture_output=True).returncode
    needs(
        found == 0,
        "the RTSP server is missing: apt install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base "
        "gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly",
    )


@pytest.fixture
def server(server_packages: None) -> Iterator[Server]:
    running = Server()
    yield running
    running.kill()


def age_ms(frame: SourceFrame) -> int:
    """Milliseconds since the server made the picture."""
    height, width = frame.image.shape[:2]
    blocks = frame.image[height // 8 :: height // 4, width // 16 :: width // 8, 1] > 128
    made = sum(1 << place for place, bit in enumerate(blocks.ravel()) if bit)
    return int((time.monotonic_ns() // 1_000_000 - made) % (1 << 32))


def until(source: Iterator[SourceFrame], reached: Callable[[SourceFrame], bool], seconds: float) -> list[SourceFrame]:
    """The frames up to the first one that has ``reached`` something."""
    frames = []
    deadline = time.monotonic() + seconds
    for frame in source:
        frames.append(frame)
        if reached(frame):
            return frames
        assert time.monotonic() < deadline, f"not reached in {seconds} s and {len(frames)} frames"
    raise AssertionError(f"the source ended after {len(frames)} frames")


def test_rtsp_stays_live_for_a_slow_consumer(server: Server) -> None:
    with open_source(server.url) as source:
        assert (source.live, source.width, source.height, source.fps) == (True, 320, 192, FPS)
        assert source.name == f"rtsp://127.0.0.1:{server.port}/live"
        frames = iter(source)
        fast = until(frames, lambda frame: age_ms(frame) < 500, 10) + take(frames, 20)
        assert rising(fast)
        ages = []
        before = source.dropped
        for frame in islice(frames, 12):
            fast.append(frame)
            ages.append(age_ms(frame))
            time.sleep(5 / FPS)
        assert source.dropped - before >= 12 * 2  # the consumer is five times too slow
        assert np.median(ages) < 500  # without drops the last one would be 2.4 s old
        assert fast[-1].index + 1 - len(fast) <= source.dropped
        assert not any(frame.restarted for frame in fast)


def test_rtsp_server_that_is_killed_and_started_again(server: Server) -> None:
    with open_source(server.url, retry_seconds=20) as source:
        frames = iter(source)
        before = take(frames, 10)
        threading.Timer(0.1, server.kill).start()
        threading.Timer(1.0, server.start).start()
        after = until(frames, lambda frame: frame.restarted, 20) + take(frames, 5)
        assert rising(before + after)
        assert source.reconnects == 1
        assert after[-1].timestamp_us - before[-1].timestamp_us > 1e6
        assert age_ms(after[-1]) < 3000


def test_rtsp_server_that_is_gone_for_good(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    with open_source(server.url, retry_seconds=1.5) as source:
        frames = iter(source)
        count = len(take(frames, 5))
        server.kill()
        count += sum(1 for _ in frames)
    assert source.problem is not None
    assert source.problem.startswith(f"rtsp://127.0.0.1:{server.port}/live stopped sending after ")
    assert source.problem.endswith(" frames and did not come back within 1.5 s")
    assert count >= 5
    assert "secret" not in source.problem + "".join(capfd.readouterr())


def test_rtsp_server_that_falls_silent(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "READ_TIMEOUT", 1.0)
    threads, open_files = threading.active_count(), descriptors()
    with open_source(server.url, retry_seconds=0) as source:
        frames = iter(source)
        take(frames, 5)
        os.kill(server.process.pid, signal.SIGSTOP)
        start = time.monotonic()
        for _ in frames:
            pass
        assert time.monotonic() - start < 10
    assert source.problem is not None
    assert "was silent for 1 s after" in source.problem
    assert threading.active_count() == threads
    assert descriptors() <= open_files


@pytest.mark.skipif(not live.scales_new_sizes(), reason=f"OpenCV {cv2.__version__} freezes when the size changes")
def test_rtsp_stream_that_changes_its_size_keeps_the_first_one(server: Server) -> None:
    with open_source(server.url) as source:
        frames = iter(source)
        until(frames, lambda frame: age_ms(frame) < 500, 10)
        server.process.send_signal(signal.SIGUSR1)
        after = take(frames, 30)
        # Scaled as a whole, not cut: the blocks can still be read.
        assert all(frame.image.shape == (192, 320, 3) for frame in after)
        assert age_ms(after[-1]) < 1000


# --- GStreamer -----------------------------------------------------------------------------------


@pytest.fixture
def gst() -> None:
    usable, reason = gstreamer.find()
    needs(usable, reason)


def test_gstreamer_pipeline_is_read_like_a_file(gst: None) -> None:
    # 101 pixels: the rows in GStreamer's memory are padded.
    pipeline = "videotestsrc num-buffers=6 pattern=smpte ! video/x-raw,width=101,height=64,framerate=10/1"
    with open_source(f"gst:{pipeline}") as source:
        time.sleep(0.2)
        frames = list(source)
    assert (source.live, source.fps, source.width, source.height) == (False, 10, 101, 64)
    assert [frame.timestamp_us for frame in frames] == [100_000 * index for index in range(6)]
    assert (source.dropped, source.problem) == (0, None)
    bars = frames[0].image[10, 7::14][:7].astype(int)
    expected = [(1, 1, 1), (1, 1, 0), (0, 1, 1), (0, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1)]
    assert [tuple(int(value > 90) for value in bar) for bar in bars] == expected


def test_live_gstreamer_pipeline_drops_what_nobody_takes(gst: None) -> None:
    pipeline = "videotestsrc is-live=true ! video/x-raw,width=64,height=48,framerate=50/1 ! videoconvert ! appsink"
    threads, open_files = threading.active_count(), descriptors()
    for _ in range(2):
        with open_source(f"gst:{pipeline}") as source:
            assert source.live
            frames = []
            for frame in source:
                frames.append(frame)
                time.sleep(0.1)
                if len(frames) == 5:
                    break
            assert source.dropped >= 8
            assert rising(frames)
    assert threading.active_count() == threads
    assert descriptors() <= open_files + 4  # GStreamer keeps a few for itself, once


def test_live_gstreamer_pipeline_is_started_again(gst: None) -> None:
    pipeline = "videotestsrc is-live=true num-buffers=10 ! video/x-raw,width=64,height=48,framerate=50/1"
    with open_source(f"gst:{pipeline}", on_lag="wait") as source:
        frames = take(iter(source), 15)
    assert [frame.index for frame in frames if frame.restarted] == [10]
    assert rising(frames)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (
            "csi:0,width=640",
            r"csi:0,width=640: GStreamer lacks nvarguscamerasrc, nvvidconv \(part of a Jetson's JetPack",
        ),
        ("gst:v4l2src ! nosuchelement ! fakesink", "GStreamer lacks nosuchelement"),
        ("gst:filesrc location=/no/such/file ! decodebin", "Resource not found"),
        ("gst:videotestsrc color=blue", 'no property "color"'),
        ("gst:videotestsrc num-buffers=1 ! fakesink", "could not link"),
        ("gst:audiotestsrc ! appsink", "audiotestsrc"),
        ("gst:videotestsrc num-buffers=0", r"no picture came \(it is empty\)"),
        ("gst:", "syntax error"),
    ],
)
def test_pipelines_that_cannot_work(gst: None, spec: str, says: str) -> None:
    with pytest.raises(SourceError, match=says) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)


def test_rtsp_through_gstreamer(gst: None, server: Server) -> None:
    needs(gstreamer.has_element("avdec_h264"), "no H.264 decoder: apt install gstreamer1.0-libav")
    with open_source("gst:" + gstreamer.rtsp_pipeline(server.url)) as source:
        assert source.live
        assert "secret" not in source.name
        frames = iter(source)
        until(frames, lambda frame: age_ms(frame) < 1000, 10)
        server.process.send_signal(signal.SIGUSR1)
        grown = until(frames, lambda frame: frame.restarted, 10)[-1]
        assert grown.image.shape == (288, 480, 3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("csi:0,size=3", "unknown setting 'size'"),
        ("csi:x", "sensor must be a whole number, got 'x'"),
        ("csi:0,flip=9", "flip must be a whole number from 0 to 7, got 9"),
        ("csi:0,width=8", "width must be a whole number from 32"),
    ],
)
def test_csi_settings_that_are_wrong(spec: str, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(spec)


def test_jetson_pipelines() -> None:
    text = gstreamer.csi_pipeline(1, width=640, height=480, fps=60, flip=2)
    assert "nvarguscamerasrc sensor-id=1 " in text
    assert "video/x-raw(memory:NVMM),format=NV12,width=640,height=480,framerate=60/1 " in text
    assert "nvvidconv flip-method=2 " in text
    assert "nvvidconv" in gstreamer.rtsp_pipeline("rtsp://camera/live", jetson=True)
    with pytest.raises(InputError, match="rtsp://camera/live x") as caught:
        gstreamer.rtsp_pipeline("rtsp://me:secret@camera/live x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("there", [False, True])
def test_missing_bindings_are_named(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if there:
        (tmp_path / "gi").mkdir()
        (tmp_path / "gi" / "_gi.cpython-27-pdp11.so").write_bytes(b"")
    monkeypatch.setattr(gstreamer, "SYSTEM_PACKAGES", tmp_path)
    monkeypatch.setitem(sys.modules, "gi", None)
    gstreamer._load.cache_clear()
    says = "was built for another Python than this" if there else "apt install python3-gi gir1.2-gst-plugins-base-1.0"
    with pytest.raises(SourceError, match=says):
        open_source("gst:videotestsrc")


# --- passwords -----------------------------------------------------------------------------------


@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="\"'"), min_size=8),
    st.sampled_from(["camera", "10.0.0.7", "camera:8554", "[fe80::1]:554"]),
    st.sampled_from(["", "/live", "/a/b?channel=1"]),
)
def test_passwords_do_not_show(password: str, host: str, path: str) -> None:
    shown = without_secrets(f"cannot open rtsp://user:{password}@{host}{path}: refused")
    if not set("/?#@") & set(password):
        assert shown == f"cannot open rtsp://{host}{path}: refused"
    assert f"{password}@" not in shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rtsp://user:p@ss@host/live", "rtsp://host/live"),
        ("rtsp://user:pa/ss@host/live", "rtsp://host/live"),
        ("rtsp://host:554/cam@1", "rtsp://host:554/cam@1"),
        ("rtsp://host/cam@1", "rtsp://host/cam@1"),
        ("rtsp://host/live?user=me&password=secret&channel=1", "rtsp://host/live?user=me&password=***&channel=1"),
        (
            "rtspsrc location=rtsp://h/ user-id=me user-pw=secret ! x",
            "rtspsrc location=rtsp://h/ user-id=*** user-pw=*** ! x",
        ),
        (
            'rtspsrc location="rtsp://a:b@h/x" user-pw="my secret" ! x',
            'rtspsrc location="rtsp://h/x" user-pw=*** ! x',
        ),
    ],
)
def test_secrets_in_urls_and_pipelines(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
