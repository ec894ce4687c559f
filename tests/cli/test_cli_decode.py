"""``tatok decode`` and ``tatok view``."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.cli_runs import SMALL, Run, load, one_line, psnr

from tatok_edge.pictures.drawing import COLOUR_SHARE, DROPPED, depth_colour
from tatok_edge.sources.synthetic import Scene, render


def test_decode_into_a_folder_gives_the_pictures_back(tatok: Run) -> None:
    assert tatok("encode", "synthetic:frames=3,width=320,height=240", "-o", "a.ttk").code == 0
    result = tatok("decode", "a.ttk", "-o", "out", "--json")
    assert result.code == 0
    assert set(result.json) >= {"frames", "width", "height", "seconds", "model", "backend"}
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["000000.png", "000001.png", "000002.png"]
    for number, name in enumerate(names):
        original = render(Scene(width=320, height=240), number)
        assert psnr(load(Path("out") / name), original) > 20


def test_decode_into_a_video(tatok: Run, small: Path) -> None:
    assert tatok("decode", small, "-o", "out.mp4").code == 0
    capture = cv2.VideoCapture("out.mp4")
    assert capture.get(cv2.CAP_PROP_FPS) == 30
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    assert len(frames) == 6
    assert frames[0].shape == (64, 96, 3)
    assert tatok("decode", small, "-o", "3.png", "--frame", 3).code == 0
    assert psnr(frames[3][..., ::-1], load(Path("3.png"))) > 28
    assert tatok("decode", small, "-o", "slow.mp4", "--fps", 5).code == 0
    assert cv2.VideoCapture("slow.mp4").get(cv2.CAP_PROP_FPS) == 5


def test_video_of_an_odd_size_grows_to_an_even_one(tatok: Run) -> None:
    assert tatok("encode", "synthetic:frames=2,width=71,height=45", "-o", "a.ttk").code == 0
    assert tatok("decode", "a.ttk", "-o", "a.mp4").code == 0
    capture = cv2.VideoCapture("a.mp4")
    assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (72, 46)


def test_decode_one_frame(tatok: Run, small: Path) -> None:
    assert tatok("decode", small, "-o", "all").code == 0
    assert tatok("decode", small, "-o", "last.png", "--frame", -1).code == 0
    np.testing.assert_array_equal(load(Path("last.png")), load(Path("all/000005.png")))
    one_line(tatok("decode", small, "-o", "a.png"), 1, "a picture holds one frame of 6; choose with --frame")
    one_line(tatok("decode", small, "-o", "a.png", "--frame", 6), 1, "--frame must be from -6 to 5 for .*, got 6")


def test_folder_is_replaced_only_if_it_holds_earlier_frames(tatok: Run, small: Path) -> None:
    assert tatok("decode", small, "-o", "out").code == 0
    Path("out/000099.png").write_bytes(b"left from a longer clip")
    assert tatok("decode", small, "-o", "out", "--force").code == 0
    assert len(list(Path("out").iterdir())) == 6
    Path("out/holiday.jpg").write_bytes(b"somebody's picture")
    one_line(tatok("decode", small, "-o", "out", "--force"), 1, r"the folder holds other files \(holiday\.jpg\)")
    assert len(list(Path("out").iterdir())) == 7


def test_view_shows_original_depths_and_reconstruction(tatok: Run, small: Path) -> None:
    result = tatok("view", small, "-o", "view.png", "--source", SMALL, "--frame", 2, "--json")
    assert result.code == 0
    assert result.json["psnr_db"] > 15
    picture = load(Path("view.png"))
    enlarged = np.repeat(np.repeat(render(Scene(width=96, height=64), 2), 4, axis=0), 4, axis=1)
    top, left, (height, width) = 30, 8, enlarged.shape[:2]
    np.testing.assert_array_equal(picture[top : top + height, left : left + width], enlarged)
    assert picture.shape[1] == 3 * width + 4 * 8
    assert picture.shape[0] > height + 200  # the plot of tokens per frame is below
    counts = result.json["patches_by_depth"]
    assert result.json["depth"] == 4 and len(counts) == 5 and sum(counts) == 96
    assert sum(depth * count for depth, count in enumerate(counts)) == result.json["tokens"] == 34
    # Patches without a token are in shades of one dark blue, the others in colours.
    coloured = picture[top : top + height, left + width + 8 :][:, :width].astype(int)
    bluish = coloured[..., 2] - coloured[..., 0] - COLOUR_SHARE * (DROPPED[2] - DROPPED[0])
    assert (np.abs(bluish) < 1.1).mean() == pytest.approx(counts[0] / 96, abs=0.02)
    legend = picture[top + height + 8 : top + height + 40]
    for depth in range(5):
        assert (legend == depth_colour(depth)).all(axis=2).any()


def test_view_takes_a_snapshot_or_no_source(tatok: Run, small: Path) -> None:
    assert tatok("encode", SMALL, "-o", "a.ttk", "--snapshot", "last.png").code == 0
    result = tatok("view", "a.ttk", "-o", "view.png", "--source", "last.png", "--frame", -1, "--json")
    assert result.code == 0
    assert result.json["frame"] == 5
    assert result.json["psnr_db"] > 15
    assert tatok("view", small, "-o", "plain.png").code == 0
    assert load(Path("plain.png")).shape[1] == 2 * 384 + 3 * 8
