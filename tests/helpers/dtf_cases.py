"""Scores and limits for Dynamic Token Filtering that hold the cases where implementations could differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TAUS = (1.0, 5e-324, 1e-10, 2.0**-30, 2.0**-31, 0.5, 1 - 2.0**-30, 1 - 2.0**-53, 0.6)
SPECIAL = (
    *(0.0, -0.0, 0.5, 1.0, 2.0**-17, 3 * 2.0**-17, 2.0**-16, 2.0**-140, 1e-45),  # zeros, halves of a step, denormals
    *(32767.998046875, 32768.0, 128.0000152587890625, 127.99999237060546875, 255.99998, 256.0, 3e38),
)
KINDS = ("entropy", "information", "ties", "special", "constant", "zeros", "denormal", "huge", "one", "mixed")


def scores(rng: np.random.Generator, kind: str, images: int, patches: int, depth: int) -> NDArray[np.float32]:
    """Scores (images, patches, depth) of one kind of :data:`KINDS`, in half of the cases falling over depth."""
    shape = (images, patches, depth)
    if kind == "entropy":
        values = rng.uniform(0, 16, shape)
    elif kind == "information":
        values = rng.gamma(0.7, 10.0 ** rng.uniform(-5, 3), shape)
    elif kind == "ties":
        values = rng.integers(0, 4, shape) * rng.choice([2.0**-16, 0.25, 1.0, 20000.0])
    elif kind == "special":
        values = rng.choice(SPECIAL, shape)
    elif kind == "constant":
        values = np.full(shape, rng.choice(SPECIAL))
    elif kind == "zeros":
        values = rng.choice([0.0, -0.0], shape)
    elif kind == "denormal":
        values = rng.uniform(0, 2.0**-126, shape)
    elif kind == "huge":
        values = rng.uniform(0, 65536, shape)
    elif kind == "one":
        values = np.where(np.arange(patches) == rng.integers(patches), 3.25, 0.0)[:, None] * np.ones(shape)
    else:
        values = np.where(rng.random(shape) < 0.3, rng.choice(SPECIAL, shape), rng.exponential(4.0, shape))
    if rng.random() < 0.5:
        values = -np.sort(-values, axis=2)
    return values.astype(np.float32)


def limits(rng: np.random.Generator, values: NDArray[np.float32]) -> dict[str, Any]:
    """Keyword arguments of ``reference.dtf`` that matter for these scores (B, N, K)."""
    tokens = values.shape[1] * values.shape[2]
    result: dict[str, Any] = {"tau": float(rng.choice(TAUS)) if rng.random() < 0.4 else float(1 - rng.random())}
    if rng.random() < 0.4:
        result["min_tokens"] = int(rng.integers(0, tokens + 3) * rng.choice([0.1, 1.0]))
    if rng.random() < 0.4:
        result["max_tokens"] = result.get("min_tokens", 0) + int(rng.integers(0, tokens + 3))
    if rng.random() < 0.5:
        # Mostly a score that occurs, so that tokens lie on the floor, and where tau alone keeps tokens below it.
        special = float(rng.choice([2.0**-17, 2.0**-16, 32768.0, 1e300]))
        result["floor_bits"] = special if rng.random() < 0.2 else float(rng.choice(values.ravel()))
        if rng.random() < 0.5:
            result["tau"] = float(rng.choice([1.0, 1 - 2.0**-30, 0.95]))
    return result


def dense(
    positions: NDArray[np.int32], depths: NDArray[np.int32], cu_seqlens: NDArray[np.int32], shape: tuple[int, ...]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """The result of ``reference.dtf`` for scores of ``shape`` (B, N, K) as the dense one.

    Returns:
        Positions (B, N * K), padded with -1; depths (B, N * K), padded with 0; and counts (B,).
    """
    images, patches, depth = shape
    counts = np.diff(cu_seqlens).astype(np.int32)
    dense_positions = np.full((images, patches * depth), -1, np.int32)
    dense_depths = np.zeros((images, patches * depth), np.int32)
    for b, count in enumerate(counts):
        kept = slice(cu_seqlens[b], cu_seqlens[b + 1])
        dense_positions[b, :count] = positions[kept] - b * patches
        dense_depths[b, :count] = depths[kept]
    return dense_positions, dense_depths, counts


def groups(
    seed: int, plan: tuple[tuple[int, int, int], ...], depths: Sequence[int] = (1, 2, 3, 4, 8)
) -> Iterator[tuple[NDArray[np.float32], dict[str, Any]]]:
    """Batches of scores with limits.

    Args:
        seed: Of the random numbers.
        plan: (groups, images, tokens) of each part: scores per image, or less than 0 for at most so many.
        depths: Depths to choose from.
    """
    rng = np.random.default_rng(seed)
    for count, images, size in plan:
        for _ in range(count):
            depth = int(rng.choice(depths))
            patches = max(1, (size if size > 0 else int(rng.integers(1, 1 - size))) // depth)
            values = scores(rng, str(rng.choice(KINDS)), images, patches, depth)
            yield values, limits(rng, values)
