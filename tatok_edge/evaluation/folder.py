"""Quality and size of a model over pictures, and the comparison of two such measurements."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tatok_edge.cli.progress import Progress
from tatok_edge.errors import InputError
from tatok_edge.evaluation.metrics import MIN_POINTS, Curve, bd_quality, bd_rate, psnr, structural_similarity
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

__all__ = [
    "compare_runs",
    "evaluate_folder",
    "evaluate_pictures",
    "markdown_table",
    "plot_runs",
    "psnr",
    "summarize",
    "uncoded_bits",
]

Row = dict[str, Any]

_MEANS = {
    "psnr_db": 4,
    "ssim": 5,
    "ms_ssim": 5,
    "tokens_per_image": 2,
    "global_tokens_per_image": 2,
    "bits_per_image": 1,
    "uncoded_bits_per_image": 1,
}
"""What a row averages over the pictures, and to how many decimals."""


def uncoded_bits(frame: TokenFrame, vocabulary: int) -> int:
    """Bits of a frame's tokens before entropy coding.

    Every id of fixed length, patch and global tokens alike, and one bit per patch that says whether it is kept, unless
    all or none are.
    """
    id_bits = math.ceil(math.log2(vocabulary))
    positions = 0 if frame.n_tokens in (0, frame.n_patches) else frame.n_patches
    return (frame.n_tokens + frame.n_globals) * id_bits + positions


def centre_crop(image: Image, side: int) -> Image:
    """The middle ``side`` x ``side`` pixels.

    Raises:
        InputError: the picture is smaller.
    """
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise InputError(f"a crop of {side}x{side} pixels does not fit into a picture of {width}x{height}")
    top, left = (height - side) // 2, (width - side) // 2
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def evaluate_pictures(
    tokenizer: Tokenizer,
    pictures: Iterable[tuple[str, Image]],
    budgets: Sequence[TokenBudget],
    *,
    structure: bool = False,
    total: int | None = None,
) -> list[Row]:
    """Encode and decode pictures at several budgets.

    Args:
        tokenizer: The model.
        pictures: Names and uint8 RGB ``(H, W, 3)`` pictures.
        budgets: What to keep; all with one ``score``.
        structure: Measure SSIM and MS-SSIM too.
        total: Number of pictures, for the progress bar.

    Returns:
        One row per picture and budget, with the fields of :data:`_MEANS`, ``picture``, ``keep``, ``tau``, ``width`` and
        ``height``.

    Raises:
        InputError: no budget, or budgets of several scores.
        BackendError: ``structure`` without the ``evaluate`` extra.
    """
    scores = {budget.score for budget in budgets}
    if len(scores) != 1:
        raise InputError("at least one share to keep is needed" if not scores else "budgets of one score are needed")
    rows: list[Row] = []
    with Progress("evaluating", total, unit="pictures") as progress:
        for number, (name, image) in enumerate(pictures):
            # A patch that scores nothing is not kept unless it is asked for.
            every = TokenBudget(min_tokens=image.size, score=budgets[0].score)
            everything = tokenizer.encode_detailed(image, budget=every)
            for budget in budgets:
                refined = budget.refine > 0
                frame = tokenizer.encode(image, budget=budget) if refined else tokenizer.reduce(everything, budget)
                decoded = tokenizer.decode(frame)
                row = {
                    "picture": name,
                    "keep": budget.keep,
                    "tau": budget.tau if budget.tau < 1 else None,
                    "width": image.shape[1],
                    "height": image.shape[0],
                    "psnr_db": psnr(image, decoded),
                    "tokens_per_image": frame.n_tokens,
                    "global_tokens_per_image": frame.n_globals,
                    "bits_per_image": 8 * len(tokenizer.pack(frame)),
                    "uncoded_bits_per_image": uncoded_bits(frame, tokenizer.vocabulary),
                }
                if structure:
                    similarity = structural_similarity(image, decoded)
                    row["ssim"] = similarity.ssim
                    row["ms_ssim"] = None if math.isnan(similarity.ms_ssim) else similarity.ms_ssim
                rows.append(row)
            progress.update(number + 1)
    return rows


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Means over the pictures, one row per budget in the order in which they came.

    The bits per pixel are all bits over all pixels; SSIM and MS-SSIM are None where no picture was large enough.
    """
    groups: dict[tuple[float | None, float | None], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["keep"], row["tau"]), []).append(row)
    results = []
    for (keep, tau), group in groups.items():
        result: Row = {"keep": keep, "tau": tau}
        for key, decimals in _MEANS.items():
            if key in group[0]:
                values = [row[key] for row in group if row[key] is not None]
                result[key] = round(float(np.mean(values)), decimals) if values else None
        pixels = sum(row["width"] * row["height"] for row in group)
        result["bits_per_pixel"] = round(sum(row["bits_per_image"] for row in group) / pixels, 5)
        results.append(result)
    return results


def evaluate_folder(
    tokenizer: Tokenizer,
    folder: str | Path,
    keeps: Sequence[float],
    *,
    taus: Sequence[float] = (),
    structure: bool = False,
    crop: int | None = None,
    refine: int = 0,
    per_picture: bool = False,
) -> dict[str, Any]:
    """Encode and decode every picture of a folder at several shares of kept patch tokens.

    Args:
        tokenizer: The model.
        folder: Folder of pictures.
        keeps: Shares of the patch tokens.
        taus: Shares of the total score, as further budgets.
        structure: Measure SSIM and MS-SSIM too (needs the ``evaluate`` extra).
        crop: Only the middle ``crop`` x ``crop`` pixels of each picture.
        refine: Passes of refining, as :class:`TokenBudget` takes them.
        per_picture: Add ``"pictures"``, the rows of :func:`evaluate_pictures`.

    Returns:
        ``{"images": n, "results": [{"keep", "tau", "psnr_db", "tokens_per_image", "global_tokens_per_image",
        "bits_per_image", "uncoded_bits_per_image", "bits_per_pixel", ...}, ...]}`` with means over the pictures (of the
        PSNR of each), and model, backend and seconds. Bits are those of whole packets.

    Raises:
        InputError: no budget, a share outside 0 to 1, passes outside 0 to 64, or a picture smaller than the crop.
        SourceError: the folder holds no readable picture.
        BackendError: ``structure`` without the ``evaluate`` extra.
    """
    budgets = [TokenBudget(keep=keep, refine=refine) for keep in keeps]
    budgets += [TokenBudget(tau=tau, refine=refine) for tau in taus]
    if not budgets:
        raise InputError("at least one share to keep is needed")
    paths = list_images(folder)
    start = time.perf_counter()

    def pictures() -> Iterable[tuple[str, Image]]:
        for path in paths:
            image = read_image(path)
            try:
                yield path.name, image if crop is None else centre_crop(image, crop)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None

    rows = evaluate_pictures(tokenizer, pictures(), budgets, structure=structure, total=len(paths))
    sizes = {row["picture"]: row["width"] * row["height"] for row in rows}
    report: dict[str, Any] = {
        "images": len(paths),
        "pixels": sum(sizes.values()),
        "crop": crop,
        "refine": refine,
        "results": summarize(rows),
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "backend": tokenizer.backend.name,
        "seconds": round(time.perf_counter() - start, 3),
    }
    if per_picture:
        report["pictures"] = rows
    return report


# --- two runs ---------------------------------------------------------------------------------------


def curves(report: dict[str, Any]) -> dict[str, Curve]:
    """Curves of PSNR over ``"tokens"`` (patch and global) and ``"bits"`` of a report of :func:`evaluate_folder`.

    They go through the shares of tokens, or through the ``tau`` where there are fewer than four of those.

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
        raise InputError(f"a comparison needs at least {MIN_POINTS} shares (--keep or --tau), got {len(chosen)}")
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


# --- tables and plots ------------------------------------------------------------------------------------


def budget_name(row: Row) -> str:
    """How a table calls the budget of a row."""
    return f"{100 * row['keep']:g}%" if row["keep"] is not None else f"τ {row['tau'] or 1:g}"


def markdown_table(results: Sequence[Row]) -> str:
    """The results of a report as a Markdown table."""
    structure = "ssim" in results[0]
    header = ["kept", "patch tokens", "with globals", "PSNR (dB)", *(["SSIM", "MS-SSIM"] if structure else [])]
    header += ["bits before coding", "bits", "bits/pixel"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for row in results:
        cells = [budget_name(row), f"{row['tokens_per_image']:.0f}"]
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
        from tatok_edge.errors import BackendError
        from tatok_edge.evaluation.metrics import INSTALL

        raise BackendError(f"plots need {error.name}, which is not installed: {INSTALL}") from None
    return plt
