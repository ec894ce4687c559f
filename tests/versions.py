"""Tests the wheel with the oldest and the newest versions that ``pyproject.toml`` allows: ``make test-versions``.

For each Python and each end of the ranges: a new environment, the wheel, the core dependencies at that end, and those
tests that need nothing else: pictures, videos in and out, encoding, decoding, streams, token files, pipes.

``python tests/versions.py --python 3.10 --python 3.13``
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tomllib
from helpers.paths import ROOT
from helpers.pythons import interpreters
from helpers.source_tree import copy_source
from packaging.requirements import Requirement
from packaging.version import Version

End = Literal["oldest", "newest"]
ENDS: tuple[End, ...] = ("oldest", "newest")
WORK = ROOT / "build" / "versions"
TOOLS = ("pytest>=8", "hypothesis>=6.100", "packaging")
TESTS = (
    "cli/test_cli_decode.py",
    "cli/test_cli_pipes.py",
    "cli/test_cli_stream.py",
    "format/test_golden.py",
    "pictures",
    "sources/test_arrays.py",
    "sources/test_images.py",
    "sources/test_video.py",
    "stream/test_decoder.py",
    "tokens",
)
"""Tests that run in every environment, in the folder of tests."""


def oldest(requirement: Requirement) -> str:
    """The requirement for the first version of a range.

    Raises:
        ValueError: The range has no first version.
    """
    first = [part.version for part in requirement.specifier if part.operator in (">=", "==", "~=")]
    if len(first) != 1:
        raise ValueError(f"{requirement}: give the first version that is allowed, as in {requirement.name}>=1.0")
    return f"{requirement.name}=={first[0]}"


def pins(dependencies: Sequence[str], end: End, python: str) -> list[str]:
    """The core dependencies at one end of their ranges, for a version of Python such as ``3.10``."""
    chosen = []
    for text in dependencies:
        requirement = Requirement(text)
        environment = {"python_version": python, "python_full_version": f"{python}.0"}
        if requirement.marker is None or requirement.marker.evaluate(environment):
            chosen.append(oldest(requirement) if end == "oldest" else f"{requirement.name}{requirement.specifier}")
    return chosen


def build(python: str, folder: Path) -> None:
    """Builds the wheel with an interpreter."""
    source = copy_source(folder / "source")
    try:
        run(python, "-m", "venv", folder / "build-env")
        run(folder / "build-env/bin/pip", "wheel", "-q", "--no-deps", "-w", folder, source)
    finally:
        shutil.rmtree(source)


def check(version: str, python: str, end: End, wheel: Path, dependencies: Sequence[str], tests: Sequence[str]) -> bool:
    """Tests a wheel with one end of the ranges; whether all tests pass."""
    environment = WORK / f"{version}-{end}"
    shutil.rmtree(environment, ignore_errors=True)
    run(python, "-m", "venv", environment)
    wanted = pins(dependencies, end, version)
    print(f"Python {version}, {end}: {' '.join(wanted)}", flush=True)
    pip = environment / "bin/pip"
    run(pip, "install", "-q", "--no-compile", "--only-binary", ":all:", *wanted, *TOOLS)
    run(pip, "install", "-q", "--no-compile", "--no-deps", wheel)
    run(pip, "check")
    run(pip, "list", "--format", "freeze")
    # Not in the repository, whose folders would hide the wheel.
    names = [str(ROOT / "tests" / name) for name in tests]
    command = [environment / "bin/pytest", "-q", "-p", "no:cacheprovider", *names]
    return subprocess.run(command, cwd=WORK, check=False).returncode == 0


def run(*command: object) -> None:
    """Runs a command, which must succeed."""
    subprocess.run([str(part) for part in command], check=True)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", action="append", help="a version of Python (default: 3.10 and 3.13)")
    parser.add_argument("--end", choices=ENDS, action="append", help="one end only")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that are tested (default: they are built)")
    parser.add_argument("tests", nargs="*", default=TESTS, help="other tests, in the folder of tests")
    args = parser.parse_args()
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    WORK.mkdir(parents=True, exist_ok=True)
    failed = []
    for version, python in interpreters(args.python or ["3.10", "3.13"]).items():
        tag = "cp" + version.replace(".", "")
        wheels = args.wheels or WORK / f"wheel-{tag}"
        if args.wheels is None:
            shutil.rmtree(wheels, ignore_errors=True)
            wheels.mkdir()
            build(python, wheels)
        wheel = max(wheels.glob(f"*-{tag}-*.whl"), key=lambda path: Version(path.name.split("-")[1]), default=None)
        if wheel is None:
            raise SystemExit(f"{wheels}: no wheel for {tag}")
        for end in args.end or ENDS:
            if not check(version, python, end, wheel.absolute(), dependencies, args.tests):
                failed.append(f"Python {version}, {end}")
    print("failed: " + "; ".join(failed) if failed else "all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
