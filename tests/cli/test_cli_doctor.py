"""``tatok doctor`` on this machine."""

import re
import shutil
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from helpers.cli_runs import Run

from tatok_edge.model.bundle import DEFAULT_MODEL, MODELS


def test_doctor(tatok: Run) -> None:
    result = tatok("doctor", "--json")
    assert result.code == 0
    report = result.json
    assert report["ok"] is True
    assert report["versions"]["numpy"] == np.__version__
    backends = {backend["name"]: backend for backend in report["backends"]}
    assert backends["onnxruntime"]["usable"] is True
    assert all(backend["reason"] for backend in backends.values())
    assert report["opencv"]["version"] == cv2.__version__
    assert report["pyav"]["version"] == av.__version__ and "libavcodec" in report["pyav"]["libraries"]
    assert report["pyav"]["h264"] is ("libx264" in av.codecs_available)
    assert {model["name"]: model["usable"] for model in report["models"]}[DEFAULT_MODEL] is True
    text = tatok("doctor").out
    assert text.splitlines()[-1] == "ready"
    assert DEFAULT_MODEL in text


def test_doctor_names_a_damaged_model(tatok: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(MODELS / DEFAULT_MODEL, f"models/{DEFAULT_MODEL}")
    graph = Path(f"models/{DEFAULT_MODEL}/context.onnx")
    graph.write_bytes(graph.read_bytes() + b"x")
    monkeypatch.setattr("tatok_edge.model.bundle.MODELS", Path("models"))
    result = tatok("doctor")
    assert result.code == 1
    assert re.search(rf"{DEFAULT_MODEL} +no +.*context\.onnx: SHA-256 is", result.out)
