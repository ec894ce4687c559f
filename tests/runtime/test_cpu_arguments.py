"""The kernels on the CPU refuse arguments that do not fit, and name them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.kernel_cases import LEVELS

from tatok_edge.runtime.cpu import kernels


def arguments() -> dict[str, dict[str, Any]]:
    """One valid call of every kernel, for an image of 64x32 pixels (32 patches)."""
    codes, positions = np.zeros((3, 6), np.int32), np.array([0, 7, 31], np.int32)
    image = np.zeros((64, 32, 3), np.uint8)
    return {
        "dtf": {"scores": np.ones((2, 32, 3), np.float32)},
        "image_to_cells": {"image": image, "bgr": False, "out": np.zeros((192, 2, 1), np.float32)},
        "gather_features": {
            "image": image,
            "bgr": False,
            "context": np.zeros((16, 9), np.float32),
            "mean": np.zeros((192, 9), np.float32),
            "source": np.array([8, 0, 3], np.int32),
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
            "expected": np.zeros((12, 32), np.float32),
            "entropy": np.zeros((2, 32), np.float32),
            "levels": LEVELS,
            "out": np.zeros((16, 32), np.float32),
        },
        "patch_scores": {
            "image": image,
            "bgr": False,
            "mean": np.zeros((192, 9), np.float32),
            "source": np.array([8, 0, 3], np.int32),
            "positions": positions,
            "grid_width": 4,
            "basis": np.zeros((2, 6, 192), np.int16),
            "out": np.zeros((3, 2), np.float32),
        },
        "visual_weights": {"image": image, "out": np.zeros(32, np.float32)},
        "ids_from_codes": {"codes": codes, "levels": LEVELS},
        "codes_from_ids": {"ids": np.zeros(3, np.int32), "levels": LEVELS},
    }


WRITTEN = {("scatter_columns", "target"), ("update_reference", "reference")}
"""Arguments that are changed in place, beside every ``out``."""
ANY_SIZE = {
    ("basis", 1),
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
    for axis in range(value.ndim):
        if (name, axis) in ANY_SIZE or (function, name, axis) == ("patch_scores", "mean", 1):
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
    if function in ("patch_scores", "gather_features"):
        changes |= {"source": np.zeros(0, np.int32), "out": arguments()[function]["out"][:0]}
    result = call(function, **changes)
    if function == "decoder_state":
        assert result.shape == (16, 32)
    elif result is not None:
        assert len(result) == 0


@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1])
def test_source_position_outside_is_an_error(bad: int) -> None:
    target = np.zeros((5, 32), np.float32)
    source = np.ones((5, 9), np.float32)
    with pytest.raises(ValueError, match=rf"^source_positions\[1\] is {bad}; allowed are 0 to 8 "):
        call("scatter_columns", source=source, target=target, source_positions=np.array([0, bad, 0], np.int32))
    assert not target.any()  # nothing is written once a position is wrong


@pytest.mark.parametrize(("function", "columns"), [("patch_scores", "mean"), ("gather_features", "context and mean")])
@pytest.mark.parametrize("bad", [-1, 9, 2**31 - 1, -(2**31)])
def test_column_of_the_mean_outside_is_an_error(function: str, columns: str, bad: int) -> None:
    out = np.full_like(arguments()[function]["out"], 7)
    with pytest.raises(ValueError, match=rf"^source\[1\] is {bad}; allowed are 0 to 8 \(columns of {columns}\)$"):
        call(function, source=np.array([0, bad, 0], np.int32), out=out)
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
        ("patch_scores", {"grid_width": 8}, "grid_width must be 4 for an image 32 pixels wide, got 8"),
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


@pytest.mark.parametrize("shape", [(0, 6, 192), (9, 6, 192), (2, 0, 192), (2, 17, 192)])
def test_directions_of_no_model_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^basis must have shape \(1 to 8, 1 to 16, 192\), got"):
        call("patch_scores", basis=np.zeros(shape, np.int16), out=None)


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
