"""Checkpoint to ONNX bundle: ``python -m tatok_edge.export.bundle.onnx CHECKPOINT --out BUNDLE``.

Writes the five graphs with dynamic batch, height, width and token count, and the refiner
(:mod:`tatok_edge.export.bundle.refiner`). Each graph is checked with the ONNX checker, strict shape inference and
parity with eager PyTorch on real images. A bundle that fails a check is not written.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import shape_inference
from safetensors import safe_open
from torch import Tensor, nn

from tatok_edge.errors import BundleError
from tatok_edge.export.bundle import refiner
from tatok_edge.export.bundle.tool import run_tool
from tatok_edge.export.bundle.traced import OPSET, trace
from tatok_edge.files import put_in_place
from tatok_edge.format.entropy import save_tables
from tatok_edge.geometry import CELL, PATCH, THUMBNAIL, WINDOW
from tatok_edge.model.bundle import (
    ENTROPY,
    FORMAT_VERSION,
    GRAPHS,
    MANIFEST,
    REFINER,
    SCORE_ONE,
    SCORES,
    content_tag,
    save_scores,
)
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.training.checkpoint import CheckpointError, load_model
from tatok_edge.training.model import (
    PIXELS,
    WINDOW_PIXELS,
    Context,
    Decoder,
    GlobalEncoder,
    PatchEncoder,
    TaTok,
    decoder_state,
    image_to_cells,
    image_to_windows,
)

MIN_CODE_AGREEMENT = 0.999
MAX_PIXEL_DIFFERENCE = 2e-3
"""Largest difference between the exported graphs and eager PyTorch, as a share of full scale."""


class ExportError(RuntimeError):
    """An export that failed its checks; nothing was written."""


# --- the graphs as modules -----------------------------------------------------------------------


class _GlobalEncoder(nn.Module):
    def __init__(self, model: TaTok) -> None:
        super().__init__()
        self.network: GlobalEncoder = model.global_encoder
        self.fsq = model.fsq

    def forward(self, cells: Tensor) -> Tensor:
        return self.fsq.codes(self.network(cells), 1).to(torch.int32)


class _CellContext(nn.Module):
    def __init__(self, model: TaTok) -> None:
        super().__init__()
        self.network: Context = model.context
        self.fsq = model.fsq

    def forward(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        return self.network.cells(self.fsq.values(codes.float(), 1))


class _Context(nn.Module):
    def __init__(self, model: TaTok) -> None:
        super().__init__()
        self.network: Context = model.context

    def forward(self, coarse: Tensor) -> tuple[Tensor, ...]:
        return self.network.patches(coarse)


class _PatchEncoder(nn.Module):
    """Takes one flat feature row per patch, as the runtime gathers it, and gives the codes of the whole stack."""

    def __init__(self, model: TaTok) -> None:
        super().__init__()
        self.network: PatchEncoder = model.patch_encoder
        self.refinements = model.refinements
        self.local = model.local
        self.fsq = model.fsq
        self.depth = model.config.depth

    def forward(self, features: Tensor) -> Tensor:
        network = self.network
        hidden = torch.relu(network.blocks(network.stem(features)))
        # Slices, not the indices of the centre: an engine copies rows much faster than single values.
        windows = features[:, :WINDOW_PIXELS].reshape(-1, WINDOW, WINDOW * 3)
        low, high = (WINDOW - PATCH) // 2, (WINDOW + PATCH) // 2
        centre = windows[:, low:high, 3 * low : 3 * high].reshape(-1, PIXELS)
        left = centre - features[:, -PIXELS:]
        codes = [self.fsq.codes(network.first(left, hidden), 1)]
        values = [self.fsq.values(codes[0], 1)]
        for number in range(1, self.depth):
            left = left - self.local[number - 1](values[-1])
            codes.append(self.fsq.codes(self.refinements[number - 1](left, hidden, torch.cat(values, -1)), 1))
            values.append(self.fsq.values(codes[-1], 1))
        return torch.cat(codes, 1).to(torch.int32)


class _Decoder(nn.Module):
    def __init__(self, model: TaTok) -> None:
        super().__init__()
        self.network: Decoder = model.decoder

    def forward(self, state: Tensor, context: Tensor, mean: Tensor) -> Tensor:
        pixels: Tensor = self.network(state, context, mean)
        return pixels


@dataclass(frozen=True, slots=True)
class _Graph:
    module: nn.Module
    example: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    axes: dict[str, dict[int, str]]


def _graphs(model: TaTok) -> dict[str, _Graph]:
    config = model.config
    cells = {0: "batch", 2: "cell_rows", 3: "cell_columns"}
    patches = {0: "batch", 2: "patch_rows", 3: "patch_columns"}
    features = WINDOW_PIXELS + config.context_width + PIXELS
    return {
        "global_encoder": _Graph(
            _GlobalEncoder(model),
            (torch.zeros(1, PIXELS, 3, 4),),
            ("cells",),
            ("codes",),
            {"cells": cells, "codes": cells},
        ),
        "cell_context": _Graph(
            _CellContext(model),
            (torch.zeros(1, config.dims, 3, 4, dtype=torch.int32),),
            ("codes",),
            ("coarse", "mean"),
            {"codes": cells, "coarse": patches, "mean": patches},
        ),
        "context": _Graph(
            _Context(model),
            (torch.zeros(1, config.context_width, 12, 16),),
            ("coarse",),
            ("context", "log2_probs", "entropy", "expected"),
            {
                "coarse": patches,
                "context": patches,
                "log2_probs": patches,
                "entropy": patches,
                "expected": patches,
            },
        ),
        "patch_encoder": _Graph(
            _PatchEncoder(model),
            (torch.zeros(5, features),),
            ("features",),
            ("codes",),
            {"features": {0: "patches"}, "codes": {0: "patches"}},
        ),
        "decoder": _Graph(
            _Decoder(model),
            (
                torch.zeros(1, config.depth * (config.dims + 2), 12, 16),
                torch.zeros(1, config.context_width, 12, 16),
                torch.zeros(1, PIXELS, 12, 16),
            ),
            ("state", "context", "mean"),
            ("pixels",),
            {"state": patches, "context": patches, "mean": patches, "pixels": patches},
        ),
    }


def export_graph(graph: _Graph) -> bytes:
    """Exports one graph and checks it; returns the serialised ONNX model."""
    model = trace(graph.module, graph.example, graph.inputs, graph.outputs, graph.axes)
    onnx.checker.check_model(model, full_check=True)
    # Intermediate shapes stay out of the file: every engine infers its own.
    shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    return bytes(model.SerializeToString())


# --- parity ------------------------------------------------------------------------------------------


@torch.no_grad()
def check_parity(model: TaTok, graphs: dict[str, bytes], images: Tensor) -> dict[str, float]:
    """Compares the exported graphs with eager PyTorch on images ``(B, 3, H, W)`` in [-1, 1].

    Every graph gets the inputs that its counterpart got in eager PyTorch, so one different code does not change the
    later results.

    Returns:
        ``code_agreement`` (share of equal codes) and ``pixel_difference`` (largest, share of full scale).
    """
    session = OnnxSession(graphs, threads=torch.get_num_threads())
    cells = image_to_cells(images)
    encoded = model.encode(images)
    prior = encoded.prior
    global_codes = encoded.global_codes.int().numpy()
    got = session.run("global_encoder", {"cells": cells.contiguous().numpy()})["codes"]
    equal, total = int((got == global_codes).sum()), got.size
    of_cells = session.run("cell_context", {"codes": global_codes})
    outputs = {"mean": of_cells["mean"], **session.run("context", {"coarse": of_cells["coarse"]})}
    difference = 0.0
    for name in ("mean", "expected"):  # both in -1 to 1
        difference = _larger(difference, outputs[name], getattr(prior, name))
    if not all(np.isfinite(value).all() for value in outputs.values()):
        difference = float("nan")
    rows = [image_to_windows(images), prior.context.permute(0, 2, 3, 1), prior.mean.permute(0, 2, 3, 1)]
    features = torch.cat(rows, -1).flatten(0, 2).contiguous().numpy()
    codes = encoded.codes.permute(0, 2, 3, 1).flatten(0, 2).int().numpy()
    got = session.run("patch_encoder", {"features": features})["codes"]
    equal, total = equal + int((got == codes).sum()), total + got.size
    for share in (1.0, 0.35, 0.0):
        threshold = torch.quantile(encoded.information.flatten(), 1 - share)
        keep = (encoded.information >= threshold) if share else torch.zeros_like(encoded.information, dtype=torch.bool)
        state = decoder_state(encoded.values, keep.float(), prior.expected, prior.entropy)
        expected = model.decoder(state, prior.context, prior.mean)
        feeds = {"state": state, "context": prior.context, "mean": prior.mean}
        pixels = session.run("decoder", {k: v.contiguous().numpy() for k, v in feeds.items()})["pixels"]
        difference = _larger(difference, pixels, expected)
    return {"code_agreement": equal / total, "pixel_difference": difference}


def _larger(difference: float, got: NDArray[Any], expected: Tensor) -> float:
    """The larger of ``difference`` and the difference of two arrays in -1 to 1; NaN if either is NaN."""
    return float(np.maximum(difference, np.abs(got - expected.numpy()).max() / 2))


def score_arrays(model: TaTok) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """The arrays of the scores: the basis of :meth:`TaTok.score_basis` in integers, and the local reconstruction."""
    basis = np.round(model.score_basis().numpy() * SCORE_ONE).astype(np.int16)
    layers = [cast(nn.Linear, layer) for layer in model.local]
    local = np.stack([torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy() for layer in layers])
    return np.ascontiguousarray(basis), local


# --- the bundle ---------------------------------------------------------------------------------------


def export_bundle(checkpoint: Path, out: Path, *, notes: str = "") -> dict[str, Any]:
    """Exports a checkpoint to a bundle folder; an existing bundle is replaced only by a complete one.

    Args:
        checkpoint: The file that the training wrote at its end.
        out: Bundle folder.
        notes: Markdown to copy into the model card (licences, credits, known limits).

    Returns:
        The manifest.

    Raises:
        ExportError: a check failed.
        CheckpointError: the training of the checkpoint is not finished.
    """
    model, metadata = load_model(checkpoint)
    tables, images = _final_tensors(checkpoint)
    if out.exists() and not (out / MANIFEST).exists():
        raise ExportError(f"{out} exists and is not a bundle: give another --out")
    graphs = {name: export_graph(graph) for name, graph in _graphs(model).items()}
    samples = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    parity = check_parity(model, graphs, samples)
    if not parity["code_agreement"] >= MIN_CODE_AGREEMENT:
        raise ExportError(f"codes agree with PyTorch in {parity['code_agreement']:.4%}, at least 99.9 % are needed")
    if not parity["pixel_difference"] <= MAX_PIXEL_DIFFERENCE:
        raise ExportError(f"pixels differ from PyTorch by {parity['pixel_difference']:.2e}, at most 2e-3 is allowed")
    contents = {f"{name}.onnx": data for name, data in graphs.items()}
    contents["entropy.npz"] = save_tables(tables)
    contents["scores.npz"] = save_scores(*score_arrays(model))
    files = {
        Path(name).stem: {"file": name, "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    assert set(files) == {*GRAPHS, ENTROPY, SCORES}
    try:
        contents[refiner.FILE], section = refiner.make_refiner(model, samples)
    except BundleError as error:
        raise ExportError(str(error)) from None
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": model.config.name,
        "tag": content_tag(files).hex(),
        "levels": list(model.config.levels),
        "depth": model.config.depth,
        "context_width": model.config.context_width,
        "geometry": {"patch": PATCH, "window": WINDOW, "cell": CELL, "thumbnail": THUMBNAIL},
        "files": files,
        REFINER: section,
        "opset": OPSET,
        "precision": "fp32",
        "config": model.config.to_dict(),
        "parity": parity,
        "training": {
            **metadata.get("record", {}),  # type: ignore[dict-item]
            "options": metadata["options"],
            "steps": metadata["step"],
            "hours": round(float(metadata["seconds"]) / 3600, 3),  # type: ignore[arg-type]
        },
        "quality": metadata.get("evaluation", {}),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=out.name + ".", dir=out.parent))
    try:
        for name, data in contents.items():
            (temporary / name).write_bytes(data)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        (temporary / "MODEL_CARD.md").write_text(model_card(manifest, notes))
        temporary.chmod(0o755)
        put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _final_tensors(checkpoint: Path) -> tuple[dict[str, NDArray[np.integer[Any]]], NDArray[np.uint8]]:
    """Entropy tables and sample images of a finished checkpoint."""
    with safe_open(str(checkpoint), "np") as file:
        keys = set(file.keys())
        tables = {key[8:]: file.get_tensor(key) for key in keys if key.startswith("entropy.")}
        if not tables or "samples" not in keys:
            raise CheckpointError(f"{checkpoint}: training has not ended; finish it with --resume, then export")
        return tables, file.get_tensor("samples")


def model_card(manifest: dict[str, Any], notes: str) -> str:
    """Model card in Markdown, from the record of the training."""
    training, quality = manifest["training"], manifest["quality"]
    options = training["options"]
    lines = [
        f"# {manifest['name']}",
        "",
        f"TaTok image tokenizer: {manifest['config']['levels']} FSQ levels, one global token per 32x32 pixels, up to "
        f"{manifest['depth']} patch tokens per 8x8 pixels. Dynamic Token Filtering keeps those that carry information.",
        f"Parameters: {training.get('parameters', 0):,}. Content tag: `{manifest['tag']}`.",
        "",
        "## Training",
        f"- {training['steps']:,} steps of {options['batch']} random {options['crop']}x{options['crop']} crops, "
        f"{training['hours']:.2f} hours, {training.get('hardware', 'unknown hardware')}, "
        f"PyTorch {training.get('torch', '?')}",
        f"- AdamW, peak learning rate {options['lr']}, cosine; bf16 autocast; EMA {options['ema']}; "
        f"seed {options['seed']}; "
        f"rate weights {options['prior_weight']} (prior) and {options['rate_weight']} (encoder) per bit",
        f"- Pictures: {training.get('pictures', 0):,} (rows marked `use = {options['use']}`):",
    ]
    lines += [f"  - {source}: {count:,}" for source, count in sorted(training.get("sources", {}).items())]
    lines += [
        "",
        "## Quality on held-out pictures (256x256 centre crops, mean PSNR in dB)",
        "",
        "| tokens per patch | score `residual` | score `visual` | random |",
        "|---|---|---|---|",
    ]
    for key, value in quality.items():
        if key.startswith("psnr_residual_"):
            share = key.rsplit("_", 1)[1]
            others = [quality.get(f"psnr_{name}_{share}") for name in ("visual", "random")]
            lines.append(f"| {share} | {value:.2f} | {' | '.join('' if v is None else f'{v:.2f}' for v in others)} |")
    if "psnr_globals_only" in quality:
        lines.append(f"| 0 | {quality['psnr_globals_only']:.2f} | | |")
    bits = ", ".join(f"{quality.get(f'bits_of_token_{k + 1}', math.nan):.1f}" for k in range(manifest["depth"]))
    lines += ["", f"Information of the tokens of a stack, from the first on: {bits} bits.", ""]
    parity = manifest["parity"]
    lines += [
        f"Exported graphs against PyTorch: {parity['code_agreement']:.4%} of the codes equal, "
        f"pixels within {parity['pixel_difference']:.1e} of full scale.",
        "",
    ]
    return "\n".join(lines) + (f"\n{notes.strip()}\n" if notes else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tatok_edge.export.bundle.onnx", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="bundle folder to write")
    parser.add_argument("--notes", type=Path, help="Markdown file to copy into the model card")
    args = parser.parse_args(arguments)

    def work() -> dict[str, Any]:
        notes = args.notes.read_text() if args.notes else ""
        manifest = export_bundle(args.checkpoint, args.out, notes=notes)
        return {"bundle": str(args.out), "tag": manifest["tag"], **manifest["parity"]}

    return run_tool(work, ExportError, CheckpointError)


if __name__ == "__main__":
    sys.exit(main())
