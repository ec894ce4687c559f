"""How far a training run is: its log and its progress bar."""

from __future__ import annotations

import csv
import math
import sys
import time
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from tatok_edge.training.checkpoint import State
from tatok_edge.training.options import Options

LOG_COLUMNS = ("step", "seconds", "loss", "mse", "mean_mse", "bits", "psnr_all", "grad_norm", "lr")
"""Columns of ``training.csv``."""


class Progress:
    """How far a run is: the steps or minutes of its options, the log, and the progress bar."""

    def __init__(self, options: Options, state: State, log: Path) -> None:
        self._options, self._state, self._log = options, state, log
        self._sums: dict[str, list[float]] = {}
        self._last = time.monotonic()
        self._bar = tqdm(
            total=100.0, unit="%", disable=not sys.stderr.isatty(), bar_format="{l_bar}{bar}| {elapsed}{postfix}"
        )

    def share(self) -> float:
        """Used share of the steps or minutes; 1 at the end."""
        options, state = self._options, self._state
        by_steps = state.step / options.steps if options.steps else 0.0
        by_time = state.seconds / (options.minutes * 60) if options.minutes else 0.0
        return max(by_steps, by_time)

    def count(self, parts: dict[str, Tensor]) -> float:
        """Count a step; returns its seconds. Every 50 steps, the means go to the log and the bar.

        Raises:
            FloatingPointError: The loss is not finite.
        """
        state = self._state
        for key, value in parts.items():
            number = float(value)
            if not math.isnan(number):
                self._sums.setdefault(key, []).append(number)
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        state.seconds += seconds
        if state.step % 50 == 0:
            means = {key: sum(v) / len(v) for key, v in self._sums.items() if v}
            row = {"step": state.step, "seconds": round(state.seconds, 1), **means}
            append_row(self._log, {key: row.get(key, math.nan) for key in LOG_COLUMNS})
            self._sums.clear()
            self._bar.n = min(100.0, 100 * self.share())
            self._bar.set_postfix_str(f"step {state.step} loss {means['loss']:.4f} bits {means['bits']:.1f}")
            if not math.isfinite(means["loss"]):
                raise FloatingPointError(f"the loss is {means['loss']} at step {state.step}: lower --lr")
        return seconds

    def skip(self) -> None:
        """Leave out the time since the last step: evaluating is not training time."""
        self._last = time.monotonic()

    def close(self) -> None:
        """End the bar; a run too short for the log gets one row."""
        self._bar.close()
        if not self._log.exists():
            append_row(self._log, dict.fromkeys(LOG_COLUMNS, math.nan) | {"step": self._state.step})


def rewind(path: Path, step: int) -> None:
    """Drop the rows of a CSV file that were written after the checkpoint of ``step``."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        header, *rows = file.read().splitlines()
    kept = [row for row in rows if int(row.partition(",")[0]) <= step]
    path.write_text("\n".join([header, *kept]) + "\n")


def append_row(path: Path, row: dict[str, float]) -> None:
    """Append a row to a CSV file, which gets a header at the start."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)
