"""The native code: its sizes equal those of Python, and its headers go together."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from helpers.paths import ROOT

from tatok_edge import geometry
from tatok_edge.runtime.cpu import geometry as native

HEADERS = sorted((ROOT / "runtime" / "cpp").glob("*.hpp"))


def test_native_sizes_equal_those_of_python() -> None:
    sizes = {name: value for name, value in vars(native).items() if name.isupper()}
    assert set(sizes) >= {"PATCH", "CELL", "WINDOW", "THUMBNAIL", "CELL_SIDE", "MAX_VECTOR"}
    assert sizes == {name: getattr(geometry, name) for name in sizes}


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("define", [[], ["-DTATOK_NO_CLONES"]])
@pytest.mark.parametrize("headers", [HEADERS, HEADERS[::-1]], ids=["forward", "backward"])
def test_all_headers_compile_together(define: list[str], headers: list[object]) -> None:
    assert headers
    source = "".join(f'#include "{header}"\n' for header in headers)
    command = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *define, "-x", "c++", "-"]
    result = subprocess.run(command, input=source, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
