"""Camera messages to pictures and packets, and back."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.bags import COMPRESSED, IMAGE, TYPES, Array, compressed_message, header, raw_message
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from tatok_edge.errors import FormatError, InputError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.robotics.images import image_from_message, image_to_message, ros_array, token_encoding
from tatok_edge.robotics.topics import ImageEncoder, TokenDecoder, TokenFormat, packet_to_message

ENCODINGS = {"rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1}
"""Encodings of single bytes that are taken without a conversion, with their bytes per pixel."""


@st.composite
def images_in_messages(draw: st.DrawFn) -> tuple[SimpleNamespace, Array]:
    """A raw image message, and the picture that its fields describe, computed pixel by pixel."""
    encoding = draw(st.sampled_from(sorted(ENCODINGS)))
    channels = ENCODINGS[encoding]
    width, height = draw(st.integers(32, 40)), draw(st.integers(32, 40))
    step = width * channels + draw(st.integers(0, 9))
    seed = draw(st.integers(0, 2**32 - 1))
    data = np.random.default_rng(seed).integers(0, 256, step * height + draw(st.integers(0, 5)), np.uint8)
    order = {"rgb8": (0, 1, 2), "rgba8": (0, 1, 2), "bgr8": (2, 1, 0), "bgra8": (2, 1, 0), "mono8": (0, 0, 0)}[encoding]
    picture = np.zeros((height, width, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            picture[row, column] = [data[row * step + column * channels + place] for place in order]
    wrap: Callable[[Array], Any] = draw(
        st.sampled_from([lambda a: a, lambda a: a.tobytes(), ros_array, lambda a: memoryview(a.tobytes())])
    )
    message = SimpleNamespace(
        encoding=encoding,
        width=width,
        height=height,
        step=step,
        is_bigendian=draw(st.integers(0, 1)),
        data=wrap(data),
    )
    return message, picture


@given(images_in_messages())
def test_image_from_message_equals_the_reference(pair: tuple[SimpleNamespace, Array]) -> None:
    message, picture = pair
    assert np.array_equal(image_from_message(message), picture)


def test_raw_images_are_views(clip: list[Array]) -> None:
    for encoding in ENCODINGS:
        message = raw_message(clip[0], encoding, padding=5)
        assert np.shares_memory(image_from_message(message), message.data)


def test_every_layout_gives_the_same_tokens(tokenizer: Tokenizer, clip: list[Array]) -> None:
    packets = {
        encoding: ImageEncoder(tokenizer, stream="00000000").encode(raw_message(clip[0], encoding, padding=padding))
        for encoding, padding in (("rgb8", 0), ("bgr8", 1), ("rgba8", 2), ("bgra8", 3))
    }
    assert len({packet.packet for packet in packets.values() if packet is not None}) == 1


@given(
    encoding=st.sampled_from(sorted(ENCODINGS)),
    width=st.integers(0, 2**32 - 1),
    height=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 1),
    size=st.integers(0, 4096),
)
def test_hostile_fields_are_refused(encoding: str, width: int, height: int, step: int, size: int) -> None:
    message = SimpleNamespace(encoding=encoding, width=width, height=height, step=step, data=bytes(size))
    try:
        image = image_from_message(message)
    except (InputError, FormatError):
        return
    assert image.shape == (height, width, 3)
    assert step * (height - 1) + width * ENCODINGS[encoding] <= size


def test_compressed_images(clip: list[Array]) -> None:
    png = compressed_message(clip[0], ".png", name="rgb8; png compressed bgr8")
    assert np.array_equal(image_from_message(png), clip[0])
    assert psnr(image_from_message(compressed_message(clip[0])), clip[0]) > 30
    grey = TYPES[COMPRESSED](
        header=header(), format="mono8; jpeg compressed ", data=cv2.imencode(".jpg", clip[0][:, :, 0])[1].reshape(-1)
    )
    assert image_from_message(grey).shape == clip[0].shape
    assert token_encoding(grey) == "rgb8"


def test_bad_compressed_images(clip: list[Array]) -> None:
    def refused(name: str, data: bytes, kind: type[Exception], text: str) -> None:
        message = TYPES[COMPRESSED](header=header(), format=name, data=np.frombuffer(data, np.uint8))
        with pytest.raises(kind, match=text):
            image_from_message(message)

    jpeg = cv2.imencode(".jpg", clip[0])[1].tobytes()
    png = cv2.imencode(".png", clip[0])[1].tobytes()
    depth = cv2.imencode(".png", clip[0][:, :, 0].astype(np.uint16))[1].tobytes()
    refused("jpeg", b"", InputError, "not supported")
    refused("jpeg", jpeg[: len(jpeg) // 2], FormatError, "cut off")
    refused("jpeg", jpeg[:12], FormatError, "damaged")
    refused("png", png[: len(png) // 2], FormatError, "damaged|decoded")
    refused("png", png[:20], FormatError, "damaged")
    refused("16UC1; compressedDepth png", bytes(12) + depth, InputError, "not supported")
    refused("h264", b"\x00\x00\x00\x01", InputError, "h264")
    refused("tatok; bundle=0", b"", InputError, "tokens already")
    # Two bytes of size say more pixels than there is memory for: refused before anything is decoded.
    at = jpeg.index(b"\xff\xc0") + 5
    refused("jpeg", jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :], InputError, "65535x65535")
    refused("png", png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:], InputError, "2147483647")


@given(st.text(max_size=300))
def test_format_strings(text: str) -> None:
    with pytest.raises(FormatError):
        TokenFormat.parse(text)
    name = TokenFormat("0123456789abcdef", "bgr8", "deadbeef")
    assert TokenFormat.parse(str(name)) == name
    assert TokenFormat.parse(f"{name}; more=1") == name  # later versions may add to it


@pytest.mark.parametrize("store", [Stores.ROS2_HUMBLE, Stores.ROS2_JAZZY])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
def test_messages_survive_cdr(tokenizer: Tokenizer, clip: list[Array], store: Stores, encoding: str) -> None:
    """What our functions make, real serializers take, of both distributions."""
    typestore = get_typestore(store)
    packet = ImageEncoder(tokenizer).encode(raw_message(clip[0], encoding))
    assert packet is not None
    message = packet_to_message(
        typestore.types[COMPRESSED], header(), packet, buffer=lambda data: np.frombuffer(data, np.uint8)
    )
    back: Any = typestore.deserialize_cdr(typestore.serialize_cdr(message, COMPRESSED), COMPRESSED)
    decoded, found = TokenDecoder(tokenizer).decode(back)
    assert found == encoding
    assert decoded.image is not None
    image = image_to_message(typestore.types[IMAGE], header(), decoded.image, encoding, buffer=lambda data: data)
    again: Any = typestore.deserialize_cdr(typestore.serialize_cdr(image, IMAGE), IMAGE)
    if encoding != "mono8":
        assert np.array_equal(image_from_message(again), decoded.image)
    assert (again.encoding, again.header.frame_id) == (encoding, "camera")
