"""Refined tokens: better pictures from as many tokens, in images and streams, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge.cli.main import main
from tatok_edge.errors import BackendError, BundleError, InputError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import Image, patch_grid
from tatok_edge.model import refine
from tatok_edge.model.bundle import MODELS, open_bundle
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.checks import depths_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped bundle."""
    return Path(shutil.copytree(MODELS / "tatok-s8", tmp_path / "bundle"))


def picture(width: int = 192, height: int = 144, seed: int = 0) -> Image:
    return render(Scene(width=width, height=height, seed=seed), 3)


# --- what users do ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keep", "gain"), [(2.0, 0.1), (1.0, 0.15), (0.35, 0.15), (0.1, 0.15)])
def test_as_many_tokens_give_a_better_picture(tokenizer: Tokenizer, keep: float, gain: float) -> None:
    images = [picture(seed=seed) for seed in range(3)]

    def quality(passes: int) -> float:
        frames = [tokenizer.encode(image, budget=TokenBudget(keep=keep, refine=passes)) for image in images]
        assert {frame.n_tokens for frame in frames} == {round(keep * 24 * 20)}
        return float(np.mean([psnr(i, tokenizer.decode(f)) for i, f in zip(images, frames, strict=True)]))

    plain, little, much = quality(0), quality(2), quality(8)
    assert plain < little < much and much > plain + gain


def test_refined_tokens_are_ordinary_tokens(tokenizer: Tokenizer) -> None:
    image = picture()
    frame = tokenizer.encode(image, budget=TokenBudget(keep=0.4, refine=4))
    assert tokenizer.unpack(tokenizer.pack(frame)) == frame
    assert frame.model == tokenizer.tag
    plain = tokenizer.encode(image, budget=TokenBudget(keep=0.4))
    assert np.array_equal(frame.global_ids, plain.global_ids)
    assert not np.array_equal(frame.depth_map(), plain.depth_map())  # chosen again, from 3 passes on
    assert frame.n_tokens == plain.n_tokens
    few = tokenizer.encode(image, budget=TokenBudget(keep=0.4, refine=2))
    assert np.array_equal(few.positions, plain.positions) and not np.array_equal(few.ids, plain.ids)


def test_the_same_tokens_take_few_more_bits(tokenizer: Tokenizer) -> None:
    plain, refined = (
        sum(len(tokenizer.pack(tokenizer.encode(picture(seed=seed), budget=budget))) for seed in range(3))
        for budget in (TokenBudget(keep=0.35), TokenBudget(keep=0.35, refine=8))
    )
    assert 0.9 < refined / plain < 1.2  # what is corrected is less like what is around it


def test_every_way_gives_the_same_tokens(tokenizer: Tokenizer) -> None:
    images = [picture(192, 144), picture(100, 75, seed=2), picture(161, 97, seed=3)]
    budget = TokenBudget(keep=0.3, refine=5)
    frames = [tokenizer.encode(image, budget=budget) for image in images]
    assert [tokenizer.encode(image, budget=budget) for image in images] == frames
    batch = list(tokenizer.encode_batch(images, budget=budget).frames())
    for frame, other in zip(frames, batch, strict=True):
        assert np.array_equal(frame.ids, other.ids) and np.array_equal(frame.positions, other.positions)
    turned = [tokenizer.encode(image[..., ::-1], budget=budget, bgr=True) for image in images]
    assert turned == frames
    detailed = tokenizer.encode_detailed(images[0], budget=budget)
    assert detailed.frame == frames[0] and detailed.seconds["refine"] > 0
    with Tokenizer.load(threads=1) as one, Tokenizer.load(threads=2) as two:
        assert one.encode(images[1], budget=budget) == two.encode(images[1], budget=budget) == frames[1]


@pytest.mark.parametrize("score", ["residual", "visual", "information", "entropy"])
def test_other_budgets(tokenizer: Tokenizer, score: Any) -> None:
    image = picture()
    for limits in ({"tau": 0.7}, {"max_tokens": 40}, {"keep": 0.5, "min_tokens": 10}, {"keep": 0.5, "max_depth": 1}):
        plain = tokenizer.encode(image, budget=TokenBudget(score=score, **limits))  # type: ignore[arg-type]
        refined = tokenizer.encode(image, budget=TokenBudget(score=score, refine=4, **limits))  # type: ignore[arg-type]
        assert refined.n_tokens == plain.n_tokens
        assert refined.depth_map().max() <= limits.get("max_depth", tokenizer.depth)
        assert psnr(image, tokenizer.decode(refined)) > psnr(image, tokenizer.decode(plain)) + 0.02


@pytest.mark.parametrize("bits", [1500, 3000])
def test_a_limit_of_bits_holds(tokenizer: Tokenizer, bits: int) -> None:
    image = picture()
    refined = tokenizer.encode(image, budget=TokenBudget(max_bits=bits, refine=6))
    assert 0.85 * bits < 8 * len(tokenizer.pack(refined)) <= bits
    plain = tokenizer.encode(image, budget=TokenBudget(max_bits=bits))
    assert psnr(image, tokenizer.decode(refined)) > psnr(image, tokenizer.decode(plain)) + 0.02


@pytest.mark.parametrize("keep", [0.0, 0.002])
def test_hardly_any_tokens(tokenizer: Tokenizer, keep: float) -> None:
    for passes in (1, 3, 8):
        frame = tokenizer.encode(picture(), budget=TokenBudget(keep=keep, refine=passes))
        assert frame.n_tokens == round(keep * 480)
        assert tokenizer.decode(frame).shape == (144, 192, 3)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, tokens = "synthetic:frames=2,width=160,height=128", str(tmp_path / "a.ttk")
    assert main(["encode", source, "-o", tokens, "--keep", "0.3", "--refine", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["budget"] == {"keep": 0.3, "refine": 4}
    assert main(["decode", tokens, "-o", str(tmp_path / "refined")]) == 0
    capsys.readouterr()
    results = []
    for passes in ("0", "4"):
        assert main(["evaluate", str(tmp_path / "refined"), "--keep", "0.3", "--refine", passes, "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert [report["refine"] for report in results] == [0, 4]
    plain, refined = (report["results"][0] for report in results)
    assert refined["tokens_per_image"] == plain["tokens_per_image"]
    assert refined["psnr_db"] > plain["psnr_db"] + 0.2
    assert main(["encode", source, "-o", tokens, "--refine", "65"]) == 2
    assert "refine must be from 0 to 64 passes, got 65" in capsys.readouterr().err


def test_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "clip"
    assert main(["encode", "synthetic:frames=3,width=128,height=96", "-o", str(tmp_path / "a.ttk")]) == 0
    assert main(["decode", str(tmp_path / "a.ttk"), "-o", str(pictures)]) == 0
    arguments = ["dataset", str(pictures), "-o", str(tmp_path / "set"), "--keep", "0.3", "--refine", "3", "--fps", "10"]
    assert main([*arguments, "--workers", "1"]) == 0
    capsys.readouterr()
    assert json.loads((tmp_path / "set" / "metadata.json").read_text())["budget"]["refine"] == 3


# --- the arithmetic -----------------------------------------------------------------------------------


def prepared(tokenizer: Tokenizer, image: Image) -> tuple[Any, Any, Any]:
    """Prior, codes of whole stacks ``(N, K * D)`` and patch grid of an image."""
    clock = Clock()
    networks = tokenizer.networks
    prior = networks.prior(networks.global_codes(image, False, clock), clock)
    frame = tokenizer.encode(image, budget=TokenBudget(min_tokens=10**9))
    stacks = kernels.codes_from_ids(frame.ids, tokenizer.levels).reshape(frame.n_patches, -1)
    return prior, stacks, patch_grid(image.shape[1], image.shape[0])


def test_the_graph_is_the_derivative_of_the_error(tokenizer: Tokenizer) -> None:
    image = picture(96, 64)
    prior, stacks, grid = prepared(tokenizer, image)
    target, weight = refine._target(image, False, grid)
    graph, _ = tokenizer.bundle.refiner()
    session = OnnxSession({"refiner": graph}, threads=1)
    positions = np.arange(len(stacks), dtype=np.int32).repeat(tokenizer.depth)
    state = kernels.decoder_state(stacks.reshape(-1, 6), positions, prior.expected, prior.entropy, tokenizer.levels)

    def run(state: Any) -> Any:
        inputs = {"state": state, "context": prior.context, "mean": prior.mean, "target": target, "weight": weight}
        return session.run("refiner", {name: value.reshape(1, -1, *grid) for name, value in inputs.items()})

    outputs = run(state)
    pixels = tokenizer.networks.pixels(state, prior.context, prior.mean, grid, Clock())
    error = ((pixels - target) ** 2).sum(0)
    assert np.linalg.norm(outputs["error"].ravel() - error) < 0.02 * np.linalg.norm(error)
    rng = np.random.default_rng(0)
    measured, computed = [], []
    for _ in range(24):
        dim, patch = rng.integers(6 * tokenizer.depth), rng.integers(len(stacks))
        sums = []
        for step in (0.01, -0.01):
            moved = state.copy()
            moved[dim, patch] += step
            sums.append(float(run(moved)["error"].astype(np.float64).sum()))
        measured.append((sums[0] - sums[1]) / 0.02)
        computed.append(float(outputs["slope"][0, dim].ravel()[patch]))
    assert np.corrcoef(measured, computed)[0, 1] > 0.999
    assert np.linalg.norm(np.subtract(measured, computed)) < 0.05 * np.linalg.norm(measured)


@pytest.mark.parametrize(("width", "height"), [(96, 64), (100, 75), (33, 47)])
def test_only_pixels_of_the_image_count(width: int, height: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    grid = patch_grid(width, height)
    target, weight = refine._target(image, False, grid)
    assert weight.sum() == width * height * 3
    padded = kernels.assemble(target, grid[1], height, width)
    assert np.array_equal(padded, image)
    turned, _ = refine._target(np.ascontiguousarray(image[..., ::-1]), True, grid)
    assert np.array_equal(turned, target)


def test_codes_move_where_error_and_bits_fall_most(tokenizer: Tokenizer) -> None:
    """One code of a stack moves, by one level: tokens of a stack mend the same pixels."""
    prior, stacks, _ = prepared(tokenizer, picture(96, 64))
    refiner, levels, depth = tokenizer.refiner(), tokenizer.levels, tokenizer.depth
    rng = np.random.default_rng(2)
    slope = rng.normal(0, 20, (stacks.shape[1], len(stacks))).astype(np.float32)
    _, curvature = tokenizer.bundle.refiner()
    positions = np.arange(len(stacks), dtype=np.int32).repeat(depth)
    tokens = depths_of(positions) - 1
    # The prior's probabilities of each token, as rates would give them.
    probs = prior.log2_probs.reshape(depth, sum(levels), -1)[tokens, :, positions].T
    everyone = np.ones(positions.size, np.bool_)
    moved = refiner._moved(stacks.reshape(-1, 6), positions, tokens, probs, slope, everyone)
    for patch, stack in enumerate(moved.reshape(stacks.shape)):
        best, where = 0.0, None
        start = 0
        for dim, level in enumerate(levels * depth):
            table = prior.log2_probs[start : start + level, patch]
            start += level
            for step in (1, -1):
                there = stacks[patch, dim] + step
                if not 0 <= there < level:
                    continue
                change = step * slope[dim, patch] * 2 / level + refine.DAMPING * curvature[dim] * (2 / level) ** 2
                change += refine.RATE_WEIGHT * (table[stacks[patch, dim]] - table[there])
                if change < best - 1e-4:
                    best, where = change, (dim, step)
        expected = stacks[patch].copy()
        if where is not None:
            expected[where[0]] += where[1]
        assert np.array_equal(stack, expected) or best > -2e-3
    still = refiner._moved(stacks.reshape(-1, 6), positions, tokens, probs, slope, ~everyone)
    assert np.array_equal(still, stacks.reshape(-1, 6))


@settings(deadline=None, max_examples=15)
@given(
    width=st.integers(32, 90),
    height=st.integers(32, 90),
    keep=st.floats(0, 2),
    passes=st.integers(1, 9),
    seed=st.integers(0, 100),
)
def test_any_image_and_budget(
    tokenizer: Tokenizer, width: int, height: int, keep: float, passes: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    budget = TokenBudget(keep=keep, refine=passes)
    frame = tokenizer.encode(image, budget=budget)  # TokenFrame checks order and ranges
    assert frame.n_tokens == tokenizer.encode(image, budget=TokenBudget(keep=keep)).n_tokens
    tokenizer.decode(frame)


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [-1, 65, 1.5, "2", None])
def test_passes_out_of_range(value: Any) -> None:
    with pytest.raises(InputError, match="refine must be"):
        TokenBudget(refine=value)


def test_a_bundle_without_refiner_says_how_to_make_it(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["refiner"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with Tokenizer.load(folder) as loaded:
        with pytest.raises(
            BundleError, match=r"add one with 'python -m tatok_edge\.export\.bundle\.refiner .* refine 0"
        ):
            loaded.encode(picture(), budget=TokenBudget(refine=1))
        loaded.encode(picture())


def test_a_damaged_refiner(folder: Path) -> None:
    data = bytearray((folder / "refiner.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "refiner.onnx").write_bytes(data)
    with Tokenizer.load(folder) as loaded:
        loaded.encode(picture())  # what is good stays usable
        with pytest.raises(BundleError, match=r"refiner\.onnx: SHA-256"):
            loaded.encode(picture(), budget=TokenBudget(refine=1))


FILE = {"file": "x", "sha256": "0" * 64}
CURVATURE = [1.0] * 24


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (None, "must hold 'files'"),
        ({"files": {}, "curvature": CURVATURE}, "must hold 'files'"),
        ({"files": {"refiner": FILE, "decoder": FILE}, "curvature": CURVATURE}, "and no other"),
        ({"files": {"refiner": {**FILE, "file": "../x"}}, "curvature": CURVATURE}, "without folders"),
        ({"files": {"refiner": FILE}}, "must be 24 finite numbers above 0"),
        ({"files": {"refiner": FILE}, "curvature": [1.0] * 23}, "must be 24 finite numbers above 0"),
        ({"files": {"refiner": FILE}, "curvature": [*CURVATURE[1:], 0]}, "must be 24 finite numbers above 0"),
        ({"files": {"refiner": FILE}, "curvature": [*CURVATURE[1:], True]}, "must be 24 finite numbers above 0"),
        (
            {"files": {"refiner": FILE}, "curvature": [*CURVATURE[1:], float("inf")]},
            "must be 24 finite numbers above 0",
        ),
    ],
)
def test_manifests_with_a_bad_section(folder: Path, section: Any, text: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"refiner": section}))
    with pytest.raises(BundleError, match=text):
        open_bundle(folder)


def test_a_gpu_says_that_refining_works_on_the_cpu() -> None:
    with Tokenizer.load() as loaded:
        loaded.backend = dataclasses.replace(loaded.backend, name="tensorrt", device="Orin")
        with pytest.raises(BackendError, match=r"refining works on the CPU, .* with backend 'onnxruntime'"):
            loaded.encode(picture(), budget=TokenBudget(refine=2))


def test_a_closed_tokenizer() -> None:
    loaded = Tokenizer.load(threads=1)
    loaded.encode(picture(), budget=TokenBudget(keep=0.1, refine=1))
    loaded.close()
    with pytest.raises(BackendError, match="closed"):
        loaded.encode(picture(), budget=TokenBudget(keep=0.1, refine=1))


# --- the export -----------------------------------------------------------------------------------


def test_an_export_has_a_refiner_and_old_bundles_get_one(
    finished_run: Path, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_export = pytest.importorskip("tatok_edge.export.bundle.onnx", reason="the export needs PyTorch and onnx")
    module = pytest.importorskip("tatok_edge.export.bundle.refiner")
    path = tmp_path / "tiny"
    exported = onnx_export.export_bundle(finished_run / "checkpoint.safetensors", path)["refiner"]
    assert exported["difference"] <= module.MAX_DIFFERENCE
    with Tokenizer.load(path, threads=1) as loaded:
        assert loaded.encode(picture(), budget=TokenBudget(keep=0.2, refine=3)).n_tokens == 96
    tag, graph = open_bundle(path).tag, (path / "refiner.onnx").read_bytes()
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["refiner"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "refiner.onnx").unlink()
    assert module.main([str(path), "--pictures", str(pictures)]) == 0
    section = json.loads(capsys.readouterr().out)
    assert section["files"] == exported["files"] and (path / "refiner.onnx").read_bytes() == graph
    assert open_bundle(path).tag == tag
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    (tmp_path / "none").mkdir()
    assert module.main([str(path), "--pictures", str(tmp_path / "none")]) == 1
    assert module.main([str(tmp_path / "no.zip"), "--pictures", str(pictures)]) == 1
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_an_export_whose_derivative_is_wrong_is_refused(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_export = pytest.importorskip("tatok_edge.export.bundle.onnx", reason="the export needs PyTorch and onnx")
    module = pytest.importorskip("tatok_edge.export.bundle.refiner")
    right = module._transposed
    monkeypatch.setattr(module, "_transposed", lambda layer, slope: 1.1 * right(layer, slope))
    with pytest.raises(onnx_export.ExportError, match="differs from PyTorch's derivative"):
        onnx_export.export_bundle(finished_run / "checkpoint.safetensors", finished_run / "never")
    assert not (finished_run / "never").exists()
