"""Pixels to the networks and back, on the CPU: equal to the numpy specification bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_cases import IMAGES, PIXELS, SEEDS, assert_same, grid_of, guarded
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels


@given(image=IMAGES, bgr=st.booleans())
def test_image_to_cells_equals_reference(image: NDArray[np.uint8], bgr: bool) -> None:
    expected = reference.image_to_cells(image, bgr)
    assert_same(kernels.image_to_cells(image, bgr), expected)
    out, untouched = guarded(expected.shape, np.float32)
    assert kernels.image_to_cells(image, bgr, out) is out
    assert_same(out, expected)
    assert untouched()


@given(
    image=IMAGES,
    bgr=st.booleans(),
    channels=st.integers(0, 40),
    held=st.integers(1, 30),
    count=st.integers(0, 40),
    seed=SEEDS,
)
def test_gather_features_equals_reference(
    image: NDArray[np.uint8], bgr: bool, channels: int, held: int, count: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    h, w = grid_of(image)
    context = random.standard_normal((channels, held)).astype(np.float32)
    mean = random.standard_normal((192, held)).astype(np.float32)
    source = random.integers(0, held, count).astype(np.int32)
    positions = random.integers(0, h * w, count).astype(np.int32)
    expected = reference.gather_features(image, bgr, context, mean, source, positions, w)
    assert_same(kernels.gather_features(image, bgr, context, mean, source, positions, w), expected)
    out, untouched = guarded(expected.shape, np.float32)
    assert kernels.gather_features(image, bgr, context, mean, source, positions, w, out) is out
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
        kernels.gather_features(image, bgr, context, mean, positions, positions, w),
        reference.gather_features(image, bgr, context, mean, positions, positions, w),
    )


def test_every_pixel_value_becomes_the_same_float() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    empty = np.zeros((0, 16), np.float32)
    mean = np.zeros((192, 16), np.float32)
    one = np.array([5], np.int32)
    row = kernels.gather_features(image, False, empty, mean, one, one, 4)[0, :768]
    whole = kernels.gather_features(image, True, empty, mean, one, one, 4)[0, :768]
    centre = np.arange(256, dtype=np.float32).reshape(16, 16)[4:, 4:] / np.float32(127.5) - np.float32(1)
    assert_same(np.ascontiguousarray(row.reshape(16, 16, 3)[:12, :12, 0]), np.ascontiguousarray(centre))
    assert_same(whole, row)


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
