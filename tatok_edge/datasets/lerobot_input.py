"""Reads LeRobot data sets (layout v3.0): the videos of their cameras, and the rows of actions, states and times.

Files may come from strangers: paths are built from numbers and camera names only, and sizes are limited.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tatok_edge.datasets.formats import require_pyarrow
from tatok_edge.errors import InputError, one_line
from tatok_edge.files import read_json

INFO = "meta/info.json"
VERSION = "v3.0"
MAX_INFO_BYTES = 64 << 20
MAX_TABLE_BYTES = 4 << 30
"""Largest size of a Parquet file in memory."""
_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_SPAN = re.compile(r"(?P<path>.+)#start=(?P<start>[0-9.e-]+),frames=(?P<frames>[0-9]+),fps=(?P<fps>[0-9.e-]+)")


@dataclass(frozen=True, slots=True)
class Span:
    """The frames of one camera in one episode."""

    name: str
    """Name of the clip: the episode and the camera."""
    source: str
    """Name of the source: the video, and where in it the frames are."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode."""

    number: int
    """Its number in the data set."""
    length: int
    """Number of its frames."""
    data: Path
    """Parquet file of its rows."""
    row: dict[str, Any]
    """Its row of ``meta/episodes``."""
    spans: dict[str, Span]
    """Its frames, by camera."""


def is_lerobot(folder: Path) -> bool:
    """Whether a folder is a LeRobot data set, of any version."""
    return (folder / INFO).is_file()


def split_span(name: str) -> tuple[Path, float, int, float] | None:
    """Path, start in seconds, number of frames and frame rate of a :attr:`Span.source`; None for other names."""
    match = _SPAN.fullmatch(name)
    if match is None:
        return None
    try:
        return Path(match["path"]), float(match["start"]), int(match["frames"]), float(match["fps"])
    except ValueError:
        return None


class LeRobotInput:
    """An open LeRobot data set.

    Args:
        folder: Its folder.

    Raises:
        InputError: It is no data set of v3.0, has no camera, or a file is missing or damaged; the message names it.
        BackendError: pyarrow is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        require_pyarrow("reading a LeRobot data set")
        self.folder = Path(folder)
        self.notes: list[str] = []
        """What is left out, one line each."""
        self.info = self._read_info()
        """Content of ``meta/info.json``."""
        self.cameras = self._find_cameras()
        """Features that are videos of a camera."""
        self.kept = [name for name, feature in self.info["features"].items() if feature["dtype"] != "video"]
        """Features in the Parquet files: actions, states, times."""
        self.episodes = self._read_episodes()
        """The episodes, in order."""
        self._rows: tuple[Path, Any] | None = None

    def short_name(self, camera: str) -> str:
        """Name of a camera for the names of its token features."""
        short = {name: name.removeprefix("observation.").removeprefix("images.") for name in self.cameras}
        return short[camera] if list(short.values()).count(short[camera]) == 1 else camera

    @cached_property
    def schema(self) -> Any:
        """Arrow schema of the kept features."""
        import pyarrow as pa

        schema = self._table(self.episodes[0].data).schema
        return pa.schema([schema.field(name) for name in self.kept])

    def rows(self, episode: Episode) -> Any:
        """The rows of an episode as an Arrow table of the kept features.

        Raises:
            InputError: They are missing or damaged.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        table = self._table(episode.data)
        try:
            table = table.filter(pc.equal(table["episode_index"], episode.number)).sort_by("frame_index")
            table = table.select(self.kept).cast(self.schema)
        except (pa.ArrowException, ValueError) as error:
            raise InputError(f"{episode.data}: its columns do not fit ({one_line(error)})") from None
        if table["frame_index"].to_pylist() != list(range(episode.length)):
            raise InputError(
                f"{episode.data}: episode {episode.number} has {table.num_rows} rows, not one for each of its "
                f"{episode.length} frames; the data set is damaged"
            )
        return table

    def check_rows(self) -> None:
        """Reads the rows of all episodes once, before the long work.

        Raises:
            InputError: Some are missing or damaged.
        """
        for episode in self.episodes:
            self.rows(episode)

    def _read_info(self) -> dict[str, Any]:
        path = self.folder / INFO
        info = read_json(path, MAX_INFO_BYTES, InputError)
        version = info.get("codebase_version") if isinstance(info, dict) else None
        if version != VERSION:
            raise InputError(
                f"{self.folder}: is a LeRobot data set of version {version}, and only {VERSION} can be read; "
                "convert it with LeRobot: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id=NAME"
            )
        features, fps = info.get("features"), info.get("fps")
        if not isinstance(features, dict) or not all(
            isinstance(feature, dict) and isinstance(feature.get("dtype"), str) for feature in features.values()
        ):
            raise InputError(f"{path}: has no 'features'; the data set is damaged")
        if not isinstance(fps, int | float) or isinstance(fps, bool) or not 0 < fps <= 1000:
            raise InputError(f"{path}: 'fps' must be above 0 and at most 1000, got {fps!r}")
        if missing := {"episode_index", "frame_index", "index", "task_index", "timestamp"} - features.keys():
            raise InputError(f"{path}: has no feature {', '.join(sorted(missing))}; the data set is damaged")
        for name, layout in (("data_path", _DATA), ("video_path", _VIDEO)):
            if info.get(name) not in (layout, None):
                raise InputError(f"{path}: '{name}' is {info[name]!r}; only {layout!r} can be read")
        checked: dict[str, Any] = info
        return checked

    def _find_cameras(self) -> list[str]:
        cameras = []
        for name, feature in self.info["features"].items():
            about = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
            if feature["dtype"] == "image":
                raise InputError(
                    f"{self.folder}: {name} is stored as pictures in the Parquet files; only cameras stored as videos "
                    "can be read: record with use_videos=True, or convert it with lerobot-edit-dataset"
                )
            if feature["dtype"] != "video":
                continue
            if "/" in name or name in ("..", "."):
                raise InputError(f"{self.folder}: {name!r} is no name of a camera")
            if about.get("is_depth_map") or about.get("video.is_depth_map"):
                self.notes.append(f"{self.folder}: {name} is left out: it holds distances, not colours")
                continue
            cameras.append(name)
        if not cameras:
            raise InputError(f"{self.folder}: has no camera (no feature of type 'video' in {INFO})")
        return cameras

    def _read_episodes(self) -> list[Episode]:
        folder = self.folder / "meta/episodes"
        files = sorted(folder.glob("chunk-*/file-*.parquet"))
        if not files:
            raise InputError(f"{folder}: has no Parquet file; the data set is not complete")
        episodes = []
        for path in files:
            for row in self._read_table(path, lambda name: not name.startswith("stats/")).to_pylist():
                episodes.append(self._episode(path, row))
        episodes.sort(key=lambda episode: episode.number)
        numbers = [episode.number for episode in episodes]
        if not numbers or numbers != list(range(len(numbers))):
            raise InputError(f"{folder}: the episodes are not numbered 0, 1, 2, ...; the data set is damaged")
        tasks = self.folder / "meta/tasks.parquet"
        needed = {episode.data for episode in episodes} | {tasks}
        needed |= {self._video(episode.row, camera) for episode in episodes for camera in self.cameras}
        if missing := sorted(str(path) for path in needed if not path.is_file()):
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise InputError(f"{missing[0]}: is missing{more}; the data set is not complete: download it again")
        return episodes

    def _episode(self, path: Path, row: dict[str, Any]) -> Episode:
        try:
            number, length = int(row["episode_index"]), int(row["length"])
            data = self.folder / _DATA.format(
                chunk_index=int(row["data/chunk_index"]), file_index=int(row["data/file_index"])
            )
            spans = {}
            for camera in self.cameras:
                start = float(row[f"videos/{camera}/from_timestamp"])
                place = f"start={start!r},frames={length},fps={self.info['fps']!r}"
                source = f"{self._video(row, camera)}#{place}"
                if not 0 <= start < 1 << 31 or length < 1 or split_span(source) is None:
                    raise ValueError(place)
                spans[camera] = Span(f"episode_{number:06d}/{camera}", source)
        except KeyError as error:
            raise InputError(f"{path}: has no column {error.args[0]}; the data set is damaged") from None
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: a row is damaged ({one_line(error)})") from None
        return Episode(number, length, data, row, spans)

    def _video(self, row: dict[str, Any], camera: str) -> Path:
        chunk, file = int(row[f"videos/{camera}/chunk_index"]), int(row[f"videos/{camera}/file_index"])
        return self.folder / _VIDEO.format(video_key=camera, chunk_index=chunk, file_index=file)

    def _table(self, path: Path) -> Any:
        """The kept features of a data file; the last file stays in memory."""
        if self._rows is None or self._rows[0] != path:
            table = self._read_table(path, lambda name: name in self.kept)
            if missing := [name for name in self.kept if name not in table.column_names]:
                raise InputError(f"{path}: has no column {missing[0]}, which {INFO} names; the data set is damaged")
            self._rows = path, table
        return self._rows[1]

    @staticmethod
    def _read_table(path: Path, wanted: Any) -> Any:
        """Some columns of a Parquet file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                about = file.metadata
                size = sum(about.row_group(group).total_byte_size for group in range(about.num_row_groups))
                if size > MAX_TABLE_BYTES:
                    raise InputError(f"{path}: takes {size} bytes in memory; {MAX_TABLE_BYTES} are allowed")
                return file.read(columns=[name for name in file.schema_arrow.names if wanted(name)])
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)})") from None
