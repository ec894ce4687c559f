"""Change between frames and residuals, on the CPU: equal to the numpy specification bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.kernel_cases import IMAGES, PIXELS, SEEDS, assert_same, grid_of, guarded, padded_shape
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels


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
