"""GStreamer pipelines, Jetson cameras, and missing packages."""

import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.live_sources import Server, age_ms, descriptors, needs, rising, take, until

from tatok_edge.errors import InputError, SourceError
from tatok_edge.sources import gstreamer
from tatok_edge.sources.open import open_source


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
            r"csi:0,width=640: GStreamer has no nvarguscamerasrc, nvvidconv \(part of a Jetson's JetPack",
        ),
        ("gst:v4l2src ! nosuchelement ! fakesink", "GStreamer has no nosuchelement"),
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
