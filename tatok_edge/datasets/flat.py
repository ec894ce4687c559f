"""The flat format: plain arrays in files that are mapped into memory. Any frame is read at once.

See ``docs/datasets.md`` for the layout, byte by byte.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.datasets.assembly import BLOCK_FRAMES, Assembly
from tatok_edge.datasets.parts import COLUMNS, Part
from tatok_edge.datasets.tokens import FRAME_DTYPE, FrameTokens, RaggedTokens, check_offsets, frame_tokens, offsets32
from tatok_edge.errors import FormatError
from tatok_edge.files import sync


def write(assembly: Assembly) -> None:
    """Writes the data set."""
    types = {name: np.dtype(kind) for name, kind in assembly.metadata["types"].items()}
    paths = {name: assembly.folder / f"{name}.bin" for name in (*COLUMNS, "offsets", "frames")}
    files = {name: path.open("wb") for name, path in paths.items()}
    try:
        start = np.zeros(2, np.int64)
        files["offsets"].write(start.astype("<i8").tobytes())
        for number, part in enumerate(assembly.parts):
            for column in COLUMNS:
                if part.info["types"][column] == types[column].str:
                    with (part.path / f"{column}.bin").open("rb") as source:
                        shutil.copyfileobj(source, files[column], 1 << 20)
                else:
                    for first, last in part.blocks(BLOCK_FRAMES):
                        files[column].write(part.read(column, first, last).astype(types[column]).tobytes())
            files["offsets"].write((part.offsets[1:] + start).astype("<i8").tobytes())
            files["frames"].write(table_of(part, number).tobytes())
            start += part.offsets[-1]
            assembly.tick(number + 1)
    finally:
        for file in files.values():
            file.close()
    for path in paths.values():
        sync(path)


def table_of(part: Part, number: int) -> NDArray[np.void]:
    """The frame table of a part, as clip ``number`` of the data set."""
    table = part.table.copy()
    table["clip"] = number
    return table


class FlatReader:
    """Maps the files of a flat data set.

    Raises:
        FormatError: Files are missing, or do not fit each other.
    """

    def __init__(self, folder: Path, metadata: dict[str, Any], clips: list[tuple[int, int]]) -> None:
        self._clips = clips
        types = {name: np.dtype(kind) for name, kind in metadata["types"].items()}
        self._ids, self._positions, self._depths, self._globals = (
            _map(folder / f"{name}.bin", types[name]) for name in COLUMNS
        )
        self._frames = _map(folder / "frames.bin", FRAME_DTYPE)
        offsets = _map(folder / "offsets.bin", np.dtype("<i8"))
        if offsets.size != 2 * (self._frames.size + 1) or self._frames.size != metadata["frames"]:
            raise FormatError(
                f"{folder}: offsets.bin and frames.bin do not hold {metadata['frames']} frames; the data set is damaged"
            )
        offsets = offsets.reshape(-1, 2)
        for name, array in (("positions", self._positions), ("depths", self._depths)):
            if self._ids.size != array.size:
                raise FormatError(f"{folder}: ids.bin and {name}.bin differ in length; the data set is damaged")
        check_offsets(offsets[:, 0], self._ids.size, str(folder / "offsets.bin"))
        check_offsets(offsets[:, 1], self._globals.size, str(folder / "offsets.bin"))
        self._offsets = offsets

    def frame(self, number: int) -> FrameTokens:
        """One frame."""
        (token, cell), (last_token, last_cell) = self._offsets[number : number + 2].tolist()
        return frame_tokens(
            self._ids[token:last_token],
            self._positions[token:last_token],
            self._depths[token:last_token],
            self._globals[cell:last_cell],
            self._frames[number],
        )

    def clip(self, number: int) -> RaggedTokens:
        """One clip."""
        start, stop = self._clips[number]
        offsets = self._offsets[start : stop + 1]
        (token, cell), (last_token, last_cell) = offsets[0].tolist(), offsets[-1].tolist()
        return RaggedTokens(
            ids=self._ids[token:last_token],
            positions=self._positions[token:last_token],
            depths=self._depths[token:last_token],
            cu_seqlens=offsets32(offsets[:, 0] - token),
            global_ids=self._globals[cell:last_cell],
            cu_globals=offsets32(offsets[:, 1] - cell),
            frames=self._frames[start:stop],
        )


def _map(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    try:
        size = path.stat().st_size
        if size % kind.itemsize:
            raise FormatError(f"{path}: {size} bytes are no whole number of {kind.itemsize}-byte values")
        if not size:  # nothing to map
            return np.zeros(0, kind)
        # As a plain array: every slice of a numpy.memmap costs several microseconds.
        return np.asarray(np.memmap(path, kind, "r")).view(np.ndarray)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None
