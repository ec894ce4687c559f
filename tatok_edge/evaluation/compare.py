"""Two runs of ``tatok evaluate`` over the same pictures, compared by Bjøntegaard deltas."""

from __future__ import annotations

import math
from typing import Any

from tatok_edge.errors import InputError
from tatok_edge.evaluation.metrics import MIN_POINTS, Curve, bd_quality, bd_rate


def curves(report: dict[str, Any]) -> dict[str, Curve]:
    """Curves of PSNR over ``"tokens"`` (patch and global) and ``"bits"`` of a report of :func:`evaluate_folder`.

    They go through the numbers of tokens per patch, or through the ``tau`` where there are fewer than four of those.

    Raises:
        InputError: the report is of another kind, or has too few budgets.
    """
    try:
        rows = report["results"]
        chosen = [row for row in rows if row["keep"] is not None]
        if len(chosen) < MIN_POINTS:
            chosen = [row for row in rows if row["keep"] is None]
        quality = [float(row["psnr_db"]) for row in chosen]
        tokens = [float(row["tokens_per_image"] + row["global_tokens_per_image"]) for row in chosen]
        bits = [float(row["bits_per_image"]) for row in chosen]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"not a report of 'tatok evaluate' ({error!r}); measure again") from None
    if len(chosen) < MIN_POINTS:
        raise InputError(f"a comparison needs at least {MIN_POINTS} budgets (--keep or --tau), got {len(chosen)}")
    return {"tokens": Curve(tokens, quality), "bits": Curve(bits, quality)}


def compare_runs(anchor: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Bjøntegaard deltas of one run to another over the same pictures.

    Returns:
        ``bd_rate_tokens_percent`` and ``bd_rate_bits_percent`` (negative: ``run`` needs less for the same PSNR),
        ``bd_psnr_tokens_db`` and ``bd_psnr_bits_db`` (positive: ``run`` is better at the same rate), and
        ``psnr_range_db``, over which the rates are compared. None where the curves have nothing in common.

    Raises:
        InputError: not two runs over the same pictures, or with too few budgets.
        BackendError: SciPy is not installed.
    """
    of_anchor, of_run = curves(anchor), curves(run)
    for key in ("images", "pixels", "crop"):
        if anchor.get(key) != run.get(key):
            raise InputError(
                f"runs over the same pictures are needed; theirs differ: {key} {anchor.get(key)} and {run.get(key)}"
            )
    result: dict[str, Any] = {}
    for kind in ("tokens", "bits"):
        rate, quality = bd_rate(of_anchor[kind], of_run[kind]), bd_quality(of_anchor[kind], of_run[kind])
        result[f"bd_rate_{kind}_percent"] = None if math.isnan(rate.value) else round(rate.value, 2)
        result[f"bd_psnr_{kind}_db"] = None if math.isnan(quality.value) else round(quality.value, 3)
        result["psnr_range_db"] = [round(rate.low, 3), round(rate.high, 3)] if rate.low < rate.high else None
    return result
