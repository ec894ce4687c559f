"""Gain of the parts of the model: the model against fixed-rate tokenizers and against itself without global tokens.

``python benchmarks/ablations.py RUNS ../shared/data/eval/kodak --out benchmarks/results`` writes ablations.json and
ablations.md. RUNS holds the outputs of four trainings of the same seed, steps, data and schedule, each from its own
analytic start::

    for variant in tatok patch8 patch16 no-globals; do
        python -m tatok_edge.training.train --data ../shared/data --steps 2000 --variant $variant --out RUNS/$variant
    done
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import common
import numpy as np
import torch
from torch import Tensor

from tatok_edge.cli.progress import Progress
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.training.checkpoint import load_model
from tatok_edge.training.config import Variant
from tatok_edge.training.filtering import residual_scores, select, visual_weights
from tatok_edge.training.model import Encoded, TaTok

SHARES = (4.0, 3.0, 2.0, 1.5, 1.0, 0.75, 0.5, 0.35, 0.25, 0.175, 0.1, 0.05)
"""Tokens per patch, up to the depth of a model."""
SHOWN = (4.0, 2.0, 1.0, 0.5, 0.35, 0.25, 0.1)
DEPTHS = (1, 2)
"""Largest numbers of tokens of one patch that a deeper model is limited to."""
SAME = (
    "config",
    "depth",
    "use",
    "seed",
    "batch",
    "crop",
    "lr",
    "prior_weight",
    "rate_weight",
    "mean_weight",
    "seam_weight",
)
"""Options that must be the same in all runs."""
TITLES = {
    "tatok": "TaTok",
    "patch8": "(a) fixed rate, patch 8: no globals, no prior",
    "patch16": "(b) fixed rate, patch 16: no globals, no prior",
    "no-globals": "(e) TaTok without globals",
}


class Curve:
    """Mean PSNR over the mean number of tokens, globals included."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self.tokens, self.psnr = (np.array(v) for v in zip(*sorted(points), strict=True))

    def at(self, tokens: float) -> float:
        """PSNR at a number of tokens, by interpolation over its logarithm; NaN outside."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return math.nan
        return float(np.interp(math.log(tokens), np.log(self.tokens), self.psnr))

    def tokens_for(self, psnr: float) -> float:
        """Tokens for a PSNR; NaN outside."""
        if not self.psnr[0] <= psnr <= self.psnr[-1]:
            return math.nan
        return float(np.exp(np.interp(psnr, self.psnr, np.log(self.tokens))))


def scores(model: TaTok, image: Tensor, encoded: Encoded, generator: torch.Generator) -> dict[str, Tensor]:
    """Scores of the tokens ``(1, depth, h, w)``, never rising over depth; some are of the first tokens alone."""
    residual = residual_scores(model, image, encoded)
    found = {
        "residual": residual,
        "visual": residual * visual_weights(image, model.config.patch),
        "information": encoded.information.cummin(1).values,
        "random": torch.rand(residual.shape, generator=generator).cummin(1).values,
    }
    return found | {f"depth {depth}": residual[:, :depth] for depth in DEPTHS if depth < model.config.depth}


@torch.inference_mode()
def measure(model: TaTok, paths: list[Path]) -> dict[str, list[dict[str, float]]]:
    """By score: share, tokens (globals included) and PSNR in dB, as means over the pictures.

    A fixed-rate tokenizer has one point, under ``"all"``.
    """
    generator = torch.Generator().manual_seed(0)
    found: dict[tuple[str, float], list[tuple[float, float]]] = {}
    with Progress(f"measuring {model.config.variant}", len(paths), unit="pictures") as progress:
        for number, path in enumerate(paths):
            pixels = torch.from_numpy(read_image(path)).permute(2, 0, 1)[None].float()
            if pixels.shape[2] % 32 or pixels.shape[3] % 32:
                raise SystemExit(f"{path}: width and height must be multiples of 32")
            image = pixels / 127.5 - 1
            encoded = model.encode(image)
            extra = encoded.global_codes[0, 0].numel() if model.config.variant == "tatok" else 0
            if model.config.fixed_rate:
                ranked = {"all": torch.zeros_like(encoded.information)}
            else:
                ranked = scores(model, image, encoded, generator)
            for name, score in ranked.items():
                for share in (1.0,) if name == "all" else SHARES:
                    if share > score.shape[1]:
                        continue
                    keep = torch.zeros_like(encoded.information, dtype=torch.bool)
                    keep[:, : score.shape[1]] = select(score, torch.tensor([share]))
                    decoded = ((model.decode(encoded, keep).clamp(-1, 1) + 1) * 127.5).round()
                    psnr = 10 * math.log10(255**2 / max(float((decoded - pixels).pow(2).mean()), 1e-6))
                    found.setdefault((name, share), []).append((float(keep.sum()) + extra, psnr))
            progress.update(number + 1)
    result: dict[str, list[dict[str, float]]] = {}
    for (name, share), values in found.items():
        tokens, psnr = np.mean(values, axis=0)
        result.setdefault(name, []).append({"share": share, "tokens": float(tokens), "psnr_db": float(psnr)})
    return result


def curve(points: list[dict[str, float]]) -> Curve:
    """The curve through the points of one score."""
    return Curve([(point["tokens"], point["psnr_db"]) for point in points])


def at_share(points: list[dict[str, float]], share: float) -> dict[str, float]:
    """The point of a share."""
    return next(point for point in points if point["share"] == share)


def findings(variants: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Results of the comparison; None where a curve does not reach the value."""
    model, bare = variants["tatok"]["results"], variants["no-globals"]["results"]
    fine, coarse = (at_share(variants[name]["results"]["all"], 1.0) for name in ("patch8", "patch16"))
    ours = curve(model["residual"])
    # With its best score, random included: without global tokens the residual is only the distance from grey.
    without = [curve(points) for points in bare.values()]
    needed = ours.tokens_for(fine["psnr_db"])
    found: dict[str, Any] = {
        "tokens_for_the_psnr_of_patch8": needed,
        "fewer_tokens_than_patch8": fine["tokens"] / needed,
        "db_over_patch16_at_its_tokens": ours.at(coarse["tokens"]) - coarse["psnr_db"],
        "db_over_random_at_35_percent": at_share(model["residual"], 0.35)["psnr_db"]
        - at_share(model["random"], 0.35)["psnr_db"],
        "db_of_globals_at_equal_tokens": {},
        "db_of_depth_at_equal_tokens": {
            f"{depth:g}": at_share(model["residual"], depth)["psnr_db"]
            - at_share(model[f"depth {depth}"], depth)["psnr_db"]
            for depth in DEPTHS
            if f"depth {depth}" in model
        },
    }
    for share in (0.5, 0.35, 0.25, 0.1):
        point = at_share(model["residual"], share)
        best = max(one.at(point["tokens"]) for one in without)
        found["db_of_globals_at_equal_tokens"][f"{share:g}"] = point["psnr_db"] - best

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return None if math.isnan(value) else round(value, 3)

    return {key: clean(value) for key, value in found.items()}


def read_runs(runs: Path, paths: list[Path]) -> dict[str, dict[str, Any]]:
    """Every variant of a folder of trainings, measured.

    Raises:
        SystemExit: the runs were not trained alike.
    """
    variants: dict[str, dict[str, Any]] = {}
    for variant in get_args(Variant):
        model, metadata = load_model(runs / variant / "checkpoint.safetensors", baselines=True)
        if model.config.variant != variant:
            raise SystemExit(f"{runs / variant}: trained with --variant {model.config.variant}")
        options: dict[str, Any] = metadata["options"]  # type: ignore[assignment]
        variants[variant] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "steps": metadata["step"],
            "hours": round(float(metadata["seconds"]) / 3600, 3),  # type: ignore[arg-type]
            "options": {name: options[name] for name in SAME},
            "hardware": metadata["record"]["hardware"],  # type: ignore[index]
        }
        first = variants["tatok"]
        if any(variants[variant][key] != first[key] for key in ("steps", "options")):
            raise SystemExit(
                f"{runs / variant}: {variants[variant]['steps']} steps with {variants[variant]['options']}, but "
                f"{runs / 'tatok'}: {first['steps']} steps with {first['options']}; train them alike"
            )
        variants[variant]["results"] = measure(model, paths)
    return variants


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    variants, found = report["variants"], report["findings"]
    options = variants["tatok"]["options"]
    lines = [
        f"{report['pictures']} Kodak pictures at full size, PSNR in dB. Every row is a training of "
        f"{variants['tatok']['steps']:,} steps of {options['batch']} crops of {options['crop']} pixels with seed "
        f"{options['seed']}, from its own analytic start (averaged weights): far fewer than the shipped model had.",
        "",
        "Columns are tokens per patch on average.",
        "",
        "| variant | parameters | tokens | " + " | ".join(f"{share:g}" for share in SHOWN) + " |",
        "|---" * (3 + len(SHOWN)) + "|",
    ]

    def row(title: str, parameters: str, points: list[dict[str, float]]) -> None:
        known = {point["share"]: point for point in points}
        cells = [f"{known[share]['psnr_db']:.2f}" if share in known else "" for share in SHOWN]
        lines.append(f"| {title} | {parameters} | {points[0]['tokens']:.0f} | " + " | ".join(cells) + " |")

    size = {name: f"{variant['parameters'] / 1e6:.2f} M" for name, variant in variants.items()}
    model = variants["tatok"]["results"]
    row(f"{TITLES['tatok']}, tokens by residual", size["tatok"], model["residual"])
    for score in ("visual", "information"):
        row(f"{TITLES['tatok']}, tokens by {score}", size["tatok"], model[score])
    row("(c) TaTok without filtering: all tokens", size["tatok"], model["residual"][:1])
    row("(d) TaTok, tokens at random", size["tatok"], model["random"])
    for depth in DEPTHS:
        if f"depth {depth}" in model:
            most = "one token" if depth == 1 else f"{depth} tokens"
            row(f"(f) TaTok, at most {most} for a patch", size["tatok"], model[f"depth {depth}"])
    for name in ("patch8", "patch16"):
        row(TITLES[name], size[name], variants[name]["results"]["all"])
    for score, points in variants["no-globals"]["results"].items():
        if score.startswith("depth"):
            continue
        by = "at random" if score == "random" else f"by {score}"
        row(f"{TITLES['no-globals']}, tokens {by}", size["no-globals"], points)

    def text(value: float | None, form: str) -> str:
        return "not reached" if value is None else form.format(value)

    deeper = ", ".join(
        f"{text(value, '{:+.2f} dB')} over at most {depth} at {depth} per patch"
        for depth, value in found["db_of_depth_at_equal_tokens"].items()
    )
    globals_ = ", ".join(
        f"{text(value, '{:+.2f} dB')} at {share}" for share, value in found["db_of_globals_at_equal_tokens"].items()
    )
    lines += [
        "",
        "Tokens are patch and global tokens, where most are kept. (c), (d) and (f) are the trained TaTok itself, "
        "decoded from other tokens. At equal tokens, globals counted:",
        "",
        f"- the PSNR of (a) takes {text(found['fewer_tokens_than_patch8'], '{:.2f}x fewer tokens')} "
        f"({text(found['tokens_for_the_psnr_of_patch8'], '{:.0f} per picture')});",
        f"- at the tokens of (b): {text(found['db_over_patch16_at_its_tokens'], '{:+.2f} dB')};",
        f"- globals, against (e) with whatever selection serves it best: {globals_};",
        f"- filtering, against (d) at 0.35 per patch: {text(found['db_over_random_at_35_percent'], '{:+.2f} dB')};",
        f"- depth, against (f): {deeper}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    paths = list_images(args.folder)
    variants = read_runs(args.runs, paths)
    report = {"pictures": len(paths), "variants": variants, "findings": findings(variants)}
    common.publish("ablations", report, markdown(report), args.out)


if __name__ == "__main__":
    main()
