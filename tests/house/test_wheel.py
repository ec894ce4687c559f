"""The wheel: everything that it needs is in it, and it works without the repository."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.paths import ROOT
from helpers.source_tree import copy_source


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_source(folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", ".", "./source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = set()
    for room, prefix in (("tatok_edge", ""), ("runtime", "tatok_edge/"), ("export", "tatok_edge/")):
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix not in (".so", ".pyx"):
                wanted.add(prefix + str(path.relative_to(ROOT)))
    compiled = {name for name in packed if name.endswith(".so")}
    assert packed - compiled == wanted
    assert len(compiled) == len(list((ROOT / "runtime/cpu").glob("*.pyx")))


def test_the_wheel_works_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import tatok_edge
assert tatok_edge.__file__.startswith({str(site)!r}), tatok_edge.__file__
import tatok_edge.runtime.open, tatok_edge.export.engines.profiles
from tatok_edge.cli.main import main
assert tatok_edge.runtime.open.__file__.startswith({str(site)!r})
sys.exit(main(["encode", "synthetic:frames=2,width=96,height=64", "-o", "clip.ttk"]))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "clip.ttk").is_file()
