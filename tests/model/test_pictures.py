"""Images as callers have them: what is taken, and the line that converts what is not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from helpers.pictures import picture

from tatok_edge.errors import InputError
from tatok_edge.model.pictures import check_image


@pytest.mark.parametrize(
    "given",
    [
        picture(1).astype(np.float32) / 255,
        picture(1).transpose(2, 0, 1),
        picture(1).transpose(2, 0, 1).astype(np.float64) / 255,
        picture(1)[:, :, 0],
        picture(1)[:, :, :1],
        picture(1)[:, :, 0].astype(np.float32) / 255,
        np.dstack([picture(1), picture(2)[:, :, :1]]),
        picture(1)[None],
        picture(1).astype(np.uint16) << 8,
        picture(1).astype(np.int64),
        picture(1).transpose(2, 0, 1)[None].astype(np.float32) / 255,
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_the_line_in_the_message_converts(given: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InputError, match="convert it: ") as caught:
        check_image(given)
    line = re.sub(r" \(for values .*\)$", "", str(caught.value).partition("convert it: ")[2])
    made = check_image(eval(line, {"image": given, "np": np}))
    assert made.shape == (40, 48, 3)
    expected = picture(1) if (given.ndim > 2 and 3 in given.shape) or given.shape[-1] == 4 else picture(1)[:, :, :1]
    np.testing.assert_array_equal(made, np.broadcast_to(expected, made.shape))


@pytest.mark.parametrize("given", [np.zeros((7, 40, 48)), np.zeros(9), np.zeros((2, 3, 40, 48)), "a.png", None, [[1]]])
def test_what_no_line_converts(given: Any) -> None:
    with pytest.raises(InputError, match="must be uint8") as caught:
        check_image(given)
    assert "convert it" not in str(caught.value)


def test_pictures_of_pillow() -> None:
    image = pytest.importorskip("PIL.Image")
    np.testing.assert_array_equal(check_image(image.fromarray(picture(1))), picture(1))
    grey = check_image(image.fromarray(picture(1)[:, :, 0]))
    np.testing.assert_array_equal(grey, np.repeat(picture(1)[:, :, :1], 3, axis=2))
    assert check_image(image.fromarray(picture(1)).convert("RGBA")).shape == (40, 48, 3)
    assert check_image(image.fromarray(picture(1)).convert("P")).dtype == np.uint8


def test_tensors_of_pytorch_on_the_cpu() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(picture(1))
    taken = check_image(tensor)
    np.testing.assert_array_equal(taken, picture(1))
    assert np.shares_memory(taken, tensor.numpy())
    with pytest.raises(InputError, match=r"convert it: \(image\.permute\(1, 2, 0\) \* 255\)\.round\(\)\.to\(torch"):
        check_image(tensor.permute(2, 0, 1).float() / 255)
