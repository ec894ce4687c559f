"""Quality and size of a model on a folder of pictures."""

import csv
import json
import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.token_frames import frame_of
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.cli import main as cli
from tatok_edge.errors import BackendError, InputError, SourceError
from tatok_edge.evaluation.compare import compare_runs
from tatok_edge.evaluation.folder import (
    centre_crop,
    depth_shares,
    evaluate_folder,
    random_tokens,
    take,
    uncoded_bits,
)
from tatok_edge.evaluation.metrics import Curve, bd_quality, bd_rate, psnr, structural_similarity
from tatok_edge.evaluation.plots import plot_runs
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.images import read_image
from tatok_edge.tokens.budget import TokenBudget


def test_psnr_of_known_errors() -> None:
    picture = np.full((4, 6, 3), 100, np.uint8)
    assert psnr(picture, picture) == 100.0
    assert psnr(picture, picture + 5) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(0)
    off_by_one = picture.copy()
    off_by_one[0, 0, 0] = 99
    assert psnr(picture, off_by_one) == psnr(off_by_one, picture) == pytest.approx(10 * np.log10(255**2 * 72))


def test_psnr_of_other_shapes() -> None:
    with pytest.raises(InputError, match=r"one shape.*\(4, 6, 3\) and \(6, 4, 3\)"):
        psnr(np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4, 3), np.uint8))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A folder of two pictures of different sizes, and a file that is none."""
    folder = tmp_path_factory.mktemp("two")
    first, second = sorted(pictures.iterdir())[:2]
    cv2.imwrite(str(folder / "a.png"), cv2.imread(str(first))[:100, :90])
    cv2.imwrite(str(folder / "b.png"), cv2.imread(str(second))[50:114, 10:170])
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_results_are_the_means_of_what_single_pictures_give(tokenizer: Tokenizer, two: Path) -> None:
    keeps = [tokenizer.depth, 0.35, 0.0]
    report = evaluate_folder(tokenizer, two, keeps)
    assert report["images"] == 2 and report["model"] == tokenizer.name and report["tag"] == tokenizer.tag.hex()
    assert report["backend"] == "onnxruntime" and report["seconds"] > 0
    for keep, result in zip(keeps, report["results"], strict=True):
        rows = []
        for name in ("a.png", "b.png"):
            image = read_image(two / name)
            frame = tokenizer.encode(image, budget=TokenBudget(keep=keep))
            rows.append((psnr(image, tokenizer.decode(frame)), frame.n_tokens, 8 * len(tokenizer.pack(frame))))
        quality, tokens, bits = np.mean(rows, 0)
        assert result["keep"] == keep
        assert result["psnr_db"] == pytest.approx(quality, abs=1e-3)
        assert result["tokens_per_image"] == pytest.approx(tokens, abs=0.01)
        assert result["bits_per_image"] == pytest.approx(bits, abs=0.1)
    best, middle, least = report["results"]
    assert best["psnr_db"] > middle["psnr_db"] > least["psnr_db"]
    assert best["bits_per_image"] > middle["bits_per_image"] > least["bits_per_image"]
    patches = (16 * 12 + 8 * 20) / 2
    assert (best["tokens_per_image"], least["tokens_per_image"]) == (tokenizer.depth * patches, 0)
    assert best["patches_with_tokens"] == patches and least["patches_with_tokens"] == 0
    assert report["depth"] == tokenizer.depth and report["score"] == "residual"


def test_another_score_and_fewer_tokens_of_one_patch(tokenizer: Tokenizer, two: Path) -> None:
    report = evaluate_folder(tokenizer, two, [0.5, tokenizer.depth], score="visual", max_depth=1)
    half, most = report["results"]
    assert (report["score"], report["depth"]) == ("visual", 1)
    assert most["tokens_per_image"] == most["patches_with_tokens"] == 176  # one for every patch
    assert half["tokens_per_image"] == half["patches_with_tokens"] == 88
    image = read_image(two / "a.png")
    frame = tokenizer.encode(image, budget=TokenBudget(keep=0.5, max_depth=1, score="visual"))
    rows = evaluate_folder(tokenizer, two, [0.5], score="visual", max_depth=1, per_picture=True)["pictures"]
    assert rows[0]["psnr_db"] == pytest.approx(psnr(image, tokenizer.decode(frame)))


@given(st.lists(st.integers(0, 4), min_size=32, max_size=32), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_tokens_at_random_keep_whole_stacks(depths: list[int], share: float, seed: int) -> None:
    frame = frame_of(depths)
    count = round(share * frame.n_tokens)
    some = random_tokens(frame, count, np.random.default_rng(seed))
    assert some.n_tokens == count
    kept = some.depth_map().ravel()
    assert (kept <= depths).all()
    stacks = {(p, d): i for p, d, i in zip(frame.positions, frame.depths, frame.ids, strict=True)}
    assert all(stacks[p, d] == i for p, d, i in zip(some.positions, some.depths, some.ids, strict=True))
    assert take(frame, kept) == some
    shares = depth_shares(some, 4)
    assert shares == pytest.approx([np.mean(kept == depth) for depth in range(5)], abs=1e-5)


def test_shares_that_cannot_be(tokenizer: Tokenizer, two: Path) -> None:
    with pytest.raises(InputError, match="at least one number of tokens per patch"):
        evaluate_folder(tokenizer, two, [])
    with pytest.raises(InputError, match=rf"keep must be from 0 to {tokenizer.depth} tokens per patch.*got 7\.5"):
        evaluate_folder(tokenizer, two, [0.5, 7.5])


def test_folders_that_cannot_be(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing: no such file"):
        evaluate_folder(tokenizer, tmp_path / "missing", [0.5])
    with pytest.raises(SourceError, match="holds no picture"):
        evaluate_folder(tokenizer, tmp_path, [0.5])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SourceError, match=r"broken\.png"):
        evaluate_folder(tokenizer, tmp_path, [0.5])


# --- more than PSNR ------------------------------------------------------------------------------


def test_crops_taus_and_bits(tokenizer: Tokenizer, two: Path) -> None:
    report = evaluate_folder(tokenizer, two, [0.5], taus=[0.8], crop=64, per_picture=True)
    assert (report["images"], report["pixels"], report["crop"]) == (2, 2 * 64 * 64, 64)
    by_share, by_tau = report["results"]
    assert (by_share["keep"], by_share["tau"], by_tau["keep"], by_tau["tau"]) == (0.5, None, None, 0.8)
    assert by_share["tokens_per_image"] == 32 and by_share["global_tokens_per_image"] == 4
    # 16 bits for each of 32 + 4 ids, and the depth of each of 64 patches.
    assert by_share["uncoded_bits_per_image"] == 36 * 16 + 64 * math.ceil(math.log2(tokenizer.depth + 1))
    assert by_share["bits_per_pixel"] == pytest.approx(by_share["bits_per_image"] / 64**2, abs=1e-5)
    rows = [row for row in report["pictures"] if row["picture"] == "b.png"]
    image = centre_crop(read_image(two / "b.png"), 64)
    for row, budget in zip(rows, (TokenBudget(keep=0.5), TokenBudget(tau=0.8)), strict=True):
        frame = tokenizer.encode(image, budget=budget)
        assert row["tokens_per_image"] == frame.n_tokens
        assert row["psnr_db"] == pytest.approx(psnr(image, tokenizer.decode(frame)))
    with pytest.raises(InputError, match=r"a\.png: a crop of 96x96 pixels does not fit into a picture of 90x100"):
        evaluate_folder(tokenizer, two, [0.5], crop=96)


def test_depths_cost_nothing_where_all_or_none_are_kept() -> None:
    for depths, bits in (
        ([4] * 32, (128 + 2) * 16),
        ([0] * 32, 2 * 16),
        ([1] * 32, (32 + 2) * 16 + 3 * 32),
        ([4] * 31 + [3], (127 + 2) * 16 + 3 * 32),
    ):
        assert uncoded_bits(frame_of(depths), 64000, 4) == bits
    assert uncoded_bits(frame_of([1] * 32), 64000, 1) == 34 * 16
    assert uncoded_bits(frame_of([1] * 31 + [0]), 64000, 1) == 33 * 16 + 32


def test_structural_similarity() -> None:
    pytest.importorskip("pytorch_msssim", reason="SSIM is a library's")
    picture = cv2.resize(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8), (192, 170))
    same = structural_similarity(picture, picture)
    assert same.ssim == pytest.approx(1) and same.ms_ssim == pytest.approx(1)
    noisy = np.clip(picture + np.random.default_rng(1).normal(0, 20, picture.shape), 0, 255).astype(np.uint8)
    blurred = cv2.GaussianBlur(picture, (0, 0), 6)
    for other in (noisy, blurred):
        found = structural_similarity(picture, other)
        assert 0.1 < found.ssim < 0.95 and found.ssim < found.ms_ssim < 1
    # The formula itself, where mean and variance are those of flat pictures: no structure, only luminance.
    one, another = (np.full((16, 16, 3), value, np.uint8) for value in (100, 150))
    luminance = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    flat = structural_similarity(one, another)
    assert flat.ssim == pytest.approx(luminance, abs=1e-3) and math.isnan(flat.ms_ssim)
    with pytest.raises(InputError, match="at least 11x11"):
        structural_similarity(one[:8], another[:8])


@pytest.mark.parametrize("missing", ["pytorch_msssim", "scipy.interpolate"])
def test_a_missing_extra_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    picture = np.zeros((16, 16, 3), np.uint8)
    curve = Curve([1, 2, 3, 4], [20, 21, 22, 23])
    with pytest.raises(BackendError, match=r"pip install 'tatok-edge\[evaluate\]'"):
        structural_similarity(picture, picture) if missing == "pytorch_msssim" else bd_rate(curve, curve)


# --- Bjøntegaard deltas --------------------------------------------------------------------------

RATES = [100.0, 210.0, 400.0, 900.0, 1500.0]
QUALITY = [24.0, 26.5, 28.1, 30.9, 32.0]


@pytest.fixture
def scipy() -> None:
    pytest.importorskip("scipy", reason="the splines are SciPy's")


@pytest.mark.usefixtures("scipy")
def test_deltas_of_shifted_curves() -> None:
    anchor = Curve(RATES, QUALITY)
    half = bd_rate(anchor, Curve([rate / 2 for rate in RATES], QUALITY))
    assert half.value == pytest.approx(-50) and (half.low, half.high) == (24.0, 32.0)
    better = bd_quality(anchor, Curve(RATES[::-1], [db + 1.5 for db in QUALITY[::-1]]))
    assert better.value == pytest.approx(1.5) and (better.low, better.high) == pytest.approx((100, 1500))
    assert bd_rate(anchor, anchor).value == pytest.approx(0, abs=1e-9)
    limited = bd_rate(anchor, Curve([rate / 2 for rate in RATES], QUALITY), rates=(150, 500))
    assert limited.value == pytest.approx(-50)
    # From where the smaller rate is 150 (the other 300) to where the larger is 500.
    assert 26.5 < limited.low < 28.1 < limited.high < 30.9


@pytest.mark.usefixtures("scipy")
def test_deltas_are_those_of_the_reference() -> None:
    """Against the package ``bjontegaard``, on curves that cross."""
    reference = pytest.importorskip("bjontegaard", reason="the oracle")
    other = [96.0, 190.0, 430.0, 880.0, 1700.0], [23.5, 26.0, 29.0, 30.7, 33.0]
    anchor, test = Curve(RATES, QUALITY), Curve(*other)
    rate = reference.bd_rate(RATES, QUALITY, *other, method="pchip")
    quality = reference.bd_psnr(RATES, QUALITY, *other, method="pchip")
    assert bd_rate(anchor, test).value == pytest.approx(rate, rel=1e-9)
    assert bd_quality(anchor, test).value == pytest.approx(quality, rel=1e-9)


@pytest.mark.usefixtures("scipy")
def test_curves_that_cannot_be_compared() -> None:
    anchor = Curve(RATES, QUALITY)
    assert math.isnan(bd_rate(anchor, Curve(RATES, [db + 20 for db in QUALITY])).value)
    assert math.isnan(bd_quality(anchor, Curve([rate * 100 for rate in RATES], QUALITY)).value)
    assert math.isnan(bd_rate(anchor, anchor, rates=(1, 2)).value)
    with pytest.raises(InputError, match="at least 4 points, got 3 rates"):
        bd_rate(anchor, Curve(RATES[:3], QUALITY[:3]))
    with pytest.raises(InputError, match="rates above 0"):
        bd_rate(anchor, Curve([0.0, *RATES[1:]], QUALITY))
    with pytest.raises(InputError, match="points of different quality"):
        bd_rate(anchor, Curve(RATES, [24.0, 24.0, 25.0, 26.0, 27.0]))


# --- the command ---------------------------------------------------------------------------------


def run(tokens: float, bits: float, **changes: Any) -> dict[str, Any]:
    """A report over ten pictures."""
    results = [
        {
            "keep": 1 / 2**step,
            "tau": None,
            "psnr_db": 28.0 - step,
            "tokens_per_image": tokens / 2**step,
            "global_tokens_per_image": 0,
            "bits_per_image": bits / 2**step,
            "bits_per_pixel": bits / 2**step / 1000,
        }
        for step in range(5)
    ]
    return {"images": 10, "pixels": 10_000, "crop": None, "model": "m", "results": results} | changes


@pytest.mark.usefixtures("scipy")
def test_runs_are_compared() -> None:
    found = compare_runs(run(1000, 8000), run(500, 10_000))
    assert found["bd_rate_tokens_percent"] == pytest.approx(-50)
    assert found["bd_rate_bits_percent"] == pytest.approx(25)
    assert found["bd_psnr_tokens_db"] == pytest.approx(1)
    assert found["bd_psnr_bits_db"] == pytest.approx(-math.log2(1.25), abs=1e-3)
    assert found["psnr_range_db"] == [24, 28]
    far = compare_runs(run(1000, 8000), run(1e6, 1e7))
    assert far["bd_psnr_tokens_db"] is None and far["bd_rate_tokens_percent"] == pytest.approx(99900)
    with pytest.raises(InputError, match="theirs differ: pixels 10000 and 5"):
        compare_runs(run(1000, 8000), run(1000, 8000, pixels=5))
    with pytest.raises(InputError, match="at least 4 budgets"):
        compare_runs(run(1000, 8000), run(1000, 8000, results=run(1000, 8000)["results"][:2]))
    with pytest.raises(InputError, match="not a report of 'tatok evaluate'"):
        compare_runs(run(1000, 8000), {"results": [{}]})


def test_the_command_writes_reports_and_compares_them(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "pytorch_msssim", "scipy"):
        pytest.importorskip(name, reason="the extra 'evaluate'")
    monkeypatch.chdir(tmp_path)
    outputs = [word for suffix in ("json", "csv", "md", "png") for word in ("-o", f"a.{suffix}")]
    shares = "2,0.5,0.25,0.1"
    assert cli.main(["evaluate", str(two), "--keep", shares, "--tau", "0.9", "--ssim", *outputs]) == 0
    table = capsys.readouterr().out
    report = json.loads(Path("a.json").read_text())
    first = report["results"][0]
    assert 0 < first["ssim"] < 1 and first["ms_ssim"] is None  # the pictures are too small for five scales
    assert f"{first['ssim']:.4f}" in table and "τ 0.9" in table
    rows = list(csv.DictReader(Path("a.csv").read_text().splitlines()))
    assert len(rows) == 2 * 5 and {row["picture"] for row in rows} == {"a.png", "b.png"}
    mean = np.mean([float(row["psnr_db"]) for row in rows if row["keep"] == "2.0"])
    assert first["psnr_db"] == pytest.approx(mean, abs=1e-4)
    assert len(Path("a.md").read_text().splitlines()) == 2 + 5
    assert f"| {first['psnr_db']:.2f} |" in Path("a.md").read_text()
    plotted = cv2.imread("a.png")
    assert plotted is not None and plotted.std() > 10
    assert cli.main(["evaluate", str(two), "--keep", shares, "-o", "a.json"]) == 1
    assert "a.json: exists; name another output, or pass --force" in capsys.readouterr().err
    assert cli.main(["evaluate", str(two), "--keep", shares, "-o", "b.json", "--json"]) == 0
    assert "pictures" not in json.loads(capsys.readouterr().out)
    assert cli.main(["evaluate", "--compare", "a.json", "b.json", "-o", "both.png"]) == 0
    assert "+0.0 % for the same PSNR, +0.00 dB for the same tokens" in capsys.readouterr().out
    assert cv2.imread("both.png") is not None
    assert cli.main(["evaluate", "--compare", "a.json", "b.json", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bd_rate_bits_percent"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.csv", "a.json", "a.md", "a.png", "b.json", "both.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["evaluate"], 2, "give pictures or a video, or --compare and two reports"),
        (["evaluate", "in", "--compare", "a", "b"], 2, "give pictures or a video, or --compare and two reports"),
        (["evaluate", "in", "-o", "a.txt"], 1, "must end in .json, .csv, .md, .png"),
        (["evaluate", "--compare", "none.json", "none.json"], 1, "none.json: cannot be read"),
        (["evaluate", "--compare", "bad.json", "bad.json"], 1, "bad.json: not a JSON report of 'tatok evaluate"),
        (["evaluate", "--compare", "list.json", "list.json"], 1, "list.json: not a JSON report of 'tatok evaluate"),
    ],
)
def test_command_lines_that_cannot_be(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.json").write_text("{")
    Path("list.json").write_text("[1]")
    try:
        found = cli.main(arguments)
    except SystemExit as error:
        found = error.code
    assert found == code
    assert message in capsys.readouterr().err


def test_a_plot_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendError, match=r"plots need matplotlib.*tatok-edge\[evaluate\]"):
        plot_runs({"a": run(1000, 8000)}, tmp_path / "a.png")
