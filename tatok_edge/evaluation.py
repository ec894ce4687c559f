"""Quality and size of a model on a folder of pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .progress import Progress
from .sources import list_images, read_image
from .tokenizer import Tokenizer
from .tokens import TokenBudget


def psnr(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over RGB in dB; 100 for equal pictures.

    Raises:
        InputError: the shapes differ.
    """
    if original.shape != decoded.shape:
        raise InputError(f"pictures of one shape are needed, got {original.shape} and {decoded.shape}")
    difference = original.astype(np.int32) - decoded.astype(np.int32)
    error = float((difference * difference).mean())
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


def evaluate_folder(tokenizer: Tokenizer, folder: str | Path, keeps: Sequence[float]) -> dict[str, Any]:
    """Encode and decode every picture of a folder at several shares of kept patch tokens.

    Returns:
        ``{"images": n, "results": [{"keep", "psnr_db", "tokens_per_image", "bits_per_image"}, ...]}`` with means over
        the pictures (of the PSNR of each), and model, backend and seconds. Bits are those of whole packets.

    Raises:
        InputError: no share, or one outside 0 to 1.
        SourceError: the folder holds no readable picture.
    """
    if not keeps:
        raise InputError("at least one share to keep is needed")
    budgets = [TokenBudget(keep=keep) for keep in keeps]
    paths = list_images(folder)
    sums = np.zeros((len(keeps), 3))
    start = time.perf_counter()
    with Progress("evaluating", len(paths)) as progress:
        for number, path in enumerate(paths):
            image = read_image(path)
            # A patch that scores nothing is not kept unless it is asked for.
            everything = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size))
            for row, budget in enumerate(budgets):
                frame = tokenizer.reduce(everything, budget)
                decoded = tokenizer.decode(frame)
                sums[row] += psnr(image, decoded), frame.n_tokens, 8 * len(tokenizer.pack(frame))
            progress.update(number + 1)
    means = sums / len(paths)
    return {
        "images": len(paths),
        "results": [
            {
                "keep": keep,
                "psnr_db": round(float(row[0]), 4),
                "tokens_per_image": round(float(row[1]), 2),
                "bits_per_image": round(float(row[2]), 1),
            }
            for keep, row in zip(keeps, means, strict=True)
        ],
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "backend": tokenizer.backend.name,
        "seconds": round(time.perf_counter() - start, 3),
    }
