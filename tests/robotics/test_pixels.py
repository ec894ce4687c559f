"""Pixel formats of real cameras."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from helpers.bags import COMPRESSED, IMAGE, TYPES, Array, header
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, InputError
from tatok_edge.pictures.jpeg import jpeg_end, jpeg_size
from tatok_edge.robotics.images import image_from_message, token_encoding
from tatok_edge.robotics.pixels import BAYER, depth_to_grey, grey_to_depth

HEIGHT, WIDTH = 64, 96


def picture() -> Array:
    """Smooth, so that halved chroma and interpolated colours come near it."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([40 + x, 60 + 2 * y, 200 - x], axis=-1).astype(np.uint8)


def message(values: np.ndarray[Any, Any], encoding: str, *, padding: int = 0, big: bool = False) -> Any:
    """A raw message of ``(rows, row)`` values, with bytes after each row."""
    values = values.astype(values.dtype.newbyteorder(">" if big else "<"))
    rows = np.frombuffer(values.tobytes(), np.uint8).reshape(values.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=0xEE)
    return TYPES[IMAGE](
        header=header(),
        height=HEIGHT,
        width=WIDTH,
        encoding=encoding,
        is_bigendian=int(big),
        step=rows.shape[1],
        data=rows.reshape(-1),
    )


def mosaic(image: Array, order: str) -> Array:
    """The values that a sensor with a colour filter of this order sees."""
    out = np.empty((HEIGHT, WIDTH), np.uint8)
    for place, colour in enumerate(order):
        row, column = divmod(place, 2)
        out[row::2, column::2] = image[row::2, column::2, "rgb".index(colour)]
    return out


def luma(image: Array) -> Array:
    """Brightness and halved chroma of BT.601, as ``(H, W, 3)`` of Y, U and V."""
    yuv = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
    y = yuv[:HEIGHT]
    u, v = yuv[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2)
    full = [cv2.resize(part, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR) for part in (u, v)]
    return np.dstack([y, *full])


def yuv422(image: Array, order: str) -> Array:
    yuv = luma(image)
    parts = {"u": yuv[:, ::2, 1], "v": yuv[:, ::2, 2]}
    luminance = iter((yuv[:, ::2, 0], yuv[:, 1::2, 0]))
    return np.stack([next(luminance) if name == "y" else parts[name] for name in order], -1).reshape(HEIGHT, -1)


def nv(image: Array, order: str) -> Array:
    yuv = cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420)
    chroma = dict(zip("uv", yuv[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2), strict=True))
    return np.concatenate([yuv[:HEIGHT], np.stack([chroma[name] for name in order], -1).reshape(HEIGHT // 2, WIDTH)])


def near(found: Array, expected: Array, limit: float) -> None:
    assert found.shape == expected.shape
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)[4:-4, 4:-4]
    assert difference.max() <= limit, difference.max()


@pytest.mark.parametrize("padding", [0, 10])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("order", list(BAYER))
def test_bayer(order: str, bits: int, padding: int) -> None:
    values = mosaic(picture(), order)
    deep = values if bits == 8 else values.astype(np.uint16) << (bits - 8)
    for big in (False, True):
        sent = message(deep, f"bayer_{order}{bits}", padding=padding, big=big)
        near(image_from_message(sent), picture(), 4)
    assert token_encoding(sent) == "rgb8"


@pytest.mark.parametrize(
    ("encoding", "order"),
    [("yuv422", "uyvy"), ("UYVY", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv"), ("yvyu", "yvyu")],
)
def test_yuv_422(encoding: str, order: str) -> None:
    near(image_from_message(message(yuv422(picture(), order), encoding, padding=6)), picture(), 6)


@pytest.mark.parametrize(("encoding", "order"), [("nv12", "uv"), ("nv21", "vu"), ("NV12", "uv")])
def test_yuv_420(encoding: str, order: str) -> None:
    for padding in (0, 32):
        near(image_from_message(message(nv(picture(), order), encoding, padding=padding)), picture(), 6)
    short = message(nv(picture(), order), encoding)
    short.data = short.data[: HEIGHT * WIDTH]
    with pytest.raises(FormatError, match="does not fit"):
        image_from_message(short)


@pytest.mark.parametrize(
    ("encoding", "channels", "decoded"),
    [
        ("mono16", [1], "mono8"),
        ("rgb16", [0, 1, 2], "rgb8"),
        ("bgr16", [2, 1, 0], "bgr8"),
        ("rgba16", [0, 1, 2, 0], "rgb8"),
    ],
)
@pytest.mark.parametrize("big", [False, True])
def test_16_bits_keep_the_upper_8(encoding: str, channels: list[int], decoded: str, big: bool) -> None:
    deep = (picture()[:, :, channels].astype(np.uint16) << 8 | 0x7B).reshape(HEIGHT, -1)
    sent = message(deep, encoding, padding=2, big=big)
    expected = picture() if len(channels) > 1 else np.repeat(picture()[:, :, 1:2], 3, axis=2)
    np.testing.assert_array_equal(image_from_message(sent), expected)
    assert token_encoding(sent) == decoded


@pytest.mark.parametrize(
    ("encoding", "channels", "decoded"),
    [("8UC1", [1], "mono8"), ("8UC3", [2, 1, 0], "bgr8"), ("8UC4", [2, 1, 0, 0], "bgr8")],
)
def test_arrays_of_opencv(encoding: str, channels: list[int], decoded: str) -> None:
    sent = message(picture()[:, :, channels].reshape(HEIGHT, -1), encoding, padding=3)
    expected = picture() if len(channels) > 1 else np.repeat(picture()[:, :, 1:2], 3, axis=2)
    np.testing.assert_array_equal(image_from_message(sent), expected)
    assert token_encoding(sent) == decoded


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("16UC1", "depth_to_grey"), ("32FC1", "depth_to_grey"), ("bayer_rggb12p", "debayer"), ("yuv444", "rgb8 first")],
)
def test_formats_that_are_refused_say_what_to_do(encoding: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        image_from_message(message(np.zeros((HEIGHT, WIDTH), np.uint16), encoding))


def test_sizes_that_do_not_fit_the_format() -> None:
    sent = message(yuv422(picture(), "uyvy"), "uyvy")
    sent.width -= 1
    with pytest.raises(InputError, match="even"):
        image_from_message(sent)


# --- JPEG -------------------------------------------------------------------------------------------


def compressed(data: bytes, name: str = "jpeg") -> Any:
    return TYPES[COMPRESSED](header=header(), format=name, data=np.frombuffer(data, np.uint8))


def jpeg(*options: int) -> bytes:
    return cv2.imencode(".jpg", picture()[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *options])[1].tobytes()


def without_tables(data: bytes) -> bytes:
    """A frame of Motion JPEG, as USB cameras send it: the usual Huffman tables are left out."""
    out, at = data[:2], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        out += b"" if data[at + 1] == 0xC4 else data[at : at + length]
        at += length
    return out + data[at:]


def with_thumbnail(data: bytes) -> bytes:
    small = cv2.imencode(".jpg", picture()[:32, :32])[1].tobytes()
    segment = b"Exif\0\0" + small
    return data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:]


JPEGS = {
    "plain": jpeg(),
    "progressive": jpeg(cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restarts": jpeg(cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "no tables": without_tables(jpeg()),
    "thumbnail": with_thumbnail(jpeg()),
}


@pytest.mark.parametrize("name", list(JPEGS))
@pytest.mark.parametrize("after", [b"", b"\0" * 7000, b"\xff" * 900, b"\xff\xd8" + bytes(3000), b"junk" * 500])
def test_jpeg_with_bytes_behind_it(name: str, after: bytes) -> None:
    near(image_from_message(compressed(JPEGS[name] + after)), picture(), 12)


@pytest.mark.parametrize("name", list(JPEGS))
@given(share=st.floats(0.02, 0.99), padding=st.integers(0, 4000))
def test_jpeg_that_is_cut_off(name: str, share: float, padding: int) -> None:
    data = JPEGS[name]
    with pytest.raises(FormatError):
        image_from_message(compressed(data[: int(len(data) * share)] + bytes(padding)))


@given(st.binary(max_size=200))
def test_any_bytes_have_an_end_or_none(data: bytes) -> None:
    for content in (data, b"\xff\xd8\xff" + data):
        end = jpeg_end(content)
        assert end is None or content[end - 2 : end] == b"\xff\xd9"
        jpeg_size(content)


@pytest.mark.parametrize(("name", "ok"), [("mono16; png compressed ", True), ("16UC1; png compressed", False)])
def test_png_of_16_bits_is_a_picture_where_it_says_so(name: str, ok: bool) -> None:
    deep = cv2.imencode(".png", picture()[:, :, 0].astype(np.uint16) << 8)[1].tobytes()
    if ok:
        expected = np.repeat(picture()[:, :, :1], 3, axis=2)
        np.testing.assert_array_equal(image_from_message(compressed(deep, name)), expected)
        return
    with pytest.raises(InputError, match="16 bits"):
        image_from_message(compressed(deep, name))


# --- depth ------------------------------------------------------------------------------------------


@given(st.floats(300, 8000))
def test_depth_comes_back(distance: float) -> None:
    grey = depth_to_grey(np.full((2, 2), distance, np.float32), 300, 8000)
    back = grey_to_depth(grey, 300, 8000)
    step = distance**2 * (1 / 300 - 1 / 8000) / 254  # one grey level, in millimetres
    assert abs(float(back[0, 0]) - distance) <= step


def test_depth_that_is_not_known() -> None:
    depth = np.array([[0, np.nan, np.inf], [100, 500, 90000]], np.float32)
    grey = depth_to_grey(depth, 300, 8000)
    assert grey.shape == (2, 3, 3)
    assert grey[0].max() == 0
    assert (grey[1, 0, 0], grey[1, 2, 0]) == (255, 1)
    assert grey_to_depth(grey, 300, 8000)[0].tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="0 < near < far"):
        depth_to_grey(depth, 0, 10)
    with pytest.raises(InputError, match="shape"):
        depth_to_grey(grey, 1, 10)
