"""How close a decoded picture is to its original, and how far one rate-distortion curve lies from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.geometry import Image

Float = NDArray[np.float64]

INSTALL = "pip install 'tatok-edge[evaluate]'"
SMALLEST_MS_SSIM = 161
"""Pictures whose shorter side has fewer pixels are too small for MS-SSIM: its window must fit after four halvings."""
MIN_POINTS = 4
"""A Bjøntegaard delta needs this many points on either curve."""


def psnr(original: Image, decoded: Image) -> float:
    """Peak signal-to-noise ratio over RGB in dB; 100 for equal pictures.

    Raises:
        InputError: the shapes differ.
    """
    _check_shapes(original, decoded)
    difference = original.astype(np.int32) - decoded.astype(np.int32)
    error = float((difference * difference).mean())
    return 100.0 if error == 0 else float(10 * np.log10(255**2 / error))


class Structure(NamedTuple):
    """Structural similarity of two pictures, 1 for equal ones."""

    ssim: float
    ms_ssim: float
    """At five scales; NaN for pictures smaller than :data:`SMALLEST_MS_SSIM`."""


def structural_similarity(original: Image, decoded: Image) -> Structure:
    """SSIM and MS-SSIM as ``pytorch-msssim`` computes them: Gaussian window 11 (sigma 1.5), mean of R, G and B.

    Raises:
        InputError: the shapes differ, or a side has fewer than 11 pixels.
        BackendError: ``pytorch-msssim`` is not installed.
    """
    try:
        import torch
        from pytorch_msssim import ms_ssim, ssim
    except ImportError as error:
        raise BackendError(f"SSIM needs {error.name}, which is not installed: {INSTALL}") from None
    _check_shapes(original, decoded)
    side = min(original.shape[:2])
    if side < 11:
        raise InputError(f"SSIM needs pictures of at least 11x11 pixels, got {original.shape[1]}x{original.shape[0]}")
    pair = [torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1)[None].float() for p in (original, decoded)]
    multi = float(ms_ssim(*pair, data_range=255)) if side >= SMALLEST_MS_SSIM else float("nan")
    return Structure(float(ssim(*pair, data_range=255)), multi)


def _check_shapes(original: Image, decoded: Image) -> None:
    if original.shape != decoded.shape:
        raise InputError(f"pictures of one shape are needed, got {original.shape} and {decoded.shape}")


# --- Bjøntegaard deltas ---------------------------------------------------------------------------


class Curve(NamedTuple):
    """Points of a rate-distortion curve, in any order."""

    rates: Sequence[float]
    """Positive: bits, tokens."""
    quality: Sequence[float]
    """For example PSNR in dB, or SSIM."""


class Delta(NamedTuple):
    """Mean distance of two curves."""

    value: float
    """See the function that made it; NaN where the curves have no quality (or rate) in common."""
    low: float
    """Lower end of the range of quality (or rate) that the mean is over."""
    high: float
    """Upper end."""


def bd_rate(anchor: Curve, test: Curve, *, rates: tuple[float, float] | None = None) -> Delta:
    """Bjøntegaard delta rate: by how many percent ``test`` needs more than ``anchor`` for the same quality.

    The logarithms of the rates, interpolated over the quality by monotone cubic splines (PCHIP), are averaged over the
    qualities that both curves reach. ITU-T VCEG-M33, with the interpolation of later revisions.

    Args:
        anchor: The reference curve.
        test: The curve to compare; negative results mean that it needs less.
        rates: Only the part where both rates lie within these bounds.

    Raises:
        InputError: a curve with fewer than four points, with values that no logarithm or spline takes, or with two
            points of one quality.
        BackendError: SciPy is not installed.
    """
    curves = [_prepared(curve, by="quality") for curve in (anchor, test)]
    low = max(quality[0] for quality, _ in curves)
    high = min(quality[-1] for quality, _ in curves)
    splines = [_pchip(quality, log_rate) for quality, log_rate in curves]
    if rates is not None:
        grid = np.linspace(low, high, 4001) if low < high else np.empty(0)
        bounds = np.log(rates)
        inside = [grid[(spline(grid) >= bounds[0]) & (spline(grid) <= bounds[1])] for spline in splines]
        if not all(len(part) for part in inside):
            return Delta(float("nan"), low, high)
        low, high = max(part[0] for part in inside), min(part[-1] for part in inside)
    if not low < high:
        return Delta(float("nan"), low, high)
    areas = [spline.integrate(low, high) for spline in splines]
    return Delta(float(np.expm1((areas[1] - areas[0]) / (high - low)) * 100), float(low), float(high))


def bd_quality(anchor: Curve, test: Curve) -> Delta:
    """Bjøntegaard delta quality (BD-PSNR): how much better ``test`` is than ``anchor`` at the same rate.

    Raises:
        InputError, BackendError: as :func:`bd_rate`.
    """
    curves = [_prepared(curve, by="rate") for curve in (anchor, test)]
    low = max(log_rate[0] for log_rate, _ in curves)
    high = min(log_rate[-1] for log_rate, _ in curves)
    if not low < high:
        return Delta(float("nan"), float(np.exp(low)), float(np.exp(high)))
    areas = [_pchip(*curve).integrate(low, high) for curve in curves]
    return Delta(float((areas[1] - areas[0]) / (high - low)), float(np.exp(low)), float(np.exp(high)))


def _prepared(curve: Curve, *, by: str) -> tuple[Float, Float]:
    """Abscissa in ascending order and ordinate: quality and log rate, or the other way round."""
    rates, quality = np.asarray(curve.rates, np.float64), np.asarray(curve.quality, np.float64)
    if rates.shape != quality.shape or rates.ndim != 1 or len(rates) < MIN_POINTS:
        raise InputError(
            f"a Bjøntegaard delta needs curves of at least {MIN_POINTS} points, got {rates.size} rates and "
            f"{quality.size} qualities"
        )
    if not (np.isfinite(rates).all() and np.isfinite(quality).all() and (rates > 0).all()):
        raise InputError("a Bjøntegaard delta needs finite qualities and rates above 0")
    x, y = (quality, np.log(rates)) if by == "quality" else (np.log(rates), quality)
    order = np.argsort(x)
    x, y = x[order], y[order]
    if (np.diff(x) <= 0).any():
        raise InputError(f"a Bjøntegaard delta needs points of different {by}, got {sorted(x.tolist())}")
    return x, y


def _pchip(x: Float, y: Float):  # type: ignore[no-untyped-def]  # SciPy has no types
    try:
        from scipy.interpolate import PchipInterpolator
    except ImportError as error:
        raise BackendError(f"Bjøntegaard deltas need {error.name}, which is not installed: {INSTALL}") from None
    return PchipInterpolator(x, y)
