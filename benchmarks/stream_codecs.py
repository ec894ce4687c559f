"""Video codecs at the quality of a stream: their bits for the same PSNR of the same frames, through PyAV."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
import numpy as np

from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import Image

CODECS: dict[str, tuple[str, str, dict[str, str], int]] = {
    "x264": ("libx264", "h264", {"preset": "veryfast", "tune": "zerolatency"}, 51),
    "svt_av1": ("libsvtav1", "libdav1d", {"preset": "12", "svtav1-params": "pred-struct=1"}, 63),
}
"""Encoder, decoder, options of the encoder for low delay, and the largest value of its constant rate factor."""


def coded(codec: str, images: list[Image], factor: int, step: int) -> tuple[int, float]:
    """Bits of all images, and the mean PSNR of every ``step``-th one, at a constant rate factor; one keyframe."""
    name, reader, options, _ = CODECS[codec]
    height, width = images[0].shape[:2]
    encoder: Any = av.CodecContext.create(name, "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate, encoder.gop_size = Fraction(1, 30), Fraction(30), 9999
    encoder.options = options | {"crf": str(factor)}
    decoder: Any = av.CodecContext.create(reader, "r")
    size, shown = 0, []
    for number in range(len(images) + 1):
        frame = None if number == len(images) else av.VideoFrame.from_ndarray(images[number], format="rgb24")
        if frame is not None:
            frame.pts = number
        for packet in encoder.encode(frame):
            size += packet.size
            shown += decoder.decode(packet)
    shown += decoder.decode(None)
    values = [psnr(images[number], shown[number].to_ndarray(format="rgb24")) for number in range(0, len(images), step)]
    return 8 * size, float(np.mean(values))


def bits_at(target: float, factors: int, encode: Callable[[int], tuple[int, float]]) -> tuple[float, float]:
    """Bits at a PSNR, interpolated between neighbouring rate factors, and the PSNR that is reached.

    Args:
        target: The PSNR in dB.
        factors: Largest rate factor.
        encode: Bits and PSNR at a rate factor; the PSNR falls with it.
    """
    low, high = 1, factors
    results = {low: encode(low), high: encode(high)}
    if results[low][1] <= target or results[high][1] >= target:
        bits, reached = results[low] if results[low][1] <= target else results[high]
        return float(bits), reached
    while high - low > 1:
        middle = (low + high) // 2
        results[middle] = encode(middle)
        low, high = (middle, high) if results[middle][1] >= target else (low, middle)
    (more, better), (less, worse) = results[low], results[high]
    share = (target - worse) / max(better - worse, 1e-9)
    return float(np.exp(np.log(less) + share * (np.log(more) - np.log(less)))), target


def equal_quality(images: list[Image], target: float, step: int) -> dict[str, float]:
    """Bits per pixel of each codec at a PSNR, and the PSNR where a codec does not reach it."""
    pixels = len(images) * images[0].shape[0] * images[0].shape[1]
    row = {}
    for codec, (*_, factors) in CODECS.items():
        bits, reached = bits_at(target, factors, lambda factor, codec=codec: coded(codec, images, factor, step))  # type: ignore[misc]
        row[f"{codec}_bits_per_pixel"] = round(bits / pixels, 5)
        row[f"{codec}_psnr"] = round(reached, 3)
    return row
