"""Writers that are killed, interrupted or cannot write: what was good is still there, and a rerun gives the same."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.bags import CAMERA, IMAGE, cdr, raw_message, write_bag

from tatok_edge import Reader, Tokenizer
from tatok_edge.datasets.reading import open_dataset
from tatok_edge.sources.synthetic import Scene, render

KILLS = int(os.environ.get("TATOK_KILLS", "2"))
"""Kills of each writer."""
LONG = "synthetic:frames=100000,width=64,height=64"
DEADLINE = 240.0
"""Seconds after which a process that does not end counts as hanging."""


def begin(*arguments: object) -> subprocess.Popen[str]:
    """A ``tatok`` command as a process."""
    command = [sys.executable, "-m", "tatok_edge", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(*arguments: object) -> None:
    """A ``tatok`` command that succeeds."""
    process = begin(*arguments)
    _, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, error


def wait_for(process: subprocess.Popen[str], folder: Path, pattern: str, size: int = 1) -> Path:
    """A file of the process that has grown to ``size`` bytes."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        for path in folder.glob(pattern):
            if path.is_dir() or path.stat().st_size >= size:
                return path
        time.sleep(0.02)
    raise AssertionError(f"no {pattern}: {process.communicate()[1] if process.poll() is not None else 'too slow'}")


def content(path: Path) -> dict[str, str]:
    """The hashes of a file, or of all files of a folder."""
    files = [entry for entry in sorted(path.rglob("*")) if entry.is_file()] if path.is_dir() else [path]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token file and a bag that take a while to decode and encode."""
    folder = tmp_path_factory.mktemp("inputs")
    finish("encode", "synthetic:frames=150,width=64,height=64", "-o", folder / "long.ttk", "--keep", "0.2")
    image = render(Scene(width=64, height=64), 0)
    messages = [(CAMERA, IMAGE, cdr(raw_message(image))) for _ in range(600)]
    write_bag(folder / "long.mcap", messages)
    return folder


WRITERS = {
    "encode": (("encode", LONG), "good.ttk", "good.ttk.part*"),
    "stream": (("stream", LONG), "good.ttk", "good.ttk.part*"),
    "video": (("decode", "long.ttk"), "good.mp4", "good.mp4.part*"),
    "folder": (("decode", "long.ttk"), "good", "good.part*"),
    "bag": (("encode", "long.mcap", "--frames-only"), "good.mcap", "good.mcap.part*"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_the_earlier_output(name: str, tmp_path: Path, inputs: Path) -> None:
    words, output, part = WRITERS[name]
    arguments = [inputs / word if word.startswith("long.") else word for word in words]
    short = ["encode", "synthetic:frames=2,width=64,height=64", "-o", tmp_path / "short.ttk"]
    finish(*short)
    good = tmp_path / output
    if name in ("video", "folder"):
        finish("decode", tmp_path / "short.ttk", "-o", good)
    elif name == "bag":
        image = render(Scene(width=64, height=64), 1)
        write_bag(good, [(CAMERA, IMAGE, cdr(raw_message(image)))])
    else:
        finish(*short[:2], "-o", good)
    before = content(good)
    rng = random.Random(name)
    for _ in range(KILLS):
        process = begin(*arguments, "-o", good, "--force")
        wait_for(process, tmp_path, part, 0 if name == "bag" else 1)  # a bag is written in large chunks
        time.sleep(rng.random() * 0.3)
        process.kill()
        process.communicate(timeout=DEADLINE)
        if process.returncode == 0:  # it was faster
            before = content(good)
        assert content(good) == before


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("command", ["encode", "stream"])
def test_an_interrupted_run_leaves_a_part(command: str, signals: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = tmp_path / "good.ttk"
    finish("encode", "synthetic:frames=2,width=64,height=64", "-o", good)
    before = content(good)
    process = begin(command, LONG, "-o", good, "--force")
    wait_for(process, tmp_path, "good.ttk.part", 3000)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in error and "good.ttk.part, and" in error
    assert content(good) == before
    with Reader(f"{good}.part", tokenizer.entropy_model) as reader:
        assert reader.complete and len(reader) > 1


def test_an_interrupted_decode_leaves_a_part(tmp_path: Path, inputs: Path) -> None:
    process = begin("decode", inputs / "long.ttk", "-o", tmp_path / "frames")
    wait_for(process, tmp_path, "frames.part/000003.png")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and "frames.part" in error
    assert not (tmp_path / "frames").exists()
    assert len(list((tmp_path / "frames.part").glob("*.png"))) > 3


def test_a_killed_forced_data_set_can_be_resumed(tmp_path: Path, inputs: Path) -> None:
    clips: Sequence[object] = ("synthetic:frames=3,width=64,height=64", "synthetic:frames=40,width=64,height=64,seed=2")
    tail = ("--workers", "1", "--threads", "1")
    finish("dataset", *clips[:1], "-o", tmp_path / "tokens", *tail)
    before = content(tmp_path / "tokens")
    process = begin("dataset", *clips, "-o", tmp_path / "tokens", *tail, "--force")
    wait_for(process, tmp_path, "tokens.partial/parts/000000")
    process.kill()
    process.communicate(timeout=DEADLINE)
    assert content(tmp_path / "tokens") == before
    finish("dataset", *clips, "-o", tmp_path / "tokens", *tail, "--resume")
    finish("dataset", *clips, "-o", tmp_path / "straight", *tail)
    assert content(tmp_path / "tokens") == content(tmp_path / "straight")
    assert len(open_dataset(tmp_path / "tokens")) == 43


def test_output_and_input_are_never_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tatok_edge.cli.main import main

    image = render(Scene(width=64, height=64), 0)
    bag = write_bag(tmp_path / "x.mcap", [(CAMERA, IMAGE, cdr(raw_message(image)))])
    tokens = tmp_path / "x.ttk"
    assert main(["encode", "synthetic:frames=1,width=64,height=64", "-o", str(tokens)]) == 0
    link = tmp_path / "y.mcap"
    link.symlink_to(bag)
    before = content(tmp_path)
    for words in (
        ("encode", bag, "-o", bag),
        ("encode", f"{bag}#{CAMERA}", "-o", bag),
        ("encode", link, "-o", bag),
        ("encode", tokens, "-o", tokens),
        ("stream", tokens, "-o", tokens),
        ("decode", bag, "-o", bag),
    ):
        capsys.readouterr()
        assert main([str(word) for word in (*words, "--force")]) == 1
        assert "is the input, too; name another output" in capsys.readouterr().err
    assert content(tmp_path) == before
