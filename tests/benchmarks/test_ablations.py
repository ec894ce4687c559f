"""The comparison of the variants of the model, with tiny ones that were not trained."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import cv2
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.training.checkpoint import save_checkpoint
from tatok_edge.training.config import Variant
from tatok_edge.training.data import CropSource, read_pictures
from tatok_edge.training.options import Options
from tatok_edge.training.train import new_state

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def ablations(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return script("benchmarks/ablations.py")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The analytic starts of all variants as checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    device = torch.device("cpu")
    source = CropSource(read_pictures(pictures, "all"), device, min_side=64)
    for variant in get_args(Variant):
        options = Options(config="tatok-tiny", variant=variant, crop=64)
        (folder / variant).mkdir()
        extra: dict[str, object] = {"record": {"hardware": "none"}}
        save_checkpoint(folder / variant / "checkpoint.safetensors", new_state(options, source, device), options, extra)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures of whole cells."""
    folder = tmp_path_factory.mktemp("whole")
    for number in range(2):
        image = render(Scene(width=160, height=128, seed=number), 10)
        cv2.imwrite(str(folder / f"{number}.png"), image[:, :, ::-1])
    return folder


def test_the_comparison(
    ablations: ModuleType, runs: Path, folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablations.py", str(runs), str(folder), "--out", str(tmp_path)])
    ablations.main()
    text = (tmp_path / "ablations.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    report = json.loads((tmp_path / "ablations.json").read_text())
    results = {name: variant["results"] for name, variant in report["variants"].items()}
    patches, cells = 20 * 16, 5 * 4
    for name, tokens in (("patch8", patches), ("patch16", patches / 4)):
        (point,) = results[name]["all"]
        assert point["tokens"] == tokens
    for name, extra in (("tatok", cells), ("no-globals", 0)):
        for score, points in results[name].items():
            most = 1 if score == "depth 1" else 2  # of the tiny model
            assert [point["tokens"] for point in points] == [
                round(patches * share) + extra for share in ablations.SHARES if share <= most
            ]
        # All tokens are all tokens, whatever ranked them.
        assert len({points[0]["psnr_db"] for score, points in results[name].items() if score != "depth 1"}) == 1
        for points in results[name].values():
            assert points[0]["psnr_db"] > points[-1]["psnr_db"]
    model = results["tatok"]
    best, chance = (ablations.at_share(model[score], 0.35)["psnr_db"] for score in ("residual", "random"))
    assert best > chance
    expected = best - chance
    assert report["findings"]["db_over_random_at_35_percent"] == pytest.approx(expected, abs=1e-3)
    deeper = ablations.at_share(model["residual"], 1.0)["psnr_db"] - model["depth 1"][0]["psnr_db"]
    assert report["findings"]["db_of_depth_at_equal_tokens"] == {"1": pytest.approx(deeper, abs=1e-3)}
    # At the start, without globals, a token for every patch gives what the PCA codec of whole patches gives.
    assert results["no-globals"]["depth 1"][0]["psnr_db"] == pytest.approx(
        results["patch8"]["all"][0]["psnr_db"], abs=0.3
    )
    assert f"| {model['residual'][0]['psnr_db']:.2f} |" in text


def test_curves(ablations: ModuleType) -> None:
    curve = ablations.Curve([(100, 20.0), (400, 24.0), (200, 22.0)])
    assert curve.at(200) == pytest.approx(22) and curve.at(200**0.5 * 400**0.5) == pytest.approx(23)
    assert curve.tokens_for(21.0) == pytest.approx(100 * 2**0.5)
    assert all(value != value for value in (curve.at(99), curve.at(401), curve.tokens_for(24.1)))


def test_findings_of_known_curves(ablations: ModuleType) -> None:
    def points(tokens: int, psnr: float) -> list[dict[str, float]]:
        """The PSNR falls by 1 dB with every halving."""
        log2 = ablations.math.log2
        return [{"share": s, "tokens": tokens * s, "psnr_db": psnr + log2(s)} for s in ablations.SHARES]

    def few(depth: int, psnr: float) -> list[dict[str, float]]:
        return [point for point in points(1024, psnr) if point["share"] <= depth]

    variants = {
        "tatok": {
            "results": {
                "residual": points(1024, 28),
                "information": points(1024, 27),
                "random": points(1024, 25),
                "depth 1": few(1, 27),
                "depth 2": few(2, 27.5),
            }
        },
        "no-globals": {"results": {"residual": points(1024, 20), "information": points(1024, 26.5)}},
        "patch8": {"results": {"all": [{"share": 1.0, "tokens": 1024, "psnr_db": 26.0}]}},
        "patch16": {"results": {"all": [{"share": 1.0, "tokens": 256, "psnr_db": 23.0}]}},
    }
    found = ablations.findings(variants)
    assert found["fewer_tokens_than_patch8"] == pytest.approx(4)
    assert found["tokens_for_the_psnr_of_patch8"] == pytest.approx(256)
    assert found["db_over_patch16_at_its_tokens"] == pytest.approx(3)
    assert found["db_over_random_at_35_percent"] == pytest.approx(3)
    assert found["db_of_globals_at_equal_tokens"] == {s: pytest.approx(1.5) for s in ("0.5", "0.35", "0.25", "0.1")}
    assert found["db_of_depth_at_equal_tokens"] == {"1": pytest.approx(1), "2": pytest.approx(0.5)}
    variants["patch8"]["results"]["all"][0]["psnr_db"] = 40.0
    assert ablations.findings(variants)["fewer_tokens_than_patch8"] is None


def test_runs_must_be_alike(ablations: ModuleType, runs: Path, folder: Path, tmp_path: Path) -> None:
    for variant in get_args(Variant):
        (tmp_path / variant).mkdir()
        target = tmp_path / variant / "checkpoint.safetensors"
        target.write_bytes((runs / variant / "checkpoint.safetensors").read_bytes())
    source = CropSource(read_pictures(folder, "all"), torch.device("cpu"), min_side=64)
    options = Options(config="tatok-tiny", variant="patch8", crop=64, seed=1)
    state = new_state(options, source, torch.device("cpu"))
    save_checkpoint(tmp_path / "patch8" / "checkpoint.safetensors", state, options, {"record": {"hardware": "none"}})
    with pytest.raises(SystemExit, match=r"patch8: 0 steps.*train them alike"):
        ablations.read_runs(tmp_path, [folder / "0.png"])
