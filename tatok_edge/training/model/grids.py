"""Pixels to cells, patches and windows, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_edge.geometry import CELL, PATCH, THUMBNAIL, WINDOW

PIXELS = PATCH * PATCH * 3
WINDOW_PIXELS = WINDOW * WINDOW * 3


def image_to_cells(image: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` to thumbnail cells ``(B, 192, H/32, W/32)``, channels in (y, x, rgb) order."""
    thumbnail = F.avg_pool2d(image, THUMBNAIL)
    return pixels_to_grid(thumbnail, CELL // THUMBNAIL)


def pixels_to_grid(image: Tensor, side: int) -> Tensor:
    """Images ``(B, C, H, W)`` to squares ``(B, side*side*C, H/side, W/side)``, channels in (y, x, c) order."""
    b, c, h, w = image.shape
    grid = image.reshape(b, c, h // side, side, w // side, side)
    return grid.permute(0, 3, 5, 1, 2, 4).reshape(b, side * side * c, h // side, w // side)


def grid_to_pixels(grid: Tensor, side: int) -> Tensor:
    """Inverse of :func:`pixels_to_grid`."""
    b, channels, h, w = grid.shape
    c = channels // (side * side)
    image = grid.reshape(b, side, side, c, h, w).permute(0, 3, 4, 1, 5, 2)
    return image.reshape(b, c, h * side, w * side)


def image_to_windows(image: Tensor, patch: int = PATCH, window: int = WINDOW) -> Tensor:
    """Images ``(B, 3, H, W)`` to 16x16 windows around each patch ``(B, H/8, W/8, 768)``, values in (y, x, rgb) order.

    Outside the image the edge is repeated.
    """
    margin = (window - patch) // 2
    padded = F.pad(image, (margin,) * 4, mode="replicate")
    windows = padded.unfold(2, window, patch).unfold(3, window, patch)
    return windows.permute(0, 2, 3, 4, 5, 1).flatten(3)


def window_centre_index(patch: int = PATCH, window: int = WINDOW) -> Tensor:
    """Indices of the 192 values of a flat window that belong to the patch in its middle."""
    index = torch.arange(window * window * 3).reshape(window, window, 3)
    margin = (window - patch) // 2
    return index[margin : margin + patch, margin : margin + patch].flatten()
