"""Fixtures of the tests of sources."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.live_sources import SYSTEM_PYTHON, Server, needs

from tatok_edge.sources import gstreamer


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 20-frame MP4 whose frames get brighter; do not write to it."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path


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


@pytest.fixture
def gst() -> None:
    usable, reason = gstreamer.find()
    needs(usable, reason)
