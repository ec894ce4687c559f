"""Results of ``tatok evaluate`` as plots. Needs Matplotlib, of the extra ``evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tatok_edge.errors import BackendError
from tatok_edge.evaluation.metrics import INSTALL


def plot_runs(runs: dict[str, dict[str, Any]], path: Path) -> None:
    """PSNR over tokens and over bits per pixel of one or more reports by name, as a picture file.

    Raises:
        BackendError: Matplotlib is not installed.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for name, report in runs.items():
        for style, kind in (("o-", "keep"), ("x:", "tau")):
            rows = sorted((r for r in report["results"] if r[kind] is not None), key=lambda r: float(r["psnr_db"]))
            quality = [row["psnr_db"] for row in rows]
            tokens = [row["tokens_per_image"] + row["global_tokens_per_image"] for row in rows]
            if rows:
                label = name if kind == "keep" else f"{name}, by τ"
                axes[0].plot(tokens, quality, style, label=label)
                axes[1].plot([row["bits_per_pixel"] for row in rows], quality, style, label=label)
    axes[0].set(xlabel="tokens per picture, globals included", ylabel="PSNR (dB)", xscale="log")
    axes[1].set(xlabel="bits per pixel, whole packets", ylabel="PSNR (dB)")
    for one in axes:
        one.grid(alpha=0.3)
        one.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise BackendError(f"plots need {error.name}, which is not installed: {INSTALL}") from None
    return plt
