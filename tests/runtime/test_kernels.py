"""The native kernels equal the numpy specification bit for bit, and reject what they cannot take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels as kernels

LEVELS = (8, 8, 8, 5, 5, 5)
SEEDS = st.integers(0, 2**32 - 1)


def assert_same(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    """Equal in dtype, shape and every bit of every value."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


def guarded(shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], Callable[[], bool]]:
    """An array to write into, and a function that says whether the memory around it is untouched."""
    size = int(np.prod(shape))
    memory = np.full(size + 128, 77, dtype)
    inside = memory[64 : 64 + size].reshape(shape)
    return inside, lambda: bool((memory[:64] == 77).all() and (memory[64 + size :] == 77).all())


# --- dynamic token filtering --------------------------------------------------------------------

SCORES = st.one_of(
    st.floats(0, 40, width=32),
    st.sampled_from([0.0, -0.0, 0.5, 1.0, 2.0**-17, 3 * 2.0**-17, 2.0**-16, 2.0**-140]),  # ties and halves
    st.floats(0, 2.0**127, width=32),  # saturation
    st.sampled_from([32767.998046875, 32768.0, 128.0000152587890625, 127.99999237060546875, 8388608.0]),
)
SHAPES = st.tuples(st.integers(0, 4), st.integers(0, 70))


@given(
    scores=st.one_of(
        hnp.arrays(np.float32, SHAPES, elements=SCORES),
        hnp.arrays(np.float32, SHAPES, elements=st.sampled_from([0.0, 1.0, 2.0])),
        hnp.arrays(np.float32, SHAPES, elements=st.just(3.25)),
    ),
    tau=st.one_of(st.just(1.0), st.floats(0, 1, exclude_min=True), st.sampled_from([5e-324, 1e-10, 0.5, 1 - 2**-53])),
    low=st.integers(0, 80),
    extra=st.one_of(st.none(), st.integers(0, 80)),
    floor_bits=st.one_of(st.just(0.0), st.floats(0, 45), st.sampled_from([0.5, 1.0, 2.0**-17, 32768.0, 1e300])),
)
def test_dtf_equals_reference(
    scores: NDArray[np.float32], tau: float, low: int, extra: int | None, floor_bits: float
) -> None:
    limits: dict[str, Any] = {
        "tau": tau,
        "min_tokens": low,
        "max_tokens": None if extra is None else low + extra,
        "floor_bits": floor_bits,
    }
    indices, cu_seqlens = kernels.dtf(scores, **limits)
    expected_indices, expected_cu = reference.dtf(scores, **limits)
    assert_same(indices, expected_indices)
    assert_same(cu_seqlens, expected_cu)


@given(
    seed=SEEDS,
    patches=st.sampled_from([1024, 4800, 30_000]),
    tau=st.floats(0.001, 1),
    spread=st.sampled_from([1e-4, 1.0, 12.0, 1e4, 1e7]),
)
def test_dtf_equals_reference_on_frames(seed: int, patches: int, tau: float, spread: float) -> None:
    scores = (np.random.default_rng(seed).gamma(0.7, spread, (2, patches))).astype(np.float32)
    cases: tuple[dict[str, Any], ...] = (
        {},
        {"max_tokens": patches // 5},
        {"min_tokens": patches // 2, "floor_bits": spread},
    )
    for limits in cases:
        actual = kernels.dtf(scores, tau=tau, **limits)
        for a, e in zip(actual, reference.dtf(scores, tau=tau, **limits), strict=True):
            assert_same(a, e)


def test_dtf_by_hand() -> None:
    scores = np.array([[1, 6, 2, 6, 0, 1], [0, 0, 0, 0, 0, 0]], np.float32)

    def kept(**limits: Any) -> list[list[int]]:
        indices, cu = kernels.dtf(scores, **limits)
        return [indices[cu[b] : cu[b + 1]].tolist() for b in range(2)]

    assert kept() == [[0, 1, 2, 3, 5], []]  # zero bits add nothing, so they are never needed
    assert kept(tau=12 / 16) == [[1, 3], []]
    assert kept(tau=12 / 16 + 1e-8) == [[1, 2, 3], []]
    assert kept(tau=0.01) == [[1], []]  # of equal scores the first position
    assert kept(tau=1e-300) == [[1], []]
    assert kept(tau=15 / 16) == [[0, 1, 2, 3], []]
    assert kept(max_tokens=1) == [[1], []]
    assert kept(max_tokens=0) == [[], []]
    assert kept(tau=0.01, min_tokens=3) == [[1, 2, 3], [6, 7, 8]]
    assert kept(min_tokens=100) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert kept(floor_bits=2.0) == [[1, 2, 3], []]
    assert kept(floor_bits=2.00001) == [[1, 3], []]
    assert kept(floor_bits=9.0, min_tokens=1) == [[1], [6]]


def test_dtf_sums_saturated_scores_exactly() -> None:
    scores = np.full((1, 1 << 16), 3e38, np.float32)
    indices, _ = kernels.dtf(scores, tau=0.5)
    assert len(indices) == 1 << 15


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-30])
def test_dtf_names_the_bad_score(bad: float) -> None:
    scores = np.ones((2, 50), np.float32)
    scores[1, 17] = bad
    with pytest.raises(ValueError, match=r"scores\[1, 17\] is .*finite"):
        kernels.dtf(scores)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"tau": 0.0}, "tau must be above 0"),
        ({"tau": 1.0000001}, "tau must be above 0"),
        ({"tau": float("nan")}, "tau must be above 0"),
        ({"min_tokens": -1}, "min_tokens=-1"),
        ({"min_tokens": 3, "max_tokens": 2}, "max_tokens=2"),
        ({"max_tokens": -1}, "max_tokens=-1"),
        ({"floor_bits": -0.5}, "floor_bits"),
        ({"floor_bits": float("inf")}, "floor_bits"),
        ({"floor_bits": float("nan")}, "floor_bits"),
    ],
)
def test_dtf_rejects_limits(limits: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.dtf(np.ones((1, 4), np.float32), **limits)


def test_dtf_runs_in_threads(rng: np.random.Generator) -> None:
    batches = [rng.gamma(1.0, 8.0, (3, 4800)).astype(np.float32) for _ in range(4)]
    expected = [reference.dtf(scores, tau=0.4) for scores in batches]
    failures: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            indices, cu = kernels.dtf(batches[i], tau=0.4)
            if not (np.array_equal(indices, expected[i][0]) and np.array_equal(cu, expected[i][1])):
                failures.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# --- pixels -------------------------------------------------------------------------------------


def strided_image(height: int, width: int, layout: str, seed: int) -> NDArray[np.uint8]:
    """A random (height, width, 3) image in memory laid out in one of the ways that cameras and slices bring."""
    random = np.random.default_rng(seed)

    def pixels(*shape: int) -> NDArray[np.uint8]:
        return random.integers(0, 256, shape, np.uint8)

    layouts: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "contiguous": lambda: pixels(height, width, 3),
        "cropped": lambda: pixels(height + 3, width + 5, 3)[1 : 1 + height, 2 : 2 + width],
        "channels reversed": lambda: pixels(height, width, 3)[:, :, ::-1],
        "rotated": lambda: pixels(height, width, 3)[::-1, ::-1],
        "all reversed": lambda: pixels(height, width, 3)[::-1, ::-1, ::-1],
        "every second": lambda: pixels(2 * height, 2 * width, 3)[::2, ::2],
        "four channels": lambda: pixels(height, width, 4)[:, :, :3],
        "planes": lambda: pixels(3, height, width).transpose(1, 2, 0),
        "columns": lambda: pixels(width, height, 3).transpose(1, 0, 2),
        "one colour": lambda: np.broadcast_to(pixels(height, width, 1), (height, width, 3)),
        "one row": lambda: np.broadcast_to(pixels(1, width, 3), (height, width, 3)),
    }
    image = layouts[layout]()
    assert image.shape == (height, width, 3)
    image.flags.writeable = False
    return image


LAYOUTS = (
    "contiguous",
    "cropped",
    "channels reversed",
    "rotated",
    "all reversed",
    "every second",
    "four channels",
    "planes",
    "columns",
    "one colour",
    "one row",
)
IMAGES = st.builds(strided_image, st.integers(1, 100), st.integers(1, 100), st.sampled_from(LAYOUTS), SEEDS)


def grid_of(image: NDArray[np.uint8]) -> tuple[int, int]:
    height, width, _ = image.shape
    return -(-height // 32) * 4, -(-width // 32) * 4


@given(image=IMAGES, bgr=st.booleans())
def test_image_to_cells_equals_reference(image: NDArray[np.uint8], bgr: bool) -> None:
    expected = reference.image_to_cells(image, bgr)
    assert_same(kernels.image_to_cells(image, bgr), expected)
    out, untouched = guarded(expected.shape, np.float32)
    assert kernels.image_to_cells(image, bgr, out) is out
    assert_same(out, expected)
    assert untouched()


@given(image=IMAGES, bgr=st.booleans(), channels=st.integers(0, 40), count=st.integers(0, 40), seed=SEEDS)
def test_gather_features_equals_reference(
    image: NDArray[np.uint8], bgr: bool, channels: int, count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    h, w = grid_of(image)
    context = random.standard_normal((channels, h * w)).astype(np.float32)
    mean = random.standard_normal((192, h * w)).astype(np.float32)
    positions = random.integers(0, h * w, count).astype(np.int32)
    expected = reference.gather_features(image, bgr, context, mean, positions, w)
    assert_same(kernels.gather_features(image, bgr, context, mean, positions, w), expected)
    out, untouched = guarded(expected.shape, np.float32)
    assert kernels.gather_features(image, bgr, context, mean, positions, w, out) is out
    assert_same(out, expected)
    assert untouched()


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(("height", "width"), [(128, 160), (33, 129)])
def test_gather_features_of_every_patch(rng: np.random.Generator, height: int, width: int, bgr: bool) -> None:
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    h, w = grid_of(image)
    context = rng.standard_normal((96, h * w)).astype(np.float32)
    mean = rng.standard_normal((192, h * w)).astype(np.float32)
    positions = np.arange(h * w, dtype=np.int32)
    assert_same(
        kernels.gather_features(image, bgr, context, mean, positions, w),
        reference.gather_features(image, bgr, context, mean, positions, w),
    )


def test_every_pixel_value_becomes_the_same_float() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    empty = np.zeros((0, 16), np.float32)
    mean = np.zeros((192, 16), np.float32)
    row = kernels.gather_features(image, False, empty, mean, np.array([5], np.int32), 4)[0, :768]
    whole = kernels.gather_features(image, True, empty, mean, np.array([5], np.int32), 4)[0, :768]
    centre = np.arange(256, dtype=np.float32).reshape(16, 16)[4:, 4:] / np.float32(127.5) - np.float32(1)
    assert_same(np.ascontiguousarray(row.reshape(16, 16, 3)[:12, :12, 0]), np.ascontiguousarray(centre))
    assert_same(whole, row)


PIXELS = st.one_of(
    st.floats(-1.25, 1.25, width=32),
    st.sampled_from([-1.0, 1.0, 0.0, -0.0, np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40]),
    st.integers(0, 255).map(lambda v: float(np.float32((v + 0.5 - 127.5) / 127.5))),  # halfway between two values
)


@given(
    seed=SEEDS,
    rows=st.integers(1, 5),
    grid_width=st.integers(1, 40),
    crop=st.tuples(st.integers(0, 31), st.integers(0, 31)),
    bgr=st.booleans(),
    some=st.lists(PIXELS, min_size=1, max_size=40),
)
def test_assemble_equals_reference(
    seed: int, rows: int, grid_width: int, crop: tuple[int, int], bgr: bool, some: list[float]
) -> None:
    random = np.random.default_rng(seed)
    pixels = random.uniform(-1.1, 1.1, (192, rows * grid_width)).astype(np.float32)
    special = random.integers(0, pixels.size, 60)
    pixels.flat[special] = np.resize(np.array(some, np.float32), 60)
    height, width = max(1, rows * 8 - crop[0]), max(1, grid_width * 8 - crop[1])
    expected = reference.assemble(pixels, grid_width, height, width, bgr)
    assert_same(kernels.assemble(pixels, grid_width, height, width, bgr), expected)
    out, untouched = guarded(expected.shape, np.uint8)
    assert kernels.assemble(pixels, grid_width, height, width, bgr, out) is out
    assert_same(out, expected)
    assert untouched()


def test_assemble_returns_the_pixels_that_went_in(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (32, 64, 3), np.uint8)
    values = image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    planes = values.reshape(4, 8, 8, 8, 3).transpose(1, 3, 4, 0, 2).reshape(192, 32)
    assert_same(kernels.assemble(np.ascontiguousarray(planes), 8, 32, 64), image)


@given(
    seed=SEEDS,
    channels=st.integers(0, 20),
    source_patches=st.integers(1, 60),
    patches=st.integers(1, 60),
    count=st.integers(0, 50),
)
def test_scatter_columns_equals_reference(
    seed: int, channels: int, source_patches: int, patches: int, count: int
) -> None:
    random = np.random.default_rng(seed)
    source = random.standard_normal((channels, source_patches)).astype(np.float32)
    source_positions = random.integers(0, source_patches, count).astype(np.int32)
    positions = random.integers(0, patches, count).astype(np.int32)  # some come twice
    expected = random.standard_normal((channels, patches)).astype(np.float32)
    target, untouched = guarded(expected.shape, np.float32)
    target[:] = expected
    reference.scatter_columns(source, source_positions, expected, positions)
    assert kernels.scatter_columns(source, source_positions, target, positions) is None
    assert_same(target, expected)
    assert untouched()


# --- change between frames ----------------------------------------------------------------------


def padded_shape(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    h, w = grid_of(image)
    return h * 8, w * 8, 3


@given(image=IMAGES, bgr=st.booleans(), seed=SEEDS)
def test_patch_change_equals_reference(image: NDArray[np.uint8], bgr: bool, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, padded_shape(image), np.uint8)
    picture.flags.writeable = False
    expected = reference.patch_change(image, bgr, picture)
    assert_same(kernels.patch_change(image, bgr, picture), expected)
    out, untouched = guarded(expected.shape, np.int32)
    assert kernels.patch_change(image, bgr, picture, out) is out
    assert_same(out, expected)
    assert untouched()


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(("height", "width"), [(65, 640), (40, 300), (32, 257), (8, 127), (16, 129)])
def test_patch_change_of_wide_frames(rng: np.random.Generator, height: int, width: int, bgr: bool) -> None:
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    picture = rng.integers(0, 256, padded_shape(image), np.uint8)
    assert_same(kernels.patch_change(image, bgr, picture), reference.patch_change(image, bgr, picture))


def test_patch_change_by_hand() -> None:
    picture = np.full((64, 64, 3), 100, np.uint8)
    image = picture[:40, :64].copy()
    image[8, 16] = (101, 98, 103)  # patch (1, 2)
    image[39, 0, 0] = 90  # the last row, repeated 24 times: once in patch (4, 0), 8 times in (5, 0), (6, 0), (7, 0)
    image[0, 4:6] = 103  # patch (0, 0), its upper right quarter
    image[4, 3] = (97, 107, 100)  # patch (0, 0), its lower left quarter
    expected = np.zeros((2, 8, 8), np.int32)
    expected[:, 1, 2] = 1 + 4 + 9, 0  # 9 // 16 and less
    expected[:, 4:, 0] = (100, 800, 800, 800), (100 // 16, 2 * 40**2 // 16, 2 * 40**2 // 16, 2 * 40**2 // 16)
    expected[:, 0, 0] = 2 * 3 * 9 + 9 + 49, 3 * (36 // 16) + 0 + 49 // 16
    assert_same(kernels.patch_change(image, False, picture).reshape(2, 8, 8), expected)
    assert_same(kernels.patch_change(image[:, :, ::-1], True, picture).reshape(2, 8, 8), expected)


@pytest.mark.parametrize(("value", "old"), [(0, 255), (255, 0)])
def test_patch_change_reaches_its_maximum(value: int, old: int) -> None:
    picture = np.full((32, 96, 3), old, np.uint8)
    changes = kernels.patch_change(np.full((32, 96, 3), value, np.uint8), False, picture)
    assert_same(changes, np.full((2, 48), 192 * 255**2, np.int32))


@given(image=IMAGES, bgr=st.booleans(), seed=SEEDS, noise=st.integers(0, 20))
def test_coarse_change_is_part_of_the_change(image: NDArray[np.uint8], bgr: bool, seed: int, noise: int) -> None:
    picture = np.random.default_rng(seed).integers(0, noise + 1, padded_shape(image), np.uint8)
    changes, coarse = kernels.patch_change(image, bgr, picture)
    assert (coarse <= changes).all()
    assert (coarse >= 0).all()


def test_coarse_change_does_not_see_what_averages_out() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    picture = image.copy()
    picture[::2] += 9
    picture[1::2] -= 9
    changes, coarse = kernels.patch_change(image, False, picture)
    assert_same(changes, np.full(16, 192 * 81, np.int32))
    assert not coarse.any()


def test_a_row_of_changes_has_a_quantile(rng: np.random.Generator) -> None:
    image, picture = rng.integers(0, 256, (2, 32, 64, 3), np.uint8)
    for row in kernels.patch_change(image, False, picture):
        assert kernels.change_quantile(row, 0.5) == np.sort(row)[15]


@given(image=IMAGES, bgr=st.booleans(), count=st.integers(0, 40), seed=SEEDS)
def test_update_reference_equals_reference(image: NDArray[np.uint8], bgr: bool, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    h, w = grid_of(image)
    positions = random.integers(0, h * w, count).astype(np.int32)
    expected = random.integers(0, 256, padded_shape(image), np.uint8)
    picture, untouched = guarded(expected.shape, np.uint8)
    picture[:] = expected
    reference.update_reference(image, bgr, expected, positions)
    assert kernels.update_reference(image, bgr, picture, positions) is None
    assert_same(picture, expected)
    assert untouched()


@given(image=IMAGES, bgr=st.booleans(), share=st.floats(0, 1), seed=SEEDS)
def test_updated_patches_no_longer_differ(image: NDArray[np.uint8], bgr: bool, share: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    picture = random.integers(0, 256, padded_shape(image), np.uint8)
    before = kernels.patch_change(image, bgr, picture)
    updated = random.random(before.shape[1]) < share
    kernels.update_reference(image, bgr, picture, np.flatnonzero(updated).astype(np.int32))
    after = kernels.patch_change(image, bgr, picture)
    assert not after[:, updated].any()
    assert_same(after[:, ~updated], before[:, ~updated])


@given(image=IMAGES, bgr=st.booleans(), some=st.lists(PIXELS, min_size=1, max_size=40), seed=SEEDS)
def test_patch_error_equals_reference(image: NDArray[np.uint8], bgr: bool, some: list[float], seed: int) -> None:
    random = np.random.default_rng(seed)
    h, w = grid_of(image)
    pixels = random.uniform(-1.1, 1.1, (192, h * w)).astype(np.float32)
    special = random.integers(0, pixels.size, 60)
    pixels.flat[special] = np.resize(np.array(some, np.float32), 60)
    expected = reference.patch_error(pixels, image, bgr, w)
    assert_same(kernels.patch_error(pixels, image, bgr, w), expected)
    out, untouched = guarded(expected.shape, np.float32)
    assert kernels.patch_error(pixels, image, bgr, w, out) is out
    assert_same(out, expected)
    assert untouched()


@pytest.mark.parametrize("bgr", [False, True])
def test_patch_error_is_the_error_of_the_assembled_image(rng: np.random.Generator, bgr: bool) -> None:
    image = rng.integers(0, 256, (64, 288, 3), np.uint8)
    pixels = rng.uniform(-1.1, 1.1, (192, 8 * 36)).astype(np.float32)
    errors = kernels.patch_error(pixels, image, bgr, 36)
    decoded = kernels.assemble(pixels, 36, 64, 288, bgr)
    squares = (decoded.astype(np.float64) - image) ** 2
    np.testing.assert_allclose(errors.reshape(8, 36), squares.reshape(8, 8, 36, 24).mean(axis=(1, 3)), rtol=1e-6)


@given(
    image=IMAGES,
    bgr=st.booleans(),
    columns=st.integers(1, 200),
    run=st.integers(1, 60),
    count=st.integers(0, 300),
    ordered=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 1e3, 1e30]),
    seed=SEEDS,
)
def test_patch_residual_equals_reference(
    image: NDArray[np.uint8], bgr: bool, columns: int, run: int, count: int, ordered: bool, spread: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    h, w = grid_of(image)
    # Positions in runs, some of them to the end of a row and beyond, and some twice.
    positions = (random.integers(0, h * w, count).repeat(run) + np.arange(count * run) % run)[:count] % (h * w)
    source = np.arange(count) % columns if ordered else random.integers(0, columns, count)
    mean = (spread * random.standard_normal((192, columns))).astype(np.float32)
    arguments = image, bgr, mean, source.astype(np.int32), positions.astype(np.int32), w
    with np.errstate(over="ignore"):
        expected = reference.patch_residual(*arguments)
    assert_same(kernels.patch_residual(*arguments), expected)
    out, untouched = guarded(expected.shape, np.float32)
    assert kernels.patch_residual(*arguments, out) is out
    assert_same(out, expected)
    assert untouched()


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(("height", "width"), [(128, 640), (33, 257), (72, 1100)])
def test_patch_residual_of_every_patch(rng: np.random.Generator, height: int, width: int, bgr: bool) -> None:
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    h, w = grid_of(image)
    mean = rng.uniform(-1, 1, (192, h * w)).astype(np.float32)
    every = np.arange(h * w, dtype=np.int32)
    for source, positions in (
        (every, every),
        (every[::-1].copy(), every),
        (every[5:], every[:-5]),
        (every, every[::-1]),
    ):
        arguments = image, bgr, mean, source, np.ascontiguousarray(positions), w
        assert_same(kernels.patch_residual(*arguments), reference.patch_residual(*arguments))


def test_patch_residual_by_hand() -> None:
    image = np.full((32, 64, 3), 100, np.uint8)
    mean = np.full((192, 3), (100 - 127.5) / 127.5, np.float32)
    mean[:, 1] = (104 - 127.5) / 127.5  # every 2x2 mean is 4 off
    mean.reshape(8, 8, 3, 3)[2, 5, 1, 2] = (100 + 24 - 127.5) / 127.5  # one green value: a 2x2 mean is 6 off
    source, positions = np.array([0, 1, 2], np.int32), np.array([31, 0, 9], np.int32)
    residuals = kernels.patch_residual(image, False, mean, source, positions, 8)
    np.testing.assert_allclose(residuals, [0, 16, 36 / 48], atol=1e-6)
    image[8:10, 18:20, 0] = 112  # of patch 10 (1, 2): red of one square
    image[10, 8] = (104, 100, 100)  # of patch 9 (1, 1)
    both = np.array([10, 9], np.int32)
    expected = [144 / 48, 1 / 48]
    np.testing.assert_allclose(kernels.patch_residual(image, False, mean, source[[0, 0]], both, 8), expected, atol=1e-6)
    swapped = np.ascontiguousarray(image[:, :, ::-1])
    np.testing.assert_allclose(
        kernels.patch_residual(swapped, True, mean, source[[0, 0]], both, 8), expected, atol=1e-6
    )


def test_a_patch_that_the_mean_says_has_no_residual(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (32, 64, 3), np.uint8)
    values = image.astype(np.float32) / np.float32(127.5) - np.float32(1)
    mean = np.ascontiguousarray(values.reshape(4, 8, 8, 8, 3).transpose(1, 3, 4, 0, 2).reshape(192, 32))
    every = np.arange(32, dtype=np.int32)
    assert kernels.patch_residual(image, False, mean, every, every, 8).max() < 1e-7
    assert kernels.patch_residual(image, True, mean, every, every, 8).min() > 1  # red against blue
    assert kernels.patch_residual(image, False, mean, every[::-1].copy(), every, 8).min() > 1


CHANGES = hnp.arrays(
    np.int32,
    st.integers(0, 80),
    elements=st.one_of(
        st.integers(0, 3),
        st.integers(0, 192 * 255**2),
        st.sampled_from([0, 2047, 2048, 2**22 - 1, 2**22, 2**31 - 1]),
    ),
)


@given(changes=CHANGES, share=st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_change_quantile_equals_reference(changes: NDArray[np.int32], share: float) -> None:
    quantile = kernels.change_quantile(changes, share)
    assert type(quantile) is int
    assert quantile == reference.change_quantile(changes, share)


@given(seed=SEEDS, share=st.floats(0.01, 0.99))
def test_change_quantile_equals_reference_on_frames(seed: int, share: float) -> None:
    changes = np.random.default_rng(seed).gamma(0.5, 900, 4800).astype(np.int32)
    assert kernels.change_quantile(changes, share) == reference.change_quantile(changes, share)


def test_change_quantile_by_hand() -> None:
    changes = np.array([0, 50, 0, 10, 30, 0, 20, 40], np.int32)
    shares = {1e-300: 10, 0.24: 10, 0.25: 20, 0.5: 30, 0.74: 30, 0.75: 40, 0.99: 40}
    assert {share: kernels.change_quantile(changes, share) for share in shares} == shares
    assert kernels.change_quantile(np.zeros(5, np.int32), 0.5) == 0
    assert kernels.change_quantile(np.zeros(0, np.int32), 0.5) == 0


# --- codes --------------------------------------------------------------------------------------

LEVEL_SETS = st.one_of(st.just(LEVELS), st.lists(st.integers(2, 16), min_size=1, max_size=7).map(tuple))


def random_codes(random: np.random.Generator, count: int, levels: tuple[int, ...]) -> NDArray[np.int32]:
    return random.integers(0, levels, (count, len(levels))).astype(np.int32)


@given(seed=SEEDS, levels=LEVEL_SETS, count=st.integers(0, 50))
def test_ids_and_codes_equal_reference(seed: int, levels: tuple[int, ...], count: int) -> None:
    codes = random_codes(np.random.default_rng(seed), count, levels)
    ids = kernels.ids_from_codes(codes, levels)
    assert_same(ids, reference.ids_from_codes(codes, levels))
    assert_same(kernels.codes_from_ids(ids, levels), codes)
    assert_same(reference.codes_from_ids(ids, levels), codes)


def test_ids_cover_the_vocabulary() -> None:
    ids = np.arange(64_000, dtype=np.int32)
    codes = kernels.codes_from_ids(ids, LEVELS)
    assert codes[1].tolist() == [1, 0, 0, 0, 0, 0]  # dimension 0 is the least significant
    assert_same(kernels.ids_from_codes(codes, list(LEVELS)), ids)


@given(seed=SEEDS, levels=LEVEL_SETS, count=st.integers(0, 50), patches=st.integers(1, 200))
def test_information_equals_reference(seed: int, levels: tuple[int, ...], count: int, patches: int) -> None:
    random = np.random.default_rng(seed)
    # Slightly positive ones too, so that the clamp at 0 has something to do.
    log2_probs = (0.01 - random.gamma(1.0, 2.0, (sum(levels), patches))).astype(np.float32)
    log2_probs[random.random(log2_probs.shape) < 0.02] = -np.inf
    log2_probs[random.random(log2_probs.shape) < 0.3] = 0.001
    codes = random_codes(random, count, levels)
    positions = random.integers(0, patches, count).astype(np.int32)
    actual = kernels.information(log2_probs, codes, positions, levels)
    assert_same(actual, reference.information(log2_probs, codes, positions, levels))
    assert (actual >= 0).all()


@given(seed=SEEDS, levels=LEVEL_SETS, share=st.floats(0, 1), patches=st.integers(1, 200))
def test_decoder_state_equals_reference(seed: int, levels: tuple[int, ...], share: float, patches: int) -> None:
    random = np.random.default_rng(seed)
    positions = np.flatnonzero(random.random(patches) < share).astype(np.int32)
    codes = random_codes(random, len(positions), levels)
    expected = random.uniform(-1, 1, (len(levels), patches)).astype(np.float32)
    entropy = random.uniform(0, 16, patches).astype(np.float32)
    state = reference.decoder_state(codes, positions, expected, entropy, levels)
    assert_same(kernels.decoder_state(codes, positions, expected, entropy, levels), state)
    out, untouched = guarded(state.shape, np.float32)
    assert kernels.decoder_state(codes, positions, expected, entropy, levels, out) is out
    assert_same(out, state)
    assert untouched()


# --- arguments that do not fit ------------------------------------------------------------------


def arguments() -> dict[str, dict[str, Any]]:
    """One valid call of every kernel, for an image of 64x32 pixels (32 patches)."""
    codes, positions = np.zeros((3, 6), np.int32), np.array([0, 7, 31], np.int32)
    image = np.zeros((64, 32, 3), np.uint8)
    return {
        "dtf": {"scores": np.ones((2, 32), np.float32)},
        "image_to_cells": {"image": image, "bgr": False, "out": np.zeros((192, 2, 1), np.float32)},
        "gather_features": {
            "image": image,
            "bgr": False,
            "context": np.zeros((16, 32), np.float32),
            "mean": np.zeros((192, 32), np.float32),
            "positions": positions,
            "grid_width": 4,
            "out": np.zeros((3, 976), np.float32),
        },
        "assemble": {
            "pixels": np.zeros((192, 32), np.float32),
            "grid_width": 4,
            "height": 64,
            "width": 32,
            "out": np.zeros((64, 32, 3), np.uint8),
        },
        "scatter_columns": {
            "source": np.zeros((5, 9), np.float32),
            "source_positions": np.array([8, 0, 3], np.int32),
            "target": np.zeros((5, 32), np.float32),
            "positions": positions,
        },
        "patch_change": {
            "image": image,
            "bgr": False,
            "reference": np.zeros((64, 32, 3), np.uint8),
            "out": np.zeros((2, 32), np.int32),
        },
        "update_reference": {
            "image": image,
            "bgr": False,
            "reference": np.zeros((64, 32, 3), np.uint8),
            "positions": positions,
        },
        "patch_error": {
            "pixels": np.zeros((192, 32), np.float32),
            "image": image,
            "bgr": False,
            "grid_width": 4,
            "out": np.zeros(32, np.float32),
        },
        "patch_residual": {
            "image": image,
            "bgr": False,
            "mean": np.zeros((192, 9), np.float32),
            "source": np.array([8, 0, 3], np.int32),
            "positions": positions,
            "grid_width": 4,
            "out": np.zeros(3, np.float32),
        },
        "change_quantile": {"changes": np.arange(32, dtype=np.int32), "share": 0.5},
        "information": {
            "log2_probs": np.zeros((39, 32), np.float32),
            "codes": codes,
            "positions": positions,
            "levels": LEVELS,
        },
        "decoder_state": {
            "codes": codes,
            "positions": positions,
            "expected": np.zeros((6, 32), np.float32),
            "entropy": np.zeros(32, np.float32),
            "levels": LEVELS,
            "out": np.zeros((8, 32), np.float32),
        },
        "ids_from_codes": {"codes": codes, "levels": LEVELS},
        "codes_from_ids": {"ids": np.zeros(3, np.int32), "levels": LEVELS},
    }


WRITTEN = {("scatter_columns", "target"), ("update_reference", "reference")}
"""Arguments that are changed in place, beside every ``out``."""
ANY_SIZE = {
    ("context", 0),
    ("log2_probs", 1),
    ("source", 1),
    ("target", 1),
}
"""Axes that may have any size."""
ARRAYS = [(f, name) for f, kwargs in arguments().items() for name, v in kwargs.items() if isinstance(v, np.ndarray)]


def call(function: str, **changes: Any) -> Any:
    return getattr(kernels, function)(**{**arguments()[function], **changes})


@pytest.mark.parametrize("function", arguments())
def test_the_valid_call_is_valid(function: str) -> None:
    call(function)


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_not_an_array_is_an_error(function: str, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be a numpy array.*got list"):
        call(function, **{name: [1, 2, 3]})


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_wrong_dtype_is_an_error(function: str, name: str) -> None:
    value = arguments()[function][name]
    for dtype in (np.float64, np.int64, value.dtype.newbyteorder() if value.itemsize > 1 else np.int8):
        with pytest.raises(TypeError, match=f"^{name} must have dtype {value.dtype}, got "):
            call(function, **{name: value.astype(dtype)})


@pytest.mark.parametrize(("function", "name"), ARRAYS)
def test_wrong_rank_is_an_error(function: str, name: str) -> None:
    value = arguments()[function][name]
    for wrong in (value[None], value[0]):
        with pytest.raises(ValueError, match=rf"^{name} must have shape \(.*\), got \("):
            call(function, **{name: np.array(wrong)})


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (f, n)
        for f, n in ARRAYS
        if n not in ("image", "scores", "codes", "ids", "pixels", "changes")
        and (f, n) != ("update_reference", "positions")
    ],
)
def test_wrong_size_is_an_error(function: str, name: str) -> None:
    value = arguments()[function][name]
    if function == "gather_features" and name == "positions":  # any count is right, but `out` tells
        name, value = "out", arguments()[function]["out"]
    for axis in range(value.ndim):
        if (name, axis) in ANY_SIZE or (function, name, axis) == ("patch_residual", "mean", 1):
            continue
        with pytest.raises(ValueError, match=r"must have shape \(.*\), got \("):
            call(function, **{name: np.concatenate([value, value], axis=axis)})


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, n in ARRAYS if n != "image"])
def test_strided_tensor_is_an_error(function: str, name: str) -> None:
    value = arguments()[function][name]
    strided = np.concatenate([value, value], axis=-1)[..., ::2]
    with pytest.raises(ValueError, match=f"^{name} must be C-contiguous"):
        call(function, **{name: strided})


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, n in ARRAYS if arguments()[f][n].itemsize > 1])
def test_misaligned_tensor_is_an_error(function: str, name: str) -> None:
    value = arguments()[function][name]
    misaligned = np.zeros(value.nbytes + 1, np.uint8)[1:].view(value.dtype).reshape(value.shape)
    with pytest.raises(ValueError, match=f"^{name} must be C-contiguous"):
        call(function, **{name: misaligned})


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, n in ARRAYS if n == "out" or (f, n) in WRITTEN])
def test_read_only_output_is_an_error(function: str, name: str) -> None:
    value = arguments()[function][name]
    value.flags.writeable = False
    with pytest.raises(ValueError, match=f"^{name} is read-only; pass an array that can be written$"):
        call(function, **{name: value})


@pytest.mark.parametrize(("function", "name"), [(f, n) for f, n in ARRAYS if n != "out" and (f, n) not in WRITTEN])
def test_read_only_input_is_fine(function: str, name: str) -> None:
    value = arguments()[function][name]
    value.flags.writeable = False
    call(function, **{name: value})


POSITIONED = [f for f, kwargs in arguments().items() if "positions" in kwargs]


@pytest.mark.parametrize("function", POSITIONED)
@pytest.mark.parametrize("bad", [-1, 32, 2**31 - 1, -(2**31)])
def test_position_outside_is_an_error(function: str, bad: int) -> None:
    positions = np.array([0, 7, bad], np.int32)
    with pytest.raises(ValueError, match=rf"^positions\[2\] is {bad}; allowed are 0 to 31"):
        call(function, positions=positions)


@pytest.mark.parametrize("function", POSITIONED)
def test_no_positions_are_fine(function: str) -> None:
    changes: dict[str, Any] = {"positions": np.zeros(0, np.int32)}
    changes |= {n: v[:0] for n, v in arguments()[function].items() if n in ("codes", "source_positions")}
    if function == "patch_residual":
        changes |= {"source": np.zeros(0, np.int32), "out": np.zeros(0, np.float32)}
    if function == "gather_features":
        changes["out"] = np.zeros((0, 976), np.float32)
    result = call(function, **changes)
    if function == "decoder_state":
        assert result.shape == (8, 32)
    elif result is not None:
        assert len(result) == 0


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
def test_source_position_outside_is_an_error(bad: int) -> None:
    target = np.zeros((5, 32), np.float32)
    source = np.ones((5, 9), np.float32)
    with pytest.raises(ValueError, match=rf"^source_positions\[1\] is {bad}; allowed are 0 to 8 "):
        call("scatter_columns", source=source, target=target, source_positions=np.array([0, bad, 0], np.int32))
    assert not target.any()  # nothing is written once a position is wrong


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1, -(2**31)])
def test_column_of_the_mean_outside_is_an_error(bad: int) -> None:
    out = np.full(3, 7, np.float32)
    with pytest.raises(ValueError, match=rf"^source\[1\] is {bad}; allowed are 0 to 8 \(columns of mean\)$"):
        call("patch_residual", source=np.array([0, bad, 0], np.int32), out=out)
    assert (out == 7).all()


def test_arrays_that_share_memory_are_an_error() -> None:
    maps = np.zeros((5, 32), np.float32)
    with pytest.raises(ValueError, match=r"^source and target share memory; pass source\.copy\(\)$"):
        call("scatter_columns", source=maps, target=maps)
    picture = np.zeros((64, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^image and reference share memory; pass image\.copy\(\)$"):
        call("update_reference", image=picture[:40, ::-1], reference=picture)


@pytest.mark.parametrize("function", ["information", "decoder_state", "ids_from_codes"])
@pytest.mark.parametrize(("dim", "bad"), [(0, -1), (0, 8), (3, 5), (5, 2**31 - 1)])
def test_code_outside_is_an_error(function: str, dim: int, bad: int) -> None:
    codes = np.zeros((3, 6), np.int32)
    codes[1, dim] = bad
    with pytest.raises(ValueError, match=rf"^codes\[1, {dim}\] is {bad}; allowed are 0 to {LEVELS[dim] - 1}"):
        call(function, codes=codes)


@pytest.mark.parametrize("bad", [-1, 64_000, 2**31 - 1])
def test_id_outside_is_an_error(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"^ids\[1\] is {bad}; allowed are 0 to 63999"):
        call("codes_from_ids", ids=np.array([0, bad], np.int32))


@pytest.mark.parametrize("function", ["information", "decoder_state", "ids_from_codes", "codes_from_ids"])
@pytest.mark.parametrize("levels", [(), (8, 1), (8, -8), (2,) * 17, (65_535,) * 2, (65_536,), (2**40,)])
def test_bad_levels_are_an_error(function: str, levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^levels must"):
        call(function, levels=levels)


IMAGED = [f for f, kwargs in arguments().items() if "image" in kwargs]


@pytest.mark.parametrize("shape", [(0, 32, 3), (32, 0, 3)])
@pytest.mark.parametrize("function", IMAGED)
def test_empty_image_is_an_error(function: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^image is empty"):
        call(function, image=np.empty(shape, np.uint8))


@pytest.mark.parametrize("shape", [(64, 32, 4), (64, 32, 1), (64, 32)])
@pytest.mark.parametrize("function", IMAGED)
def test_channel_count_is_checked(function: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^image must have shape \(H, W, 3\), got"):
        call(function, image=np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("function", "changes", "message"),
    [
        ("gather_features", {"grid_width": 8}, "grid_width must be 4 for an image 32 pixels wide, got 8"),
        ("patch_residual", {"grid_width": 8}, "grid_width must be 4 for an image 32 pixels wide, got 8"),
        ("patch_error", {"grid_width": 8}, "grid_width must be 4 for an image 32 pixels wide, got 8"),
        ("assemble", {"grid_width": 5}, "grid_width must divide the 32 patches"),
        ("assemble", {"grid_width": 0}, "grid_width must divide the 32 patches"),
        ("assemble", {"height": 65}, "height must be 1 to 64"),
        ("assemble", {"height": 0}, "height must be 1 to 64"),
        ("assemble", {"width": 33}, "width must be 1 to 32"),
        ("assemble", {"width": -1}, "width must be 1 to 32"),
    ],
)
def test_sizes_that_do_not_fit_are_an_error(function: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call(function, **changes)


@pytest.mark.parametrize("function", ["patch_change", "update_reference"])
@pytest.mark.parametrize(
    ("size", "padded"), [((65, 32), (96, 32)), ((64, 33), (64, 64)), ((1, 1), (32, 32)), ((32, 20), (32, 32))]
)
def test_reference_must_have_the_padded_size(function: str, size: tuple[int, int], padded: tuple[int, int]) -> None:
    message = rf"^reference must have shape \({padded[0]}, {padded[1]}, 3\), got \(64, 32, 3\)$"
    with pytest.raises(ValueError, match=message):
        call(function, image=np.zeros((*size, 3), np.uint8))


def test_pixels_must_fit_the_image() -> None:
    with pytest.raises(ValueError, match=r"^pixels must have shape \(192, 32\), got \(192, 16\)$"):
        call("patch_error", pixels=np.zeros((192, 16), np.float32))


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_share_outside_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match=rf"^share must be above 0 and below 1, got {share}$"):
        call("change_quantile", share=share)


@pytest.mark.parametrize("bad", [-1, -(2**31)])
def test_negative_change_is_an_error(bad: int) -> None:
    with pytest.raises(ValueError, match=rf"^changes\[2\] is {bad}; changes must be at least 0$"):
        call("change_quantile", changes=np.array([0, 5, bad, -7], np.int32))
