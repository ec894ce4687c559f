"""The evaluation suite: fidelity for tokens and for bits, on five sets of pictures, beside JPEG, WebP and AVIF.

``python benchmarks/fidelity.py ../shared/data --out benchmarks/results`` writes fidelity.json, .csv, .md
and .png; ``--crops docs/crops.jpg`` writes crops of eight Kodak pictures side by side. The folder has
``eval/kodak``, ``train/manifest.csv`` and ``videos/manifest.csv``. Needs ``pip install 'tatok-edge[evaluate]'``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import common
import cv2
import numpy as np

from tatok_edge.cli.progress import Progress
from tatok_edge.evaluation.folder import centre_crop, depth_shares, evaluate_pictures, summarize
from tatok_edge.evaluation.metrics import Curve, bd_rate, psnr
from tatok_edge.evaluation.speed import machine
from tatok_edge.evaluation.tables import budget_name, markdown_table
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import EncodeResult, Tokenizer
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.sources.open import open_source
from tatok_edge.tokens.budget import Score, TokenBudget

KEEPS = (4.0, 2.0, 1.0, 0.5, 0.35, 0.1, 0.05)
"""Tokens per patch, up to the depth of the model."""
REFINED_KEEPS = (2.0, 1.0, 0.35, 0.1)
"""Tokens per patch of the refined set, whose pictures take seconds each."""
SHOWN_DEPTHS = (0.35, 1.0, 2.0, 3.0)
"""Tokens per patch of the histogram of depths."""
TAUS = (0.95, 0.9, 0.8)
AVIF_RANGE = (0.05, 0.4)
"""Range of bits per pixel for the comparison with AVIF."""
CORRELATION_TAU = 0.9
CORRELATION_DB = (24.0, 26.0, 28.0)
"""PSNR for the counts of tokens and the sizes of WebP."""
WEBP_DB = 32.0
"""PSNR of the WebP size that is compared with the tokens of a fixed tau."""
CLIP_STEP = 60
"""Distance of the measured frames of a clip."""
HELD_OUT_STEP = 4
"""Every so many of the held-out pictures are measured."""
CROPS = {
    "kodim03": (250, 150),
    "kodim05": (290, 130),
    "kodim07": (200, 330),
    "kodim08": (180, 260),
    "kodim15": (120, 250),
    "kodim19": (230, 150),
    "kodim21": (150, 290),
    "kodim23": (60, 430),
}
"""Kodak pictures to show, and top and left of the part."""
CROP_SIDE = 208
CROP_KEEPS = (2.0, 1.0, 0.35, 0.1)
PASSES = 8
"""Passes of the refined set."""


# --- sets of pictures -------------------------------------------------------------------------------


class PictureSet(NamedTuple):
    """Pictures to measure on."""

    title: str
    read: Callable[[], Iterator[tuple[str, Image]]]
    passes: int = 0
    """Passes of refining."""
    score: Score = "residual"
    """What ranks the tokens."""
    max_depth: int | None = None
    """Most tokens of one patch."""


SETS = ("kodak", "kodak-refined", "kodak-flat", "held-out", "clips")
"""Sets that are measured if none are named."""


def picture_sets(data: Path) -> dict[str, PictureSet]:
    """The sets of a data folder; all of their pictures are for evaluation only."""
    from tatok_edge.training.held_out import HELD_OUT_FILES

    kodak = list_images(data / "eval" / "kodak")

    def pictures(paths: list[Path], side: int | None = None) -> Callable[[], Iterator[tuple[str, Image]]]:
        def read() -> Iterator[tuple[str, Image]]:
            for path in paths:
                image = read_image(path)
                yield path.name, image if side is None else centre_crop(image, side)

        return read

    def clips() -> Iterator[tuple[str, Image]]:
        with (data / "videos" / "manifest.csv").open(newline="") as file:
            names = [row["file"] for row in csv.DictReader(file) if row["use"] == "evaluate"]
        for name in names:
            with open_source(str(data / "videos" / name)) as source:
                for number, frame in enumerate(source):
                    if number % CLIP_STEP == 0:
                        yield f"{name}#{number}", frame.image

    held = [data / "train" / name for name in sorted(HELD_OUT_FILES)][::HELD_OUT_STEP]
    return {
        "kodak": PictureSet(f"Kodak, full size ({len(kodak)} pictures)", pictures(kodak)),
        "kodak-refined": PictureSet(
            f"Kodak, full size, refined with {PASSES} passes (`--refine {PASSES}`)", pictures(kodak), PASSES
        ),
        "kodak-visual": PictureSet("Kodak, full size, `--score visual`", pictures(kodak), score="visual"),
        "kodak-flat": PictureSet(
            "Kodak, full size, at most one token per patch (`--max-depth 1`)", pictures(kodak), max_depth=1
        ),
        "kodak-256": PictureSet(f"Kodak, centre crops of 256x256 ({len(kodak)} pictures)", pictures(kodak, 256)),
        "held-out": PictureSet(f"Held-out pictures of the training set (every {HELD_OUT_STEP}th)", pictures(held)),
        "clips": PictureSet(f"Frames of clips, for evaluation only (every {CLIP_STEP}th)", clips),
    }


# --- codecs -----------------------------------------------------------------------------------------


def encode_jpeg(image: Image, quality: int) -> bytes:
    """JPEG with optimised Huffman tables and 4:2:0 chroma."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return cv2.imencode(".jpg", image[:, :, ::-1], options)[1].tobytes()


def encode_plain_jpeg(image: Image, quality: int) -> bytes:
    """JPEG with the Huffman tables of the standard, as most programs write it."""
    return cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def encode_webp(image: Image, quality: int) -> bytes:
    """Lossy WebP; quality from 1."""
    return cv2.imencode(".webp", image[:, :, ::-1], [cv2.IMWRITE_WEBP_QUALITY, quality])[1].tobytes()


def encode_avif(image: Image, quality: int) -> bytes:
    """AVIF with Pillow's settings (speed 6, 4:2:0 chroma)."""
    from PIL import Image as Pillow

    stream = io.BytesIO()
    Pillow.fromarray(image).save(stream, "AVIF", quality=quality)
    return stream.getvalue()


def closest(encode: Callable[[int], bytes], bits: float) -> bytes:
    """The picture of a codec at the quality from 1 to 100 whose size comes closest to ``bits``, or its smallest."""
    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        if 8 * len(encode(middle)) < bits:
            low = middle + 1
        else:
            high = middle
    return min((encode(max(low - 1, 1)), encode(low)), key=lambda data: abs(8 * len(data) - bits))


def decode(data: bytes) -> Image:
    """A coded picture as RGB."""
    from PIL import Image as Pillow

    return np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))


CODECS: dict[str, tuple[Callable[[Image, int], bytes], tuple[int, ...]]] = {
    "JPEG": (encode_jpeg, (1, 3, 5, 8, 12, 18, 26, 36, 50, 65)),
    "JPEG, standard tables": (encode_plain_jpeg, (1, 3, 5, 8, 12, 18, 26, 36, 50, 65)),
    "WebP": (encode_webp, (1, 5, 10, 20, 30, 40, 55, 70)),
    "AVIF": (encode_avif, (1, 6, 12, 18, 24, 30, 36, 44, 52)),
}
"""Encoder and qualities: the whole range below 32 dB and a little more."""


def codec_curves(pictures: Iterator[tuple[str, Image]]) -> dict[str, list[dict[str, float]]]:
    """Mean bits per pixel and PSNR over pictures of one size, by quality."""
    sums = {name: np.zeros((len(qualities), 2)) for name, (_, qualities) in CODECS.items()}
    count = 0
    for _, image in pictures:
        count += 1
        for name, (encode, qualities) in CODECS.items():
            for row, quality in enumerate(qualities):
                data = encode(image, quality)
                sums[name][row] += 8 * len(data) / image[:, :, 0].size, psnr(image, decode(data))
    return {
        name: [
            {"quality": quality, "bits_per_pixel": round(float(bpp), 5), "psnr_db": round(float(db), 4)}
            for quality, (bpp, db) in zip(CODECS[name][1], total / count, strict=True)
        ]
        for name, total in sums.items()
    }


def bd_rates(results: list[dict[str, Any]], codecs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """BD-rate in percent of our bits against every codec, with its range of PSNR."""
    rows = [row for row in results if row["keep"] is not None]
    ours = Curve([r["bits_per_pixel"] for r in rows], [r["psnr_db"] for r in rows])
    found = {}
    for name, points in codecs.items():
        # Neighbouring qualities can give one picture; a curve has one point for each quality in dB.
        distinct = {point["psnr_db"]: point["bits_per_pixel"] for point in points}
        curve = Curve(list(distinct.values()), list(distinct))
        found[name] = bd_rate(curve, ours)
        if name == "AVIF":
            label = f"AVIF at {AVIF_RANGE[0]:g}-{AVIF_RANGE[1]:g} bits per pixel"
            found[label] = bd_rate(curve, ours, rates=AVIF_RANGE)
    return {
        name: {
            "percent": None if np.isnan(delta.value) else round(delta.value, 2),
            "psnr_db": [round(delta.low, 2), round(delta.high, 2)],
        }
        for name, delta in found.items()
    }


def compare(plain: list[dict[str, Any]], refined: list[dict[str, Any]]) -> dict[str, float]:
    """BD-rates in percent, in tokens (with globals) and in bits, of refined pictures against plain ones."""

    def curve(results: list[dict[str, Any]], tokens: bool) -> Curve:
        rows = [row for row in results if row["keep"] is not None]
        rates = [
            row["tokens_per_image"] + row["global_tokens_per_image"] if tokens else row["bits_per_pixel"]
            for row in rows
        ]
        return Curve(rates, [row["psnr_db"] for row in rows])

    return {
        name: round(bd_rate(curve(plain, tokens), curve(refined, tokens)).value, 2)
        for name, tokens in (("tokens_percent", True), ("bits_percent", False))
    }


# --- tokens follow content --------------------------------------------------------------------------


def webp_bits_at(image: Image, target: float) -> int:
    """Bits of the smallest WebP of at least ``target`` dB, or of the best one."""
    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        if psnr(image, decode(encode_webp(image, middle))) < target:
            low = middle + 1
        else:
            high = middle
    return 8 * len(encode_webp(image, low))


def tokens_at(tokenizer: Tokenizer, result: EncodeResult, image: Image, target: float) -> int:
    """The fewest patch tokens, to 1 % of the patches, that give ``target`` dB; all tokens where they do not."""
    patches = result.frame.n_patches
    low, high = -1, 100 * tokenizer.depth  # below, reached (or all)
    while high - low > 1:
        middle = (low + high) // 2
        frame = tokenizer.reduce(result, TokenBudget(keep=middle / 100))
        if psnr(image, tokenizer.decode(frame)) < target:
            low = middle
        else:
            high = middle
    return round(patches * high / 100)


def correlation(tokenizer: Tokenizer, pictures: Iterator[tuple[str, Image]]) -> dict[str, Any]:
    """Spearman's rank correlation between the tokens of a picture and its WebP size."""
    from scipy.stats import spearmanr

    rows = []
    with Progress("correlating", None, unit="pictures") as progress:
        for name, image in pictures:
            result = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size))
            row: dict[str, Any] = {
                "picture": name,
                "tokens_tau": tokenizer.reduce(result, TokenBudget(tau=CORRELATION_TAU)).n_tokens,
                "webp_bits": webp_bits_at(image, WEBP_DB),
                "all_tokens": result.frame.n_tokens,
                "webp_least_bits": 8 * len(encode_webp(image, 1)),
            }
            for target in CORRELATION_DB:
                row[f"tokens_{target:g}_db"] = tokens_at(tokenizer, result, image, target)
                row[f"webp_bits_{target:g}_db"] = webp_bits_at(image, target)
            rows.append(row)
            progress.update(len(rows))

    def rho(key: str, size: str) -> float | None:
        tokens, bits = [r[key] for r in rows], [r[size] for r in rows]
        if len(set(tokens)) == 1 or len(set(bits)) == 1:
            return None  # not defined
        return round(float(spearmanr(tokens, bits).statistic), 4)

    return {
        "tau": CORRELATION_TAU,
        "webp_db": WEBP_DB,
        "at_tau": rho("tokens_tau", "webp_bits"),
        "at_quality": {
            f"{target:g}": {
                "rho": rho(f"tokens_{target:g}_db", f"webp_bits_{target:g}_db"),
                "all_tokens": sum(r[f"tokens_{target:g}_db"] == r["all_tokens"] for r in rows),
                "least_webp": sum(r[f"webp_bits_{target:g}_db"] == r["webp_least_bits"] for r in rows),
            }
            for target in CORRELATION_DB
        },
        "pictures": rows,
    }


# --- how deep ---------------------------------------------------------------------------------------


def histogram(tokenizer: Tokenizer, pictures: Iterator[tuple[str, Image]], score: Score) -> dict[str, list[float]]:
    """Mean share of the patches with 0, 1, ... K tokens, by tokens per patch."""
    sums = {keep: np.zeros(tokenizer.depth + 1) for keep in SHOWN_DEPTHS if keep <= tokenizer.depth}
    count = 0
    for _, image in pictures:
        count += 1
        result = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size, score=score))
        for keep, total in sums.items():
            frame = tokenizer.reduce(result, TokenBudget(keep=keep, score=score))
            total += depth_shares(frame, tokenizer.depth)
    return {f"{keep:g}": (total / count).round(4).tolist() for keep, total in sums.items()}


# --- the report -------------------------------------------------------------------------------------


def measure(tokenizer: Tokenizer, data: Path, names: list[str]) -> dict[str, Any]:
    """All figures of the sets in ``names``."""
    sets = picture_sets(data)
    report: dict[str, Any] = {
        "machine": machine(),
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "backend": str(tokenizer.backend),
        "sets": {},
    }
    for name in names:
        chosen = sets[name]
        common_limits: dict[str, Any] = {"refine": chosen.passes, "score": chosen.score, "max_depth": chosen.max_depth}
        most = TokenBudget(max_depth=chosen.max_depth).depth(tokenizer.depth)
        keeps, taus = (REFINED_KEEPS, ()) if chosen.passes else (KEEPS, TAUS)
        budgets = [TokenBudget(keep=keep, **common_limits) for keep in keeps if keep <= most]
        budgets += [TokenBudget(tau=tau, **common_limits) for tau in taus]
        rows = evaluate_pictures(tokenizer, sets[name].read(), budgets, structure=True)
        results = summarize(rows)
        report["sets"][name] = {
            "title": sets[name].title,
            "pictures": len({row["picture"] for row in rows}),
            "results": results,
        }
        if name == "kodak":
            report["codecs"] = codec_curves(sets[name].read())
            report["bd_rate"] = bd_rates(results, report["codecs"])
        if name in ("kodak", "kodak-visual"):
            report.setdefault("depths", {})[chosen.score] = histogram(tokenizer, chosen.read(), chosen.score)
        if name == "kodak-refined" and "kodak" in report["sets"]:
            report["bd_rate_refined"] = bd_rates(results, report["codecs"])
            report["refined_against_plain"] = compare(report["sets"]["kodak"]["results"], results)
        if name == "held-out":
            report["correlation"] = correlation(tokenizer, sets[name].read())
    return report


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['model']} `{report['tag']}`. PSNR over RGB, mean of that of each picture; SSIM and MS-SSIM by "
        "`pytorch-msssim`. Tokens are chosen by residual where nothing else is said: so many per patch on average, or "
        "(τ) a share of the score. Bits before coding: 16 per patch and global token, and the depth of each patch as a "
        "number of fixed length; bits: whole packets.",
    ]
    for chosen in report["sets"].values():
        lines += ["", f"**{chosen['title']}**, {chosen['pictures']} measured", "", markdown_table(chosen["results"])]
    for score, rows in report.get("depths", {}).items():
        most = len(next(iter(rows.values())))
        lines += [
            f"Patches by depth on Kodak at full size, tokens chosen by `{score}`:",
            "",
            f"| tokens per patch | {' | '.join(f'{depth} tokens' for depth in range(most))} |",
            "|---" * (1 + most) + "|",
        ]
        lines += [f"| {keep} | {' | '.join(f'{share:.1%}' for share in shares)} |" for keep, shares in rows.items()]
        lines.append("")
    if "bd_rate" in report:
        kinds = {"bits": report["bd_rate"], "bits, refined": report.get("bd_rate_refined", {})}
        kinds = {kind: rates for kind, rates in kinds.items() if rates}
        lines += [
            "Bits for the same PSNR on Kodak at full size (BD-rate, PCHIP over the mean curves; negative: fewer than "
            "the codec):",
            "",
            f"| against | {' | '.join(kinds)} |",
            "|---" * (1 + len(kinds)) + "|",
        ]
        for name in report["bd_rate"]:
            cells = []
            for rates in kinds.values():
                (low, high), percent = rates[name]["psnr_db"], rates[name]["percent"]
                between = f"({low:.1f} to {high:.1f} dB)"
                cells.append("no PSNR in common" if percent is None else f"{percent:+.1f} % {between}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    if "refined_against_plain" in report:
        found = report["refined_against_plain"]
        lines += [
            f"Refined against not refined: {found['tokens_percent']:+.1f} % tokens and {found['bits_percent']:+.1f} % "
            "bits for the same PSNR.",
            "",
        ]
    if "correlation" in report:
        found = report["correlation"]
        lines += [
            f"Rank correlation (Spearman) of patch tokens with the size of a WebP, over the {len(found['pictures'])} "
            "held-out pictures:",
            "",
            "| tokens | WebP | rank correlation | take all tokens | smallest WebP is better |",
            "|---|---|---|---|---|",
        ]
        for db, row in found["at_quality"].items():
            rho = "" if row["rho"] is None else f"{row['rho']:.2f}"
            lines.append(f"| for {db} dB | of {db} dB | {rho} | {row['all_tokens']} | {row['least_webp']} |")
        if found["at_tau"] is not None:
            lines.append(f"| of τ {found['tau']:g} | of {found['webp_db']:g} dB | {found['at_tau']:.2f} | | |")
    return "\n".join(lines).rstrip() + "\n"


def table(report: dict[str, Any]) -> str:
    """All points as CSV: our sets, then the codecs."""
    rows = [
        {"set": name, "budget": budget_name(row), **row}
        for name, chosen in report["sets"].items()
        for row in chosen["results"]
    ]
    for codec, points in report.get("codecs", {}).items():
        rows += [{"set": "kodak", "budget": f"{codec} {point['quality']}", **point} for point in points]
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "quality"))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def plot(report: dict[str, Any], path: Path) -> None:
    """PSNR over tokens and over bits, and tokens over WebP size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(16, 4.6))
    for name, chosen in report["sets"].items():
        rows = [row for row in chosen["results"] if row["keep"] is not None]
        axes[0].plot([row["keep"] for row in rows], [row["psnr_db"] for row in rows], marker="o", label=name)
        if name in ("kodak", "kodak-refined", "kodak-flat"):
            axes[1].plot(
                [row["bits_per_pixel"] for row in rows],
                [row["psnr_db"] for row in rows],
                marker="o",
                label=report["model"] + name.removeprefix("kodak").replace("-", ", "),
            )
    axes[0].set(xlabel="tokens per patch", ylabel="PSNR (dB)", title="tokens", xscale="log")
    axes[0].set(xticks=KEEPS, xticklabels=[f"{keep:g}" for keep in KEEPS])
    axes[0].minorticks_off()
    for codec, points in report.get("codecs", {}).items():
        x, y = [point["bits_per_pixel"] for point in points], [point["psnr_db"] for point in points]
        axes[1].plot(x, y, marker=".", label=codec)
    axes[1].set(xlabel="bits per pixel, whole files", ylabel="PSNR (dB)", title="Kodak, full size", xlim=(0, 1))
    axes[1].set_ylim(20, 34)
    if "correlation" in report:
        pictures = report["correlation"]["pictures"]
        for target in CORRELATION_DB:
            x, y = ([r[f"{key}_{target:g}_db"] for r in pictures] for key in ("webp_bits", "tokens"))
            axes[2].scatter(x, y, s=8, label=f"{target:g} dB")
        x, y = ([r[key] for r in pictures] for key in ("webp_bits", "tokens_tau"))
        axes[2].scatter(x, y, s=8, label=f"τ {CORRELATION_TAU:g}, WebP of {WEBP_DB:g} dB")
        axes[2].set(xlabel="bits of a WebP of that PSNR", ylabel="patch tokens", xscale="log", title="held-out")
    for one in axes:
        one.grid(alpha=0.3)
        if one.get_legend_handles_labels()[0]:
            one.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def crop_sheet(tokenizer: Tokenizer, kodak: Path) -> Image:
    """Parts of eight pictures: the original, and the reconstruction from fewer and fewer tokens."""
    gap, header = 4, 26
    columns = ["original", *(f"{keep:g} per patch" for keep in CROP_KEEPS)]
    width = len(columns) * (CROP_SIDE + gap) - gap
    top = np.full((header, width, 3), 255, np.uint8)
    for number, text in enumerate(columns):
        place = (number * (CROP_SIDE + gap) + 4, 18)
        cv2.putText(top, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    rows: list[Image] = [top]
    for name, (y, x) in CROPS.items():
        image = read_image(kodak / f"{name}.png")
        result = tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size))
        shown = [image, *(tokenizer.decode(tokenizer.reduce(result, TokenBudget(keep=keep))) for keep in CROP_KEEPS)]
        row = np.full((CROP_SIDE + gap, width, 3), 255, np.uint8)
        for number, picture in enumerate(shown):
            left = number * (CROP_SIDE + gap)
            row[:CROP_SIDE, left : left + CROP_SIDE] = picture[y : y + CROP_SIDE, x : x + CROP_SIDE]
        rows.append(row)
    return np.concatenate(rows)


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--sets", nargs="*", default=list(SETS))
    parser.add_argument("--crops", type=Path, help="also write crops side by side, as a JPEG")
    args = parser.parse_args()
    if unknown := sorted(set(args.sets) - set(picture_sets(args.data))):
        parser.error(f"--sets: {', '.join(unknown)} is none of {', '.join(picture_sets(args.data))}")
    if args.threads:
        import torch

        torch.set_num_threads(args.threads)
    with Tokenizer.load(args.model, threads=args.threads) as tokenizer:
        if args.crops:
            sheet = crop_sheet(tokenizer, args.data / "eval" / "kodak")
            cv2.imwrite(str(args.crops), sheet[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        if not args.sets:
            return
        report = measure(tokenizer, args.data, args.sets)
    common.publish("fidelity", report, markdown(report), args.out)
    if args.out:
        (args.out / "fidelity.csv").write_text(table(report))
        plot(report, args.out / "fidelity.png")


if __name__ == "__main__":
    main()
