"""The refiner of a bundle: ``python -m tatok_edge.export.bundle.refiner BUNDLE --pictures DIR``.

The refiner is the decoder with its derivative. From the decoder's state and the original pixels, it computes the
squared error of every patch and the slope of the total error along every code value. ``TokenBudget(refine=N)`` uses it
to correct tokens by the error of the decoded picture (:mod:`tatok_edge.model.refine`).

The derivative is written out as convolutions, so any ONNX engine runs it; it is checked against PyTorch's. The graph
proposes tokens and decodes none, so its weights are stored in float16, and it is not part of the bundle's tag.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from tatok_edge.errors import BundleError
from tatok_edge.export.bundle.pictures import read_crops
from tatok_edge.export.bundle.tool import add_section, part_parser, run_tool
from tatok_edge.export.bundle.traced import trace
from tatok_edge.model.bundle import REFINER, open_folder
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.training.bundle import load_from_bundle
from tatok_edge.training.model import PIXELS, Block, Decoder, Encoded, TaTok, decoder_state, pixels_to_grid

MAX_DIFFERENCE = 0.03
"""Largest difference between the exported graph, whose weights are rounded, and PyTorch's derivative, as a share of the
derivative's norm."""
FILE = "refiner.onnx"
SMALL = 1024
"""Tensors with fewer values stay in float32."""
LATTICE = 6
"""Distance in patches at which the decoder's responses to single codes are assumed not to overlap."""
STEP = 0.25
"""Change of a code value for which the curvature is measured; values are in (-1, 1)."""

LEAST_CURVATURE = 1e-3
"""Curvature of a code dimension that the decoder ignores: bundles hold values above 0."""


class Refiner(nn.Module):
    """A decoder and its derivative.

    Takes the decoder's ``state``, ``context`` and ``mean``, the ``target`` pixels ``(B, 192, h, w)`` in [-1, 1] and
    their ``weight`` (1, or 0 outside the image). Returns ``error`` ``(B, h, w)``, the weighted squared error of each
    patch, and ``slope`` ``(B, K * D, h, w)``, the derivative of the sum of all errors by the code values of the stacks.
    """

    def __init__(self, decoder: Decoder, dims: int) -> None:
        super().__init__()
        self.network = decoder
        self.dims = dims

    def forward(
        self, state: Tensor, context: Tensor, mean: Tensor, target: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        network = self.network
        x = network.stem(torch.cat([state, context, mean], 1))
        active = []
        blocks = [block for block in network.blocks if isinstance(block, Block)]
        for block in blocks:
            inner = block.expand(block.depthwise(x))
            active.append((inner > 0).to(inner.dtype))
            x = x + block.project(F.relu(inner))
        pixels = mean + network.skip(state) + network.out(network.narrow(x))
        difference = (pixels - target) * weight
        error = (difference * difference).sum(1)
        pixel_slope = 2 * difference * weight
        slope = _transposed(network.narrow, _transposed(network.out, pixel_slope))
        for block, mask in zip(reversed(blocks), reversed(active), strict=True):
            inner = _transposed(block.project, slope) * mask
            slope = slope + _transposed(block.depthwise, _transposed(block.expand, inner))
        slope = _transposed(network.stem, slope)[:, : self.dims]
        slope = slope + _transposed(network.skip, pixel_slope)[:, : self.dims]
        return error, slope


def _transposed(layer: nn.Conv2d, slope: Tensor) -> Tensor:
    """The slope along the input of a size-keeping convolution of stride 1, from the slope along its output."""
    weight = layer.weight
    if layer.groups == 1:
        weight = weight.transpose(0, 1)
    if weight.shape[-1] > 1:
        weight = weight.flip(2, 3)
    return F.conv2d(slope, weight, padding=layer.padding, groups=layer.groups)


def export_refiner(model: TaTok) -> bytes:
    """The refiner of a model as a serialised ONNX graph.

    Every weight is stored once, in float16; the engine transposes the weights on loading.
    """
    config = model.config
    refiner = Refiner(model.decoder, config.depth * config.dims).eval()
    grid = (1, -1, 8, 12)
    shapes = {"state": config.depth * (config.dims + 2), "context": config.context_width, "mean": PIXELS}
    shapes |= {"target": PIXELS, "weight": PIXELS}
    example = tuple(torch.zeros(1, channels, *grid[2:]) for channels in shapes.values())
    patches = {0: "batch", 2: "patch_rows", 3: "patch_columns"}
    axes = dict.fromkeys((*shapes, "slope"), patches) | {"error": {0: "batch", 1: "patch_rows", 2: "patch_columns"}}
    graph = trace(refiner, example, list(shapes), ["error", "slope"], axes, fold=False)
    _masks_as_hard_sigmoid(graph)
    _store_as_float16(graph)
    onnx.checker.check_model(graph, full_check=True)
    return bytes(graph.SerializeToString())


def _masks_as_hard_sigmoid(model: onnx.ModelProto) -> None:
    """``Cast(x > 0)`` as a steep HardSigmoid, which ONNX Runtime computes in the layout of the convolutions around it.

    With a comparison, every mask costs two changes of layout: the whole graph takes a third more time.
    """
    graph = model.graph
    masks = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "Cast"}
    nodes = []
    for node in graph.node:
        if node.op_type == "Greater":
            output = masks[node.output[0]]
            node = helper.make_node("HardSigmoid", [node.input[0]], [output], alpha=1e20, beta=0.0)
        elif node.op_type == "Cast":
            continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _store_as_float16(model: onnx.ModelProto) -> None:
    """Large initializers in float16, each behind a Cast that engines fold on loading."""
    graph = model.graph
    casts = []
    for item in graph.initializer:
        array = numpy_helper.to_array(item)
        if item.data_type != TensorProto.FLOAT or array.size < SMALL:
            continue
        name = item.name
        item.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.float16"))
        casts.append(helper.make_node("Cast", [item.name], [name], to=TensorProto.FLOAT, name=f"{name}.cast"))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


# --- check and curvature ------------------------------------------------------------------------------


def _inputs(model: TaTok, image: Tensor, encoded: Encoded, keep: Tensor) -> dict[str, Tensor]:
    prior = encoded.prior
    state = decoder_state(encoded.values, keep.float(), prior.expected, prior.entropy)
    target = pixels_to_grid(image, model.config.patch)
    return {
        "state": state,
        "context": prior.context,
        "mean": prior.mean,
        "target": target,
        "weight": torch.ones_like(target),
    }


def difference_from_autograd(model: TaTok, graph: bytes, images: Tensor) -> float:
    """Norm of the difference of the graph's outputs from PyTorch's, relative; the larger of error and slope."""
    session = OnnxSession({"refiner": graph}, threads=torch.get_num_threads())
    with torch.no_grad():
        encoded = model.encode(images)
    keep = encoded.information > encoded.information.median()
    inputs = _inputs(model, images, encoded, keep)
    state = inputs["state"].clone().requires_grad_(True)
    pixels = model.decoder(state, inputs["context"], inputs["mean"])
    error = (pixels - inputs["target"]).pow(2).sum(1)
    (slope,) = torch.autograd.grad(error.sum(), state)
    outputs = session.run("refiner", {k: v.detach().contiguous().numpy() for k, v in inputs.items()})
    worst = 0.0
    for name, expected in (("error", error.detach()), ("slope", slope[:, : model.config.depth * model.config.dims])):
        distance = np.linalg.norm(outputs[name] - expected.numpy()) / np.linalg.norm(expected.numpy())
        worst = float(np.maximum(worst, distance))  # NaN stays
    return worst


@torch.no_grad()
def curvature(model: TaTok, images: Tensor) -> list[float]:
    """Squared norm of the decoder's response to one code, per dimension of a stack and squared change of the value.

    The mean over patches whose responses do not overlap. It is half of the second derivative of the error: a decoder of
    ReLUs is linear nearly everywhere.
    """
    encoded = model.encode(images)
    everything = torch.ones_like(encoded.information)
    inputs = _inputs(model, images, encoded, everything)
    base = model.decoder(inputs["state"], inputs["context"], inputs["mean"])
    moved = torch.zeros_like(everything[:, 0])
    moved[:, LATTICE // 2 :: LATTICE, LATTICE // 2 :: LATTICE] = STEP
    result = []
    for dim in range(model.config.depth * model.config.dims):
        state = inputs["state"].clone()
        # Towards the middle: the outermost values are as far as codes go.
        state[:, dim] -= torch.sign(state[:, dim]) * moved
        response = model.decoder(state, inputs["context"], inputs["mean"]) - base
        result.append(max(float(response.pow(2).sum() / moved.pow(2).sum()), LEAST_CURVATURE))
    return result


# --- the bundle -------------------------------------------------------------------------------------


def make_refiner(model: TaTok, images: Tensor) -> tuple[bytes, dict[str, Any]]:
    """The refiner's graph and its section of a manifest.

    Raises:
        BundleError: the graph does not compute PyTorch's derivative.
    """
    data = export_refiner(model)
    difference = difference_from_autograd(model, data, images)
    if not difference <= MAX_DIFFERENCE:
        raise BundleError(
            f"the refiner differs from PyTorch's derivative by {difference:.2e}, at most {MAX_DIFFERENCE:g} is allowed"
        )
    return data, {
        "files": {"refiner": {"file": FILE, "sha256": hashlib.sha256(data).hexdigest()}},
        "curvature": [round(value, 4) for value in curvature(model, images)],
        "difference": float(f"{difference:.2e}"),
    }


def add_refiner(path: Path, pictures: Path) -> dict[str, Any]:
    """Puts a refiner into a bundle folder; the rest of the bundle stays.

    Args:
        path: Bundle folder.
        pictures: Folder of pictures of at least 256x256 pixels, on which the curvature is measured.

    Returns:
        The refiner's section of the manifest.

    Raises:
        BundleError: not a bundle folder of this model, or a graph that fails its check.
        InputError: too few pictures.
    """
    bundle = open_folder(path)
    images = torch.from_numpy(np.stack(read_crops(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1
    data, section = make_refiner(load_from_bundle(bundle), images)
    add_section(bundle, REFINER, section, {FILE: data})
    return section


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    args = part_parser("tatok_edge.export.bundle.refiner", "Add a refiner to a bundle.").parse_args(arguments)
    return run_tool(lambda: add_refiner(args.bundle, args.pictures))


if __name__ == "__main__":
    sys.exit(main())
