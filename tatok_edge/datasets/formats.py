"""The formats of data sets: their names, and the modules that write and read them."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from tatok_edge.datasets.clip_reader import FrameReader
from tatok_edge.errors import BackendError

METADATA = "metadata.json"
"""File of the metadata, except in the LeRobot format."""
LEROBOT_METADATA = "meta/tatok.json"
FORMAT_VERSION = 1
FORMATS = ("flat", "parquet", "webdataset", "lerobot")
_READERS = {
    "flat": "FlatReader",
    "parquet": "ParquetReader",
    "webdataset": "WebDatasetReader",
    "lerobot": "LeRobotReader",
}


def module_of(name: str) -> ModuleType:
    """The module that writes and reads a format; it is imported on first use.

    Raises:
        BackendError: A package that it needs is not installed.
    """
    if name in ("parquet", "lerobot"):
        require_pyarrow(f"the format '{name}'")
    return importlib.import_module(f"tatok_edge.datasets.{name}")


def require_pyarrow(what: str) -> None:
    """Checks that pyarrow is there.

    Raises:
        BackendError: It is not installed; the message says that ``what`` needs it.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ModuleNotFoundError:
        raise BackendError(f"{what} needs pyarrow: pip install 'tatok-edge[datasets]'") from None


def open_reader(name: str, folder: Path, metadata: dict[str, Any], clips: list[tuple[int, int]]) -> FrameReader:
    """Opens the frames of a data set.

    Args:
        name: Its format.
        folder: Its folder.
        metadata: Its metadata, checked.
        clips: First frame, and frame after the last, of each clip.

    Raises:
        FormatError: It is damaged.
        BackendError: A package that the format needs is not installed.
    """
    reader: FrameReader = getattr(module_of(name), _READERS[name])(folder, metadata, clips)
    return reader
