"""``tatok verify``: wrong use, a machine without a GPU, and the frames that it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tatok_edge.cli.main import main
from tatok_edge.cli.verify import read_frames
from tatok_edge.sources.open import open_source

SMALL = "synthetic:frames=6,width=96,height=64"


def verify(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> tuple[int, str, str]:
    """Exit code, output and errors of the command."""
    code = main(["verify", "tatok-s8", *arguments])
    return (code, *capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--backend", "onnxruntime", "--engines", "."], "--engines is for TensorRT"),
        (["--engines", "none"], "--engines none: no such folder; 'tatok build -o none' makes it"),
        (["--source", "none.mp4"], "none.mp4: no such file"),
        (["--backend", "tflite"], "unknown backend 'tflite'"),
    ],
)
def test_wrong_use(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = arguments if "--source" in arguments else [*arguments, "--source", SMALL]
    code, out, err = verify(capsys, given)
    assert (code, out) == (1, "") and says in err and err.count("\n") == 1


def test_without_a_gpu_it_says_what_can_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tatok_edge.runtime.open._has_driver", lambda: False)
    code, out, err = verify(capsys, ["--source", SMALL])
    assert (code, out) == (1, "")
    assert "nothing to verify: onnxruntime runs no engines" in err
    assert "'tatok verify tatok-s8 --backend onnxruntime --precision fp16'" in err


def test_frames_are_spread_over_a_source() -> None:
    with open_source(SMALL) as source:
        every = [frame.image for frame in source]
    taken = read_frames(SMALL, 3)
    assert len(taken) == 3
    for frame, number in zip(taken, (0, 2, 4), strict=True):
        np.testing.assert_array_equal(frame, every[number])
    assert len(read_frames(SMALL, 50)) == 6
