"""Export of a trained checkpoint to a bundle: parity, dynamic shapes, and what it refuses."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the export needs PyTorch")
onnx = pytest.importorskip("onnx", reason="the export needs onnx")

from safetensors import safe_open
from safetensors.torch import save_file

from tatok_edge.export.bundle import onnx as export
from tatok_edge.export.bundle.onnx import ExportError, export_bundle
from tatok_edge.model.bundle import ENTROPY, GRAPHS, SCORE_ONE, SCORES, load_scores, open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.training.bundle import load_from_bundle
from tatok_edge.training.checkpoint import CheckpointError, load_model
from tatok_edge.training.filtering import residual_scores, select, visual_weights
from tatok_edge.training.model import (
    TaTok,
    decoder_state,
    grid_to_pixels,
    image_to_cells,
    image_to_windows,
    window_centre_index,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(finished_run: Path) -> Path:
    return finished_run / "checkpoint.safetensors"


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny model; do not write to it."""
    out = tmp_path_factory.mktemp("export") / "new" / "tiny"
    export_bundle(checkpoint, out, notes="Made of rendered pictures.\n")
    return out


@pytest.fixture(scope="module")
def tiny(bundle: Path) -> Iterator[Tokenizer]:
    with Tokenizer.load(bundle, threads=1) as tokenizer:
        yield tokenizer


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> TaTok:
    return load_model(checkpoint)[0]


def rewrite(checkpoint: Path, path: Path, *, without: str = "", **changes: Any) -> Path:
    """A copy of a checkpoint with other tensors."""
    with safe_open(str(checkpoint), "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
        metadata = file.metadata()
    kept = {key: value for key, value in tensors.items() if not without or not key.startswith(without)}
    save_file(kept | {key.replace("__", "."): value for key, value in changes.items()}, str(path), metadata)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the bundle ----------------------------------------------------------------------------------


def test_the_manifest_tells_all(bundle: Path) -> None:
    opened = open_bundle(bundle)
    manifest: Any = opened.manifest
    assert (opened.name, opened.levels, opened.context_width) == ("tatok-tiny", (8, 8, 8, 5, 5, 5), 16)
    assert opened.depth == manifest["depth"] == manifest["config"]["depth"] == 2
    assert manifest["tag"] == opened.tag.hex()
    assert manifest["parity"]["code_agreement"] >= 0.999
    assert 0 <= manifest["parity"]["pixel_difference"] <= 2e-3
    assert manifest["training"]["steps"] == 6 and manifest["training"]["options"]["use"] == "ship"
    assert manifest["quality"]["psnr_residual_2"] > manifest["quality"]["psnr_residual_1"] > 10
    assert manifest["config"]["name"] == "tatok-tiny" and manifest["precision"] == "fp32"
    for entry in (*GRAPHS, ENTROPY, SCORES):
        opened.read(entry)
    assert {path.name for path in bundle.iterdir()} == {
        "manifest.json",
        "MODEL_CARD.md",
        "entropy.npz",
        "scores.npz",
        "refiner.onnx",
        *(f"{name}.onnx" for name in GRAPHS),
    }
    assert [path.name for path in bundle.parent.iterdir()] == ["tiny"]  # nothing temporary is left


def test_the_model_card(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text()
    manifest: Any = open_bundle(bundle).manifest
    for text in (
        "# tatok-tiny",
        manifest["tag"],
        "up to 2 patch tokens per 8x8 pixels",
        "| tokens per patch | score `residual` | score `visual` | random |",
        f"| 0.35 | {manifest['quality']['psnr_residual_0.35']:.2f} | {manifest['quality']['psnr_visual_0.35']:.2f} |",
        f"| 2 | {manifest['quality']['psnr_residual_2']:.2f} |  |  |",
        f"| 0 | {manifest['quality']['psnr_globals_only']:.2f} |",
        f"{manifest['quality']['bits_of_token_2']:.1f} bits",
        "use = ship",
        "6 steps of 2 random 64x64 crops",
        "Made of rendered pictures.",
    ):
        assert text in card, text


def test_the_same_checkpoint_gives_the_same_bundle(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    export_bundle(checkpoint, tmp_path / "again", notes="Made of rendered pictures.\n")
    assert contents(tmp_path / "again") == contents(bundle)


@torch.no_grad()
def test_the_scores_hold_directions_and_the_local_reconstruction(bundle: Path, model: TaTok) -> None:
    basis, local = load_scores(open_bundle(bundle).read(SCORES), 6, 2, "bundle")
    directions = basis.reshape(12, 192) / SCORE_ONE
    np.testing.assert_allclose(directions @ directions.T, np.eye(12), atol=2e-3)
    np.testing.assert_allclose(directions, model.score_basis().reshape(12, 192).numpy(), atol=1 / SCORE_ONE)
    for layer, array in zip(model.local, local, strict=True):
        assert np.array_equal(array[:, :-1], layer.weight.numpy()) and np.array_equal(array[:, -1], layer.bias.numpy())


def test_the_weights_come_back_from_the_bundle(bundle: Path, model: TaTok) -> None:
    state, loaded = model.state_dict(), load_from_bundle(open_bundle(bundle)).state_dict()
    assert [name for name, value in state.items() if not torch.equal(value, loaded[name])] == []


def test_the_graphs_are_plain_onnx(bundle: Path) -> None:
    opened = open_bundle(bundle)
    for name in GRAPHS:
        graph = onnx.load_model_from_string(opened.read(name))
        onnx.checker.check_model(graph, full_check=True)
        assert {item.domain for item in graph.opset_import} <= {"", "ai.onnx"}
        assert {node.domain for node in graph.graph.node} == {""}
        for value in (*graph.graph.input, *graph.graph.output):
            named = [d.dim_param for d in value.type.tensor_type.shape.dim]
            assert named[0], f"{name}: the first dimension of {value.name} is fixed"


# --- what the graphs compute ---------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 64, 96), (2, 160, 32)])
def test_every_size_of_every_graph(bundle: Path, model: TaTok, batch: int, height: int, width: int) -> None:
    """B, H, W and T are dynamic: other sizes than those of the export give what PyTorch gives."""
    opened = open_bundle(bundle)
    session = OnnxSession({name: opened.read(name) for name in GRAPHS}, threads=1)
    frames = [render(Scene(width=160, height=160, seed=seed), 5)[:height, :width] for seed in range(batch)]
    images = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    encoded = model.encode(images)
    prior = encoded.prior
    codes = session.run("global_encoder", {"cells": image_to_cells(images).contiguous().numpy()})["codes"]
    assert codes.dtype == np.int32 and codes.shape == (batch, 6, height // 32, width // 32)
    assert (codes == encoded.global_codes.numpy()).mean() >= 0.99
    maps = dict(session.run("cell_context", {"codes": encoded.global_codes.int().numpy()}))
    outputs = session.run("context", {"coarse": maps["coarse"]})
    for name in ("context", "mean", "log2_probs", "entropy", "expected"):
        expected = getattr(prior, name).numpy()
        got = maps[name] if name == "mean" else outputs[name]
        assert got.shape == expected.shape and got.dtype == np.float32
        assert np.abs(got - expected).max() < 1e-3, name
    # No patch reads another: any of them in a row give what they give in their places.
    coarse = maps["coarse"]
    flat = coarse.reshape(*coarse.shape[:2], 1, -1)[..., ::3]
    some = session.run("context", {"coarse": np.ascontiguousarray(flat)})
    for name, value in outputs.items():
        assert np.abs(some[name] - value.reshape(*value.shape[:2], 1, -1)[..., ::3]).max() < 1e-4, name
    rows = [image_to_windows(images), prior.context.permute(0, 2, 3, 1), prior.mean.permute(0, 2, 3, 1)]
    features = torch.cat(rows, -1).flatten(0, 2).numpy()
    expected = encoded.codes.permute(0, 2, 3, 1).flatten(0, 2).numpy()
    for count in (1, 5, len(features)):
        codes = session.run("patch_encoder", {"features": np.ascontiguousarray(features[:count])})["codes"]
        assert codes.dtype == np.int32 and codes.shape == (count, 12)
        assert (codes == expected[:count]).mean() >= 0.99
    keep = (encoded.information > encoded.information.median()).float()
    state = decoder_state(encoded.values, keep, prior.expected, prior.entropy)
    feeds = {"state": state, "context": prior.context, "mean": prior.mean}
    pixels = session.run("decoder", {name: value.contiguous().numpy() for name, value in feeds.items()})["pixels"]
    assert np.abs(pixels - model.decoder(**feeds).numpy()).max() < 1e-3


@torch.no_grad()
def test_the_tokenizer_does_what_the_model_does(tiny: Tokenizer, model: TaTok) -> None:
    """Gather, filter, scatter and assembly of the runtime against the same in PyTorch, on a whole image."""
    image = render(Scene(width=160, height=96, seed=4), 9)
    frame = tiny.encode(image)
    assert (frame.depth_map() == 2).all()
    tensor = torch.from_numpy(image)[None].permute(0, 3, 1, 2).float() / 127.5 - 1
    encoded = model.encode(tensor)
    place = np.cumprod([1, *tiny.levels[:-1]])
    for ids, codes in ((frame.ids, encoded.codes), (frame.global_ids, encoded.global_codes)):
        expected = (codes[0].flatten(1).T.numpy().astype(int).reshape(-1, 6) * place).sum(1)  # depth innermost
        assert (ids == expected).mean() >= 0.99
    residual = residual_scores(model, tensor, encoded)
    of_score = {"residual": residual, "visual": residual * visual_weights(tensor, 8)}
    for score, expected in of_score.items():
        scores = tiny.encode_detailed(image, budget=TokenBudget(score=score)).scores  # type: ignore[arg-type]
        # Of the tokenizer: in grey levels squared, per pixel value.
        np.testing.assert_allclose(scores, expected[0].permute(1, 2, 0).numpy() * 127.5**2 / 192, rtol=0.02, atol=0.05)
        for keep in (2.0, 0.8, 0.3):
            reduced = tiny.encode(image, budget=TokenBudget(keep=keep, score=score))  # type: ignore[arg-type]
            kept = torch.from_numpy(reduced.depth_map())[None, None] > torch.arange(2)[:, None, None]
            pixels = ((model.decode(encoded, kept)[0].permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).numpy()
            assert np.abs(tiny.decode(reduced) - pixels).mean() < 0.1
            agreement = (select(expected, torch.tensor([keep])) == kept).float().mean()
            assert agreement > 0.99


def test_the_exported_bundle_is_a_tokenizer(tiny: Tokenizer, bundle: Path) -> None:
    assert tiny.name == "tatok-tiny" and tiny.bundle.path == bundle
    for height, width in ((32, 32), (50, 70), (256, 256)):
        image = render(Scene(width=256, height=256, seed=1), 3)[:height, :width]
        for budget in (TokenBudget(), TokenBudget(tau=0.5), TokenBudget(max_bits=2000 + height * 20)):
            frame = tiny.encode(image, budget=budget)
            assert tiny.unpack(tiny.pack(frame)) == frame
            assert tiny.decode(frame).shape == image.shape


def test_windows_hold_their_patch_in_the_middle() -> None:
    image = torch.rand(2, 3, 64, 32)
    centres = image_to_windows(image)[..., window_centre_index()]
    assert torch.equal(grid_to_pixels(centres.permute(0, 3, 1, 2), 8), image)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("without", ["entropy", "samples"])
def test_a_checkpoint_that_is_not_finished(checkpoint: Path, tmp_path: Path, without: str) -> None:
    path = rewrite(checkpoint, tmp_path / "half.safetensors", without=without)
    with pytest.raises(CheckpointError, match="training has not ended; finish it with --resume"):
        export_bundle(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_is_no_bundle_is_not_replaced(checkpoint: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    if name == "folder":
        out.mkdir()
        (out / "thesis.txt").write_text("ten years of work")
    else:
        out.write_text("ten years of work")
    with pytest.raises(ExportError, match="exists and is not a bundle: give another --out"):
        export_bundle(checkpoint, out)
    assert (out / "thesis.txt" if name == "folder" else out).read_text() == "ten years of work"


def test_an_existing_bundle_is_replaced(checkpoint: Path, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    (out / "stale.txt").write_text("of an earlier export")
    export_bundle(checkpoint, out)
    assert not (out / "stale.txt").exists()
    assert open_bundle(out).tag == open_bundle(bundle).tag
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("parity", "says"),
    [
        ({"code_agreement": 0.9989, "pixel_difference": 0.0}, r"codes agree with PyTorch in 99\.89.*at least 99\.9"),
        ({"code_agreement": 1.0, "pixel_difference": 2.1e-3}, "pixels differ from PyTorch by 2.10e-03, at most 2e-3"),
        ({"code_agreement": 1.0, "pixel_difference": float("nan")}, "pixels differ"),
        ({"code_agreement": float("nan"), "pixel_difference": 0.0}, "codes agree"),
    ],
)
def test_a_failing_check_keeps_what_is_there(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parity: dict[str, float], says: str
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    monkeypatch.setattr(export, "check_parity", lambda *_: parity)
    monkeypatch.setattr(export, "export_graph", lambda graph: b"")
    for target in (out, tmp_path / "new"):
        with pytest.raises(ExportError, match=says):
            export_bundle(checkpoint, target)
    assert contents(out) == contents(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failing_write_keeps_what_is_there(
    checkpoint: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle, out)
    monkeypatch.setattr(export, "check_parity", lambda *_: {"code_agreement": 1.0, "pixel_difference": 0.0})
    monkeypatch.setattr(export, "export_graph", lambda graph: b"")

    def fail(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(export, "model_card", fail)
    with pytest.raises(OSError, match="disk full"):
        export_bundle(checkpoint, out)
    assert contents(out) == contents(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_parity_sees_a_graph_of_other_weights(model: TaTok, bundle: Path, checkpoint: Path) -> None:
    """The check itself can fail: graphs of the trained model against a model with one weight moved."""
    opened = open_bundle(bundle)
    graphs = {name: opened.read(name) for name in GRAPHS}
    images = torch.from_numpy(render(Scene(width=160, height=128, seed=2), 1))[None].permute(0, 3, 1, 2) / 127.5 - 1
    good = export.check_parity(model, graphs, images)
    assert good["code_agreement"] >= 0.999 and good["pixel_difference"] < 1e-4
    with torch.no_grad():
        other = load_model(checkpoint)[0]
        other.decoder.skip.bias += 0.01  # type: ignore[operator]
        assert export.check_parity(other, graphs, images)["pixel_difference"] > 2e-3
        other = load_model(checkpoint)[0]
        other.patch_encoder.skip.bias += 0.05
        assert export.check_parity(other, graphs, images)["code_agreement"] < 0.999


@pytest.mark.parametrize("layer", ["ema__decoder__skip__bias", "ema__context__logits__bias"])
def test_a_model_that_gives_no_numbers(checkpoint: Path, tmp_path: Path, layer: str) -> None:
    size = 192 if "decoder" in layer else 78
    path = rewrite(checkpoint, tmp_path / "nan.safetensors", **{layer: torch.full((size,), float("nan"))})
    with pytest.raises(ExportError, match="pixels differ"):
        export_bundle(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the command ---------------------------------------------------------------------------------


def test_the_command(capsys: Any, checkpoint: Path, tmp_path: Path, bundle: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("Seen by a camera.")
    assert export.main([str(checkpoint), "--out", str(tmp_path / "out"), "--notes", str(notes)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tag"] == open_bundle(bundle).tag.hex() and report["code_agreement"] >= 0.999
    assert "Seen by a camera." in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_errors_of_the_command(capsys: Any, checkpoint: Path, tmp_path: Path) -> None:
    half = rewrite(checkpoint, tmp_path / "half.safetensors", without="entropy")
    for arguments, says in [
        ([tmp_path / "none.safetensors", "--out", tmp_path / "out"], "none.safetensors: not a readable"),
        ([half, "--out", tmp_path / "out"], "training has not ended"),
        ([checkpoint, "--out", tmp_path], "is not a bundle"),
        ([checkpoint, "--out", tmp_path / "out", "--notes", tmp_path / "none.md"], "none.md"),
    ]:
        assert export.main([str(argument) for argument in arguments]) == 1
        text = capsys.readouterr().err
        assert text.startswith("error: ") and says in text and text.count("\n") == 1
    assert not (tmp_path / "out").exists()
