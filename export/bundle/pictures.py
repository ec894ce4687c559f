"""The pictures for making and checking a part of a bundle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError

SIDE = 256
"""Side of the centre crops in pixels."""
MAX_PICTURES = 48
MIN_PICTURES = 8


def read_crops(folder: Path) -> list[NDArray[np.uint8]]:
    """Centre crops, uint8 ``(256, 256, 3)`` RGB, of at most 48 pictures spread over a folder and its subfolders.

    Raises:
        InputError: there are fewer than 8.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    crops: list[NDArray[np.uint8]] = []
    # A stride that shares no factor with the count visits every file once, and neighbours, often alike, far apart.
    for index in _spread(len(files)):
        image = cv2.imread(str(files[index]), cv2.IMREAD_COLOR)
        if image is None or min(image.shape[:2]) < SIDE:
            continue
        top, left = ((side - SIDE) // 2 for side in image.shape[:2])
        crops.append(np.ascontiguousarray(image[top : top + SIDE, left : left + SIDE, ::-1]))
        if len(crops) == MAX_PICTURES:
            break
    if len(crops) < MIN_PICTURES:
        raise InputError(
            f"{folder} has {len(crops)} pictures of at least {SIDE}x{SIDE} pixels (JPEG, PNG or WebP), "
            f"{MIN_PICTURES} are needed"
        )
    return crops


def _spread(count: int) -> list[int]:
    stride = max(1, int(count * 0.618))
    while np.gcd(stride, max(count, 1)) != 1:
        stride += 1
    return [(index * stride) % count for index in range(count)]
