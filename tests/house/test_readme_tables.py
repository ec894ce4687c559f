"""Tables that benchmarks/readme.py puts into the README."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def readme(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = script("benchmarks/readme.py")
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def clip(name: str, **more: Any) -> dict[str, Any]:
    return {
        "clip": name,
        "size": "320x250",
        "fps": 25.0,
        "psnr_fixed": 31.0,
        "psnr_loss": 0.0,
        "bits_per_pixel": 0.05,
        "x264_bits_per_pixel": 0.01,
        "x264_psnr": 31.0,
        "svt_av1_bits_per_pixel": 0.008,
        "svt_av1_psnr": 33.37,
        **more,
    }


def test_tokens_beside_video_codecs(readme: ModuleType, tmp_path: Path) -> None:
    clips = [clip("dashcam_highway"), clip("another"), clip("highway_static")]
    path = tmp_path / "stream.json"
    path.write_text(json.dumps({"tag": readme.TAG, "frames": 60, "clips": clips}))
    rows = [line for line in readme.codecs().splitlines() if "frames/s" in line]
    assert len(rows) == 2
    assert rows[0] == ("| a still camera, a busy motorway, 320x250, 25 frames/s | 31.0 dB | 100 | 20 | 16 (33.4 dB) |")
    path.write_text(json.dumps({"tag": "0" * 16, "frames": 60, "clips": clips}))
    assert readme.codecs() == ""
    without = {key: value for key, value in clips[0].items() if not key.startswith("x264")}
    path.write_text(json.dumps({"tag": readme.TAG, "frames": 60, "clips": [without]}))
    assert readme.codecs() == ""
