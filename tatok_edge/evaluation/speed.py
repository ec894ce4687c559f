"""How long encoding and decoding take on this machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

WARMUP = 3


def machine() -> dict[str, Any]:
    """The machine that the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "python": platform.python_version()}


def measure(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and quartiles of the wall time of ``call`` in ms, after a warm-up."""
    for _ in range(WARMUP):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return quartiles(times)


def quartiles(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of some times."""
    first, median, third = np.percentile(times, [25, 50, 75])
    return {"median": round(float(median), 3), "q1": round(float(first), 3), "q3": round(float(third), 3)}


def test_image(width: int, height: int) -> NDArray[np.uint8]:
    """A frame of the synthetic camera."""
    return render(Scene(width=width, height=height), 0)


def bench(tokenizer: Tokenizer, sizes: Sequence[tuple[int, int]], repeats: int = 30) -> dict[str, Any]:
    """Times encoding and decoding, and eager PyTorch with the same weights where PyTorch is installed.

    All patch tokens are kept; ``encode_1_ms`` and ``encode_035_ms`` keep 1 and 0.35 tokens per patch.

    Args:
        tokenizer: The model to time.
        sizes: Width and height of each picture, multiples of 32 for the comparison with PyTorch.
        repeats: Timed runs per figure.

    Raises:
        InputError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise InputError(f"repeats must be at least 1, got {repeats}")
    eager, reason = _eager(tokenizer)
    rows = []
    for width, height in sizes:
        image = test_image(width, height)
        frame = tokenizer.encode(image)
        row: dict[str, Any] = {
            "width": width,
            "height": height,
            "encode_ms": measure(lambda image=image: tokenizer.encode(image), repeats),  # type: ignore[misc]
            **{
                name: measure(partial(tokenizer.encode, image, budget=TokenBudget(keep=keep)), repeats)
                for name, keep in (("encode_1_ms", 1.0), ("encode_035_ms", 0.35))
            },
            "decode_ms": measure(lambda frame=frame: tokenizer.decode(frame), repeats),  # type: ignore[misc]
            "torch_encode_ms": None,
            "torch_decode_ms": None,
        }
        if eager is not None and width % 32 == 0 and height % 32 == 0:
            encode, decode = eager(image)
            row["torch_encode_ms"] = measure(encode, repeats)
            row["torch_decode_ms"] = measure(decode, repeats)
        rows.append(row)
    return {
        "sizes": rows,
        "repeats": repeats,
        "model": tokenizer.name,
        "backend": tokenizer.backend.name,
        "backend_version": tokenizer.backend.version,
        "threads": tokenizer.backend.threads,
        "torch": reason,
        "machine": machine(),
    }


_Calls = tuple[Callable[[], object], Callable[[], object]]


def _eager(tokenizer: Tokenizer) -> tuple[Callable[[NDArray[np.uint8]], _Calls] | None, str]:
    """Encoder and decoder in eager PyTorch, or why there are none."""
    try:
        import torch

        from tatok_edge.training.bundle import load_from_bundle
    except ImportError as error:
        return None, f"not compared: {error.name} is not installed"
    from tatok_edge.training.model import decoder_state

    torch.set_num_threads(tokenizer.backend.threads)
    # channels_last is the faster layout for these convolutions in PyTorch, so the comparison is with that.
    model = load_from_bundle(tokenizer.bundle).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def calls(image: NDArray[np.uint8]) -> _Calls:
        def encode() -> object:
            with torch.inference_mode():
                pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
                return model.encode(pixels)

        encoded: Any = encode()
        keep = torch.ones(encoded.information.shape, dtype=torch.bool)

        def decode() -> object:
            with torch.inference_mode():
                prior = model.context(model.fsq.values(encoded.global_codes, 1))
                state = decoder_state(encoded.values, keep, prior.expected, prior.entropy)
                return model.decoder(state, prior.context, prior.mean)

        return encode, decode

    return calls, f"PyTorch {torch.__version__}, eager, fp32, {tokenizer.backend.threads} threads"


def bench_stream(tokenizer: Tokenizer, sizes: Sequence[tuple[int, int]], frames: int = 30) -> dict[str, Any]:
    """Times a stream of the synthetic camera beside the fixed-rate tokenizer (one token for every patch of a frame).

    Args:
        tokenizer: The model to time.
        sizes: Width and height of each camera.
        frames: Frames to encode, after the keyframe.

    Raises:
        InputError: A size cannot be tokenized.
    """
    # A score that costs nothing and decides nothing.
    fixed = TokenBudget(min_tokens=1 << 24, max_depth=1, score="entropy")
    rows = []
    for width, height in sizes:
        encoder = StreamEncoder(tokenizer)
        times: dict[str, list[float]] = {"stream_ms": [], "fixed_ms": []}
        tokens = updated = size = 0
        for number in range(frames + 1):
            image = render(Scene(width=width, height=height), number)
            start = time.perf_counter()
            encoded = encoder.encode(image)
            middle = time.perf_counter()
            everything = tokenizer.encode(image, budget=fixed)
            end = time.perf_counter()
            if number:
                times["stream_ms"].append(1e3 * (middle - start))
                times["fixed_ms"].append(1e3 * (end - middle))
                tokens += encoded.n_tokens + encoded.n_globals + encoded.n_vectors
                updated += encoded.n_updated
                size += len(encoded.packet)
        row: dict[str, Any] = {"width": width, "height": height, "frames": frames}
        row |= {name: quartiles(values) for name, values in times.items()}
        row["tokens_per_frame"] = round(tokens / frames, 2)
        row["fixed_tokens_per_frame"] = everything.n_patches + everything.n_globals
        row["updated_share"] = round(updated / frames / everything.n_patches, 5)
        row["bits_per_frame"] = round(8 * size / frames, 1)
        rows.append(row)
    return {
        "machine": machine(),
        "model": tokenizer.name,
        "backend": tokenizer.backend.name,
        "threads": tokenizer.backend.threads,
        "sizes": rows,
    }
