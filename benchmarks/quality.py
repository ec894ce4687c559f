"""Quality on full-size pictures by the score that chooses the tokens, with their information and the seams.

``python benchmarks/quality.py ../shared/data/eval/kodak --out benchmarks/results`` writes quality.json, quality.csv,
quality.md and quality.png, and side-by-side crops with ``--crops DIR``. Needs ``pip install 'tatok-edge[evaluate]'``.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import cv2
import numpy as np

from tatok_edge.cli.progress import Progress
from tatok_edge.evaluation.folder import random_tokens
from tatok_edge.evaluation.metrics import psnr, structural_similarity
from tatok_edge.evaluation.speed import machine
from tatok_edge.geometry import Image
from tatok_edge.model.networks import Clock
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu import kernels
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

KEEPS = (4.0, 2.0, 1.0, 0.35, 0.1)
"""Tokens per patch, up to the depth of the model."""
SMOOTH = 2.0
"""Smooth areas: the mean gradient of the original over 16x16 pixels is below so many grey levels."""


def information(tokenizer: Tokenizer, frame: TokenFrame) -> list[float]:
    """Bits of the tokens of each depth of a frame, given the global tokens alone."""
    levels, rows = tokenizer.levels, sum(tokenizer.levels)
    cells = kernels.codes_from_ids(frame.global_ids, levels).T.reshape(len(levels), *frame.cell_grid)
    log2_probs = tokenizer.networks.prior(cells, Clock()).log2_probs
    codes, depths = kernels.codes_from_ids(frame.ids, levels), frame.depths
    bits = []
    for depth in range(1, tokenizer.depth + 1):
        chosen = depths == depth
        probs = log2_probs[(depth - 1) * rows : depth * rows]
        bits.append(float(kernels.information(probs, codes[chosen], frame.positions[chosen], levels).sum()))
    return bits


def seams(original: Image, decoded: Image, side: int) -> tuple[float, float]:
    """Mean absolute gradient across the borders of a grid, and inside, in smooth areas.

    Returns:
        Mean across borders and mean inside, of the decoded picture, in grey levels; NaN without a smooth area.
    """
    grey = cv2.cvtColor(original, cv2.COLOR_RGB2GRAY).astype(np.float32)
    ours = cv2.cvtColor(decoded, cv2.COLOR_RGB2GRAY).astype(np.float32)
    across, inside = [], []
    for axis in (0, 1):
        gradient = np.abs(np.diff(grey, axis=axis))
        smooth = cv2.blur(gradient, (16, 16)) < SMOOTH
        step = np.abs(np.diff(ours, axis=axis))
        border = np.arange(step.shape[axis]) % side == side - 1
        mask = border[:, None] if axis == 0 else border[None, :]
        across.append(step[smooth & mask])
        inside.append(step[smooth & ~mask])
    a, b = np.concatenate(across), np.concatenate(inside)
    return (float(a.mean()), float(b.mean())) if len(a) and len(b) else (float("nan"), float("nan"))


def measure(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """All figures, as means over the pictures."""
    paths = list_images(folder)
    keeps = [keep for keep in KEEPS if keep <= tokenizer.depth]
    rows: dict[str, list[dict[str, float]]] = {f"{keep:g}": [] for keep in keeps}
    bits_by_depth, original_seams, globals_only = [], [], []
    rng = np.random.default_rng(0)
    with Progress("measuring", len(paths)) as progress:
        for number, path in enumerate(paths):
            image = read_image(path)
            pixels = image.shape[0] * image.shape[1]
            # All tokens, also those without information.
            by_information, by_residual, by_visual = (
                tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size, score=score))
                for score in ("information", "residual", "visual")
            )
            bits_by_depth.append(np.array(information(tokenizer, by_residual.frame)) / by_residual.frame.n_patches)
            none = tokenizer.reduce(by_residual, TokenBudget(keep=0.0))
            empty = 8 * len(tokenizer.pack(none))
            globals_only.append((psnr(image, tokenizer.decode(none)), empty / pixels))
            original_seams.append((*seams(image, image, 8), *seams(image, image, 32)))
            for keep in keeps:
                frame = tokenizer.reduce(by_residual, TokenBudget(keep=keep))
                decoded = tokenizer.decode(frame)
                informative = tokenizer.reduce(by_information, TokenBudget(keep=keep, score="information"))
                visible = tokenizer.decode(tokenizer.reduce(by_visual, TokenBudget(keep=keep, score="visual")))
                bits = 8.0 * len(tokenizer.pack(frame))
                by_entropy = tokenizer.encode(image, budget=TokenBudget(keep=keep, score="entropy"))
                ideal = sum(information(tokenizer, frame))
                by_chance = random_tokens(by_residual.frame, frame.n_tokens, rng)
                rows[f"{keep:g}"].append(
                    {
                        "tokens": frame.n_tokens,
                        "bpp": bits / pixels,
                        "ideal_patch_bpp": ideal / pixels,
                        "patch_bpp": (bits - empty) / pixels,
                        "psnr_residual": psnr(image, decoded),
                        "psnr_information": psnr(image, tokenizer.decode(informative)),
                        "psnr_entropy": psnr(image, tokenizer.decode(by_entropy)),
                        "psnr_random": psnr(image, tokenizer.decode(by_chance)),
                        "psnr_visual": psnr(image, visible),
                        "ms_ssim_residual": structural_similarity(image, decoded).ms_ssim,
                        "ms_ssim_visual": structural_similarity(image, visible).ms_ssim,
                        **dict(zip(("across8", "inside8"), seams(image, decoded, 8), strict=True)),
                        **dict(zip(("across32", "inside32"), seams(image, decoded, 32), strict=True)),
                    }
                )
            progress.update(number + 1)

    def mean(values: list[float]) -> float:
        return float(np.nanmean(values))

    table = []
    for keep in keeps:
        row = {key: mean([r[key] for r in rows[f"{keep:g}"]]) for key in rows[f"{keep:g}"][0]}
        table.append({"keep": keep, **row})
    reference = np.nanmean(np.array(original_seams), axis=0)
    for row in table:
        row["seam8"] = row["across8"] / row["inside8"]
        row["seam32"] = row["across32"] / row["inside32"]
    return {
        "machine": machine(),
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "backend": str(tokenizer.backend),
        "images": len(paths),
        "information_by_depth": np.mean(bits_by_depth, axis=0).round(3).tolist(),
        "spent_bits_per_token": float(np.log2(tokenizer.vocabulary)),
        "globals_only_psnr": mean([p for p, _ in globals_only]),
        "globals_only_bpp": mean([b for _, b in globals_only]),
        "original_across8": float(reference[0]),
        "original_inside8": float(reference[1]),
        "original_seam8": float(reference[0] / reference[1]),
        "original_seam32": float(reference[2] / reference[3]),
        "results": table,
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['model']} `{report['tag']}`, {report['images']} pictures at full size; "
        "mean of the PSNR of each picture in dB; bits are those of whole packets "
        "(header, globals, positions, codes, CRC) of the tokens chosen by residual.",
        "",
        "Beside the PSNR of the scores `residual` and `visual`: MS-SSIM.",
        "",
        "| tokens per patch | tokens | by residual | by visual | by information | by entropy | at random | bits/pixel "
        "| information, patches | coded, patches + depths |",
        "|---" * 10 + "|",
    ]
    for row in report["results"]:
        lines.append(
            f"| {row['keep']:g} | {row['tokens']:.0f} | {row['psnr_residual']:.2f}, {row['ms_ssim_residual']:.4f} | "
            f"{row['psnr_visual']:.2f}, {row['ms_ssim_visual']:.4f} | {row['psnr_information']:.2f} | "
            f"{row['psnr_entropy']:.2f} | {row['psnr_random']:.2f} | {row['bpp']:.4f} | {row['ideal_patch_bpp']:.4f} | "
            f"{row['patch_bpp']:.4f} |"
        )
    lines += [
        f"| 0 | 0 | {report['globals_only_psnr']:.2f} | | | | | {report['globals_only_bpp']:.4f} | | |",
        "",
        f"Information of tokens by depth: {', '.join(f'{bits:.2f}' for bits in report['information_by_depth'])} bits "
        f"of the {report['spent_bits_per_token']:.2f} that FSQ spends.",
        "",
        "Gradient across grid borders over gradient inside, in smooth areas (1 is no seam), and both gradients for "
        "patches:",
        "",
        "| tokens per patch | 8-pixel patches | 32-pixel cells | across patches, inside, in grey levels |",
        "|---|---|---|---|",
        f"| original | {report['original_seam8']:.2f} | {report['original_seam32']:.2f} "
        f"| {report['original_across8']:.2f}, {report['original_inside8']:.2f} |",
    ]
    lines += [
        f"| {row['keep']:g} | {row['seam8']:.2f} | {row['seam32']:.2f} | {row['across8']:.2f}, {row['inside8']:.2f} |"
        for row in report["results"]
    ]
    return "\n".join(lines) + "\n"


def plot(report: dict[str, Any], path: Path) -> None:
    """PSNR and MS-SSIM against tokens."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["results"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    keeps = [row["keep"] for row in rows]
    for key in ("residual", "visual", "information", "entropy", "random"):
        left.plot(keeps, [row[f"psnr_{key}"] for row in rows], marker="o", label=key)
    for key in ("residual", "visual"):
        right.plot(keeps, [row[f"ms_ssim_{key}"] for row in rows], marker="o", label=key)
    left.set(ylabel="PSNR (dB)", title="PSNR, by the score that chooses the tokens")
    right.set(ylabel="MS-SSIM", title="MS-SSIM")
    for axes in (left, right):
        axes.set(xlabel="tokens per patch", xscale="log", xticks=keeps, xticklabels=[f"{keep:g}" for keep in keeps])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def crops(tokenizer: Tokenizer, folder: Path, out: Path, write: Callable[[Path, Image], None]) -> None:
    """Side by side: original and the reconstruction at each number of tokens, from the middle of every picture."""
    out.mkdir(parents=True, exist_ok=True)
    for path in list_images(folder):
        image = read_image(path)
        result = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size))
        top, left = (image.shape[0] - 320) // 2, (image.shape[1] - 320) // 2
        decoded = [
            tokenizer.decode(tokenizer.reduce(result, TokenBudget(keep=keep)))
            for keep in KEEPS
            if keep <= tokenizer.depth
        ]
        panels = [np.ascontiguousarray(p[top : top + 320, left : left + 320]) for p in (image, *decoded)]
        write(out / f"{path.stem}.png", np.concatenate(panels, axis=1))


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--crops", type=Path)
    args = parser.parse_args()
    with Tokenizer.load(args.model, threads=args.threads) as tokenizer:
        report = measure(tokenizer, args.folder)
        if args.crops:
            crops(tokenizer, args.folder, args.crops, lambda path, image: cv2.imwrite(str(path), image[:, :, ::-1]))
    common.publish("quality", report, markdown(report), args.out)
    if args.out:
        with (args.out / "quality.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(report["results"][0]))
            writer.writeheader()
            writer.writerows(report["results"])
        plot(report, args.out / "quality.png")


if __name__ == "__main__":
    main()
