"""What every format of data set has in common: what a writer gets, and which writer and reader belong to a name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tatok_edge.datasets.parts import Part
from tatok_edge.errors import BackendError

METADATA = "metadata.json"
"""Where the metadata are; LeRobot has a place of its own for them."""
LEROBOT_METADATA = "meta/tatok.json"
FORMAT_VERSION = 1
FORMATS = ("flat", "parquet", "webdataset", "lerobot")

BLOCK_FRAMES = 1024
"""Most frames that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a writer makes a data set of."""

    parts: Sequence[Part]
    """The clips, in order."""
    folder: Path
    """Folder to write to; empty."""
    metadata: dict[str, Any]
    """What is known of the whole; the writer may add to it and to the records in ``clips``."""
    shard_bytes: int
    """A file is followed by a new one once it is so large."""
    tick: Callable[[int], None]
    """To be called after each clip with the number of those that are done; raises to end the work."""


def module_of(name: str) -> ModuleType:
    """The module that writes and reads a format.

    Raises:
        BackendError: A package that it needs is not installed.
    """
    if name in ("parquet", "lerobot"):
        try:
            import pyarrow.parquet  # noqa: F401
        except ModuleNotFoundError:
            raise BackendError(f"the format '{name}' needs pyarrow: pip install 'tatok-edge[datasets]'") from None
    return importlib.import_module(f"tatok_edge.datasets.{name}")
