"""Finds interpreters of Python by their version. Imports nothing that has to be installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def interpreter(version: str) -> str | None:
    """The Python of a version such as ``3.10``, of pyenv or on the path; None where there is none.

    pyenv puts a ``python3.10`` on the path that fails unless the version was chosen, so pyenv's own folder comes first.
    """
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = sorted(root.glob(f"{version}.*/bin/python"), key=lambda path: [len(path.parts[-3]), path.parts[-3]])
    return str(found[-1]) if found else shutil.which(f"python{version}")


def interpreters(versions: list[str]) -> dict[str, str]:
    """The interpreter of each version.

    Raises:
        SystemExit: One is missing.
    """
    found = {version: interpreter(version) for version in versions}
    if missing := [version for version, python in found.items() if python is None]:
        raise SystemExit(f"no Python {', '.join(missing)} here: 'pyenv install VERSION' adds one, or name others")
    return {version: python for version, python in found.items() if python is not None}
