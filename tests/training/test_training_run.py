"""Runs and their checkpoints."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")


from helpers.training_cases import CPU, TINY, options, png, tensors

from tatok_edge.training import checkpoint as checkpoint_module
from tatok_edge.training import evaluation
from tatok_edge.training.checkpoint import CheckpointError, load_model
from tatok_edge.training.config import CONFIGS, ModelConfig
from tatok_edge.training.data import (
    CropSource,
    DataError,
    write_packs,
)
from tatok_edge.training.progress import LOG_COLUMNS
from tatok_edge.training.train import new_state, run

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.usefixtures("unplotted")
def test_a_baseline_resumes_but_is_neither_exported_nor_fine_tuned(tmp_path: Path, pictures: Path) -> None:
    export = pytest.importorskip("tatok_edge.export.bundle.onnx", reason="the export needs onnx")
    out = tmp_path / "run"
    chosen = options(variant="patch8", steps=2)
    run(chosen, pictures, out, device=CPU, resume=False)
    chosen.steps = 4
    assert run(chosen, pictures, out, device=CPU, resume=True)["step"] == 4
    checkpoint = out / "checkpoint.safetensors"
    model, metadata = load_model(checkpoint, baselines=True)
    assert model.config.variant == "patch8" and metadata["step"] == 4
    with pytest.raises(CheckpointError, match=r"a baseline \(--variant patch8\).*neither exported nor fine-tuned"):
        export.export_bundle(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(CheckpointError, match="neither exported nor fine-tuned"):
        run(options(steps=1), pictures, tmp_path / "tuned", device=CPU, resume=False, init=checkpoint)
    with pytest.raises(CheckpointError, match="another model config; use the same --config and --variant"):
        run(options(steps=6), pictures, out, device=CPU, resume=True)


def test_a_finished_run(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["step"] == 6 and summary["pictures"] == 11 and summary["config"] == "tatok-tiny"
    assert sum(summary["sources"].values()) == 11
    shares = [share for share in evaluation.SHARES if share <= TINY.depth]
    assert all(np.isfinite(summary[f"psnr_residual_{share:g}"]) for share in shares) and 2.0 in shares
    assert summary["psnr_residual_2"] > summary["psnr_residual_1"] > summary["psnr_residual_0.1"]
    assert {"psnr_visual_1", "psnr_random_1", "bits_of_token_1", "bits_of_token_2"} <= set(summary)
    with (finished_run / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "6" and "psnr_random_0.35" in rows[-1] and "psnr_visual_2" not in rows[-1]
    assert (finished_run / "training.csv").read_text().startswith(",".join(LOG_COLUMNS))
    curves = cv2.imread(str(finished_run / "curves.png"))
    assert curves is not None and curves.std() > 1
    assert not list(finished_run.glob("*.tmp*"))
    model, metadata = load_model(finished_run / "checkpoint.safetensors")
    assert model.config == TINY and not model.training
    assert metadata["step"] == 6 and metadata["options"]["seed"] == 0  # type: ignore[index]


class Stop(Exception):
    """Ends a run as a power cut would."""


@pytest.mark.usefixtures("unplotted")
def test_a_run_that_was_cut_off_goes_on_exactly(finished_run: Path, pictures: Path, tmp_path: Path) -> None:
    def stop(step: int) -> None:
        if step == 4:
            raise Stop

    out = tmp_path / "run"
    with pytest.raises(Stop):
        run(options(steps=6), pictures, out, device=CPU, resume=False, checkpoint_minutes=0, on_step=stop)
    assert checkpoint_module.read_metadata(out / "checkpoint.safetensors")["step"] == 3
    steps: list[int] = []
    run(options(steps=6), pictures, out, device=CPU, resume=True, on_step=steps.append)
    assert steps == [4, 5, 6]
    expected, got = (tensors(folder / "checkpoint.safetensors") for folder in (finished_run, out))
    assert expected.keys() == got.keys()
    different = [name for name in expected if not torch.equal(expected[name], got[name])]
    assert different == []
    assert {name.split(".")[0] for name in got} == {"model", "ema", "optimizer", "entropy", "samples"}


@pytest.mark.usefixtures("unplotted")
def test_packs_train_the_same_model(finished_run: Path, pictures: Path, tmp_path: Path) -> None:
    write_packs(pictures, tmp_path / "packs", "ship")
    run(options(steps=6), tmp_path / "packs", tmp_path / "run", device=CPU, resume=False)
    expected, got = (tensors(folder / "checkpoint.safetensors") for folder in (finished_run, tmp_path / "run"))
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_a_checkpoint_is_not_overwritten(finished_run: Path, pictures: Path) -> None:
    before = (finished_run / "checkpoint.safetensors").read_bytes()
    with pytest.raises(CheckpointError, match="exists: give --resume to go on, or another --out"):
        run(options(steps=6), pictures, finished_run, device=CPU, resume=False)
    assert (finished_run / "checkpoint.safetensors").read_bytes() == before


def test_a_failing_write_leaves_the_old_checkpoint(
    source: CropSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.safetensors"
    state = new_state(options(), source, CPU)
    checkpoint_module.save_checkpoint(path, state, options())
    before = path.read_bytes()

    def fail(tensors: object, name: str, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        checkpoint_module.save_checkpoint(path, state, options())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(b"nonsense"), "not a readable safetensors checkpoint"),
        (lambda path: path.write_bytes(b""), "not a readable safetensors checkpoint"),
        (lambda path: checkpoint_module.save_file({"a": torch.zeros(1)}, str(path)), "not a TaTok checkpoint"),
        (
            lambda path: checkpoint_module.save_file(
                {"a": torch.zeros(1)}, str(path), metadata={"tatok": '{"format": 99}'}
            ),
            "checkpoint format 99, this version reads 1",
        ),
    ],
    ids=["nonsense", "empty", "another file", "newer"],
)
def test_checkpoints_that_are_none(tmp_path: Path, write: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "checkpoint.safetensors"
    write(path)
    with pytest.raises(CheckpointError, match=says):
        load_model(path)


def test_a_checkpoint_of_another_config(
    finished_run: Path, source: CropSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "other", ModelConfig(**{**TINY.to_dict(), "name": "other", "levels": (8, 5)}))  # type: ignore[arg-type]
    state = new_state(options(config="other"), source, CPU)
    with pytest.raises(CheckpointError, match="another model config; use the same --config"):
        checkpoint_module.load_state(finished_run / "checkpoint.safetensors", state)


def test_pictures_too_small_for_the_last_step_are_refused_at_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number, 128, 128))
    with pytest.raises(DataError, match="at least 256x256 pixels"):
        run(options(steps=1), folder, tmp_path / "out", device=CPU, resume=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.usefixtures("unplotted")
def test_a_run_on_a_gpu(pictures: Path, tmp_path: Path) -> None:
    run(options(steps=3), pictures, tmp_path / "run", device=torch.device("cuda"), resume=False)
    assert load_model(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 3
