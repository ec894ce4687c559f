"""Key packets: packing, unpacking, damage; the bytes are those of docs/format.md."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from helpers import coder_reference as plain
from helpers.example_frames import (
    LEVELS,
    TAG,
    StaticModel,
    UniformModel,
    int32,
    make_frame,
)
from helpers.packets import (
    MODEL,
    OTHER_TAG,
    as_dict,
    make_delta_packet,
    make_packet,
    models_of,
    with_crc,
)
from hypothesis import example, given
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.header import MAX_HEADER, PacketInfo, packet_size, peek, verify
from tatok_edge.format.packet import pack, unpack
from tatok_edge.format.positions import encode_map, encode_number
from tatok_edge.format.varint import read_varint, varint
from tatok_edge.geometry import patch_grid
from tatok_edge.limits import Limits
from tatok_edge.runtime.cpu.coder import RangeEncoder
from tatok_edge.tokens.frame import TokenFrame

# --- packets: what users do ---------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 1, 5, 60, 192, 383, 384])
@pytest.mark.parametrize("embed_model", [True, False])
def test_a_frame_comes_back(kept: int, embed_model: bool) -> None:
    frame = make_frame(100, 70, kept, index=5, timestamp_us=123_456)
    data = pack(frame, MODEL, embed_model=embed_model)
    for kind in (bytes, bytearray, memoryview):
        assert unpack(kind(data), MODEL) == frame
    info = peek(data)
    assert info == verify(data)
    assert info.model == (TAG if embed_model else None)
    assert (info.kind, info.version, info.size, info.n_tokens) == ("key", 1, len(data), kept)
    assert (info.width, info.height, info.index, info.timestamp_us) == (100, 70, 5, 123_456)
    assert (info.n_patches, info.n_cells) == (192, 12)
    assert (info.reference, info.n_updated, info.n_updated_cells, info.n_refined) == (None, None, None, None)


def test_a_header_is_small() -> None:
    frame = make_frame(640, 480, 1680, index=1000, timestamp_us=33_333_333)
    info = peek(pack(frame, UniformModel(), embed_model=False))
    assert info.header_size + 4 == 20
    assert peek(pack(frame, UniformModel())).header_size + 4 == 28


def test_codes_cost_their_entropy_and_nothing_else() -> None:
    frame = make_frame(640, 480, 9600)
    info = peek(pack(frame, UniformModel()))
    ideal = (9600 + 300) * np.log2(LEVELS).sum() / 8
    assert info.size - info.header_size - 4 == pytest.approx(ideal, rel=0.001)


def test_packets_find_their_ends_in_a_stream() -> None:
    frames = [make_frame(64, 64, 10 * i, index=i) for i in range(4)]
    stream = b"".join(pack(frame, MODEL) for frame in frames)
    found, at = [], 0
    while at < len(stream):
        size = packet_size(stream[at : at + 6])
        assert peek(stream[at : at + MAX_HEADER]).size == size
        found.append(unpack(memoryview(stream)[at : at + size], MODEL))
        at += size
    assert found == frames


def test_the_map_of_few_tokens_takes_few_bits() -> None:
    """Eight tokens among 4800 patches are coded as gaps, many as bitmaps."""
    model = UniformModel(depth=1)
    sizes = [len(pack(make_frame(640, 480, kept, depth=1), model)) - kept * 2 for kept in (0, 8, 2000)]
    assert sizes[1] - sizes[0] < 8 * 12 / 8 + 3
    assert sizes[2] - sizes[0] < 4800 / 8 + 20


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_stacks_of_any_depth_come_back(depth: int) -> None:
    model = StaticModel(depth=depth)
    for kept in (0, 1, 100, 64 * depth):
        frame = make_frame(64, 64, min(kept, 64 * depth), kept, depth=depth)
        assert frame.depth_map().max(initial=0) <= depth
        assert unpack(pack(frame, model), model) == frame


def test_a_frame_that_is_too_deep_is_not_packed() -> None:
    frame = TokenFrame(
        ids=int32([1, 2, 3]), positions=int32([5, 5, 5]), global_ids=int32([0] * 4), width=64, height=64, model=TAG
    )
    with pytest.raises(InputError, match=r"at most 2 times, the depth of the model, got patch 5 3 times"):
        pack(frame, MODEL)
    assert unpack(pack(frame, StaticModel(depth=3)), StaticModel(depth=3)) == frame


def test_frames_larger_than_a_part_of_the_tables_come_back() -> None:
    model = UniformModel()
    frame = make_frame(1600, 1600, 60_000)
    assert frame.n_tokens == 60_000
    assert unpack(pack(frame, model), model) == frame


def test_a_frame_of_another_model_is_not_packed() -> None:
    frame = make_frame(64, 64, 3, tag=OTHER_TAG)
    with pytest.raises(InputError, match=f"made by model {OTHER_TAG.hex()}, cannot pack it with model {TAG.hex()}"):
        pack(frame, MODEL)
    for name in ("ids", "global_ids"):
        values = as_dict(make_frame(64, 64, 3)) | {name: [64_000] * (3 if name == "ids" else 4)}
        arrays = {key: int32(values[key]) for key in ("ids", "positions", "global_ids")}
        with pytest.raises(InputError, match=r"frame does not fit model 0123456789abcdef: .*64000"):
            pack(TokenFrame(**arrays, width=64, height=64, model=TAG), MODEL)


# --- packets: properties ------------------------------------------------------------------------


@st.composite
def any_frame(draw: st.DrawFn) -> tuple[TokenFrame, StaticModel]:
    width, height, depth = draw(st.integers(32, 140)), draw(st.integers(32, 140)), draw(st.integers(1, 4))
    rows, columns = patch_grid(width, height)
    most = rows * columns * depth
    kept = draw(st.one_of(st.integers(0, 6), st.integers(0, rows * columns), st.integers(0, most)))
    index = draw(st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1)))
    time = draw(st.integers(-(2**63), 2**63 - 1))
    seed = draw(st.integers(0, 999))
    frame = make_frame(width, height, min(kept, most), seed, index=index, timestamp_us=time, depth=depth)
    return frame, StaticModel(depth=depth)


@given(any_frame())
def test_packets_equal_those_of_the_reference(case: tuple[TokenFrame, StaticModel]) -> None:
    frame, model = case
    data = pack(frame, model)
    assert peek(data).header_size <= MAX_HEADER
    assert data == plain.pack(as_dict(frame), models_of(model), tag=TAG, gaps=None)[0]
    assert plain.unpack(data, models_of(model)) == as_dict(frame)
    for gaps in (False, True):  # both codings of maps are read, whichever a writer chose
        packet = plain.pack(as_dict(frame), models_of(model), tag=TAG, gaps=gaps)[0]
        assert unpack(packet, model) == frame


@given(st.integers(0, 2**64 - 1))
@example(0)
@example(127)
@example(128)
def test_varints_come_back(value: int) -> None:
    data = varint(value)
    assert data == plain.varint(value)
    assert read_varint(b"x" + data + b"y", 1, "it", 2**64 - 1) == (value, 1 + len(data))


# --- packets: attacks ---------------------------------------------------------------------------


def test_a_packet_that_is_cut_off_anywhere_is_told() -> None:
    data = pack(make_frame(64, 64, 20), MODEL)
    for end in range(len(data)):
        for call in (lambda d: unpack(d, MODEL), verify):
            with pytest.raises(FormatError, match=r"cut off|empty"):
                call(data[:end])


def test_every_flipped_bit_is_told() -> None:
    data = pack(make_frame(64, 64, 20), MODEL)
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError) as caught:
            unpack(flipped, MODEL)
        assert "\n" not in str(caught.value)


@given(st.data())
def test_damage_that_the_crc_does_not_see_gives_a_frame_or_an_error(draw: st.DataObject) -> None:
    data = bytearray(pack(make_frame(64, 64, draw.draw(st.integers(0, 64))), MODEL))
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(3, len(data) - 5))] = draw.draw(st.integers(0, 255))
    packet = with_crc(bytes(data))
    try:
        frame = unpack(packet, MODEL)
    except FormatError:
        return
    assert isinstance(frame, TokenFrame)


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=80).map(lambda tail: b"\xa9\x12" + tail)))
def test_any_bytes_are_told(data: bytes) -> None:
    for call in (lambda d: unpack(d, MODEL), verify):
        with pytest.raises(FormatError):
            call(data)
    try:
        info = peek(data)
    except FormatError:
        return
    assert isinstance(info, PacketInfo)


@pytest.mark.parametrize(
    ("packet", "message"),
    [
        (b"PNG" * 9, "no packet begins here: the first byte must be 0xa9, got 0x50"),
        (make_packet(0, 0, 64, 64, 0, version=2), "format version 2, this release reads up to 1; update tatok-edge"),
        (make_packet(0, 0, 64, 64, 0, version=0), "its format version is 0"),
        (make_packet(0, 0, 31, 64, 0), "width must be from 32 to 16384, got 31"),
        (make_packet(0, 0, 16385, 64, 0), "width must be from 32 to 16384, got 16385"),
        (make_packet(0, 0, 64, 1 << 60, 0), "height must be from 32 to 16384, got 1152921504606846976"),
        (make_packet(0, 0, 64, 64, 513), "number of tokens must be from 0 to 512, got 513"),
        (make_packet(0, 0, 64, 64, 129), "number of tokens must be from 0 to 128, 2 for each of 64 patches, got 129"),
        (make_packet(1 << 63, 0, 64, 64, 0), "index must be from 0 to 9223372036854775807"),
        (make_packet(0, 1 << 64, 64, 64, 0), "timestamp must be from 0 to 18446744073709551615"),
        (make_packet(0, 0, 64, 64, 0, flags=8), "its flags give motion to a key packet"),
        (make_packet(0, 0, 64, 64, 0, length=1 << 40), "packet length must be from 0 to 67108864"),
        (
            make_packet(0, 0, 64, 64, 0, length=(64 << 20) - 2),
            "a packet must have 12 to 67108864 bytes, its header says",
        ),
        (make_packet(0, length=4), "a packet must have 12 to 67108864 bytes, its header says 7"),
        (bytes([0xA9, 0x10]) + b"\xff" * 30, "packet length is damaged: an integer of more than 10 bytes"),
        (
            bytes([0xA9, 0x10, 0x90, 0x00]) + b"\0" * 30,
            "packet length is damaged: an integer in more bytes than it needs",
        ),
        (make_packet(0, 0, 64, 64, 10), "the entropy-coded body is cut off"),
        (make_packet(0, 0, 64, 64, 0, body=b"\0" * 100), "does not end where its content does"),
        (make_packet(0, 0, 64, 64, flags=2, body=b"abc"), "packet is cut off in its header|header takes"),
        (pack(make_frame(64, 64, 3), MODEL) + b"\0", "packet has .* bytes, .* came; pass one packet at a time"),
        (
            pack(make_frame(64, 64, 3, tag=OTHER_TAG), StaticModel(OTHER_TAG)),
            f"by model {OTHER_TAG.hex()}, not by model",
        ),
    ],
)
def test_bad_packets_are_told(packet: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        unpack(packet, MODEL)
    assert "\n" not in str(caught.value)


def test_a_model_tag_reaching_into_the_crc_is_told() -> None:
    messages = set()
    for index in range(100):
        with pytest.raises(FormatError) as caught:
            unpack(make_packet(index, 0, 64, 64, flags=2, body=b"abcdef"), MODEL)
        messages.add(str(caught.value))
    assert any(re.search("packet is damaged: its header takes 1[67] bytes of 17", message) for message in messages)


def test_a_delta_packet_says_what_it_needs() -> None:
    packet = make_delta_packet(3, 40, 12, 2, 4, body=b"body")
    info = verify(packet)
    assert (info.kind, info.index, info.reference) == ("delta", 9, 6)
    assert (info.n_updated, info.n_refined, info.n_updated_cells, info.n_tokens) == (40, 4, 2, 12)
    assert info.follows == 0x04030201
    with pytest.raises(FormatError, match=r"frame 9 is a delta packet: it updates frame 6 .* needs a stream decoder"):
        unpack(packet, MODEL)
    for fields, message in [
        ((0, 40, 12, 2), "distance to the reference frame must be from 1 to 9, got 0"),
        ((10, 40, 12, 2), "distance to the reference frame must be from 1 to 9, got 10"),
        ((3, 65, 12, 2), "number of updated patches must be from 0 to 64, got 65"),
        ((3, 40, 12, 5), "number of updated cells must be from 0 to 4, got 5"),
        ((3, 40, 321, 2), "number of tokens must be from 0 to 320, got 321"),
        ((3, 40, 50, 2, 41), "number of refined patches must be from 1 to 40, got 41"),
        ((3, 40, 3, 2, 4), "number of tokens must be from 4 to 320, got 3"),
    ]:
        with pytest.raises(FormatError, match=message):
            peek(make_delta_packet(*fields, body=b"body"))
    with pytest.raises(FormatError, match="distance to the reference frame must be from 1 to 0, got 1"):
        peek(make_delta_packet(1, 40, 12, 2, index=0))


def coded(write: Callable[[RangeEncoder], None], model: StaticModel, cells: int = 4) -> bytes:
    """A body with global codes of zeros, then what ``write`` codes."""
    encoder = RangeEncoder()
    model.encode_globals(encoder, np.zeros((cells, 6), np.int32), np.arange(cells, dtype=np.int32), (2, cells // 2))
    write(encoder)
    return encoder.finish()


def test_a_depth_map_that_does_not_agree_with_the_number_of_tokens_is_told() -> None:
    """No data gives a stack above the depth of the model, or a second token without a first."""

    def first_map(count: int) -> Callable[[RangeEncoder], None]:
        def write(encoder: RangeEncoder) -> None:
            encode_number(encoder, count, 5)  # at least 5 of 10 tokens are first ones
            chosen = np.zeros((8, 8), np.uint8)
            chosen[0, :6] = 1
            encode_map(encoder, int32(range(6)), chosen)
            encode_number(encoder, 0, 3)

        return write

    for write, message in (
        (first_map(6), "a count of tokens is 6, at most 5 can be"),
        (first_map(1), "cut off"),
    ):
        packet = make_packet(0, 0, 64, 64, 10, body=coded(write, MODEL))
        with pytest.raises(FormatError, match=message):
            unpack(packet, MODEL)


@given(st.integers(1, 4), st.integers(0, 300), st.binary(max_size=60), st.sampled_from([0, 4]))
def test_any_depth_map_gives_a_frame_or_an_error(depth: int, tokens: int, body: bytes, flags: int) -> None:
    model = StaticModel(depth=depth)
    try:
        frame = unpack(make_packet(0, 0, 64, 64, tokens, flags=flags, body=body), model)
    except FormatError:
        return
    assert frame.n_tokens == tokens
    assert frame.depth_map().max(initial=0) <= depth


def test_an_absurd_packet_costs_bounded_memory() -> None:
    patches = 1024 * 1024
    model = UniformModel()
    for packet in (
        make_packet(0, 0, 8192, 8192, patches, body=b"\x12\x34" * 10),
        make_packet(0, 0, 8192, 8192, 2 * patches, body=b"\x12\x34" * 10),
        make_packet(0, 0, 8192, 8192, patches // 2, body=b"\x12\x34" * 10, flags=4),
        make_packet(0, 0, 8192, 8192, patches // 64, body=b""),
    ):
        tracemalloc.start()
        with pytest.raises(FormatError, match=r"cut off|damaged"):
            unpack(packet, model, limits=Limits(max_pixels=8192 * 8192))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 130 * patches  # bytes per patch: see docs/format.md


def test_tokens_that_cost_nothing_still_cost_bounded_memory() -> None:
    """Everything certain: an empty body is a whole 8192x8192 frame."""

    class Certain(UniformModel):
        def __init__(self) -> None:
            super().__init__()
            self.token[:] = 0
            self.token[:, 0] = 4096

    patches = 1024 * 1024
    packet = make_packet(0, 0, 8192, 8192, patches * 2)
    tracemalloc.start()
    frame = unpack(packet, Certain(), limits=Limits(max_pixels=8192 * 8192))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert frame.n_tokens == 2 * patches
    assert peak < 130 * patches  # bytes per patch: see docs/format.md


def test_what_is_no_buffer_is_told() -> None:
    with pytest.raises(InputError, match="a packet must be contiguous bytes, got str"):
        unpack("packet", MODEL)  # type: ignore[arg-type]
