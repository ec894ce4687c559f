"""The tokenizer with the shipped model: round trips, budgets, batches, threads, and what it refuses."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, get_args

import cv2
import numpy as np
import pytest
from helpers.paths import shared
from helpers.threads import in_threads
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tatok_edge.errors import BackendError, FormatError, InputError
from tatok_edge.evaluation.folder import random_tokens
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import cell_grid, patch_grid
from tatok_edge.model.bundle import open_bundle
from tatok_edge.model.tokenizer import EncodeResult, Tokenizer
from tatok_edge.runtime.cores import default_threads
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.session import Session
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.batch import TokenBatch
from tatok_edge.tokens.budget import Score, TokenBudget
from tatok_edge.tokens.frame import TokenFrame

Image = np.ndarray
SCORES = get_args(Score)
SIZES = [(32, 32), (33, 47), (256, 256), (100, 640), (63, 32), (97, 95)]
"""Heights and widths."""


def picture(height: int, width: int, seed: int = 0) -> Image:
    """A picture with flat areas, edges and texture."""
    scene = render(Scene(width=max(width, 160), height=max(height, 120), seed=seed), 20)
    return np.ascontiguousarray(scene[-height:, :width])


def tokens_of(frame: TokenFrame, depth: int) -> np.ndarray:
    """Indices of the tokens of a frame into scores ``(N * depth,)``."""
    return frame.positions * depth + frame.depths - 1


def noise(height: int, width: int, seed: int = 0) -> Image:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def kodak() -> list[Image]:
    """256x256 crops of four photographs."""
    crops = []
    for number in (3, 7, 19, 23):
        image = cv2.imread(str(shared(f"eval/kodak/kodim{number:02d}.png")))
        assert image is not None
        crops.append(np.ascontiguousarray(image[128:384, 128:384, ::-1]))
    return crops


@pytest.fixture(scope="module")
def image() -> Image:
    return picture(96, 128)


@pytest.fixture(scope="module")
def everything(tokenizer: Tokenizer, image: Image) -> EncodeResult:
    """``image`` with all tokens."""
    return tokenizer.encode_detailed(image, budget=TokenBudget(score="information", min_tokens=10**9))


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_round_trip(tokenizer: Tokenizer, height: int, width: int) -> None:
    image = picture(height, width)
    frame = tokenizer.encode(image, index=5, timestamp_us=-7)
    assert (frame.width, frame.height, frame.index, frame.timestamp_us) == (width, height, 5, -7)
    assert frame.model == tokenizer.tag
    assert frame.depth_map().shape == patch_grid(width, height)
    assert (frame.depth_map() == tokenizer.depth).all()
    assert frame.n_globals == np.prod(cell_grid(width, height))
    assert frame.ids.max() < tokenizer.vocabulary == 64000
    decoded = tokenizer.decode(frame)
    assert decoded.shape == image.shape and decoded.dtype == np.uint8
    assert psnr(image, decoded) > 17
    assert tokenizer.unpack(tokenizer.pack(frame)) == frame


@pytest.mark.parametrize("fill", [0, 127, 255])
def test_flat_pictures(tokenizer: Tokenizer, fill: int) -> None:
    image = np.full((64, 64, 3), fill, np.uint8)
    decoded = tokenizer.decode(tokenizer.encode(image))
    assert np.abs(decoded.astype(int) - fill).mean() < 16


def test_noise_of_any_kind_decodes_to_something(tokenizer: Tokenizer) -> None:
    for image in (noise(40, 72), np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, 2)):
        frame = tokenizer.encode(image)
        assert tokenizer.decode(frame).shape == image.shape
        assert tokenizer.unpack(tokenizer.pack(frame)) == frame


def test_padding_repeats_the_edge(tokenizer: Tokenizer) -> None:
    image = picture(41, 50)
    padded = np.pad(image, ((0, 64 - 41), (0, 64 - 50), (0, 0)), mode="edge")
    of_image, of_padded = tokenizer.encode(image), tokenizer.encode(padded)
    assert np.array_equal(of_image.ids, of_padded.ids)
    assert np.array_equal(of_image.global_ids, of_padded.global_ids)
    assert np.array_equal(tokenizer.decode(of_image), tokenizer.decode(of_padded)[:41, :50])


def test_bgr(tokenizer: Tokenizer, image: Image) -> None:
    swapped = np.ascontiguousarray(image[:, :, ::-1])
    frame = tokenizer.encode(image)
    assert tokenizer.encode(swapped, bgr=True) == frame
    assert tokenizer.encode(swapped) != frame
    assert np.array_equal(tokenizer.decode(frame, bgr=True), tokenizer.decode(frame)[:, :, ::-1])
    batch = tokenizer.encode_batch([swapped, swapped], bgr=True, indices=[0, 0])
    assert batch.frames() == [frame, frame]
    assert np.array_equal(tokenizer.decode(batch, bgr=True)[1], tokenizer.decode(frame)[:, :, ::-1])


def test_strides_do_not_matter(tokenizer: Tokenizer) -> None:
    base = picture(160, 200)
    views = {
        "rows": base[10:110:2, 20:90],
        "columns": base[10:60, 20:160:2],
        "upside down": base[::-1, :64],
        "mirrored": base[:64, ::-1],
        "channels backwards": base[:64, :64, ::-1],
        "transposed": base[:70, :50].transpose(1, 0, 2),
        "of four channels": np.dstack([base, base[:, :, :1]])[:64, :64, :3],
        "Fortran": np.asfortranarray(base[:40, :48]),
        "repeated": np.broadcast_to(base[50:51, 60:61], (40, 40, 3)),
    }
    for name, view in views.items():
        if name != "repeated":
            assert not view.flags.c_contiguous, name
        before = view.copy()
        for budget in (TokenBudget(), TokenBudget(keep=0.5, score="entropy")):
            assert tokenizer.encode(view, budget=budget) == tokenizer.encode(before, budget=budget), name
        assert np.array_equal(view, before), name


def test_a_read_only_image(tokenizer: Tokenizer, image: Image) -> None:
    locked = image.copy()
    locked.flags.writeable = False
    assert tokenizer.encode(locked) == tokenizer.encode(image)


# --- batches -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "budget",
    [
        TokenBudget(),
        TokenBudget(tau=0.7),
        TokenBudget(keep=0.3, score="entropy"),
        TokenBudget(max_bits=1500),
        TokenBudget(max_tokens=0),
        TokenBudget(max_tokens=0, score="entropy"),
    ],
    ids=["all", "tau", "entropy", "bits", "none", "none by entropy"],
)
def test_a_batch_holds_what_encode_gives(tokenizer: Tokenizer, budget: TokenBudget) -> None:
    images = [picture(64, 96, 1), noise(33, 47, 2), picture(32, 32, 3), picture(100, 70, 4), noise(32, 160, 5)]
    batch = tokenizer.encode_batch(images, budget=budget, indices=[9, 3, 4, 5, 6], timestamps_us=[0, 10, 20, 30, 40])
    assert len(batch) == 5 and batch.sizes == tuple((i.shape[1], i.shape[0]) for i in images)
    alone = [
        tokenizer.encode(image, budget=budget, index=index, timestamp_us=10 * number)
        for number, (image, index) in enumerate(zip(images, [9, 3, 4, 5, 6], strict=True))
    ]
    assert batch.frames() == alone
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum([frame.n_tokens for frame in alone])]
    for decoded, frame in zip(tokenizer.decode(batch), alone, strict=True):
        assert np.array_equal(decoded, tokenizer.decode(frame))


def test_batches_that_cannot_be(tokenizer: Tokenizer, image: Image) -> None:
    with pytest.raises(InputError, match="at least one image"):
        tokenizer.encode_batch([])
    with pytest.raises(InputError, match=r"images\[1\] must be uint8"):
        tokenizer.encode_batch([image, image.astype(np.float32)])
    with pytest.raises(InputError, match="as many as the 2 images"):
        tokenizer.encode_batch([image, image], indices=[1])
    with pytest.raises(InputError, match="as many as the 1 images"):
        tokenizer.encode_batch([image], timestamps_us=[1, 2])


# --- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", SCORES)
def test_tau_keeps_the_smallest_prefix_of_the_ranked_scores(tokenizer: Tokenizer, image: Image, score: Any) -> None:
    result = tokenizer.encode_detailed(image, budget=TokenBudget(score=score))
    scores = result.scores.reshape(-1)
    assert result.scores.shape == (*result.frame.grid, tokenizer.depth) and (scores >= 0).all()
    assert (np.diff(result.scores, axis=2) <= 0).all()  # so a kept token has all tokens above it
    counts = []
    for tau in (0.1, 0.5, 0.9, 1.0):
        frame = tokenizer.encode(image, budget=TokenBudget(tau=tau, score=score))
        kept = scores[tokens_of(frame, tokenizer.depth)]
        slack = scores.size * 2.0**-16
        assert kept.sum() >= tau * scores.sum() - slack
        assert kept.sum() - kept.min() < tau * scores.sum() + slack
        dropped = np.delete(scores, tokens_of(frame, tokenizer.depth))
        assert not dropped.size or dropped.max() <= kept.min() + 2.0**-16
        counts.append(frame.n_tokens)
    assert counts == sorted(counts) and counts[0] < counts[2] < counts[3] <= scores.size
    assert counts[3] >= np.count_nonzero(scores > 2.0**-16)


@pytest.mark.parametrize("score", SCORES)
def test_counts(tokenizer: Tokenizer, image: Image, score: Any) -> None:
    patches, depth = 12 * 16, tokenizer.depth
    for budget, expected in [
        (TokenBudget(keep=0.25, score=score), 48),
        (TokenBudget(keep=0.0, score=score), 0),
        (TokenBudget(keep=1.0, score=score), patches),
        (TokenBudget(keep=2.5, score=score), 480),
        (TokenBudget(keep=depth, min_tokens=10**9, score=score), depth * patches),
        (TokenBudget(max_depth=1, min_tokens=10**9, score=score), patches),
        (TokenBudget(max_depth=2, min_tokens=10**9, score=score), 2 * patches),
        (TokenBudget(max_depth=2, keep=0.25, score=score), 48),
        (TokenBudget(max_tokens=7, score=score), 7),
        (TokenBudget(max_tokens=10**9, min_tokens=10**9, score=score), depth * patches),
        (TokenBudget(keep=0.5, max_tokens=20, score=score), 20),
        (TokenBudget(tau=1e-9, score=score), 1),
        (TokenBudget(tau=1e-9, min_tokens=33, score=score), 33),
        (TokenBudget(tau=1e-9, min_tokens=33, max_tokens=20, score=score), 20),
        *(
            [(TokenBudget(floor_bits=1e6, score=score), 0), (TokenBudget(floor_bits=1e6, min_tokens=5, score=score), 5)]
            if score in ("information", "entropy")
            else []
        ),
    ]:
        frame = tokenizer.encode(image, budget=budget)
        assert frame.n_tokens == expected, budget
        assert frame.depth_map().max() <= budget.depth(depth)
        assert tokenizer.decode(frame).shape == image.shape
        assert tokenizer.unpack(tokenizer.pack(frame)) == frame


def test_floor_bits(tokenizer: Tokenizer, image: Image, everything: EncodeResult) -> None:
    floor = float(np.median(everything.scores))
    frame = tokenizer.encode(image, budget=TokenBudget(floor_bits=floor, score="information"))
    scores = everything.scores.reshape(-1)
    assert 0 < frame.n_tokens < scores.size
    assert scores[tokens_of(frame, tokenizer.depth)].min() >= floor - 2.0**-15
    assert np.delete(scores, tokens_of(frame, tokenizer.depth)).max() < floor + 2.0**-15


def test_the_scores_rank_differently(tokenizer: Tokenizer, image: Image) -> None:
    by = [tokenizer.encode(image, budget=TokenBudget(keep=0.3, score=s)) for s in SCORES]
    for a, b in itertools.combinations(by, 2):
        assert not np.array_equal(a.positions, b.positions)
        assert np.array_equal(a.global_ids, b.global_ids)


def test_the_visual_score_is_the_residual_by_what_is_seen(tokenizer: Tokenizer, image: Image) -> None:
    residual, visual = (tokenizer.encode_detailed(image, budget=TokenBudget(score=s)).scores for s in SCORES[:2])
    weights = kernels.visual_weights(image).reshape(12, 16, 1)
    assert np.array_equal(visual, residual * weights)
    assert weights.min() < 0.5 < weights.max()


def test_a_token_of_a_deep_stack_is_that_of_every_budget(tokenizer: Tokenizer, image: Image) -> None:
    """A token depends on those above it alone, so budgets choose tokens and do not change them."""
    everything = tokenizer.encode(image, budget=TokenBudget(min_tokens=10**9))
    ids = everything.ids.reshape(-1, tokenizer.depth)
    for budget in (TokenBudget(keep=0.3), TokenBudget(keep=1.5), TokenBudget(max_depth=2), TokenBudget(tau=0.5)):
        frame = tokenizer.encode(image, budget=budget)
        assert np.array_equal(frame.ids, ids[frame.positions, frame.depths - 1])
        assert np.array_equal(frame.global_ids, everything.global_ids)


def test_information_rich_patches_get_more_tokens(tokenizer: Tokenizer) -> None:
    """Half flat, half noise: the flat half gets next to none."""
    image = np.full((96, 128, 3), 120, np.uint8)
    image[:, 64:] = noise(96, 64)
    depths = tokenizer.encode(image, budget=TokenBudget(keep=1.0)).depth_map()
    assert depths[:, :7].mean() < 0.3 and depths[:, 9:].mean() > 1.5
    assert depths.max() > 1


def test_keep_above_the_depth_is_refused(tokenizer: Tokenizer, image: Image) -> None:
    says = f"keep must be from 0 to {tokenizer.depth} tokens per patch, the depth of this model, got 7.5"
    with pytest.raises(InputError, match=says):
        tokenizer.encode(image, budget=TokenBudget(keep=7.5))
    with pytest.raises(InputError, match=says):
        tokenizer.encode_batch([image], budget=TokenBudget(keep=7.5, refine=1))


@pytest.mark.parametrize("score", SCORES)
def test_max_bits_is_never_exceeded_and_used(tokenizer: Tokenizer, image: Image, score: Any) -> None:
    whole = 8 * len(tokenizer.pack(tokenizer.encode(image)))
    most = tokenizer.encode(image, budget=TokenBudget(score=score)).n_tokens
    counts = []
    for share in (0.3, 0.45, 0.6, 0.8, 1.0, 2.0):
        limit = int(share * whole)
        frame = tokenizer.encode(image, budget=TokenBudget(max_bits=limit, score=score), index=0)
        bits = 8 * len(tokenizer.pack(frame))
        assert bits <= limit
        # One more token would not have fitted; stacks of equal scores may go together.
        assert frame.n_tokens == most or bits > limit - 200
        counts.append(frame.n_tokens)
    assert counts == sorted(counts) and counts[0] < counts[3]
    assert counts[-1] == most


def test_max_bits_counts_the_header(tokenizer: Tokenizer, image: Image) -> None:
    """A large index and time make the header longer, so fewer tokens fit."""
    budget = TokenBudget(max_bits=1200)
    frame = tokenizer.encode(image, budget=budget, index=2**62, timestamp_us=-(2**62))
    assert 8 * len(tokenizer.pack(frame)) <= 1200
    assert frame.n_tokens < tokenizer.encode(image, budget=budget).n_tokens


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.floats(0.01, 1), st.none() | st.floats(0, 2), st.none() | st.integers(0, 800), st.none() | st.integers(1, 5),
    st.integers(700, 9000), st.integers(0, 800), st.floats(0, 15),
)  # fmt: skip
def test_all_limits_hold_together(
    tokenizer: Tokenizer,
    everything: EncodeResult,
    tau: float,
    keep: float | None,
    max_tokens: int | None,
    max_depth: int | None,
    max_bits: int,
    min_tokens: int,
    floor_bits: float,
) -> None:
    budget = TokenBudget(
        tau=tau,
        keep=keep,
        max_tokens=max_tokens,
        max_depth=max_depth,
        max_bits=max_bits,
        min_tokens=min_tokens,
        floor_bits=floor_bits,
        score="information",
    )
    frame = tokenizer.reduce(everything, budget)
    without_bits = tokenizer.reduce(everything, dataclasses.replace(budget, max_bits=None))
    smallest, largest = budget.limits(frame.n_patches, tokenizer.depth)
    assert frame.depth_map().max() <= budget.depth(tokenizer.depth)
    assert 8 * len(tokenizer.pack(frame)) <= max_bits
    assert frame.n_tokens <= without_bits.n_tokens <= largest
    assert smallest <= without_bits.n_tokens
    assert (frame.depth_map() <= without_bits.depth_map()).all()
    if 8 * len(tokenizer.pack(without_bits)) <= max_bits:
        assert frame == without_bits


def test_max_bits_below_the_globals_is_refused(tokenizer: Tokenizer, image: Image, everything: EncodeResult) -> None:
    smallest = 8 * len(tokenizer.pack(tokenizer.encode(image, budget=TokenBudget(max_tokens=0))))
    assert tokenizer.encode(image, budget=TokenBudget(max_bits=smallest)).n_tokens == 0
    for action in (
        lambda budget: tokenizer.encode(image, budget=budget),
        lambda budget: tokenizer.reduce(everything, budget),
    ):
        with pytest.raises(InputError, match=f"max_bits = {smallest - 8} is less than the {smallest} bits"):
            action(TokenBudget(max_bits=smallest - 8))


@pytest.mark.parametrize(
    "budget",
    [
        TokenBudget(tau=0.4),
        TokenBudget(keep=0.2, floor_bits=3, score="information"),
        TokenBudget(tau=0.5, score="information"),
        TokenBudget(max_tokens=0),
        TokenBudget(max_bits=1300),
        TokenBudget(tau=0.1, min_tokens=60, max_tokens=61),
        TokenBudget(tau=0.6, score="entropy"),
        TokenBudget(keep=0.3, max_bits=1300, score="entropy"),
        TokenBudget(keep=1.6),
        TokenBudget(keep=1.6, max_depth=3),
        TokenBudget(max_depth=1),
        TokenBudget(tau=0.5, score="visual"),
    ],
    ids=repr,
)
def test_reduce_gives_what_encode_gives(tokenizer: Tokenizer, image: Image, budget: TokenBudget) -> None:
    every = TokenBudget(min_tokens=10**9, score=budget.score)
    result = tokenizer.encode_detailed(image, budget=every, index=3, timestamp_us=4)
    assert tokenizer.reduce(result, budget) == tokenizer.encode(image, budget=budget, index=3, timestamp_us=4)


def test_reduce_needs_all_tokens(tokenizer: Tokenizer, image: Image) -> None:
    part = tokenizer.encode_detailed(image, budget=TokenBudget(keep=0.5))
    with pytest.raises(InputError, match=f"holds 96 of {192 * tokenizer.depth} tokens; encode with all of them"):
        tokenizer.reduce(part, TokenBudget())


def test_stages_are_timed(everything: EncodeResult) -> None:
    stages = {"cells", "global_encoder", "cell_context", "context", "gather", "patch_encoder", "score", "dtf", "ids"}
    assert set(everything.seconds) == stages
    assert all(seconds > 0 for seconds in everything.seconds.values())


# --- the same again ------------------------------------------------------------------------------


def test_the_same_tokens_every_time(tokenizer: Tokenizer, image: Image) -> None:
    first = tokenizer.encode(image)
    decoded = tokenizer.decode(first)
    for _ in range(5):
        assert tokenizer.encode(image) == first
        assert np.array_equal(tokenizer.decode(first), decoded)


def test_the_same_tokens_with_any_number_of_threads(tokenizer: Tokenizer) -> None:
    """Measured: not one code differs. Allowed is what another processor's rounding might make of a code at an edge."""
    images = [picture(96, 128), noise(64, 64), picture(256, 192, 4)]
    with Tokenizer.load(threads=1) as one, Tokenizer.load(threads=2) as two:
        assert (one.backend.threads, two.backend.threads) == (1, 2)
        for image in images:
            a, b = one.encode(image), two.encode(image)
            assert np.array_equal(a.global_ids, b.global_ids)
            assert (a.ids != b.ids).mean() <= 0.001
            pictures = [other.decode(a).astype(int) for other in (one, two, tokenizer)]
            assert max(np.abs(pictures[0] - p).max() for p in pictures[1:]) <= 1


def test_two_threads_at_once(tokenizer: Tokenizer) -> None:
    images = [picture(64, 96, 1), noise(96, 64, 2), picture(32, 128, 3), noise(47, 33, 4)]
    budgets = [TokenBudget(tau=0.5), TokenBudget(keep=0.4, score="entropy"), TokenBudget(max_bits=1500), TokenBudget()]
    work = [(image, budget) for image in images for budget in budgets]
    expected = [tokenizer.encode(image, budget=budget) for image, budget in work]
    pictures = [tokenizer.decode(frame) for frame in expected]
    order = range(len(work))

    def run(thread: int) -> None:
        for number in order[:: -1 if thread else 1]:
            image, budget = work[number]
            frame = tokenizer.encode(image, budget=budget)
            assert frame == expected[number]
            assert np.array_equal(tokenizer.decode(frame), pictures[number])
            assert tokenizer.unpack(tokenizer.pack(frame)) == frame

    in_threads(2, run)


def test_results_outlive_later_calls(tokenizer: Tokenizer, image: Image) -> None:
    frame = tokenizer.encode(image)
    decoded = tokenizer.decode(frame)
    ids, pixels = frame.ids.copy(), decoded.copy()
    other = tokenizer.encode(image[::-1])
    tokenizer.decode(other)
    assert np.array_equal(frame.ids, ids) and np.array_equal(decoded, pixels)


# --- quality -------------------------------------------------------------------------------------


def test_psnr_of_photographs_falls_with_what_is_kept(tokenizer: Tokenizer, kodak: list[Image]) -> None:
    shares = (tokenizer.depth, 2.0, 1.0, 0.5, 0.35, 0.1, 0.0)
    means = np.zeros(len(shares))
    for image in kodak:
        result = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=10**9))
        frames = [tokenizer.reduce(result, TokenBudget(keep=keep)) for keep in shares]
        quality = [psnr(image, tokenizer.decode(frame)) for frame in frames]
        assert quality == sorted(quality, reverse=True)
        means += np.array(quality) / len(kodak)
    assert means[0] > 28 and means[1] > 27
    assert means[2] > 26
    assert means[4] > 24.5
    assert means[6] > 20.5


def test_stacks_are_better_than_one_token_for_each_patch(tokenizer: Tokenizer, kodak: list[Image]) -> None:
    gains = []
    for image in kodak:
        stacks = tokenizer.encode(image, budget=TokenBudget(keep=1.0))
        flat = tokenizer.encode(image, budget=TokenBudget(max_depth=1, min_tokens=10**9))
        assert stacks.n_tokens == flat.n_tokens == flat.n_patches
        gains.append(psnr(image, tokenizer.decode(stacks)) - psnr(image, tokenizer.decode(flat)))
    assert np.mean(gains) > 0.3


def test_the_default_score_chooses_better_than_the_others_and_chance(tokenizer: Tokenizer, kodak: list[Image]) -> None:
    random = np.random.default_rng(0)
    gains = []
    for image in kodak:
        frame = tokenizer.encode(image)
        chosen = tokenizer.encode(image, budget=TokenBudget(keep=0.35))
        by_information = tokenizer.encode(image, budget=TokenBudget(keep=0.35, score="information"))
        by_entropy = tokenizer.encode(image, budget=TokenBudget(keep=0.35, score="entropy"))
        by_chance = random_tokens(frame, chosen.n_tokens, random)
        gains.append([psnr(image, tokenizer.decode(f)) for f in (chosen, by_information, by_entropy, by_chance)])
    best, information, entropy, chance = np.mean(gains, 0)
    assert best > information - 0.05 > entropy > chance
    assert best - chance > 1.5
    assert all(row[0] > row[3] for row in gains)


def test_the_coded_size_is_near_the_information(tokenizer: Tokenizer, kodak: list[Image]) -> None:
    """Information does not look at other patches: coding in their context makes up for positions and headers."""
    for keep, factor in ((1.0, 0.95), (0.35, 1.05), (0.1, 1.2)):
        ideal, real = 0.0, 0
        for image in kodak:
            every = TokenBudget(score="information", max_depth=1, min_tokens=10**9)
            result = tokenizer.encode_detailed(image, budget=every)
            # Of first tokens alone the scores are their bits.
            frame = tokenizer.encode(image, budget=TokenBudget(keep=keep, score="information", max_depth=1))
            ideal += float(result.scores.reshape(-1)[frame.positions].sum())
            real += 8 * (len(tokenizer.pack(frame)) - len(tokenizer.pack(_without_patches(frame))))
        assert real < factor * ideal


def _without_patches(frame: TokenFrame) -> TokenFrame:
    return dataclasses.replace(frame, ids=frame.ids[:0], positions=frame.positions[:0])


# --- values and features -------------------------------------------------------------------------


def test_values_are_the_vectors_of_the_tokens(tokenizer: Tokenizer, image: Image) -> None:
    frame = tokenizer.encode(image, budget=TokenBudget(keep=1.5))
    values = tokenizer.values(frame)
    assert values.shape == (frame.n_tokens, 6) and values.dtype == np.float32
    assert np.abs(values).max() < 1
    codes = kernels.codes_from_ids(frame.ids, tokenizer.levels)
    for d, level in enumerate(tokenizer.levels):
        centres = (2 * np.arange(level) + 1) / level - 1
        np.testing.assert_allclose(values[:, d], centres[codes[:, d]], atol=1e-6)
    assert tokenizer.values(tokenizer.encode(image, budget=TokenBudget(max_tokens=0))).shape == (0, 6)


def test_features_are_what_the_decoder_reads(tokenizer: Tokenizer, image: Image) -> None:
    frame = tokenizer.encode(image, budget=TokenBudget(keep=1.5))
    depth, width = tokenizer.depth, tokenizer.bundle.context_width
    features = tokenizer.features(frame)
    assert features.shape == (12, 16, depth * 8 + width + 192) and features.dtype == np.float32
    assert np.isfinite(features).all() and features.flags.c_contiguous
    kept = features[..., 6 * depth : 7 * depth]
    assert np.array_equal(kept.sum(-1), frame.depth_map())
    assert np.array_equal(kept > 0, frame.depth_map()[..., None] > np.arange(depth))
    rows, columns = np.divmod(frame.positions, 16)
    stacks = features[..., : 6 * depth].reshape(12, 16, depth, 6)
    assert np.array_equal(stacks[rows, columns, frame.depths - 1], tokenizer.values(frame))
    # Without tokens: the conditional means, and all that comes from the global tokens.
    bare = tokenizer.features(tokenizer.encode(image, budget=TokenBudget(max_tokens=0)))
    assert np.array_equal(features[..., 7 * depth :], bare[..., 7 * depth :])
    dropped = ~(kept > 0).repeat(6, axis=-1)
    assert np.array_equal(features[..., : 6 * depth][dropped], bare[..., : 6 * depth][dropped])
    # The mean pixels are a blurred picture.
    mean = features[..., -192:].reshape(12, 16, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(96, 128, 3)
    assert psnr(image, np.clip(np.rint(mean * 127.5 + 127.5), 0, 255).astype(np.uint8)) > 15


def test_values_and_features_of_foreign_frames(tokenizer: Tokenizer, image: Image) -> None:
    frame = tokenizer.encode(image, budget=TokenBudget(keep=0.2))
    ids = frame.ids.copy()
    ids[3] = 64000
    for action in (tokenizer.values, tokenizer.features):
        with pytest.raises(InputError, match=r"the frame does not fit model tatok-s8: .*64000"):
            action(dataclasses.replace(frame, ids=ids))
    with pytest.raises(InputError, match="made by model"):
        tokenizer.features(dataclasses.replace(frame, model=bytes(8)))


def test_stacks_deeper_than_the_model_are_refused(tokenizer: Tokenizer, image: Image) -> None:
    frame = tokenizer.encode(image, budget=TokenBudget(max_tokens=1))
    count = tokenizer.depth + 1
    deep = dataclasses.replace(frame, ids=frame.ids.repeat(count), positions=frame.positions.repeat(count))
    for action in (tokenizer.decode, tokenizer.features, tokenizer.pack):
        with pytest.raises(InputError, match=f"at most {tokenizer.depth} times, the depth of the model, got patch"):
            action(deep)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (noise(64, 64).astype(np.float32), "must be uint8.*got float32; convert"),
        (noise(64, 64).astype(np.int8), "must be uint8.*got int8"),
        (noise(64, 64) > 127, "must be uint8.*got bool"),
        (noise(64, 64)[..., 0], r"must have shape \(H, W, 3\), got \(64, 64\)"),
        (noise(64, 64)[None], r"must have shape \(H, W, 3\), got \(1, 64, 64, 3\)"),
        (noise(64, 64)[..., :1], r"got \(64, 64, 1\)"),
        (np.zeros((64, 64, 4), np.uint8), r"got \(64, 64, 4\)"),
        (np.zeros((3, 64, 64), np.uint8), r"got \(3, 64, 64\)"),
        (np.zeros((0, 0, 3), np.uint8), "0x0 pixels; width and height must be between 32 and 16384"),
        (np.zeros((64, 0, 3), np.uint8), "0x64 pixels"),
        (noise(31, 64), "64x31 pixels"),
        (noise(64, 31), "31x64 pixels"),
        (np.broadcast_to(np.uint8(0), (32, 16385, 3)), "16385x32 pixels"),
        (noise(64, 64).tolist(), "must be uint8 .H, W, 3. in a numpy array.*got list"),
        (None, "got NoneType"),
        ("picture.png", "got str"),
    ],
)
def test_images_that_cannot_be_taken(tokenizer: Tokenizer, image: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        tokenizer.encode(image)
    assert str(caught.value).startswith("image ") and "\n" not in str(caught.value)


def test_frames_of_another_model(tokenizer: Tokenizer, everything: EncodeResult) -> None:
    foreign = dataclasses.replace(everything.frame, model=b"\1" * 8)
    with pytest.raises(InputError, match=f"made by model {'01' * 8}.*{tokenizer.tag.hex()}.*decode it with"):
        tokenizer.decode(foreign)
    with pytest.raises(InputError, match="made by model"):
        tokenizer.pack(foreign)
    with pytest.raises(InputError, match="made by model"):
        tokenizer.decode(TokenBatch.from_frames([foreign]))


@pytest.mark.parametrize("name", ["ids", "global_ids"])
def test_ids_outside_the_vocabulary(tokenizer: Tokenizer, everything: EncodeResult, name: str) -> None:
    ids = getattr(everything.frame, name).copy()
    ids[0] = 64000
    frame = dataclasses.replace(everything.frame, **{name: ids})
    with pytest.raises(InputError, match="64000"):
        tokenizer.decode(frame)
    with pytest.raises(InputError, match="64000"):
        tokenizer.pack(frame)


def test_damaged_packets(tokenizer: Tokenizer, everything: EncodeResult) -> None:
    packet = tokenizer.pack(everything.frame)
    for kind in (bytes, bytearray, memoryview):
        assert tokenizer.unpack(kind(packet)) == everything.frame
    damaged = bytearray(packet)
    damaged[len(damaged) // 2] ^= 4
    for data in (damaged, packet[:-1], packet[:10], b"", packet + b"x"):
        with pytest.raises(FormatError):
            tokenizer.unpack(data)


def test_a_closed_tokenizer_says_so(image: Image, everything: EncodeResult) -> None:
    with Tokenizer.load(threads=1) as tokenizer:
        tokenizer.encode(image)
    for action in (lambda: tokenizer.encode(image), lambda: tokenizer.decode(everything.frame)):
        with pytest.raises(BackendError, match="closed; load the tokenizer again"):
            action()
    tokenizer.close()  # twice is fine
    assert tokenizer.unpack(tokenizer.pack(everything.frame)) == everything.frame  # packets need no network


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"backend": "tensorflow"}, "unknown backend 'tensorflow'.*'onnxruntime'"),
        ({"backend": ""}, "unknown backend ''"),
        ({"threads": 0}, "threads must be between 1 and 256, got 0"),
        ({"threads": 257}, "got 257"),
        ({"threads": -1}, "got -1"),
    ],
)
def test_backends_that_there_are_not(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(BackendError, match=says):
        Tokenizer.load(**arguments)


def test_the_backend_says_what_runs_and_why(tokenizer: Tokenizer) -> None:
    assert tokenizer.backend.name == "onnxruntime" and tokenizer.backend.device == "cpu"
    assert tokenizer.backend.threads == default_threads() and "auto" in tokenizer.backend.reason
    with Tokenizer.load(backend="onnxruntime", threads=1) as named:
        assert "asked for by name" in named.backend.reason and "as asked for" in named.backend.reason
    assert str(tokenizer.backend) in repr(tokenizer) and tokenizer.tag.hex() in repr(tokenizer)


class _Doctored(Session):
    """A session whose graphs' outputs are changed after the fact."""

    def __init__(self, session: OnnxSession, **changes: float) -> None:
        self.session = session
        self.changes = changes

    def run(self, graph: Any, inputs: Mapping[str, Any]) -> Any:
        outputs = self.session.run(graph, inputs)
        for name, value in self.changes.items():
            if name in outputs:
                outputs[name] = np.full_like(outputs[name], value)
        return outputs

    def close(self) -> None:
        pass


@pytest.fixture
def doctored(tokenizer: Tokenizer) -> Any:
    """Makes tokenizers whose networks give a constant for one output."""
    bundle = open_bundle(tokenizer.name)
    return lambda **changes: Tokenizer(bundle, _Doctored(tokenizer.networks.session, **changes), tokenizer.backend)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("name", "score"), [("log2_probs", "information"), ("entropy", "entropy")])
def test_scores_that_are_no_numbers(doctored: Any, image: Image, name: str, score: Any, value: float) -> None:
    broken = doctored(**{name: -value if name == "log2_probs" else value})
    with pytest.raises(InputError, match="scores must be finite"):
        broken.encode(image, budget=TokenBudget(tau=0.5, score=score))


def test_scores_of_a_reduced_result_are_checked(tokenizer: Tokenizer, everything: EncodeResult) -> None:
    scores = everything.scores.copy()
    scores[2, 3] = np.nan
    with pytest.raises(InputError, match="scores must be finite"):
        tokenizer.reduce(dataclasses.replace(everything, scores=scores), TokenBudget(tau=0.5))


def test_pixels_that_are_no_numbers_become_a_picture(doctored: Any, everything: EncodeResult) -> None:
    assert doctored(pixels=np.nan).decode(everything.frame).dtype == np.uint8


def test_a_picture_that_the_globals_say_all_about(doctored: Any, image: Image) -> None:
    """Patches without any information are not kept, even by ``tau = 1``; asking for them brings them back."""
    certain = doctored(log2_probs=0.0)
    assert certain.encode(image, budget=TokenBudget(score="information")).n_tokens == 0
    assert certain.encode(image, budget=TokenBudget(min_tokens=192, score="information")).n_tokens == 192


def test_decode_takes_frames_packets_and_batches(tokenizer: Tokenizer) -> None:
    images = [render(Scene(width=96, height=64), number) for number in range(2)]
    batch = tokenizer.encode_batch(images, budget=TokenBudget(keep=0.5))
    packets = [tokenizer.pack(frame) for frame in batch]
    expected = [tokenizer.decode(frame) for frame in batch]
    assert np.array_equal(tokenizer.decode(packets[1]), expected[1])
    assert np.array_equal(tokenizer.decode(memoryview(packets[1])), expected[1])
    for several in (batch, list(batch), packets, (batch[0], packets[1])):
        assert np.array_equal(tokenizer.decode(several), expected)
    assert tokenizer.decode([]) == []


def test_errors_name_the_fix(tokenizer: Tokenizer) -> None:
    image = render(Scene(width=96, height=64), 0)
    encoder = StreamEncoder(tokenizer)
    encoder.encode(image)
    changed = image.copy()
    changed[:16, :16] ^= 255
    delta = encoder.encode(changed)
    for wrong, fix in (
        (delta.tokens, "StreamDecoder decodes"),
        (tokenizer.encode_detailed(image), "give its field frame"),
        ("clip.ttk", r"tatok_edge\.open reads"),
        ([tokenizer.encode(image), image], r"frame\[1\] must be a TokenFrame"),
    ):
        with pytest.raises(InputError, match=fix):
            tokenizer.decode(wrong)  # type: ignore[call-overload]
    with pytest.raises(FormatError, match="delta packet"):
        tokenizer.decode(delta.packet)
    with pytest.raises(InputError, match="open the file first"):
        tokenizer.encode("clip.png")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="encode_batch takes several"):
        tokenizer.encode([image])  # type: ignore[arg-type]
