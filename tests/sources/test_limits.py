"""Files that would take more memory than they may: refused by the size that they state, before anything is decoded."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from tatok_edge import InputError, Limits, SourceError, open_source
from tatok_edge.pictures.stated import stated_size
from tatok_edge.sources.images import read_image
from tatok_edge.sources.synthetic import Scene, render


def peak_memory(path: Path) -> int:
    """Most memory of a process that opens a picture, in MB."""
    code = """
import resource, sys
from tatok_edge import SourceError, open_source
try:
    open_source(sys.argv[1])
except SourceError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    return int(done.stdout)


def png(width: int, height: int, rows: bytes) -> bytes:
    """A PNG of that size, with these compressed rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".jp2", ".ppm", ".pgm", ".avif"])
def test_the_stated_size_is_that_of_the_picture(suffix: str, tmp_path: Path) -> None:
    image = render(Scene(width=96, height=64), 0)
    if suffix == ".pgm":
        image = image[:, :, 0]
    try:
        encoded, data = cv2.imencode(suffix, image)
    except cv2.error:
        pytest.skip(f"this OpenCV does not write {suffix}")
    assert encoded and stated_size(data.tobytes()) == (96, 64)
    path = tmp_path / f"picture{suffix}"
    path.write_bytes(data.tobytes())
    assert read_image(path).shape == (64, 96, 3)
    with pytest.raises(
        SourceError, match=r"is 96x64: 6144 pixels, and the limit max_pixels is 6143; .*--max-pixels 6144"
    ):
        read_image(path, Limits(max_pixels=6143))
    for length in range(0, 40, 3):
        assert stated_size(data.tobytes()[:length]) in (None, (96, 64))


def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(3 * 8000 + 1)) for _ in range(8000)) + packer.flush()
    path = tmp_path / "bomb.png"
    path.write_bytes(png(8000, 8000, rows))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(SourceError, match="8000x8000: 64000000 pixels"):
        open_source(path)
    (tmp_path / "small.png").write_bytes(png(64, 64, zlib.compress(bytes(64 * 193))))
    usual, bomb = (peak_memory(tmp_path / name) for name in ("small.png", "bomb.png"))
    assert bomb < usual + 50


def test_a_large_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.y4m"
    path.write_bytes(b"YUV4MPEG2 W8192 H8192 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(1000))
    with pytest.raises(SourceError):
        open_source(path)
    path.write_bytes(b"YUV4MPEG2 W64 H64 F25:1 Ip A1:1 C420jpeg\n" + b"FRAME\n" + bytes(64 * 96))
    with open_source(path) as source:
        assert source.width == 64
    with pytest.raises(SourceError, match=r"limit max_pixels, 4000: .*--max-pixels"):
        open_source(path, limits=Limits(max_pixels=4000))


def test_files_that_are_too_large_and_pipes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(64, 64, zlib.compress(np.zeros((64, 193), np.uint8).tobytes())))
    assert read_image(path).shape == (64, 64, 3)
    with pytest.raises(SourceError, match=r"limit max_file is 50.*Limits\(max_file="):
        read_image(path, Limits(max_file=50))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(SourceError, match="is a pipe, not a file"):
        read_image(tmp_path / "pipe.png")
    with open_source(tmp_path) as source:  # the pipe is no picture of the folder
        assert source.frames == 1 and "pipe.png" in source.notes[0]


def test_limits_are_whole_numbers() -> None:
    for wrong in (0, -1, 1.5, True, "9"):
        with pytest.raises(InputError, match="max_pixels must be a whole number from 1"):
            Limits(max_pixels=wrong)  # type: ignore[arg-type]
