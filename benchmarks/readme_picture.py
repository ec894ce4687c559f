"""Make the animation on top of README.md, and measure its clip: camera, tokens that are sent, decoded picture.

``python benchmarks/readme_picture.py`` writes docs/bottles.webp and benchmarks/results/readme.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import cv2
import numpy as np

import tatok_edge
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.geometry import Image
from tatok_edge.pictures.drawing import depth_overlay

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "examples" / "data" / "bottles.mp4"
WIDTH, HEIGHT, TITLE = 320, 180, 26
EVERY = 2
"""Only every second frame is drawn: a page loads a small file."""
SOURCE_FPS = 15
FPS = SOURCE_FPS / EVERY


def panel(title: str, image: Image) -> Image:
    """A picture below its title."""
    drawn = np.full((HEIGHT + TITLE, WIDTH + 4, 3), 255, np.uint8)
    drawn[TITLE:, 2:-2] = cv2.resize(image, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    cv2.putText(drawn, title, (4, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (30, 30, 30), 1, cv2.LINE_AA)
    return drawn


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "bottles.webp", help="the animation")
    args = parser.parse_args()
    from PIL import Image as Pictures

    tokenizer = tatok_edge.Tokenizer.load()
    frames = []
    sizes: list[tuple[int, int]] = []
    quality: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.ttk"
        with (
            tatok_edge.open_source(CLIP) as source,
            tatok_edge.Writer(path, tokenizer.entropy_model, name=tokenizer.name) as writer,
        ):
            originals = []
            stream = tatok_edge.StreamEncoder(tokenizer, max_loss_db=0)
            for shown in source:
                encoded = stream.encode(shown.image, index=shown.index, timestamp_us=shown.timestamp_us)
                writer.write_packet(encoded.packet)
                originals.append(shown.image)
        with tatok_edge.open(path, tokenizer=tokenizer) as recording:
            for original, frame in zip(originals, recording, strict=True):
                sizes.append((frame.n_tokens + frame.tokens.global_ids.size, frame.n_bytes))
                quality.append(psnr(original, frame.image))
                if frame.number % EVERY:
                    continue
                sent = depth_overlay(original, frame.tokens.depth_map())
                title = f"{frame.n_tokens} tokens sent, {frame.n_bytes} bytes"
                panels = [panel("camera", original), panel(title, sent), panel("decoded", frame.image)]
                frames.append(Pictures.fromarray(np.hstack(panels)))
    fixed = tokenizer.encode(originals[0], budget=tatok_edge.TokenBudget(max_depth=1))
    tokens, size = (float(np.mean(column)) for column in zip(*sizes, strict=True))
    result = {
        "model": tokenizer.name,
        "tag": tokenizer.tag.hex(),
        "frames": len(sizes),
        "fps": SOURCE_FPS,
        "tokens": round(tokens, 1),
        "fixed_tokens": fixed.n_tokens + fixed.n_globals,
        "kbit_per_second": round(8 * size * SOURCE_FPS / 1000, 1),
        "psnr_db": round(float(np.mean(quality)), 2),
    }
    (ROOT / "benchmarks" / "results" / "readme.json").write_text(json.dumps(result, indent=1) + "\n")
    duration = round(1000 / FPS)
    frames[0].save(args.out, save_all=True, append_images=frames[1:], duration=duration, loop=0, quality=75, method=6)


if __name__ == "__main__":
    main()
