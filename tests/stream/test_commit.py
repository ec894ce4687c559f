"""An error in one camera leaves all cameras as they were."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.streams import FailingSession, pan_over_a_scene, same

from tatok_edge import InputError, StreamEncoder, Tokenizer, encode_frames
from tatok_edge.geometry import Image
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.frame import KeyframeTooLarge
from tatok_edge.tokens.budget import TokenBudget

FRAMES = 10


@pytest.fixture(scope="module")
def pan() -> list[Image]:
    """A camera in motion, with a scene cut near the end."""
    images = pan_over_a_scene(FRAMES)
    return [*images[:-2], *(np.ascontiguousarray(255 - image[:, ::-1]) for image in images[-2:])]


@pytest.fixture(scope="module")
def still() -> list[Image]:
    """A small still camera before which something moves."""
    return [render(Scene(width=96, height=64, seed=1), number) for number in range(FRAMES)]


def pair(tokenizer: Tokenizer, refresh: str = "key") -> list[StreamEncoder]:
    """A camera in motion and one with another interval of keyframes."""
    return [
        StreamEncoder(tokenizer, refresh=refresh, keyframe_interval=20),  # type: ignore[arg-type]
        StreamEncoder(tokenizer, keyframe_interval=4),
    ]


def assert_equal(encoders: list[StreamEncoder], twins: list[StreamEncoder]) -> None:
    for encoder, twin in zip(encoders, twins, strict=True):
        assert encoder.noise == twin.noise and encoder.budget == twin.budget
        assert (encoder.state is None) == (twin.state is None)
        assert encoder.state is None or same(encoder.state, twin.state)


@pytest.mark.parametrize("refresh", ["key", "rolling"])
def test_a_failing_network_changes_no_camera(
    tokenizer: Tokenizer, pan: list[Image], still: list[Image], refresh: str
) -> None:
    """Every call of a network in every frame fails once: keyframes, deltas, motion, decodes and probes."""
    session = FailingSession(tokenizer.networks.session)
    encoders = pair(Tokenizer(tokenizer.bundle, session, tokenizer.backend), refresh)
    twins = pair(tokenizer, refresh)
    stages, vectors = set(), 0
    for images in zip(pan, still, strict=True):
        failures = 0
        while True:
            session.calls_left = failures
            try:
                frames = encode_frames(encoders, images)
            except RuntimeError:
                failures += 1
                assert_equal(encoders, twins)
            else:
                break
        assert failures >= 1
        expected = encode_frames(twins, images)
        assert [frame.packet for frame in frames] == [frame.packet for frame in expected]
        assert_equal(encoders, twins)
        stages |= {stage for frame in frames if frame.kind == "delta" for stage in frame.seconds}
        vectors += frames[0].n_vectors
    session.calls_left = None
    assert {"probe", "context", "patch_encoder", "decode"} <= stages
    assert vectors > 0


@pytest.mark.parametrize("failing", ["keyframe", "image", "index"])
def test_a_refused_frame_changes_no_camera(
    tokenizer: Tokenizer, pan: list[Image], still: list[Image], failing: str
) -> None:
    encoders, twins = pair(tokenizer), pair(tokenizer)
    for number, images in enumerate(zip(pan, still, strict=True)):
        if number in (0, 1, 4, 8):
            encoders[0].request_keyframe()
            twins[0].request_keyframe()
            if failing == "keyframe":
                twins[1].request_keyframe()
                encoders[1].request_keyframe()
                encoders[1].budget = TokenBudget(max_bits=64)
                with pytest.raises(KeyframeTooLarge) as caught:
                    encode_frames(encoders, images)
                assert caught.value.bits > 64
                encoders[1].budget = TokenBudget()
            elif failing == "image":
                with pytest.raises(InputError, match=r"images\[1\]"):
                    encode_frames(encoders, [images[0], images[1][:, :, 0]])
            else:
                with pytest.raises(InputError, match="index must be at least"):
                    encode_frames(encoders, images, indices=[None, number - 1])
            assert_equal(encoders, twins)
        frames, expected = encode_frames(encoders, images), encode_frames(twins, images)
        assert [frame.packet for frame in frames] == [frame.packet for frame in expected]
        assert_equal(encoders, twins)


def test_a_scene_cut_that_does_not_fit_stays_a_scene_cut(tokenizer: Tokenizer, pan: list[Image]) -> None:
    """The packets of the frames before and the budget do not change how a frame is judged when it comes again."""
    encoder = StreamEncoder(tokenizer)
    for image in pan[:-2]:
        encoder.encode(image)
    encoder.budget = TokenBudget(max_bits=200)
    for _ in range(2):
        with pytest.raises(KeyframeTooLarge):
            encoder.encode(pan[-2])
    encoder.budget = TokenBudget()
    frame = encoder.encode(pan[-2])
    assert frame.kind == "key" and frame.scene_cut


def test_a_fork_goes_on_alone(tokenizer: Tokenizer, pan: list[Image]) -> None:
    encoder, twin = StreamEncoder(tokenizer), StreamEncoder(tokenizer)
    assert encoder.fork().state is None
    for image in pan[:4]:
        assert encoder.encode(image).packet == twin.encode(image).packet
    fork = encoder.fork()
    packets = [fork.encode(image).packet for image in pan[4:]]
    fork.encode(pan[0])
    assert same(encoder.state, twin.state)
    assert [encoder.encode(image).packet for image in pan[4:]] == packets
