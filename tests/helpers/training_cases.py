"""The tiny model, pictures and checkpoints for tests of the training."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors import safe_open

from tatok_edge.training.config import CONFIGS
from tatok_edge.training.options import Options

CPU = torch.device("cpu")
TINY = CONFIGS["tatok-tiny"]


def options(**changes: Any) -> Options:
    values: dict[str, Any] = {"config": "tatok-tiny", "batch": 2, "crop": 64, "entropy_images": 8, "entropy_steps": 3}
    return Options(**(values | changes))


def png(seed: int, height: int = 64, width: int = 96) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    ok, data = cv2.imencode(".png", image)
    assert ok
    return data.tobytes()


def tensors(path: Path) -> dict[str, Any]:
    with safe_open(str(path), "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}
