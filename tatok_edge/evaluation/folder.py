"""Quality and size of a model over the pictures of a folder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tatok_edge.errors import InputError
from tatok_edge.evaluation.metrics import psnr, structural_similarity
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

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
"""Figures that a summary averages over the pictures, and their decimals."""


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
    advance: Callable[[int], object] | None = None,
) -> list[Row]:
    """Encodes and decodes pictures at several budgets.

    Args:
        tokenizer: The model.
        pictures: Names and uint8 RGB ``(H, W, 3)`` pictures.
        budgets: The budgets, all with one ``score``.
        structure: Measure SSIM and MS-SSIM too.
        advance: Called after each picture with the number of pictures that are done.

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
    for number, (name, image) in enumerate(pictures, 1):
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
        if advance is not None:
            advance(number)
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
    advance: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Encodes and decodes every picture of a folder at several shares of kept patch tokens.

    Args:
        tokenizer: The model.
        folder: Folder of pictures.
        keeps: Shares of the patch tokens.
        taus: Shares of the total score, as further budgets.
        structure: Measure SSIM and MS-SSIM too (needs the ``evaluate`` extra).
        crop: Only the middle ``crop`` x ``crop`` pixels of each picture.
        refine: Passes of refining, as :class:`TokenBudget` takes them.
        per_picture: Add ``"pictures"``, the rows of :func:`evaluate_pictures`.
        advance: Called after each picture with the number of pictures that are done.

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

    rows = evaluate_pictures(tokenizer, pictures(), budgets, structure=structure, advance=advance)
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
