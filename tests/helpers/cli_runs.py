"""Runs of the ``tatok`` command, and checks of their results."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SMALL = "synthetic:frames=6,width=96,height=64"
CLIP = "synthetic:frames=24,width=160,height=96,fps=12"
CONTRACT = {"frames", "width", "height", "tokens_per_frame", "bits_per_frame", "seconds", "model", "backend"}


@dataclass
class Result:
    """What a run of ``tatok`` gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output, which must be one JSON document and nothing else."""
        document: dict[str, Any] = json.loads(self.out)
        return document


Run = Callable[..., Result]


def command() -> list[str]:
    """The installed ``tatok`` of this Python."""
    script = Path(sys.executable).with_name("tatok")
    return [str(script)] if script.exists() else [sys.executable, "-m", "tatok_edge"]


def launch(*arguments: object, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*command(), *(str(argument) for argument in arguments)],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
    )


def default_signals() -> None:
    """Tests that run in the background inherit that Ctrl-C and hang-ups are ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def one_line(result: Result, code: int, says: str) -> None:
    """Checks that a failure is told in exactly one line on standard error."""
    assert result.code == code
    assert re.search(says, result.err), result.err
    assert result.err.count("\n") == 1
    assert re.match(r"tatok( [a-z]+)?: ", result.err)
    assert "Traceback" not in result.err


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def load(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None, path
    return np.asarray(image)[..., ::-1]
