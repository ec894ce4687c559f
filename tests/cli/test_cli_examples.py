"""The example programs of cameras and of TCP."""

import re
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT


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
