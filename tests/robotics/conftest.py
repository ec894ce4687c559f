"""Fixtures of the tests of robotics. Helpers are imported late: they skip a module without the extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from helpers.paths import ROOT

if TYPE_CHECKING:
    from helpers.bags import Array
    from helpers.robot import Robot


@pytest.fixture(scope="session")
def clip() -> list[Array]:
    """The first frames of a real video; do not write to them."""
    from helpers.bags import frames

    return frames(12)


@pytest.fixture(scope="session")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bag of real video with a second topic, an attachment and a metadata record, as the docs make it."""
    from helpers.bags import SOURCE

    folder = tmp_path_factory.mktemp("bag")
    command = [sys.executable, str(ROOT / "examples" / "make_bag.py"), SOURCE, "-o", "bag.mcap", "--frames", "12"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "bag.mcap"


@pytest.fixture(scope="session")
def tokens(bag: Path) -> Path:
    """That bag with tokens."""
    from helpers.bags import CAMERA, run

    path = bag.with_name("tokens.mcap")
    assert run("encode", bag, "--topic", CAMERA, "-o", path) == 0
    return path


@pytest.fixture(params=["humble", "jazzy"])
def robot(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, clip: list[Array]) -> Robot:
    """A camera, nodes and a viewer on a fake ROS 2 of either distribution."""
    from helpers import fake_rclpy
    from helpers.robot import Robot
    from rosbags.typesys import Stores

    store = {"humble": Stores.ROS2_HUMBLE, "jazzy": Stores.ROS2_JAZZY}[request.param]
    small = [np.ascontiguousarray(image[:128, :160]) for image in clip]
    return Robot(fake_rclpy.install(monkeypatch, store), small)
