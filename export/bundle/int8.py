"""int8 graphs for a bundle: ``python -m tatok_edge.export.bundle.int8 BUNDLE --pictures DIR``.

The context network, the patch encoder and the decoder are quantized (:mod:`tatok_edge.export.bundle.quantize`), each
only where it is faster and where encoding and decoding with it lose at most 0.1 dB. The global encoder and the context
on cells stay fp32: they work on a sixteenth of the places.

The tokens of ``precision="int8"`` need not be those of fp32, only as good. They are ordinary tokens: codes, positions
and the entropy model are integers, so both precisions read each other's packets, and the bundle keeps its tag. What
decides a level stays fp32: the last layers before codes, their rounding, and the linear path from residual to codes and
from codes to pixels.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from tatok_edge.errors import BundleError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.evaluation.speed import measure
from tatok_edge.export.bundle.pictures import read_crops
from tatok_edge.export.bundle.quantize import Feeds, equalize, fold, quantize, smooth, split, wide_layers
from tatok_edge.export.bundle.tool import add_section, part_parser, run_tool
from tatok_edge.export.engines.precision import Recorder
from tatok_edge.geometry import PATCH_VALUES, WINDOW_VALUES
from tatok_edge.model.bundle import INT8, INT8_GRAPHS, Bundle, open_folder
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.session import GraphName
from tatok_edge.tokens.budget import TokenBudget

KEEPS = (0.35, 1.0, 2.0, 4.0)
"""Tokens per patch at which the graphs are calibrated and checked, up to the depth of the model."""
MAX_LOSS_DB = 0.1
"""Largest loss of mean PSNR in dB of encoding and decoding, int8 against fp32, at each budget."""
BLOCK_LAYER = re.compile(r"/blocks/blocks\.(\d+)/(expand|project)/Gemm")
REFINEMENT_PROJECTION = re.compile(r"/refinements\.\d+/block/project/Gemm")
REPEATS = 30
"""Timed calls of each graph."""


# --- conversion -----------------------------------------------------------------------------------


def keeps(depth: int) -> list[float]:
    """The budgets of :data:`KEEPS` that a model of this depth allows."""
    return [keep for keep in KEEPS if keep <= depth]


def quantized(bundle: Bundle, name: GraphName, feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """A graph of a bundle with int8 layers.

    Args:
        bundle: The bundle.
        name: One of :data:`~tatok_edge.model.bundle.INT8_GRAPHS`.
        feeds: Inputs of the graph on real pictures.
    """
    model = fold(onnx.load_model_from_string(bundle.read(name)))
    if name == "patch_encoder":
        model = split(model, {"features": (WINDOW_VALUES, bundle.context_width, PATCH_VALUES)})
    layers = wide_layers(model, bundle.depth * len(bundle.levels), exact=("state",)) - layers_before_codes(model)
    model = equalize(model, feeds, layers)
    if name == "decoder":
        model = smooth(model, feeds, layers)
    return quantize(model, feeds, layers)


def layers_before_codes(model: onnx.ModelProto) -> set[str]:
    """The last block of the patch encoder, and the last layer of each refinement.

    Codes come straight from their sums. In int8 these few layers would cost the most quality, and gain little time.
    """
    names = [node.name for node in model.graph.node if node.op_type == "Gemm"]
    blocks = {name: int(match[1]) for name in names if (match := BLOCK_LAYER.fullmatch(name))}
    last = {name for name, number in blocks.items() if number == max(blocks.values())}
    return last | {name for name in names if REFINEMENT_PROJECTION.fullmatch(name)}


# --- inputs -------------------------------------------------------------------------------------


def graph_inputs(bundle: Bundle, pictures: Sequence[NDArray[np.uint8]], threads: int) -> dict[GraphName, list[Feeds]]:
    """The inputs of the graphs for each picture: of all patches, and of the decoder at each of :data:`KEEPS`."""
    with Tokenizer.load(bundle.path, backend="onnxruntime", threads=threads) as tokenizer:
        session = tokenizer.networks.session
        encoded, decoded = Recorder(session), Recorder(session)
        encoder, decoder = tokenizer.with_session(encoded), tokenizer.with_session(decoded)
        for picture in pictures:
            result = encoder.encode_detailed(picture, budget=TokenBudget(min_tokens=picture.size))
            for keep in keeps(bundle.depth):
                decoder.decode(tokenizer.reduce(result, TokenBudget(keep=keep)))
    return {
        "context": encoded.feeds["context"],
        "patch_encoder": encoded.feeds["patch_encoder"],
        "decoder": decoded.feeds["decoder"],
    }


# --- the check --------------------------------------------------------------------------------------


class Checker:
    """Quality of int8 graphs beside those of a bundle, on pictures.

    Args:
        bundle: The bundle.
        pictures: Pictures that did not give the scales.
        threads: Threads of the networks.
    """

    def __init__(self, bundle: Bundle, pictures: Sequence[NDArray[np.uint8]], threads: int) -> None:
        self._bundle = bundle
        self._pictures = pictures
        self._threads = threads
        self._graphs: dict[str, bytes] = bundle.graphs()
        self._fp32 = self._means({}, {})

    def check(self, graphs: Mapping[GraphName, bytes]) -> dict[str, dict[str, float]]:
        """Mean PSNR in dB and losses by tokens per patch.

        Returns:
            For each budget ``fp32_db``, ``int8_db`` (encoded and decoded in int8), ``mixed_db`` (decoded in fp32), and
            ``loss_db``, the larger loss of the two.
        """
        int8 = self._means(graphs, graphs)
        mixed = self._means(graphs, {})
        return {
            f"{keep:g}": {
                "fp32_db": round(fp32, 3),
                "int8_db": round(int8[keep], 3),
                "mixed_db": round(mixed[keep], 3),
                "loss_db": round(fp32 - min(int8[keep], mixed[keep]), 4),
            }
            for keep, fp32 in self._fp32.items()
        }

    def _means(self, encoding: Mapping[GraphName, bytes], decoding: Mapping[GraphName, bytes]) -> dict[float, float]:
        """Mean PSNR by tokens per patch with these graphs in place of those of the bundle."""
        means = {}
        with self._open(encoding) as encoder, self._open(decoding) as decoder:
            for keep in keeps(self._bundle.depth):
                budget = TokenBudget(keep=keep)
                decoded = (decoder.decode(encoder.encode(picture, budget=budget)) for picture in self._pictures)
                means[keep] = float(np.mean([psnr(*pair) for pair in zip(self._pictures, decoded, strict=True)]))
        return means

    def _open(self, graphs: Mapping[GraphName, bytes]) -> Tokenizer:
        with Tokenizer.load(self._bundle.path, backend="onnxruntime", threads=self._threads) as tokenizer:
            return tokenizer.with_session(
                OnnxSession(
                    {**self._graphs, **{str(name): data for name, data in graphs.items()}}, threads=self._threads
                )
            )


def times(bundle: Bundle, name: GraphName, data: bytes, feeds: Feeds, threads: int) -> dict[str, float]:
    """Median time of a graph in ms, in fp32 and in int8."""
    found = {}
    for precision, graph in (("fp32_ms", bundle.read(name)), ("int8_ms", data)):
        session = OnnxSession({name: graph}, threads=threads)
        found[precision] = measure(partial(session.run, name, feeds), REPEATS)["median"]
    return found


def choose(
    candidates: Mapping[GraphName, bytes], speed: Mapping[GraphName, Mapping[str, float]], checker: Checker
) -> tuple[dict[GraphName, bytes], dict[str, dict[str, float]], dict[GraphName, str]]:
    """The graphs that are faster, as long as all together lose at most :data:`MAX_LOSS_DB`.

    Returns:
        The graphs, their check, and why others stay fp32.
    """
    chosen: dict[GraphName, bytes] = {}
    passed: dict[str, dict[str, float]] = {}
    refused: dict[GraphName, str] = {}
    for name, data in candidates.items():
        fp32, int8 = speed[name]["fp32_ms"], speed[name]["int8_ms"]
        if int8 >= fp32:
            refused[name] = f"not faster: {int8:.2f} ms, in fp32 {fp32:.2f} ms"
            continue
        rows = checker.check({**chosen, name: data})
        worst = max(row["loss_db"] for row in rows.values())
        if worst <= MAX_LOSS_DB:
            chosen[name], passed = data, rows
        else:
            refused[name] = f"loses {worst:.3f} dB, at most {MAX_LOSS_DB} dB are allowed"
    return chosen, passed, refused


# --- the bundle -------------------------------------------------------------------------------------


def add_int8(path: Path, pictures: Path, *, threads: int = 2) -> dict[str, Any]:
    """Puts int8 graphs into a bundle folder, those that pass their check; the rest of the bundle stays.

    Args:
        path: Bundle folder.
        pictures: Folder of pictures of at least 256x256 pixels; half give the scales, half check the result.
        threads: Threads of the networks.

    Returns:
        The record: number of pictures, quality by tokens per patch, times of each graph, and why graphs stay fp32.

    Raises:
        BundleError: not a bundle folder, or no int8 graph passes.
        InputError: too few pictures.
    """
    bundle = open_folder(path)
    crops = read_crops(pictures)
    feeds = graph_inputs(bundle, crops[::2], threads)
    candidates: dict[GraphName, bytes] = {
        name: bytes(quantized(bundle, name, feeds[name]).SerializeToString()) for name in INT8_GRAPHS
    }
    speed = {name: times(bundle, name, data, feeds[name][-1], threads) for name, data in candidates.items()}
    chosen, rows, refused = choose(candidates, speed, Checker(bundle, crops[1::2], threads))
    if not chosen:
        reasons = "; ".join(f"{name} {reason}" for name, reason in refused.items())
        raise BundleError(f"{path}: no graph passes in int8 ({reasons}); nothing was written")
    record = {
        "pictures": len(crops[1::2]),
        "keeps": rows,
        "graphs": {name: {key: round(value, 3) for key, value in row.items()} for name, row in speed.items()},
        "fp32": refused,
        "threads": threads,
    }
    contents = {f"{name}.{INT8}.onnx": data for name, data in chosen.items()}
    section = {
        "files": {
            name: {"file": f"{name}.{INT8}.onnx", "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in chosen.items()
        },
        "check": record,
        "onnxruntime": ort.__version__,
    }
    add_section(bundle, INT8, section, contents)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = part_parser("tatok_edge.export.bundle.int8", "Add int8 graphs to a bundle.")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    return run_tool(lambda: add_int8(args.bundle, args.pictures, threads=args.threads))


if __name__ == "__main__":
    sys.exit(main())
