"""LeRobot data sets in: actions, states, episodes, tasks and times stay, and every camera gets its tokens."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.lerobot_sets import CAMERAS, FPS, TASKS, picture_of, write_lerobot, write_video

from tatok_edge import TokenBudget, Tokenizer
from tatok_edge.cli.main import main
from tatok_edge.datasets import open_dataset
from tatok_edge.errors import SourceError
from tatok_edge.sources.video import open_span

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
LENGTHS = (4, 3, 5)
BUDGET = ["--keep", "0.3", "--workers", "1"]


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot data set; leave it as it was."""
    return write_lerobot(tmp_path_factory.mktemp("lerobot") / "set", LENGTHS)


@pytest.fixture(scope="module")
def made(robot: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with tokens; leave it as it was."""
    out = tmp_path_factory.mktemp("made") / "tokens"
    assert main(["dataset", str(robot), "-o", str(out), *BUDGET]) == 0
    return out


def rows(folder: Path) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(folder / "data/chunk-000/file-000.parquet").to_pydict()
    return columns


def episodes(folder: Path) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    return table


def test_robot_data_stay_and_each_camera_gets_tokens(robot: Path, made: Path, tokenizer: Tokenizer) -> None:
    before, after = rows(robot), rows(made)
    for name, column in before.items():
        assert after[name] == column
    info = json.loads((made / "meta/info.json").read_text())
    old = json.loads((robot / "meta/info.json").read_text())
    assert set(after) == set(info["features"])
    for name, feature in old["features"].items():
        assert info["features"].get(name) == (None if name in CAMERAS else feature)
    assert {name: info[name] for name in ("robot_type", "fps", "total_tasks", "total_frames")} == {
        "robot_type": "so100", "fps": FPS, "total_tasks": 2, "total_frames": 12
    }  # fmt: skip
    assert (made / "meta/tasks.parquet").read_bytes() == (robot / "meta/tasks.parquet").read_bytes()
    assert [row["tasks"] for row in episodes(made)] == [[TASKS[0]], [TASKS[1]], [TASKS[0]]]
    statistics = json.loads((made / "meta/stats.json").read_text())
    assert statistics["action"]["mean"] == pytest.approx(np.mean(before["action"], axis=0).tolist())
    dataset = open_dataset(made)
    names = [f"episode_{number:06d}/{camera}" for number in range(3) for camera in CAMERAS]
    assert [clip.name for clip in dataset.clips] == names
    assert [clip.frames for clip in dataset.clips] == [length for length in LENGTHS for _ in CAMERAS]
    budget = TokenBudget(keep=0.3)
    start = 0
    for number, length in enumerate(LENGTHS):
        for camera, name in enumerate(CAMERAS):
            video = robot / f"videos/{name}/chunk-000/file-000.mp4"
            with open_span(video, start / FPS, length, FPS) as source:
                frames = list(source)
            assert len(frames) == length
            short = name.rpartition(".")[2]
            for frame in frames:
                # The right frame of the video: the bar on top tells its number.
                bar = frame.image[4:12].mean()
                assert abs(bar - picture_of(camera, start + frame.index)[4:12].mean()) < 4
                tokens = tokenizer.encode(frame.image, budget=budget)
                read = dataset.clip(2 * number + camera)[frame.index]
                assert read.ids.tolist() == tokens.ids.tolist()
                assert read.depths.tolist() == tokens.depths.tolist()
                assert (read.index, read.timestamp_us) == (frame.index, frame.index * 1_000_000 // FPS)
                row = start + frame.index
                count = after[f"observation.n_tokens.{short}"][row]
                assert after[f"observation.tokens.{short}"][row][:count] == tokens.ids.tolist()
                assert set(after[f"observation.tokens.{short}"][row][count:]) <= {-1}
        start += length


def test_first_frames_only(robot: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    assert main(["dataset", str(robot), "-o", str(out), "--frames", "2", *BUDGET]) == 0
    before, after = rows(robot), rows(out)
    taken = [0, 1, 4, 5, 7, 8]
    assert after["action"] == [before["action"][row] for row in taken]
    assert after["index"] == list(range(6))
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in episodes(out)] == [(0, 2), (2, 4), (4, 6)]


def test_other_formats_hold_tokens_only(robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokens"
    assert main(["dataset", str(robot), "-o", str(out), "--format", "flat", "--frames", "1", *BUDGET]) == 0
    assert "holds tokens only; actions and states are left out" in capsys.readouterr().err
    assert [clip.name for clip in open_dataset(out).clips][:2] == [f"episode_000000/{camera}" for camera in CAMERAS]


def test_episode_with_a_short_video_is_left_out(
    robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(robot, tmp_path / "set")
    short = [picture_of(1, frame) for frame in range(6)]
    write_video(folder / f"videos/{CAMERAS[1]}/chunk-000/file-000.mp4", short, "libx264", {"g": "2"})
    out = tmp_path / "tokens"
    assert main(["dataset", str(folder), "-o", str(out), *BUDGET]) == 1
    says = capsys.readouterr().err
    assert "at 0.400 s: frame 2 of 3 is missing" in says
    assert "another camera of its episode is left out" in says
    assert rows(out)["action"] == rows(robot)["action"][:4]
    assert [clip.name for clip in open_dataset(out).clips] == [f"episode_000000/{camera}" for camera in CAMERAS]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("version", r"version v2\.1, and only v3\.0 can be read; convert it"),
        ("videos/observation.images.top/chunk-000/file-000.mp4", "file-000.mp4: is missing; the data set is not"),
        ("data/chunk-000/file-000.parquet", "file-000.parquet: is missing; the data set is not complete"),
        ("meta/tasks.parquet", r"tasks\.parquet: is missing"),
        ("meta/episodes/chunk-000/file-000.parquet", "episodes: has no Parquet file"),
        ("pictures", "stored as pictures in the Parquet files"),
        ("path", "only 'data/chunk-"),
        ("camera", "is no name of a camera"),
        ("rows", "episode 2 has 4 rows, not one for each of its 5 frames"),
    ],
)
def test_bad_folders(robot: Path, tmp_path: Path, broken: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    folder = shutil.copytree(robot, tmp_path / "set")
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    if broken == "version":
        info["codebase_version"] = "v2.1"
    elif broken == "pictures":
        info["features"][CAMERAS[0]]["dtype"] = "image"
    elif broken == "path":
        info["data_path"] = "../../{chunk_index}"
    elif broken == "camera":
        info["features"]["../../other"] = info["features"].pop(CAMERAS[0])
    elif broken == "rows":
        data = folder / "data/chunk-000/file-000.parquet"
        pq.write_table(pq.read_table(data).slice(0, 11), data)
    else:
        (folder / broken).unlink()
    path.write_text(json.dumps(info))
    out = tmp_path / "tokens"
    assert main(["dataset", str(folder), "-o", str(out), "--frames", "1", *BUDGET]) == 1
    error = capsys.readouterr().err
    assert re.search(says, error), error
    assert "Traceback" not in error
    assert not out.exists()


def test_not_beside_other_inputs(robot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for inputs in ([robot, "synthetic:frames=2"], [robot.parent]):
        assert main(["dataset", *map(str, inputs), "-o", str(tmp_path / "tokens")]) == 1
        assert "is a LeRobot data set; make a data set of it alone" in capsys.readouterr().err


def test_span_that_is_not_there(robot: Path) -> None:
    video = robot / f"videos/{CAMERAS[0]}/chunk-000/file-000.mp4"
    with pytest.raises(SourceError, match="is missing"):
        open_span(video, 99.0, 2, FPS)
    with pytest.raises(SourceError, match="cannot be read"):
        open_span(robot / "none.mp4", 0.0, 2, FPS)
