"""The specification of the kernels, in numpy. Every backend must compute the same, bit for bit.

The functions have the signatures of :mod:`tatok_edge.runtime.cpu.kernels`, without ``out`` and without its checks of
arguments. They are written to be read, not to be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import CELL, PATCH, THUMBNAIL, WINDOW

SCORE_ONE = 1 << 16
"""Fixed-point value of one bit of score."""
SCORE_MAX = (1 << 31) - 1
TAU_ONE = 1 << 30
"""Fixed-point value of ``tau = 1``."""


# --- dynamic token filtering --------------------------------------------------------------------


def quantize_scores(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bits to fixed point: ``round(score * 2^16)``, ties to even, saturating at 2^31 - 1."""
    scaled = np.rint(scores.astype(np.float64) * SCORE_ONE)
    return np.minimum(scaled, SCORE_MAX).astype(np.int64)


def dtf(
    scores: NDArray[np.float32],
    *,
    tau: float = 1.0,
    min_tokens: int = 0,
    max_tokens: int | None = None,
    floor_bits: float = 0.0,
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """Kept tokens of scores (B, N, K), in raster order, depth innermost.

    Returns:
        Positions (T,), flat over the batch, each as often as its depth; depths (T,), from 1; and the offsets of the
        images (B + 1,).
    """
    if not np.all(np.isfinite(scores) & (scores >= 0)):
        raise ValueError("scores must be finite and at least 0")
    images, patches, depth = scores.shape
    share = max(1, round(tau * TAU_ONE))  # at least 1, so that the smallest tau keeps a token with information
    floor = min(SCORE_MAX, round(floor_bits * SCORE_ONE))
    lower = min(min_tokens, patches * depth)
    upper = patches * depth if max_tokens is None else min(max_tokens, patches * depth)

    stacks = np.zeros((images, patches), np.int64)  # depth of each patch
    # The running minimum over depth makes sure that a kept token has all tokens above it.
    for b, fixed in enumerate(np.minimum.accumulate(quantize_scores(scores), axis=2)):
        row = fixed.T.ravel()
        order = np.argsort(-row, kind="stable")  # by score descending, ties by depth, then by position, ascending
        cumulative = np.concatenate([[0], np.cumsum(row[order])])
        target = -(-share * int(cumulative[-1]) // TAU_ONE)  # ceil(tau * total) in Python's unbounded integers
        count = int(np.searchsorted(cumulative, target))  # the smallest with cumulative[count] >= target
        count = max(lower, min(count, upper))
        count = max(lower, min(count, int(np.sum(row >= floor))))
        stacks[b] = np.bincount(order[:count] % max(patches, 1), minlength=patches)
    sizes = stacks.ravel()
    positions = np.repeat(np.arange(images * patches), sizes)
    depths = np.arange(1, len(positions) + 1) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    cu_seqlens = np.cumsum([0, *stacks.sum(axis=1)])
    return positions.astype(np.int32), depths.astype(np.int32), cu_seqlens.astype(np.int32)


# --- pixels to the networks and back ------------------------------------------------------------


def _pad(image: NDArray[np.uint8], bgr: bool) -> NDArray[np.uint8]:
    """The image in RGB, padded to whole cells by repeating its right and bottom edge."""
    if bgr:
        image = image[:, :, ::-1]
    height, width = image.shape[:2]
    return np.pad(image, ((0, -height % CELL), (0, -width % CELL), (0, 0)), mode="edge")


def image_to_cells(image: NDArray[np.uint8], bgr: bool = False) -> NDArray[np.float32]:
    """The image (H, W, 3) at a quarter of its size, cut into cells: (192, hc, wc), channels in (y, x, rgb) order."""
    padded = _pad(image, bgr)
    hc, wc, side = padded.shape[0] // CELL, padded.shape[1] // CELL, CELL // THUMBNAIL
    squares = padded.reshape(hc * side, THUMBNAIL, wc * side, THUMBNAIL, 3)
    sums = squares.sum(axis=(1, 3), dtype=np.int32)
    thumbnail = sums.astype(np.float32) * np.float32(1 / (THUMBNAIL * THUMBNAIL * 127.5)) - np.float32(1)
    cells = thumbnail.reshape(hc, side, wc, side, 3).transpose(1, 3, 4, 0, 2)
    return np.ascontiguousarray(cells.reshape(side * side * 3, hc, wc))


def gather_features(
    image: NDArray[np.uint8],
    bgr: bool,
    context: NDArray[np.float32],
    mean: NDArray[np.float32],
    source: NDArray[np.int32],
    positions: NDArray[np.int32],
    grid_width: int,
) -> NDArray[np.float32]:
    """Rows ``[window 768 | context column | mean column]`` per position: (T, 960 + Dc); ``source`` is the column."""
    margin = (WINDOW - PATCH) // 2
    padded = np.pad(_pad(image, bgr), ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    rows = np.empty((len(positions), WINDOW * WINDOW * 3 + len(context) + len(mean)), np.float32)
    for row, column, position in zip(rows, source, positions, strict=True):
        y, x = divmod(int(position), grid_width)
        window = padded[y * PATCH : y * PATCH + WINDOW, x * PATCH : x * PATCH + WINDOW]
        values = window.astype(np.float32) / np.float32(127.5) - np.float32(1)
        row[:] = np.concatenate([values.ravel(), context[:, column], mean[:, column]])
    return rows


def assemble(
    pixels: NDArray[np.float32], grid_width: int, height: int, width: int, bgr: bool = False
) -> NDArray[np.uint8]:
    """Network pixels (192, N), channels in (y, x, rgb) order, as the image (height, width, 3). NaN becomes 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.clip(np.rint(pixels * np.float32(127.5) + np.float32(127.5)), 0, 255)
    values = np.where(np.isnan(values), 0, values).astype(np.uint8)
    squares = values.reshape(PATCH, PATCH, 3, -1, grid_width).transpose(3, 0, 4, 1, 2)
    image = squares.reshape(-1, grid_width * PATCH, 3)[:height, :width]
    return np.ascontiguousarray(image[:, :, ::-1] if bgr else image)


def scatter_columns(
    source: NDArray[np.float32],
    source_positions: NDArray[np.int32],
    target: NDArray[np.float32],
    positions: NDArray[np.int32],
) -> None:
    """Columns of source (C, M) to columns of target (C, N), in place; the last of equal positions wins."""
    for from_, to in zip(source_positions, positions, strict=True):
        target[:, to] = source[:, from_]


# --- change between frames ----------------------------------------------------------------------


def _patches(picture: NDArray[Any]) -> NDArray[Any]:
    """Patches of a padded picture, in raster order: (N, 8, 8, 3)."""
    height, width, _ = picture.shape
    squares = picture.reshape(height // PATCH, PATCH, width // PATCH, PATCH, 3)
    return squares.transpose(0, 2, 1, 3, 4).reshape(-1, PATCH, PATCH, 3)


def patch_change(image: NDArray[np.uint8], bgr: bool, reference: NDArray[np.uint8]) -> NDArray[np.int32]:
    """How the patches of the padded image differ from those of reference, an RGB picture: (2, N).

    Row 0 holds the sums of squared differences. Row 1 holds the coarse changes: differences are summed over each
    quarter of the patch (4x4 pixels) and channel, and the sums are squared, over 16, rounded down.
    """
    differences = _patches(_pad(image, bgr)).astype(np.int32) - _patches(reference)
    quarters = differences.reshape(-1, 2, PATCH // 2, 2, PATCH // 2, 3).sum(axis=(2, 4))
    changes = np.sum(differences**2, axis=(1, 2, 3))
    coarse = np.sum(quarters**2 // 16, axis=(1, 2, 3))
    return np.stack([changes, coarse]).astype(np.int32)


def update_reference(
    image: NDArray[np.uint8], bgr: bool, reference: NDArray[np.uint8], positions: NDArray[np.int32]
) -> None:
    """Copies the patches at positions (T,) of the padded image into reference, in place."""
    padded = _pad(image, bgr)
    for position in positions:
        y, x = divmod(int(position) * PATCH, padded.shape[1])
        square = np.s_[y * PATCH : (y + 1) * PATCH, x : x + PATCH]
        reference[square] = padded[square]


def move_cells(source: NDArray[np.uint8], vectors: NDArray[np.int32]) -> NDArray[np.uint8]:
    """The picture whose cells are copies of ``source`` at their place plus their vector, (y, x) in half pixels.

    Beyond the border the edge is repeated. Between pixels, four neighbours a, b, c, d give
    ``(9 * (b + c) - (a + d) + 8) >> 4``, cut to 0 to 255; across first, then down.
    """
    height, width = source.shape[:2]
    out = source.copy()

    def between(values: NDArray[np.int32]) -> NDArray[np.int32]:
        a, b, c, d = values[:-3], values[1:-2], values[2:-1], values[3:]
        moved: NDArray[np.int32] = np.clip((9 * (b + c) - (a + d) + 8) >> 4, 0, 255)
        return moved

    for row, column in np.argwhere(vectors.any(2)):
        dy, dx = (int(part) for part in vectors[row, column])
        lines = np.clip(np.arange(-1, CELL + 2) + CELL * row + (dy >> 1), 0, height - 1)
        columns = np.clip(np.arange(-1, CELL + 2) + CELL * column + (dx >> 1), 0, width - 1)
        block = source[lines][:, columns].astype(np.int32)
        block = between(block.swapaxes(0, 1)).swapaxes(0, 1) if dx & 1 else block[:, 1 : CELL + 1]
        block = between(block) if dy & 1 else block[1 : CELL + 1]
        out[CELL * row : CELL * (row + 1), CELL * column : CELL * (column + 1)] = block
    return out


def patch_error(
    pixels: NDArray[np.float32], image: NDArray[np.uint8], bgr: bool, grid_width: int
) -> NDArray[np.float32]:
    """Mean squared difference (N,) between the network pixels as :func:`assemble` rounds them and the padded image."""
    picture = assemble(pixels, grid_width, pixels.shape[1] // grid_width * PATCH, grid_width * PATCH)
    errors: NDArray[np.float32] = patch_change(image, bgr, picture)[0].astype(np.float32) / np.float32(len(pixels))
    return errors


# --- scores -------------------------------------------------------------------------------------


def patch_scores(
    image: NDArray[np.uint8],
    bgr: bool,
    mean: NDArray[np.float32],
    source: NDArray[np.int32],
    positions: NDArray[np.int32],
    grid_width: int,
    basis: NDArray[np.int16],
) -> NDArray[np.float32]:
    """Energy (T, K) of the residual of patches in the directions (K, D, 192) that each token adds; never rising."""
    pixels = _patches(_pad(image, bgr))[positions].reshape(len(positions), -1).astype(np.int32)
    sixteenths = mean[:, source].T * np.float32(2040) + np.float32(2040)
    sixteenths = np.where(np.isnan(sixteenths), np.float32(-8192), np.clip(sixteenths, -8192, 8192))
    residuals = np.clip(16 * pixels - np.rint(sixteenths).astype(np.int32), -4095, 4095).astype(np.int64)
    products = np.einsum("ti,kdi->tkd", residuals, basis.astype(np.int64)) >> 4
    scores: NDArray[np.float32] = (np.square(products).sum(2) / (192.0 * 2**28)).astype(np.float32)
    return np.minimum.accumulate(scores, axis=1)


def visual_weights(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How visible an error is in each patch (N,), from the variance of the pixels in the 3x3 patches around it."""
    padded = _pad(image, False)
    values = _patches(padded).reshape(-1, PATCH * PATCH, 3).astype(np.int64)
    activity = (64 * np.square(values).sum(1) - np.square(values.sum(1))).sum(1)
    grid = np.pad(activity.reshape(padded.shape[0] // PATCH, -1), 1)
    inside = np.pad(np.ones_like(activity).reshape(padded.shape[0] // PATCH, -1), 1)

    def around(values: NDArray[np.int64]) -> NDArray[np.int64]:
        rows, columns = values.shape[0] - 2, values.shape[1] - 2
        shifted = [values[y : y + rows, x : x + columns] for y in range(3) for x in range(3)]
        total: NDArray[np.int64] = np.sum(shifted, axis=0)
        return total

    mean = around(grid) / (around(inside) * 12288)
    weights: NDArray[np.float32] = (1300.5 / (mean + 1300.5)).astype(np.float32).reshape(-1)
    return weights


def change_quantile(changes: NDArray[np.int32], share: float) -> int:
    """The change at rank floor(share * (m - 1)) among the m that are not 0, ascending; 0 where all are."""
    present = np.sort(changes[changes != 0])
    return int(present[int(share * (len(present) - 1))]) if len(present) else 0


# --- codes --------------------------------------------------------------------------------------


def information(
    log2_probs: NDArray[np.float32],
    codes: NDArray[np.int32],
    positions: NDArray[np.int32],
    levels: Sequence[int],
) -> NDArray[np.float32]:
    """Bits (T,) of codes (T, D) under log2 probabilities (sum(levels), N), summed in float32 from dimension 0 on."""
    offsets = np.cumsum([0, *levels[:-1]])
    bits = np.zeros(len(codes), np.float32)
    for d, offset in enumerate(offsets):
        bits = bits - log2_probs[offset + codes[:, d], positions]
    return np.where(bits < 0, np.float32(0), bits)


def decoder_state(
    codes: NDArray[np.int32],
    positions: NDArray[np.int32],
    expected: NDArray[np.float32],
    entropy: NDArray[np.float32],
    levels: Sequence[int],
) -> NDArray[np.float32]:
    """Code values of each stack (expected ones where no token is kept), keep bits, entropies / 16: (K * (D + 2), N).

    A position that comes for the k-th time has the k-th token of the stack of its patch.
    """
    keep = np.zeros_like(entropy)
    values = expected.reshape(len(entropy), len(levels), -1).copy()
    for position, code in zip(positions, codes, strict=True):
        token = int(keep[:, position].sum())
        values[token, :, position] = (2 * code + 1).astype(np.float32) / np.array(levels, np.float32) - np.float32(1)
        keep[token, position] = 1
    return np.concatenate([values.reshape(expected.shape), keep, entropy / np.float32(16)])


def ids_from_codes(codes: NDArray[np.int32], levels: Sequence[int]) -> NDArray[np.int32]:
    """Ids (T,) of codes (T, D): mixed radix, dimension 0 the least significant."""
    place = np.cumprod([1, *levels[:-1]], dtype=np.int32)
    ids: NDArray[np.int32] = np.sum(codes * place, axis=1, dtype=np.int32)
    return ids


def codes_from_ids(ids: NDArray[np.int32], levels: Sequence[int]) -> NDArray[np.int32]:
    """Inverse of :func:`ids_from_codes`."""
    place = np.cumprod([1, *levels[:-1]], dtype=np.int32)
    codes: NDArray[np.int32] = ids[:, None] // place % np.array(levels, np.int32)
    return codes
