"""Small pictures for tests."""

from pathlib import Path

import cv2
import numpy as np

from tatok_edge.sources.synthetic import Scene, render


def picture(seed: int, width: int = 48, height: int = 40) -> np.ndarray:
    """A small picture with three different channels."""
    return render(Scene(width=width, height=height, seed=seed), 0)


def save(path: Path, rgb: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), np.ascontiguousarray(rgb[..., ::-1]))
    return path
