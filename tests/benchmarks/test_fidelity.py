"""The evaluation suite: codecs, the comparison with them, and whether tokens follow content."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from helpers.paths import shared

from tatok_edge.evaluation.folder import evaluate_pictures, summarize
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.tokens.budget import TokenBudget

for extra in ("matplotlib", "pytorch_msssim", "scipy", "torch"):
    pytest.importorskip(extra, reason="the extra 'evaluate'")
pytest.importorskip("PIL.features", reason="AVIF is Pillow's")


@pytest.fixture(scope="module")
def fidelity(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return script("benchmarks/fidelity.py")


def some(pictures: Path, count: int) -> list[tuple[str, np.ndarray]]:
    return [(path.name, read_image(path)[:160, :192]) for path in list_images(pictures)[:count]]


def test_codecs_give_more_for_more(fidelity: ModuleType, pictures: Path) -> None:
    image = some(pictures, 1)[0][1]
    for name, (encode, _) in fidelity.CODECS.items():
        low, high = encode(image, 5), encode(image, 60)
        assert len(low) < len(high), name
        assert 15 < psnr(image, fidelity.decode(low)) < psnr(image, fidelity.decode(high)), name
    # Channels are in their order: a red picture stays red.
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    for encode, _ in fidelity.CODECS.values():
        assert np.abs(fidelity.decode(encode(red, 90)).astype(int) - red).max() < 12


def test_the_report_of_a_set(
    fidelity: ModuleType, tokenizer: Tokenizer, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [(name, image[:96, :128]) for name, image in some(pictures, 2)]
    codecs = {name: (encode, qualities[::2]) for name, (encode, qualities) in fidelity.CODECS.items()}
    monkeypatch.setattr(fidelity, "CODECS", codecs)
    parts = {
        name: fidelity.PictureSet(f"The set {name}", lambda: iter(chosen), **options)
        for name, options in (
            ("kodak", {}),
            ("kodak-refined", {"passes": 2}),
            ("kodak-visual", {"score": "visual"}),
            ("kodak-flat", {"max_depth": 1}),
            ("held-out", {}),
            ("clips", {}),
        )
    }
    monkeypatch.setattr(fidelity, "picture_sets", lambda data: parts)
    monkeypatch.setattr(fidelity, "KEEPS", (2.0, 0.5, 0.25, 0.1))
    monkeypatch.setattr(fidelity, "REFINED_KEEPS", (2.0, 1.0, 0.5, 0.1))
    monkeypatch.setattr(fidelity, "TAUS", (0.8,))
    monkeypatch.setattr(fidelity, "CORRELATION_DB", (24.0,))
    measured = ["kodak", "kodak-refined", "kodak-visual", "kodak-flat", "held-out"]
    report = fidelity.measure(tokenizer, tmp_path, measured)
    assert list(report["sets"]) == measured
    flat = report["sets"]["kodak-flat"]["results"]
    assert [row["keep"] for row in flat] == [0.5, 0.25, 0.1, None]  # no more than one token for a patch
    assert flat[0]["patches_with_tokens"] == flat[0]["tokens_per_image"]
    for score in ("residual", "visual"):
        for keep, shares in report["depths"][score].items():
            assert len(shares) == tokenizer.depth + 1 and sum(shares) == pytest.approx(1, abs=1e-3)
            mean = sum(depth * share for depth, share in enumerate(shares))
            assert mean == pytest.approx(float(keep), abs=0.01)
    expected = summarize(evaluate_pictures(tokenizer, chosen, [TokenBudget(keep=0.25)]))[0]
    row = report["sets"]["kodak"]["results"][2]
    assert (row["keep"], row["psnr_db"], row["bits_per_image"]) == (
        0.25,
        expected["psnr_db"],
        expected["bits_per_image"],
    )
    for name, points in report["codecs"].items():
        assert [point["quality"] for point in points] == list(fidelity.CODECS[name][1])
        assert np.all(np.diff([point["bits_per_pixel"] for point in points]) > 0)
    assert set(report["bd_rate"]) == {*fidelity.CODECS, "AVIF at 0.05-0.4 bits per pixel"}
    plain, refined = (
        {row["keep"]: row["psnr_db"] for row in report["sets"][name]["results"]} for name in ("kodak", "kodak-refined")
    )
    assert list(refined) == [2.0, 1.0, 0.5, 0.1]
    assert all(refined[keep] > plain[keep] for keep in (2.0, 0.5, 0.1))
    assert report["refined_against_plain"]["tokens_percent"] < -3
    for name, after in report["bd_rate_refined"].items():
        before = report["bd_rate"][name]["percent"]
        assert after["percent"] is None or before is None or after["percent"] < before
    assert report["correlation"]["at_tau"] is None or -1 <= report["correlation"]["at_tau"] <= 1
    assert [row["picture"] for row in report["correlation"]["pictures"]] == [name for name, _ in chosen]
    text = fidelity.markdown(report)
    assert "Patches by depth on Kodak at full size, tokens chosen by `visual`:" in text
    assert "**The set held-out**, 2 measured" in text and f"| {row['psnr_db']:.2f} |" in text
    assert "Refined against not refined: -" in text and "| against | bits | bits, refined |" in text
    lines = fidelity.table(report).splitlines()
    assert len(lines) == 1 + 3 * 5 + 2 * 4 + sum(len(qualities) for _, qualities in fidelity.CODECS.values())
    fidelity.plot(report, tmp_path / "plot.png")
    assert cv2.imread(str(tmp_path / "plot.png")).std() > 10


def test_bd_rate_against_a_codec(fidelity: ModuleType) -> None:
    ours = [{"keep": 1 / 2**n, "bits_per_pixel": 0.2 / 2**n, "psnr_db": 28.0 - n} for n in range(5)]
    ours.append({"keep": None, "bits_per_pixel": 9.0, "psnr_db": 1.0})  # by tau: not on the curve
    codec = [{"quality": q, "bits_per_pixel": 0.4 / 2**q, "psnr_db": 28.0 - q} for q in (4, 3, 2, 1, 0)]
    codec.append({"quality": 5, "bits_per_pixel": 0.4, "psnr_db": 28.0})  # the same picture once more
    found = fidelity.bd_rates(ours, {"JPEG": codec, "AVIF": codec})
    assert found["JPEG"]["percent"] == pytest.approx(-50, abs=0.01) and found["JPEG"]["psnr_db"] == [24, 28]
    limited = found["AVIF at 0.05-0.4 bits per pixel"]
    assert limited["percent"] == pytest.approx(-50, abs=0.01)
    # AVIF has 0.4 bits per pixel at 28 dB, we have 0.05 at 26.
    assert limited["psnr_db"] == pytest.approx([26, 28], abs=0.02)


def test_tokens_and_bits_for_a_quality(fidelity: ModuleType, tokenizer: Tokenizer, pictures: Path) -> None:
    image = some(pictures, 1)[0][1]
    result = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size))
    best = psnr(image, tokenizer.decode(tokenizer.reduce(result, TokenBudget(keep=tokenizer.depth))))
    none = psnr(image, tokenizer.decode(tokenizer.reduce(result, TokenBudget(keep=0.0))))
    patches = result.frame.n_patches
    assert fidelity.tokens_at(tokenizer, result, image, best + 1) == patches * tokenizer.depth
    assert fidelity.tokens_at(tokenizer, result, image, none - 1) == 0
    middle = (best + none) / 2
    count = fidelity.tokens_at(tokenizer, result, image, middle)
    assert 0 < count < patches * tokenizer.depth
    assert psnr(image, tokenizer.decode(tokenizer.reduce(result, TokenBudget(keep=count / patches)))) >= middle
    for target in (28.0, 32.0):
        bits = fidelity.webp_bits_at(image, target)
        sizes = {q: 8 * len(fidelity.encode_webp(image, q)) for q in range(1, 101)}
        reached = min(q for q in sizes if psnr(image, fidelity.decode(fidelity.encode_webp(image, q))) >= target)
        assert bits == pytest.approx(sizes[reached], rel=0.05)  # PSNR is not quite monotone in the quality


def test_correlation_of_plain_and_busy_pictures(fidelity: ModuleType, tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)

    def pictures() -> Iterator[tuple[str, np.ndarray]]:
        """From plain to busy: noise of several strengths and sizes on grey."""
        for number, (side, strength) in enumerate(((64, 4), (16, 20), (16, 60), (8, 60), (8, 100))):
            small = rng.normal(0, strength, (128 // side, 128 // side, 3))
            noise = cv2.resize(small, (128, 128), interpolation=cv2.INTER_CUBIC)
            yield str(number), np.clip(128 + noise, 0, 255).astype(np.uint8)

    found = fidelity.correlation(tokenizer, pictures())
    assert [row["picture"] for row in found["pictures"]] == list("01234")
    assert found["at_quality"]["28"]["rho"] > 0.8
    assert found["at_quality"]["24"]["least_webp"] >= 1  # the plainest
    assert 1 <= found["at_quality"]["28"]["all_tokens"] < 5  # the busiest


def test_the_sets_of_the_shared_data(fidelity: ModuleType) -> None:
    sets = fidelity.picture_sets(shared(""))
    assert set(fidelity.SETS) <= set(sets)
    first = {name: next(chosen.read()) for name, chosen in sets.items()}
    assert first["kodak"][0] == "kodim01.png" and first["kodak"][1].shape == (512, 768, 3)
    assert first["kodak-256"][1].shape == (256, 256, 3)
    np.testing.assert_array_equal(first["kodak"][1][128:384, 256:512], first["kodak-256"][1])
    assert first["clips"][0] == "bottles_static.mp4#0"
