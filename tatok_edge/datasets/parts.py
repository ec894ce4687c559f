"""Parts: encoded clips on disk while a data set is being made. A part holds the arrays of its frames and its facts.

A part is a folder. It is written under a temporary name and renamed at the end. So a part is either complete or absent,
even when a worker dies.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tatok_edge.datasets.tokens import DEPTH_DTYPE, FRAME_DTYPE, UIntArray, narrow
from tatok_edge.files import sync
from tatok_edge.tokens.frame import TokenFrame

PARTS = "parts"
"""Folder of the parts inside the folder of work."""
INFO = "part.json"
MAX_SIZES = 64
"""Largest number of frame sizes that the metadata list."""

Column = Literal["ids", "positions", "depths", "globals"]
COLUMNS: tuple[Column, ...] = get_args(Column)
OFFSETS_OF: dict[Column, int] = {"ids": 0, "positions": 0, "depths": 0, "globals": 1}
"""Column of :attr:`Part.offsets` for each array: that of the patch tokens, or of the global tokens."""


class PartWriter:
    """Writes the frames of a clip one by one; only their offsets and times stay in memory.

    Args:
        folder: The folder of all parts.
        number: Number of the clip.
        vocabulary: Number of different token ids.
    """

    def __init__(self, folder: Path, number: int, vocabulary: int) -> None:
        self._target = folder / f"{number:06d}"
        # No process id: in containers, workers on several machines have the same. The next run removes what is left.
        self._temporary = folder / f".{number:06d}.{secrets.token_hex(4)}.tmp"
        self._temporary.mkdir(parents=True)
        self._types: dict[Column, np.dtype[Any]] = {
            "ids": narrow(vocabulary),
            # The type for the whole data set is known only at the end.
            "positions": np.dtype("<u4"),
            "depths": DEPTH_DTYPE,
            "globals": narrow(vocabulary),
        }
        self._files = {name: (self._temporary / f"{name}.bin").open("wb") for name in self._types}
        self._offsets: list[tuple[int, int]] = [(0, 0)]
        self._frames: list[tuple[int, int, int, int, int]] = []
        self._number = number

    def write(self, frame: TokenFrame) -> None:
        """Adds a frame."""
        arrays: dict[Column, NDArray[np.int32]] = {
            "ids": frame.ids,
            "positions": frame.positions,
            "depths": frame.depths,
            "globals": frame.global_ids,
        }
        for name, array in arrays.items():
            self._files[name].write(array.astype(self._types[name]).tobytes())
        tokens, cells = self._offsets[-1]
        self._offsets.append((tokens + frame.n_tokens, cells + frame.n_globals))
        self._frames.append((frame.timestamp_us, frame.index, self._number, frame.width, frame.height))

    def commit(self, **info: Any) -> dict[str, Any]:
        """Completes the part, with the facts ``info``. If another worker was faster, its part is kept.

        Raises:
            OSError: The part cannot be written; nothing of it stays on disk.
        """
        try:
            offsets = np.asarray(self._offsets, "<i8")
            frames = np.asarray(self._frames, FRAME_DTYPE)
            (self._temporary / "offsets.bin").write_bytes(offsets.tobytes())
            (self._temporary / "frames.bin").write_bytes(frames.tobytes())
            record = info | {
                "frames": len(frames),
                "tokens": int(offsets[-1, 0]),
                "globals": int(offsets[-1, 1]),
                "types": {name: kind.str for name, kind in self._types.items()},
            }
            (self._temporary / INFO).write_text(json.dumps(record) + "\n")
            for file in self._files.values():
                file.close()
            for path in self._temporary.iterdir():
                sync(path)
            try:
                self._temporary.rename(self._target)
            except OSError:
                if not (self._target / INFO).is_file():
                    raise
        finally:
            self.abort()
        return record

    def abort(self) -> None:
        """Removes an incomplete part; does nothing after :meth:`commit`."""
        for file in self._files.values():
            with suppress(OSError):  # a full disk: the buffers cannot be written, and need not be
                file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


@dataclass(frozen=True)
class Part:
    """A complete part."""

    path: Path
    """Its folder."""
    info: dict[str, Any]
    """Facts about the clip, from :meth:`PartWriter.commit`."""

    @classmethod
    def find(cls, folder: Path, number: int) -> Part | None:
        """The part of clip ``number``; None if it is not there."""
        path = folder / f"{number:06d}"
        try:
            return cls(path, json.loads((path / INFO).read_text()))
        except FileNotFoundError:
            return None

    @property
    def frames(self) -> int:
        """Number of frames."""
        return int(self.info["frames"])

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Offsets of the patch tokens and the global tokens of each frame, ``(frames + 1, 2)``."""
        return np.fromfile(self.path / "offsets.bin", "<i8").reshape(-1, 2)

    @cached_property
    def table(self) -> NDArray[np.void]:
        """Times, numbers and sizes of the frames."""
        return np.fromfile(self.path / "frames.bin", FRAME_DTYPE)

    def read(self, column: Column, start: int, stop: int) -> UIntArray:
        """The values of frames ``start`` to ``stop - 1``."""
        kind = np.dtype(self.info["types"][column])
        first, last = (int(self.offsets[frame, OFFSETS_OF[column]]) for frame in (start, stop))
        # Read, not mapped: mapped pages count as memory of the process.
        return np.fromfile(self.path / f"{column}.bin", kind, last - first, offset=first * kind.itemsize)

    def blocks(self, frames: int) -> Iterator[tuple[int, int]]:
        """Start and stop of ranges with at most ``frames`` frames."""
        for start in range(0, self.frames, frames):
            yield start, min(start + frames, self.frames)
