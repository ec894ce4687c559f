"""The curves of a training."""

from __future__ import annotations

import csv
from pathlib import Path


def plot_curves(log: Path, evaluations: Path, out: Path) -> None:
    """Loss and PSNR over time from the two CSV files, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with evaluations.open(newline="") as file:
        points = list(csv.DictReader(file))
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    steps = [int(row["step"]) for row in rows]
    axes[0].plot(steps, [float(row["loss"]) for row in rows], lw=0.8)
    axes[0].set(title="training loss", xlabel="step", yscale="log")
    axes[1].plot(steps, [float(row["bits"]) for row in rows], lw=0.8)
    axes[1].set(title="information per patch token (bits)", xlabel="step")
    for key in points[0] if points else ():
        if key.startswith("psnr_residual") or key == "psnr_globals_only":
            axes[2].plot([int(p["step"]) for p in points], [float(p[key]) for p in points], marker=".", label=key[5:])
    axes[2].set(title="held-out PSNR (dB)", xlabel="step")
    axes[2].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    plt.close(figure)
