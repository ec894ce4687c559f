"""Quality and size of a model on a folder of pictures."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from tatok_edge.errors import InputError, SourceError
from tatok_edge.evaluation import evaluate_folder, psnr
from tatok_edge.sources import read_image
from tatok_edge.tokenizer import Tokenizer
from tatok_edge.tokens import TokenBudget


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
    keeps = [1.0, 0.35, 0.0]
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
    assert (best["tokens_per_image"], least["tokens_per_image"]) == ((16 * 12 + 8 * 20) / 2, 0)


def test_shares_that_cannot_be(tokenizer: Tokenizer, two: Path) -> None:
    with pytest.raises(InputError, match="at least one share"):
        evaluate_folder(tokenizer, two, [])
    with pytest.raises(InputError, match=r"keep must be from 0 to 1.*1\.5"):
        evaluate_folder(tokenizer, two, [0.5, 1.5])


def test_folders_that_cannot_be(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing: cannot be read"):
        evaluate_folder(tokenizer, tmp_path / "missing", [0.5])
    with pytest.raises(SourceError, match="holds no picture"):
        evaluate_folder(tokenizer, tmp_path, [0.5])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(SourceError, match=r"broken\.png"):
        evaluate_folder(tokenizer, tmp_path, [0.5])
