"""Results of ``tatok evaluate`` as text."""

from __future__ import annotations

from collections.abc import Sequence

from tatok_edge.evaluation.folder import Row


def budget_name(row: Row) -> str:
    """How a table calls the budget of a row."""
    return f"{row['keep']:g}" if row["keep"] is not None else f"τ {row['tau'] or 1:g}"


def markdown_table(results: Sequence[Row]) -> str:
    """The results of a report as a Markdown table."""
    structure = "ssim" in results[0]
    header = ["tokens per patch", "patch tokens", "patches with tokens", "with globals", "PSNR (dB)"]
    header += ["SSIM", "MS-SSIM"] if structure else []
    header += ["bits before coding", "bits", "bits/pixel"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in results:
        cells = [budget_name(row), f"{row['tokens_per_image']:.0f}", f"{row['patches_with_tokens']:.0f}"]
        cells += [f"{row['tokens_per_image'] + row['global_tokens_per_image']:.0f}", f"{row['psnr_db']:.2f}"]
        if structure:
            cells += [f"{row[key]:.4f}" if row[key] is not None else "too small" for key in ("ssim", "ms_ssim")]
        cells += [
            f"{row['uncoded_bits_per_image']:.0f}",
            f"{row['bits_per_image']:.0f}",
            f"{row['bits_per_pixel']:.4f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
