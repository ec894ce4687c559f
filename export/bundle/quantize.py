"""Graphs with int8 products: their layers are folded, split and smoothed, then take quantized inputs and weights.

A quantized convolution or matrix product takes uint8 activations (one scale per tensor) and int8 weights (one scale per
output channel) of seven bits: with eight, CPUs without VNNI saturate inside a sum and compute something else. Scales
come from real pictures. Sums are of integers, so the result does not depend on their order.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

Feeds = Mapping[str, NDArray[Any]]

LINEAR = ("Conv", "Gemm")
SMOOTHING = 0.75
"""Share of the difference between channels that moves from the activations into the weights."""
LEAST_FACTOR = 0.02
"""Limit of a channel's factor: it keeps rounding errors small in channels near zero."""
TAIL = 1e-5
"""Share of the values of a picture at each end that may lie outside the range of a tensor."""
SAMPLED = 5
"""Every so many values of an activation are looked at for its range."""
STEPS = 255
"""Steps of an activation."""
WEIGHT_STEPS = 64
"""Largest integer of a weight."""
LEAST_SCALE = 1e-8


class _Graph:
    """A copy of a model, to be changed: its nodes, weights, and who makes and reads each value."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        graph = self.model.graph
        self.weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            if node.op_type == "Identity" and node.input[0] in self.weights:  # equal weights, which the export shares
                self.weights[node.output[0]] = self.weights[node.input[0]]
            else:
                self.nodes.append(node)
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}

    def finished(self, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
        """The model with these nodes, without what nobody reads.

        Raises:
            onnx.checker.ValidationError: the nodes are no valid graph.
        """
        wanted, left = set(self.outputs), []
        for node in reversed(nodes):
            if wanted.intersection(node.output):
                left.append(onnx.NodeProto.FromString(node.SerializeToString()))
                wanted.update(node.input)
        graph = self.model.graph
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(reversed(left))
        tensors = (numpy_helper.from_array(array, name) for name, array in self.weights.items() if name in wanted)
        graph.initializer.extend(tensors)
        onnx.checker.check_model(self.model, full_check=True)
        return self.model


def _groups(node: onnx.NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


# --- the same function, in another form ---------------------------------------------------------------


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function, without the depthwise 1x1 convolutions before others: these take over factor and bias."""
    graph = _Graph(model)
    nodes = []
    for node in graph.nodes:
        readers = graph.readers.get(node.output[0], [])
        if (
            node.op_type != "Conv"
            or _groups(node) == 1
            or graph.weights[node.input[1]].shape[1:] != (1, 1, 1)
            or node.output[0] in graph.outputs
            or [reader.op_type for reader in readers] != ["Conv"]
            or _groups(readers[0]) > 1
            or graph.weights[readers[0].input[1]].shape[2:] != (1, 1)
        ):
            nodes.append(node)
            continue
        factor, bias = (graph.weights[name] for name in node.input[1:])
        _, weight_name, bias_name = readers[0].input
        weight = graph.weights[weight_name]
        graph.weights[bias_name] = graph.weights[bias_name] + weight[:, :, 0, 0] @ bias
        graph.weights[weight_name] = weight * factor.reshape(1, -1, 1, 1)
        readers[0].input[0] = node.input[0]
    return graph.finished(nodes)


def split(model: onnx.ModelProto, widths: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The same function, with a product of its own for each part of a concatenated input of a ``Gemm``.

    Args:
        model: The graph.
        widths: Inputs of the graph ``(n, sum of the widths)`` that are concatenations, and the widths of their parts.
    """
    graph = _Graph(model)
    inferred = shape_inference.infer_shapes(model).graph
    width = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in inferred.value_info
        if len(value.type.tensor_type.shape.dim) == 2
    }
    parts = {name: [f"{name}.{number}" for number in range(len(sizes))] for name, sizes in widths.items()}
    nodes = []
    for name, sizes in widths.items():
        graph.weights[f"{name}.sizes"] = np.array(sizes, np.int64)
        nodes.append(helper.make_node("Split", [name, f"{name}.sizes"], parts[name], axis=1, name=f"{name}/Split"))
        width.update(zip(parts[name], sizes, strict=True))
    for name, node in graph.producer.items():
        if node.op_type == "Concat":
            parts[name] = list(node.input)
    renamed = _slices(graph, widths, parts)
    for node in graph.nodes:
        if node.output[0] in renamed:
            continue
        for number, name in enumerate(node.input):
            node.input[number] = renamed.get(name, name)
        if node.op_type == "Gemm" and node.input[0] in parts:
            nodes += _sum_of_products(graph, node, parts[node.input[0]], width)
        else:
            nodes.append(node)
    return graph.finished(nodes)


def _slices(graph: _Graph, widths: Mapping[str, Sequence[int]], parts: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Slices that are one part of a concatenated input, and the name of that part: it need not be copied twice."""
    constants = {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t) for node in graph.nodes if node.op_type == "Constant"
    }
    found = {}
    for node in graph.nodes:
        if node.op_type == "Slice" and node.input[0] in widths:
            edges = [int(edge) for edge in np.cumsum([0, *widths[node.input[0]]])]
            start, end = (int(constants[name].reshape(-1)[0]) for name in node.input[1:3])
            place = slice(start, end).indices(edges[-1])[:2]
            for number, between in enumerate(itertools.pairwise(edges)):
                if place == between:
                    found[node.output[0]] = parts[node.input[0]][number]
    return found


def _sum_of_products(
    graph: _Graph, node: onnx.NodeProto, parts: Sequence[str], width: Mapping[str, int]
) -> Iterator[onnx.NodeProto]:
    """A product for each part, and their sum; the first has the bias."""
    weight, bias = (graph.weights[name] for name in node.input[1:3])
    start, total = 0, ""
    for number, part in enumerate(parts):
        name = f"{node.name}.{number}"
        graph.weights[f"{name}.weight"] = np.ascontiguousarray(weight[:, start : start + width[part]])
        graph.weights[f"{name}.bias"] = np.zeros_like(bias) if number else bias
        start += width[part]
        inputs = [part, f"{name}.weight", f"{name}.bias"]
        yield helper.make_node("Gemm", inputs, [f"{name}.product"], name=name, transB=1)
        if number:
            target = node.output[0] if number == len(parts) - 1 else f"{name}.sum"
            yield helper.make_node("Add", [total, f"{name}.product"], [target], name=f"{name}/Add")
            total = target
        else:
            total = f"{name}.product"


def smooth(model: onnx.ModelProto, feeds: Sequence[Feeds], layers: Collection[str]) -> onnx.ModelProto:
    """The same function, with channels of similar size where convolutions read inputs or the residual stream.

    There, channels of very different size share one scale. They are divided by factors, and the weights undo these
    (SmoothQuant, Xiao et al., arXiv 2211.10438).

    Args:
        model: The graph in fp32.
        feeds: Inputs of the graph on real pictures.
        layers: Names of the layers to be quantized.
    """
    graph = _Graph(model)
    targets = [
        node
        for node in graph.nodes
        if node.op_type == "Conv"
        and node.name in layers
        and (
            _groups(node) > 1
            or (node.input[0] in graph.producer and graph.producer[node.input[0]].op_type in ("Add", "Concat"))
        )
    ]
    largest = _largest(model, [node.input[0] for node in targets], feeds)
    nodes = []
    for node in graph.nodes:
        if node in targets:
            name, weight_name = node.input[0], node.input[1]
            weight = graph.weights[weight_name]
            if _groups(node) > 1:  # every channel has a weight scale of its own: nothing is lost there
                size = np.maximum(largest[name], 1e-4)
                factor = np.maximum(size / size.max(), LEAST_FACTOR).astype(np.float32)
            else:
                factor = _factors(largest[name], weight)
            shape = (-1, 1, 1, 1) if _groups(node) > 1 else (1, -1, 1, 1)
            graph.weights[weight_name] = weight * factor.reshape(shape)
            smoothed = f"{node.name}.smoothed"
            graph.weights[f"{smoothed}.factor"] = (1 / factor).reshape(1, -1, 1, 1)
            nodes.append(helper.make_node("Mul", [name, f"{smoothed}.factor"], [smoothed], name=f"{smoothed}/Mul"))
            node.input[0] = smoothed
        nodes.append(node)
    return graph.finished(nodes)


def equalize(model: onnx.ModelProto, feeds: Sequence[Feeds], layers: Collection[str]) -> onnx.ModelProto:
    """The same function, with channels of similar size between two layers with a ReLU: see :func:`smooth`.

    A ReLU keeps positive factors, so the layer before it divides and the layer after it multiplies: it costs nothing.

    Args:
        model: The graph in fp32.
        feeds: Inputs of the graph on real pictures.
        layers: Names of the layers to be quantized.
    """
    graph = _Graph(model)
    pairs = []
    for node in graph.nodes:
        relu = graph.producer.get(node.input[0]) if node.name in layers and _groups(node) == 1 else None
        before = graph.producer.get(relu.input[0]) if relu is not None and relu.op_type == "Relu" else None
        if (
            before is not None
            and before.name in layers
            and len(graph.readers[before.output[0]]) == len(graph.readers[node.input[0]]) == 1
        ):
            pairs.append((before, node))
    largest = _largest(model, [node.input[0] for _, node in pairs], feeds)
    for before, node in pairs:
        weight = graph.weights[node.input[1]]
        factor = _factors(largest[node.input[0]], weight)
        graph.weights[node.input[1]] = weight * factor.reshape(1, -1, *[1] * (weight.ndim - 2))
        for name in before.input[1:3]:
            array = graph.weights[name]
            graph.weights[name] = array / factor.reshape(-1, *[1] * (array.ndim - 1))
    return graph.finished(graph.nodes)


def _largest(model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]) -> dict[str, NDArray[np.float32]]:
    """The largest absolute value of each channel of some activations ``(n, C, ...)``."""
    largest: dict[str, NDArray[np.float32]] = {}
    for values in _activations(model, names, feeds):
        for name, value in values.items():
            here = np.abs(value).max((0, *range(2, value.ndim)))
            largest[name] = np.maximum(largest.get(name, here), here)
    return largest


def _factors(size: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Factors of the channels of an activation with these largest values, for a layer with one group."""
    column = np.maximum(np.abs(weight).max((0, *range(2, weight.ndim))), 1e-6)
    factor = np.maximum(size, 1e-4) ** SMOOTHING / column ** (1 - SMOOTHING)
    return np.asarray(np.maximum(factor / factor.max(), LEAST_FACTOR), np.float32)


# --- int8 ---------------------------------------------------------------------------------------------


def wide_layers(model: onnx.ModelProto, narrow: int, exact: Collection[str] = ()) -> set[str]:
    """Names of the layers to quantize: those with more than ``narrow`` channels on both sides.

    The others read or give codes and levels: they are small, and their errors would count most.

    Args:
        model: The graph.
        narrow: Channels of codes.
        exact: Inputs of the graph whose readers are left out, too.
    """
    graph = _Graph(model)
    return {
        node.name
        for node in graph.nodes
        if node.op_type in LINEAR
        and node.input[0] not in exact
        and node.input[1] in graph.weights
        and min(graph.weights[node.input[1]].shape[0], graph.weights[node.input[1]].shape[1] * _groups(node)) > narrow
    }


def quantize(model: onnx.ModelProto, feeds: Sequence[Feeds], layers: Collection[str]) -> onnx.ModelProto:
    """The graph with int8 layers, in QDQ form.

    A ReLU that only quantized layers read becomes the lower end of their range. The outputs of convolutions are
    quantized too, because ONNX Runtime has no int8 convolution with outputs in fp32; those of ``Gemm`` stay fp32.

    Args:
        model: The graph in fp32.
        feeds: Inputs of the graph on real pictures.
        layers: Names of the layers.
    """
    return _Quantizer(model, feeds, layers).run()


def _activations(
    model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """The values of some activations for each input; nothing where no activation is named."""
    if not names:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    unique = sorted(set(names))
    probe.graph.output.extend(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in unique)
    session = ort.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    for feed in feeds:
        yield dict(zip(unique, session.run(unique, dict(feed)), strict=True))


class _Quantizer:
    """Makes the nodes of a graph with int8 layers."""

    def __init__(self, model: onnx.ModelProto, feeds: Sequence[Feeds], layers: Collection[str]) -> None:
        self._graph = _Graph(model)
        self._layers = layers
        self._nodes: list[onnx.NodeProto] = []
        self._quantized: dict[str, str] = {}
        self._scales: dict[str, np.float32] = {}
        self._relus = {
            node.output[0]: node.input[0]
            for node in self._graph.nodes
            if node.op_type == "Relu" and self._is_quantized_relu(node)
        }
        names = []
        for node in self._graph.nodes:
            if node.name in layers:
                names += [node.input[0], node.output[0]] if self._has_int8_output(node) else [node.input[0]]
        self._ranges = self._measure(model, names, feeds)

    def _is_quantized_relu(self, relu: onnx.NodeProto) -> bool:
        name = relu.output[0]
        readers = self._graph.readers.get(name, [])
        return name not in self._graph.outputs and all(
            reader.name in self._layers and reader.input[0] == name for reader in readers
        )

    def _has_int8_output(self, node: onnx.NodeProto) -> bool:
        """Whether the output needs a range: that of a convolution, unless a quantized ReLU follows and has one."""
        readers = self._graph.readers.get(node.output[0], [])
        return node.op_type == "Conv" and not any(reader.output[0] in self._relus for reader in readers)

    @staticmethod
    def _measure(
        model: onnx.ModelProto, names: Sequence[str], feeds: Sequence[Feeds]
    ) -> dict[str, tuple[float, float]]:
        """The range of each activation: the widest of all pictures, without :data:`TAIL` of each; it holds 0."""
        ranges: dict[str, tuple[float, float]] = {}
        for values in _activations(model, names, feeds):
            for name, value in values.items():
                low, high = np.quantile(value.reshape(-1)[::SAMPLED], [TAIL, 1 - TAIL])
                before = ranges.get(name, (0.0, 0.0))
                ranges[name] = (min(before[0], float(low)), max(before[1], float(high)))
        return ranges

    def run(self) -> onnx.ModelProto:
        """The new graph."""
        for node in self._graph.nodes:
            if node.output[0] in self._relus:
                continue
            if node.name in self._layers:
                self._add_layer(node)
            else:
                self._nodes.append(node)
        return self._graph.finished(self._nodes)

    def _parameters(self, name: str, scale: Any, zero: NDArray[Any]) -> list[str]:
        self._graph.weights[f"{name}.scale"] = np.asarray(scale, np.float32)
        self._graph.weights[f"{name}.zero"] = zero
        return [f"{name}.scale", f"{name}.zero"]

    def _add_activation(self, name: str, source: str, target: str) -> str:
        """Rounds the value ``source`` to the range of ``name``; the result is called ``target``."""
        low, high = self._ranges[name]
        if name in self._relus:
            low = 0.0
        scale = np.float32(max((high - low) / STEPS, LEAST_SCALE))
        zero = np.array(np.clip(np.rint(-low / scale), 0, STEPS), np.uint8)
        self._scales[name] = scale
        pair = self._parameters(name, scale, zero)
        codes = f"{name}.codes"
        self._nodes.append(helper.make_node("QuantizeLinear", [source, *pair], [codes], name=f"{name}/Quantize"))
        self._nodes.append(helper.make_node("DequantizeLinear", [codes, *pair], [target], name=f"{name}/Dequantize"))
        self._quantized[name] = target
        return target

    def _add_constant(self, name: str, codes: NDArray[Any], scale: NDArray[np.float32]) -> str:
        """Integer weights with a scale for each output channel."""
        self._graph.weights[f"{name}.codes"] = codes
        pair = self._parameters(name, scale, np.zeros(len(scale), codes.dtype))
        inputs = [f"{name}.codes", *pair]
        node = helper.make_node("DequantizeLinear", inputs, [f"{name}.rounded"], name=f"{name}/Dequantize", axis=0)
        self._nodes.append(node)
        return f"{name}.rounded"

    def _add_layer(self, node: onnx.NodeProto) -> None:
        name, output = node.input[0], node.output[0]
        if name not in self._quantized:
            self._add_activation(name, self._relus.get(name, name), f"{name}.rounded")
        weight, bias = (self._graph.weights[key] for key in node.input[1:3])
        flat = np.abs(weight.reshape(len(weight), -1))
        scale = np.maximum(flat.max(1) / WEIGHT_STEPS, LEAST_SCALE).astype(np.float32)
        codes = np.rint(weight / scale.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8)
        bias_scale = scale * self._scales[name]
        limits = np.iinfo(np.int32)
        bias_codes = np.clip(np.rint(bias.astype(np.float64) / bias_scale), limits.min, limits.max).astype(np.int32)
        layer = onnx.NodeProto()
        layer.CopyFrom(node)
        layer.input[:] = [
            self._quantized[name],
            self._add_constant(f"{node.name}.weight", codes, scale),
            self._add_constant(f"{node.name}.bias", bias_codes, bias_scale),
        ]
        self._nodes.append(layer)
        if output in self._ranges and output not in self._quantized and self._has_int8_output(node):
            layer.output[0] = f"{output}.exact"
            self._add_activation(output, f"{output}.exact", output)
