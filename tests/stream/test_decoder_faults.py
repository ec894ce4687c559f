"""A stream decoder among damaged, foreign, restarted and early packets: a refused packet changes nothing."""

import copy
import zlib
from typing import Any

import numpy as np
import pytest
from helpers.streams import same
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge import FormatError, Limits, StreamDecoder, StreamEncoder, TokenFrame, Tokenizer
from tatok_edge.format.header import peek, verify
from tatok_edge.format.varint import read_varint, varint
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.state import StreamState

FRAMES = 12


def sealed(packet: bytes) -> bytes:
    """A packet without its CRC, with a right one."""
    return packet + zlib.crc32(packet).to_bytes(4, "little")


def broken(packet: bytes, at: int, value: int) -> bytes:
    """A packet with a changed byte behind its length, and a right CRC."""
    data = bytearray(packet[:-4])
    first = 4
    data[first + at % (len(data) - first)] ^= value
    return sealed(bytes(data))


def renumbered(packet: bytes, index: int) -> bytes:
    """A packet with another frame number."""
    old = varint(peek(packet).index)
    _, at = read_varint(packet, 2, "length", 1 << 30)
    assert packet[at:].startswith(old)
    rest = varint(index) + packet[at + len(old) : -4]
    return sealed(packet[:2] + varint(len(rest) + 4) + rest)


@pytest.fixture(scope="module")
def streams(tokenizer: Tokenizer) -> dict[str, list[bytes]]:
    """A stream, the same encoder started again, and one of another size with a rolling refresh."""
    scene = [render(Scene(width=96, height=64), 2 * number) for number in range(FRAMES)]
    mine, again = StreamEncoder(tokenizer, keyframe_interval=8), StreamEncoder(tokenizer, keyframe_interval=8)
    small = StreamEncoder(tokenizer, refresh="rolling", keyframe_interval=4)
    return {
        "mine": [mine.encode(image).packet for image in scene],
        "again": [again.encode(np.ascontiguousarray(image[::-1])).packet for image in scene],
        "foreign": [small.encode(np.ascontiguousarray(image[:32, :32])).packet for image in scene],
    }


@pytest.fixture(scope="module")
def states(tokenizer: Tokenizer, streams: dict[str, list[bytes]]) -> dict[tuple[int, int], StreamState]:
    """The states of the encoders after each packet, by number and checksum."""
    found = {}
    for packets in streams.values():
        decoder = StreamDecoder(tokenizer)
        for packet in packets:
            decoder.push(packet)
            assert decoder.state is not None
            found[decoder.state.index, decoder.state.crc] = decoder.state.copy()
    return found


def memory_of(decoder: StreamDecoder) -> dict[str, Any]:
    """Everything that a decoder knows, as a copy."""
    known = {name: value for name, value in vars(decoder).items() if name not in ("tokenizer", "_on_loss", "_limits")}
    return copy.deepcopy(known)


def equal(one: Any, other: Any) -> bool:
    """Whether two values are the same, bit for bit."""
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, StreamState):
        return isinstance(other, StreamState) and same(one, other)
    if hasattr(one, "__dataclass_fields__"):
        return all(equal(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    return bool(one == other)


CHOICES = st.tuples(
    st.sampled_from(["mine", "mine", "mine", "again", "foreign"]),
    st.integers(0, FRAMES - 1),
    st.sampled_from(["whole", "whole", "damaged", "stray", "late"]),
    st.integers(0, 400),
    st.integers(1, 255),
)


@settings(max_examples=20)
@given(script=st.lists(CHOICES, min_size=1, max_size=25))
def test_a_refused_packet_changes_nothing(
    tokenizer: Tokenizer,
    streams: dict[str, list[bytes]],
    states: dict[tuple[int, int], StreamState],
    script: list[tuple[str, int, str, int, int]],
) -> None:
    """Whatever comes: a packet is taken or refused as a whole, and what says complete is what an encoder held."""
    decoder = StreamDecoder(tokenizer)
    forged = False
    for stream, number, how, at, value in script:
        packet = streams[stream][number]
        if how == "damaged":
            packet = broken(packet, at, value)
        elif how == "stray":
            packet = renumbered(packet, (1 << 40) + at)
        elif how == "late":
            packet = packet[:-1] + bytes([packet[-1] ^ value])
        before = memory_of(decoder)
        try:
            problem = decoder.push(packet)
        except FormatError:
            assert equal(memory_of(decoder), before)
            continue
        forged |= how != "whole" and problem is None
        state = decoder.state
        if state is not None and not decoder.needs_keyframe and not forged:
            assert (state.index, state.crc) in states
            assert same(state, states[state.index, state.crc])


def test_an_encoder_that_starts_again_is_followed(
    tokenizer: Tokenizer, streams: dict[str, list[bytes]], states: dict[tuple[int, int], StreamState]
) -> None:
    for length in (1, 3, 9):
        decoder = StreamDecoder(tokenizer)
        for packet in streams["mine"][:length]:
            decoder.push(packet)
        shown = [decoder.decode(packet) for packet in streams["again"][:7]]
        assert all(frame.complete for frame in shown[1:])
        assert decoder.state is not None and decoder.state.index == 6
        assert same(decoder.state, states[decoder.state.index, decoder.state.crc])


def test_strays_do_not_end_the_repair_of_the_order(tokenizer: Tokenizer, streams: dict[str, list[bytes]]) -> None:
    packets = streams["mine"]
    decoder = StreamDecoder(tokenizer)
    decoder.push(packets[0])
    for number in range(40):
        decoder.push(renumbered(packets[1], (1 << 40) + number))
    for number in (1, 3, 4, 2):
        decoder.push(packets[number])
    assert decoder.state is not None and decoder.state.index == 4 and not decoder.needs_keyframe


def test_a_broken_early_packet_does_not_harm_the_one_before(
    tokenizer: Tokenizer, streams: dict[str, list[bytes]]
) -> None:
    packets = streams["mine"]
    for at in range(0, 60, 7):
        decoder = StreamDecoder(tokenizer)
        for packet in packets[:4]:
            decoder.push(packet)
        try:
            decoder.push(broken(packets[5], at + 20, 0x55))
        except FormatError:
            assert not decoder.needs_keyframe
        assert decoder.decode(packets[4]).problem is None


def test_a_tiny_packet_of_a_large_picture_is_refused(tokenizer: Tokenizer, streams: dict[str, list[bytes]]) -> None:
    side = 4096
    frame = TokenFrame(
        ids=np.zeros(0, np.int32),
        positions=np.zeros(0, np.int32),
        global_ids=np.zeros((side // 32) ** 2, np.int32),
        width=side,
        height=side,
        model=tokenizer.tag,
    )
    packet = tokenizer.pack(frame)
    decoder = StreamDecoder(tokenizer)
    decoder.push(streams["mine"][0])
    for refused in (lambda: decoder.decode(packet), lambda: tokenizer.unpack(packet), lambda: tokenizer.decode(frame)):
        with pytest.raises(ValueError, match=r"4096x4096.*max_pixels is 9437184.*Limits\(max_pixels=16777216\)"):
            refused()
    assert decoder.state is not None and decoder.state.width == 96
    assert verify(packet).width == side  # its header can still be read
    small = StreamDecoder(tokenizer, limits=Limits(max_pixels=96 * 63))
    with pytest.raises(FormatError, match="--max-pixels 6144"):
        small.push(streams["mine"][0])
