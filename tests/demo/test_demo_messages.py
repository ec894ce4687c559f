"""Messages of a page: settings, JSON and JPEG pictures."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")


from helpers.demo_client import jpeg_of

from tatok_edge.demo.feeds import decode_jpeg
from tatok_edge.demo.messages import MessageError, Settings, jpeg_size, parse

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*Settings().report(), "x"]), json_values, max_size=3))
def test_settings_take_what_is_allowed_and_refuse_the_rest(changes: dict[str, Any]) -> None:
    settings = Settings()
    with contextlib.suppress(MessageError):
        settings = Settings().changed(changes)
    assert json.loads(json.dumps(settings.report(), allow_nan=False))["version"] in (0, 1)
    assert settings.budget.tau == settings.tau


@given(st.text() | json_values.map(json.dumps))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(parse(text)["type"], str)


JPEG = jpeg_of(64, 48)


@given(st.integers(0, len(JPEG)), st.binary(max_size=8), st.booleans())
def test_any_damage_to_a_picture_is_noticed_or_harmless(at: int, junk: bytes, cut: bool) -> None:
    data = JPEG[:at] + junk + (b"" if cut else JPEG[at + len(junk) :])
    with contextlib.suppress(MessageError):
        width, height = jpeg_size(data)
        assert decode_jpeg(data).shape == (height, width, 3)


def test_jpeg_sizes() -> None:
    assert jpeg_size(JPEG) == (64, 48)
    assert decode_jpeg(JPEG).shape == (48, 64, 3)
    at = JPEG.index(b"\xff\xc0")
    huge = JPEG[: at + 5] + b"\xff\xff\xff\xff" + JPEG[at + 9 :]
    with pytest.raises(MessageError, match="got 65535x65535"):
        decode_jpeg(huge)
    done, png = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))
    assert done
    with pytest.raises(MessageError, match="must be a JPEG picture"):
        decode_jpeg(png.tobytes())
