"""Streams with the shipped model: what both ends hold, what is sent, what happens when packets are lost."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import shared
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_edge import MultiStream, Stream, StreamDecoder, StreamEncoder, encode_frames, open_source
from tatok_edge.errors import FormatError, InputError
from tatok_edge.evaluation.folder import psnr
from tatok_edge.format.packet import body_crc, unpack_delta
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.change import noise_limit
from tatok_edge.stream.frame import KeyframeTooLarge, StreamFrame
from tatok_edge.stream.rate import RateControl, fit
from tatok_edge.stream.selection import best_per_cell, choose
from tatok_edge.stream.state import StreamState, cell_of, inside, window_around
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

Image = np.ndarray


def same(a: StreamState | None, b: StreamState | None) -> bool:
    """Whether two ends hold the same entries, bit for bit."""
    assert a is not None and b is not None
    names = ("global_codes", "global_ids", "ids", "context", "mean", "state")
    return (a.index, a.crc, a.width, a.height) == (b.index, b.crc, b.width, b.height) and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in names
    )


def clip(name: str, count: int) -> list[Image]:
    """The first frames of a real clip."""
    with open_source(shared(f"videos/{name}.mp4")) as source:
        return [frame.image for _, frame in zip(range(count), source, strict=False)]


@pytest.fixture(scope="module")
def scene() -> list[Image]:
    """A small camera clip in which something moves."""
    return [render(Scene(width=160, height=128), number) for number in range(40)]


def shown(tokenizer: Tokenizer, encoder: StreamEncoder) -> Image:
    """What the receiver of everything so far sees."""
    from tatok_edge.runtime.cpu import kernels

    state = encoder.state
    assert state is not None
    pixels = state.pixels(tokenizer.networks, Clock())
    return kernels.assemble(pixels, state.grid[1], state.height, state.width)


# --- both ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cups_static", "dashcam_highway"])
def test_a_clip_comes_through(tokenizer: Tokenizer, name: str) -> None:
    encoder, decoder = StreamEncoder(tokenizer), StreamDecoder(tokenizer)
    tokens, loss = [], []
    for number, image in enumerate(clip(name, 40)):
        encoded = encoder.encode(image, timestamp_us=33_333 * number)
        decoded = decoder.decode(encoded.packet)
        assert decoded.complete and decoded.problem is None and decoded.image is not None
        assert (decoded.index, decoded.timestamp_us, decoded.kind) == (number, 33_333 * number, encoded.kind)
        assert decoded.image.shape == image.shape
        assert same(encoder.state, decoder.state)
        tokens.append(encoded.n_tokens)
        if number % 5 == 0:
            loss.append(psnr(image, tokenizer.decode(tokenizer.encode(image))) - psnr(image, decoded.image))
    patches = encoded.tokens.n_patches
    assert np.mean(tokens) < patches / (5 if "static" in name else 2)
    assert np.mean(loss) < 0.7


def test_both_ends_hold_the_same_over_a_thousand_frames(tokenizer: Tokenizer, scene: list[Image]) -> None:
    encoder = StreamEncoder(tokenizer, keyframe_interval=400)
    decoder, late = StreamDecoder(tokenizer), StreamDecoder(tokenizer)
    kinds = []
    for number in range(1000):
        place = number % (2 * len(scene) - 2)
        encoded = encoder.encode(scene[min(place, 2 * len(scene) - 2 - place)])
        assert decoder.push(encoded.packet) is None
        assert same(encoder.state, decoder.state), number
        kinds.append(encoded.kind)
        if number >= 150:  # one that joins in the middle waits for the next keyframe
            late.push(encoded.packet)
            assert (late.state is not None) == (number >= 400)
            assert late.needs_keyframe == (number < 400)
            if number >= 400:
                assert same(encoder.state, late.state), number
    assert [number for number, kind in enumerate(kinds) if kind == "key"] == [0, 400, 800]


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
    # It came in the middle of a round, so it needs the rest of that one and one whole round.
    assert exact is not None and exact <= 4 + 2 * rounds


def test_recompute_always_gives_the_same_packets(tokenizer: Tokenizer) -> None:
    images = clip("cups_static", 12)
    for refresh in ("key", "rolling"):
        encoders = [
            StreamEncoder(tokenizer, recompute=recompute, refresh=refresh, keyframe_interval=5)  # type: ignore[arg-type]
            for recompute in ("changed", "always")
        ]
        for image in images:
            changed, always = (encoder.encode(image) for encoder in encoders)
            assert changed.packet == always.packet
            assert changed.n_encoded <= always.n_encoded


def test_a_still_scene_costs_next_to_nothing(tokenizer: Tokenizer) -> None:
    image = render(Scene(width=320, height=240), 0)
    encoder = StreamEncoder(tokenizer)
    first = encoder.encode(image)
    for _ in range(20):
        encoded = encoder.encode(image)
    assert first.kind == "key" and encoded.kind == "delta"
    assert encoded.n_tokens == encoded.n_updated == encoded.n_encoded == encoded.n_globals == 0
    assert len(encoded.packet) <= 32
    assert "patch_encoder" not in encoded.seconds and "context" not in encoded.seconds


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
    images = clip("cups_static", 60)
    counts, losses = [], []
    for allowed in (0.0, 0.2, 1.0):
        encoder = StreamEncoder(tokenizer, max_loss_db=allowed)
        total, loss = 0, []
        for number, image in enumerate(images):
            total += encoder.encode(image).n_tokens
            if number > 20 and number % 6 == 0:
                everything = tokenizer.decode(tokenizer.encode(image))
                loss.append(psnr(image, everything) - psnr(image, shown(tokenizer, encoder)))
        counts.append(total)
        losses.append(np.mean(loss))
    assert counts[0] > counts[1] > counts[2]
    assert losses[0] < losses[1] < losses[2]
    assert losses[1] < 0.4 and losses[2] < 1.5


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


@pytest.mark.parametrize("score", ["residual", "information", "entropy"])
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
        quality.append(psnr(image, shown(tokenizer, encoder)))
    assert quality[-1] > quality[0] + 1.0
    assert quality[-1] > psnr(image, tokenizer.decode(tokenizer.encode(image))) - 1.0


# --- lost, late, foreign -----------------------------------------------------------------------------


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
        states[frame.index] = StreamState(
            **{
                name: value.copy() if isinstance(value, np.ndarray) else value
                for name, value in ((name, getattr(state, name)) for name in StreamState.__dataclass_fields__)
            }
        )
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
            assert unpack_delta(frame.packet, tokenizer.entropy_model, decoder.state.global_ids) == frame.tokens
        decoder.push(frame.packet)


# --- Stream ------------------------------------------------------------------------------------------


def test_stream_of_a_file_loses_no_frame(tokenizer: Tokenizer, shared_clip: Path) -> None:
    with Stream(tokenizer, shared_clip) as stream, open_source(shared_clip) as source:
        decoder = StreamDecoder(tokenizer)
        count = 0
        for frame in stream:
            assert frame.index == count and frame.latency_ms is not None and frame.latency_ms > 0
            assert {"change", "pack", "update"} <= set(frame.seconds) or frame.kind == "key"
            assert decoder.push(frame.packet) is None
            count += 1
        assert count == sum(1 for _ in source) == stream.statistics.frames
        assert stream.dropped == 0


@pytest.fixture(scope="module")
def shared_clip() -> Path:
    return shared("videos/dashcam_freeway_short.mp4")


def test_the_bandwidth_is_kept_in_every_second(tokenizer: Tokenizer) -> None:
    def frames() -> Iterator[Image]:
        scene = Scene(width=320, height=240)
        for number in range(60):  # with a cut in the middle
            image = render(scene, number)
            yield image if number < 30 else np.ascontiguousarray(255 - image[::-1])

    for kbps in (20.0, 60.0):
        with Stream(tokenizer, frames(), fps=15, max_kbps=kbps) as stream:
            decoder = StreamDecoder(tokenizer)
            sent = []
            for frame in stream:
                assert decoder.push(frame.packet) is None
                assert same(stream.encoder.state, decoder.state)
                sent.append((frame.timestamp_us, 8 * len(frame.packet)))
        for begin, _ in sent:
            assert sum(bits for time_us, bits in sent if begin <= time_us < begin + 1_000_000) <= 1000 * kbps
        assert sum(bits for _, bits in sent) > 0.3 * 4 * 1000 * kbps  # and used
        assert len(sent) + stream.statistics.skipped == 60
        assert stream.statistics.skipped < 20


def test_a_bandwidth_below_a_keyframe_is_refused(tokenizer: Tokenizer) -> None:
    images = [render(Scene(width=1280, height=960), 0)]
    with Stream(tokenizer, images, fps=15, max_kbps=4.0) as stream, pytest.raises(InputError) as caught:
        list(stream)
    assert "max_kbps = 4 is too small for frames of 1280x960 pixels: a keyframe needs" in str(caught.value)
    with pytest.raises(InputError, match="max_kbps must be at least"):
        Stream(tokenizer, images, fps=15, max_kbps=1.0)
    encoder = StreamEncoder(tokenizer, budget=TokenBudget(max_bits=800))
    with pytest.raises(KeyframeTooLarge, match="global tokens alone"):
        encoder.encode(images[0])


def test_fps_takes_fewer_frames(tokenizer: Tokenizer) -> None:
    with Stream(tokenizer, "synthetic:frames=30,width=96,height=64,fps=30", fps=10) as stream:
        assert [frame.index for frame in stream] == list(range(0, 30, 3))
    with pytest.raises(InputError, match="fps must be from"):
        Stream(tokenizer, "synthetic:frames=2", fps=0)


def test_a_slow_consumer_of_a_live_source_stays_up_to_date(tokenizer: Tokenizer) -> None:
    with Stream(tokenizer, "synthetic:live=1,width=96,height=64,fps=30") as stream:
        for count, frame in enumerate(stream):
            if count > 2:
                assert frame.latency_ms is not None and frame.latency_ms < 1000
            if count == 8:
                break
            time.sleep(0.15)
        assert stream.dropped > 5 and frame.dropped > 5
        assert frame.index >= count + frame.dropped


def test_stop_ends_a_stream_from_another_thread(tokenizer: Tokenizer) -> None:
    with Stream(tokenizer, "synthetic:live=1,width=96,height=64,fps=15") as stream:
        timer = threading.Timer(0.5, stream.stop)
        timer.start()
        begun = time.monotonic()
        count = sum(1 for _ in stream)
        assert count > 0 and time.monotonic() - begun < 10
        timer.join()


def test_several_cameras_give_what_each_gives_alone(tokenizer: Tokenizer) -> None:
    sizes = [(96, 64), (160, 96), (64, 64)]
    specs = [f"synthetic:frames={6 + 2 * seed},width={w},height={h},seed={seed}" for seed, (w, h) in enumerate(sizes)]
    alone = []
    for spec in specs:
        with Stream(tokenizer, spec) as stream:
            alone.append([frame.packet for frame in stream])
    together: list[list[bytes]] = [[], [], []]
    with MultiStream(tokenizer, specs) as cameras:
        for step in cameras:
            for camera, frame in enumerate(step):
                if frame is not None:
                    together[camera].append(frame.packet)
    assert together == alone
    assert [len(packets) for packets in together] == [6, 8, 10]


# --- refusals ----------------------------------------------------------------------------------------


def test_wrong_arguments(tokenizer: Tokenizer, scene: list[Image]) -> None:
    for arguments, says in [
        ({"max_loss_db": -1}, "max_loss_db must be from 0 to 20 dB, got -1"),
        ({"max_loss_db": float("nan")}, "max_loss_db must be from 0 to 20 dB, got nan"),
        ({"keyframe_interval": -1}, "keyframe_interval must be a number of frames from 0, got -1"),
        ({"refresh": "never"}, "refresh must be 'key' or 'rolling', got 'never'"),
        ({"recompute": "maybe"}, "recompute must be 'changed' or 'always', got 'maybe'"),
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


# --- parts -------------------------------------------------------------------------------------------


@given(
    losses=st.lists(st.floats(0, 1e4, width=32), min_size=0, max_size=60),
    lives=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1.2),
)
def test_choose_takes_the_fewest_that_are_worth_most(losses: list[float], lives: int, share: float) -> None:
    loss = np.array(losses, np.float32)
    life = np.random.default_rng(lives).uniform(1, 8, len(loss)).astype(np.float32)
    allowed = share * float(loss.sum(dtype=np.float64))
    chosen, limit = choose(loss, life, allowed)
    value = loss * life
    assert loss[~chosen].sum(dtype=np.float64) <= allowed * (1 + 1e-9) or not loss[~chosen].any()
    if chosen.any():
        assert value[chosen].min() >= value[~chosen & (loss > 0)].max(initial=0)
        # One token fewer would be too few.
        worst = np.flatnonzero(chosen)[np.argmin(value[chosen])]
        assert loss[~chosen].sum(dtype=np.float64) + loss[worst] > allowed * (1 - 1e-6)
        assert limit <= value[chosen].min()


def test_best_per_cell() -> None:
    scores = np.array([1, 5, 3, 9, 2, 7], np.float32)
    cells = np.array([0, 0, 1, 1, 1, 4], np.int32)
    among = np.array([True, True, True, False, True, True])
    assert sorted(best_per_cell(scores, among, cells)) == [1, 2, 5]
    assert len(best_per_cell(scores, np.zeros(6, np.bool_), cells)) == 0


@given(most=st.integers(0, 400), limit=st.integers(0, 500))
def test_fit_takes_what_fits(most: int, limit: int) -> None:
    count, packet = fit(lambda count: (count, b"x" * (10 + count)), most, 8 * limit)
    assert len(packet) <= limit or count == 0
    assert count <= most
    if 10 + most <= limit:
        assert count == most
    elif limit >= 10:
        assert count >= limit - 10 - max(1, most >> 7)


@given(rows=st.integers(1, 9), columns=st.integers(1, 9), data=st.data())
def test_windows_hold_their_cells(rows: int, columns: int, data: st.DataObject) -> None:
    cells = np.unique(data.draw(st.lists(st.integers(0, rows * columns - 1), min_size=1))).astype(np.int32)
    top, left, height, width = window_around(cells, (rows, columns))
    assert top >= 0 and left >= 0 and top + height <= rows and left + width <= columns
    row, column = np.divmod(cells, columns)
    assert (row >= top).all() and (row < top + height).all() and (column >= left).all()
    assert (column < left + width).all()
    positions = np.arange(rows * columns * 16, dtype=np.int32)
    positions = positions[np.isin(cell_of(positions, 4 * columns), cells)]
    source = inside(positions, (top, left, height, width), 4 * columns)
    assert (np.diff(source) > 0).all() and source.min() >= 0 and source.max() < 16 * height * width
    y, x = np.divmod(positions, 4 * columns)
    assert np.array_equal(np.divmod(source, 4 * width), (y - 4 * top, x - 4 * left))


def test_noise_limit_follows_the_noise(rng: np.random.Generator) -> None:
    flat = np.full((64, 96, 3), 120.0)
    limits = []
    for sigma in (0.0, 2.0, 4.0, 40.0):
        noisy = np.clip(np.rint(flat + rng.normal(0, sigma, flat.shape)), 0, 255).astype(np.uint8)
        limits.append(noise_limit(noisy))
    assert limits[0] == 8.0 and 12 < limits[1] < 40 and 2.5 < limits[2] / limits[1] < 5 and limits[3] == 200.0


def test_rate_control() -> None:
    rate = RateControl(10)
    assert rate.left(0) == 10_000
    rate.spend(0, 4_000)
    rate.spend(500_000, 5_000)
    assert rate.left(999_999) == 1_000
    assert rate.left(1_000_000) == 5_000
    assert rate.left(1_500_000) == 10_000
