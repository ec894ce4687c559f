"""What pages show for one picture: the pictures as JPEG, the map of the patches, and the figures."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import FormatError
from tatok_edge.geometry import CELL, MIN_SIDE, PATCH, Image, cell_grid, patch_grid
from tatok_edge.stream.rate import WINDOW_US
from tatok_edge.tokens.checks import depths_of
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

HELD, UPDATED, MOVED, TOKEN = 0, 1, 2, 3
"""Values of the map: the patch is held, updated without a token, or moved with its cell; ``TOKEN`` and above: one token
was sent for it, two tokens, and so on."""
JPEG_QUALITY: Final = 90
SHOWN_TOKENS: Final = 1024
"""Most tokens of a frame whose sequence a page shows."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What pages show for one picture."""

    number: int
    """Rises from view to view."""
    version: int
    """Version of the settings in use."""
    arrived: float
    """When the picture arrived, in seconds of ``time.monotonic``."""
    header: dict[str, Any]
    """Figures, as JSON."""
    camera: bytes
    """The picture before encoding, as JPEG; empty for recordings."""
    picture: bytes
    """The decoded picture, as JPEG."""
    token_map: bytes
    """What happened to each patch, in raster order: see :data:`HELD`."""
    depth_map: bytes
    """Tokens that are held of each patch, in raster order."""
    sequence: bytes
    """The first patch tokens of the frame, in their order: patch, depth and id of each, int32 (little-endian)."""


class Audience(Protocol):
    """The pages; called by the engine's thread."""

    def present(self) -> bool:
        """Whether a page is open: without one, nothing is encoded."""

    def show(self, view: View) -> None:
        """Show a new view."""

    def changed(self) -> None:
        """The state has changed."""

    def tell(self, text: str, owner: int | None = None) -> None:
        """Tell all pages, or the page ``owner``, of an error."""

    def refuse(self, text: str, owner: int) -> None:
        """Tell page ``owner`` that its picture cannot be used."""


class Traffic:
    """Bits of the last second and times of the last frames."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        """Begin of all times, in seconds of ``time.monotonic``."""
        self.sent: deque[tuple[int, int]] = deque()
        """Time in microseconds from the start, and bits of each packet of the last second."""
        self._times: deque[float] = deque(maxlen=60)

    def stamp(self, now: float) -> int:
        """``now`` in microseconds from the start."""
        return round((now - self.start) * 1e6)

    def count(self, now: float, size: int) -> dict[str, Any]:
        """Count a packet of ``size`` bytes; returns bandwidth and frame rate, as JSON."""
        stamp = self.stamp(now)
        self.sent.append((stamp, 8 * size))
        self._times.append(now)
        while self.sent[0][0] <= stamp - WINDOW_US:
            self.sent.popleft()
        while self._times[0] < now - 2:
            self._times.popleft()
        span = self._times[-1] - self._times[0]
        return {
            "time": round(now - self.start, 3),
            "kbps": round(sum(bits for _, bits in self.sent) / 1000, 2),
            "fps": round((len(self._times) - 1) / span, 2) if span > 0 else 0.0,
        }


def figures(tokens: TokenFrame | DeltaFrame | None, width: int, height: int) -> dict[str, Any]:
    """Counts of the tokens of one frame, as JSON; None for a skipped frame."""
    rows, columns = patch_grid(width, height)
    cell_rows, cell_columns = cell_grid(width, height)
    updated = 0 if tokens is None else tokens.n_updated if isinstance(tokens, DeltaFrame) else tokens.n_patches
    return {
        "kind": "skipped" if tokens is None else "delta" if isinstance(tokens, DeltaFrame) else "key",
        "width": width,
        "height": height,
        "grid": [rows, columns],
        "patch_tokens": 0 if tokens is None else tokens.n_tokens,
        "patches_with_tokens": 0 if tokens is None else int(np.count_nonzero(tokens.depth_map())),
        "global_tokens": 0 if tokens is None else int(tokens.global_ids.size),
        "vectors": tokens.n_vectors if isinstance(tokens, DeltaFrame) else 0,
        "updated": updated,
        "fixed_tokens": rows * columns + cell_rows * cell_columns,
    }


def scaled(image: Image, size: int) -> Image:
    """The picture with a longer side of at most ``size`` pixels; no side gets too small for the tokenizer."""
    height, width = image.shape[:2]
    factor = min(size / max(height, width), 1.0)
    new = tuple(max(round(side * factor), min(MIN_SIDE, side)) for side in (width, height))
    if new == (width, height):
        return image
    return np.asarray(cv2.resize(image, new, interpolation=cv2.INTER_AREA), np.uint8)


def map_of(tokens: TokenFrame | DeltaFrame | None, patches: int) -> NDArray[np.uint8]:
    """What happened to each patch, uint8 ``(patches,)``."""
    result = np.full(patches, HELD, np.uint8)
    if isinstance(tokens, DeltaFrame):
        if tokens.n_vectors:
            moves = tokens.motion().any(-1).repeat(CELL // PATCH, 0).repeat(CELL // PATCH, 1)
            result[moves.ravel()] = MOVED
        result[tokens.updated] = UPDATED
    elif tokens is not None:
        result[:] = UPDATED
    if tokens is not None:
        depths = tokens.depth_map().ravel()
        result[depths > 0] = TOKEN - 1 + depths[depths > 0]
    return result


def sequence_of(tokens: TokenFrame | DeltaFrame | None, held: NDArray[np.int32]) -> NDArray[np.int32]:
    """The first :data:`SHOWN_TOKENS` patch tokens of a frame: patch, depth and id, int32 ``(T, 3)``.

    Args:
        tokens: The frame; None for a skipped one.
        held: Tokens that are held of each patch after it, ``(N,)``.
    """
    if tokens is None:
        return np.zeros((0, 3), np.int32)
    positions = tokens.positions
    ahead = held - tokens.depth_map().ravel()  # of a refined patch, tokens were there before
    depths = ahead[positions] + depths_of(positions)
    return np.stack([positions, depths, tokens.ids], 1)[:SHOWN_TOKENS].astype("<i4")


def jpeg(image: Image) -> bytes:
    """An RGB picture as JPEG."""
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    if not done:
        raise FormatError("a picture cannot be written as JPEG")
    return data.tobytes()
