"""Profiles for ragged token counts: calibration on a video, exact bucket edges, profile files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.cli import build as build_command
from tatok_edge.errors import InputError, SourceError
from tatok_edge.export.engines.profiles import (
    MAX_PATCHES,
    FrameRange,
    ProfileSet,
    TokenCounts,
    calibrate,
    calibrated_edges,
    count_tokens,
    default_profiles,
    equal_width,
    graph_profiles,
    histogram_of,
    load_profiles,
    optimal_buckets,
    parse_profiles,
    smallest_fitting,
    waste,
)
from tatok_edge.model.bundle import open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.session import Session
from tatok_edge.sources.open import open_source
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

VIDEO = "synthetic:frames=5,width=100,height=64"


def padding(histogram: dict[int, int], edges: list[int]) -> int:
    return sum(n * (min(edge for edge in edges if edge >= t) - t) for t, n in histogram.items() if t)


# --- calibration ----------------------------------------------------------------------------------


def test_counts_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    budget = TokenBudget(tau=0.4, score="entropy")
    counted = count_tokens(VIDEO, tokenizer, budget)
    with open_source(VIDEO) as source:
        frames = [tokenizer.encode(frame.image, budget=budget) for frame in source]
    expected = [len(set(frame.positions.tolist())) for frame in frames]  # a patch is one row, however many it has
    assert list(counted.counts) == expected and len(expected) == 5
    assert sum(expected) < sum(frame.n_tokens for frame in frames)
    assert (counted.width, counted.height) == (128, 64)
    assert min(expected) > 0 and max(expected) < 128
    assert count_tokens(VIDEO, tokenizer, budget, frames=2).counts == counted.counts[:2]


def test_by_information_every_patch_is_encoded(tokenizer: Tokenizer) -> None:
    budget = TokenBudget(tau=0.4, score="information")
    assert count_tokens(VIDEO, tokenizer, budget, frames=2).counts == (128, 128)


STREAM = "synthetic:frames=12,width=160,height=96"


def test_a_stream_is_counted_as_it_is_encoded(tokenizer: Tokenizer) -> None:
    """Every call of the patch encoder is in the counts: those of the frames, and whole frames in between."""
    rows: list[int] = []

    class Recorder(Session):
        def run(self, graph: Any, inputs: Any) -> Any:
            if graph == "patch_encoder":
                rows.append(len(inputs["features"]))
            return tokenizer.networks.session.run(graph, inputs)

        def close(self) -> None:
            raise AssertionError("the session belongs to the caller")

    encoder = StreamEncoder(Tokenizer(tokenizer.bundle, Recorder(), tokenizer.backend))
    with open_source(STREAM) as source:
        expected = [encoder.encode(frame.image).n_encoded for frame in source]
    counted = count_tokens(STREAM, tokenizer, TokenBudget(), count_as="stream")
    assert list(counted.counts) == expected and len(expected) == 12
    assert counted.counts[0] == 240 > min(counted.counts)  # the keyframe, and what changed
    assert counted.probes >= 1
    frames, steps = histogram_of([counted])
    assert sorted(frames.elements()) == sorted([*rows, *(0 for count in expected if not count)])
    assert not steps
    few = count_tokens(STREAM, tokenizer, TokenBudget(max_tokens=5), count_as="stream", frames=6)
    assert len(few.counts) == 6 and max(few.counts) == few.counts[0]
    profiles = calibrate({"a": counted}, buckets=4)
    assert profiles.notes["frames"] == 12 and profiles.notes["probes"] == counted.probes


def test_the_command_counts_streams_or_frames(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    def profiles(*videos: str, count_as: Any, tau: float | None = None) -> ProfileSet:
        return build_command.choose_profiles(tokenizer.bundle, "auto", videos, count_as, tau)

    stream = profiles(VIDEO, count_as="stream")
    assert stream.notes["budget"] == "stream, tau=1, score=residual" and stream.notes["histogram"][-1][0] == 128
    frames = profiles(VIDEO, count_as="frames")
    assert frames.notes["budget"] == "frames, tau=0.5, score=residual" and frames.notes["probes"] == 0
    expected = count_tokens(VIDEO, tokenizer, TokenBudget(tau=0.5)).counts
    assert sorted(t for t, n in frames.notes["histogram"] for _ in range(n)) == sorted(expected)
    assert profiles(VIDEO, count_as="stream", tau=0.6).notes["budget"].startswith("stream, tau=0.6")
    rig = profiles(VIDEO, VIDEO, count_as="stream")
    assert rig.notes["videos"] == [VIDEO, f"{VIDEO} (1)"] and rig.notes["steps"] == 5 and rig.tokens[-1] == 256
    assert "counting the tokens of synthetic" in capsys.readouterr().err


def test_what_else_a_video_may_be_counted_as(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="count_as must be one of 'stream', 'frames', got 'film'"):
        count_tokens(VIDEO, tokenizer, TokenBudget(), count_as="film")  # type: ignore[arg-type]


def test_a_video_that_is_not_there(tokenizer: Tokenizer) -> None:
    with pytest.raises(SourceError, match=r"none\.mp4: no such file"):
        count_tokens("none.mp4", tokenizer, TokenBudget())


def test_one_camera() -> None:
    counts = (10, 10, 11, 50, 52, 90)
    profiles = calibrate({"a.mp4": TokenCounts(counts, width=128, height=64)}, buckets=4, budget="tau=0.5")
    histogram = {10: 2, 11: 1, 50: 1, 52: 1, 90: 1}
    assert profiles.tokens == tuple(calibrated_edges(histogram, 4, 128)) and profiles.tokens[-1] == 128
    assert profiles.frames == (FrameRange((1, 1, 1), (64, 64, 64), (128, 128, 128)),)
    notes = profiles.notes
    assert notes["histogram"] == [[10, 2], [11, 1], [50, 1], [52, 1], [90, 1]]
    assert notes["edges"] == list(profiles.tokens) and notes["frames"] == 6 and notes["steps"] == 0
    assert notes["waste"] == pytest.approx(padding(histogram, notes["edges"]) / sum(counts), abs=1e-6)
    assert notes["waste_of_equal_widths"] > notes["waste"]
    assert parse_profiles(profiles.to_json(), "again") == profiles


def test_several_cameras_are_counted_one_by_one_and_together() -> None:
    cameras = {
        "left": TokenCounts((10, 20, 30), width=64, height=64),
        "right": TokenCounts((1, 2), width=64, height=64),
        "rear": TokenCounts((0, 5, 6), width=128, height=64),
    }
    profiles = calibrate(cameras, buckets=3)
    assert profiles.notes["step_histogram"] == [[11, 1], [27, 1]]
    assert profiles.notes["histogram"][0] == [0, 1]  # a frame without tokens is seen, and costs nothing
    assert profiles.tokens[-1] == 64 + 64 + 128
    assert profiles.frames == (
        FrameRange((1, 1, 2), (64, 64, 64), (64, 64, 64)),
        FrameRange((1, 1, 1), (64, 64, 64), (128, 128, 128)),
    )


def test_whole_frames_of_one_camera_are_no_steps() -> None:
    left = TokenCounts((10, 20), width=64, height=64, probes=3)
    right = TokenCounts((1, 2), width=128, height=64, probes=1)
    frames, steps = histogram_of([left, right])
    assert frames == {10: 1, 20: 1, 1: 1, 2: 1, 64: 3, 128: 1} and steps == {11: 1, 22: 1}
    profiles = calibrate({"left": left, "right": right}, buckets=8)
    assert (profiles.notes["frames"], profiles.notes["probes"], profiles.notes["steps"]) == (4, 4, 2)
    assert profiles.tokens[-1] == 192 and {t for t, _ in profiles.notes["histogram"]} == {1, 2, 10, 20, 64, 128}


def test_a_rig_of_no_camera() -> None:
    with pytest.raises(InputError, match="at least one video"):
        calibrate({})


# --- edges ----------------------------------------------------------------------------------------

counts = st.dictionaries(st.integers(0, 30), st.integers(0, 9), max_size=9)


@given(counts, st.integers(1, 5))
def test_edges_are_the_best_there_are(histogram: dict[int, int], k: int) -> None:
    """Against every choice of at most k edges, at any place."""
    edges = optimal_buckets(histogram, k, 1, 30)
    assert edges == sorted(set(edges)) and edges[-1] == 30 and 1 <= len(edges) <= k
    places = sorted({t for t in histogram if 0 < t < 30})  # an edge between two counts is never better than at one
    best = min(
        padding(histogram, [*chosen, 30])
        for size in range(min(k, len(places) + 1))
        for chosen in itertools.combinations(places, size)
    )
    assert padding(histogram, edges) == best


@given(st.dictionaries(st.integers(1, 8), st.integers(0, 5)), st.integers(1, 3))
def test_edges_between_counts_are_not_better(histogram: dict[int, int], k: int) -> None:
    best = min(
        padding(histogram, [*chosen, 8]) for size in range(k) for chosen in itertools.combinations(range(1, 8), size)
    )
    assert padding(histogram, optimal_buckets(histogram, k, 1, 8)) == best


@given(st.dictionaries(st.integers(1, 4000), st.integers(1, 1000), min_size=1, max_size=300), st.integers(1, 12))
def test_more_buckets_and_chosen_edges_waste_less(histogram: dict[int, int], k: int) -> None:
    edges = optimal_buckets(histogram, k, 1, 4000)
    assert waste(histogram, edges) <= waste(histogram, equal_width(k, 1, 4000))
    assert waste(histogram, optimal_buckets(histogram, k + 1, 1, 4000)) <= waste(histogram, edges)
    total = sum(t * n for t, n in histogram.items())
    assert waste(histogram, edges) == pytest.approx(padding(histogram, edges) / total)


@given(st.dictionaries(st.integers(0, 4000), st.integers(0, 1000), max_size=300), st.integers(1, 12))
def test_calibrated_edges_leave_room(histogram: dict[int, int], k: int) -> None:
    edges = calibrated_edges(histogram, k, 4000)
    assert edges == sorted(set(edges)) and edges[-1] == 4000 and 1 <= len(edges) <= k
    # As good as the best for what was counted, but for what is kept for other counts.
    assert waste(histogram, edges) >= waste(histogram, optimal_buckets(histogram, k, 1, 4000))


def test_a_little_more_than_was_ever_counted_is_not_padded_to_the_end() -> None:
    histogram = dict.fromkeys(range(95, 106), 10)
    edges = calibrated_edges(histogram, 8, 1344)
    assert waste(histogram, edges) < 0.1
    for count in (107, 120, 150):
        assert min(edge for edge in edges if edge >= count) <= 1.3 * count
    exact = optimal_buckets(histogram, 8, 1, 1344)
    assert min(edge for edge in exact if edge >= 107) == 1344


def test_as_many_buckets_as_counts_waste_nothing() -> None:
    histogram = dict.fromkeys(range(1, 32), 2)
    assert optimal_buckets(histogram, 32, 1, 31) == list(range(1, 32))
    assert waste(histogram, list(range(1, 32))) == 0
    assert waste({}, [7]) == 0
    assert optimal_buckets({}, 4, 1, 100) == [100]


def test_a_large_histogram_is_quick() -> None:
    """Linear in the number of different counts: 20,000 different ones take well below a second."""
    histogram = {t: 1 + t % 7 for t in range(1, 20_000)}
    edges = optimal_buckets(histogram, 8, 1, 20_000)
    assert len(edges) == 8 and edges[-1] == 20_000


def test_equal_widths() -> None:
    assert equal_width(4, 1, 100) == [25, 50, 75, 100]
    assert equal_width(3, 1, 2) == [1, 2]
    with pytest.raises(InputError, match="1 <= low <= high"):
        equal_width(0, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (({5: 1}, 0, 1, 10), "buckets must be 1 to 32, got 0"),
        (({5: 1}, 33, 1, 10), "buckets must be 1 to 32, got 33"),
        (({11: 1}, 2, 1, 10), "1 frames of 11 tokens; counts must be from 1 to 10"),
        (({5: -1}, 2, 1, 10), "-1 frames of 5 tokens"),
        (({-5: 1}, 2, 1, 10), "frames of -5 tokens"),
        (({5: 1}, 2, 6, 10), "frames of 5 tokens; counts must be from 6 to 10"),
        (({5: 1}, 2, 10, 1), "rising, got 10 to 1"),
        (({5: 1}, 2, 0, 10), "from 1 to"),
    ],
)
def test_edges_for_nonsense(arguments: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        optimal_buckets(*arguments)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=9, unique=True), st.integers(-5, 1100))
def test_the_smallest_fitting_bucket(edges: list[int], count: int) -> None:
    edges.sort()
    if 1 <= count <= edges[-1]:
        index = smallest_fitting(edges, count)
        assert edges[index] >= count and (index == 0 or edges[index - 1] < count)
    else:
        with pytest.raises(InputError) as caught:
            smallest_fitting(edges, count, model="tatok-s8")
        for part in ("features", str(count), f"1 to {edges[-1]}", "tatok build tatok-s8 --profiles FILE"):
            assert part in str(caught.value)


# --- profile files --------------------------------------------------------------------------------


def sample(**changes: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "tokens": [64, 256],
        "frames": [{"batch": [1, 1, 2], "height": [32, 64, 96], "width": [32, 64, 128]}],
    } | changes


def frame(**changes: Any) -> dict[str, Any]:
    return sample(frames=[sample()["frames"][0] | changes])


def test_a_profile_file(tmp_path: Path) -> None:
    path = tmp_path / "profiles.json"
    path.write_text(json.dumps(sample()))
    profiles = load_profiles(path)
    assert profiles == ProfileSet((64, 256), (FrameRange((1, 1, 2), (32, 64, 96), (32, 64, 128)),))
    assert profiles.to_json() == sample()
    assert len(profiles.tag) == 64 and profiles.tag != parse_profiles(sample(tokens=[64, 255]), "x").tag


def test_shapes_of_every_graph() -> None:
    bundle = open_bundle("tatok-s8")
    shapes = graph_profiles(parse_profiles(sample(), "x"), bundle)
    assert shapes["global_encoder"][0]["cells"].max == (2, 192, 3, 4)
    assert shapes["cell_context"][0]["codes"].min == (1, len(bundle.levels), 1, 1)
    assert shapes["context"][0]["coarse"].min == (1, bundle.context_width, 1, 1)
    assert [p["features"].min for p in shapes["patch_encoder"]] == [(1, 1056), (65, 1056)]
    assert [p["features"].max for p in shapes["patch_encoder"]] == [(64, 1056), (256, 1056)]
    assert shapes["decoder"][0]["state"].opt == (1, bundle.depth * (len(bundle.levels) + 2), 8, 8)
    assert shapes["decoder"][0]["context"].max == (2, bundle.context_width, 12, 16)


def test_the_default_holds_what_cameras_deliver() -> None:
    profiles = default_profiles()
    assert parse_profiles(profiles.to_json(), "default") == profiles
    assert len(profiles.tokens) >= 4
    for width, height in ((256, 256), (640, 480), (1280, 736), (1920, 1088), (32, 32)):
        assert any(f.height[0] <= height <= f.height[2] and f.width[0] <= width <= f.width[2] for f in profiles.frames)
        assert width * height // 64 <= profiles.tokens[-1]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "must be a JSON object"),
        (sample(format_version=2), "'format_version' is 2, this version reads 1"),
        (sample(token=[1]), "unknown entry 'token'"),
        (sample(tokens=[]), "'tokens' must be a list of 1 to 32 edges"),
        (sample(tokens=list(range(1, 40))), "'tokens' must be a list of 1 to 32 edges"),
        (sample(tokens=[64, 64]), "'tokens' must rise, but 64 follows 64"),
        (sample(tokens=[0]), r"tokens\[0\] must be an integer from 1 to 1048576, got 0"),
        (sample(tokens=[1.5]), r"tokens\[0\] must be an integer"),
        (sample(tokens=[True]), r"tokens\[0\] must be an integer"),
        (sample(tokens=[1 << 40]), r"tokens\[0\] must be an integer from 1 to 1048576"),
        (sample(frames=[]), "'frames' must be a list of 1 to 16"),
        (sample(frames=[{"batch": [1, 1, 1]}]), r"frames\[0\] must have exactly 'batch', 'height' and 'width'"),
        (frame(batch=[0, 1, 1]), r"frames\[0\].batch must rise from at least 1 to at most 1024, got \[0, 1, 1\]"),
        (frame(batch=[2, 1, 3]), "batch must rise"),
        (frame(batch=[1, 1]), r"batch must be three integers \[min, opt, max\], got \[1, 1\]"),
        (frame(height=[32, 64, 100]), r"height must be multiples of 32 \(frames are padded to them\), got"),
        (frame(height=[8, 64, 96]), "height must rise from at least 32"),
        (frame(width=[32, 64, 32768]), "width must rise from at least 32 to at most 16384"),
        (frame(width="640"), "width must be three integers"),
        (frame(batch=[1, 1, 1024], height=[32, 32, 4096], width=[32, 32, 4096]), "patches at once, more than the"),
    ],
)
def test_profiles_that_no_engine_can_have(data: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_profiles(data, "my.json")


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(InputError, match="cannot be read"):
        load_profiles(path)
    for text, says in (("{", "not valid JSON"), ("[" * 100_000, "not valid JSON"), (" " * (1 << 21), "larger than")):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            load_profiles(path)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda x: st.lists(x, max_size=4), max_leaves=4))
def test_nothing_but_input_errors(junk: Any) -> None:
    for data in (junk, sample(tokens=junk), sample(frames=junk), frame(height=junk), frame(batch=junk)):
        try:
            profiles = parse_profiles(data, "x")
        except InputError:
            continue
        assert all(f.batch[2] * f.height[2] * f.width[2] <= 64 * MAX_PATCHES for f in profiles.frames)
