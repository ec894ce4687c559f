"""What the tests of live sources share: the RTSP server as a process, and checks of frames."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import islice, pairwise

import pytest

from helpers.paths import ROOT
from tatok_edge.sources.source import SourceFrame

SYSTEM_PYTHON = "/usr/bin/python3"
SERVER = ROOT / "tests/helpers/rtsp_server.py"
FPS = 20
"""Frame rate of the RTSP server."""


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
