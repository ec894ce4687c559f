"""RTSP streams: live for a slow consumer, back after a loss, and without passwords in messages."""

import http.server
import json
import os
import signal
import socket
import threading
import time
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.cli_runs import launch
from helpers.live_sources import FPS, Server, age_ms, descriptors, rising, take, until
from helpers.mjpeg_server import mjpeg_server

from tatok_edge.errors import SourceError
from tatok_edge.format.reader import Reader
from tatok_edge.pictures.writing import open_output
from tatok_edge.sources import live
from tatok_edge.sources.open import open_source


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


def test_rtsp_stream_that_changes_its_size(server: Server) -> None:
    with open_source(server.url) as source:
        frames = iter(source)
        until(frames, lambda frame: age_ms(frame) < 500, 10)
        server.process.send_signal(signal.SIGUSR1)
        new = until(frames, lambda frame: frame.restarted, 10)[-1]
        assert new.image.shape == (288, 480, 3)
        after = take(frames, 10)
        assert (source.width, source.height) == (480, 288)
        assert not any(frame.restarted for frame in after)
        assert age_ms(after[-1]) < 1000
        assert source.reconnects == 0


def test_rtsp_server_that_sends_broken_frames(server: Server) -> None:
    with open_source(server.url) as source:
        frames = iter(source)
        before = until(frames, lambda frame: age_ms(frame) < 500, 10)
        for _ in range(2):
            server.process.send_signal(signal.SIGUSR2)
            # The pictures of half a second lean on the broken ones; then a keyframe comes.
            broken = take(frames, FPS)
            after = until(frames, lambda frame: age_ms(frame) < 1000, 20) + take(frames, 5)
            assert rising(before + broken + after)
            assert not any(frame.restarted for frame in after)
            assert age_ms(after[-1]) < 1000
            before = after
    assert source.reconnects == 0
    assert source.problem is None


@pytest.mark.parametrize("events", [("broken", "grow", "kill"), ("kill", "broken", "kill", "grow")], ids="-".join)
def test_tatok_stream_survives_its_server(server: Server, events: tuple[str, ...], tmp_path: Path) -> None:
    part, target = tmp_path / "a.ttk.part", tmp_path / "a.ttk"

    def wait_for_frames() -> None:
        """Waits until half a second of frames is written."""
        size = part.stat().st_size if part.exists() else 0
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size < size + 2000:
            assert process.poll() is None and time.monotonic() < deadline, events
            time.sleep(0.05)

    process = launch("stream", server.url, "-o", "a.ttk", "--json", cwd=tmp_path)
    try:
        wait_for_frames()
        for event in events:
            if event == "kill":
                server.kill()
                time.sleep(0.5)
                server.start()
            else:
                server.process.send_signal({"grow": signal.SIGUSR1, "broken": signal.SIGUSR2}[event])
                time.sleep(0.5)
            wait_for_frames()
        process.terminate()
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert "secret" not in out + err
    report = json.loads(out)
    assert report["reconnects"] == events.count("kill")
    with Reader(target) as reader:
        assert reader.complete and len(reader) == report["frames"]
        sizes = {(reader.info(number).width, reader.info(number).height) for number in range(len(reader))}
        assert all(a < b for a, b in pairwise(reader.info(number).timestamp_us for number in range(len(reader))))
    assert sizes == {(320, 192), (480, 288)}
    decoded = launch("decode", "a.ttk", "-o", "frames", cwd=tmp_path)
    _, err = decoded.communicate(timeout=300)
    assert decoded.returncode == 0, err
    assert len(list((tmp_path / "frames").iterdir())) == report["frames"]


def test_stream_that_does_not_answer_keeps_the_password_to_itself() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(SourceError, match="no stream came") as caught:
            open_source(f"rtsp://user:secret@127.0.0.1:{port}/live")
    assert "secret" not in str(caught.value)
    assert f"rtsp://127.0.0.1:{port}/live" in str(caught.value)


def test_other_urls_are_refused() -> None:
    with pytest.raises(SourceError, match=r"a stream is an rtsp://, rtsps://, http:// or https:// URL, got ftp://"):
        open_source("ftp://127.0.0.1/clip.mp4")


# --- the server in Python -------------------------------------------------------------------------


def test_stream_delivers_frames_until_it_ends() -> None:
    with mjpeg_server(frames=30, fps=25) as url, open_source(url, retry_seconds=0) as source:
        assert source.live
        frames = list(source)
    assert (source.width, source.height, source.frames) == (64, 48, None)
    assert len(frames) + source.dropped >= 20
    assert all(a.index < b.index and a.timestamp_us < b.timestamp_us for a, b in pairwise(frames))
    brightness = [frame.image.mean() for frame in frames]
    assert brightness == sorted(brightness)
    assert source.problem == f"{url} stopped sending after {frames[-1].index + 1} frames"


def test_a_broken_frame_is_left_out_and_the_stream_goes_on() -> None:
    with (
        mjpeg_server(frames=40, fps=25, broken={30, 32}) as url,
        open_source(url, on_lag="wait", retry_seconds=0) as source,
    ):
        brightness = [round(float(frame.image.mean())) for frame in source]
    assert source.reconnects == 0
    assert not {60, 64} & set(brightness)
    assert {58, 62, 66, 78} <= set(brightness)


def test_a_video_of_a_web_server_is_read_like_a_file(tmp_path: Path) -> None:
    with open_output(tmp_path / "clip.mp4", fps=25, frames=20) as output:
        for number in range(20):
            output.write(np.full((48, 64, 3), 10 * number, np.uint8), number)
    handler = partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_address[1]}"
        with open_source(f"http://me:secret@{address}/clip.mp4") as source:
            assert (source.live, source.name) == (False, f"http://{address}/clip.mp4")
            frames = list(source)
        with pytest.raises(
            SourceError, match=rf"http://{address}/no\.mp4: no stream came \(Server returned 404 Not Found"
        ):
            open_source(f"http://me:secret@{address}/no.mp4")
        server.shutdown()
    assert [frame.timestamp_us for frame in frames] == [40_000 * number for number in range(20)]
    assert (source.problem, source.dropped) == (None, 0)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_: object) -> None:
        pass


def test_slow_reader_of_a_stream_gets_the_newest_frame() -> None:
    with mjpeg_server(frames=60, fps=30) as url, open_source(url, retry_seconds=0) as source:
        frames = []
        for frame in source:
            frames.append(frame)
            time.sleep(0.3)
    assert source.dropped > 20
    steps = np.diff([frame.index for frame in frames])
    assert np.median(steps) >= 6  # nine come in 0.3 s


def test_stop_wakes_a_reader_that_waits_for_a_live_frame() -> None:
    with mjpeg_server(frames=80, fps=4) as url, open_source(url) as source:
        stopper = threading.Timer(0.6, source.stop)
        stopper.start()
        frames = list(source)
        assert not stopper.is_alive()
    assert 1 <= len(frames) < 40
    assert source.problem is None
