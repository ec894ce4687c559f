"""The page on services and containers: its unit is valid, its commands exist, and a bare environment is enough."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.cli_runs import command
from helpers.paths import ROOT

from tatok_edge.cli.main import COMMANDS

PAGE = (ROOT / "docs" / "deploy.md").read_text()
BARE = """
set -e
mount --make-rprivate /
mount --bind . .
mount -o remount,bind,ro /
cd "$PWD"
exec unshare --user --map-user=54321 --map-group=54321 env -i PATH=/usr/bin:/bin "$@"
"""
"""Runs a command without network, home and name of its user, with only the current folder to write to."""


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


@pytest.mark.skipif(sys.platform != "linux", reason="systemd is of Linux")
def test_the_unit_is_valid(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    unit = tmp_path / "tatok.service"
    unit.write_text(block("ini"))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_commands_of_unit_and_container_are_those_of_tatok(tmp_path: Path) -> None:
    (line,) = re.findall(r"^ExecStart=(.*)$", block("ini"), re.MULTILINE)
    shell = shlex.split(line)
    assert shell[:2] == ["/bin/sh", "-c"]
    words = shell[2].replace("%%", "%").replace("/opt/tatok/bin/tatok", shlex.join(command()))
    words = words.replace("rtsp://camera.local/stream", "synthetic:frames=3,width=96,height=64")
    environment = {"STATE_DIRECTORY": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["sh", "-c", words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = tmp_path.iterdir()
    assert re.fullmatch(r"\d{8}T\d{6}Z\.ttk", made.name)
    assert 'ENTRYPOINT ["tatok"]' in block("dockerfile")
    (name,) = re.findall(r"docker run .* IMAGE (\w+) clip\.mp4 -o clip\.ttk", PAGE)
    assert name in COMMANDS


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are of Linux")
def test_a_bare_environment_is_enough(tmp_path: Path) -> None:
    bare = ["unshare", "--net", "--mount", "sh", "-c", BARE, "sh"]
    allowed = subprocess.run([*bare, "true"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"namespaces may not be made here: {allowed.stderr.strip()}")
    tatok = command()
    runs = [
        [*tatok, "encode", "synthetic:frames=3,width=96,height=64", "-o", "a.ttk"],
        [*tatok, "decode", "a.ttk", "-o", "a.mp4"],
        [*tatok, "stream", "a.mp4", "-o", "b.ttk"],
        [*tatok, "decode", "b.ttk", "-o", "frames"],
        [*tatok, "doctor"],
    ]
    for run in runs:
        done = subprocess.run([*bare, *run], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.ttk", "b.ttk", "frames"]
    assert len(list((tmp_path / "frames").iterdir())) == 3
