"""Streams against the fixed-rate tokenizer (same networks, the first token of every patch of every frame), on clips.

``python benchmarks/stream.py ../shared/data/videos --native ../shared/data/videos_native --threads 2 --out
benchmarks/results``, on a quiet machine; 20 minutes on two cores. Tokens, PSNR, encode and decode time, bits beside
those of video codecs at the same PSNR, the time that a transformer takes to read the tokens (needs PyTorch), the share
of small new objects that get a token, and live cameras: latency, a slow consumer, several cameras, memory. ``--parts``
measures some of them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import stream_codecs
from numpy.typing import NDArray

from tatok_edge.evaluation.metrics import psnr
from tatok_edge.evaluation.speed import machine
from tatok_edge.geometry import Image
from tatok_edge.model.bundle import PRECISIONS
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder, encode_frames
from tatok_edge.stream.pipeline import Stream
from tatok_edge.tokens.budget import TokenBudget

FIXED_RATE = TokenBudget(min_tokens=1 << 24, max_depth=1, score="entropy")
"""Budget of the fixed-rate tokenizer. The entropy score costs no time, and ranks nothing here."""
PSNR_STEP = 4
"""Distance of the frames whose PSNR is measured."""
LAYERS, WIDTH, HEADS = 12, 384, 6
READ_FRAMES = (5, 10, 20)
OBJECT, CONTRAST, SIGMA = 16, 30, 3.0
PARTS = ("codecs", "reader", "detection", "live", "cameras", "memory")
"""Parts besides the clips."""


# --- clips -----------------------------------------------------------------------------------------


def clip_row(tokenizer: Tokenizer, path: Path, camera: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of one clip."""
    images: list[Image] = []
    fixed_ms, stream_ms, fixed_patch_ms, stream_patch_ms = [], [], [], []
    unpacked_ms, stream_unpacked_ms = [], []
    fixed_db, stream_db, tokens, globals_, vectors, updated, bits = [], [], [], [], [], [], 0
    fixed_decode_ms, stream_decode_ms = [], []
    encoder = StreamEncoder(tokenizer, max_loss_db=options.max_loss_db)
    decoder = StreamDecoder(tokenizer)
    with open_source(path) as source:
        fps = source.fps
        for number, frame in enumerate(source):
            if number == options.frames:
                break
            image = frame.image
            images.append(image)
            start = time.perf_counter()
            result = tokenizer.encode_detailed(image, budget=FIXED_RATE)
            encoded_ms = 1e3 * (time.perf_counter() - start)
            tokenizer.pack(result.frame)
            fixed_ms.append(1e3 * (time.perf_counter() - start))
            unpacked_ms.append(encoded_ms)
            start = time.perf_counter()
            encoded = encoder.encode(image)
            stream_ms.append(1e3 * (time.perf_counter() - start))
            stream_unpacked_ms.append(stream_ms[-1] - 1e3 * encoded.seconds["pack"])
            for seconds, times in ((result.seconds, fixed_patch_ms), (encoded.seconds, stream_patch_ms)):
                times.append(1e3 * sum(seconds.get(stage, 0.0) for stage in ("gather", "patch_encoder")))
            tokens.append(encoded.n_tokens)
            globals_.append(encoded.n_globals)
            vectors.append(encoded.n_vectors)
            updated.append(encoded.n_updated)
            bits += 8 * len(encoded.packet)
            start = time.perf_counter()
            shown = decoder.decode(encoded.packet).image
            stream_decode_ms.append(1e3 * (time.perf_counter() - start))
            assert shown is not None
            if number % PSNR_STEP == 0:
                start = time.perf_counter()
                fixed = tokenizer.decode(result.frame)
                fixed_decode_ms.append(1e3 * (time.perf_counter() - start))
                fixed_db.append(psnr(image, fixed))
                stream_db.append(psnr(image, shown))
    count, full = len(tokens), result.frame
    total = full.n_patches + full.n_globals
    codecs = {}
    if "codecs" in options.parts:
        codecs = stream_codecs.equal_quality(images, float(np.mean(stream_db)), PSNR_STEP)
    return codecs | {
        "clip": path.stem,
        "camera": camera,
        "size": f"{full.width}x{full.height}",
        "fps": round(fps or 30.0, 3),
        "frames": count,
        "fixed_tokens": total,
        "tokens": round(float(np.mean(tokens) + np.mean(globals_) + np.mean(vectors)), 2),
        "vectors": round(float(np.mean(vectors)), 2),
        "patch_tokens": round(float(np.mean(tokens)), 2),
        "fewer": round(total * count / (sum(tokens) + sum(globals_) + sum(vectors)), 3),
        "fewer_patch_tokens": round(full.n_patches * count / max(sum(tokens), 1), 3),
        "updated_share": round(float(np.mean(updated)) / full.n_patches, 4),
        "bits_per_pixel": round(bits / count / (full.width * full.height), 5),
        "psnr_fixed": round(float(np.mean(fixed_db)), 3),
        "psnr_loss": round(float(np.mean(fixed_db) - np.mean(stream_db)), 3),
        "fixed_ms": round(float(np.mean(fixed_ms)), 3),
        "stream_ms": round(float(np.mean(stream_ms)), 3),
        "fixed_decode_ms": round(float(np.mean(fixed_decode_ms)), 3),
        "stream_decode_ms": round(float(np.mean(stream_decode_ms)), 3),
        "stream_ms_p95": round(float(np.percentile(stream_ms, 95)), 3),
        "fixed_unpacked_ms": round(float(np.mean(unpacked_ms)), 3),
        "stream_unpacked_ms": round(float(np.mean(stream_unpacked_ms)), 3),
        "fixed_patch_ms": round(float(np.mean(fixed_patch_ms)), 3),
        "stream_patch_ms": round(float(np.mean(stream_patch_ms)), 3),
        "first_tokens": [sum(counts) for counts in zip(tokens, globals_, vectors, strict=True)][: max(READ_FRAMES)],
    }


# --- long sequences ---------------------------------------------------------------------------------


class Reader:
    """A plain causal transformer with a cache of keys and values; random weights are enough for timing."""

    def __init__(self, threads: int | None) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        torch.manual_seed(0)
        self._torch = torch
        self._layers = [
            {
                "qkv": torch.randn(3 * WIDTH, WIDTH) * WIDTH**-0.5,
                "out": torch.randn(WIDTH, WIDTH) * WIDTH**-0.5,
                "up": torch.randn(4 * WIDTH, WIDTH) * WIDTH**-0.5,
                "down": torch.randn(WIDTH, 4 * WIDTH) * (4 * WIDTH) ** -0.5,
            }
            for _ in range(LAYERS)
        ]
        self._times: dict[tuple[int, ...], list[float]] = {}

    def read(self, counts: list[int]) -> list[float]:
        """Seconds from the start until each frame is read, with so many tokens per frame."""
        key = tuple(counts)
        if key not in self._times:
            with self._torch.inference_mode():
                self._times[key] = self._read(counts)
        return self._times[key]

    def _read(self, counts: list[int]) -> list[float]:
        torch, functional = self._torch, self._torch.nn.functional
        size = WIDTH // HEADS
        total = sum(counts)
        caches = [(torch.empty(1, HEADS, total, size), torch.empty(1, HEADS, total, size)) for _ in self._layers]
        start, past, times = time.perf_counter(), 0, []
        for count in counts:
            x = torch.randn(count, WIDTH)
            # A token attends to the tokens before it in its frame, and to all earlier frames.
            mask = torch.ones(count, past + count, dtype=torch.bool).tril(past)
            for layer, (keys, values) in zip(self._layers, caches, strict=True):
                if not count:
                    break
                qkv = functional.linear(functional.layer_norm(x, (WIDTH,)), layer["qkv"])
                query, key, value = (part.reshape(count, HEADS, size).transpose(0, 1)[None] for part in qkv.chunk(3, 1))
                keys[:, :, past : past + count] = key
                values[:, :, past : past + count] = value
                seen = slice(0, past + count)
                attended = functional.scaled_dot_product_attention(
                    query, keys[:, :, seen], values[:, :, seen], attn_mask=mask
                )
                x = x + functional.linear(attended[0].transpose(0, 1).reshape(count, WIDTH), layer["out"])
                hidden = functional.gelu(functional.linear(functional.layer_norm(x, (WIDTH,)), layer["up"]))
                x = x + functional.linear(hidden, layer["down"])
            past += count
            times.append(time.perf_counter() - start)
        return times


# --- small objects, noise ---------------------------------------------------------------------------


def detection(tokenizer: Tokenizer, images: list[Image], budget: TokenBudget, trials: int) -> dict[str, Any]:
    """Share of new objects that get a patch token in their first frame, and of patches that noise alone updates."""
    rng = np.random.default_rng(0)

    def noisy(image: NDArray[np.float32]) -> Image:
        noise = rng.standard_normal(image.shape, np.float32) * SIGMA
        return np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)

    seen = updated = patches = 0
    for number, image in enumerate(images):
        # Pixels far from 0 and 255, so that the object and the noise are not clipped.
        scene = image.astype(np.float32) * ((255 - 2 * CONTRAST) / 255) + CONTRAST
        encoder = StreamEncoder(tokenizer, budget=budget, keyframe_interval=0)
        encoder.encode(noisy(scene))
        for _ in range(30):
            frame = encoder.encode(noisy(scene))
            updated += frame.n_updated
            patches += frame.tokens.n_patches
        columns = frame.tokens.grid[1]
        for _ in range(trials // len(images) + (number < trials % len(images))):
            trial = encoder.fork()
            height, width = scene.shape[:2]
            y, x = int(rng.integers(0, height - OBJECT + 1)), int(rng.integers(0, width - OBJECT + 1))
            with_object = scene.copy()
            with_object[y : y + OBJECT, x : x + OBJECT] += CONTRAST * (1 if rng.random() < 0.5 else -1)
            encoded = trial.encode(noisy(with_object))
            rows, cols = np.divmod(encoded.tokens.positions, columns)
            inside = (rows * 8 < y + OBJECT) & (rows * 8 + 8 > y) & (cols * 8 < x + OBJECT) & (cols * 8 + 8 > x)
            seen += bool(inside.any())
    return {"trials": trials, "seen": round(seen / trials, 4), "updated_by_noise": round(updated / patches, 5)}


# --- live -------------------------------------------------------------------------------------------


def live(tokenizer: Tokenizer, budget: TokenBudget, seconds: float) -> dict[str, Any]:
    """Latency of a 640x480 camera at 15 frames per second, with a consumer in time and one five times too slow."""
    results = {}
    for name, factor in (("in_time", 0.0), ("slow", 5.0)):
        source = open_source("synthetic:live=1,width=640,height=480,fps=15")
        with source, Stream(tokenizer, source, budget=budget) as stream:
            begun, count = time.monotonic(), 0
            for _ in stream:
                count += 1
                time.sleep(factor / 15)
                if time.monotonic() - begun > seconds:
                    break
            latency = np.asarray(stream.statistics.latency_ms)
            results[name] = {
                "frames": count,
                "dropped": source.dropped,
                "latency_ms": {f"p{share}": round(float(np.percentile(latency, share)), 1) for share in (50, 95, 100)},
            }
    return results


def cameras(tokenizer: Tokenizer, budget: TokenBudget, frames: int) -> dict[str, Any]:
    """Frames per second of four 320x240 cameras, one by one and in common steps."""
    clips = [[render(Scene(width=320, height=240, seed=seed), i) for i in range(frames)] for seed in range(4)]
    rates = {}
    for name in ("one_by_one", "together"):
        encoders = [StreamEncoder(tokenizer, budget=budget) for _ in clips]
        encode_frames(encoders, [clip[0] for clip in clips])
        start = time.perf_counter()
        for images in zip(*(clip[1:] for clip in clips), strict=True):
            if name == "together":
                encode_frames(encoders, images)
            else:
                for encoder, image in zip(encoders, images, strict=True):
                    encoder.encode(image)
        rates[name] = round(4 * (frames - 1) / (time.perf_counter() - start), 2)
    return {**rates, "ratio": round(rates["together"] / rates["one_by_one"], 3)}


def memory(tokenizer: Tokenizer, budget: TokenBudget, frames: int) -> dict[str, Any]:
    """Growth of the resident memory over ``frames`` frames of a 640x480 camera, after a first tenth."""

    def resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    loop = [render(Scene(width=640, height=480), i) for i in range(60)]
    encoder = StreamEncoder(tokenizer, budget=budget)
    first = 0.0
    for number in range(frames):
        encoder.encode(loop[number % len(loop)])
        if number == frames // 10:
            first = resident()
    return {"frames": frames, "rss_mb": round(first, 1), "growth": round(resident() / first - 1, 5)}


# --- the report -------------------------------------------------------------------------------------


def run(tokenizer: Tokenizer, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    budget = TokenBudget()
    clips, rows = clips_of(folder), rows_of(tokenizer, clips_of(folder), options)
    native = [] if options.native is None else rows_of(tokenizer, clips_of(options.native), options)
    if "reader" in options.parts:
        reader = Reader(options.threads)
        for row in rows:
            ours = row.pop("first_tokens")
            fixed = reader.read([row["fixed_tokens"]] * len(ours))
            streamed = reader.read(ours)
            for count in READ_FRAMES:
                if count <= len(ours):
                    row[f"read_{count}"] = round(fixed[count - 1] / streamed[count - 1], 3)
            row["read_fixed_s"], row["read_stream_s"] = round(fixed[-1], 3), round(streamed[-1], 3)
            print(row["clip"], row.get("read_20"), flush=True)
    for row in (*rows, *native):
        row.pop("first_tokens", None)
    report: dict[str, Any] = {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "backend": str(tokenizer.backend),
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "max_loss_db": options.max_loss_db,
        "frames": options.frames,
        "clips": rows,
        "native": native,
    }
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "detection": lambda: detection(tokenizer, backgrounds(clips), budget, options.trials),
        "live": lambda: live(tokenizer, budget, options.seconds),
        "cameras": lambda: cameras(tokenizer, budget, 60),
        "memory": lambda: memory(tokenizer, budget, options.memory_frames),
    }
    return report | {name: measure() for name, measure in measures.items() if name in options.parts}


def clips_of(folder: Path) -> list[tuple[Path, str]]:
    """The clips of a folder, each static or moving."""
    with (folder / "manifest.csv").open(newline="") as file:
        return [(folder / row["file"], row["camera"]) for row in csv.DictReader(file)]


def rows_of(tokenizer: Tokenizer, clips: list[tuple[Path, str]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of clips."""
    rows = []
    for path, camera in clips:
        if options.clips and path.stem not in options.clips:
            continue
        rows.append(clip_row(tokenizer, path, camera, options))
        print(json.dumps({k: v for k, v in rows[-1].items() if k != "first_tokens"}), flush=True)
    return rows


def backgrounds(clips: list[tuple[Path, str]]) -> list[Image]:
    """The tenth frame of each clip of a static camera."""
    images = []
    for path, camera in clips:
        if camera == "static":
            with open_source(path) as source:
                frames = iter(source)
                for _ in range(10):
                    image = next(frames).image
                images.append(image)
    return images


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    lines = [
        f"{report['machine']['cpu']}, {report['backend']}; {report['model']} `{report['tag']}`. Tokens "
        "are patch tokens, global tokens and motion vectors; times are means per frame, from the frame to the packet "
        "and (in brackets) to the tokens; *read* is the time that a causal transformer (12 layers, width 384, KV "
        "cache) takes for the first frames, keyframe included."
        f" Largest loss of PSNR: {report['max_loss_db']:g} dB."
        " *Times x264* and *SVT-AV1*: bits of the stream over bits of the codec at the same PSNR of the same frames "
        "(x264 veryfast zerolatency, SVT-AV1 preset 12 low delay); in brackets the PSNR of a codec that does not get "
        "as low."
        f" The first {report['frames']} frames of each clip.",
    ]
    for rows in (report["clips"], report["native"]):
        if rows:
            lines += ["", *table(rows)]
    return "\n".join(lines + whole_figures(report)) + "\n"


def table(clips: list[dict[str, Any]]) -> list[str]:
    """The figures of clips as lines of Markdown."""
    lines = [
        "| clip | camera | fixed-rate tokens | tokens | fewer | updated | PSNR fixed | loss dB | encode ms: fixed "
        "| stream | faster | decode ms: fixed | stream | faster | patch path faster | read faster (5, 10, 20 frames) "
        "| bits/pixel | times x264 | times SVT-AV1 |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(clips, key=lambda row: row["camera"] != "static"):
        reads = ", ".join(f"{row[f'read_{count}']:.1f}" for count in READ_FRAMES if f"read_{count}" in row)
        lines.append(
            f"| {row['clip']} | {row['camera']} | {row['fixed_tokens']} | {row['tokens']:.0f} | {row['fewer']:.1f}x | "
            f"{row['updated_share']:.1%} | {row['psnr_fixed']:.2f} | {row['psnr_loss']:.2f} | {row['fixed_ms']:.1f} "
            f"({row['fixed_unpacked_ms']:.1f}) | {row['stream_ms']:.1f} ({row['stream_unpacked_ms']:.1f}) | "
            f"{row['fixed_ms'] / row['stream_ms']:.1f}x "
            f"({row['fixed_unpacked_ms'] / row['stream_unpacked_ms']:.1f}x) | "
            f"{row['fixed_decode_ms']:.1f} | {row['stream_decode_ms']:.1f} | "
            f"{row['fixed_decode_ms'] / row['stream_decode_ms']:.1f}x | "
            f"{row['fixed_patch_ms'] / row['stream_patch_ms']:.1f}x | {reads} | {row['bits_per_pixel']:.4f} | "
            f"{against(row, 'x264')} | {against(row, 'svt_av1')} |"
        )
    for camera in ("static", "moving"):
        rows = [row for row in clips if row["camera"] == camera]
        if not rows:
            continue
        fixed, ours = (sum(row[key] for row in rows) for key in ("fixed_ms", "stream_ms"))
        fixed_unpacked, unpacked = (sum(row[f"{key}_unpacked_ms"] for row in rows) for key in ("fixed", "stream"))
        fixed_decode, decode = (sum(row[f"{key}_decode_ms"] for row in rows) for key in ("fixed", "stream"))
        fixed_patch, patch = (sum(row[key] for row in rows) for key in ("fixed_patch_ms", "stream_patch_ms"))
        reads = [
            np.mean([row[f"read_{count}"] for row in rows if f"read_{count}" in row])
            for count in READ_FRAMES
            if any(f"read_{count}" in row for row in rows)
        ]
        lines.append(
            f"| **mean** | {camera} | | | **{np.mean([row['fewer'] for row in rows]):.1f}x** (least "
            f"{min(row['fewer'] for row in rows):.1f}x) | {np.mean([row['updated_share'] for row in rows]):.1%} | | "
            f"{np.mean([row['psnr_loss'] for row in rows]):.2f} (most {max(row['psnr_loss'] for row in rows):.2f}) | "
            f"{fixed / len(rows):.1f} ({fixed_unpacked / len(rows):.1f}) | {ours / len(rows):.1f} "
            f"({unpacked / len(rows):.1f}) | **{fixed / ours:.1f}x** ({fixed_unpacked / unpacked:.1f}x) | "
            f"{fixed_decode / len(rows):.1f} | {decode / len(rows):.1f} | **{fixed_decode / decode:.1f}x** | "
            f"**{fixed_patch / patch:.1f}x** | {', '.join(f'{value:.1f}' for value in reads)} | "
            f"{np.mean([row['bits_per_pixel'] for row in rows]):.4f} | {mean_against(rows, 'x264')} | "
            f"{mean_against(rows, 'svt_av1')} |"
        )
    return lines


def against(row: dict[str, Any], codec: str) -> str:
    """How many times the bits of a codec at the same PSNR the stream takes; its PSNR where that differs."""
    if f"{codec}_bits_per_pixel" not in row:
        return ""
    factor, reached = row["bits_per_pixel"] / row[f"{codec}_bits_per_pixel"], row[f"{codec}_psnr"]
    equal = abs(reached - (row["psnr_fixed"] - row["psnr_loss"])) < 0.05
    return f"{factor:.1f}x" + ("" if equal else f" (at {reached:.1f} dB)")


def mean_against(rows: list[dict[str, Any]], codec: str) -> str:
    """The same in the geometric mean over clips."""
    name = f"{codec}_bits_per_pixel"
    factors = [row["bits_per_pixel"] / row[name] for row in rows if name in row]
    return f"**{np.exp(np.mean(np.log(factors))):.1f}x**" if factors else ""


def whole_figures(report: dict[str, Any]) -> list[str]:
    """Figures that do not belong to one clip, as lines of Markdown."""
    lines = []
    if "detection" in report:
        found = report["detection"]
        lines += [
            f"| {OBJECT}x{OBJECT}-pixel object of contrast {CONTRAST} in noise of {SIGMA:g} gets a patch token in its "
            f"first frame | {found['seen']:.1%} of {found['trials']} |",
            f"| patches that this noise alone updates | {found['updated_by_noise']:.2%} |",
        ]
    labels = {"in_time": "consumer in time", "slow": "consumer five times too slow"}
    for name, label in labels.items() if "live" in report else ():
        one = report["live"][name]
        latency = one["latency_ms"]
        lines.append(
            f"| 640x480 camera, 15 frames/s, {label}: latency median, 95 %, largest "
            f"| {latency['p50']:.0f}, {latency['p95']:.0f}, {latency['p100']:.0f} ms; {one['dropped']} of "
            f"{one['frames'] + one['dropped']} frames dropped |"
        )
    if "cameras" in report:
        cameras_ = report["cameras"]
        lines.append(
            f"| four 320x240 cameras, frames/s one by one and together | {cameras_['one_by_one']:.0f} and "
            f"{cameras_['together']:.0f} ({cameras_['ratio']:.2f}x) |"
        )
    if "memory" in report:
        memory_ = report["memory"]
        lines.append(
            f"| growth of memory over {memory_['frames']} frames of 640x480 | {memory_['growth']:+.2%} of "
            f"{memory_['rss_mb']:.0f} MB |"
        )
    return ["", "| what | figure |", "|---|---|", *lines] if lines else []


def main() -> None:
    """Command line."""
    parser = common.parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of clips with their manifest.csv")
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of the decoder; int8 has its own table"
    )
    parser.add_argument("--max-loss-db", type=float, default=0.0, help="PSNR that streams may lose against fixed rate")
    parser.add_argument("--native", type=Path, help="folder of clips of the size of cameras with their manifest.csv")
    parser.add_argument("--frames", type=int, default=60, help="largest number of frames of each clip (default: 60)")
    parser.add_argument("--clips", nargs="*", help="names of clips (default: all)")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="parts besides the clips")
    parser.add_argument("--trials", type=int, default=500, help="new objects to look for")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each live run")
    text = "frames of the memory run (default: 3000; 30 minutes at 15/s are 27000)"
    parser.add_argument("--memory-frames", type=int, default=3000, help=text)
    options = parser.parse_args()
    with Tokenizer.load(options.model, threads=options.threads, precision=options.precision) as tokenizer:
        report = run(tokenizer, options.folder, options)
    name = "stream" + ("" if options.precision == "fp32" else f"-{options.precision}")
    common.publish(name, report, markdown(report), options.out)


if __name__ == "__main__":
    main()
