"""Stream decoders with the shipped model: lost, late and foreign packets."""

import itertools

import numpy as np
import pytest
from helpers.streams import FailingSession, pan_over_a_scene, same
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge import StreamDecoder, StreamEncoder
from tatok_edge.errors import FormatError
from tatok_edge.format.packet import body_crc, unpack_delta
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.frame import StreamFrame
from tatok_edge.stream.state import StreamState
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame


@pytest.fixture(scope="module")
def scene() -> list[Image]:
    """A small camera clip in which something moves."""
    return [render(Scene(width=160, height=128), number) for number in range(40)]


@pytest.fixture(scope="module")
def packets(tokenizer: Tokenizer, scene: list[Image]) -> list[StreamFrame]:
    """Thirty frames with keyframes at 0 and 20."""
    encoder = StreamEncoder(tokenizer, keyframe_interval=20)
    return [encoder.encode(image) for image in scene[:30]]


def test_a_lost_packet_is_flagged_until_the_keyframe(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    told: list[str] = []
    decoder = StreamDecoder(tokenizer, on_loss=told.append)
    for frame in packets:
        if frame.index == 7:
            continue
        decoded = decoder.decode(frame.packet)
        good = not 7 < frame.index < 20
        assert decoded.complete == good == (not decoder.needs_keyframe)
        assert decoded.image is not None and decoded.stale.all() == (not good)
        assert good or "waiting for a keyframe" in (decoded.problem or "")
    assert len(told) == 1 and "frame 8 updates frame 7, the picture is of frame 6" in told[0]


def test_packets_out_of_order_are_put_in_order(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    decoder, straight = StreamDecoder(tokenizer), StreamDecoder(tokenizer)
    order = [0, 1, 3, 4, 2, 5, 6, 8, 7, 9, 10]
    complete = []
    for number in order:
        complete.append(decoder.decode(packets[number].packet).complete)
    for number in range(11):
        straight.push(packets[number].packet)
    assert complete == [True, True, False, False, True, True, True, False, True, True, True]
    assert same(decoder.state, straight.state)


def test_a_repeated_packet_changes_nothing(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    decoder, straight = StreamDecoder(tokenizer), StreamDecoder(tokenizer)
    for frame in packets:
        straight.push(frame.packet)
        assert decoder.push(frame.packet) is None
        assert "came twice or too late" in (decoder.push(frame.packet) or "")
        assert same(decoder.state, straight.state)
        again = decoder.decode(frame.packet)
        assert again.problem is not None and not again.stale.any()


def test_packets_of_another_stream_are_told_apart(
    tokenizer: Tokenizer, packets: list[StreamFrame], scene: list[Image]
) -> None:
    """Same size, same numbers, other content: the check of what a delta follows catches it."""
    other = StreamEncoder(tokenizer)
    foreign = [other.encode(np.ascontiguousarray(image[::-1])) for image in scene[:10]]
    decoder = StreamDecoder(tokenizer)
    for number in range(6):
        decoder.push(packets[number].packet)
    assert "of another stream" in (decoder.push(foreign[6].packet) or "")
    # It does no harm: the stream goes on.
    decoded = decoder.decode(packets[6].packet)
    assert decoded.complete


def test_a_damaged_packet_leaves_the_decoder_alone(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    decoder, straight = StreamDecoder(tokenizer), StreamDecoder(tokenizer)
    for frame in packets[:5]:
        decoder.push(frame.packet)
        straight.push(frame.packet)
    packet = bytearray(packets[5].packet)
    packet[len(packet) // 2] ^= 4
    with pytest.raises(FormatError, match="damaged"):
        decoder.push(bytes(packet))
    with pytest.raises(FormatError):
        decoder.decode(b"nonsense")
    assert same(decoder.state, straight.state)
    assert decoder.push(packets[5].packet) is None


@settings(max_examples=25)
@given(
    order=st.lists(st.integers(0, 29), min_size=1, max_size=60),
)
def test_no_picture_is_wrong_without_a_flag(tokenizer: Tokenizer, packets: list[StreamFrame], order: list[int]) -> None:
    """Whatever comes in whatever order: a decoder that says complete holds what the encoder held."""
    states: dict[int, StreamState] = {}
    straight = StreamDecoder(tokenizer)
    for frame in packets:
        straight.push(frame.packet)
        state = straight.state
        assert state is not None
        states[frame.index] = state.copy()
    decoder = StreamDecoder(tokenizer)
    for number in order:
        decoder.push(packets[number].packet)
        if not decoder.needs_keyframe:
            assert decoder.state is not None
            assert same(decoder.state, states[decoder.state.index])


def test_a_decoder_without_a_keyframe_shows_nothing(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    decoder = StreamDecoder(tokenizer)
    decoded = decoder.decode(packets[3].packet)
    assert decoded.image is None and not decoded.complete and decoded.stale.all()
    assert "waiting for a keyframe" in (decoded.problem or "")


def test_deltas_say_what_they_follow(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    for before, frame in itertools.pairwise(packets):
        if isinstance(frame.tokens, DeltaFrame):
            assert frame.tokens.reference == before.index
            assert frame.tokens.follows == body_crc(before.packet)
    assert isinstance(packets[20].tokens, TokenFrame)


def test_the_delta_of_a_packet_is_the_encoder_s(tokenizer: Tokenizer, packets: list[StreamFrame]) -> None:
    decoder = StreamDecoder(tokenizer)
    for frame in packets:
        if isinstance(frame.tokens, DeltaFrame):
            assert decoder.state is not None
            assert unpack_delta(frame.packet, tokenizer.entropy_model, decoder.state.held) == frame.tokens
        decoder.push(frame.packet)


def test_a_failing_network_leaves_the_decoder_alone(tokenizer: Tokenizer) -> None:
    """Every call of a network fails once, for keyframes, deltas and moved pixels."""
    images, encoder = pan_over_a_scene(8), StreamEncoder(tokenizer, keyframe_interval=6)
    session = FailingSession(tokenizer.networks.session)
    decoder = StreamDecoder(Tokenizer(tokenizer.bundle, session, tokenizer.backend))
    straight, vectors = StreamDecoder(tokenizer), 0
    for image in images:
        frame = encoder.encode(image)
        vectors += frame.n_vectors
        for failures in itertools.count():
            session.calls_left = failures
            try:
                assert decoder.push(frame.packet) is None
            except RuntimeError:
                assert decoder.state is None or same(decoder.state, straight.state)
            else:
                break
        session.calls_left = None
        expected, decoded = straight.decode(frame.packet), decoder.decode(frame.packet)
        assert same(decoder.state, straight.state)
        assert expected.image is not None and decoded.image is not None
        np.testing.assert_array_equal(decoded.image, expected.image)
    assert vectors
