"""The commands and the program of docs/robotics.md run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.bags import CAMERA, records
from helpers.paths import ROOT
from helpers.robot import Robot


def test_commands_of_the_page_run(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "robotics.md").read_text()
    block = page.partition("<!-- robotics -->\n```sh\n")[2].partition("```\n<!-- /robotics -->")[0]
    lines = block.strip().splitlines()
    assert len(lines) >= 6
    for line in lines:
        program, *arguments = shlex.split(line)
        if program == "python":
            arguments[0] = str(ROOT / arguments[0])
        else:
            assert program == "tatok"
            arguments = ["-m", "tatok_edge", *arguments]
        done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert len(records(tmp_path / "decoded.mcap", f"{CAMERA}/decoded")) == 20
    assert (tmp_path / "tokens_folder" / "metadata.yaml").is_file()


def test_subscriber_of_the_page_runs(robot: Robot, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    page = (ROOT / "docs" / "robotics.md").read_text()
    block = page.partition("```python\n")[2].partition("```")[0]
    robot.start("Encoder")
    monkeypatch.setattr(sys.modules["rclpy"], "spin", robot.nodes.append)
    exec(block, {})
    robot.shoot(2)
    assert capsys.readouterr().out.count("(128, 160, 3)") == 2
