"""The folder of the user for what can be built again: engines and compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

_NO_HOME = Path("/nonexistent")
"""Home of a user who has none: nothing is found there, and writing to it fails with a message that names it."""


def user_cache() -> Path:
    """``tatok-edge`` under ``XDG_CACHE_HOME`` or ``~/.cache``; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "tatok-edge"
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry in the list of users, as in a container with a number for its user
        home = _NO_HOME
    return home / ".cache" / "tatok-edge"
