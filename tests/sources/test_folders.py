"""What is there decides, not what it is called: names that look like something else, and folders of several things."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.pictures import picture, save

from tatok_edge.datasets.clips import find_clips, open_clip
from tatok_edge.errors import SourceError
from tatok_edge.sources.folders import folder_content
from tatok_edge.sources.images import FolderSource, ImageSource, list_images, read_image
from tatok_edge.sources.kinds import kind_of
from tatok_edge.sources.open import open_source
from tatok_edge.sources.video import VideoSource


def video(path: Path, frames: int = 3) -> Path:
    """A video, written under a plain name."""
    plain = path.with_name("plain.avi")
    writer = cv2.VideoWriter(str(plain), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 64))
    for number in range(frames):
        writer.write(np.full((64, 96, 3), 40 * number, np.uint8))
    writer.release()
    return plain.rename(path)


def names(folder: Path) -> list[str]:
    return [clip.name for clip in find_clips([str(folder)])]


@pytest.mark.parametrize(
    "name",
    [
        "00",
        "7",
        "synthetic",
        "csi:0",
        "take#2.avi",
        "2026-11-29T10:00:00.avi",
        "a%03d.avi",
        "rtsp:",
        "gst:videotestsrc",
    ],
)
@pytest.mark.parametrize("relative", [True, False])
def test_a_file_that_exists_comes_first(
    tmp_path: Path, name: str, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video(tmp_path / name)
    with open_source(name if relative else str(tmp_path / name)) as source:
        assert isinstance(source, VideoSource)
        assert len(list(source)) == 3


@pytest.mark.parametrize("name", ["00", "3", "synthetic:frames=2", "shot#1", "pictures.MP4", "bag.mcap.d"])
def test_a_folder_that_exists_comes_first(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    save(tmp_path / name / "1.png", picture(1))
    with open_source(name) as source:
        assert isinstance(source, FolderSource)
    assert [clip.source for clip in find_clips([name])] == [name]


def test_numbers_name_cameras_and_paths_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "97").mkdir()
    with pytest.raises(SourceError, match="97: holds no picture"):
        open_source("97")
    with pytest.raises(SourceError, match="camera 97"):
        open_source(97)


@pytest.mark.parametrize(
    ("suffix", "name"), [(".png", "photo"), (".jpg", "photo.mp4"), (".webp", "frame.0001"), (".tiff", "photo.mcap.old")]
)
def test_content_before_ending(tmp_path: Path, suffix: str, name: str) -> None:
    save(tmp_path / f"a{suffix}", picture(1)).rename(tmp_path / name)
    with open_source(tmp_path / name) as source:
        assert isinstance(source, ImageSource)
    video(tmp_path / "clip.png")
    with open_source(tmp_path / "clip.png") as source:
        assert isinstance(source, VideoSource)


@pytest.mark.parametrize("suffix", [".PNG", ".Jpg", ".JPEG", ".BMP", ".avif"])
def test_endings_in_capitals_and_new_ones(tmp_path: Path, suffix: str) -> None:
    if not cv2.haveImageWriter(f"x{suffix.lower()}"):
        pytest.skip(f"this OpenCV writes no {suffix}")
    save(tmp_path / f"a{suffix.lower()}", picture(1)).rename(tmp_path / f"a{suffix}")
    assert list_images(tmp_path) == [tmp_path / f"a{suffix}"]
    assert read_image(tmp_path / f"a{suffix}").shape == (40, 48, 3)


def test_a_format_that_opencv_does_not_decode_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(500))
    with pytest.raises(SourceError, match=r"a picture in HEIC that cannot be decoded here .* convert it"):
        read_image(tmp_path / "a.heic")


def make(folder: Path, *files: str) -> Path:
    """A folder with these files; names that end in a slash are folders."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        elif path.suffix.lower() in (".png", ".jpg") and not path.name.startswith("."):
            save(path, picture(1))
        elif path.suffix == ".avi":
            video(path)
        else:
            path.write_bytes(b"\0\5\x16\7 something else")
    return folder


def test_hidden_and_system_files_are_passed_over(tmp_path: Path) -> None:
    folder = make(tmp_path, "1.png", "2.png", "._1.png", ".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/._1.png")
    make(tmp_path, ".thumbnails/3.png", "@eaDir/1.png")
    with open_source(folder) as source:
        assert len(list(source)) == 2
        assert (source.problem, source.notes) == (None, [])
    notes: list[str] = []
    assert len(find_clips([str(folder)], notes)) == 1
    assert notes == []


def test_what_lies_beside_pictures_is_said(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", "cover.jpg", "a.avi", "b.avi", "notes.txt", "metadata.yaml", "more/1.png", "run.mcap")
    with open_source(folder) as source:
        assert len(list(source)) == 1
    assert source.problem is None
    (note,) = source.notes
    for part in ("2 videos (a.avi, b.avi)", "1 bag (run.mcap)", "1 folder (more)", "2 other files (metadata.yaml, not"):
        assert part in note


def test_a_folder_of_one_video(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", "a.avi", "notes.txt")
    with open_source(folder) as source:
        assert len(list(source)) == 3
    assert source.notes == [f"{folder}: a.avi is taken, and not 1 other file (notes.txt)"]
    video(folder / "b.avi")
    with pytest.raises(SourceError, match=r"holds 2 videos \(a.avi, b.avi\), 1 other file .*'tatok dataset'"):
        open_source(folder)


def test_every_clip_of_a_mixed_folder(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", "cover.jpg", "2.avi", "10.avi", "left/1.png", "left/2.png", "left/deep/c.avi", "e/")
    make(folder, "notes.txt", "left/labels.csv")
    assert names(folder) == ["x", "x/2.avi", "x/10.avi", "x/left", "x/left/deep/c.avi"]
    notes: list[str] = []
    find_clips([str(folder)], notes)
    assert notes == [
        f"{folder}: 1 other file (notes.txt) left out",
        f"{folder / 'left'}: 1 other file (labels.csv) left out",
    ]
    with open_clip(str(folder), 5.0) as source:
        assert (source.fps, len(list(source))) == (5.0, 1)


def test_links_that_lead_back(tmp_path: Path) -> None:
    folder = make(tmp_path / "x", "a.avi", "deep/b.avi")
    (folder / "deep" / "back").symlink_to(folder)
    (folder / "broken.avi").symlink_to(tmp_path / "nowhere.avi")
    assert names(folder) == ["a.avi", "broken.avi", "deep/b.avi"]


def test_pipes_are_not_looked_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.avi")
    os.mkfifo(tmp_path / "pipe")
    assert kind_of(tmp_path / "pipe.avi") == "video"
    assert folder_content(tmp_path).others == [tmp_path / "pipe", tmp_path / "pipe.avi"]
