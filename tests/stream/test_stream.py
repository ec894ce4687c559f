"""Stream encoders with the shipped model: both ends hold the same, and packets carry what changes."""

import threading
from typing import Any

import numpy as np
import pytest
from helpers.streams import clip, fixed_rate, same, shown

from tatok_edge import MultiStream, StreamDecoder, StreamEncoder, encode_frames
from tatok_edge.errors import InputError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.plan import TURNS
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame


@pytest.fixture(scope="module")
def scene() -> list[Image]:
    """A small camera clip in which something moves."""
    return [render(Scene(width=160, height=128), number) for number in range(40)]


@pytest.mark.parametrize("name", ["cups_static", "dashcam_highway"])
def test_a_clip_comes_through(tokenizer: Tokenizer, name: str) -> None:
    encoder, decoder = StreamEncoder(tokenizer), StreamDecoder(tokenizer)
    tokens, loss = [], []
    for number, image in enumerate(clip(name, 16)):
        encoded = encoder.encode(image, timestamp_us=33_333 * number)
        decoded = decoder.decode(encoded.packet)
        assert decoded.complete and decoded.problem is None and decoded.image is not None
        assert (decoded.index, decoded.timestamp_us, decoded.kind) == (number, 33_333 * number, encoded.kind)
        assert decoded.image.shape == image.shape
        assert same(encoder.state, decoder.state)
        tokens.append(encoded.n_tokens)
        if number % 5 == 0:
            loss.append(psnr(image, fixed_rate(tokenizer, image)) - psnr(image, decoded.image))
    patches = encoded.tokens.n_patches
    assert np.mean(tokens[1:]) < patches / (10 if "static" in name else 4)
    assert np.mean(loss) < 0.7


def test_both_ends_hold_the_same_over_many_frames(tokenizer: Tokenizer) -> None:
    scene = [render(Scene(width=96, height=64), number) for number in range(20)]
    encoder = StreamEncoder(tokenizer, keyframe_interval=80)
    decoder, late = StreamDecoder(tokenizer), StreamDecoder(tokenizer)
    kinds = []
    for number in range(200):
        place = number % (2 * len(scene) - 2)
        encoded = encoder.encode(scene[min(place, 2 * len(scene) - 2 - place)])
        assert decoder.push(encoded.packet) is None
        assert same(encoder.state, decoder.state), number
        kinds.append(encoded.kind)
        if number >= 30:  # one that joins in the middle waits for the next keyframe
            late.push(encoded.packet)
            assert (late.state is not None) == (number >= 80)
            assert late.needs_keyframe == (number < 80)
            if number >= 80:
                assert same(encoder.state, late.state), number
    assert [number for number, kind in enumerate(kinds) if kind == "key"] == [0, 80, 160]


def test_who_joins_a_rolling_refresh_is_exact_after_one_round(tokenizer: Tokenizer, scene: list[Image]) -> None:
    rounds = 10
    encoder = StreamEncoder(tokenizer, keyframe_interval=rounds, refresh="rolling")
    late = StreamDecoder(tokenizer)
    exact = None
    for number in range(40):
        encoded = encoder.encode(scene[number])
        assert (encoded.kind == "key") == (number == 0)
        if number < 4:
            continue
        decoded = late.decode(encoded.packet)
        if decoded.complete:
            exact = number if exact is None else exact
            assert same(encoder.state, late.state)
        else:
            assert exact is None and late.needs_keyframe
    # It came in the middle of a round, so it needs the rest of that one and two whole rounds.
    assert exact is not None and exact <= 4 + 3 * rounds


def test_a_still_scene_costs_next_to_nothing(tokenizer: Tokenizer) -> None:
    image = render(Scene(width=320, height=240), 0)
    encoder = StreamEncoder(tokenizer)
    first = encoder.encode(image)
    before, frames = psnr(image, shown(encoder)), [encoder.encode(image) for _ in range(40)]
    assert first.kind == "key" and frames[0].kind == "delta"
    # It gets sharper at first; then there is nothing left that is worth a token.
    assert psnr(image, shown(encoder)) > before + 0.2
    assert sum(frame.n_tokens for frame in frames) < first.n_tokens / 3
    quiet = frames[-1]
    assert quiet.n_tokens == quiet.n_updated == quiet.n_encoded == quiet.n_globals == 0
    assert len(quiet.packet) <= 32
    assert "patch_encoder" not in quiet.seconds and "context" not in quiet.seconds


def test_noise_is_not_news(tokenizer: Tokenizer, rng: np.random.Generator) -> None:
    image = render(Scene(width=320, height=240), 0).astype(np.float32)
    image = 40 + image * (175 / 255)

    def noisy(picture: Image) -> Image:
        return np.clip(np.rint(picture + rng.normal(0, 3, picture.shape)), 0, 255).astype(np.uint8)

    encoder = StreamEncoder(tokenizer)
    encoder.encode(noisy(image))
    updated = [encoder.encode(noisy(image)).n_updated for _ in range(20)]
    assert np.mean(updated) <= 0.02 * 1280
    assert 2.0 <= encoder.noise <= 4.0
    # A small new object is, in the frame in which it appears.
    for y, x in ((50, 60), (111, 203), (17, 291)):
        with_object = image.copy()
        with_object[y : y + 16, x : x + 16] += 30
        encoded = encoder.encode(noisy(with_object))
        rows, columns = np.divmod(encoded.tokens.positions, 40)
        near = (rows * 8 < y + 16) & (rows * 8 + 8 > y) & (columns * 8 < x + 16) & (columns * 8 + 8 > x)
        assert near.any(), (y, x)
        encoder.encode(noisy(image))


def test_the_loss_is_what_was_allowed(tokenizer: Tokenizer) -> None:
    images = clip("cups_static", 24)
    counts, losses = [], []
    for allowed in (0.0, 0.2, 1.0):
        encoder = StreamEncoder(tokenizer, max_loss_db=allowed)
        total, loss = 0, []
        for number, image in enumerate(images):
            total += encoder.encode(image).n_tokens
            if number > 8 and number % 4 == 0:
                loss.append(psnr(image, fixed_rate(tokenizer, image)) - psnr(image, shown(encoder)))
        counts.append(total)
        losses.append(np.mean(loss))
    assert counts[0] > counts[1] > counts[2]
    assert losses[0] < losses[1] < losses[2]
    assert losses[1] < 0.6 and losses[2] < 1.5


def test_a_scene_that_fades_in_is_not_sent_many_times_over(tokenizer: Tokenizer) -> None:
    images = clip("cups_static", 12)
    encoder, tokens = StreamEncoder(tokenizer), []
    for number, image in enumerate(images):
        light = min(number / 8, 1)  # the first frame is black: a price for its error would be far too low for the rest
        tokens.append(encoder.encode((image * light).astype(np.uint8)).n_tokens)
    patches = -(-images[0].shape[0] // 8) * -(-images[0].shape[1] // 8)
    assert sum(tokens) < 0.7 * len(images) * patches, tokens  # the fixed rate takes every patch in every frame
    assert psnr(images[-1], shown(encoder)) > psnr(images[-1], fixed_rate(tokenizer, images[-1])) - 1.5


def test_what_can_wait_is_updated_together(tokenizer: Tokenizer) -> None:
    image = render(Scene(width=256, height=192), 0)
    encoder = StreamEncoder(tokenizer, max_loss_db=0.0)
    encoder.encode(image)
    quiet, busy = 0, 0
    for number in range(1, 40):
        slow = image.copy()
        slow[32:96, 64:128] = np.minimum(image[32:96, 64:128].astype(int) + number // 2, 255)  # becomes brighter
        frame = encoder.encode(slow)
        assert isinstance(frame.tokens, DeltaFrame)
        rows = frame.tokens.updated // frame.tokens.grid[1]
        if number % TURNS[0] == 1:
            busy += len(rows)
            assert (rows < 12).all() or (rows >= 12).all()  # half of the picture at a time
        else:
            quiet += len(rows)
    assert busy > 0 and quiet < busy / 4


def test_a_scene_cut_makes_a_keyframe(tokenizer: Tokenizer, scene: list[Image]) -> None:
    encoder = StreamEncoder(tokenizer)
    cut = [np.ascontiguousarray(255 - image[:, ::-1]) for image in scene]
    frames = [encoder.encode(image) for image in (*scene[:10], *cut[:10])]
    assert [frame.index for frame in frames if frame.kind == "key"] == [0, 10]
    assert frames[10].scene_cut and not frames[0].scene_cut
    # Much motion from the start on is no cut after another.
    shaken = StreamEncoder(tokenizer)
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 96, 3), np.uint8)
    assert [shaken.encode(image).kind for image in noise][2:] == 6 * ["delta"]
    rolling = StreamEncoder(tokenizer, refresh="rolling")
    assert [rolling.encode(image).kind for image in (*scene[:3], *cut[:3])] == ["key"] + 5 * ["delta"]


def test_a_new_size_makes_a_keyframe(tokenizer: Tokenizer, scene: list[Image]) -> None:
    encoder, decoder = StreamEncoder(tokenizer), StreamDecoder(tokenizer)
    for number in range(9):
        image = scene[number] if number // 3 != 1 else np.ascontiguousarray(scene[number][:97, :70])
        encoded = encoder.encode(image)
        assert (encoded.kind == "key") == (number % 3 == 0)
        decoded = decoder.decode(encoded.packet)
        assert decoded.complete and decoded.image is not None and decoded.image.shape == image.shape


def test_a_keyframe_on_request(tokenizer: Tokenizer, scene: list[Image]) -> None:
    for refresh in ("key", "rolling"):
        encoder = StreamEncoder(tokenizer, refresh=refresh)  # type: ignore[arg-type]
        kinds = []
        for number in range(6):
            if number == 3:
                thread = threading.Thread(target=encoder.request_keyframe)
                thread.start()
                thread.join()
            kinds.append(encoder.encode(scene[number]).kind)
        assert kinds == ["key", "delta", "delta", "key", "delta", "delta"]


@pytest.mark.parametrize("score", ["residual", "visual"])
def test_budgets_hold(tokenizer: Tokenizer, scene: list[Image], score: Any) -> None:
    for budget in (
        TokenBudget(max_tokens=11, score=score),
        TokenBudget(keep=0.05, score=score),
        TokenBudget(tau=0.5, score=score),
        TokenBudget(max_bits=1500, score=score),
    ):
        encoder, decoder = StreamEncoder(tokenizer, budget=budget), StreamDecoder(tokenizer)
        free = StreamEncoder(tokenizer)
        for image in scene[:8]:
            encoded, unlimited = encoder.encode(image), free.encode(image)
            assert decoder.push(encoded.packet) is None and same(encoder.state, decoder.state)
            if budget.max_tokens is not None:
                assert encoded.n_tokens <= budget.max_tokens
            if budget.keep is not None:
                assert encoded.n_tokens <= round(0.05 * 320)
            if budget.max_bits is not None:
                assert 8 * len(encoded.packet) <= budget.max_bits
            if encoded.kind == "key":
                assert encoded.n_tokens < unlimited.n_tokens


def test_what_did_not_fit_follows(tokenizer: Tokenizer) -> None:
    """With few bits per packet, a still scene gets better from frame to frame."""
    image = render(Scene(width=320, height=240), 0)
    encoder = StreamEncoder(tokenizer, budget=TokenBudget(max_bits=3000))
    quality = []
    for _ in range(12):
        encoder.encode(image)
        quality.append(psnr(image, shown(encoder)))
    assert quality[-1] > quality[0] + 1.0
    assert quality[-1] > psnr(image, fixed_rate(tokenizer, image)) - 1.0


def test_wrong_arguments(tokenizer: Tokenizer, scene: list[Image]) -> None:
    for arguments, says in [
        ({"max_loss_db": -1}, "max_loss_db must be from 0 to 20 dB, got -1"),
        ({"max_loss_db": float("nan")}, "max_loss_db must be from 0 to 20 dB, got nan"),
        ({"keyframe_interval": -1}, "keyframe_interval must be a number of frames from 0, got -1"),
        (
            {"budget": TokenBudget(score="entropy")},
            "score must be 'residual' or 'visual' for a stream, whose tokens are "
            "ranked by the error that they remove; got 'entropy'",
        ),
        (
            {"budget": TokenBudget(min_tokens=3)},
            "min_tokens must be 0 for a stream, whose packets carry changes only; got 3",
        ),
        (
            {"budget": TokenBudget(refine=2)},
            "refine must be 0 for a stream, which corrects its tokens by further ones; got 2",
        ),
        ({"refresh": "never"}, "refresh must be 'key' or 'rolling', got 'never'"),
    ]:
        with pytest.raises(InputError) as caught:
            StreamEncoder(tokenizer, **arguments)  # type: ignore[arg-type]
        assert str(caught.value) == says
    encoder = StreamEncoder(tokenizer)
    encoder.encode(scene[0], index=5)
    with pytest.raises(InputError, match="index must be at least 6, the number after the frame before; got 5"):
        encoder.encode(scene[1], index=5)
    state = encoder.state
    with pytest.raises(InputError, match="must have shape"):
        encoder.encode(scene[1][:, :, 0])
    assert encoder.state is state and encoder.encode(scene[1]).index == 6
    with pytest.raises(InputError, match="give one image"):
        encode_frames([encoder], [])
    with pytest.raises(InputError, match=r"images\[1\]"):
        encode_frames([encoder, StreamEncoder(tokenizer)], [scene[2], scene[2].astype(np.float32)])
    with pytest.raises(InputError, match="must be different ones"):
        encode_frames([encoder, encoder], [scene[2], scene[2]])
    with pytest.raises(InputError, match="at least one source"):
        MultiStream(tokenizer, [])
