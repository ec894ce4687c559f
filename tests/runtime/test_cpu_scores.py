"""Scores of tokens on the CPU: equal to the numpy specification bit for bit, and right by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_cases import IMAGES, PIXELS, SEEDS, assert_same, grid_of, guarded, strided_image
from helpers.threads import in_threads
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels

ONE = 1 << 14


def basis_of(seed: int, depth: int, dims: int) -> NDArray[np.int16]:
    """Orthonormal directions, as a bundle has them."""
    random = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(random.normal(size=(192, depth * dims)))
    return np.ascontiguousarray(np.round(vectors.T.reshape(depth, dims, 192) * ONE).astype(np.int16))


def axes(*columns: int) -> NDArray[np.int16]:
    """One direction for each token: that of one pixel value."""
    basis = np.zeros((len(columns), 1, 192), np.int16)
    basis[np.arange(len(columns)), 0, list(columns)] = ONE
    return basis


def network_value(grey: float) -> np.float32:
    """The value in [-1, 1] that stands for a grey level."""
    return np.float32(grey / 127.5 - 1)


# --- the energy that tokens can remove -----------------------------------------------------------


@given(
    image=IMAGES,
    bgr=st.booleans(),
    depth=st.integers(1, 8),
    dims=st.integers(1, 8),
    scale=st.sampled_from([0.3, 1.0, 50.0]),
    seed=SEEDS,
)
def test_patch_scores_equal_reference(
    image: NDArray[np.uint8], bgr: bool, depth: int, dims: int, scale: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    h, w = grid_of(image)
    columns = int(random.integers(1, h * w + 1))
    mean = (scale * random.uniform(-1, 1, (192, columns))).astype(np.float32)
    count = int(random.integers(0, h * w + 1))
    positions = random.integers(0, h * w, count).astype(np.int32)  # in any order, repeated
    if random.random() < 0.5:
        positions.sort()
    source = random.integers(0, columns, count).astype(np.int32)
    basis = basis_of(seed, depth, dims)
    expected = reference.patch_scores(image, bgr, mean, source, positions, w, basis)
    scores = kernels.patch_scores(image, bgr, mean, source, positions, w, basis)
    assert_same(scores, expected)
    assert (scores >= 0).all() and (np.diff(scores, axis=1) <= 0).all()
    out, untouched = guarded((count, depth), np.float32)
    assert kernels.patch_scores(image, bgr, mean, source, positions, w, basis, out) is out
    assert_same(out, expected)
    assert untouched()


@given(values=st.lists(PIXELS, min_size=1, max_size=8), grey=st.integers(0, 255), seed=SEEDS)
def test_any_mean_gives_the_scores_of_the_reference(values: list[float], grey: int, seed: int) -> None:
    """NaN, infinity, huge values, and halves between two sixteenths."""
    image = np.full((32, 32, 3), grey, np.uint8)
    mean = np.random.default_rng(seed).choice(np.array(values, np.float32), (192, 16))
    everything = np.arange(16, dtype=np.int32)
    basis = basis_of(seed, 2, 6)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = reference.patch_scores(image, False, mean, everything, everything, 4, basis)
    scores = kernels.patch_scores(image, False, mean, everything, everything, 4, basis)
    assert_same(scores, expected)
    assert np.isfinite(scores).all()


@given(st.lists(st.floats(-1.25, 1.25, width=32), min_size=192, max_size=192))
def test_means_round_to_sixteenths_as_the_reference_does(values: list[float]) -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    mean = np.array(values, np.float32)[:, None]
    patch = np.zeros(1, np.int32)
    for column in range(0, 192, 8):
        basis = axes(*range(column, column + 8))
        arguments = (image, False, mean, patch, patch, 4, basis)
        assert_same(kernels.patch_scores(*arguments), reference.patch_scores(*arguments))


def test_the_score_is_the_squared_error_along_the_directions() -> None:
    image = np.full((32, 32, 3), 100, np.uint8)
    image[0, 0] = (130, 104, 100)  # values 0 and 1 of patch 0
    image[9, 1] = (100, 100, 40)  # value (8 + 1) * 3 - 1 + ... of patch 4
    mean = np.full((192, 16), network_value(100), np.float32)
    everything = np.arange(16, dtype=np.int32)

    def scores(*columns: int) -> NDArray[np.float32]:
        return kernels.patch_scores(image, False, mean, everything, everything, 4, axes(*columns))

    first = scores(0)[:, 0]
    assert first[0] == pytest.approx(30**2 / 192, rel=1e-6) and not first[1:].any()
    both = scores(0, 1)
    assert both[0].tolist() == pytest.approx([30**2 / 192, 4**2 / 192], rel=1e-6)
    # A token counts no more than the one above it.
    assert scores(1, 0)[0].tolist() == pytest.approx([4**2 / 192] * 2, rel=1e-6)
    inside = (1 * 8 + 1) * 3 + 2  # row 1, column 1, blue
    assert scores(inside)[4, 0] == pytest.approx(60**2 / 192, rel=1e-6)
    # In blue, green, red order the same place is read as red.
    swapped = kernels.patch_scores(image, True, mean, everything, everything, 4, axes((1 * 8 + 1) * 3))
    assert swapped[4, 0] == pytest.approx(60**2 / 192, rel=1e-6)
    spread = np.zeros((1, 1, 192), np.int16)
    spread[0, 0, :2] = round(ONE / 2**0.5)  # the direction between both values of patch 0
    along = kernels.patch_scores(image, False, mean, everything, everything, 4, spread)
    assert along[0, 0] == pytest.approx((34**2 / 2) / 192, rel=1e-3)


def test_the_scores_of_all_directions_are_the_whole_error() -> None:
    """With as many directions as pixel values, the energies add up to the mean squared error of the patch."""
    random = np.random.default_rng(3)
    image = random.integers(0, 256, (32, 64, 3), np.uint8)
    mean = random.uniform(-1, 1, (192, 32)).astype(np.float32)
    everything = np.arange(32, dtype=np.int32)
    vectors, _ = np.linalg.qr(random.normal(size=(192, 192)))
    directions = np.round(vectors.T * ONE).astype(np.int16).reshape(192, 1, 1, 192)
    total = sum(
        kernels.patch_scores(image, False, mean, everything, everything, 8, np.ascontiguousarray(direction))[:, 0]
        for direction in directions
    )
    patches = image.reshape(4, 8, 8, 8, 3).transpose(0, 2, 1, 3, 4).reshape(32, 192)
    error = np.square(patches - (mean.T * 127.5 + 127.5)).mean(1)
    np.testing.assert_allclose(total, error, rtol=2e-3)


def test_the_edge_is_repeated() -> None:
    image = strided_image(37, 45, "cropped", 4)
    padded = np.pad(image, ((0, 27), (0, 19), (0, 0)), mode="edge")
    mean = np.random.default_rng(1).uniform(-1, 1, (192, 64)).astype(np.float32)
    everything, basis = np.arange(64, dtype=np.int32), basis_of(1, 3, 6)
    of_image = kernels.patch_scores(image, False, mean, everything, everything, 8, basis)
    assert_same(of_image, kernels.patch_scores(padded, False, mean, everything, everything, 8, basis))


def test_the_order_of_channels_can_be_given() -> None:
    image = strided_image(64, 96, "contiguous", 2)
    mean = np.random.default_rng(1).uniform(-1, 1, (192, 96)).astype(np.float32)
    everything, basis = np.arange(96, dtype=np.int32), basis_of(2, 4, 6)
    rgb = kernels.patch_scores(image, False, mean, everything, everything, 12, basis)
    assert_same(kernels.patch_scores(image[:, :, ::-1], True, mean, everything, everything, 12, basis), rgb)
    assert not np.array_equal(kernels.patch_scores(image, True, mean, everything, everything, 12, basis), rgb)


def test_the_largest_residuals_stay_exact() -> None:
    """White on a mean that says black and beyond, along a direction that every value adds to."""
    image = np.full((32, 32, 3), 255, np.uint8)
    mean = np.full((192, 16), -np.inf, np.float32)
    everything = np.arange(16, dtype=np.int32)
    basis = np.full((1, 1, 192), round(ONE / 192**0.5), np.int16)
    arguments = (image, False, mean, everything, everything, 4, basis)
    with np.errstate(invalid="ignore"):
        assert_same(kernels.patch_scores(*arguments), reference.patch_scores(*arguments))
    assert kernels.patch_scores(*arguments)[0, 0] == pytest.approx((4095 / 16) ** 2, rel=1e-3)


# --- how visible an error is ---------------------------------------------------------------------


@given(image=IMAGES)
def test_visual_weights_equal_reference(image: NDArray[np.uint8]) -> None:
    expected = reference.visual_weights(image)
    weights = kernels.visual_weights(image)
    assert_same(weights, expected)
    assert ((weights > 0) & (weights <= 1)).all()
    assert_same(kernels.visual_weights(image[:, :, ::-1]), expected)  # the order of channels does not matter
    out, untouched = guarded(weights.shape, np.float32)
    assert kernels.visual_weights(image, out) is out
    assert_same(out, expected)
    assert untouched()


def test_visual_weights_by_hand() -> None:
    image = np.full((32, 64, 3), 90, np.uint8)
    assert (kernels.visual_weights(image) == 1).all()
    image[8:16, 8:12] = 150  # half of the patch in row 1, column 1: a variance of 30 squared
    weights = kernels.visual_weights(image).reshape(4, 8)

    def weight(around: int) -> float:
        return 1300.5 / (30**2 / around + 1300.5)

    assert weights[1, 1] == weights[2, 2] == pytest.approx(weight(9))
    assert weights[0, 0] == pytest.approx(weight(4))  # in the corner there are four patches around
    assert weights[0, 1] == weights[2, 0] == pytest.approx(weight(6), abs=2e-2)
    assert (weights[:, 3:] == 1).all() and (weights[3] == 1).all()
    # The same variance in one channel alone counts a third.
    image = np.full((32, 64, 3), 90, np.uint8)
    image[8:16, 8:12, 1] = 150
    assert kernels.visual_weights(image).reshape(4, 8)[1, 1] == pytest.approx(weight(27))


def test_scores_are_the_same_in_threads() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (96, 160, 3), np.uint8)
    mean = random.uniform(-1, 1, (192, 240)).astype(np.float32)
    everything, basis = np.arange(240, dtype=np.int32), basis_of(5, 4, 6)
    expected = reference.patch_scores(image, False, mean, everything, everything, 20, basis)
    weights = reference.visual_weights(image)

    def work(_: int) -> None:
        for _ in range(10):
            assert_same(kernels.patch_scores(image, False, mean, everything, everything, 20, basis), expected)
            assert_same(kernels.visual_weights(image), weights)

    in_threads(4, work)
