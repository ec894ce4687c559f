"""Streams against the fixed rate without any times: tokens, PSNR in every frame, and patches through each network.

``python benchmarks/stream_fidelity.py ../shared/data/videos --frames 60``. The figures do not depend on how busy the
machine is. ``--keep FOLDER`` keeps the errors of the fixed rate, so that the next run takes a third of the time.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.session import GraphName, Session, Tensors
from tatok_edge.sources.open import open_source
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget

FIXED_RATE = TokenBudget(max_depth=1)


class CountingSession:
    """A session that counts the patches (or cells) that go through each graph."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.places: Counter[str] = Counter()
        """Patches or cells per graph."""

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Run a graph."""
        shape = next(iter(inputs.values())).shape
        self.places[graph] += shape[0] if len(shape) == 2 else shape[0] * shape[2] * shape[3]
        return self._session.run(graph, inputs)

    def close(self) -> None:
        """Close the session."""
        self._session.close()


def squared_error(image: Image, shown: Image) -> float:
    """Mean squared error in grey levels squared."""
    return float(np.mean((image.astype(np.float32) - shown) ** 2))


def decibel(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """PSNR of mean squared errors."""
    values: NDArray[np.float64] = 10 * np.log10(255**2 / np.maximum(errors, 1e-6))
    return values


def fixed_errors(tokenizer: Tokenizer, name: str, images: list[Image], keep: Path | None) -> NDArray[np.float64]:
    """Error of the fixed rate in each image."""
    kept = None if keep is None else keep / f"{tokenizer.tag.hex()}-{name}-{images[0].shape[0]}-{len(images)}.npy"
    if kept is not None and kept.exists():
        errors: NDArray[np.float64] = np.load(kept)
        return errors
    errors = np.array(
        [squared_error(i, tokenizer.decode(tokenizer.encode(i, budget=FIXED_RATE))) for i in images], np.float64
    )
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, errors)
    return errors


def clip_row(tokenizer: Tokenizer, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one clip."""
    with open_source(path) as source:
        images = [frame.image for _, frame in zip(range(options.frames), source, strict=False)]
    fixed = decibel(fixed_errors(tokenizer, path.stem, images, options.keep))
    session = tokenizer.networks.session
    counting = tokenizer.networks.session = CountingSession(session)
    encoder = StreamEncoder(tokenizer, max_loss_db=options.max_loss_db, motion=not options.no_motion)
    tokens, bits, errors = [], 0, []
    for image in images:
        frame = encoder.encode(image)
        tokens.append(frame.n_tokens + frame.n_globals + frame.n_vectors)
        bits += 8 * len(frame.packet)
        assert encoder.state is not None
        errors.append(squared_error(image, encoder.state.picture[: image.shape[0], : image.shape[1]]))
    tokenizer.networks.session = session
    loss = fixed - decibel(np.array(errors))
    places = len(images) * frame.tokens.n_patches
    full = frame.tokens.n_patches + frame.tokens.n_cells
    return {
        "fewer": full * len(images) / sum(tokens),
        "fewer_after": full * (len(images) - 1) / max(sum(tokens[1:]), 1),
        "loss": float(loss.mean()),
        "worst": float(loss.max()),
        "half": float(loss[len(loss) // 2 :].mean()),
        "bpp": bits / len(images) / (images[0].shape[0] * images[0].shape[1]),
        "share": {graph: count / places for graph, count in counting.places.items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of clips with their manifest.csv")
    parser.add_argument("--model", default="tatok-s8")
    parser.add_argument("--clips", nargs="*", help="names of clips; by default all")
    parser.add_argument("--frames", type=int, default=60, help="largest number of frames of each clip")
    parser.add_argument("--max-loss-db", type=float, default=0.0)
    parser.add_argument("--no-motion", action="store_true")
    parser.add_argument("--keep", type=Path, help="folder that keeps the errors of the fixed rate")
    options = parser.parse_args()
    with (options.folder / "manifest.csv").open(newline="") as file:
        clips = [(options.folder / row["file"], row["camera"]) for row in csv.DictReader(file)]
    rows: dict[str, list[dict[str, Any]]] = {"static": [], "moving": []}
    print("clip: tokens fewer (without the keyframe), loss in dB (largest, second half), bits per pixel, networks")
    with Tokenizer.load(options.model, threads=1) as tokenizer:
        for path, camera in sorted(clips, key=lambda clip: clip[1] != "static"):
            if options.clips and not any(path.stem.startswith(name) for name in options.clips):
                continue
            row = clip_row(tokenizer, path, options)
            rows[camera].append(row)
            networks = " ".join(f"{graph} {share:.3f}" for graph, share in row["share"].items())
            print(
                f"{path.stem:22} {row['fewer']:5.1f}x ({row['fewer_after']:6.1f}x)  {row['loss']:+.2f} dB "
                f"({row['worst']:+.2f} {row['half']:+.2f})  {row['bpp']:.4f} bpp  {networks}",
                flush=True,
            )
    for camera, found in rows.items():
        if found:
            fewer, loss = [row["fewer"] for row in found], [row["loss"] for row in found]
            print(
                f"{camera}: {np.mean(fewer):.1f}x in the mean, {min(fewer):.1f}x at least; "
                f"{np.mean(loss):+.2f} dB in the mean, {max(loss):+.2f} dB at most"
            )


if __name__ == "__main__":
    main()
