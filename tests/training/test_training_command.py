"""The command of the training."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")


from tatok_edge.training import train
from tatok_edge.training.data import (
    read_pictures,
)
from tatok_edge.training.options import Options

pytestmark = pytest.mark.usefixtures("one_thread")


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command, which must fail; its one line."""
    assert train.main([str(argument) for argument in arguments]) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1
    return text


def test_errors_of_the_command(capsys: Any, tmp_path: Path, finished_run: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    assert "nowhere: no such folder" in command(capsys, "--data", tmp_path / "nowhere", "--out", out)
    assert "--crop 100: must be a multiple of 32" in command(capsys, "--data", pictures, "--out", out, "--crop", 100)
    assert "no images" in command(capsys, "--data", tmp_path, "--out", out, "--steps", 1)
    assert "no images" in command(capsys, "--data", tmp_path, "--out", tmp_path / "packs", "--pack")
    tiny = ("--data", pictures, "--out", finished_run, "--config", "tatok-tiny", "--steps", 6)
    assert "give --resume" in command(capsys, *tiny, "--device", "cpu")
    if not torch.cuda.is_available():
        assert "sees no CUDA GPU" in command(capsys, *tiny, "--device", "cuda")
    foreign = ("--data", pictures, "--out", finished_run, "--config", "tatok-s8", "--steps", 6, "--resume")
    assert "another model config" in command(capsys, *foreign, "--crop", 32, "--device", "cpu")


def test_the_command_packs(capsys: Any, tmp_path: Path, pictures: Path) -> None:
    assert train.main(["--data", str(pictures), "--out", str(tmp_path / "packs"), "--pack"]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "packs" / "pack-000.safetensors")]
    assert len(read_pictures(tmp_path / "packs", "ship")) == 11
    assert "holds packs already" in command(capsys, "--data", pictures, "--out", tmp_path / "packs", "--pack")


@pytest.mark.usefixtures("unplotted")
def test_the_command_trains(capsys: Any, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fake(options: Options, data: Path, out: Path, **rest: Any) -> dict[str, object]:
        seen.update(options=options, data=data, out=out, **rest)
        return {"step": 1}

    monkeypatch.setattr(train, "run", fake)
    assert (
        train.main(["--data", str(pictures), "--out", str(tmp_path), "--use", "all", "--seed", "3", "--device", "cpu"])
        == 0
    )
    assert json.loads(capsys.readouterr().out) == {"step": 1}
    assert (seen["options"].minutes, seen["options"].steps) == (30.0, None)
    assert (seen["options"].use, seen["options"].seed, seen["resume"]) == ("all", 3, False)
    assert train.main(["--data", str(pictures), "--out", str(tmp_path), "--steps", "5", "--resume"]) == 0
    assert (seen["options"].minutes, seen["options"].steps, seen["resume"]) == (None, 5, True)
    assert seen["options"].use == "ship"
