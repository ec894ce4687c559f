"""The CUDA kernels on the CPU: the source that nvcc compiles gives the bits of the numpy specification.

A C++ compiler builds the kernels with an emulation of thread blocks, and the wrappers that launch them on a GPU call
them with host memory. Where nvcc is found, it must compile them for every architecture of the product.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import dtf_cases
from helpers.kernel_cases import LEVELS, SEEDS, assert_same, guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import DtfLimits, Frames, Kernels, Scores

SIZES = st.tuples(st.integers(1, 100), st.integers(1, 140))


def address(array: NDArray[Any]) -> int:
    return array.ctypes.data


def frames_of(batch: NDArray[np.uint8], bgr: bool) -> Frames:
    """A batch (B, H, W, 3) in any strides as the kernels take it."""
    images, height, width, _ = batch.shape
    b, y, x, c = batch.strides
    return Frames(address(batch), images, height, width, (b, y, x, c), bgr)


def make_batch(rng: np.random.Generator, images: int, height: int, width: int, layout: str) -> NDArray[np.uint8]:
    """Random frames: packed, at an odd address, cut out of a larger picture, planar, or mirrored."""
    if layout == "planar":
        return rng.integers(0, 256, (images, 3, height, width), np.uint8).transpose(0, 2, 3, 1)
    if layout == "cut":
        return rng.integers(0, 256, (images, height + 3, width + 5, 3), np.uint8)[:, 2:-1, 1:-4]
    if layout == "mirrored":
        return rng.integers(0, 256, (images, height, width, 3), np.uint8)[:, :, ::-1]
    memory = rng.integers(0, 256, images * height * width * 3 + 1, np.uint8)
    start = 1 if layout == "odd" else 0
    return memory[start : start + images * height * width * 3].reshape(images, height, width, 3)


LAYOUTS = st.sampled_from(["packed", "odd", "cut", "planar", "mirrored"])


# --- dynamic token filtering ----------------------------------------------------------------------


def run_dtf(kernels: Kernels, scores: NDArray[Any], limits: DtfLimits, *, planes: bool = False) -> list[NDArray[Any]]:
    """Positions, depths and counts; ``planes`` gives the kernel the scores as (B, K, N)."""
    images, patches, depth = scores.shape
    results = [guarded(shape, np.int32) for shape in ((images, patches * depth), (images, patches * depth), (images,))]
    memory = np.ascontiguousarray(scores.transpose(0, 2, 1)) if planes else scores
    layout = Scores.planes if planes else Scores.packed
    given_scores = layout(address(memory), images, patches, depth, half=scores.dtype == np.float16)
    kernels.dtf(given_scores, limits, *(address(array) for array, _ in results))
    assert all(untouched() for _, untouched in results)
    return [array for array, _ in results]


def assert_dense(actual: Sequence[NDArray[Any]], scores: NDArray[Any], limits: dict[str, Any]) -> None:
    expected = dtf_cases.dense(*reference.dtf(scores.astype(np.float32), **limits), scores.shape)
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


# 200 images per example: mostly small, where the corner cases are; some of frame size and one of the largest.
PLAN = ((5, 28, -96), (2, 20, -700), (1, 13, 1), (1, 5, -9600), (1, 2, 32768))


@settings(max_examples=5)
@given(seed=SEEDS, planes=st.booleans())
def test_token_filtering_equals_specification(kernels: Kernels, seed: int, planes: bool) -> None:
    for scores, limits in dtf_cases.groups(seed, PLAN):
        assert_dense(run_dtf(kernels, scores, DtfLimits.make(**limits), planes=planes), scores, limits)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_half_scores_are_filtered_as_the_floats_that_they_are(kernels: Kernels, seed: int) -> None:
    for scores, limits in dtf_cases.groups(seed, ((4, 8, -120), (1, 2, 4800))):
        half = np.minimum(scores, 65504).astype(np.float16)
        assert_dense(run_dtf(kernels, half, DtfLimits.make(**limits)), half, limits)


def test_every_half_score_counts_as_its_value(kernels: Kernels) -> None:
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16)  # every finite one that is not negative
    limits = {"tau": 0.999, "floor_bits": 2.0**-16}
    for row in half.reshape(-1, 1, 1024, 1):
        assert_dense(run_dtf(kernels, row, DtfLimits.make(**limits)), row, limits)


def test_the_first_planes_of_scores_are_filtered_alone(kernels: Kernels) -> None:
    scores = dtf_cases.scores(np.random.default_rng(8), "entropy", 3, 40, 2)
    planes = np.full((3, 5, 40), np.nan, np.float32)
    planes[:, :2] = scores.transpose(0, 2, 1)
    results = [np.empty(shape, np.int32) for shape in ((3, 80), (3, 80), (3,))]
    limits = {"tau": 0.5}
    given_scores = Scores.planes(address(planes), 3, 40, 2, of=5)
    kernels.dtf(given_scores, DtfLimits.make(**limits), *(address(array) for array in results))
    assert_dense(results, scores, limits)


def test_token_filtering_of_the_largest_grid(kernels: Kernels) -> None:
    rng = np.random.default_rng(5)
    shape = (1, cuda_kernels.MAX_PATCHES, cuda_kernels.MAX_DEPTH)
    for scores in (
        np.full(shape, 3e38, np.float32),  # the sum that needs the most bits
        np.nextafter(np.full(shape, 32768.0, np.float32), np.float32(0)),  # as many values as possible in a bucket
        rng.gamma(0.7, 3.0, shape).astype(np.float32),
    ):
        assert_dense(run_dtf(kernels, scores, DtfLimits.make(tau=0.7)), scores, {"tau": 0.7})
    with pytest.raises(InputError, match="up to 65536"):
        kernels.dtf(Scores.packed(0, 1, (1 << 16) + 1, 1), DtfLimits.make(), 0, 0, 0)
    with pytest.raises(InputError, match="1 to 8 scores per patch, got 9"):
        kernels.dtf(Scores.packed(0, 1, 4, 9), DtfLimits.make(), 0, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-30, -5.0])
def test_a_bad_score_is_named_and_its_image_refused(kernels: Kernels, bad: float) -> None:
    scores = np.ones((3, 700, 2), np.float32)
    scores[1, [613, 640], [1, 0]] = bad
    positions, depths, counts = run_dtf(kernels, scores, DtfLimits.make())
    assert counts.tolist() == [1400, -1 - 1227, 1400]
    assert (positions[1] == -1).all() and (depths[1] == 0).all()
    assert (positions[[0, 2]] == np.arange(1400) // 2).all()
    assert (depths[[0, 2]] == np.arange(1400) % 2 + 1).all()


def flatten(
    kernels: Kernels, dense: Sequence[NDArray[np.int32]], patches: int, depth: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    images = len(dense[2])
    results = [guarded((size,), np.int32) for size in (images * patches * depth,) * 2 + (images + 1,)]
    kernels.flatten(
        *(address(array) for array in dense), images, patches, depth, *(address(array) for array, _ in results)
    )
    assert all(untouched() for _, untouched in results)
    return results[0][0], results[1][0], results[2][0]


@given(seed=SEEDS, images=st.integers(1, 20), patches=st.integers(1, 40), depth=st.integers(1, 8))
def test_flat_result_is_that_of_the_cpu(kernels: Kernels, seed: int, images: int, patches: int, depth: int) -> None:
    rng = np.random.default_rng(seed)
    scores = dtf_cases.scores(rng, "ties", images, patches, depth)
    limits = dtf_cases.limits(rng, scores)
    dense = run_dtf(kernels, scores, DtfLimits.make(**limits))
    positions, depths, cu_seqlens = flatten(kernels, dense, patches, depth)
    expected, expected_depths, expected_cu = reference.dtf(scores, **limits)
    assert_same(cu_seqlens, expected_cu)
    count = len(expected)
    assert_same(positions[:count], expected)
    assert_same(depths[:count], expected_depths)
    assert (positions[count:] == -1).all() and (depths[count:] == 0).all()


def test_a_refused_image_has_no_flat_positions(kernels: Kernels) -> None:
    dense = (
        np.array([[0, 0, 1, -1], [-1, -1, -1, -1], [1, -1, -1, -1]], np.int32),
        np.array([[1, 2, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], np.int32),
        np.array([3, -3, 1], np.int32),
    )
    positions, depths, cu_seqlens = flatten(kernels, dense, 2, 2)
    assert cu_seqlens.tolist() == [0, 3, 3, 4]
    assert positions.tolist() == [0, 0, 1, 5] + [-1] * 8
    assert depths.tolist() == [1, 2, 1, 1] + [0] * 8


@given(
    tau=st.one_of(st.floats(0, 1, exclude_min=True), st.sampled_from(dtf_cases.TAUS)),
    low=st.integers(0, 2**40),
    extra=st.one_of(st.none(), st.integers(0, 2**40)),
    floor_bits=st.one_of(st.floats(0, 1e300), st.sampled_from([2.0**-17, 3 * 2.0**-17, 32768.0, 65536.0])),
)
def test_limits_become_the_integers_of_the_specification(
    tau: float, low: int, extra: int | None, floor_bits: float
) -> None:
    low = min(low, 2**31 - 1)
    limits = DtfLimits.make(
        tau=tau, min_tokens=low, max_tokens=None if extra is None else low + extra, floor_bits=floor_bits
    )
    assert limits.share == max(1, round(tau * reference.TAU_ONE))
    assert limits.floor_score == min(reference.SCORE_MAX, round(floor_bits * reference.SCORE_ONE))
    assert limits.min_tokens == low
    assert limits.max_tokens == min(2**31 - 1, low + (2**31 if extra is None else extra))


@pytest.mark.parametrize(
    "limits",
    [
        *({"tau": 0.0}, {"tau": 1.5}, {"tau": float("nan")}, {"min_tokens": -1}),
        *({"min_tokens": 3, "max_tokens": 2}, {"floor_bits": -1.0}, {"floor_bits": float("inf")}),
    ],
)
def test_bad_limits_are_named(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(limits))):
        DtfLimits.make(**limits)


# --- pixels ---------------------------------------------------------------------------------------


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 3), layout=LAYOUTS, bgr=st.booleans())
def test_cells_equal_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, layout: str, bgr: bool
) -> None:
    batch = make_batch(np.random.default_rng(seed), images, *size, layout)
    expected = np.stack([reference.image_to_cells(image, bgr) for image in batch])
    cells, untouched = guarded(expected.shape, np.float32)
    kernels.image_to_cells(frames_of(batch, bgr), address(cells))
    assert untouched()
    assert cells.tobytes() == expected.tobytes()
    assert cpu_kernels.image_to_cells(batch[0], bgr).tobytes() == cells[0].tobytes()


@given(
    seed=SEEDS,
    size=SIZES,
    images=st.integers(1, 3),
    layout=LAYOUTS,
    bgr=st.booleans(),
    channels=st.sampled_from([1, 16, 96]),
    count=st.integers(0, 70),
)
def test_features_equal_specification(
    kernels: Kernels,
    seed: int,
    size: tuple[int, int],
    images: int,
    layout: str,
    bgr: bool,
    channels: int,
    count: int,
) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, images, *size, layout)
    columns = -(-size[1] // 32) * 4
    patches = -(-size[0] // 32) * 4 * columns
    context = rng.standard_normal((images, channels, patches), np.float32)
    mean = rng.standard_normal((images, 192, patches), np.float32)
    positions = rng.integers(0, images * patches, count, np.int32)
    positions[rng.random(count) < 0.1] = rng.choice([-1, images * patches, 2**31 - 1])
    rows, untouched = guarded((count, 960 + channels), np.float32)
    kernels.gather_features(
        frames_of(batch, bgr), address(context), channels, address(mean), address(positions), count, address(rows)
    )
    assert untouched()
    for row, position in zip(rows, positions, strict=True):
        if not 0 <= position < images * patches:
            assert not row.any()
            continue
        b, patch = divmod(int(position), patches)
        one = np.array([patch], np.int32)
        expected = reference.gather_features(batch[b], bgr, context[b], mean[b], one, one, columns)
        assert row.tobytes() == expected[0].tobytes()


def test_every_pixel_value_has_the_bits_of_the_division(kernels: Kernels) -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 8, 32, 3)
    context, mean = np.zeros((1, 1, 16), np.float32), np.zeros((1, 192, 16), np.float32)
    positions = np.arange(16, dtype=np.int32)
    rows = np.empty((16, 961), np.float32)
    kernels.gather_features(
        frames_of(image, False), address(context), 1, address(mean), address(positions), 16, address(rows)
    )
    expected = reference.gather_features(image[0], False, context[0], mean[0], positions, positions, 4)
    assert set(np.unique(rows[:, :768])) == set((np.arange(256, dtype=np.float32) / np.float32(127.5)) - np.float32(1))
    assert rows.tobytes() == expected.tobytes()


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 2), bgr=st.booleans())
def test_assembled_frames_equal_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, bgr: bool
) -> None:
    rng = np.random.default_rng(seed)
    columns = -(-size[1] // 32) * 4
    patches = -(-size[0] // 32) * 4 * columns
    pixels = rng.uniform(-1.3, 1.3, (images, 192, patches)).astype(np.float32)
    pixels[rng.random(pixels.shape) < 0.02] = rng.choice([np.nan, np.inf, -np.inf, 1 / 255, -0.0])
    expected = np.stack([reference.assemble(p, columns, *size, bgr) for p in pixels])
    frames, untouched = guarded(expected.shape, np.uint8)
    kernels.assemble(address(pixels), images, *size, address(frames), bgr=bgr)
    assert untouched()
    assert frames.tobytes() == expected.tobytes()


# --- change between frames ------------------------------------------------------------------------


@given(seed=SEEDS, size=SIZES, images=st.integers(1, 3), layout=LAYOUTS, bgr=st.booleans())
def test_change_equals_specification(
    kernels: Kernels, seed: int, size: tuple[int, int], images: int, layout: str, bgr: bool
) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, images, *size, layout)
    rows, columns = (-(-side // 32) * 4 for side in size)
    references = rng.integers(0, 256, (images, rows * 8, columns * 8, 3), np.uint8)
    patches = rows * columns
    changes, untouched = guarded((images, 2, patches), np.int32)
    kernels.patch_change(frames_of(batch, bgr), address(references), address(changes))
    assert untouched()
    expected = np.stack([reference.patch_change(i, bgr, r) for i, r in zip(batch, references, strict=True)])
    assert changes.tobytes() == expected.tobytes()

    wanted = references.copy()
    positions = np.flatnonzero(rng.random(images * patches) < 0.4).astype(np.int32)
    for b in range(images):
        own = positions[positions // patches == b]
        reference.update_reference(batch[b], bgr, wanted[b], own % np.int32(patches))
    more = np.concatenate([positions, np.array([-1, images * patches], np.int32)])  # what is outside is skipped
    kernels.update_reference(frames_of(batch, bgr), address(references), address(more), len(more))
    assert references.tobytes() == wanted.tobytes()


# --- scores ---------------------------------------------------------------------------------------


@given(
    seed=SEEDS,
    size=SIZES,
    images=st.integers(1, 3),
    layout=LAYOUTS,
    bgr=st.booleans(),
    depth=st.integers(1, 8),
    dims=st.sampled_from([1, 6, 16]),
    visual=st.booleans(),
)
def test_scores_equal_specification(
    kernels: Kernels,
    seed: int,
    size: tuple[int, int],
    images: int,
    layout: str,
    bgr: bool,
    depth: int,
    dims: int,
    visual: bool,
) -> None:
    rng = np.random.default_rng(seed)
    batch = make_batch(rng, images, *size, layout)
    rows, columns = (-(-side // 32) * 4 for side in size)
    patches = rows * columns
    mean = rng.uniform(-1.1, 1.1, (images, 192, patches)).astype(np.float32)
    mean[rng.random(mean.shape) < 0.001] = rng.choice([np.nan, np.inf, -np.inf, 1e30, -0.0])
    directions = rng.standard_normal((depth, dims, 192))
    directions *= (1 << 14) / np.linalg.norm(directions, axis=2, keepdims=True)
    basis = np.round(directions).astype(np.int16)
    frames = frames_of(batch, bgr)
    weights, weights_untouched = guarded((images, patches), np.float32)
    if visual:
        activity, activity_untouched = guarded((images, patches), np.int64)
        kernels.visual_weights(frames, address(activity), address(weights))
        assert activity_untouched() and weights_untouched()
    scores, untouched = guarded((images, patches, depth), np.float32)
    arguments = address(mean), address(basis), depth, dims, address(scores)
    kernels.patch_scores(frames, *arguments, weights=address(weights) if visual else 0)
    assert untouched()
    every = np.arange(patches, dtype=np.int32)
    for image, own, weight, values in zip(batch, mean, weights, scores, strict=True):
        for module in (reference, cpu_kernels):
            expected = module.patch_scores(image, bgr, own, every, every, columns, basis)
            if visual:
                assert_same(weight, module.visual_weights(image))
                expected = expected * weight[:, None]
            assert_same(values, expected)


# --- codes ----------------------------------------------------------------------------------------


@given(
    seed=SEEDS,
    images=st.integers(1, 3),
    patches=st.integers(1, 300),
    depth=st.integers(1, 8),
    share=st.floats(0, 1),
)
def test_decoder_state_equals_specification(
    kernels: Kernels, seed: int, images: int, patches: int, depth: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    expected_codes = rng.uniform(-1, 1, (images, depth * 6, patches)).astype(np.float32)
    entropy = rng.uniform(0, 16, (images, depth, patches)).astype(np.float32)
    stacks = rng.binomial(depth, share, images * patches)
    positions = np.repeat(np.arange(images * patches, dtype=np.int32), stacks)
    codes = rng.integers(0, LEVELS, (len(positions), 6)).astype(np.int32)
    wanted = np.stack(
        [
            reference.decoder_state(
                codes[positions // patches == b],
                positions[positions // patches == b] % np.int32(patches),
                expected_codes[b],
                entropy[b],
                LEVELS,
            )
            for b in range(images)
        ]
    )
    # What is out of range is skipped: positions outside the batch, and tokens that are too deep.
    last, full = images * patches - 1, depth - int(stacks[-1])
    extra = np.array([*[last] * (full + 2), images * patches, 2**31 - 1], np.int32)
    bad = np.zeros((full, 6), np.int32) - 1  # codes outside their levels, which fill the last stack
    all_positions = np.concatenate([np.array([-1], np.int32), positions, extra])
    tail = np.zeros((len(extra) - full, 6), np.int32)
    all_codes = np.ascontiguousarray(np.concatenate([np.zeros((1, 6), np.int32), codes, bad, tail]))
    state, untouched = guarded(wanted.shape, np.float32)
    kernels.decoder_state(
        *(address(all_codes), address(all_positions), len(all_codes), address(expected_codes), address(entropy)),
        *(images, patches, depth, LEVELS, address(state)),
    )
    assert untouched()
    assert_same(state, wanted)


@given(
    seed=SEEDS,
    images=st.integers(1, 3),
    patches=st.integers(1, 300),
    stack=st.integers(1, 8),
    fewer=st.integers(0, 7),
    count=st.integers(0, 300),
)
def test_information_equals_specification(
    kernels: Kernels, seed: int, images: int, patches: int, stack: int, fewer: int, count: int
) -> None:
    rng = np.random.default_rng(seed)
    depth, rows = max(1, stack - fewer), sum(LEVELS)
    log2_probs = -rng.exponential(3, (images, stack * rows, patches)).astype(np.float32)
    positions = rng.integers(0, images * patches, count, np.int32)
    codes = rng.integers(0, LEVELS * stack, (count, 6 * stack)).astype(np.int32)
    bits, untouched = guarded((count, depth), np.float32)
    kernels.information(
        *(address(log2_probs), address(codes), address(positions), count),
        *(images, patches, stack, depth, LEVELS, address(bits)),
    )
    assert untouched()
    for b in range(images):
        own = positions // patches == b
        wanted = np.empty((int(own.sum()), depth), np.float32)
        for k in range(depth):
            probs, token = log2_probs[b, k * rows : (k + 1) * rows], codes[own, 6 * k : 6 * (k + 1)]
            wanted[:, k] = reference.information(probs, token, positions[own] % np.int32(patches), LEVELS)
        assert_same(bits[own], np.minimum.accumulate(wanted, axis=1))


def test_information_that_is_no_number_is_kept_for_the_filter(kernels: Kernels) -> None:
    log2_probs = np.full((1, 2 * sum(LEVELS), 3), -1, np.float32)
    log2_probs[0, sum(LEVELS) :, 1] = np.nan
    codes, positions = np.zeros((3, 12), np.int32), np.arange(3, dtype=np.int32)
    bits = np.empty((1, 3, 2), np.float32)
    arguments = address(log2_probs), address(codes), address(positions), 3, 1, 3, 2, 2, LEVELS, address(bits)
    kernels.information(*arguments)
    assert np.isnan(bits).tolist() == [[[False, False], [False, True], [False, False]]]
    assert run_dtf(kernels, bits, DtfLimits.make())[2].tolist() == [-1 - 3]


# --- the emulation itself -------------------------------------------------------------------------

DIVERGENT = """
#include "emulator.hpp"
__global__ void broken(int* out) {
    if (threadIdx.x != 3) __syncthreads();
    out[threadIdx.x] = 1;
}
int main() {
    int out[64];
    TATOK_LAUNCH(broken, dim3(1), 64, nullptr, out);
    return 0;
}
"""


def test_a_barrier_that_not_every_thread_reaches_is_reported(kernels: Kernels, tmp_path: Path) -> None:
    (tmp_path / "divergent.cpp").write_text(DIVERGENT)
    folder = cuda_kernels.SOURCE.parent
    command = ["g++", "-std=c++17", "-w", f"-I{folder}", str(tmp_path / "divergent.cpp"), "-o", str(tmp_path / "run")]
    subprocess.run(command, check=True)
    result = subprocess.run([str(tmp_path / "run")], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "thread 3 of block (0, 0, 0) does not reach the barrier" in result.stderr


# --- finding, loading and compiling ---------------------------------------------------------------


def test_sizes_out_of_range_are_refused(kernels: Kernels) -> None:
    with pytest.raises(BackendError, match=r"tatok_cells failed: invalid argument \(CUDA error 1\)"):
        kernels.image_to_cells(Frames.packed(0, 1, 0, 5), 0)
    with pytest.raises(BackendError, match="tatok_decoder_state"):
        kernels.decoder_state(0, 0, -1, 0, 0, 1, 1, 1, LEVELS, 0)
    for depth in (0, 9):
        with pytest.raises(BackendError, match="tatok_patch_scores"):
            kernels.patch_scores(Frames.packed(0, 1, 32, 32), 0, 0, depth, 6, 0)
    with pytest.raises(InputError, match="1 to 16"):
        kernels.decoder_state(0, 0, 0, 0, 0, 1, 1, 1, (), 0)


def test_a_library_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"\x7fELF")
    with pytest.raises(BackendError, match=r"cannot load the CUDA kernels from .*broken\.so.*build"):
        cuda_kernels.load(broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cuda_kernels.LIBRARY_VARIABLE, raising=False)
    with pytest.raises(BackendError, match=r"no CUDA kernels .*; build them: python -m tatok_edge"):
        cuda_kernels.load()
    monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(tmp_path / "missing.so"))
    with pytest.raises(BackendError, match=r"TATOK_CUDA_LIBRARY names .*missing\.so"):
        cuda_kernels.load()


def test_the_newest_library_of_these_sources_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(cuda_kernels.LIBRARY_VARIABLE, raising=False)
    folder = cuda_kernels.cache_folder()
    folder.mkdir(parents=True)
    (folder / "tatok_cuda-0123456789abcdef-sm87.so").touch()  # of other sources
    wanted = folder / f"tatok_cuda-{cuda_kernels.source_tag()}-sm87.so"
    wanted.touch()
    assert cuda_kernels.find_library() == wanted


def test_without_a_compiler_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Path:
        raise BackendError("nvcc is not on the path")

    monkeypatch.setattr(cuda_kernels, "find_nvcc", missing)
    assert cuda_kernels.main(["build", "--sm", "8.7", "--out", str(tmp_path / "k.so")]) == 1
    assert capsys.readouterr().err.endswith("error: nvcc is not on the path\n")
    assert not list(tmp_path.iterdir())


def test_nvcc_compiles_for_every_architecture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        nvcc = cuda_kernels.find_nvcc()
    except BackendError as error:
        pytest.skip(str(error))
    available = cuda_kernels.supported_sms(nvcc)
    chosen = [sm for sm in cuda_kernels.SMS if sm in available]
    assert chosen, f"{nvcc} has {available}"
    out = tmp_path / "tatok_cuda.so"
    assert cuda_kernels.main(["build", "--sm", ",".join(chosen), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]  # nothing half-written stays behind
    library = cuda_kernels.load(out)
    assert not library.emulated
    dump = cuda_kernels.toolkit_folder(nvcc) / "bin" / "cuobjdump"
    if dump.is_file():
        listing = subprocess.run([str(dump), "--list-elf", str(out)], capture_output=True, text=True, check=True).stdout
        for sm in chosen:
            assert f"sm_{sm.replace('.', '')}.cubin" in listing
    assert cuda_kernels.main(["build", "--sm", "1.0", "--out", str(out)]) == 1
    assert "makes no code for SM '1.0'" in capsys.readouterr().err
