"""Machine perception of reconstructions: what counts as kept, the report, and what the script refuses."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render

pytest.importorskip("PIL.features", reason="AVIF is Pillow's")
for extra in ("matplotlib", "scipy", "torch"):
    pytest.importorskip(extra, reason="the extra 'evaluate'")


@pytest.fixture(scope="module")
def perception(script: Callable[[str], ModuleType]) -> ModuleType:
    """The script as a module."""
    return script("benchmarks/perception.py")


class Sharp:
    """Networks that find a string and a face in every picture, but only the face in blurred ones."""

    def __init__(self, perception: ModuleType, sharp: NDArray[np.uint8]) -> None:
        self._module = perception
        self._sharp = sharp

    def _finding(self, label: str) -> list:
        return [self._module.Finding(label, 0.9, self._module.Box(8, 8, 40, 24))]

    def strings(self, image: NDArray[np.uint8]) -> list:
        return self._finding("TAXI") if np.array_equal(image, self._sharp) else self._finding("TAX1")

    def faces(self, image: NDArray[np.uint8]) -> list:
        return self._finding("face")

    def classify(self, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        probabilities = np.full((len(squares), 3), 0.1, np.float32)
        probabilities[:, 1] = 0.8
        return probabilities, squares.reshape(len(squares), -1)[:, :64].astype(np.float32) + 1


# --- the whole run ------------------------------------------------------------------------------------


def test_the_report_of_a_picture(perception: ModuleType, tokenizer: Tokenizer) -> None:
    image = render(Scene(width=256, height=224, seed=3), 5)
    chosen = {"kodak": perception.PictureSet("The set", 1, lambda: iter([image]))}
    report = perception.measure(tokenizer, Sharp(perception, image), chosen, passes=1)
    found = report["sets"]["kodak"]
    assert found["there"] == {"strings": 1, "classes": 1, "faces": 1}
    rows = {(row["budget"], row["method"]): row for row in found["results"]}
    names = list(perception.budgets(tokenizer.depth))
    assert names[0] == "0.35" and names[-1] == "all"
    for name in names:
        methods = {method for budget, method in rows if budget == name}
        expected = {"tokens, residual", "tokens, visual", "tokens, residual, refined", "JPEG", "WebP", "AVIF"}
        assert methods == (expected - {"tokens, visual"} if name == "all" else expected)
    for row in rows.values():
        assert (row["strings"], row["classes"], row["faces"]) == (0, 1, 1)
        assert 0 <= row["distance"] < 1 and row["psnr_db"] > 15
    sizes = [rows[name, "tokens, residual"]["bits_per_pixel"] for name in names]
    assert sizes == sorted(sizes)
    assert rows["all", "AVIF"]["bits_per_pixel"] == pytest.approx(sizes[-1], rel=0.15)
    text = perception.markdown(report)
    assert report["machine"]["cpu"] in text and "strings kept of 1" in text and "| 1 (100.0%) |" in text


def test_packages_that_are_missing(perception: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(perception, "PACKAGES", ("numpy", "no_such_reader"))
    monkeypatch.setattr("sys.argv", ["perception.py", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"no_such_reader is missing: pip install 'tatok-edge\[perception\]'"):
        perception.main()
    monkeypatch.setattr("sys.argv", ["perception.py", str(tmp_path), "--limit", "0"])
    with pytest.raises(SystemExit) as refused:
        perception.main()
    assert refused.value.code == 2


# --- parts ----------------------------------------------------------------------------------------------


def test_what_is_kept(perception: ModuleType) -> None:
    box, finding = perception.Box, perception.Finding
    wanted = [finding("BELL", 0.9, box(0, 0, 20, 10)), finding("BELL", 0.9, box(0, 20, 20, 30))]
    assert perception.kept(wanted, wanted) == 2
    assert perception.kept(wanted, wanted[:1] * 3) == 1  # at the place of the first alone
    assert perception.kept(wanted, [finding("BELLS", 0.9, box(0, 0, 20, 10))]) == 0
    assert perception.kept(wanted, [finding("BELL", 0.5, box(4, 0, 24, 10))]) == 1
    assert perception.kept(wanted, [finding("BELL", 0.9, box(12, 0, 32, 10))]) == 0
    # One string of the reconstruction stands for one of the original.
    assert perception.kept(wanted[:1] * 2, wanted[:1]) == 1


@given(sides=st.lists(st.integers(0, 50), min_size=8, max_size=8))
def test_overlap(perception: ModuleType, sides: list[int]) -> None:
    a, b = (perception.Box(x, y, x + w, y + h) for x, y, w, h in (sides[:4], sides[4:]))
    value = perception.overlap(a, b)
    assert 0 <= value <= 1 and value == perception.overlap(b, a)
    assert perception.overlap(a, a) == (1 if a.area else 0)


def test_squares(perception: ModuleType) -> None:
    image = np.arange(2 * 224 + 9, dtype=np.uint8)[:, None, None] * np.ones((1, 224 + 100, 3), np.uint8)
    squares = perception.tiles(image)
    assert squares.shape == (2, 224, 224, 3)
    assert np.array_equal(squares[0], image[:224, :224]) and np.array_equal(squares[1], image[224:448, :224])
    assert perception.tiles(image[:100]).shape == (0, 224, 224, 3)


def test_feature_distance(perception: ModuleType) -> None:
    a = np.array([[1, 0], [3, 4]], np.float32)
    assert perception.cosine_distance(a, 2 * a) == pytest.approx([0, 0])
    assert perception.cosine_distance(a, a[:, ::-1]) == pytest.approx([1, 1 - 24 / 25])


def test_frames_and_budgets(perception: ModuleType) -> None:
    assert perception.frame_numbers(300) == [50, 150, 250] and perception.frame_numbers(1) == [0]
    assert perception.budgets(1) == {"0.35": 0.35, "all": 1}
    assert perception.budgets(4) == {"0.35": 0.35, "1": 1, "2": 2, "all": 4}


def test_the_closest_size(perception: ModuleType) -> None:
    def encode(quality: int) -> bytes:
        return bytes(10 * quality)

    assert len(perception.closest(encode, 8 * 244)) == 240 and len(perception.closest(encode, 8 * 246)) == 250
    assert len(perception.closest(encode, 1)) == 10 and len(perception.closest(encode, 8e6)) == 1000
