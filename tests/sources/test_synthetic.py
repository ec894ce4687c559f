"""The rendered clip."""

import numpy as np

from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render


def test_synthetic_frames_depend_on_their_number_and_seed_only() -> None:
    scene = Scene(width=96, height=64, seed=3)
    fourth = render(scene, 4)
    render(scene, 0)
    np.testing.assert_array_equal(render(scene, 4), fourth)
    assert not np.array_equal(render(scene, 5), fourth)
    assert not np.array_equal(render(Scene(width=96, height=64, seed=4), 4), fourth)


def test_synthetic_scene_is_still_but_for_noise_and_what_moves() -> None:
    scene = Scene(width=320, height=240)
    first, later = (render(scene, index).astype(np.float32) for index in (0, 30))
    changed = np.abs(first - later).max(axis=2) > 12
    assert 0.02 < changed.mean() < 0.3
    wall = np.abs(first - later)[60:100, 130:150]
    assert 0.5 < wall.mean() < 5  # two draws of sensor noise


def test_synthetic_settings() -> None:
    with open_source("synthetic:frames=3,width=64,height=48,fps=10,seed=2") as source:
        frames = list(source)
    assert (source.fps, source.frames, source.width, source.height, source.live) == (10, 3, 64, 48, False)
    assert [frame.index for frame in frames] == [0, 1, 2]
    assert [frame.timestamp_us for frame in frames] == [0, 100_000, 200_000]
    assert frames[0].image.shape == (48, 64, 3)
    assert frames[0].image.dtype == np.uint8
