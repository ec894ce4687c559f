"""What the README says works as it is written, and its tables are those of the benchmark results."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def block(name: str) -> str:
    """The code between the markers ``name``."""
    match = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", README, re.DOTALL)
    assert match is not None
    return match[1]


def test_commands_run_in_order(tmp_path: Path) -> None:
    lines = block("commands").strip().splitlines()
    assert len(lines) >= 8
    for line in lines:
        arguments = shlex.split(line)
        assert arguments[0] == "tatok"
        done = subprocess.run(
            [sys.executable, "-m", "tatok_edge", *arguments[1:]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
    assert (tmp_path / "camera.mp4").stat().st_size > 1000
    assert len(list((tmp_path / "frames").iterdir())) == 30


def test_build_command_runs(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX builds the engines")
    (line,) = block("build").strip().splitlines()
    done = subprocess.run(
        [sys.executable, "-m", "tatok_edge", *shlex.split(line)[1:]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "engines").glob("*.json"))) >= 4


@pytest.mark.parametrize("name", ["python", "stream"])
def test_python_runs(tmp_path: Path, name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block(name)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("onnxruntime" in done.stdout) == (name == "python")


def test_training_commands_name_real_options(tmp_path: Path) -> None:
    for module in ("tatok_edge.training.train", "tatok_edge.export.onnx"):
        pattern = rf"python -m {re.escape(module)} (.*)"
        used = set(re.findall(r"--[a-z-]+", " ".join(re.findall(pattern, README))))
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert used
        assert used <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_tables_are_those_of_the_results() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], check=False)
    assert done.returncode == 0, "run python benchmarks/readme.py"


@pytest.mark.parametrize("page", sorted(str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *ROOT.glob("*/*.md")]))
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#]+)", path.read_text()):
        if not target.startswith(("http://", "https://")):
            assert os.path.exists(path.parent / target), f"{page} links to {target}"
