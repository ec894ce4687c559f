"""Several tokens per patch: scores, the filter over (patch, depth), the start from a shallow model, training."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.training import checkpoint, objective, train
from tatok_edge.training.config import CONFIGS, ModelConfig
from tatok_edge.training.data import CropSource, DataError, read_pictures
from tatok_edge.training.evaluation import read_watched
from tatok_edge.training.filtering import fixed_point, residual_scores, select, visual_weights
from tatok_edge.training.model import TaTok, analytic_start, decoder_state, deepen, image_to_windows, pixels_to_grid
from tatok_edge.training.options import Options
from tatok_edge.training.train import new_state, run, train_step

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
SHALLOW = replace(CONFIGS["tatok-tiny"], depth=1)
DEEP = replace(SHALLOW, depth=3)


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {"config": "tatok-tiny", "depth": 3, "batch": 2, "crop": 64}
    return Options(**(values | changes))


def psnr(output: Any, images: Any) -> float:
    return float(-10 * torch.log10(((output - images) / 2).pow(2).mean()))


@pytest.fixture(scope="module")
def source(pictures: Path) -> CropSource:
    return CropSource(read_pictures(pictures, "all"), CPU, min_side=64)


@pytest.fixture(scope="module")
def images(source: CropSource) -> Any:
    return source.crops(6, 64, torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def shallow(source: CropSource) -> TaTok:
    torch.manual_seed(0)
    model = TaTok(SHALLOW).eval()
    analytic_start(model, source.crops(64, 64, torch.Generator().manual_seed(6)))
    return model


@pytest.fixture(scope="module")
def deep(source: CropSource, shallow: TaTok) -> TaTok:
    """Started from a model of one token per patch; do not change it."""
    torch.manual_seed(1)
    model = TaTok(DEEP).eval()
    deepen(model, shallow, source.crops(64, 64, torch.Generator().manual_seed(7)))
    return model


# --- the filter ----------------------------------------------------------------------------------


def kept_by_a_plain_sort(scores: Any, count: int) -> set[tuple[int, int]]:
    """(depth, position) pairs of the ``count`` largest scores: a reference that reads like the rule."""
    depth, patches = scores.shape
    units = {
        (k, i): min(int(np.rint(np.float64(scores[k, i]) * 65536)), 2**31 - 1)
        for k in range(depth)
        for i in range(patches)
    }
    return set(sorted(units, key=lambda pair: (-units[pair], pair[0], pair[1]))[:count])


@given(st.data())
def test_the_filter_is_a_plain_sort(data: Any) -> None:
    depth, rows, columns = (data.draw(st.integers(1, most)) for most in (4, 3, 5))
    patches = rows * columns
    value = st.one_of(st.sampled_from([0.0, 1.0, 2**-17, 1e-40, 40000.0]), st.floats(0, 10, width=32))
    drawn = data.draw(st.lists(value, min_size=depth * patches, max_size=depth * patches))
    scores = np.minimum.accumulate(np.array(drawn, np.float32).reshape(depth, patches), 0)
    count = data.draw(st.integers(0, depth * patches))
    kept = select(
        torch.from_numpy(scores).reshape(1, depth, rows, columns), torch.tensor([count / patches], dtype=torch.float64)
    )
    got = {(int(k), int(i)) for k, i in np.argwhere(kept.reshape(depth, patches).numpy())}
    assert got == kept_by_a_plain_sort(scores, count)
    # Whole stacks: a token is kept only with all tokens before it.
    assert all((k - 1, i) in got for k, i in got if k)


def test_scores_are_ranked_as_integers() -> None:
    assert fixed_point(torch.tensor([0.0, 2**-16, 1.4 * 2**-16, 1.0, 1e9])).tolist() == [0, 1, 1, 65536, 2**31 - 1]
    scores = torch.tensor([[[[1.0, 1 + 2**-20]], [[1.0, 0.5]]]])  # a tie in integers: by depth, then by position
    for count, kept in enumerate(([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1])):
        assert select(scores, torch.tensor([count / 2])).int().flatten().tolist() == kept


def test_budgets_reach_from_few_tokens_to_all() -> None:
    share = objective.training_shares(4000, 4, torch.Generator().manual_seed(0))
    assert 0.04 <= share.min() < 0.05 and share.max() == 4
    assert 0.12 < float((share == 4).float().mean()) < 0.18
    partial = share[share < 4]
    # As many budgets below the geometric mean of both ends as above.
    assert float((partial < 0.4).float().mean()) == pytest.approx(0.5, abs=0.03)
    alone = objective.training_shares(4000, 1, torch.Generator().manual_seed(0))
    assert float((alone == 1).float().mean()) == pytest.approx(0.3, abs=0.03) and alone.max() == 1


# --- scores --------------------------------------------------------------------------------------


@torch.no_grad()
def test_scores_fall_with_depth_and_need_no_code(deep: TaTok, images: Any) -> None:
    encoded = deep.encode(images)
    scores = residual_scores(deep, images, encoded)
    assert scores.shape == (6, 3, 8, 8) and (scores >= 0).all() and torch.isfinite(scores).all()
    assert (scores.diff(dim=1) <= 0).all()
    energy = (pixels_to_grid(images, 8) - encoded.prior.mean).pow(2).sum(1)
    assert (scores.sum(1) <= energy * 1.001).all()
    assert float(scores.sum()) > 0.3 * float(energy.sum())
    encoded.codes = encoded.values = encoded.information = torch.full((1,), torch.nan)
    assert torch.equal(residual_scores(deep, images, encoded), scores)


def test_the_basis_of_scores_is_orthonormal(deep: TaTok) -> None:
    basis = deep.score_basis().reshape(18, 192)
    torch.testing.assert_close(basis @ basis.T, torch.eye(18), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_score_is_the_energy_that_the_token_can_express(shallow: TaTok, deep: TaTok, images: Any) -> None:
    """What least squares fit to the residual from the directions of the local reconstruction."""
    for model in (shallow, deep):
        encoded = model.encode(images)
        residual = (pixels_to_grid(images, 8) - encoded.prior.mean).permute(0, 2, 3, 1).reshape(-1, 192)
        scores = residual_scores(model, images, encoded).permute(0, 2, 3, 1).reshape(-1, model.config.depth)
        weights = torch.cat([layer.weight for layer in model.local], 1)
        before = torch.zeros(len(residual))
        least = torch.full((len(residual),), torch.inf)
        for number in range(model.config.depth):
            directions = weights[:, : 6 * (number + 1)]
            fit = directions @ torch.linalg.lstsq(directions, residual.T).solution
            energy = fit.pow(2).sum(0)
            least = torch.minimum(least, energy - before)
            torch.testing.assert_close(scores[:, number], least, atol=1e-3, rtol=1e-3)
            before = energy


def test_an_error_counts_less_beside_texture() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, 64, 64)).astype(np.float32))
    noise[:, :, :, 32:] = torch.linspace(-1, 1, 3)[:, None, None]  # flat, of one colour
    weights = visual_weights(noise, 8)
    assert weights.shape == (1, 1, 8, 8) and (weights > 0).all() and (weights <= 1).all()
    assert weights[..., 5:].min() == 1  # not beside the texture
    assert weights[..., :3].max() < 0.3
    assert (weights[..., 4] < 0.6).all()  # flat, but next to texture
    assert visual_weights(noise, 8, masking=1e6).min() > 0.99  # the plain squared error


# --- the model -----------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_of_one_token_has_nothing_of_the_others(shallow: TaTok, images: Any) -> None:
    names = {name.split(".")[0] for name in shallow.state_dict()}
    assert names == {"global_encoder", "context", "patch_encoder", "decoder", "local"}
    encoded = shallow.encode(images)
    prior = encoded.prior
    raw = shallow.patch_encoder(
        image_to_windows(images), prior.context.permute(0, 2, 3, 1), prior.mean.permute(0, 2, 3, 1)
    )
    codes = shallow.fsq.codes(raw.permute(0, 3, 1, 2), 1)
    assert torch.equal(encoded.codes, codes) and len(encoded.left) == 1
    keep = encoded.information > encoded.information.median()
    held = torch.where(keep, encoded.values, prior.expected)
    state = torch.cat([held, keep.float(), prior.entropy / 16], 1)
    assert torch.equal(decoder_state(encoded.values, keep.float(), prior.expected, prior.entropy), state)


@torch.no_grad()
def test_a_deep_model_starts_above_the_shallow_one(shallow: TaTok, deep: TaTok, images: Any) -> None:
    before, after = shallow.encode(images), deep.encode(images)
    assert torch.equal(before.global_codes, after.global_codes)
    assert torch.equal(before.codes, after.codes[:, :6])
    torch.testing.assert_close(after.prior.mean, before.prior.mean)
    torch.testing.assert_close(after.prior.entropy[:, 0], before.prior.entropy[:, 0])
    first = torch.zeros(6, 3, 8, 8)
    first[:, 0] = 1
    torch.testing.assert_close(deep.decode(after, first), shallow.decode(before, first[:, :1]), atol=1e-4, rtol=0)
    # Every further token helps, in pixels and in the linear reconstruction that the next token starts from.
    quality, left = [], []
    for number in range(1, 4):
        keep = torch.zeros(6, 3, 8, 8)
        keep[:, :number] = 1
        quality.append(psnr(deep.decode(after, keep), images))
        left.append(float(after.left[number - 1].pow(2).mean()))
    assert quality[0] + 0.5 < quality[1] and quality[1] + 0.3 < quality[2]
    assert left[0] > 1.1 * left[1] > 1.1 * left[2]


@torch.no_grad()
def test_dropped_tokens_are_their_conditional_means(deep: TaTok, images: Any) -> None:
    encoded = deep.encode(images)
    keep = select(residual_scores(deep, images, encoded), torch.full((6,), 1.2)).float()
    state = decoder_state(encoded.values, keep, encoded.prior.expected, encoded.prior.entropy)
    assert state.shape == (6, 3 * 8, 8, 8)
    for number in range(3):
        dims = slice(6 * number, 6 * number + 6)
        there = keep[:, number, None].expand(-1, 6, -1, -1) > 0
        assert torch.equal(state[:, dims][there], encoded.values[:, dims][there])
        assert torch.equal(state[:, dims][~there], encoded.prior.expected[:, dims][~there])
    assert torch.equal(state[:, 18:21], keep) and torch.equal(state[:, 21:], encoded.prior.entropy / 16)
    # So the picture does not depend on them.
    changed = deep.encode(images)
    changed.values = torch.where(keep.repeat_interleave(6, 1) > 0, changed.values, torch.rand(6, 18, 8, 8))
    assert torch.equal(deep.decode(changed, keep), deep.decode(encoded, keep))


@torch.no_grad()
def test_a_token_depends_on_those_before_it_only(deep: TaTok, images: Any) -> None:
    """Closed loop: with another quantizer error in token 1, token 2 is another; token 1 never knows of token 2."""
    before = deep.encode(images)
    other = TaTok(DEEP)
    other.load_state_dict(deep.state_dict())
    other.refinements[0].skip.bias.add_(0.7)
    after = other.encode(images)
    assert torch.equal(before.codes[:, :6], after.codes[:, :6])
    assert not torch.equal(before.codes[:, 6:12], after.codes[:, 6:12])
    assert not torch.equal(before.codes[:, 12:], after.codes[:, 12:])


@torch.no_grad()
def test_information_and_entropy_are_of_each_token(deep: TaTok, images: Any) -> None:
    encoded = deep.encode(images)
    log2 = encoded.prior.log2_probs.split(DEEP.stack_levels, 1)
    for number in range(3):
        bits, entropy = 0.0, 0.0
        for d in range(6 * number, 6 * number + 6):
            bits = bits - log2[d].gather(1, encoded.codes[:, d : d + 1].long())[:, 0]
            entropy = entropy - (torch.exp2(log2[d]) * log2[d]).sum(1)
        torch.testing.assert_close(encoded.information[:, number], bits)
        torch.testing.assert_close(encoded.prior.entropy[:, number], entropy, atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_smaller_kernels_and_a_context_per_patch(shallow: TaTok, source: CropSource, images: Any) -> None:
    torch.manual_seed(2)
    config = replace(DEEP, decoder_kernels=(3,), cell_blocks=2)
    model = TaTok(config).eval()
    deepen(model, shallow, source.crops(32, 64, torch.Generator().manual_seed(7)))
    wide = shallow.state_dict()["decoder.blocks.0.depthwise.weight"]
    assert torch.equal(model.state_dict()["decoder.blocks.0.depthwise.weight"], wide[:, :, 1:4, 1:4])
    encoded = model.encode(images)
    assert psnr(model.decode(encoded, torch.ones(6, 3, 8, 8)), images) > 15
    # An update of one patch changes the pixels of patches at most 2 away: one block of 3 and the output of 3.
    keep = torch.zeros(6, 3, 8, 8)
    keep[:, 0] = 1
    torch.manual_seed(3)
    for layer in (model.decoder.stem, model.decoder.out, model.decoder.blocks[0].project):
        torch.nn.init.normal_(layer.weight)
    base = model.decode(encoded, keep)
    keep[:, :, 4, 4] = 1
    changed = pixels_to_grid((model.decode(encoded, keep) - base).abs(), 8).sum((0, 1)) > 0
    rows, columns = np.nonzero(changed.numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 2, 6)
    with pytest.raises(ValueError, match=r"global_encoder\.stem\.weight: .* cannot become .*; give the same widths"):
        deepen(TaTok(replace(DEEP, global_width=32)), shallow, images)


def test_only_a_model_of_one_token_per_patch_is_deepened(deep: TaTok, images: Any) -> None:
    with pytest.raises(ValueError, match="must have one token per patch, or the config of the run, got a depth of 3"):
        deepen(TaTok(replace(DEEP, depth=4)), deep, images)


def test_a_run_can_start_from_the_same_config(source: CropSource, deep: TaTok) -> None:
    state = new_state(options(), source, CPU, deep)
    started = state.model.state_dict()
    assert [name for name, value in deep.state_dict().items() if not torch.equal(value, started[name])] == []


def test_configs_of_depth() -> None:
    deep = CONFIGS["tatok-s8"]
    assert ModelConfig.from_dict(deep.to_dict()) == deep and deep.stack_levels == (8, 8, 8, 5, 5, 5) * 4
    assert CONFIGS["tatok-tiny"].depth == 2
    with pytest.raises(ValueError, match="depth must be between 1 and 8, got 9"):
        ModelConfig(name="x", depth=9)
    with pytest.raises(ValueError, match=r"decoder_kernels must be odd, got \(2,"):
        ModelConfig(name="x", decoder_kernels=(2, 3, 3, 3, 3))
    with pytest.raises(ValueError, match="one side for each of 5 blocks"):
        ModelConfig(name="x", decoder_kernels=(3, 3))
    with pytest.raises(ValueError, match="kernel must be odd, got 4"):
        ModelConfig(name="x", kernel=4)


# --- training ------------------------------------------------------------------------------------


def test_every_part_learns(source: CropSource, shallow: TaTok, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = source.crops(4, 64, torch.Generator().manual_seed(77))
    monkeypatch.setattr(source, "crops", lambda *_: crops)
    chosen = options(lr=1e-3)
    state = new_state(chosen, source, CPU, shallow)
    state.step = 200  # the rate is at its peak
    before = {name: value.clone() for name, value in state.model.state_dict().items()}

    def assess(model: TaTok) -> float:
        with torch.no_grad():
            return float(objective.loss(model, crops, chosen, torch.Generator().manual_seed(4))[0])

    first = assess(state.model)
    for _ in range(30):
        parts = train_step(state, source, chosen, 0.0)
        assert torch.isfinite(parts["loss"]) and torch.isfinite(parts["grad_norm"])
    assert assess(state.model) < 0.98 * first
    same = [name for name, value in state.model.state_dict().items() if value.equal(before[name])]
    assert same == []


class Stop(Exception):
    """Ends a run as a power cut would."""


def test_a_deep_run_that_was_cut_off_goes_on_exactly(
    pictures: Path, shallow: TaTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "plot_curves", lambda *_: None)
    watch = tmp_path / "watch"
    watch.mkdir()
    for seed in range(2):
        assert cv2.imwrite(str(watch / f"{seed}.png"), render(Scene(width=192, height=192, seed=seed), 3))

    def stop(step: int) -> None:
        if step == 3:
            raise Stop

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(options(steps=4), pictures, whole, device=CPU, resume=False, start=shallow, watch=watch)
    with pytest.raises(Stop):
        run(
            options(steps=4),
            pictures,
            cut,
            device=CPU,
            resume=False,
            start=shallow,
            checkpoint_minutes=0,
            on_step=stop,
        )
    assert checkpoint.read_metadata(cut / "checkpoint.safetensors")["step"] == 2
    # What was to start from is not read again.
    run(options(steps=4), pictures, cut, device=CPU, resume=True, start=None)
    with (
        safe_open(str(whole / "checkpoint.safetensors"), "pt") as one,
        safe_open(str(cut / "checkpoint.safetensors"), "pt") as two,
    ):
        assert set(one.keys()) == set(two.keys())
        assert [name for name in one.keys() if not torch.equal(one.get_tensor(name), two.get_tensor(name))] == []
    model, _ = checkpoint.load_model(whole / "checkpoint.safetensors")
    assert model.config == DEEP
    with (whole / "pictures.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert row["step"] == "4" and 10 < float(row["psnr_residual_0.35"]) < float(row["psnr_residual_2"]) < 60
    with (whole / "evaluation.csv").open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    assert float(row["psnr_residual_1"]) > float(row["psnr_random_1"]) > 10


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "training.csv"
    log.write_text("step,loss\n50,1\n100,2\n150,3\n")
    train.rewind(log, 100)
    assert log.read_text() == "step,loss\n50,1\n100,2\n"
    train.rewind(tmp_path / "none.csv", 1)


def test_the_rate_is_held_then_falls() -> None:
    rates = [train.learning_rate(progress, 1000, 1e-3, 0.75) for progress in (0.0, 0.5, 0.75, 0.9, 1.0)]
    assert rates[:3] == pytest.approx([1e-3] * 3) and 1e-3 > rates[3] > rates[4] == pytest.approx(1e-5)
    assert train.learning_rate(0.5, 1000, 1e-3) == pytest.approx(0.505e-3)


def test_pictures_to_watch_must_fit(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="no images"):
        read_watched(tmp_path)
    with pytest.raises(DataError, match="must be multiples of 32, got"):
        read_watched(pictures)
