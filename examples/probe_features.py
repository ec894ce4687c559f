"""Trains linear probes on tokens: which patches have an edge, read from the tokens alone.

python examples/probe_features.py                      # two rendered clips: one to train, one to test
python examples/probe_features.py train.mp4 test.mp4   # your own

``Tokenizer.values`` gives a short vector for each token, ``Tokenizer.features`` a vector for each patch with all that
the decoder knows of it. A policy or a classifier takes them as inputs instead of pixels. The probe is a ridge
regression in numpy: if a linear map finds the answer, the tokens hold it in plain form.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge import TokenBudget, TokenFrame, Tokenizer, open_source
from tatok_edge.geometry import PATCH, Image

RIDGE = 10.0
"""Weight of the squared coefficients."""
EDGE_PIXELS = 6
"""A patch has an edge where at least so many of its 64 pixels are marked."""


def edges(image: Image, grid: tuple[int, int]) -> NDArray[np.bool_]:
    """Which patches have an edge, bool ``(N,)``: the answer that the probes learn."""
    height, width = image.shape[:2]
    marked = cv2.Canny(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 60, 120) > 0
    margin = ((0, grid[0] * PATCH - height), (0, grid[1] * PATCH - width))
    counts = np.pad(marked, margin).reshape(grid[0], PATCH, grid[1], PATCH).sum((1, 3))
    found: NDArray[np.bool_] = counts.ravel() >= EDGE_PIXELS
    return found


def of_values(tokenizer: Tokenizer, frame: TokenFrame) -> NDArray[np.float32]:
    """The vectors of the stack of each patch side by side, ``(N, K * D)``; 0 for tokens that were not kept."""
    rows = np.zeros((frame.n_patches, tokenizer.depth, len(tokenizer.levels)), np.float32)
    rows[frame.positions, frame.depths - 1] = tokenizer.values(frame)
    return rows.reshape(frame.n_patches, -1)


def of_features(tokenizer: Tokenizer, frame: TokenFrame) -> NDArray[np.float32]:
    """What the decoder knows of each patch, ``(N, C)``."""
    return tokenizer.features(frame).reshape(frame.n_patches, -1)


def read(
    tokenizer: Tokenizer, source: str, frames: int, keep: float
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Inputs of each probe and answers for the patches of a clip."""
    values, features, answers = [], [], []
    with open_source(source) as opened:
        for shot, _ in zip(opened, range(frames), strict=False):
            frame = tokenizer.encode(shot.image, budget=TokenBudget(keep=keep))
            values.append(of_values(tokenizer, frame))
            features.append(of_features(tokenizer, frame))
            answers.append(edges(shot.image, frame.grid))
    return {"values": np.concatenate(values), "features": np.concatenate(features)}, np.concatenate(answers)


def with_squares(inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Inputs, their squares and a constant: an edge may be dark or bright."""
    return np.concatenate([inputs, inputs**2, np.ones((len(inputs), 1))], axis=1, dtype=np.float64)


def fit(inputs: NDArray[np.float64], answers: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Coefficients of the ridge regression."""
    ridge = RIDGE * np.eye(inputs.shape[1])
    coefficients: NDArray[np.float64] = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ (2.0 * answers - 1))
    return coefficients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", nargs="?", default="synthetic:frames=6,width=320,height=240", help="clip to train on")
    parser.add_argument("test", nargs="?", default="synthetic:frames=6,width=448,height=288", help="clip to test on")
    parser.add_argument("--frames", type=int, default=6, help="frames of each clip (default: 6)")
    parser.add_argument("--keep", type=float, default=1.0, help="tokens per patch on average (default: 1)")
    args = parser.parse_args()

    with Tokenizer.load() as tokenizer:
        (train, answers), (test, truth) = (
            read(tokenizer, source, args.frames, args.keep) for source in (args.train, args.test)
        )
    usual = max(truth.mean(), 1 - truth.mean())
    print(f"{len(truth)} patches to test on; always the usual answer: {usual:.1%} right")
    for name in train:
        coefficients = fit(with_squares(train[name]), answers)
        right = np.mean((with_squares(test[name]) @ coefficients > 0) == truth)
        print(f"probe on {name} ({train[name].shape[1]} numbers per patch): {right:.1%} right")


if __name__ == "__main__":
    main()
