"""Writers that are killed, interrupted or cannot write: what was good is still there, and a rerun gives the same."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.bags import CAMERA, IMAGE, cdr, raw_message, write_bag
from helpers.writers import (
    CLIPS,
    DEADLINE,
    ENDLESS,
    WORKERS,
    WRITERS,
    Run,
    begin,
    content,
    kill_data_set,
    kill_writer,
    make_inputs,
    wait_for,
)

from tatok_edge import Reader, Tokenizer
from tatok_edge.datasets.reading import open_dataset
from tatok_edge.sources.synthetic import Scene, render

KILLS = int(os.environ.get("TATOK_KILLS", "2"))
"""Kills of each writer."""
LONG = f"synthetic:frames={ENDLESS},width=64,height=64"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files and bags: some that take a while to decode and encode, and short ones."""
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder, 600)
    make_inputs(folder, 2)
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_the_earlier_output(name: str, tmp_path: Path, inputs: Path) -> None:
    good = tmp_path / WRITERS[name].output
    Run(*WRITERS[name].arguments(inputs, 2, good), log=tmp_path / "log").finish()
    rng = random.Random(name)
    for _ in range(KILLS):
        kill_writer(name, inputs, good, 600, rng)


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("command", ["encode", "stream"])
def test_an_interrupted_run_leaves_a_part(command: str, signals: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    good = tmp_path / "good.ttk"
    Run("encode", "synthetic:frames=2,width=64,height=64", "-o", good, log=tmp_path / "log").finish()
    before = content(good)
    process = begin(command, LONG, "-o", good, "--force")
    wait_for(lambda: process.poll() is None, tmp_path, "good.ttk.part", 3000)
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
    while signals == 2 and process.poll() is None:  # the impatient do not stop at two
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    _, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130
    assert "Traceback" not in error and "good.ttk.part, and" in error
    assert content(good) == before
    with Reader(f"{good}.part", tokenizer.entropy_model) as reader:
        assert reader.complete and len(reader) > 1


def test_an_interrupted_decode_leaves_a_part(tmp_path: Path, inputs: Path) -> None:
    process = begin("decode", inputs / "600.ttk", "-o", tmp_path / "frames")
    wait_for(lambda: process.poll() is None, tmp_path, "frames.part/000003.png")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130 and "frames.part" in error
    assert not (tmp_path / "frames").exists()
    assert len(list((tmp_path / "frames.part").glob("*.png"))) > 3


def test_a_killed_forced_data_set_can_be_resumed(tmp_path: Path) -> None:
    tokens, straight = tmp_path / "tokens", tmp_path / "straight"
    Run("dataset", CLIPS[0], "-o", tokens, *WORKERS, log=tmp_path / "log").finish()
    Run("dataset", *CLIPS, "-o", straight, *WORKERS, log=tmp_path / "log").finish()
    kill_data_set(tokens, "flat", content(straight), moment=0.1)
    assert len(open_dataset(tokens)) == 43


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
