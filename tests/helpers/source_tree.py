"""A copy of the repository to build a wheel from, without what earlier builds left."""

import shutil
from pathlib import Path

from helpers.paths import ROOT

_LEFT_OVER = shutil.ignore_patterns(".git", ".venv", "build", "*.so", "*.egg-info", "__pycache__", ".*_cache")


def copy_source(target: Path) -> Path:
    """Copies what the wheel is built from to ``target``, a new folder."""
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, target)
    for name in ("tatok_edge", "runtime", "export"):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=_LEFT_OVER)
    return target
