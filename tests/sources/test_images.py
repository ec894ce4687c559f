"""Pictures and folders of pictures."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.cli_runs import psnr
from helpers.heif import heif
from helpers.pictures import picture, save

from tatok_edge.errors import SourceError
from tatok_edge.sources import images
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.sources.open import open_source


def test_picture_is_rgb(tmp_path: Path) -> None:
    image = picture(1)
    with open_source(save(tmp_path / "a.png", image)) as source:
        frames = list(source)
    assert (source.frames, source.width, source.height, source.fps) == (1, 48, 40, None)
    np.testing.assert_array_equal(frames[0].image, image)


def test_grey_alpha_and_16_bit_pictures_become_rgb(tmp_path: Path) -> None:
    grey = np.full((40, 48), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([grey, grey, grey, grey]))
    cv2.imwrite(str(tmp_path / "deep.png"), grey.astype(np.uint16) * 256)
    for name in ("grey", "alpha", "deep"):
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), np.full((40, 48, 3), 7, np.uint8))


@pytest.mark.parametrize("kind", ["P2", "P3", "P5", "P6", "P7"])
@pytest.mark.parametrize("largest", [100, 255, 1023, 4095, 65535])
def test_portable_pictures_are_scaled_by_their_largest_value(tmp_path: Path, kind: str, largest: int) -> None:
    image = picture(1) if kind in ("P3", "P6", "P7") else picture(1)[:, :, 1:2]
    values = np.rint(image * (largest / 255)).astype(">u2" if largest > 255 else "u1")
    head = f"{kind}\n# of a camera\n48 40\n{largest}\n"
    if kind == "P7":
        head = f"P7\nWIDTH 48\nHEIGHT 40\nDEPTH 3\nMAXVAL {largest}\nTUPLTYPE RGB\nENDHDR\n"
    data = values.tobytes() if kind in ("P5", "P6", "P7") else " ".join(map(str, values.reshape(-1))).encode()
    path = tmp_path / "a.pnm"
    path.write_bytes(head.encode() + data)
    assert np.abs(read_image(path).astype(int) - image).max() <= max(255 / largest, 1)
    path.write_bytes(head.encode() + data[:-500])
    with pytest.raises(SourceError, match="cut off"):
        read_image(path)


def test_videos_among_pictures_and_animations_are_said(tmp_path: Path) -> None:
    save(tmp_path / "1.png", picture(1))
    writer = cv2.VideoWriter(str(tmp_path / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    writer.write(picture(2, 64, 48))
    writer.release()
    (tmp_path / "clip.mp4").rename(tmp_path / "2.JPG")
    with open_source(tmp_path) as source:
        assert len(list(source)) == 1
    assert source.problem is not None
    assert source.problem.endswith("2.JPG: holds a video, and not a picture; give it an ending of videos, such as .mp4")
    data = (tmp_path / "1.png").read_bytes()
    chunk = struct.pack(">I", 8) + b"acTL" + struct.pack(">II", 2, 0)
    (tmp_path / "1.png").write_bytes(data[:33] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + data[33:])
    with open_source(tmp_path / "1.png") as source:
        assert len(list(source)) == 1
    assert source.notes == [f"{tmp_path / '1.png'}: an animation, of which the first picture is taken; make it a video"]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tiff"])
def test_picture_that_is_cut_off(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a{suffix}", picture(1, 128, 96))
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.97):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(SourceError, match=r"cut off|damaged|cannot be decoded"):
            read_image(path)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"hello", "not a picture"),
        ("text.mp4", b"hello", "not a video or picture"),
        ("frame0001.txt", b"hello", "not a video or picture"),
        ("tokens.ttk", b"hello", "tatok decode"),
    ],
)
def test_file_that_is_something_else(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(SourceError, match=says):
        open_source(tmp_path / name)


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_pictures_of_phones(tmp_path: Path, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.cv2, "imdecode", lambda *_: None)  # an OpenCV without AVIF; none has HEIC
    image = picture(1, 96, 64)
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(heif([image], codec))
    assert psnr(read_image(path), image) > 24  # half of its lines of colour are not stored
    with open_source(path) as source:
        assert (source.width, source.height, source.frames) == (96, 64, 1)
    name = {"hevc": "HEIC", "av1": "AVIF"}[codec]
    path.write_bytes(heif([image, image], codec))
    with pytest.raises(SourceError, match=rf"a picture in {name} that is put together of tiles.*convert it to PNG"):
        read_image(path)
    path.write_bytes(heif([image], codec)[:-300])
    with pytest.raises(SourceError, match=rf"a picture in {name} that cannot be decoded here \(.*convert it to PNG"):
        read_image(path)


def test_picture_that_is_too_small(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "tiny.png"), np.zeros((16, 40, 3), np.uint8))
    with pytest.raises(SourceError, match="is 40x16; width and height must be from 32 to 16384"):
        open_source(tmp_path / "tiny.png")


def test_folder_is_in_natural_order_with_its_own_sizes(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        save(tmp_path / f"f{number}.png", picture(number, 40 + number, 36))
    (tmp_path / "notes.txt").write_text("no picture")
    assert [path.name for path in list_images(tmp_path)] == ["f1.png", "f2.png", "f10.png"]
    with open_source(tmp_path) as source:
        frames = list(source)
    assert [frame.image.shape[1] for frame in frames] == [41, 42, 50]
    assert source.frames == 3
    assert source.problem is None


def test_folder_leaves_out_what_cannot_be_read_and_says_so(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number))
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:200])
    with open_source(tmp_path) as source:
        assert [frame.index for frame in source] == [0, 2]
    assert source.problem == f"left out 1 of 3 pictures; the first: {tmp_path / '1.png'}: a PNG that is cut off"


def test_folder_without_a_usable_picture(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        open_source(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(SourceError, match=r"none of its 1 pictures can be read; the first: .*a\.png: is empty"):
        open_source(tmp_path)


def test_folder_with_a_frame_rate_has_times(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", picture(number))
    with open_source(tmp_path, fps=4) as source:
        assert [frame.timestamp_us for frame in source] == [0, 250_000, 500_000]
    assert source.fps == 4
