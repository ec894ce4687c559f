"""Parquet: one row per frame, tokens as ``list<uint16>`` (or ``list<uint32>``). Arrow, Ray Data, pandas, DuckDB and
Spark read it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tatok_edge.datasets.assembly import BLOCK_FRAMES, Assembly
from tatok_edge.datasets.clip_reader import ClipReader
from tatok_edge.datasets.parts import OFFSETS_OF, Column, Part
from tatok_edge.datasets.tokens import RaggedTokens, offsets32, ragged_from
from tatok_edge.errors import FormatError
from tatok_edge.files import sync

_LISTS: dict[str, Column] = {"ids": "ids", "positions": "positions", "depths": "depths", "global_ids": "globals"}
_FILE = re.compile(r"data-\d{6,}\.parquet")


def write(assembly: Assembly) -> None:
    """Writes the data set: a row group holds frames of one clip only, at most :data:`BLOCK_FRAMES`."""
    types = {name: np.dtype(kind) for name, kind in assembly.metadata["types"].items()}
    schema = pa.schema(
        [
            ("clip", pa.string()),
            ("clip_index", pa.uint32()),
            ("frame_index", pa.int64()),
            ("timestamp_us", pa.int64()),
            ("width", pa.uint16()),
            ("height", pa.uint16()),
            *((name, pa.list_(pa.from_numpy_dtype(types[column]))) for name, column in _LISTS.items()),
        ]
    )
    about = {name: value for name, value in assembly.metadata.items() if name not in ("clips", "left_out")}
    schema = schema.with_metadata({"tatok": json.dumps(about)})
    with Shards(assembly.folder, "data-{:06d}.parquet".format, schema, assembly.shard_bytes) as shards:
        for number, part in enumerate(assembly.parts):
            record = assembly.metadata["clips"][number]
            record["file"], record["row_group"] = shards.place()
            for start, stop in part.blocks(BLOCK_FRAMES):
                shards.write(_table(part, start, stop, number, record["name"], types, schema))
            record["row_groups"] = -(-part.frames // BLOCK_FRAMES)
            shards.roll()
            assembly.tick(number + 1)
    assembly.metadata["files"] = [path.name for path in shards.paths]


def _table(
    part: Part, start: int, stop: int, number: int, name: str, types: dict[str, np.dtype[Any]], schema: pa.Schema
) -> pa.Table:
    table = part.table[start:stop]
    count = stop - start
    columns = [
        pa.array([name] * count, pa.string()),
        pa.array(np.full(count, number, np.uint32)),
        *(pa.array(np.ascontiguousarray(table[key])) for key in ("index", "timestamp_us", "width", "height")),
    ]
    for column in _LISTS.values():
        offsets = part.offsets[start : stop + 1, OFFSETS_OF[column]]
        values = part.read(column, start, stop).astype(types[column])
        columns.append(pa.ListArray.from_arrays(pa.array((offsets - offsets[0]).astype(np.int32)), pa.array(values)))
    return pa.Table.from_arrays(columns, schema=schema)


class Shards:
    """Writes Parquet files one after the other; use it in a ``with`` statement.

    Args:
        folder: Folder of the files.
        name_of: Gives the name of a file from its number.
        schema: Schema of the rows.
        shard_bytes: Size in bytes at which a new file begins.
    """

    def __init__(self, folder: Path, name_of: Callable[[int], str], schema: pa.Schema, shard_bytes: int) -> None:
        self.paths: list[Path] = []
        """The files so far."""
        self._folder = folder
        self._name_of = name_of
        self._schema = schema
        self._shard_bytes = shard_bytes
        self._file: IO[bytes] | None = None
        self._writer: pq.ParquetWriter | None = None
        self._groups = 0

    def place(self) -> tuple[str, int]:
        """Place of the next row group: the file, relative to the folder, and its number there. Opens the file."""
        if self._writer is None:
            path = self._folder / self._name_of(len(self.paths))
            path.parent.mkdir(parents=True, exist_ok=True)
            self.paths.append(path)
            # Through a file object of Python, so that a full disk always raises an OSError.
            self._file = path.open("wb")
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
            self._groups = 0
        return self.paths[-1].relative_to(self._folder).as_posix(), self._groups

    def write(self, table: pa.Table) -> None:
        """Writes a row group; call :meth:`place` before."""
        assert self._writer is not None
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))
        self._groups += 1

    def roll(self) -> None:
        """Begins a new file if this one is large enough."""
        if self._file is not None and self._file.tell() >= self._shard_bytes:
            self._close()

    def _close(self) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
        finally:
            if self._file is not None:
                self._file.close()
            self._writer = self._file = None
        sync(self.paths[-1])

    def __enter__(self) -> Shards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is None:
            return
        if kind is None:
            self._close()
            return
        with suppress(OSError):  # the first error is the one to report
            self._close()


class RowGroupReader(ClipReader):
    """Reads the row groups of a clip; a subclass reads the columns.

    Raises:
        FormatError: The record of a clip does not name its file and row groups.
    """

    file_name: ClassVar[re.Pattern[str]]
    """Allowed names of the files."""

    def __init__(self, folder: Path, metadata: dict[str, Any], clips: list[tuple[int, int]]) -> None:
        super().__init__(clips)
        self._folder = folder
        self.types = {name: np.dtype(kind) for name, kind in metadata["types"].items()}
        """Type of each array of tokens."""
        self._places: list[tuple[str, range]] = []
        for record in metadata["clips"]:
            file, first, count = (record.get(key) for key in ("file", "row_group", "row_groups"))
            if not (
                isinstance(file, str)
                and self.file_name.fullmatch(file)
                and isinstance(first, int)
                and isinstance(count, int)
                and 0 <= first <= first + count < 1 << 31
            ):
                raise FormatError(f"{folder}: a record of a clip does not say where its rows are")
            self._places.append((file, range(first, first + count)))

    def columns(self, number: int) -> dict[str, str] | None:
        """The columns to read for a clip, each with its name in :meth:`arrays`; None for all."""
        return None

    def arrays(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        """The arrays of :func:`ragged_from` from the rows of a clip."""
        raise NotImplementedError

    def load(self, number: int) -> RaggedTokens:
        columns = self.columns(number)
        table = self._read(number, None if columns is None else list(columns))
        try:
            arrays = self.arrays(table if columns is None else table.select(list(columns)).rename_columns(columns))
        except (KeyError, pa.ArrowException, TypeError, ValueError) as error:
            raise FormatError(f"{self._folder}: clip {number} cannot be read ({error})") from None
        return ragged_from(arrays, number, str(self._folder))

    def _read(self, number: int, columns: list[str] | None) -> pa.Table:
        """The rows of a clip; all columns, or some."""
        file, groups = self._places[number]
        path = self._folder / file
        try:
            with pq.ParquetFile(path) as parquet:
                if groups.stop > parquet.num_row_groups:
                    raise FormatError(f"{path}: has {parquet.num_row_groups} row groups; clip {number} is not in it")
                return parquet.read_row_groups(list(groups), columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise FormatError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None


class ParquetReader(RowGroupReader):
    """Reads the columns of :func:`write`."""

    file_name = _FILE

    def arrays(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for name, column in _LISTS.items():
            values, offsets = flatten(table.column(name))
            arrays[column] = values.astype(self.types[column], copy=False)
            if column in ("ids", "globals"):
                arrays["cu_globals" if column == "globals" else "cu_seqlens"] = offsets
        arrays["indices"] = table.column("frame_index").to_numpy()
        arrays["timestamps_us"] = table.column("timestamp_us").to_numpy()
        arrays["sizes"] = np.stack([table.column(name).to_numpy() for name in ("width", "height")], axis=1)
        return arrays


def flatten(column: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The values of a list column, and the offset of each row."""
    values: list[NDArray[Any]] = []
    counts: list[NDArray[Any]] = [np.zeros(1, np.int64)]
    for chunk in _chunks(column):
        values.append(chunk.flatten().to_numpy())
        counts.append(np.diff(chunk.offsets.to_numpy()).astype(np.int64))
    return np.concatenate(values), offsets32(np.cumsum(np.concatenate(counts)))


def _chunks(column: pa.ChunkedArray) -> Iterator[pa.ListArray]:
    for chunk in column.chunks:
        if chunk.null_count:
            raise ValueError("a row has no tokens at all")
        yield chunk
