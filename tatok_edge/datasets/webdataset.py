"""WebDataset: tar files with one sample per clip, its arrays as ``.npy`` members (nothing pickled).

A sample per frame would cost a tar header for each of its arrays: seven times the size of its tokens.
"""

from __future__ import annotations

import io
import json
import math
import re
import struct
import tarfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from tatok_edge.datasets.assembly import BLOCK_FRAMES, Assembly
from tatok_edge.datasets.clip_reader import ClipReader
from tatok_edge.datasets.parts import COLUMNS, OFFSETS_OF, Column, Part
from tatok_edge.datasets.tokens import RaggedTokens, offsets32, ragged_from
from tatok_edge.errors import FormatError
from tatok_edge.files import open_regular, sync

MEMBERS = (*COLUMNS, "cu_seqlens", "cu_globals", "timestamps_us", "indices", "sizes")
"""The arrays of a sample; its key is the number of the clip, and ``json`` holds the clip's record."""
_TYPES = {"cu_seqlens": "<i4", "cu_globals": "<i4", "timestamps_us": "<i8", "indices": "<i8", "sizes": "<u2"}
_NPY_MAGIC = struct.Struct("<8sH")
_NPY_HEADER = re.compile(
    r"\{'descr': '([<|][uif]\d)', 'fortran_order': False, 'shape': \((\d{1,12}, ?(?:\d{1,12})?)\), \} *\n"
)
_SHARD = re.compile(r"shard-\d{6,}\.tar")


def write(assembly: Assembly) -> None:
    """Writes the data set."""
    types = {name: np.dtype(kind) for name, kind in assembly.metadata["types"].items()}
    tar: tarfile.TarFile | None = None
    shards: list[Path] = []
    try:
        for number, part in enumerate(assembly.parts):
            record = assembly.metadata["clips"][number]
            if tar is None:
                shards.append(assembly.folder / f"shard-{len(shards):06d}.tar")
                # The plain USTAR format: every tar reader takes it, and its bytes do not depend on the machine.
                tar = tarfile.open(shards[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            record["shard"] = shards[-1].name
            record["key"] = key = f"{number:06d}"
            for column in COLUMNS:
                _add_column(tar, f"{key}.{column}.npy", part, column, types[column])
            table = part.table
            arrays = {
                "cu_seqlens": offsets32(part.offsets[:, 0]),
                "cu_globals": offsets32(part.offsets[:, 1]),
                "timestamps_us": table["timestamp_us"],
                "indices": table["index"],
                "sizes": np.stack([table["width"], table["height"]], axis=1),
            }
            for name, array in arrays.items():
                data = io.BytesIO()
                npy.write_array(data, np.ascontiguousarray(array, _TYPES[name]), allow_pickle=False)
                _add(tar, f"{key}.{name}.npy", data.tell(), data)
            about = json.dumps(_about(assembly.metadata) | {"clip": record}).encode()
            _add(tar, f"{key}.json", len(about), io.BytesIO(about))
            if tar.offset >= assembly.shard_bytes:
                tar.close()
                tar = None
            assembly.tick(number + 1)
    finally:
        if tar is not None:
            tar.close()
    for path in shards:
        sync(path)
    assembly.metadata["shards"] = [path.name for path in shards]


def _about(metadata: dict[str, Any]) -> dict[str, Any]:
    """Facts that are needed to read the tokens of a sample from the shard alone."""
    return {
        name: metadata[name] for name in ("format_version", "model", "vocabulary", "levels", "depth", "patch", "cell")
    }


def _add_column(tar: tarfile.TarFile, name: str, part: Part, column: Column, kind: np.dtype[Any]) -> None:
    """Adds an array of a part, block by block."""
    count = int(part.info[("tokens", "globals")[OFFSETS_OF[column]]])
    header = io.BytesIO()
    fields = {"descr": kind.str, "fortran_order": False, "shape": (count,)}
    npy.write_array_header_1_0(header, fields)
    blocks = (part.read(column, *block).astype(kind).tobytes() for block in part.blocks(BLOCK_FRAMES))
    size = header.tell() + count * kind.itemsize
    _add(tar, name, size, _Chain(iter([header.getvalue()]), blocks))


def _add(tar: tarfile.TarFile, name: str, size: int, data: IO[bytes] | _Chain) -> None:
    info = tarfile.TarInfo(name)  # time and owner stay 0: the same tokens make the same file
    info.size = size
    if isinstance(data, io.BytesIO):
        data.seek(0)
    tar.addfile(info, data)  # type: ignore[arg-type]  # it calls only read()


class _Chain:
    """Reads byte strings from iterators as one file."""

    def __init__(self, *sources: Any) -> None:
        self._blocks = (block for source in sources for block in source)
        self._rest = b""

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end."""
        while len(self._rest) < size:
            block = next(self._blocks, None)
            if block is None:
                break
            self._rest += block
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


class WebDatasetReader(ClipReader):
    """Reads the shards with the standard library."""

    def __init__(self, folder: Path, metadata: dict[str, Any], clips: list[tuple[int, int]]) -> None:
        super().__init__(clips)
        self._folder = folder
        self._types = dict(metadata["types"]) | _TYPES
        self._places: list[tuple[str, str]] = []
        for record in metadata["clips"]:
            shard, key = record.get("shard"), record.get("key")
            if not isinstance(key, str) or not isinstance(shard, str) or not _SHARD.fullmatch(shard):
                raise FormatError(f"{folder}: a record of a clip does not say where its sample is")
            self._places.append((shard, key))
        self._members: dict[str, dict[str, tuple[int, int]]] = {}
        """First byte and size of each member of the shards opened so far."""

    def load(self, number: int) -> RaggedTokens:
        shard, key = self._places[number]
        path = self._folder / shard
        try:
            if shard not in self._members:
                with tarfile.open(path, "r:") as tar:
                    self._members[shard] = {m.name: (m.offset_data, m.size) for m in tar if m.isreg()}
            members = self._members[shard]
            with open_regular(path) as file:
                arrays = {name: self._array(file, path, name, *members[f"{key}.{name}.npy"]) for name in MEMBERS}
        except KeyError as error:
            raise FormatError(f"{path}: has no {error.args[0]}") from None
        except (OSError, tarfile.TarError, ValueError) as error:
            raise FormatError(f"{path}: cannot be read ({error})") from None
        return ragged_from(arrays, number, str(path))

    def _array(self, file: IO[bytes], path: Path, name: str, start: int, size: int) -> NDArray[Any]:
        file.seek(start)
        head = file.read(_NPY_MAGIC.size)
        magic, length = _NPY_MAGIC.unpack(head) if len(head) == _NPY_MAGIC.size else (b"", 0)
        if magic != b"\x93NUMPY\x01\x00":
            raise FormatError(f"{path}: {name} is not in version 1.0 of the npy format")
        # Not with numpy: its parser of headers raises errors of several libraries.
        header = _NPY_HEADER.fullmatch(file.read(length).decode("latin-1"))
        if header is None:
            raise FormatError(f"{path}: {name} has a damaged header")
        kind = np.dtype(self._types[name])
        shape = tuple(int(part) for part in header[2].replace(" ", "").split(",") if part)
        count = math.prod(shape)
        if header[1] != kind.str or _NPY_MAGIC.size + length + count * kind.itemsize != size:
            raise FormatError(f"{path}: {name} is {header[1]} {shape}, which does not fit")
        data = file.read(count * kind.itemsize)
        if len(data) != count * kind.itemsize:
            raise FormatError(f"{path}: is cut off in {name}")
        return np.frombuffer(data, kind).reshape(shape)
