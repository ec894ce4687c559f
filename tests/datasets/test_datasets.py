"""``tatok dataset`` and its loader: every format, resumed and killed runs, several workers, Ray, damaged files."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.paths import ROOT, shared
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tatok_edge import TokenBudget, TokenFrame, Tokenizer, open_source
from tatok_edge.cli.main import main
from tatok_edge.datasets import FrameTokens, RaggedTokens, TokenDataset, open_dataset
from tatok_edge.datasets.assembly import Assembly
from tatok_edge.datasets.build import Options, _metadata, _plan
from tatok_edge.datasets.clips import find_clips
from tatok_edge.datasets.formats import FORMATS, METADATA, module_of
from tatok_edge.datasets.parts import Part, PartWriter
from tatok_edge.errors import FormatError, InputError, TaTokError
from tatok_edge.geometry import cell_grid, patch_grid
from tatok_edge.model.bundle import open_bundle
from tatok_edge.sources.synthetic import Scene, render

BUDGET = ["--tau", "0.8"]
FRAMES = {"a.mp4": 9, "b.mp4": 6, "pictures": 4}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two small videos and a folder of pictures; do not write to it."""
    folder = tmp_path_factory.mktemp("clips")
    for seed, name in enumerate(("a.mp4", "b.mp4")):
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"mp4v"), 25.0, (96, 64))
        for number in range(FRAMES[name]):
            writer.write(np.ascontiguousarray(render(Scene(width=96, height=64, seed=seed), number)[:, :, ::-1]))
        writer.release()
    (folder / "pictures").mkdir()
    for number in range(FRAMES["pictures"]):
        image = render(Scene(width=64 + 32 * (number % 2), height=48, seed=7), number)
        assert cv2.imwrite(str(folder / "pictures" / f"{number}.png"), image[:, :, ::-1])
    return folder


@pytest.fixture(scope="session")
def flat(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Path:
    """A flat data set of the clips; do not write to it."""
    path = tmp_path_factory.mktemp("flat") / "tokens"
    assert main(["dataset", str(clips), "-o", str(path), *BUDGET, "--fps", "25", "--workers", "1"]) == 0
    return path


@pytest.fixture(scope="session")
def expected(clips: Path, tokenizer: Tokenizer) -> list[TokenFrame]:
    """The tokens of all frames, encoded one by one."""
    frames = []
    for name in FRAMES:
        with open_source(clips / name, fps=25 if name == "pictures" else None) as source:
            frames += [
                tokenizer.encode(
                    frame.image, budget=TokenBudget(tau=0.8), index=frame.index, timestamp_us=frame.timestamp_us
                )
                for frame in source
            ]
    return frames


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tatok_edge", "dataset", *map(str, arguments)]


def run(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, check=False, **options)


def terminal(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A process with a group of its own, which Ctrl-C reaches as a whole."""
    return subprocess.Popen(arguments, cwd=cwd, stderr=subprocess.PIPE, text=True, start_new_session=True)


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What ``condition`` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def failed(result: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """Checks that a failure is told in one line."""
    assert result.returncode == code, result.stderr
    assert re.search(says, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr


# --- what a user does ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_tokens_of_every_frame(
    name: str, clips: Path, tmp_path: Path, expected: list[TokenFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    if name in ("parquet", "lerobot"):
        pytest.importorskip("pyarrow")
    out = tmp_path / "tokens"
    arguments = ["dataset", str(clips), "-o", str(out), "--format", name, *BUDGET, "--fps", "25", "--workers", "1"]
    assert main([*arguments, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    assert (report["clips"], report["frames"], report["complete"]) == (3, len(expected), True)
    assert report["tokens"] == sum(frame.n_tokens for frame in expected)
    assert not out.with_name("tokens.partial").exists()

    dataset = open_dataset(out)
    assert len(dataset) == len(expected)
    assert [(clip.name, clip.frames) for clip in dataset.clips] == list(FRAMES.items())
    assert dataset.levels == (8, 8, 8, 5, 5, 5)
    assert dataset.vocabulary == 64000
    assert dataset.metadata["fps"] == 25
    assert dataset.metadata["budget"] == {"tau": 0.8, "score": "residual"}
    frames = [frame.token_frame(dataset.model_tag) for frame in dataset]
    assert frames == expected
    assert dataset[-1].token_frame(dataset.model_tag) == expected[-1]
    assert [frame.clip for frame in dataset] == [0] * 9 + [1] * 6 + [2] * 4
    assert dataset[0].ids.dtype == np.uint16

    batch = dataset.batch([3, 17, 3])
    assert [frame.token_frame(dataset.model_tag) for frame in batch] == [expected[3], expected[17], expected[3]]
    assert batch.cu_seqlens.dtype == np.int32
    assert batch.cu_seqlens[-1] == batch.ids.size


def test_real_videos_decode_from_the_data_set(tmp_path: Path, tokenizer: Tokenizer) -> None:
    videos = [shared("videos/highway_static.mp4"), shared("videos/dog_static.mp4")]
    (tmp_path / "list.txt").write_text("# two clips\n" + "\n".join(map(str, videos)) + "\n\n")
    result = run("list.txt", "-o", "tokens", *BUDGET, "--frames", 4, "--workers", 2, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "tokens per frame" in result.stdout
    dataset = open_dataset(tmp_path / "tokens")
    assert [clip.name for clip in dataset.clips] == ["highway_static.mp4", "dog_static.mp4"]
    with open_source(videos[1]) as source:
        image = next(iter(source)).image
    decoded = tokenizer.decode(dataset[4].token_frame(dataset.model_tag))
    assert 10 * np.log10(255**2 / np.mean((decoded.astype(float) - image) ** 2)) > 20


def test_number_of_workers_does_not_show(clips: Path, flat: Path, tmp_path: Path) -> None:
    result = run(clips, "-o", "two", *BUDGET, "--fps", 25, "--workers", 2, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["workers"] == 2
    assert contents(tmp_path / "two") == contents(flat)


def test_loader_needs_numpy_alone(flat: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tatok_edge.datasets import open_dataset; "
        f"d = open_dataset({str(flat)!r}); print(len(d), d[2].ids.size > 0, d.clip(1).cu_seqlens[0]); "
        "print(sorted({'cv2', 'onnxruntime', 'torch', 'pyarrow', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["19 True 0", "[]"]


def test_example_trains_a_prior(clips: Path, flat: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the example needs PyTorch")
    script = ROOT / "examples" / "train_prior.py"
    done = subprocess.run(
        [sys.executable, str(script), str(flat), "--steps", "30"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, last = map(float, re.findall(r"steps (\d+\.\d+), of the last (\d+\.\d+)", done.stdout)[0])
    assert last < first - 1.5


def test_memory_does_not_grow_with_the_length_of_a_clip(tmp_path: Path) -> None:
    def peak(frames: int) -> float:
        code = (
            "import resource; from tatok_edge.cli.main import main; "
            f"assert main(['dataset', 'synthetic:frames={frames},width=96,height=64', '-o', 'd{frames}',"
            " '--workers', '1']) == 0; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    assert peak(200) <= 1.05 * peak(20)


# --- what exists, what is left, what is killed ---------------------------------------------------


def test_output_that_exists_is_refused_and_replaced(clips: Path, flat: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokens"
    shutil.copytree(flat, out)
    arguments = (clips, "-o", "tokens", "--fps", 25, "--workers", 1)
    failed(run(*arguments, *BUDGET, cwd=tmp_path), 1, "exists; name another folder, or replace it with --force")
    assert contents(out) == contents(flat)
    # A finished one is left as it is, and other options are no reason to go on with it.
    again = run(*arguments, *BUDGET, "--resume", "--json", cwd=tmp_path)
    assert json.loads(again.stdout)["resumed_clips"] == 3
    failed(run(*arguments, "--tau", "0.5", "--resume", cwd=tmp_path), 1, "made of other inputs or with other options")
    assert contents(out) == contents(flat)
    assert run(*arguments, "--tau", "0.5", "--force", cwd=tmp_path).returncode == 0
    assert open_dataset(out).metadata["budget"]["tau"] == 0.5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens"]


def test_foreign_folder_is_never_replaced(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("years of work")
    failed(run(clips, "-o", "work", "--force", cwd=tmp_path), 1, "is no data set of tokens; name another folder")
    assert (tmp_path / "work" / "thesis.txt").read_text() == "years of work"


def test_killed_run_resumes_to_the_same_bytes(clips: Path, flat: Path, tmp_path: Path) -> None:
    arguments = (clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", 1)
    parts = tmp_path / "tokens.partial" / "parts"
    with subprocess.Popen(command(*arguments), cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: (parts / "000000").exists() and list(parts.glob(".000001.*.tmp")))
        process.kill()
    assert not (tmp_path / "tokens").exists()
    assert list(parts.glob(".*.tmp")), "it was killed in the middle of a clip"
    failed(run(*arguments, cwd=tmp_path), 1, "has not finished.*--resume or begin anew with --force")
    failed(run(*arguments, "--frames", 2, "--resume", cwd=tmp_path), 1, "begun with other inputs or options")
    result = run(*arguments, "--resume", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["resumed_clips"] >= 1
    assert contents(tmp_path / "tokens") == contents(flat)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens"]


def test_killed_worker_is_replaced(clips: Path, flat: Path, tmp_path: Path) -> None:
    parts = tmp_path / "tokens.partial" / "parts"
    arguments = command(clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", 2)
    with subprocess.Popen(arguments, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        half = wait_for(lambda: list(parts.glob(".*.tmp")))
        os.kill(int(half[0].name.split(".")[2]), signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    assert (process.returncode, errors) == (0, "")
    assert contents(tmp_path / "tokens") == contents(flat)


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_run_says_how_to_go_on(workers: int, clips: Path, flat: Path, tmp_path: Path) -> None:
    arguments = (clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", workers)
    parts = tmp_path / "tokens.partial" / "parts"
    with terminal(command(*arguments), tmp_path) as process:
        wait_for(lambda: list(parts.glob(".*.tmp")))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert re.fullmatch(r"tatok dataset: interrupted; \d of 3 clips are done and kept: go on with --resume\n", errors)
    assert run(*arguments, "--resume", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "tokens") == contents(flat)


@pytest.mark.parametrize("limit", [600, 9000], ids=["while encoding", "while putting together"])
def test_full_disk_keeps_what_is_finished(limit: int, clips: Path, flat: Path, tmp_path: Path) -> None:
    arguments = (clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", 1, "--format", "webdataset")
    # A limit on the size of files stands for the full disk: the same call fails, with another reason.
    full = run(*arguments, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    failed(full, 1, "tokens: cannot be written .*whole clips are kept: make room and go on with --resume")
    assert not (tmp_path / "tokens").exists()
    kept = len(list((tmp_path / "tokens.partial" / "parts").glob("0*")))
    assert kept == (0 if limit == 600 else 3)
    result = run(*arguments, "--resume", "--json", cwd=tmp_path)
    assert json.loads(result.stdout)["resumed_clips"] == kept
    assert [f.ids.tolist() for f in open_dataset(tmp_path / "tokens")] == [f.ids.tolist() for f in open_dataset(flat)]


def test_two_runs_do_not_write_to_the_same_output(tmp_path: Path) -> None:
    arguments = ("synthetic:frames=100000,width=96,height=64", "-o", "tokens", "--workers", 1)
    with subprocess.Popen(command(*arguments), cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        wait_for((tmp_path / "tokens.partial" / "plan.json").exists)
        failed(run(*arguments, "--resume", cwd=tmp_path), 1, "another run is writing to it")
        process.terminate()
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "0 of 1 clips are done" in errors


# --- bad input -----------------------------------------------------------------------------------


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


# --- Ray -----------------------------------------------------------------------------------------


def test_ray_with_a_killed_worker_gives_the_same_bytes(clips: Path, flat: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    parts = tmp_path / "tokens.partial" / "parts"
    arguments = command(clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", 2, "--engine", "ray", "--json")
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        half = wait_for(lambda: list(parts.glob(".*.tmp")))
        os.kill(int(half[0].name.split(".")[2]), signal.SIGKILL)
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert json.loads(out)["complete"]
    assert contents(tmp_path / "tokens") == contents(flat)


def test_ray_ends_cleanly_on_ctrl_c(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    parts = tmp_path / "tokens.partial" / "parts"
    source = "synthetic:frames=100000,width=96,height=64"
    arguments = command(source, "-o", "tokens", "--workers", 1, "--engine", "ray")
    with terminal(arguments, tmp_path) as process:
        half = wait_for(lambda: list(parts.glob(".*.tmp")))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith("interrupted; 0 of 1 clips are done and kept: go on with --resume")
    worker = Path("/proc") / half[0].name.split(".")[2]
    if worker.parent.is_dir():
        wait_for(lambda: not worker.exists() or "Z" in worker.joinpath("stat").read_text().split()[2])


# --- formats, one by one -------------------------------------------------------------------------


@st.composite
def frames_of_clips(draw: st.DrawFn) -> list[list[TokenFrame]]:
    """Frames with any number of tokens, down to none, in clips of any length."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    clips = []
    for _ in range(draw(st.integers(1, 4))):
        clip = []
        for index in range(draw(st.integers(1, 6))):
            width, height = draw(st.sampled_from([(32, 32), (96, 64), (100, 45), (2112, 2080)]))
            rows, columns = patch_grid(width, height)
            count = draw(st.integers(0, min(rows * columns, 40)))
            cells = cell_grid(width, height)
            clip.append(
                TokenFrame(
                    ids=rng.integers(0, 64000, count, dtype=np.int32),
                    positions=np.sort(rng.choice(rows * columns, count, replace=False)).astype(np.int32),
                    global_ids=rng.integers(0, 64000, cells[0] * cells[1], dtype=np.int32),
                    width=width,
                    height=height,
                    model=open_bundle("tatok-s8").tag,
                    index=3 * index,
                    timestamp_us=40_000 * index,
                )
            )
        clips.append(clip)
    return clips


def write(folder: Path, clips: list[list[TokenFrame]], name: str, shard_bytes: int) -> Path:
    """A data set of given tokens, without a tokenizer."""
    for number, clip in enumerate(clips):
        writer = PartWriter(folder / "parts", number, 64000)
        for frame in clip:
            writer.write(frame)
        writer.commit(name=f"clip {number}", source="-", fps=25.0, problem=None)
    parts = [Part.find(folder / "parts", number) for number in range(len(clips))]
    whole = [part for part in parts if part is not None]
    assert len(whole) == len(clips)
    options = Options(format=name)
    bundle = open_bundle("tatok-s8")
    metadata = _metadata(whole, bundle, _plan([], bundle, options), options)
    out = folder / name
    out.mkdir()
    module_of(name).write(Assembly(whole, out, metadata, shard_bytes, lambda done: None))
    place = out / ("meta/tatok.json" if name == "lerobot" else METADATA)
    place.write_text(json.dumps(metadata))
    return out


@pytest.mark.parametrize("name", FORMATS)
@given(clips=frames_of_clips(), shard_bytes=st.sampled_from([1, 20_000, 1 << 30]))
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_what_is_written_is_read(
    name: str, clips: list[list[TokenFrame]], shard_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if name in ("parquet", "lerobot"):
        pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp("written")
    dataset = open_dataset(write(folder, clips, name, shard_bytes))
    frames = [frame for clip in clips for frame in clip]
    assert [frame.token_frame(dataset.model_tag) for frame in dataset] == frames
    for number in (0, len(frames) // 2, len(frames) - 1):
        assert dataset[number].token_frame(dataset.model_tag) == frames[number]
    large = any(frame.n_patches > 65536 for frame in frames)
    assert dataset[0].positions.dtype == (np.uint32 if large else np.uint16)
    last = dataset.clip(-1)
    assert [len(clip) for clip in dataset.iter_clips()] == [len(clip) for clip in clips]
    assert isinstance(last, RaggedTokens)
    assert last.cu_seqlens.tolist() == np.cumsum([0, *(frame.n_tokens for frame in clips[-1])]).tolist()
    shutil.rmtree(folder)


def test_flat_layout_is_what_the_docs_say(flat: Path, expected: list[TokenFrame]) -> None:
    ids = np.fromfile(flat / "ids.bin", "<u2")
    positions = np.fromfile(flat / "positions.bin", "<u2")
    cells = np.fromfile(flat / "globals.bin", "<u2")
    offsets = np.fromfile(flat / "offsets.bin", "<i8").reshape(-1, 2)
    frames = np.frombuffer((flat / "frames.bin").read_bytes(), "<i8,<i8,<u4,<u2,<u2")
    assert len(offsets) == len(frames) + 1 == len(expected) + 1
    for number in (0, 7, 18):
        (token, cell), (last_token, last_cell) = offsets[number], offsets[number + 1]
        assert ids[token:last_token].tolist() == expected[number].ids.tolist()
        assert positions[token:last_token].tolist() == expected[number].positions.tolist()
        assert cells[cell:last_cell].tolist() == expected[number].global_ids.tolist()
        row = expected[number]
        assert frames[number].item()[:2] == (row.timestamp_us, row.index)
        assert frames[number].item()[3:] == (row.width, row.height)


def test_random_access_is_quick(flat: Path) -> None:
    dataset = open_dataset(flat)

    def seconds() -> float:
        start = time.perf_counter()
        for number in range(0, 19, 3):
            dataset[number]
        return (time.perf_counter() - start) / 7

    # The best of many, so that a busy machine does not matter; what it takes when quiet is in the benchmarks.
    assert min(seconds() for _ in range(200)) < 50e-6


def test_loader_cannot_write_and_survives_pickling(flat: Path) -> None:
    dataset = open_dataset(flat)
    with pytest.raises(ValueError, match="read-only"):
        dataset[0].ids[0] = 1
    data = pickle.dumps(dataset)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert isinstance(copy, TokenDataset)
    assert copy[5].ids.tolist() == dataset[5].ids.tolist()
    for number in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[number]
    with pytest.raises(InputError, match="at least one frame"):
        dataset.batch([])


def test_webdataset_reads_the_shards(clips: Path, tmp_path: Path, expected: list[TokenFrame]) -> None:
    webdataset = pytest.importorskip("webdataset")
    arguments = ["dataset", str(clips), "-o", str(tmp_path / "tokens"), "--format", "webdataset", *BUDGET]
    assert main([*arguments, "--fps", "25", "--workers", "1"]) == 0
    shards = sorted(map(str, (tmp_path / "tokens").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == ["000000", "000001", "000002"]
    assert [sample["json"]["clip"]["name"] for sample in samples] == list(FRAMES)
    first = samples[0]
    start, stop = first["cu_seqlens.npy"][2:4]
    assert first["ids.npy"].dtype == np.uint16
    assert first["ids.npy"][start:stop].tolist() == expected[2].ids.tolist()
    with tarfile.open(shards[0]) as tar:
        assert {(member.mtime, member.uid) for member in tar} == {(0, 0)}


def test_parquet_columns(clips: Path, tmp_path: Path, expected: list[TokenFrame]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arguments = ["dataset", str(clips), "-o", str(tmp_path / "tokens"), "--format", "parquet", *BUDGET]
    assert main([*arguments, "--fps", "25", "--workers", "1"]) == 0
    (path,) = (tmp_path / "tokens").glob("*.parquet")
    table = parquet.read_table(path)
    assert str(table.schema.field("ids").type) == "list<element: uint16>"
    assert table.column("clip").to_pylist() == [name for name, count in FRAMES.items() for _ in range(count)]
    assert table.column("ids").to_pylist() == [frame.ids.tolist() for frame in expected]
    assert json.loads(table.schema.metadata[b"tatok"])["model"]["name"] == "tatok-s8"
    file = parquet.ParquetFile(path)
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [9, 6, 4]
    assert file.metadata.row_group(0).column(6).compression == "ZSTD"


def test_lerobot_layout(clips: Path, tmp_path: Path, expected: list[TokenFrame]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "tokens"
    arguments = ["dataset", str(clips), "-o", str(out), "--format", "lerobot", *BUDGET]
    assert main([*arguments, "--fps", "25", "--workers", "1"]) == 0
    info = json.loads((out / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (25, 3, 19, 1)
    assert info["splits"] == {"train": "0:3"}
    widest = max(frame.n_tokens for frame in expected)
    assert info["features"]["observation.tokens"] == {"dtype": "int32", "shape": [widest], "names": None}
    data = parquet.read_table(out / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(data.column_names) == set(info["features"])
    assert data.column("index").to_pylist() == list(range(19))
    assert data.column("episode_index").to_pylist() == [0] * 9 + [1] * 6 + [2] * 4
    for row, frame in zip(data.to_pylist(), expected, strict=True):
        assert row["observation.n_tokens"] == frame.n_tokens
        assert row["observation.tokens"] == frame.ids.tolist() + [-1] * (widest - frame.n_tokens)
        assert row["timestamp"] == pytest.approx(frame.timestamp_us / 1e6)
    episodes = parquet.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes] == [(0, 9), (9, 15), (15, 19)]
    statistics = json.loads((out / "meta/stats.json").read_text())
    counts = [frame.n_tokens for frame in expected]
    assert statistics["observation.n_tokens"]["mean"] == pytest.approx([np.mean(counts)])
    assert statistics["observation.n_tokens"]["std"] == pytest.approx([np.std(counts)])
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(out / "meta/tasks.parquet")
    assert tasks.iloc[0].name == "video"
    assert tasks.loc["video"].task_index == 0


# --- damaged data sets ---------------------------------------------------------------------------


@pytest.fixture(scope="session", params=["flat", "webdataset"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, expected: list[TokenFrame]) -> Path:
    """A small data set; leave it as it was."""
    return write(tmp_path_factory.mktemp("whole"), [expected[:3], expected[3:5]], request.param, 1)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_an_error_that_says_so(data: st.DataObject, whole: Path) -> None:
    victim = data.draw(st.sampled_from(sorted(path for path in whole.iterdir() if path.is_file())))
    original = victim.read_bytes()
    content = bytearray(original)
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= data.draw(st.integers(1, 255))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    victim.unlink()
    victim.write_bytes(content)
    problem = ""
    try:
        dataset = open_dataset(whole)
        for frame in dataset:
            assert isinstance(frame, FrameTokens)
            frame.token_frame(dataset.model_tag)
    except TaTokError as error:
        problem = str(error)
    finally:
        victim.unlink()  # what is still mapped keeps the old file
        victim.write_bytes(original)
    assert "\n" not in problem


def test_pickles_in_a_shard_are_not_loaded(clips: Path, tmp_path: Path) -> None:
    arguments = ["dataset", str(clips / "a.mp4"), "-o", str(tmp_path / "tokens"), "--format", "webdataset"]
    assert main([*arguments, "--frames", "2", "--workers", "1"]) == 0
    shard = tmp_path / "tokens" / "shard-000000.tar"
    with tarfile.open(shard) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    evil = io.BytesIO()
    np.save(evil, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    files["000000.ids.npy"] = evil.getvalue()
    with tarfile.open(shard, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(FormatError, match="ids is object"):
        open_dataset(tmp_path / "tokens")[0]


def test_newer_or_missing_data_sets(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no data set of tokens"):
        open_dataset(tmp_path)
    out = tmp_path / "tokens"
    shutil.copytree(flat, out)
    metadata = json.loads((out / METADATA).read_text())
    (out / METADATA).write_text(json.dumps(metadata | {"format_version": 99}))
    with pytest.raises(FormatError, match="upgrade tatok-edge"):
        open_dataset(out)
    (out / METADATA).write_text(json.dumps(metadata | {"format": "../../evil"}))
    with pytest.raises(FormatError, match="impossible value"):
        open_dataset(out)


def test_spawned_workers_of_a_data_loader(flat: Path, tmp_path: Path) -> None:
    dataset = open_dataset(flat)
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        assert pool.apply(len, (dataset,)) == len(dataset)
