"""Pictures in memory."""

from collections.abc import Iterator

import numpy as np
import pytest
from helpers.pictures import picture

from tatok_edge.errors import SourceError
from tatok_edge.sources.open import open_source


def test_arrays_from_a_generator() -> None:
    buffer = np.zeros((40, 48, 3), np.uint8)

    def fill() -> Iterator[np.ndarray]:
        for number in range(5):
            buffer[:] = number  # the same memory again and again, as capture libraries do
            yield buffer

    with open_source(fill(), fps=25) as source:
        assert (source.live, source.fps, source.frames, source.width, source.height) == (False, 25, None, 48, 40)
        frames = list(source)
    assert [int(frame.image.max()) for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.timestamp_us for frame in frames] == [0, 40_000, 80_000, 120_000, 160_000]


def test_arrays_from_one_array_or_a_list_and_with_a_new_size() -> None:
    with open_source(np.zeros((3, 40, 48, 3), np.uint8), fps=10) as source:
        assert source.frames == 3
        assert len(list(source)) == 3
    pictures = [picture(1), picture(2), picture(3, 64, 40)[:, ::-1], picture(4, 64, 40)]
    with open_source(pictures, fps=10) as source:
        frames = list(source)
    assert [frame.restarted for frame in frames] == [False, False, True, False]
    assert frames[2].image.flags.c_contiguous
    for frame, expected in zip(frames, pictures, strict=True):
        np.testing.assert_array_equal(frame.image, expected)


@pytest.mark.parametrize(
    ("pictures", "fps", "says"),
    [
        ([], 30, "got no picture"),
        ([picture(1)], None, "need their frame rate"),
        ([picture(1)], 0, "fps must be above 0"),
        ([picture(1)], float("nan"), "fps must be above 0"),
        (picture(1), 30, "got a single picture"),
        ([picture(1)[..., 0]], 30, r"picture 0 must have shape .* got \(40, 48\); convert it: image"),
        ([picture(1).astype(np.float32)], 30, r"picture 0 must be uint8 .* got float32; convert it: \(image \* 255\)"),
        ([picture(1)[:8]], 30, "picture 0 is 48x8 pixels; width and height"),
        (None, 30, "something that yields pictures, got <class 'NoneType'>"),
        ("synthetic", 30, "fps is for arrays and folders"),
    ],
)
def test_arrays_that_are_wrong(pictures: object, fps: float | None, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        open_source(pictures, fps=fps)  # type: ignore[arg-type]


def test_bad_array_in_the_middle_is_named() -> None:
    with (
        open_source([picture(1), picture(2)[..., :2]], fps=30) as source,
        pytest.raises(SourceError, match="picture 1"),
    ):
        list(source)
