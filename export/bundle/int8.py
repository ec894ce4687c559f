"""An int8 decoder for a bundle: ``python -m tatok_edge.export.bundle.int8 BUNDLE --pictures DIR``.

Only the decoder is quantized. The encoders round their outputs to codes, so a small error there changes a token. The
tokens of ``precision="int8"`` are therefore those of fp32, bit for bit, and the bundle keeps its tag.

The convolutions take uint8 activations (one scale per tensor) and int8 weights (one scale per output channel) of
seven bits: with eight, CPUs without VNNI saturate inside a sum and compute another picture. Some convolutions read
the concatenated inputs or the residual stream, where channels of very different size share one scale. These channels
are scaled to similar sizes first, and the weights undo the factors (SmoothQuant, Xiao et al., arXiv 2211.10438).
Scales come from real pictures (ONNX Runtime's static calibration). The linear path from codes to pixels stays fp32.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tatok_edge.errors import BundleError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.evaluation.speed import measure
from tatok_edge.export.bundle.pictures import read_crops
from tatok_edge.export.bundle.tool import add_section, part_parser, run_tool
from tatok_edge.export.engines.precision import Recorder
from tatok_edge.model.bundle import INT8, Bundle, open_folder
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.session import GraphName
from tatok_edge.tokens.budget import TokenBudget

Feeds = Mapping[str, NDArray[Any]]

GRAPH: GraphName = "decoder"
SHARES = (1.0, 0.35, 0.1)
"""Shares of kept tokens at which the decoder is calibrated and checked."""
MAX_LOSS_DB = 0.1
"""Largest loss of mean PSNR in dB, int8 decoder against fp32 decoder, at each share."""
SMOOTHING = 0.75
"""Share of the difference between channels that moves from the activations into the weights."""
LEAST_FACTOR = 0.02
"""Limit of a channel's factor: it keeps rounding errors small in channels near zero."""
REPEATS = 30
"""Timed calls of each decoder."""
FLOAT_LAYERS = ("/network/skip/Conv",)
"""Small layers that stay fp32."""


# --- conversion -----------------------------------------------------------------------------------


def smooth(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """The same function, with channels of similar size where convolutions read inputs or the residual stream.

    Args:
        model: The decoder in fp32.
        feeds: Inputs of the graph on real pictures.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producer = {name: node for node in graph.node for name in node.output}
    targets = [
        node
        for node in graph.node
        if node.op_type == "Conv"
        and node.name not in FLOAT_LAYERS
        and (_groups(node) > 1 or (node.input[0] in producer and producer[node.input[0]].op_type in ("Add", "Concat")))
    ]
    largest = _largest_per_channel(model, [node.input[0] for node in targets], feeds)
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node in targets:
            name, weight_name = node.input[0], node.input[1]
            weight = numpy_helper.to_array(weights[weight_name])
            size = np.maximum(largest[name], 1e-4)
            if _groups(node) > 1:  # every channel has a weight scale of its own: nothing is lost there
                factor = size / size.max()
            else:
                column = np.maximum(np.abs(weight).max((0, 2, 3)), 1e-6)
                factor = size**SMOOTHING / column ** (1 - SMOOTHING)
                factor /= factor.max()
            factor = np.maximum(factor, LEAST_FACTOR).astype(np.float32)
            shape = (-1, 1, 1, 1) if _groups(node) > 1 else (1, -1, 1, 1)
            weights[weight_name].CopyFrom(numpy_helper.from_array(weight * factor.reshape(shape), weight_name))
            smoothed = f"{node.name}.smoothed"
            graph.initializer.append(numpy_helper.from_array((1 / factor).reshape(1, -1, 1, 1), f"{smoothed}.factor"))
            nodes.append(helper.make_node("Mul", [name, f"{smoothed}.factor"], [smoothed], name=f"{smoothed}/Mul"))
            node.input[0] = smoothed
        nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    onnx.checker.check_model(result, full_check=True)
    return result


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _largest_per_channel(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]
) -> dict[str, NDArray[np.float32]]:
    """The largest absolute value of each channel of some activations ``(B, C, H, W)``."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    unique = sorted(set(names))
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in unique)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    largest: dict[str, NDArray[np.float32]] = {}
    for feed in feeds:
        for name, value in zip(unique, session.run(unique, dict(feed)), strict=True):
            here = np.abs(value).max((0, 2, 3))
            largest[name] = np.maximum(largest.get(name, here), here)
    return largest


def quantize(model: onnx.ModelProto, feeds: Sequence[Feeds]) -> onnx.ModelProto:
    """The decoder with int8 convolutions, in QDQ form.

    Args:
        model: The decoder in fp32.
        feeds: Inputs of the graph on real pictures, all of one size.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Feeds] = iter(feeds)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            feed = next(self._feeds, None)
            return None if feed is None else dict(feed)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (str(Path(folder) / name) for name in ("in.onnx", "prepared.onnx", "out.onnx"))
        onnx.save(smooth(model, feeds), source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=list(FLOAT_LAYERS),
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
        )
        return onnx.load(target)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the output and the warnings of ONNX Runtime's quantizer: they are expected."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


# --- inputs -------------------------------------------------------------------------------------


def decoder_inputs(bundle: Bundle, pictures: Sequence[NDArray[np.uint8]], threads: int) -> list[Feeds]:
    """The inputs of the decoder for each picture at each of :data:`SHARES`."""
    with Tokenizer.load(bundle.path, backend="onnxruntime", threads=threads) as tokenizer:
        recorder = Recorder(tokenizer.networks.session)
        recorded = tokenizer.with_session(recorder)
        for picture in pictures:
            for share in SHARES:
                recorded.decode(recorded.encode(picture, budget=TokenBudget(keep=share)))
    return recorder.feeds[GRAPH]


# --- the check --------------------------------------------------------------------------------------


def check(bundle: Bundle, decoder: bytes, pictures: Sequence[NDArray[np.uint8]], threads: int) -> dict[str, Any]:
    """Quality and speed of another decoder beside the decoder of the bundle.

    Returns:
        By share of kept tokens the mean PSNR in dB of both decoders and the loss; between their pictures the mean PSNR;
        and the median time of each for one picture, in ms.
    """
    graphs = bundle.graphs()
    with Tokenizer.load(bundle.path, backend="onnxruntime", threads=threads) as tokenizer:
        sessions = (
            OnnxSession(graphs, threads=threads),
            OnnxSession({**graphs, GRAPH: decoder}, threads=threads),
        )
        decoders = [tokenizer.with_session(session) for session in sessions]
        shares, between = {}, []
        for share in SHARES:
            rows = []
            for picture in pictures:
                frame = tokenizer.encode(picture, budget=TokenBudget(keep=share))
                images = [other.decode(frame) for other in decoders]
                rows.append([psnr(picture, image) for image in images])
                between.append(psnr(images[0], images[1]))
            fp32, int8 = np.mean(rows, 0)
            shares[f"{share:g}"] = {
                "fp32_db": round(float(fp32), 3),
                "int8_db": round(float(int8), 3),
                "loss_db": round(float(fp32 - int8), 4),
            }
        feeds = decoder_inputs(bundle, pictures[:1], threads)[0]
        times = [measure(partial(session.run, GRAPH, feeds), REPEATS)["median"] for session in sessions]
    return {
        "pictures": len(pictures),
        "shares": shares,
        "between_db": round(float(np.mean(between)), 2),
        "fp32_ms": times[0],
        "int8_ms": times[1],
        "threads": threads,
    }


# --- the bundle -------------------------------------------------------------------------------------


def add_int8(path: Path, pictures: Path, *, threads: int = 2) -> dict[str, Any]:
    """Puts an int8 decoder into a bundle folder, if it passes its check; the rest of the bundle stays.

    Args:
        path: Bundle folder.
        pictures: Folder of pictures of at least 256x256 pixels; half give the scales, half check the result.
        threads: Threads of the networks.

    Returns:
        The record of :func:`check`.

    Raises:
        BundleError: not a bundle folder, or the int8 decoder loses more than :data:`MAX_LOSS_DB`.
        InputError: too few pictures.
    """
    bundle = open_folder(path)
    crops = read_crops(pictures)
    feeds = decoder_inputs(bundle, crops[::2], threads)
    model = quantize(onnx.load_model_from_string(bundle.read(GRAPH)), feeds)
    data = bytes(model.SerializeToString())
    record = check(bundle, data, crops[1::2], threads)
    worst = max(row["loss_db"] for row in record["shares"].values())
    if not worst <= MAX_LOSS_DB:
        raise BundleError(
            f"{path}: its decoder in int8 loses {worst:.3f} dB, at most {MAX_LOSS_DB} dB are allowed; "
            "nothing was written"
        )
    file = f"{GRAPH}.{INT8}.onnx"
    section = {
        "files": {GRAPH: {"file": file, "sha256": hashlib.sha256(data).hexdigest()}},
        "check": record,
        "onnxruntime": ort.__version__,
    }
    add_section(bundle, INT8, section, file, data)
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = part_parser("tatok_edge.export.bundle.int8", "Add an int8 decoder to a bundle.")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    return run_tool(lambda: add_int8(args.bundle, args.pictures, threads=args.threads))


if __name__ == "__main__":
    sys.exit(main())
