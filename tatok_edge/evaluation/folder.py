"""Quality and size of a model over the pictures of a folder."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.errors import InputError, SourceError
from tatok_edge.evaluation.metrics import psnr, structural_similarity
from tatok_edge.geometry import Image
from tatok_edge.limits import Limits
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.folders import folder_content
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.sources.open import open_source
from tatok_edge.tokens.budget import Score, TokenBudget
from tatok_edge.tokens.frame import TokenFrame

Row = dict[str, Any]

_MEANS = {
    "psnr_db": 4,
    "ssim": 5,
    "ms_ssim": 5,
    "tokens_per_image": 2,
    "global_tokens_per_image": 2,
    "patches_with_tokens": 2,
    "bits_per_image": 1,
    "uncoded_bits_per_image": 1,
}
"""Figures that a summary averages over the pictures, and their decimals."""


def uncoded_bits(frame: TokenFrame, vocabulary: int, depth: int) -> int:
    """Bits of a frame's tokens before entropy coding.

    Every id of fixed length, patch and global tokens alike, and the depth of each patch as a number of fixed length,
    unless no patch has a token or all have as many as they can.

    Args:
        frame: The tokens.
        vocabulary: Number of different token ids.
        depth: Most tokens of a patch.
    """
    id_bits = math.ceil(math.log2(vocabulary))
    depths = 0 if frame.n_tokens in (0, depth * frame.n_patches) else math.ceil(math.log2(depth + 1)) * frame.n_patches
    return (frame.n_tokens + frame.n_globals) * id_bits + depths


def random_tokens(frame: TokenFrame, count: int, random: np.random.Generator) -> TokenFrame:
    """``count`` of the tokens of a frame at random, as a baseline for scores; stacks stay whole.

    Every order in which each token comes after those above it in its stack is equally likely.
    """
    # A random order of the patches in which each comes as often as it has tokens; the first time is its first token.
    order = random.permutation(frame.positions)
    return take(frame, np.bincount(order[:count], minlength=frame.n_patches))


def take(frame: TokenFrame, depths: NDArray[np.integer[Any]]) -> TokenFrame:
    """The first ``depths`` tokens ``(N,)`` of the stack of each patch."""
    chosen = frame.depths <= depths[frame.positions]
    return dataclasses.replace(frame, ids=frame.ids[chosen], positions=frame.positions[chosen])


def depth_shares(frame: TokenFrame, depth: int) -> list[float]:
    """Share of the patches with 0, 1, ... ``depth`` tokens."""
    counts = np.bincount(frame.depth_map().ravel(), minlength=depth + 1)
    return [round(float(count), 5) for count in counts / frame.n_patches]


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
        raise InputError("at least one budget is needed" if not scores else "budgets of one score are needed")
    rows: list[Row] = []
    for number, (name, image) in enumerate(pictures, 1):
        # A token that scores nothing is not kept unless it is asked for.
        every = TokenBudget(min_tokens=image.size, score=budgets[0].score)
        everything = tokenizer.encode_detailed(image, budget=every)
        for budget in budgets:
            refined = budget.refine > 0
            frame = tokenizer.encode(image, budget=budget) if refined else tokenizer.reduce(everything, budget)
            decoded = tokenizer.decode(frame)
            row: Row = {
                "picture": name,
                "keep": budget.keep,
                "tau": budget.tau if budget.tau < 1 else None,
                "width": image.shape[1],
                "height": image.shape[0],
                "psnr_db": psnr(image, decoded),
                "tokens_per_image": frame.n_tokens,
                "global_tokens_per_image": frame.n_globals,
                "bits_per_image": 8 * len(tokenizer.pack(frame)),
                "uncoded_bits_per_image": uncoded_bits(frame, tokenizer.vocabulary, tokenizer.depth),
                "patches_with_tokens": int(np.count_nonzero(frame.depth_map())),
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


def count_pictures(name: str | Path, limit: int | None) -> int | None:
    """Pictures of a folder or frames of a video, at most ``limit``; None where their number is not known.

    Raises:
        SourceError: There is no such folder or video, or the folder holds no picture.
    """
    if os.path.isdir(name):
        return len(list_images(name)[:limit])
    with open_source(str(name)) as source:
        return limit if source.frames is None else min(source.frames, limit or source.frames)


def _frames(name: str | Path, limit: int | None, crop: int | None, limits: Limits) -> Iterable[tuple[str, Image]]:
    """Number and pixels of the frames of a video."""
    with open_source(str(name), limits=limits) as source:
        for frame in islice(source, limit):
            yield str(frame.index), frame.image if crop is None else centre_crop(frame.image, crop)


def _pictures(
    paths: Sequence[Path], crop: int | None, problems: list[str], limits: Limits
) -> Iterable[tuple[str, Image]]:
    """Name and pixels of each picture that can be read; ``problems`` gets a line for each other one."""
    for path in paths:
        try:
            image = read_image(path, limits)
        except SourceError as error:
            problems.append(f"left out: {error}")
            continue
        try:
            yield path.name, image if crop is None else centre_crop(image, crop)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def evaluate_folder(
    tokenizer: Tokenizer,
    folder: str | Path,
    keeps: Sequence[float],
    *,
    taus: Sequence[float] = (),
    score: Score = "residual",
    max_depth: int | None = None,
    structure: bool = False,
    crop: int | None = None,
    limit: int | None = None,
    refine: int = 0,
    per_picture: bool = False,
    advance: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Encodes and decodes every picture of a folder at several numbers of tokens.

    Pictures that cannot be read are left out and named under ``"problems"``.

    Args:
        tokenizer: The model.
        folder: Folder of pictures, or a video file.
        keeps: Tokens per patch.
        taus: Shares of the total score, as further budgets.
        score: What ranks the tokens.
        max_depth: Most tokens of one patch.
        structure: Measure SSIM and MS-SSIM too (needs the ``evaluate`` extra).
        crop: Only the middle ``crop`` x ``crop`` pixels of each picture.
        limit: Only so many pictures or frames.
        refine: Passes of refining, as :class:`TokenBudget` takes them.
        per_picture: Add ``"pictures"``, the rows of :func:`evaluate_pictures`.
        advance: Called after each picture with the number of pictures that are done.

    Returns:
        ``{"images": n, "results": [{"keep", "tau", "psnr_db", "tokens_per_image", "global_tokens_per_image",
        "bits_per_image", "uncoded_bits_per_image", "bits_per_pixel", ...}, ...]}`` with means over the pictures (of the
        PSNR of each), and model, backend and seconds. Bits are those of whole packets.

    Raises:
        InputError: no budget, a number of tokens per patch above the depth of the model, a share outside 0 to 1,
            passes outside 0 to 64, or a picture smaller than the crop.
        SourceError: the folder holds no readable picture.
        BackendError: ``structure`` without the ``evaluate`` extra.
    """
    budgets = [TokenBudget(keep=keep, score=score, max_depth=max_depth, refine=refine) for keep in keeps]
    budgets += [TokenBudget(tau=tau, score=score, max_depth=max_depth, refine=refine) for tau in taus]
    if not budgets:
        raise InputError("at least one number of tokens per patch is needed")
    for budget in budgets:
        budget.limits(1, tokenizer.depth)  # before the first picture is read
    isdir = os.path.isdir(folder)
    paths = list_images(folder)[:limit] if isdir else []
    beside = folder_content(folder).beside() if isdir else ""
    problems: list[str] = []
    start = time.perf_counter()

    limits = tokenizer.limits
    pictures = _pictures(paths, crop, problems, limits) if isdir else _frames(folder, limit, crop, limits)
    rows = evaluate_pictures(tokenizer, pictures, budgets, structure=structure, advance=advance)
    if not rows:
        raise SourceError(f"{folder}: none of its {len(paths)} pictures can be read; the first: {problems[0]}")
    sizes = {row["picture"]: row["width"] * row["height"] for row in rows}
    report: dict[str, Any] = {
        "images": len(sizes),
        "pixels": sum(sizes.values()),
        "crop": crop,
        "refine": refine,
        "score": score,
        "depth": budgets[0].depth(tokenizer.depth),
        "results": summarize(rows),
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "backend": tokenizer.backend.name,
        "seconds": round(time.perf_counter() - start, 3),
        "problems": problems,
        "notes": [f"{folder}: its {len(paths)} pictures are taken, and not {beside}"] if beside else [],
    }
    if per_picture:
        report["pictures"] = rows
    return report
