"""Training: data, the model's start, steps, checkpoints and the command, with the tiny model."""

import csv
import hashlib
import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from helpers import coder_reference as plain
from helpers.paths import shared

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from safetensors import safe_open

from tatok_edge.errors import FormatError
from tatok_edge.format.entropy import IntegerEntropyModel, exp_table, load_tables, save_tables
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu.coder import RangeEncoder
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.training import data as data_module
from tatok_edge.training import entropy, train
from tatok_edge.training.config import CONFIGS, ModelConfig, Variant, variant_of
from tatok_edge.training.data import (
    CropSource,
    DataError,
    Picture,
    centre_crops,
    decode_picture,
    held_out_names,
    read_pictures,
    write_packs,
)
from tatok_edge.training.held_out import HELD_OUT_FILES
from tatok_edge.training.model import TaTok, analytic_start
from tatok_edge.training.train import CheckpointError, Options, load_model, new_state, run, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
TINY = CONFIGS["tatok-tiny"]


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {"config": "tatok-tiny", "batch": 2, "crop": 64, "entropy_images": 8, "entropy_steps": 3}
    return Options(**(values | changes))


def png(seed: int, height: int = 64, width: int = 96) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ok, data = cv2.imencode(".png", image)
    assert ok
    return data.tobytes()


def tensors(path: Path) -> dict[str, Any]:
    with safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}


@pytest.fixture(scope="module")
def source(pictures: Path) -> CropSource:
    return CropSource(read_pictures(pictures, "all"), CPU, min_side=64)


@pytest.fixture
def unplotted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the curves, which take longer to draw than the tiny model to train."""
    monkeypatch.setattr(train, "plot_curves", lambda *_: None)


# --- pictures ------------------------------------------------------------------------------------


@pytest.fixture
def manifest_folder(tmp_path: Path) -> Path:
    """A data folder in the layout with manifests: 40 stills, of which every other may be shipped, and three clips."""
    root = tmp_path / "data"
    (root / "train" / "images").mkdir(parents=True)
    (root / "videos").mkdir()
    rows = []
    for number in range(40):
        name = f"images/{number:02d}.png"
        (root / "train" / name).write_bytes(png(number))
        rows.append((name, f"repo/{number % 3}", "ship" if number % 2 else "research"))
    write_manifest(root / "train", rows)
    for number, name in enumerate(("ship.avi", "research.avi", "evaluate.avi")):
        writer = cv2.VideoWriter(str(root / "videos" / name), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
        for frame in range(30):
            writer.write(render(Scene(width=64, height=48, seed=number), frame))
        writer.release()
    uses = ("ship", "research", "evaluate")
    write_manifest(root / "videos", [(f"{use}.avi", f"clips/{use}", use) for use in uses])
    return root


def write_manifest(folder: Path, rows: list[tuple[str, str, str]]) -> None:
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "source_repo", "use"), *rows])


def still(picture: Picture) -> bool:
    return "#" not in picture.name


@pytest.mark.parametrize("use", ["ship", "all"])
def test_use_honours_the_manifests(manifest_folder: Path, use: Any) -> None:
    taken = read_pictures(manifest_folder, use)
    held = read_pictures(manifest_folder, use, held_out=True)
    stills = {p.name for p in taken if still(p)} | {p.name for p in held}
    every = {f"{number:02d}.png" for number in range(40) if use == "all" or number % 2}
    assert stills == every
    clips = {p.name.partition("#")[0] for p in taken if not still(p)}
    assert clips == ({"ship.avi"} if use == "ship" else {"ship.avi", "research.avi"})
    assert sum(not still(p) for p in taken) == len(clips) * data_module.FRAMES_PER_CLIP
    assert all(p.source == f"repo/{int(p.name[:2]) % 3}" for p in taken if still(p))
    assert {p.source for p in taken if not still(p)} <= {"clips/ship", "clips/research"}


def test_a_manifest_row_without_terms_may_not_be_shipped(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    write_manifest(tmp_path, [(f"{number}.png", "r", "ship" if number == 3 else "") for number in range(11)])
    names = [p.name for out in (False, True) for p in read_pictures_or_none(tmp_path, out)]
    assert names == ["3.png"]  # and 11.png, which no row names, is not there


def read_pictures_or_none(folder: Path, held_out: bool) -> list[Picture]:
    try:
        return read_pictures(folder, "ship", held_out=held_out)
    except DataError:
        return []


@pytest.mark.parametrize("use", ["ship", "all"])
def test_held_out_pictures_are_never_trained_on(manifest_folder: Path, pictures: Path, use: Any) -> None:
    for folder in (manifest_folder, pictures):
        taken, held = read_pictures(folder, use), read_pictures(folder, use, held_out=True)
        assert not {p.data for p in taken} & {p.data for p in held}
    every = held_out_names([f"images/{number:02d}.png" for number in range(40)])
    assert len(every) == 4
    # What is held out does not depend on --use, so models trained either way are compared on unseen pictures.
    taken = read_pictures(manifest_folder, use)
    assert not {f"images/{p.name}" for p in taken} & every


def test_pictures_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "same.png").write_bytes(png(number))
    taken, held = read_pictures(tmp_path, "all"), read_pictures(tmp_path, "all", held_out=True)
    assert (len(taken), len(held)) == (18, 2)
    assert len({p.data for p in taken + held}) == 20


def test_held_out_names_are_fixed() -> None:
    names = [f"n{i}" for i in range(3000)]
    held = held_out_names(names)
    assert len(held) == 200 and held == held_out_names(names[::-1])
    assert len(held_out_names(names[:9])) == 0


def test_pictures_of_the_list_are_held_out() -> None:
    assert len(HELD_OUT_FILES) == 200
    some = sorted(HELD_OUT_FILES)[:3]
    others = [f"images/other_{number}.webp" for number in range(100)]
    assert held_out_names(others + some) == set(some)


def test_the_list_of_held_out_pictures_holds_for_the_shared_training_set() -> None:
    """The list has the pictures that were held out before there was a list: no model was trained on any of them."""
    with shared("train/manifest.csv").open(newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    assert set(names) >= HELD_OUT_FILES == held_out_names(names)
    first = [name for name in names if not name.startswith("images/robo_")]  # the pictures that came later
    by_hash = sorted(first, key=lambda name: hashlib.sha256(name.encode()).hexdigest())[:200]
    assert set(by_hash) == HELD_OUT_FILES


# --- packs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", ["ship", "all"])
def test_packs_are_the_folder(manifest_folder: Path, tmp_path: Path, use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "MAX_PACK_BYTES", 120_000)
    paths = write_packs(manifest_folder, tmp_path / "packs", use)
    assert len(paths) > 2
    assert all(path.stat().st_size <= 120_000 for path in paths)
    for held in (False, True):
        expected = read_pictures(manifest_folder, use, held_out=held)
        packed = read_pictures(tmp_path / "packs", use, held_out=held)
        assert [(p.name.removeprefix("held:"), p.source, p.data) for p in packed] == [
            (p.name, p.source, p.data) for p in expected
        ]
    with pytest.raises(DataError, match="holds packs already"):
        write_packs(manifest_folder, tmp_path / "packs", use)


def test_packs_of_research_pictures_are_not_shipped(manifest_folder: Path, tmp_path: Path) -> None:
    write_packs(manifest_folder, tmp_path / "all", "all")
    write_packs(manifest_folder, tmp_path / "ship", "ship")
    with pytest.raises(DataError, match="packed with --use all; train with --use all, or pack"):
        read_pictures(tmp_path / "all", "ship")
    with pytest.raises(DataError, match="packed with --use all"):
        read_pictures(tmp_path / "all", "ship", held_out=True)
    assert {p.name for p in read_pictures(tmp_path / "ship", "all")} == {
        p.name for p in read_pictures(manifest_folder, "ship")
    }


def test_a_damaged_pack(tmp_path: Path) -> None:
    (tmp_path / "pack-000.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0nonsense")
    with pytest.raises(DataError, match=r"pack-000\.safetensors: not a readable pack"):
        read_pictures(tmp_path, "ship")


# --- crops ---------------------------------------------------------------------------------------


def test_crops_are_parts_of_pictures() -> None:
    """With every picture of one colour of its own, a crop shows which it is from, and never two."""
    colours = [(10, 20, 30), (200, 100, 0), (0, 255, 128)]
    arrays = [np.full((70 + 9 * i, 90 - 7 * i, 3), colour, np.uint8) for i, colour in enumerate(colours)]
    made = [Picture(str(i), cv2.imencode(".png", a[:, :, ::-1])[1].tobytes()) for i, a in enumerate(arrays)]
    crops = CropSource(made, CPU, min_side=64).crops(64, 64, torch.Generator().manual_seed(0))
    assert crops.shape == (64, 3, 64, 64) and crops.dtype == torch.float32
    seen = ((crops + 1) * 127.5).round().to(torch.int32)
    assert (seen == seen[:, :, :1, :1]).all()
    assert {tuple(c) for c in seen[:, :, 0, 0].tolist()} == set(colours)


def test_crops_of_every_place_flipped_and_enlarged() -> None:
    y, x = np.mgrid[:80, :100]
    image = np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8)
    source = CropSource([Picture("p", cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())], CPU, min_side=64)
    generator = torch.Generator().manual_seed(3)
    lefts, flips, sizes = set(), set(), set()
    for _ in range(40):
        crops = (source.crops(4, 64, generator) + 1) * 127.5
        assert (crops[:, 2] - 7).abs().max() < 0.01
        steps = crops[:, 0, :, 32] - crops[:, 0, :, 31]
        flips |= set(torch.sign(steps[:, 5]).tolist())
        sizes |= {round(float(steps[0, 5].abs()), 2)}
        lefts |= set(crops[:, 0].amin((1, 2)).round().tolist())
        assert crops[:, 0].max() < 100 and crops[:, 1].max() < 80
    assert flips == {-1.0, 1.0}
    assert 1.0 in sizes and min(sizes) < 0.8
    assert min(lefts) <= 2 and max(lefts) >= 30


def test_crops_follow_their_seed(source: CropSource) -> None:
    draws = [source.crops(4, 64, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_pictures_that_are_too_small_are_left_out() -> None:
    made = [Picture("small", png(0, 40, 40)), Picture("large", png(1, 70, 70))]
    assert len(CropSource(made, CPU, min_side=64)) == 1
    with pytest.raises(DataError, match="at least 80 pixels"):
        CropSource(made, CPU, min_side=80)
    assert centre_crops(made, 64).shape == (1, 3, 64, 64)
    with pytest.raises(DataError, match="at least 80 pixels"):
        centre_crops(made, 80)
    with pytest.raises(DataError, match=r"broken\.png: not a picture"):
        decode_picture(Picture("broken.png", b"nonsense"))


# --- the model -----------------------------------------------------------------------------------


@torch.no_grad()
def reconstruction_psnr(model: TaTok, images: Any, share: float = 1.0) -> float:
    encoded = model.encode(images)
    keep = train.select(encoded.information, torch.full((len(images),), share))
    return float(-10 * torch.log10(((model.decode(encoded, keep) - images) / 2).pow(2).mean()))


def test_the_analytic_start_is_a_codec(source: CropSource) -> None:
    images = source.crops(24, 64, torch.Generator().manual_seed(5))
    torch.manual_seed(0)
    model = TaTok(TINY).eval()
    untrained = reconstruction_psnr(model, images)
    analytic_start(model, source.crops(64, 64, torch.Generator().manual_seed(6)))
    flat = float(-10 * torch.log10(((images.mean((2, 3), keepdim=True) - images) / 2).pow(2).mean()))
    started = reconstruction_psnr(model, images)
    assert started > flat + 4
    assert started > untrained + 6
    assert started > reconstruction_psnr(model, images, 0.0) > flat
    assert (model.encode(images).codes.std((0, 2, 3)) > 0.5).all()


@pytest.mark.parametrize("variant", ["patch8", "patch16", "no-globals"])
def test_every_variant_starts_as_a_codec_and_learns(
    source: CropSource, variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = source.crops(8, 64, torch.Generator().manual_seed(5))
    flat = float(-10 * torch.log10(((images.mean((2, 3), keepdim=True) - images) / 2).pow(2).mean()))
    chosen = options(variant=variant, lr=1e-3)
    state = new_state(chosen, source, CPU)
    started = reconstruction_psnr(state.model, images)
    assert started > flat + 1
    encoded = state.model.encode(images)
    side = 4 if variant == "patch16" else 8
    assert encoded.codes.shape == (8, 6, side, side)
    assert (encoded.codes.std((0, 2, 3)) > 0.5).all()
    if variant == "no-globals":
        # Whatever the picture, the prior says the same.
        assert encoded.global_codes.abs().max() == 0
        assert encoded.prior.mean.std(0).max() == encoded.prior.log2_probs.std(0).max() == 0
    else:
        assert encoded.global_codes.numel() == 0
        bits = float(np.log2(TINY.vocabulary))
        assert encoded.information.flatten().tolist() == pytest.approx([bits] * encoded.information.numel(), rel=1e-5)
        assert encoded.prior.entropy.flatten().tolist() == pytest.approx([bits] * encoded.information.numel())
    state.step = 200  # the rate is at its peak
    monkeypatch.setattr(source, "crops", lambda *_: images)
    for _ in range(30):
        parts = train_step(state, source, chosen, 0.0)
    assert torch.isfinite(parts["loss"])
    assert reconstruction_psnr(state.model, images) > started + 0.1


def test_variants_are_as_large_as_the_model() -> None:
    for name, tolerance in (("tatok-s8", 0.03), ("tatok-b8", 0.25)):
        sizes = {}
        for variant in get_args(Variant):
            with torch.device("meta"):
                model = TaTok(variant_of(CONFIGS[name], variant))
            sizes[variant] = sum(p.numel() for p in model.parameters())
        assert sizes["no-globals"] == sizes["tatok"]
        for variant, size in sizes.items():
            assert size == pytest.approx(sizes["tatok"], rel=tolerance), variant


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


def test_configs_travel_as_json() -> None:
    everything = [variant_of(config, variant) for config in CONFIGS.values() for variant in get_args(Variant)]
    for config in everything:
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"unknown model config keys \['size'\]; known are"):
        ModelConfig.from_dict({**TINY.to_dict(), "size": 1})
    with pytest.raises(ValueError, match="levels must be between 2 and 64"):
        ModelConfig(name="x", levels=(1, 8))
    older = {key: value for key, value in TINY.to_dict().items() if key != "variant"}
    assert ModelConfig.from_dict(older) == TINY
    with pytest.raises(ValueError, match="variant must be one of tatok, patch8, patch16, no-globals, got 'x'"):
        ModelConfig(name="x", variant="x")
    with pytest.raises(ValueError, match="kernel must be odd"):
        ModelConfig(name="x", kernel=4)


def test_select_keeps_the_best() -> None:
    scores = torch.tensor([[[1.0, 5.0], [3.0, 2.0]], [[4.0, 4.0], [0.0, 9.0]]])
    kept = train.select(scores, torch.tensor([0.5, 1.0]))
    assert kept.tolist() == [[[False, True], [True, False]], [[True, True], [True, True]]]
    assert not train.select(scores, torch.zeros(2)).any()


def test_the_loss_falls(source: CropSource, monkeypatch: pytest.MonkeyPatch) -> None:
    """On pictures that stay the same, a few steps help, and every part of the model moves."""
    images = source.crops(4, 64, torch.Generator().manual_seed(77))
    monkeypatch.setattr(source, "crops", lambda *_: images)
    chosen = options(lr=1e-3)
    state = new_state(chosen, source, CPU)
    state.step = 200  # the rate is at its peak
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    def assess(model: TaTok) -> float:
        with torch.no_grad():
            return float(train.loss(model, images, chosen, torch.Generator().manual_seed(4))[0])

    first = assess(state.model)
    for _ in range(30):
        parts = train_step(state, source, chosen, 0.0)
        assert torch.isfinite(parts["loss"]) and torch.isfinite(parts["grad_norm"])
    last = assess(state.model)
    assert last < 0.97 * first
    assert last < assess(state.ema) < first
    moved = {name.split(".")[0] for name, value in state.model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"global_encoder", "context", "patch_encoder", "decoder"}
    assert state.step == 230


def test_psnr_of_all_tokens_is_of_those_images_only(source: CropSource, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TaTok(TINY)
    images = source.crops(3, 64, torch.Generator().manual_seed(0))
    alone = []
    for shares in ([1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]):
        monkeypatch.setattr(train, "training_shares", lambda count, generator, s=shares: torch.tensor(s))
        parts = train.loss(model, images, options(), torch.Generator().manual_seed(0))[1]
        alone.append(float(parts["psnr_all"]))
    with torch.no_grad():
        encoded = model.encode(images)
        output = model.decode(encoded, torch.ones_like(encoded.information, dtype=torch.bool))
        quality = -10 * torch.log10(((output - images) / 2).pow(2).mean((1, 2, 3)))
    assert alone[0] == pytest.approx(float(quality[[0, 2]].mean()), abs=1e-3)
    assert np.isnan(alone[1])
    assert alone[2] == pytest.approx(float(quality.mean()), abs=1e-3)


def test_two_runs_start_alike(source: CropSource) -> None:
    starts = []
    for _ in range(3):
        starts.append(new_state(options(), source, CPU).model.state_dict())
    assert all(torch.equal(starts[0][name], start[name]) for start in starts for name in start)


# --- runs and checkpoints ------------------------------------------------------------------------


def test_a_finished_run(finished_run: Path) -> None:
    summary = json.loads((finished_run / "summary.json").read_text())
    assert summary["step"] == 6 and summary["pictures"] == 11 and summary["config"] == "tatok-tiny"
    assert sum(summary["sources"].values()) == 11
    assert all(np.isfinite(summary[f"psnr_information_{share:g}"]) for share in train.EVALUATION_SHARES)
    assert summary["psnr_information_1"] > summary["psnr_information_0.1"]
    with (finished_run / "evaluation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["step"] == "6" and "psnr_random_0.35" in rows[-1]
    assert (finished_run / "training.csv").read_text().startswith(",".join(train.LOG_COLUMNS))
    curves = cv2.imread(str(finished_run / "curves.png"))
    assert curves is not None and curves.std() > 1
    assert not list(finished_run.glob("*.tmp*"))
    model, metadata = load_model(finished_run / "checkpoint.safetensors")
    assert model.config == TINY and not model.training
    assert metadata["step"] == 6 and metadata["options"]["seed"] == 0  # type: ignore[index]


def test_the_entropy_tables_of_a_run_are_valid(finished_run: Path) -> None:
    found = tensors(finished_run / "checkpoint.safetensors")
    tables = {key[8:]: value.numpy() for key, value in found.items() if key.startswith("entropy.")}
    loaded = load_tables(save_tables(tables), TINY.levels, "run")
    assert all(np.array_equal(loaded[name], table) for name, table in tables.items())
    assert found["samples"].dtype == torch.uint8 and found["samples"].shape[1:] == (256, 256, 3)


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that run; do not write to it."""
    onnx_export = pytest.importorskip("tatok_edge.export.bundle.onnx")
    out = tmp_path_factory.mktemp("exported") / "bundle"
    assert onnx_export.main([str(finished_run / "checkpoint.safetensors"), "--out", str(out)]) == 0
    return out


def test_a_bundle_gets_another_entropy_model(
    exported: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    image = decode_picture(read_pictures(pictures, "ship")[0])
    before = Tokenizer.load(folder, threads=1)
    packet = before.pack(before.encode(image))
    assert entropy.main([str(folder), "--data", str(pictures), "--images", "16", "--steps", "40"]) == 0
    after = Tokenizer.load(folder, threads=1)
    assert f"{before.tag.hex()} is now {after.tag.hex()}" in capsys.readouterr().out
    assert after.tag != before.tag and after.tag.hex() in (folder / "MODEL_CARD.md").read_text()
    frame = after.encode(image)
    assert np.array_equal(frame.ids, before.encode(image).ids)
    assert after.unpack(after.pack(frame)) == frame
    with pytest.raises(FormatError, match="was made by model"):
        after.unpack(packet)
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}


def test_entropy_models_that_cannot_be_fitted(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for bundle, data, says in (
        (folder, tmp_path / "none", "none"),
        (tmp_path / "no-bundle", tmp_path, "must be a bundle folder"),
    ):
        assert entropy.main([str(bundle), "--data", str(data)]) == 1
        assert says in capsys.readouterr().err
    for option in ("--images", "--steps", "--threads"):
        with pytest.raises(SystemExit):
            entropy.main([str(folder), "--data", str(tmp_path), option, "0"])
        assert f"{option} must be at least 1, got 0" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_the_integer_networks_cost_what_their_float_twins_say() -> None:
    """Their inputs are in the same order, and neighbours that say something make a code cheap."""
    random = np.random.default_rng(0)
    levels = (8, 5)
    cells = random.integers(0, 5, (12, 4, 5, 2))
    cells[:, :, 1:, 0] = cells[:, :, :1, 0]  # a row of cells has one value
    patches = random.integers(0, 5, (12, 16, 20, 2))
    patches[:, 1:, :, 1] = patches[:, :1, :, 1]  # a column of patches has one value
    patches[..., 0] = cells[..., 1].repeat(4, 1).repeat(4, 2)  # and patches repeat their cell
    # What is kept are parts of columns.
    scores = torch.from_numpy((random.random((12, 1, 20)) + 0.1 * random.random((12, 16, 20))).astype(np.float32))
    codes = entropy.Codes(torch.from_numpy(cells.astype(np.uint8)), torch.from_numpy(patches.astype(np.uint8)), scores)
    nets = entropy.fit_networks(codes, levels, steps=150, seed=0)
    model = IntegerEntropyModel(levels, bytes(8), nets.tables())
    kept = scores > 0.5
    encoders = {"cells": RangeEncoder(), "keep": RangeEncoder(), "patches": RangeEncoder()}
    expected = dict.fromkeys(encoders, 0.0)
    exp = exp_table().tolist()

    def cost(net: entropy.TokenNet, forward: Callable[[], Any], tokens: Any, levels: tuple[int, ...]) -> float:
        """Bits of tokens by what the float network says, with the coder's adaptation to them."""
        logits: list[torch.Tensor] = []
        with torch.no_grad(), net.register_forward_hook(lambda _net, _inputs, output: logits.append(output)):
            forward()
        adaptation, bits = plain.Adaptation(levels), 0.0
        for code, totals in zip(tokens.tolist(), (logits[0].double() * 65536).round().long().tolist(), strict=True):
            rows = adaptation.rows(totals, exp)
            bits -= sum(math.log2(row[value] / 4096) for row, value in zip(rows, code, strict=True))
            adaptation.learn(totals, rows, code)
        return bits

    there, everywhere = torch.ones(1, 4, 5, dtype=torch.bool), torch.ones(1, 16, 20, dtype=torch.bool)
    for number in range(12):
        own = np.ascontiguousarray(cells[number].reshape(-1, 2).astype(np.int32))
        model.encode_globals(encoders["cells"], own, np.arange(20, dtype=np.int32), (4, 5))
        keep = kept[number].numpy()
        model.encode_keep_map(encoders["keep"], keep.view(np.uint8), own)
        positions = np.flatnonzero(keep).astype(np.int32)
        of_patches = np.ascontiguousarray(patches[number].reshape(-1, 2)[positions].astype(np.int32))
        model.encode_patches(encoders["patches"], of_patches, positions, own, (16, 20))
        one = slice(number, number + 1)
        c, p, k = codes.cells[one], codes.patches[one], kept[one]
        expected["cells"] += cost(nets.cells, partial(nets.cells_nats, c, there), own, levels)
        bits_of_map = keep.reshape(-1, 1).astype(int)
        expected["keep"] += cost(nets.keep, partial(nets.keep_nats, c, k, everywhere), bits_of_map, (2,))
        expected["patches"] += cost(nets.patches, partial(nets.patches_nats, c, p, k, k), of_patches, levels)
    ceiling = {"cells": 240 * math.log2(25), "keep": 0.7 * kept.numel(), "patches": int(kept.sum()) * math.log2(25)}
    for grid, encoder in encoders.items():
        bits = 8 * len(encoder.finish())
        assert bits == pytest.approx(expected[grid], rel=0.03)
        assert bits < 0.8 * ceiling[grid]


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
    assert train.read_metadata(out / "checkpoint.safetensors")["step"] == 3
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
    train.save_checkpoint(path, state, options())
    before = path.read_bytes()

    def fail(tensors: object, name: str, metadata: object) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(train, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        train.save_checkpoint(path, state, options())
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: path.write_bytes(b"nonsense"), "not a readable safetensors checkpoint"),
        (lambda path: path.write_bytes(b""), "not a readable safetensors checkpoint"),
        (lambda path: train.save_file({"a": torch.zeros(1)}, str(path)), "not a TaTok checkpoint"),
        (
            lambda path: train.save_file({"a": torch.zeros(1)}, str(path), metadata={"tatok": '{"format": 99}'}),
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
        train.load_state(finished_run / "checkpoint.safetensors", state)


def test_pictures_too_small_for_the_last_step_are_refused_at_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number, 128, 128))
    with pytest.raises(DataError, match="at least 256x256 pixels"):
        run(options(steps=1), folder, tmp_path / "out", device=CPU, resume=False)


# --- the command ---------------------------------------------------------------------------------


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


# --- a GPU, without one --------------------------------------------------------------------------


def test_a_step_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step stays on its device: crops, loss, gradients, optimizer and average.

    On the device "meta" tensors have no data, but mixing them with those of the CPU fails as it does on a GPU, and
    so does asking for a value, which would make a GPU wait.
    """
    device = torch.device("meta")
    with pytest.raises(RuntimeError, match="device"):
        torch.zeros(3) + torch.zeros(3, device=device)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for this device
    source = CropSource([Picture(str(i), png(i, 96, 80 + i)) for i in range(3)], device, min_side=64)
    assert source.pixels.device == source.starts.device == device
    model, ema = TaTok(TINY).to(device), TaTok(TINY).to(device).requires_grad_(False)
    state = train.State(model, ema, torch.optim.AdamW(model.parameters(), foreach=True))
    for _ in range(4):  # crops of the size that is asked for, and enlarged ones
        parts = train_step(state, source, options(batch=4), 0.1)
    assert {value.device for name, value in parts.items() if name != "lr"} == {device}
    assert all(p.grad is not None and p.grad.device == device for p in model.parameters())
    assert state.optimizer.state[next(model.parameters())]["exp_avg"].device == device


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.usefixtures("unplotted")
def test_a_run_on_a_gpu(pictures: Path, tmp_path: Path) -> None:
    run(options(steps=3), pictures, tmp_path / "run", device=torch.device("cuda"), resume=False)
    assert load_model(tmp_path / "run" / "checkpoint.safetensors")[1]["step"] == 3
