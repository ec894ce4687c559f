"""Settings shared by all tests. The tests run against the installed package, never against the source folders."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

_ROOT = Path(__file__).resolve().parents[1]
# In the source tree, runtime/ and export/ are not yet parts of the package and nothing is compiled.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.curdir).resolve() != _ROOT]

settings.register_profile("default", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=50, deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(20261124)
