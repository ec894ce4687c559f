"""Pictures of a training: folders, manifests, held-out pictures, packs and crops."""

import csv
import hashlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.paths import shared

torch = pytest.importorskip("torch", reason="training needs PyTorch")


from helpers.training_cases import CPU, png

from tatok_edge.pictures.writing import open_output
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.training import data as data_module
from tatok_edge.training.data import (
    CropSource,
    DataError,
    Picture,
    centre_crops,
    clip_frames,
    decode_picture,
    held_out_names,
    read_pictures,
    write_packs,
)
from tatok_edge.training.held_out import HELD_OUT_FILES

pytestmark = pytest.mark.usefixtures("one_thread")


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


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.gif"])
def test_frames_of_a_clip_are_spread_over_it(name: str, tmp_path: Path) -> None:
    with open_output(tmp_path / name, fps=10, frames=None) as output:
        for number in range(50):
            output.write(np.full((48, 64, 3), 5 * number, np.uint8), number)
    levels = [float(frame.mean()) for frame in clip_frames(tmp_path / name, 8)]
    np.testing.assert_allclose(levels, 5 * np.linspace(0, 49, 8).astype(int), atol=4)
    assert len(list(clip_frames(tmp_path / name, 80))) == 50


def test_colours_of_a_clip_are_those_of_the_clip(tmp_path: Path) -> None:
    with open_output(tmp_path / "red.mp4", fps=10, frames=None) as output:
        output.write(np.full((48, 64, 3), (220, 40, 10), np.uint8), 0)
    (made,) = read_pictures(tmp_path, "all")
    decoded = decode_picture(made)
    np.testing.assert_allclose(decoded.mean((0, 1)), (220, 40, 10), atol=8)


def test_a_clip_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"clip\.mp4: not a video"):
        read_pictures(tmp_path, "all")


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
