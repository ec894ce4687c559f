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
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(text: str, name: str) -> list[str]:
    """The code between the markers ``name``, each time that they stand there."""
    return re.findall(rf"<!-- {name} -->\n```\w+\n(.*?)```\n<!-- /{name} -->", text, re.DOTALL)


def pages_with(name: str) -> list[Path]:
    """The pages that have such a block."""
    return [page for page in PAGES if f"<!-- {name} -->" in page.read_text()]


def block(name: str) -> str:
    """The code between the markers ``name`` of the README."""
    (found,) = blocks(README, name)
    return found


def run_line(line: str, folder: Path) -> None:
    """Run a line of a page in ``folder``; scripts of the repository are found wherever that is."""
    arguments = shlex.split(line)
    if arguments[0] == "tatok":
        command = [sys.executable, "-m", "tatok_edge", *arguments[1:]]
    else:
        assert arguments[0] == "python", line
        script = ROOT / arguments[1]
        command = [sys.executable, *([str(script)] if script.exists() else arguments[1:2]), *arguments[2:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}: {done.stderr}"


def test_commands_run_in_order(tmp_path: Path) -> None:
    lines = block("commands").strip().splitlines()
    assert len(lines) >= 8
    for line in lines:
        run_line(line, tmp_path)
    assert (tmp_path / "camera.mp4").stat().st_size > 1000
    assert len(list((tmp_path / "frames").iterdir())) == 30


@pytest.mark.parametrize("page", pages_with("commands"), ids=lambda page: page.stem)
def test_commands_of_the_pages_run_in_order(page: Path, tmp_path: Path) -> None:
    for commands in blocks(page.read_text(), "commands"):
        for line in commands.replace("\\\n", " ").strip().splitlines():
            run_line(line, tmp_path)


@pytest.mark.parametrize("page", pages_with("python"), ids=lambda page: page.stem)
def test_python_of_the_pages_runs(page: Path, tmp_path: Path) -> None:
    for code in blocks(page.read_text(), "python"):
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_api_page_is_that_of_the_docstrings(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "make_api.py"), "--check"], cwd=tmp_path, check=False)
    assert done.returncode == 0, "run python docs/make_api.py"


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
