"""The model: its start, its variants, its loss and its steps."""

import json
from contextlib import nullcontext
from typing import Any, get_args

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")


from helpers.training_cases import CPU, TINY, options, png

from tatok_edge.training import checkpoint as checkpoint_module
from tatok_edge.training import objective
from tatok_edge.training.config import CONFIGS, ModelConfig, Variant, variant_of
from tatok_edge.training.data import (
    CropSource,
    Picture,
)
from tatok_edge.training.filtering import residual_scores, select
from tatok_edge.training.model import TaTok, analytic_start
from tatok_edge.training.train import new_state, train_step

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def reconstruction_psnr(model: TaTok, images: Any, share: float = 1.0) -> float:
    """PSNR of images with a share of their tokens."""
    encoded = model.encode(images)
    keep = select(residual_scores(model, images, encoded), torch.full((len(images),), share * model.config.depth))
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
    assert encoded.codes.shape == (8, 12 if variant == "no-globals" else 6, side, side)
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
    for name, tolerance in (("tatok-s8", 0.08), ("tatok-b8", 0.4)):
        sizes = {}
        for variant in get_args(Variant):
            with torch.device("meta"):
                model = TaTok(variant_of(CONFIGS[name], variant))
            sizes[variant] = sum(p.numel() for p in model.parameters())
        assert sizes["no-globals"] == sizes["tatok"]
        for variant, size in sizes.items():
            assert size == pytest.approx(sizes["tatok"], rel=tolerance), variant


def test_configs_travel_as_json() -> None:
    everything = [variant_of(config, variant) for config in CONFIGS.values() for variant in get_args(Variant)]
    for config in everything:
        assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ValueError, match=r"unknown model config keys \['size'\]; known are"):
        ModelConfig.from_dict({**TINY.to_dict(), "size": 1})
    with pytest.raises(ValueError, match="levels must be between 2 and 64"):
        ModelConfig(name="x", levels=(1, 8))
    with pytest.raises(ValueError, match="variant must be one of tatok, patch8, patch16, no-globals, got 'x'"):
        ModelConfig(name="x", variant="x")
    with pytest.raises(ValueError, match="kernel must be odd"):
        ModelConfig(name="x", kernel=4)


def test_select_keeps_the_best() -> None:
    scores = torch.tensor([[[1.0, 5.0], [3.0, 2.0]], [[4.0, 4.0], [0.0, 9.0]]])
    kept = select(scores, torch.tensor([0.5, 1.0]))
    assert kept.tolist() == [[[False, True], [True, False]], [[True, True], [True, True]]]
    assert not select(scores, torch.zeros(2)).any()


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
            return float(objective.loss(model, images, chosen, torch.Generator().manual_seed(4))[0])

    first = assess(state.model)
    for _ in range(30):
        parts = train_step(state, source, chosen, 0.0)
        assert torch.isfinite(parts["loss"]) and torch.isfinite(parts["grad_norm"])
    last = assess(state.model)
    assert last < 0.97 * first
    assert last < assess(state.ema) < first
    moved = {name.split(".")[0] for name, value in state.model.state_dict().items() if not value.equal(before[name])}
    assert moved == {"global_encoder", "context", "patch_encoder", "refinements", "local", "decoder"}
    assert state.step == 230


def test_psnr_of_all_tokens_is_of_those_images_only(source: CropSource, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TaTok(TINY)
    images = source.crops(3, 64, torch.Generator().manual_seed(0))
    alone = []
    for shares in ([2.0, 0.0, 2.0], [0.0, 1.0, 0.0], [2.0, 2.0, 2.0]):  # tokens per patch, of two at most
        monkeypatch.setattr(objective, "training_shares", lambda count, depth, generator, s=shares: torch.tensor(s))
        parts = objective.loss(model, images, options(), torch.Generator().manual_seed(0))[1]
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
    state = checkpoint_module.State(model, ema, torch.optim.AdamW(model.parameters(), foreach=True))
    for _ in range(4):  # crops of the size that is asked for, and enlarged ones
        parts = train_step(state, source, options(batch=4), 0.1)
    assert {value.device for name, value in parts.items() if name != "lr"} == {device}
    assert all(p.grad is not None and p.grad.device == device for p in model.parameters())
    assert state.optimizer.state[next(model.parameters())]["exp_avg"].device == device
