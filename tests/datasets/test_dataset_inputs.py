"""Clips and options: what is taken, left out and refused."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.dataset_runs import BUDGET, failed, run

from tatok_edge import TokenBudget, Tokenizer
from tatok_edge.cli.main import main
from tatok_edge.datasets import open_dataset
from tatok_edge.datasets.clips import find_clips
from tatok_edge.errors import InputError
from tatok_edge.pictures.writing import open_output
from tatok_edge.sources.synthetic import Scene, render


def test_broken_clips_are_left_out_and_named(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    result = run(clips / "a.mp4", "broken.mp4", "-o", "tokens", "--frames", 2, "--workers", 1, "--json", cwd=tmp_path)
    failed(result, 1, "left out: broken.mp4: not a video or picture")
    report = json.loads(result.stdout)
    assert (report["clips"], report["left_out"], report["complete"]) == (1, 1, False)
    dataset = open_dataset(tmp_path / "tokens")
    assert len(dataset) == 2
    assert dataset.metadata["left_out"][0]["source"] == "broken.mp4"
    failed(run("broken.mp4", "-o", "none", cwd=tmp_path), 1, "none of the 1 clips could be encoded; the first: broken")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["missing.mp4"], 1, "missing.mp4: no such file; an input is"),
        (["empty"], 1, r"empty: holds no picture \(.*and no video"),
        (["empty.txt"], 1, "the lists are empty"),
        (["0", "--workers", "1"], 1, "0: no such file"),
        (["camera.ttk", "--workers", "1"], 1, "token file already"),
        (["synthetic:live=1,width=96,height=64", "--workers", "1"], 1, "a live source has no end"),
        (["synthetic", "synthetic"], 1, "synthetic: is named twice"),
        (["synthetic", "--format", "tfrecord"], 2, "invalid choice: 'tfrecord'"),
        (["synthetic", "--workers", "0"], 2, "whole number from 1"),
        (["synthetic", "--tau", "0"], 2, "tau must be above 0"),
        (["synthetic", "--fps", "-1"], 2, "--fps must be above 0"),
        (["synthetic", "--resume", "--force"], 2, "give one of them"),
        (["synthetic", "--model", "gpt"], 1, "unknown model 'gpt'"),
        (["synthetic:frames=2,width=96,height=64", "--backend", "abacus", "--workers", "1"], 1, "unknown backend"),
    ],
)
def test_wrong_input(
    arguments: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "camera.ttk").write_bytes(b"tokens")
    try:
        got = main(["dataset", *arguments, "-o", "tokens"])
    except SystemExit as error:
        got = int(error.code or 0)
    printed = capsys.readouterr()
    assert got == code
    assert re.search(says, printed.err)
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "tokens").exists()


def test_lerobot_needs_one_frame_rate(clips: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    common = ("--format", "lerobot", "--frames", 2, "--workers", 1)
    failed(run(clips, "-o", "tokens", *common, cwd=tmp_path), 1, "pictures: has no frame rate.*give --fps")
    failed(
        run(clips, "-o", "tokens", *common, "--fps", 10, "--force", cwd=tmp_path),
        1,
        "one frame rate for all clips, but a.mp4 has 25 and pictures 10",
    )


@pytest.mark.parametrize(
    ("name", "steps"), [("pause.mp4", [40] * 6 + [2000] + [40] * 3), ("slower.mkv", [33, 100] * 5)]
)
def test_lerobot_leaves_out_clips_of_variable_rate(name: str, steps: list[int], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for path, distances in ((name, steps), ("constant.mkv", [40] * 5)):
        with open_output(tmp_path / path, fps=25, frames=None) as output:
            for number in range(len(distances) + 1):
                image = render(Scene(width=96, height=64), number)
                output.write(image, number, 1000 * sum(distances[:number]))
    result = run(name, "constant.mkv", "-o", "tokens", "--format", "lerobot", "--workers", 1, cwd=tmp_path)
    failed(result, 1, f"left out: {name}: its frame rate varies.*make the rate constant first")
    dataset = open_dataset(tmp_path / "tokens")
    assert [clip["name"] for clip in dataset.metadata["clips"]] == ["constant.mkv"]


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("pyarrow", ["--format", "parquet"], "pip install 'tatok-edge[datasets]'"),
        ("pyarrow", ["--format", "lerobot"], "pip install 'tatok-edge[datasets]'"),
        ("ray", ["--engine", "ray"], "pip install 'tatok-edge[scale]'"),
    ],
)
def test_missing_package_is_named(
    name: str, arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, name + ".parquet", None)
    source = "synthetic:frames=2,width=96,height=64"
    assert main(["dataset", source, "-o", str(tmp_path / "tokens"), *arguments]) == 1
    assert says in capsys.readouterr().err


def test_names_of_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("left/10.mp4", "left/2.mp4", "left/.hidden.mp4", "right/2.mp4", "right/notes.md", "shots/1/a.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def names(*inputs: str) -> list[str]:
        return [clip.name for clip in find_clips(inputs)]

    assert names("left", "right") == ["left/2.mp4", "left/10.mp4", "right/2.mp4"]
    assert names("left") == names("left/") == ["2.mp4", "10.mp4"]
    assert names("right/2.mp4", "left/2.mp4") == ["right/2.mp4", "left/2.mp4"]
    assert names("left/2.mp4") == ["2.mp4"]
    assert names("shots") == names("shots/1") == ["1"]
    assert names(".") == ["left/2.mp4", "left/10.mp4", "right/2.mp4", "shots/1"]
    assert names("synthetic:frames=3", "left/2.mp4") == ["synthetic:frames=3", "2.mp4"]
    with pytest.raises(InputError, match="named twice"):
        names("left", "left/2.mp4")


def test_topics_of_a_bag_are_clips(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("mcap")
    rosbag2 = pytest.importorskip("rosbags.rosbag2")
    typesys = pytest.importorskip("rosbags.typesys")
    store = typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)
    image_type, name = store.types["sensor_msgs/msg/Image"], "sensor_msgs/msg/Image"
    header, stamp = store.types["std_msgs/msg/Header"], store.types["builtin_interfaces/msg/Time"]
    scenes = {
        topic: Scene(width=96, height=64, seed=seed) for seed, topic in enumerate(("/left/image", "/right/image"))
    }
    bag = tmp_path / "bag"
    with rosbag2.Writer(bag, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
        for topic, scene in scenes.items():
            connection = writer.add_connection(topic, name, typestore=store)
            for number in range(3):
                message = image_type(
                    header=header(stamp=stamp(sec=5, nanosec=40_000_000 * number), frame_id="camera"),
                    height=64,
                    width=96,
                    encoding="rgb8",
                    is_bigendian=0,
                    step=288,
                    data=render(scene, number).reshape(-1),
                )
                writer.write(connection, 5_000_000_000 + number, store.serialize_cdr(message, name))
    assert main(["dataset", str(bag), "-o", str(tmp_path / "tokens"), *BUDGET, "--workers", "1"]) == 0
    dataset = open_dataset(tmp_path / "tokens")
    assert [clip.name for clip in dataset.clips] == ["bag#/left/image", "bag#/right/image"]
    expected = tokenizer.encode(
        render(scenes["/right/image"], 1), budget=TokenBudget(tau=0.8), index=1, timestamp_us=40_000
    )
    assert dataset[4].token_frame(dataset.model_tag) == expected
    one = f"{bag}#/left/image"
    assert main(["dataset", one, "-o", str(tmp_path / "one"), "--fps", "25", "--workers", "1"]) == 0
    assert [(clip.name, clip.fps) for clip in open_dataset(tmp_path / "one").clips] == [("bag#/left/image", 25.0)]
