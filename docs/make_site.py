"""Make the pages a site with search: ``make docs`` writes ``build/site`` with mkdocs (extra ``docs``).

The site has the folders of the repository, so that every link of a page holds there, too.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
FILES = ("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
FOLDERS = ("docs", "examples", "benchmarks")
LINKED = ("tatok_edge/models/tatok-s8/MODEL_CARD.md", "tatok_edge/sources/folders.py")
"""Further files that pages link to."""


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.parse_args()
    pages = BUILD / "pages"
    shutil.rmtree(pages, ignore_errors=True)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, pages / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (*FILES, *LINKED):
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, pages / name)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-f", str(ROOT / "mkdocs.yml")]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
