"""Profiles for ragged token counts: calibration on a video, exact bucket edges, profile files."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.bundle import open_bundle
from tatok_edge.errors import InputError, SourceError
from tatok_edge.export.profiles import (
    MAX_PATCHES,
    FrameRange,
    ProfileSet,
    TokenCounts,
    calibrate,
    count_tokens,
    default_profiles,
    equal_width,
    graph_profiles,
    load_profiles,
    optimal_buckets,
    parse_profiles,
    smallest_fitting,
    waste,
)
from tatok_edge.sources import open_source
from tatok_edge.tokenizer import Tokenizer
from tatok_edge.tokens import TokenBudget

VIDEO = "synthetic:frames=5,width=100,height=64"


def padding(histogram: dict[int, int], edges: list[int]) -> int:
    return sum(n * (min(edge for edge in edges if edge >= t) - t) for t, n in histogram.items() if t)


# --- calibration ----------------------------------------------------------------------------------


def test_counts_are_those_of_the_tokenizer(tokenizer: Tokenizer) -> None:
    budget = TokenBudget(tau=0.4, score="entropy")
    counted = count_tokens(VIDEO, tokenizer, budget)
    with open_source(VIDEO) as source:
        expected = [tokenizer.encode(frame.image, budget=budget).n_tokens for frame in source]
    assert list(counted.counts) == expected and len(expected) == 5
    assert (counted.width, counted.height) == (128, 64)
    assert min(expected) > 0 and max(expected) < 128
    assert count_tokens(VIDEO, tokenizer, budget, frames=2).counts == counted.counts[:2]


def test_by_information_every_patch_is_encoded(tokenizer: Tokenizer) -> None:
    budget = TokenBudget(tau=0.4, score="information")
    assert count_tokens(VIDEO, tokenizer, budget, frames=2).counts == (128, 128)


def test_a_video_that_is_not_there(tokenizer: Tokenizer) -> None:
    with pytest.raises(SourceError, match=r"none\.mp4: no such file"):
        count_tokens("none.mp4", tokenizer, TokenBudget())


def test_one_camera() -> None:
    counts = (10, 10, 11, 50, 52, 90)
    profiles = calibrate({"a.mp4": TokenCounts(counts, width=128, height=64)}, buckets=4, budget="tau=0.5")
    assert profiles.tokens == (11, 52, 90, 128)
    assert profiles.frames == (FrameRange((1, 1, 1), (64, 64, 64), (128, 128, 128)),)
    notes = profiles.notes
    assert notes["histogram"] == [[10, 2], [11, 1], [50, 1], [52, 1], [90, 1]]
    assert notes["edges"] == [11, 52, 90, 128] and notes["frames"] == 6 and notes["steps"] == 0
    assert notes["waste"] == pytest.approx((1 + 1 + 2) / sum(counts), abs=1e-6)
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
    assert shapes["context"][0]["codes"].min == (1, len(bundle.levels), 1, 1)
    assert [p["features"].min for p in shapes["patch_encoder"]] == [(1, 1056), (65, 1056)]
    assert [p["features"].max for p in shapes["patch_encoder"]] == [(64, 1056), (256, 1056)]
    assert shapes["decoder"][0]["state"].opt == (1, len(bundle.levels) + 2, 8, 8)
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
