"""Streams of sources: bandwidth, frame rate, dropped frames, several cameras."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import shared
from helpers.streams import clip, same

from tatok_edge import MultiStream, Stream, StreamDecoder, StreamEncoder, StreamFrame, open_source
from tatok_edge.errors import InputError
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.frame import KeyframeTooLarge
from tatok_edge.stream.rate import RateControl
from tatok_edge.tokens.budget import TokenBudget


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
        # Frames that came while this one was encoded are among the dropped ones, too.
        assert frame.latency_ms is not None
        assert frame.index + 30 * frame.latency_ms / 1000 + 1 >= count + frame.dropped


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


def test_rate_control() -> None:
    rate = RateControl(10)
    assert rate.left(0) == 10_000
    rate.spend(0, 4_000)
    rate.spend(500_000, 5_000)
    assert rate.left(999_999) == 1_000
    assert rate.left(1_000_000) == 5_000
    assert rate.left(1_500_000) == 10_000


@pytest.mark.parametrize(("name", "fps", "kbps"), [("dashcam_highway", 25, 150.0), ("bedroom_handheld", 10, 60.0)])
def test_a_busy_clip_uses_the_bandwidth(tokenizer: Tokenizer, name: str, fps: int, kbps: float) -> None:
    with Stream(tokenizer, clip(name, 4 * fps), fps=fps, max_kbps=kbps) as stream:
        sent = [(frame.timestamp_us, 8 * len(frame.packet)) for frame in stream]
    assert stream.statistics.skipped == 0
    later = sum(bits for time_us, bits in sent if time_us >= 1_000_000)
    assert 0.85 * 3 < later / 1000 / kbps <= 3


def test_rate_control_makes_room_for_keyframes() -> None:
    def encoder_of(bits: int) -> Callable[[TokenBudget], StreamFrame]:
        def encode(budget: TokenBudget) -> StreamFrame:
            asked.append(budget.max_bits)
            if budget.max_bits is not None and budget.max_bits < bits:
                raise KeyframeTooLarge("too large", bits)
            return StreamFrame(tokens=None, packet=bytes(bits // 8), n_encoded=0, seconds={})  # type: ignore[arg-type]

        return encode

    asked: list[int | None] = []
    rate, budget = RateControl(10), TokenBudget()
    assert rate.encode(0, budget, encoder_of(2_000)) is not None and asked == [3_000]
    # At 10 frames per second each has 930 bits of its own, and more where the frames before it took fewer.
    assert rate.encode(100_000, TokenBudget(max_bits=1_000), encoder_of(800)) is not None and asked[-1] == 1_000
    assert rate.encode(200_000, budget, encoder_of(6_000)) is not None and asked[-2:] == [1_085, 6_000]
    assert rate.left(200_000) == 1_200
    assert rate.encode(300_000, budget, encoder_of(4_000)) is None and rate.left(300_000) == 1_200
    with pytest.raises(KeyframeTooLarge):
        rate.encode(300_000, budget, encoder_of(10_008))
    rate.spend(300_000, 1_000)
    count = len(asked)
    assert rate.encode(300_000, budget, encoder_of(0)) is None and len(asked) == count
