"""Live sources: the newest frame in time, nothing lost without a count, and life after a loss."""

import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.live_sources import descriptors, rising, take

from tatok_edge.errors import SourceError
from tatok_edge.sources import live
from tatok_edge.sources.live import Ended, LiveSource, Lost, Pending
from tatok_edge.sources.open import open_source

CAMERA = "synthetic:live=1,width=64,height=48,fps=50"


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


class ScriptedConnection:
    """A connection that delivers what it is told: a width stands for a picture, an exception is raised."""

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
        self.connections: list[ScriptedConnection] = []

    def __call__(self) -> ScriptedConnection:
        self.attempts.append(time.monotonic())
        script = self.scripts.pop(0) if self.scripts else SourceError("the device is not there")
        if isinstance(script, Exception):
            raise script
        self.connections.append(ScriptedConnection(script))
        return self.connections[-1]


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
    assert all(connection.closed for connection in device.connections)


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
    assert all(connection.closed for connection in device.connections)


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

    class Hanging(ScriptedConnection):
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


def test_only_delivered_pictures_are_converted() -> None:
    converted: list[int] = []

    class Deferring(ScriptedConnection):
        def read(self) -> Pending | None:  # type: ignore[override]
            picture = super().read()
            if picture is None:
                return None
            number = int(picture[0, 0, 0])

            def convert() -> np.ndarray:
                converted.append(number)
                return picture

            return Pending(convert)

    with LiveSource("camera 9", lambda: Deferring([40, 41, 42, 43, 44, None, Ended()])) as source:
        time.sleep(0.5)
        frames = list(source)
    assert [frame.image.shape[1] for frame in frames] == [44]
    assert source.dropped == 4
    assert converted == [40, 44]  # the first one gives the size


def test_new_size_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device([40, 40, 56, 56, 40, Ended()])
    with LiveSource("camera 9", device, drop=False) as source:
        seen = []
        for frame in source:
            assert (source.width, source.height) == (frame.image.shape[1], frame.image.shape[0])
            seen.append((frame.image.shape[1], frame.restarted))
    assert seen == [(40, False), (40, False), (56, True), (56, False), (40, True)]
    assert source.reconnects == 0


def test_error_of_a_driver_reaches_the_consumer() -> None:
    device = Device([40, RuntimeError("rtsp://me:secret@camera/ is on fire")])
    with LiveSource("camera 9", device) as source:
        assert len(list(source)) == 1
    assert source.problem == "camera 9: RuntimeError: rtsp://camera/ is on fire"
    assert device.connections[0].closed


def test_source_that_delivers_nothing_does_not_open() -> None:
    device = Device([GONE])
    with pytest.raises(SourceError, match=r"camera 9: no picture came \(stopped sending\)"):
        LiveSource("camera 9", device)
    assert device.connections[0].closed


def test_close_ends_the_search_for_a_lost_camera() -> None:
    with LiveSource("camera 9", Device([40, GONE]), retry_seconds=None) as source:
        assert len(take(iter(source), 1)) == 1
        time.sleep(1.2)
        start = time.monotonic()
    assert time.monotonic() - start < 1
    assert source.problem is None
