"""Draws pictures for people: the depth map over a picture, panels side by side, and tokens per frame as a plot."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.geometry import PATCH, Image

PANEL_WIDTH = (320, 960)
"""Smallest and largest width of a panel: small pictures are enlarged by a whole factor, large ones shrunk."""
LABEL_HEIGHT = 30
GAP = 8
PLOT_HEIGHT = 220
INK = (32, 36, 42)
FAINT = (208, 212, 218)
PAPER = (255, 255, 255)
ACCENT = (22, 106, 178)
MARK = (214, 74, 44)
DROPPED = (34, 42, 66)
"""Colour of patches without a token."""
DEPTH_COLOURS = ((46, 84, 156), (38, 150, 148), (120, 190, 70), (252, 206, 48), (244, 132, 48), (214, 62, 74))
"""Colours of patches with 1, 2, ... tokens, from cold to warm; the last one stands for all deeper patches."""
COLOUR_SHARE = 0.6
"""Share of the colour in the drawing of a patch; the rest is the picture in grey."""


def depth_colour(depth: int) -> tuple[int, int, int]:
    """Colour of patches with ``depth`` tokens in :func:`depth_overlay`."""
    return DROPPED if depth == 0 else DEPTH_COLOURS[min(depth, len(DEPTH_COLOURS)) - 1]


def depth_overlay(image: Image, depths: NDArray[np.int32]) -> Image:
    """Colours each patch by its number of tokens, over the picture in grey, with a line where the number changes.

    Args:
        image: RGB picture, uint8 (height, width, 3).
        depths: Depth map (rows, columns) of the padded patch grid.

    Raises:
        InputError: The map is too small for the picture.
    """
    height, width = image.shape[:2]
    rows, columns = depths.shape
    if rows * PATCH < height or columns * PATCH < width:
        raise InputError(f"a depth map of {columns}x{rows} patches is too small for a {width}x{height} picture")
    deep = np.repeat(np.repeat(depths, PATCH, axis=0), PATCH, axis=1)[:height, :width]
    colours = np.array([depth_colour(depth) for depth in range(int(depths.max(initial=0)) + 1)], np.float32)
    grey = image.astype(np.float32).mean(axis=2, keepdims=True)
    shown = np.rint((1 - COLOUR_SHARE) * grey + COLOUR_SHARE * colours[deep])
    # On the side of the deeper patch.
    border = np.zeros((height, width), np.bool_)
    border[1:] |= deep[1:] > deep[:-1]
    border[:-1] |= deep[:-1] > deep[1:]
    border[:, 1:] |= deep[:, 1:] > deep[:, :-1]
    border[:, :-1] |= deep[:, :-1] > deep[:, 1:]
    shown[border] = 0.5 * shown[border] + 0.5 * 255
    return np.asarray(shown, np.uint8)


def depth_legend(depths: NDArray[np.int32], depth: int, *, width: int) -> Image:
    """The colours of :func:`depth_overlay`, each with the share of the patches that have so many tokens.

    Args:
        depths: Depth map.
        depth: Most tokens of a patch, which the legend ends with.
        width: Width of the legend in pixels.

    Returns:
        RGB picture on white.
    """
    counts = np.bincount(depths.ravel(), minlength=depth + 1)
    entries = [f"{number}: {count / max(depths.size, 1):.0%}" for number, count in enumerate(counts)]
    title = "tokens per patch"
    step = 78
    first = cv2.getTextSize(title, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)[0][0] + 2 * GAP
    in_row = max((width - first) // step, 1)
    lines = -(-len(entries) // in_row)
    image = np.full((22 * lines + GAP, width, 3), 255, np.uint8)
    _text(image, title, (GAP, 18), INK, 0.42)
    for number, entry in enumerate(entries):
        line, column = divmod(number, in_row)
        x, y = first + step * column, 6 + 22 * line
        cv2.rectangle(image, (x, y), (x + 14, y + 14), depth_colour(number), -1)
        _text(image, entry, (x + 20, y + 12), INK, 0.42)
    return image


def side_by_side(panels: Sequence[tuple[str, Image]]) -> Image:
    """Puts labelled pictures of one size beside each other.

    Args:
        panels: (label, RGB picture) from left to right.

    Returns:
        RGB picture on white.
    """
    drawn = [_panel(label, image) for label, image in panels]
    gap = np.full((drawn[0].shape[0], GAP, 3), 255, np.uint8)
    pieces = [gap]
    for panel in drawn:
        pieces += [panel, gap]
    return np.hstack(pieces)


def rate_plot(tokens: Sequence[int], patches: int, *, width: int, mark: int | None = None) -> Image:
    """Plots the tokens of each frame over the frame number.

    Args:
        tokens: Patch tokens per frame.
        patches: Patches per frame, for the title.
        width: Width of the plot in pixels.
        mark: Frame to mark, if any.

    Returns:
        RGB picture, uint8 (PLOT_HEIGHT, width, 3).
    """
    image = np.full((PLOT_HEIGHT, width, 3), 255, np.uint8)
    left, right, top, bottom = 64, width - 20, 40, PLOT_HEIGHT - 34
    mean = sum(tokens) / len(tokens)
    _text(image, f"patch tokens per frame (mean {mean:.0f}, {mean / patches:.2f} per patch)", (GAP, 22), INK, 0.5)
    low, high = float(min(tokens)), float(max(tokens))
    # The axis covers at least a tenth of the mean, so that a flat curve looks flat.
    spread = max(high - low, 0.1 * mean, 1)
    low, high = max(low - 0.15 * spread, 0.0), high + 0.15 * spread

    def place(number: float, value: float) -> tuple[int, int]:
        x = left + (right - left) * number / max(len(tokens) - 1, 1)
        return round(x), round(bottom - (bottom - top) * (value - low) / (high - low))

    for value in _ticks(low, high):
        y = place(0, value)[1]
        cv2.line(image, (left, y), (right, y), FAINT, 1)
        _text(image, f"{value:g}", (left - 8, y + 4), INK, 0.42, align="right")
    for number in sorted({0, len(tokens) // 2, len(tokens) - 1}):
        x = place(number, low)[0]
        cv2.line(image, (x, bottom), (x, bottom + 4), INK, 1)
        _text(image, str(number), (x, bottom + 18), INK, 0.42, align="centre")
    _text(image, "frame", (right, PLOT_HEIGHT - 4), INK, 0.42, align="right")
    cv2.line(image, (left, bottom), (right, bottom), INK, 1)
    columns = _columns(tokens, right - left)
    for middle, group in columns:
        cv2.line(image, place(middle, min(group)), place(middle, max(group)), ACCENT, 1, cv2.LINE_AA)
    curve = np.array([place(middle, sum(group) / len(group)) for middle, group in columns], np.int32)
    cv2.polylines(image, [curve], False, ACCENT, 2, cv2.LINE_AA)
    if mark is not None:
        x, y = place(mark, tokens[mark])
        cv2.line(image, (x, top), (x, bottom), MARK, 1)
        cv2.circle(image, (x, y), 4, MARK, -1, cv2.LINE_AA)
        side = "right" if x > width // 2 else "left"
        _text(image, f"shown: frame {mark}", (x - 6 if side == "right" else x + 6, top + 2), MARK, 0.42, align=side)
    return image


def stack(parts: Sequence[Image]) -> Image:
    """Puts pictures under each other on white, padded to the widest."""
    width = max(part.shape[1] for part in parts)
    filled = [
        cv2.copyMakeBorder(part, 0, GAP, 0, width - part.shape[1], cv2.BORDER_CONSTANT, value=PAPER) for part in parts
    ]
    return np.asarray(np.vstack(filled), np.uint8)


def _panel(label: str, image: Image) -> Image:
    least, most = PANEL_WIDTH
    height, width = image.shape[:2]
    factor = -(-least // width)
    if factor > 1:
        shown = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
    elif width > most:
        size = (most, max(round(height * most / width), 1))
        shown = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    else:
        shown = image
    strip = np.full((LABEL_HEIGHT, shown.shape[1], 3), 255, np.uint8)
    _text(strip, label, (0, 20), INK, 0.5)
    return np.vstack([strip, shown])


def _text(
    image: Image, text: str, place: tuple[int, int], color: tuple[int, int, int], size: float, align: str = "left"
) -> None:
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    x = place[0] - {"left": 0, "centre": width // 2, "right": width}[align]
    cv2.putText(image, text, (x, place[1]), cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)


def _ticks(low: float, high: float) -> list[float]:
    """At most seven round values between two bounds."""
    step = 10.0 ** np.floor(np.log10(max(high - low, 1e-9)))
    for factor in (0.2, 0.5, 1.0, 2.0):
        if (high - low) / (step * factor) <= 6:
            step *= factor
            break
    return [float(value) for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _columns(tokens: Sequence[int], pixels: int) -> list[tuple[float, Sequence[int]]]:
    """Groups of neighbouring frames, one per pixel column at most, each with its middle frame number."""
    size = max(-(-len(tokens) // max(pixels, 1)), 1)
    groups = [(start, tokens[start : start + size]) for start in range(0, len(tokens), size)]
    return [(start + (len(group) - 1) / 2, group) for start, group in groups]
