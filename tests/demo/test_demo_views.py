"""The map of the patches, and the size of the pictures."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_edge.tokens.delta import DeltaFrame

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")


from tatok_edge.demo.views import HELD, MOVED, TOKEN, UPDATED, figures, map_of, scaled


def test_map_and_scale() -> None:
    assert set(map_of(None, 6)) == {HELD}
    assert (HELD, UPDATED, MOVED, TOKEN) == (0, 1, 2, 3)  # as the page's script has them
    turns = np.array([1], np.int32)
    delta = DeltaFrame(
        updated=np.array([0, 9, 10], np.int32),
        positions=np.array([9, 10, 10, 10], np.int32),
        ids=np.array([5, 6, 7, 8], np.int32),
        cells=np.zeros(0, np.int32),
        global_ids=np.zeros(0, np.int32),
        width=64,
        height=32,
        model=bytes(8),
        index=1,
        reference=0,
        follows=0,
        turns=turns,
        vectors=np.array([[2, 0]], np.int32),
    )
    marks = map_of(delta, 32).reshape(4, 8)
    assert marks[0, 0] == UPDATED and marks[1, 1] == TOKEN and marks[1, 2] == TOKEN + 2  # of three tokens
    assert (marks[:, 4:] == MOVED).all() and np.count_nonzero(marks[:, :4] == HELD) == 13
    counts = figures(delta, 64, 32)
    assert (counts["patch_tokens"], counts["patches_with_tokens"], counts["updated"]) == (4, 2, 3)
    image = np.zeros((480, 640, 3), np.uint8)
    assert scaled(image, 320).shape == (240, 320, 3)
    assert scaled(image, 640) is image and scaled(image, 1000) is image
    assert scaled(np.zeros((40, 1200, 3), np.uint8), 320).shape == (32, 320, 3)
