"""Drawings of depth maps: colours, lines, legend, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_edge.errors import InputError
from tatok_edge.pictures.drawing import COLOUR_SHARE, DEPTH_COLOURS, DROPPED, depth_colour, depth_legend, depth_overlay


def test_each_depth_has_a_colour_of_its_own() -> None:
    colours = [depth_colour(depth) for depth in range(1 + len(DEPTH_COLOURS))]
    assert len(set(colours)) == len(colours) and colours[0] == DROPPED
    assert depth_colour(8) == depth_colour(len(DEPTH_COLOURS))


def test_a_patch_shows_its_depth_over_the_picture_in_grey() -> None:
    image = np.full((40, 60, 3), (30, 90, 150), np.uint8)  # not a whole number of patches
    depths = np.zeros((8, 8), np.int32)
    depths[2, 3], depths[2, 4] = 1, 4
    drawn = depth_overlay(image, depths)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8

    def shade(depth: int) -> list[int]:
        return [round((1 - COLOUR_SHARE) * 90 + COLOUR_SHARE * part) for part in depth_colour(depth)]

    assert drawn[4, 4].tolist() == shade(0)
    assert drawn[20, 27].tolist() == shade(1)  # inside of the patch in row 2, column 3
    assert drawn[20, 36].tolist() == shade(4)
    # The line is on the side of the deeper patch.
    assert drawn[20, 24].tolist() == [round(0.5 * part + 127.5 - 1e-9) for part in shade(1)]
    assert drawn[20, 23].tolist() == shade(0)
    assert drawn[20, 32].tolist() != shade(4) and drawn[20, 31].tolist() == shade(1)
    assert np.array_equal(depth_overlay(image, np.zeros((8, 8), np.int32))[0, 0], shade(0))


def test_a_map_of_another_picture_is_refused() -> None:
    with pytest.raises(InputError, match="a depth map of 4x4 patches is too small for a 64x32 picture"):
        depth_overlay(np.zeros((32, 64, 3), np.uint8), np.zeros((4, 4), np.int32))


@pytest.mark.parametrize("width", [700, 240, 60])
def test_the_legend_has_every_depth(width: int) -> None:
    depths = np.array([[0, 0, 1, 4], [0, 0, 2, 2]], np.int32)
    legend = depth_legend(depths, 4, width=width)
    assert legend.shape[1] == width and legend.shape[0] == (30 if width == 700 else legend.shape[0])
    if width >= 240:  # in as many rows as it takes
        for depth in range(5):
            assert (legend == depth_colour(depth)).all(axis=2).sum() > 150, depth
