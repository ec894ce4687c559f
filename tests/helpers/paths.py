"""Where the repository and the shared data are."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
GOLDEN = ROOT / "tests" / "golden"
"""Files whose bytes must not change."""
SHARED = ROOT.parent / "shared" / "data"
"""Pictures and videos beside the repository."""


def shared(name: str) -> Path:
    """A file or folder of the shared data, for tests that need it: they are skipped where it is missing.

    All of them have the same reason, so that pytest reports them in one line.
    """
    path = SHARED / name
    if not path.exists():
        pytest.skip("needs the pictures and clips of ../shared/data, which are not here")
    return path
