"""Ends tests for want of something that this machine does not have."""

from __future__ import annotations

import os
import sys

import pytest

CI = os.environ.get("CI") == "true"


def missing(what: str) -> None:
    """Ends a test for want of something: CI has it all, so there it is a failure."""
    if CI and sys.platform == "linux":
        pytest.fail(what)
    pytest.skip(what)
