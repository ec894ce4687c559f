"""Data sets as a user makes them, and runs that are interrupted, killed or out of disk."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.dataset_runs import BUDGET, FRAMES, command, contents, failed, run, terminal, wait_for, worker_of
from helpers.memory import peak_memory
from helpers.paths import ROOT, shared

from tatok_edge import TokenFrame, Tokenizer, open_source
from tatok_edge.cli.main import main
from tatok_edge.datasets import open_dataset
from tatok_edge.datasets.formats import FORMATS


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
        source = f"synthetic:frames={frames},width=96,height=64"
        return peak_memory("dataset", source, "-o", f"d{frames}", "--workers", "1", cwd=tmp_path)

    assert peak(200) <= 1.05 * peak(20)


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
    failed(run(*arguments, cwd=tmp_path), 1, "has not finished.*--resume or start again with --force")
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
        os.kill(worker_of(half[0]), signal.SIGKILL)
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
    assert re.fullmatch(
        r"tatok dataset: interrupted; \d of 3 clips are done and kept: continue with --resume\n", errors
    )
    assert run(*arguments, "--resume", cwd=tmp_path).returncode == 0
    assert contents(tmp_path / "tokens") == contents(flat)


@pytest.mark.parametrize("limit", [600, 9000], ids=["while encoding", "while putting together"])
def test_full_disk_keeps_what_is_finished(limit: int, clips: Path, flat: Path, tmp_path: Path) -> None:
    arguments = (clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", 1, "--format", "webdataset")
    # A limit on the size of files stands for the full disk: the same call fails, with another reason.
    full = run(*arguments, cwd=tmp_path, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    failed(full, 1, "tokens: cannot be written .*whole clips are kept: free space and use --resume")
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


def test_ray_with_a_killed_worker_gives_the_same_bytes(clips: Path, flat: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    parts = tmp_path / "tokens.partial" / "parts"
    arguments = command(clips, "-o", "tokens", *BUDGET, "--fps", 25, "--workers", 2, "--engine", "ray", "--json")
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        half = wait_for(lambda: list(parts.glob(".*.tmp")))
        os.kill(worker_of(half[0]), signal.SIGKILL)
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
        worker = Path("/proc") / str(worker_of(half[0]))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors.splitlines()[-1].endswith("interrupted; 0 of 1 clips are done and kept: continue with --resume")
    wait_for(lambda: not worker.exists() or "Z" in worker.joinpath("stat").read_text().split()[2])
