"""Input of a writer of any format: the encoded clips, the folder for the files, and the metadata."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatok_edge.datasets.lerobot_input import LeRobotInput
from tatok_edge.datasets.parts import Part

BLOCK_FRAMES = 1024
"""Largest number of frames in memory at a time."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """The content of a data set."""

    parts: Sequence[Part]
    """The clips, in order."""
    folder: Path
    """Folder to write to; empty."""
    metadata: dict[str, Any]
    """Facts about the whole data set; the writer may add to them and to the records in ``clips``."""
    shard_bytes: int
    """Size in bytes at which a file is followed by a new one."""
    tick: Callable[[int], None]
    """Call it after each clip with the number of written clips; it raises to end the work."""
    robot: LeRobotInput | None = None
    """The LeRobot data set that the clips come from, whose rows are kept; only for the format ``"lerobot"``."""
