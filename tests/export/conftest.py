"""Fixtures of the tests of graphs and engines."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from helpers.needs import missing

from tatok_edge.runtime.tensorrt.flavour import Flavour, find_flavour


@pytest.fixture(scope="module")
def rtx() -> Flavour:
    if find_spec("tensorrt_rtx") is None:
        missing("TensorRT-RTX is not installed: pip install tensorrt-rtx")
    return find_flavour("rtx")
