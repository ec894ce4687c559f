"""LeRobot data sets (layout v3.0): tokens padded to one length, with their number. An episode is a clip, or comes from
another LeRobot data set, with its actions, states and times and the tokens of each camera.

Features of LeRobot have one fixed shape, so tokens are padded with -1, which is no token id. The package ``lerobot`` is
not needed.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tatok_edge.datasets.assembly import Assembly
from tatok_edge.datasets.lerobot_input import Episode, LeRobotInput
from tatok_edge.datasets.parquet import RowGroupReader, Shards
from tatok_edge.datasets.parts import OFFSETS_OF, Column, Part
from tatok_edge.datasets.tokens import offsets32
from tatok_edge.errors import FormatError, InputError
from tatok_edge.files import sync

CODEBASE_VERSION = "v3.0"
CHUNK_FILES = 1000
"""Files per folder."""
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-000/file-000.parquet"
TASKS_PATH = "meta/tasks.parquet"
TASK = "video"
"""LeRobot needs a task for each frame; videos have none."""
PADDING = -1
RATE_TOLERANCE = 1e-3
"""Frame rates with a smaller relative difference count as equal: containers round them."""
TIME_TOLERANCE = 1.5
"""Frame times by which a frame may be off ``frame_index / fps``."""
ROWS = 256
"""Largest number of padded frames in memory at a time."""
_RENUMBERED = ("episode_index", "index")
"""Columns of a LeRobot data set that change where an episode is left out or shortened."""
_NUMBERS = {"bool", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_FILE = re.compile(r"data/chunk-\d{3,}/file-\d{3,}\.parquet")
_PADDED: dict[str, Column] = {
    "observation.tokens": "ids",
    "observation.positions": "positions",
    "observation.depths": "depths",
    "observation.globals": "globals",
}


@dataclass(frozen=True, slots=True)
class _Episode:
    """One episode to write."""

    cameras: dict[str, int]
    """Number of the clip of each camera, by the ending of the names of its features."""
    source: Episode | None
    """The episode that it comes from, in a LeRobot data set."""


def write(assembly: Assembly) -> None:
    """Writes the data set: an episode for each clip, or the episodes of a LeRobot data set with tokens for each camera.

    Raises:
        InputError: A clip has no frame rate, or the clips have different ones; or the rows of the LeRobot data set are
            missing or damaged.
    """
    robot = assembly.robot
    fps = frame_rate({part.info["name"]: part.info["fps"] for part in assembly.parts})
    takes = _episodes(assembly)
    widths = _widths(assembly.parts, takes)
    features = _features(widths, robot)
    schema = pa.schema(
        [
            robot.schema.field(name) if robot and name in robot.kept else (name, _arrow_type(feature))
            for name, feature in features.items()
        ]
    )
    statistics = {name: _Statistics() for name, feature in features.items() if feature["dtype"] in _NUMBERS}
    episodes: list[dict[str, Any]] = []
    frames = 0
    with Shards(assembly.folder, _data_path, schema, assembly.shard_bytes) as shards:
        for number, take in enumerate(takes):
            part = assembly.parts[next(iter(take.cameras.values()))]
            rows = robot.rows(take.source) if robot and take.source else None
            place = dict(zip(("file", "row_group"), shards.place(), strict=True))
            chunk, file = divmod(len(shards.paths) - 1, CHUNK_FILES)
            for start, stop in part.blocks(ROWS):
                arrays = _standard(part, start, stop, number, frames, fps)
                for ending, clip in take.cameras.items():
                    arrays |= _tokens(assembly.parts[clip], start, stop, ending, widths[ending])
                columns = [
                    _arrow(arrays[name])
                    if rows is None or name not in rows.column_names or name in _RENUMBERED
                    else rows[name].slice(start, stop - start).combine_chunks()
                    for name in features
                ]
                for name, column in zip(features, columns, strict=True):
                    if name in statistics:
                        statistics[name].add(_numbers(column))
                shards.write(pa.Table.from_arrays(columns, schema=schema))
            for ending, clip in take.cameras.items():
                assembly.metadata["clips"][clip] |= place | {
                    "row_groups": -(-part.frames // ROWS),
                    "features": ending,
                }
            episodes.append(
                _kept_row(take)
                | {
                    "episode_index": number,
                    "length": part.frames,
                    "data/chunk_index": chunk,
                    "data/file_index": file,
                    "dataset_from_index": frames,
                    "dataset_to_index": frames + part.frames,
                    "meta/episodes/chunk_index": 0,
                    "meta/episodes/file_index": 0,
                }
            )
            frames += part.frames
            shards.roll()
            assembly.tick(max(take.cameras.values()) + 1)
    info = _info(assembly, fps, features, len(episodes), frames)
    assembly.metadata["padding"] = PADDING
    _write_json(assembly.folder / "meta/info.json", info)
    _write_json(assembly.folder / "meta/stats.json", {name: figures.report() for name, figures in statistics.items()})
    _write_table(assembly.folder / EPISODES_PATH, pa.Table.from_pylist(episodes))
    tasks = assembly.folder / TASKS_PATH
    if robot:
        shutil.copyfile(robot.folder / TASKS_PATH, tasks)
        sync(tasks)
    else:
        _write_table(tasks, task_table([TASK]))


def _info(
    assembly: Assembly, fps: float, features: dict[str, dict[str, Any]], episodes: int, frames: int
) -> dict[str, Any]:
    """The content of ``meta/info.json``."""
    return {
        "codebase_version": CODEBASE_VERSION,
        "total_tasks": 1,
        "video_files_size_in_mb": 200,
        "robot_type": None,
        **(assembly.robot.info if assembly.robot else {}),
        "fps": fps,
        "features": features,
        "total_episodes": episodes,
        "total_frames": frames,
        "chunks_size": CHUNK_FILES,
        "data_files_size_in_mb": max(assembly.shard_bytes >> 20, 1),
        "data_path": DATA_PATH,
        "video_path": None,
        "splits": {"train": f"0:{episodes}"},
    }


def _episodes(assembly: Assembly) -> list[_Episode]:
    robot = assembly.robot
    if robot is None:
        return [_Episode({"": number}, None) for number in range(len(assembly.parts))]
    numbers = {part.info["name"]: number for number, part in enumerate(assembly.parts)}
    return [
        _Episode({f".{robot.short_name(camera)}": numbers[s.name] for camera, s in source.spans.items()}, source)
        for source in robot.episodes
        if all(span.name in numbers for span in source.spans.values())
    ]


def _kept_row(take: _Episode) -> dict[str, Any]:
    """What the metadata of an episode say that does not change."""
    if take.source is None:
        return {"tasks": [TASK]}
    return {name: value for name, value in take.source.row.items() if not name.startswith("videos/")}


def _widths(parts: Sequence[Part], takes: Sequence[_Episode]) -> dict[str, tuple[int, int]]:
    """Most patch tokens and global tokens of a frame, by the ending of the features."""
    widths: dict[str, tuple[int, int]] = {}
    for take in takes:
        for ending, clip in take.cameras.items():
            # LeRobot takes a shape of (1,) for a number.
            tokens, cells = widths.get(ending, (2, 2))
            most = np.diff(parts[clip].offsets, axis=0).max(axis=0)
            widths[ending] = max(tokens, int(most[0])), max(cells, int(most[1]))
    return widths


def _data_path(number: int) -> str:
    """The path of data file ``number``."""
    chunk, file = divmod(number, CHUNK_FILES)
    return DATA_PATH.format(chunk_index=chunk, file_index=file)


def frame_rate(rates: Mapping[str, float | None]) -> int | float:
    """The common frame rate of all clips.

    Args:
        rates: Rate of each clip by its name.

    Raises:
        InputError: A clip has no frame rate, or the clips have different ones.
    """
    first, rate = next(iter(rates.items()))
    for name, other in rates.items():
        if rate is None or other is None:
            raise InputError(f"{name}: has no frame rate, which LeRobot needs; give --fps")
        if abs(other / rate - 1) > RATE_TOLERANCE:
            raise InputError(
                f"LeRobot takes one frame rate for all clips, but {first} has {rate:g} and {name} {other:g}; "
                "make a data set for each rate"
            )
    assert rate is not None
    return int(rate) if float(rate).is_integer() else float(rate)


def unsteady(part: Part) -> str | None:
    """Why a clip has no constant frame rate, which LeRobot needs; None where it has one.

    LeRobot takes ``frame_index / fps`` as the time of a frame. A frame may be off by :data:`TIME_TOLERANCE` frame
    times: cameras are not exact, and a frame may be missing.
    """
    fps = part.info["fps"]
    if not fps or not part.table["timestamp_us"].any():
        return None
    times = part.table["timestamp_us"] / 1e6
    off = np.abs(times - np.arange(part.frames) / fps)
    late = np.flatnonzero(off > TIME_TOLERANCE / fps + RATE_TOLERANCE * times)
    if not late.size:
        return None
    frame = int(late[0])
    return (
        f"{part.info['name']}: its frame rate varies: at {fps:g} frames/s, frame {frame} is due at {frame / fps:.3f} s "
        f"and comes at {times[frame]:.3f} s, and LeRobot takes constant rates only; make the rate constant first "
        f"(ffmpeg -i IN -vf fps={fps:g} OUT), give the true rate of a bag with --fps, or take another --format"
    )


def _features(widths: dict[str, tuple[int, int]], robot: LeRobotInput | None) -> dict[str, dict[str, Any]]:
    def feature(kind: str, length: int = 1, names: list[str] | None = None) -> dict[str, Any]:
        return {"dtype": kind, "shape": [length], "names": names}

    ours: dict[str, dict[str, Any]] = {}
    for ending, (tokens, cells) in widths.items():
        ours |= {
            f"observation.tokens{ending}": feature("int32", tokens),
            f"observation.positions{ending}": feature("int32", tokens),
            f"observation.depths{ending}": feature("int32", tokens),
            f"observation.n_tokens{ending}": feature("int32"),
            f"observation.globals{ending}": feature("int32", cells),
            f"observation.n_globals{ending}": feature("int32"),
            f"observation.size{ending}": feature("int32", 2, ["width", "height"]),
        }
    ours |= {"source_frame": feature("int64"), "source_timestamp_us": feature("int64")}
    if robot is None:
        # Features of every LeRobot data set.
        whole = ("frame_index", "episode_index", "index", "task_index")
        return ours | {"timestamp": feature("float32")} | {name: feature("int64") for name in whole}
    if twice := sorted(ours.keys() & set(robot.kept)):
        raise InputError(f"{robot.folder}: has a feature {twice[0]!r} already; it holds tokens")
    return {name: robot.info["features"][name] for name in robot.kept} | ours


def _tokens(part: Part, start: int, stop: int, ending: str, width: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """The tokens of frames as arrays, ``(frames,)`` or ``(frames, length)``."""
    counts = np.diff(part.offsets[start : stop + 1], axis=0).astype(np.int32)
    rows: dict[str, NDArray[Any]] = {}
    for name, column in _PADDED.items():
        of = OFFSETS_OF[column]
        padded = np.full((stop - start, width[of]), PADDING, np.int32)
        padded[np.arange(padded.shape[1]) < counts[:, of, None]] = part.read(column, start, stop)
        rows[name + ending] = padded
    table = part.table[start:stop]
    return rows | {
        f"observation.n_tokens{ending}": counts[:, 0],
        f"observation.n_globals{ending}": counts[:, 1],
        f"observation.size{ending}": np.stack([table["width"], table["height"]], axis=1).astype(np.int32),
    }


def _standard(part: Part, start: int, stop: int, number: int, first: int, fps: float) -> dict[str, NDArray[Any]]:
    """Numbers and times of frames; ``first`` is the number of frames before the episode."""
    table = part.table[start:stop]
    frame = np.arange(start, stop, dtype=np.int64)
    return {
        "source_frame": table["index"],
        "source_timestamp_us": table["timestamp_us"],
        # By LeRobot's definition; the true times are in source_timestamp_us.
        "timestamp": (frame / fps).astype(np.float32),
        "frame_index": frame,
        "episode_index": np.full(stop - start, number, np.int64),
        "index": frame + first,
        "task_index": np.zeros(stop - start, np.int64),
    }


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    """A column of numbers, or of lists of one length, as an array ``(rows, length)``."""
    rows = len(column)
    while pa.types.is_nested(column.type):
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64).reshape(rows, -1)


def _arrow_type(feature: dict[str, Any]) -> pa.DataType:
    kind = pa.type_for_alias(feature["dtype"] if feature["dtype"] != "float32" else "float")
    (length,) = feature["shape"]
    return kind if length == 1 else pa.list_(kind, length)


def _arrow(array: NDArray[Any]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(array).reshape(-1))
    return flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, array.shape[1])


class _Statistics:
    """Smallest, largest, mean and standard deviation of a feature, element by element."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: NDArray[np.float64] | None = None

    def add(self, array: NDArray[Any]) -> None:
        """Counts the rows of an array."""
        values = array.reshape(len(array), -1).astype(np.float64)
        low, high = values.min(axis=0), values.max(axis=0)
        sums = np.stack([values.sum(axis=0), np.square(values).sum(axis=0)])
        if self._sums is None:
            self._low, self._high, self._sums = low, high, sums
        else:
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
            self._sums = self._sums + sums
        self._count += len(array)

    def report(self) -> dict[str, Any]:
        """The figures in the layout of ``stats.json`` of LeRobot."""
        assert self._sums is not None
        mean = self._sums[0] / self._count
        deviation = np.sqrt(np.maximum(self._sums[1] / self._count - np.square(mean), 0))
        figures = {"min": self._low, "max": self._high, "mean": mean, "std": deviation}
        return {name: value.tolist() for name, value in figures.items()} | {"count": [self._count]}


def task_table(tasks: Sequence[str]) -> pa.Table:
    """The table of tasks; in pandas, its index is the task."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": pa.array(list(tasks))})
    text = {"pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    about = {
        "index_columns": ["task"],
        "column_indexes": [{"name": None, "field_name": None} | text],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
            | {"metadata": None},
            {"name": "task", "field_name": "task"} | text,
        ],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.2.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(about)})


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n")
    sync(path)


def _write_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pq.write_table(table, file)
    sync(path)


class LeRobotReader(RowGroupReader):
    """Reads episodes and removes the padding."""

    file_name = _FILE

    def __init__(self, folder: Path, metadata: dict[str, Any], clips: list[tuple[int, int]]) -> None:
        super().__init__(folder, metadata, clips)
        self._endings = [record.get("features") for record in metadata["clips"]]
        if not all(isinstance(ending, str) for ending in self._endings):
            raise FormatError(f"{folder}: a record of a clip does not say in which features its tokens are")

    def columns(self, number: int) -> dict[str, str]:
        ending = self._endings[number]
        names = (*_PADDED, "observation.n_tokens", "observation.n_globals", "observation.size")
        own = ("source_frame", "source_timestamp_us")
        return {name + ending: name for name in names} | {name: name for name in own}

    def arrays(self, table: pa.Table) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        for name, column in _PADDED.items():
            counts = table.column(f"observation.n_{'globals' if column == 'globals' else 'tokens'}").to_numpy()
            padded = _fixed(table.column(name))
            arrays[column] = padded[np.arange(padded.shape[1]) < counts[:, None]].astype(self.types[column])
            offsets = offsets32(np.cumsum([0, *counts], dtype=np.int64))
            arrays["cu_globals" if column == "globals" else "cu_seqlens"] = offsets
        arrays["indices"] = table.column("source_frame").to_numpy()
        arrays["timestamps_us"] = table.column("source_timestamp_us").to_numpy()
        arrays["sizes"] = _fixed(table.column("observation.size"))
        return arrays


def _fixed(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column of fixed-size lists as an array ``(rows, length)``."""
    return np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in column.chunks])
