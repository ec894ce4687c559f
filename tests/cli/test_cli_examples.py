"""The example programs of cameras and of TCP."""

import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from helpers.paths import ROOT

from tatok_edge import Tokenizer


def test_camera_example(tmp_path: Path) -> None:
    script = ROOT / "examples" / "tokenize_camera.py"
    arguments = ["synthetic:frames=4,width=96,height=64", "--frames", "3"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert (
        len(re.findall(r"^frame +\d: 48 tokens in \d+ of 96 patches .* bytes, \d+\.\d dB$", done.stdout, re.MULTILINE))
        == 3
    )


def test_tcp_example_recovers_from_a_lost_packet(tmp_path: Path) -> None:
    script = ROOT / "examples" / "stream_over_tcp.py"
    arguments = ["synthetic:frames=30,width=96,height=64", "--lose", "7", "--frames", "30"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    received = re.findall(r"received frame (\d+): (key|delta), \d+ bytes, (whole|\d+ patches may be old)", done.stdout)
    assert len(received) == 30 - 4
    assert [int(index) for index, _, _ in received] == [n for n in range(30) if n % 7 != 6]
    assert received[0][1] == "key" and received[5][2] == "whole" and received[6][2] != "whole"
    # A keyframe was asked for, and all is well again.
    assert "key" in [kind for _, kind, _ in received[6:]] and "whole" in [state for _, _, state in received[7:]]


def test_remote_policy_gets_the_cameras_as_tokens(tmp_path: Path) -> None:
    script = ROOT / "examples" / "lerobot_remote.py"
    arguments = ["--width", "160", "--height", "96", "--observations", "6", "--hz", "50"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    rows = {name: [int(n) for n in numbers.split()] for name, numbers in re.findall(
        r"^(tokens|JPEG 90)((?: +\d+){4})$", done.stdout, re.MULTILINE
    )}  # fmt: skip
    assert 3 * 50 < rows["tokens"][0] < rows["JPEG 90"][0] / 4, done.stdout
    assert 0 < rows["tokens"][2] <= rows["tokens"][3]
    assert "times fewer bytes" in done.stdout


def test_policy_server_refuses_what_is_too_long(
    script: Callable[[str], ModuleType], tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    remote = script("examples/lerobot_remote.py")
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=remote.serve, args=(server, tokenizer), daemon=True)
        thread.start()
        with socket.create_connection(server.getsockname()) as robot:
            robot.sendall(remote.HEAD.pack(remote.TOKENS, 1, 0) + struct.pack("!I", remote.MAX_PART + 1))
            assert robot.recv(1) == b""  # closed
        # The next robot is served; a packet that is none costs a keyframe, not the connection.
        with socket.create_connection(server.getsockname()) as robot:
            robot.sendall(remote.HEAD.pack(remote.TOKENS, 1, 0) + struct.pack("!I", 9) + b"no packet")
            assert remote.REPLY.unpack(remote.exactly(robot, remote.REPLY.size)) == (1, 0)
    assert f"a part has {remote.MAX_PART + 1} bytes" in capsys.readouterr().out


def test_probes_read_edges_from_tokens(tmp_path: Path) -> None:
    script = ROOT / "examples" / "probe_features.py"
    clips = [f"synthetic:frames=3,width={width},height=192" for width in (256, 320)]
    arguments = [*clips, "--frames", "3", "--keep", "1.5"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    right = [float(share) for share in re.findall(r"([\d.]+)% right", done.stdout)]
    usual, values, features = right
    assert "on values (24 numbers per patch)" in done.stdout
    assert values > usual + 2 and features > usual + 5, done.stdout


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    names = {path.name for path in (ROOT / "examples").glob("*.py")}
    assert names
    assert {
        name for name in names if f'"{name}"' not in tests and f'("{name.removesuffix(".py")}")' not in tests
    } == set()
    page = (ROOT / "examples" / "README.md").read_text()
    assert {name for name in names if f"]({name})" not in page} == set()
