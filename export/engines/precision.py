"""Half precision: converts a graph from fp32 to fp16 with fp32 islands, and measures how many tokens stay the same.

TensorRT's networks are strongly typed: the ONNX file sets the precision of every operator. Inputs and outputs
stay fp32. Inside, weights and activations become fp16, except

- *code heads*: the operators from the last linear layers to the rounding of codes, where a small error changes a
  token;
- *probability heads*: exponentials, logarithms and normalisations with the small layers around them;
- the operators that turn integer codes into inputs of the first layer;
- layers whose activations, on real pictures, come near the largest fp16 number.

The agreement is measured with ONNX Runtime on a copy of the graph that computes in fp32 and rounds every fp16 tensor to
fp16, because ONNX Runtime on a CPU would silently keep fp16 chains in fp32. Sums inside a layer are exact in it, as
with the fp32 accumulators of tensor cores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from tatok_edge.errors import BackendError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.export.engines.verdict import code_steps
from tatok_edge.geometry import patch_grid
from tatok_edge.model.networks import Clock, Networks, Prior
from tatok_edge.runtime.cpu import kernels
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.session import GraphName, Session, Tensors

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
ROUNDING = frozenset({"Floor", "Round", "Ceil", "ArgMax", "ArgMin"})
"""Operators that turn numbers into codes."""
_SENSITIVE = """
Exp Log Softmax LogSoftmax Pow Sqrt Reciprocal CumSum TopK ReduceSum ReduceMean ReduceLogSumExp ReduceLogSum
ReduceL1 ReduceL2 ReduceProd ReduceSumSquare LayerNormalization InstanceNormalization GroupNormalization
LpNormalization BatchNormalization Floor Round Ceil ArgMax ArgMin
"""
SENSITIVE = frozenset(_SENSITIVE.split())
"""Operators that lose too much in fp16 or overflow."""
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
SMALL_LAYER = 8192
"""Largest number of weights of a linear layer that joins an island next to it: fp32 costs nothing there."""
LARGEST = 65504.0
HEADROOM = 16.0
"""Activations above the largest fp16 number divided by this stay in fp32: other pictures have larger activations, and
partial sums are larger than sums."""
_FLOAT_ONLY = {"Resize": (1, 2)}
"""Inputs that are fp32 in any case."""

MIN_TOKEN_AGREEMENT = 0.95
"""Smallest accepted share of equal tokens in fp16. Models trained so far have 0.98 to 0.995. Their other tokens differ
by one level, where fp32 itself is close to rounding the other way."""
MAX_LOSS_DB = 0.1
"""Largest accepted loss of PSNR in dB by the tokens of fp16: other tokens may be as good as those of fp32."""
MAX_PIXEL_DIFFERENCE = 0.02
"""Largest accepted difference of decoded pixels in fp16, as a share of full scale."""


# --- conversion -----------------------------------------------------------------------------------


def to_half(model: onnx.ModelProto, ranges: Mapping[str, float] | None = None) -> onnx.ModelProto:
    """The graph in fp16 with fp32 islands; inputs and outputs keep their types.

    Args:
        model: A graph in fp32 without subgraphs.
        ranges: Largest absolute value of each activation on real pictures, see :func:`activation_ranges`.

    Raises:
        BackendError: the graph has control flow.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        raise BackendError("graphs with control flow cannot be converted to fp16; build with --precision fp32")
    _constants_to_initializers(graph)
    types = _types(result)
    islands = _islands(graph, types, ranges or {})
    weights = {tensor.name: tensor for tensor in graph.initializer}
    current = {name: kind for name, kind in types.items() if kind == FLOAT}
    outputs = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []
    new_weights: dict[str, onnx.TensorProto] = {}
    casts: dict[tuple[str, int], str] = {}
    renamed: dict[str, str] = {}

    def as_type(name: str, kind: int) -> str:
        """The name of a float value in the type that is needed."""
        if name in weights:
            target = name if kind == FLOAT else f"{name}.half"
            if target not in new_weights:
                values = numpy_helper.to_array(weights[name])
                if kind == HALF:
                    values = values.astype(np.float16)
                new_weights[target] = numpy_helper.from_array(values, target)
            return target
        name = renamed.get(name, name)
        if current[name] == kind:
            return name
        if (name, kind) not in casts:
            cast_name = f"{name}.{'half' if kind == HALF else 'float'}"
            nodes.append(helper.make_node("Cast", [name], [cast_name], name=f"{cast_name}/Cast", to=kind))
            casts[name, kind] = cast_name
        return casts[name, kind]

    for index, node in enumerate(graph.node):
        kind = FLOAT if index in islands else HALF
        new = onnx.NodeProto()
        new.CopyFrom(node)
        is_cast = node.op_type == "Cast"
        for number, name in enumerate(node.input):
            if types.get(name) != FLOAT:
                continue
            if is_cast and name not in weights:
                new.input[number] = renamed.get(name, name)  # a cast takes any type
            else:
                fixed = number in _FLOAT_ONLY.get(node.op_type, ())
                new.input[number] = as_type(name, FLOAT if fixed else kind)
        if is_cast and types.get(node.output[0]) == FLOAT:
            for attribute in new.attribute:
                if attribute.name == "to":
                    attribute.i = kind
        made = []
        for number, name in enumerate(node.output):
            if types.get(name) != FLOAT:
                continue
            current[name] = kind
            if kind == HALF and name in outputs:
                inner = f"{name}.inner"
                new.output[number] = inner
                renamed[name], current[inner] = inner, HALF
                made.append(helper.make_node("Cast", [inner], [name], name=f"{name}/Cast", to=FLOAT))
        nodes.extend([new, *made])
    kept = [tensor for tensor in graph.initializer if tensor.data_type != FLOAT]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *new_weights.values()])
    onnx.checker.check_model(result, full_check=True)
    return result


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    nodes = []
    for node in graph.node:
        value = [a.t for a in node.attribute if a.name == "value"] if node.op_type == "Constant" else []
        if value:
            tensor = graph.initializer.add()
            tensor.CopyFrom(value[0])
            tensor.name = node.output[0]
        else:
            nodes.append(node)
    copies = [onnx.NodeProto() for _ in nodes]
    for copy, node in zip(copies, nodes, strict=True):
        copy.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*graph.input, *graph.value_info, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return types | {tensor.name: tensor.data_type for tensor in graph.initializer}


def _islands(graph: onnx.GraphProto, types: Mapping[str, int], ranges: Mapping[str, float]) -> set[int]:
    """Indices of the nodes that stay in fp32."""
    sizes = {tensor.name: int(np.prod(tensor.dims, dtype=np.int64)) for tensor in graph.initializer}
    large_weights = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == FLOAT and tensor.dims and np.abs(numpy_helper.to_array(tensor)).max(initial=0) > LARGEST
    }
    nodes = list(graph.node)
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    users: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            users.setdefault(name, []).append(index)

    def is_linear(index: int) -> bool:
        return nodes[index].op_type in LINEAR

    def is_small(index: int) -> bool:
        return sum(sizes.get(name, 0) for name in nodes[index].input) <= SMALL_LAYER

    def before(index: int) -> list[int]:
        return [makers[name] for name in nodes[index].input if name in makers and types.get(name) == FLOAT]

    def after(index: int) -> list[int]:
        return [user for name in nodes[index].output if types.get(name) == FLOAT for user in users.get(name, [])]

    islands = {
        index
        for index, node in enumerate(nodes)
        if node.op_type in SENSITIVE
        or any(ranges.get(name, 0.0) > LARGEST / HEADROOM for name in (*node.input, *node.output))
        or large_weights.intersection(node.input)
        # A cast from integers to numbers stays exact.
        or (node.op_type == "Cast" and types.get(node.input[0]) not in (FLOAT, HALF))
    }
    # Forward from a head, through small layers too, until a large layer begins the next part of the network.
    heads = [index for index in islands if nodes[index].op_type in SENSITIVE]
    queue = [index for index in islands if nodes[index].op_type not in SENSITIVE and nodes[index].op_type == "Cast"]
    while heads:
        for user in after(heads.pop()):
            if user not in islands and (not is_linear(user) or is_small(user)):
                islands.add(user)
                heads.append(user)
    while queue:
        for user in after(queue.pop()):
            if user not in islands and not is_linear(user):
                islands.add(user)
                queue.append(user)
    # Backward from them, to the small linear layers that end the network before them.
    back = [index for index in islands if nodes[index].op_type in SENSITIVE]
    seen = set(back)
    while back:
        for maker in before(back.pop()):
            if maker in seen or (is_linear(maker) and not is_small(maker)):
                continue
            seen.add(maker)
            islands.add(maker)
            if not is_linear(maker):
                back.append(maker)
    return islands


def activation_ranges(model: onnx.ModelProto, feeds: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, float]:
    """The largest absolute value of every float tensor of a graph over several inputs; infinity if it is not finite.

    Args:
        model: A graph in fp32.
        feeds: Inputs by name.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    _constants_to_initializers(probe.graph)
    types = _types(probe)
    known = {value.name for value in probe.graph.output}
    names = [
        name for node in probe.graph.node for name in node.output if types.get(name) == FLOAT and name not in known
    ]
    probe.graph.output.extend(helper.make_tensor_value_info(name, FLOAT, None) for name in names)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = [value.name for value in session.get_outputs()]
    ranges: dict[str, float] = {}
    for feed in feeds:
        for name, value in (*feed.items(), *zip(outputs, session.run(None, dict(feed)), strict=True)):
            if value.dtype == np.float32:
                largest = float(np.abs(value).max(initial=0.0)) if np.isfinite(value).all() else float("inf")
                ranges[name] = max(ranges.get(name, 0.0), largest)
    return ranges


# --- agreement ------------------------------------------------------------------------------------


def emulate(model: onnx.ModelProto) -> onnx.ModelProto:
    """The fp16 graph as one in fp32 that rounds each fp16 tensor to fp16."""
    types = _types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.initializer:
        if tensor.data_type == HALF:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        nodes.append(new)
        for attribute in new.attribute:
            if new.op_type == "Cast" and attribute.name == "to" and attribute.i == HALF:
                attribute.i = FLOAT
        for number, name in enumerate(node.output):
            if types.get(name) == HALF:
                new.output[number] = f"{name}.exact"
                nodes.append(helper.make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=HALF))
                nodes.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=FLOAT))
    del graph.node[:], graph.value_info[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def convert_bundle(
    graphs: Mapping[str, onnx.ModelProto], pictures: Sequence[NDArray[np.uint8]], levels: Sequence[int], width: int
) -> tuple[dict[str, onnx.ModelProto], dict[str, Any]]:
    """All graphs of a bundle in fp16, and how they agree with fp32 on pictures.

    Args:
        graphs: The graphs in fp32.
        pictures: RGB, uint8 (H, W, 3), at least one.
        levels: FSQ levels of the model.
        width: Channels of its context.

    Returns:
        The graphs and the record of :func:`compare`.

    Raises:
        BackendError: tokens or pixels agree too little; the message says how much.
    """
    feeds = _record_inputs(graphs, pictures, levels, width)
    converted = {name: to_half(model, activation_ranges(model, feeds[name])) for name, model in graphs.items()}
    record = compare(graphs, {name: emulate(model) for name, model in converted.items()}, pictures, levels, width)
    tokens = min(record["patch_tokens"], record["global_tokens"])
    if not record["finite"] or not tokens >= MIN_TOKEN_AGREEMENT:
        what = f"{tokens:.1%} of the tokens" if record["finite"] else "not all numbers are finite, and tokens"
        raise BackendError(
            f"in fp16, {what} agree with fp32, at least {MIN_TOKEN_AGREEMENT:.0%} are needed: build with "
            "--precision fp32"
        )
    if not record["loss_db"] <= MAX_LOSS_DB:
        raise BackendError(
            f"in fp16, pictures lose {record['loss_db']:.2f} dB by other tokens, at most {MAX_LOSS_DB} dB is allowed: "
            "build with --precision fp32"
        )
    if not record["pixel_difference"] <= MAX_PIXEL_DIFFERENCE:
        raise BackendError(
            f"in fp16, pixels differ from fp32 by {record['pixel_difference']:.1%} of full scale, at most "
            f"{MAX_PIXEL_DIFFERENCE:.0%} is allowed: build with --precision fp32"
        )
    return converted, record


def compare(
    reference: Mapping[str, onnx.ModelProto],
    other: Mapping[str, onnx.ModelProto],
    pictures: Sequence[NDArray[np.uint8]],
    levels: Sequence[int],
    width: int,
) -> dict[str, Any]:
    """How the tokens and pixels of two sets of graphs agree.

    Every graph of ``other`` gets the inputs of its counterpart, so one different code does not hide or amplify later
    differences. ``tokens_end_to_end`` is the share of equal patch tokens without this correction.

    Returns:
        ``pictures``, ``global_tokens``, ``patch_tokens`` (share of comparable tokens that are equal, see
        :func:`.verdict.code_steps`), ``tokens_end_to_end``, ``kept_sets`` (share of tokens about which token filtering
        by entropy at half the information decides alike), ``largest_code_step`` (levels by which a code differs at
        most), ``loss_db`` (PSNR that pictures lose by the other tokens, all kept, in dB), ``pixel_difference``
        (largest, share of full scale), ``finite``.
    """
    networks = [_networks(graphs, width) for graphs in (reference, other)]
    sums = _Sums()
    for picture in pictures:
        _compare_picture(networks, picture, levels, sums)
    return {"pictures": len(pictures), **sums.report()}


@dataclass(slots=True)
class _Sums:
    """What :func:`compare` adds up over pictures."""

    equal: Counter[str] = field(default_factory=Counter)
    counted: Counter[str] = field(default_factory=Counter)
    step: int = 0
    difference: float = 0.0
    losses: list[float] = field(default_factory=list)
    finite: bool = True

    def count(self, name: str, equal: NDArray[np.bool_]) -> None:
        """Count which of some things are equal."""
        self.equal[name] += int(equal.sum())
        self.counted[name] += equal.size

    def report(self) -> dict[str, Any]:
        """The figures as :func:`compare` gives them."""
        return {
            **{name: round(count / self.counted[name], 6) for name, count in self.equal.items()},
            "largest_code_step": self.step,
            "loss_db": round(float(np.mean(self.losses)), 4),
            "pixel_difference": round(self.difference, 6),
            "finite": self.finite,
        }


def _compare_picture(
    networks: Sequence[Networks], picture: NDArray[np.uint8], levels: Sequence[int], sums: _Sums
) -> None:
    """One picture of :func:`compare`."""
    clock, dims = Clock(), len(levels)
    grid = patch_grid(picture.shape[1], picture.shape[0])
    everything = np.arange(grid[0] * grid[1], dtype=np.int32)
    codes = [network.global_codes(picture, False, clock) for network in networks]
    priors = [network.prior(codes[0], clock) for network in networks]
    stacks = [_every_stack(network, picture, priors[0], clock) for network in networks]
    alone = _every_stack(networks[1], picture, networks[1].prior(codes[1], clock), clock)
    sums.finite &= all(
        bool(np.isfinite(getattr(priors[1], name)).all())
        for name in ("context", "mean", "log2_probs", "entropy", "expected")
    )
    kept = []
    for prior in priors:
        positions, depths, _ = kernels.dtf(np.ascontiguousarray(np.nan_to_num(prior.entropy).T)[None], tau=0.5)
        kept.append(np.zeros(prior.entropy.T.shape, bool))
        kept[-1][positions, depths - 1] = True
    steps = code_steps(stacks[1], stacks[0], dims)
    sums.count("global_tokens", (codes[0] == codes[1]).all(0))
    sums.count("patch_tokens", steps == 0)
    sums.count("tokens_end_to_end", (stacks[0] == alone).reshape(len(alone), -1, dims).all(2))
    sums.count("kept_sets", kept[0] == kept[1])
    sums.step = max(sums.step, int(steps.max(initial=0)), int(np.abs(codes[0] - codes[1]).max()))

    def pixels_of(network: Networks, stack: NDArray[np.int32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
        chosen = stack.reshape(*mask.shape, dims)[mask]
        positions = np.repeat(everything, mask.sum(1))
        state = kernels.decoder_state(chosen, positions, priors[0].expected, priors[0].entropy, levels)
        return network.pixels(state, priors[0].context, priors[0].mean, grid, clock)

    first, second = (pixels_of(network, stacks[0], kept[0]) for network in networks)
    sums.finite &= bool(np.isfinite(second).all())
    sums.difference = float(np.maximum(sums.difference, np.abs(second - first).max() / 2))
    whole = np.ones_like(kept[0])
    height, width = picture.shape[:2]
    decoded = (kernels.assemble(pixels_of(networks[0], stack, whole), grid[1], height, width) for stack in stacks)
    right, theirs = (min(psnr(picture, image), 100.0) for image in decoded)
    sums.losses.append(right - theirs)


def _every_stack(network: Networks, picture: NDArray[np.uint8], prior: Prior, clock: Clock) -> NDArray[np.int32]:
    """Codes of the stacks of all patches of a picture, ``(N, K * D)``."""
    rows, columns = patch_grid(picture.shape[1], picture.shape[0])
    everything = np.arange(rows * columns, dtype=np.int32)
    features = network.features(len(everything))
    kernels.gather_features(picture, False, prior.context, prior.mean, everything, everything, columns, out=features)
    return network.patch_codes(features, clock)


def _networks(graphs: Mapping[str, onnx.ModelProto], width: int) -> Networks:
    session = OnnxSession({name: model.SerializeToString() for name, model in graphs.items()}, threads=1)
    return Networks(session, width)


class Recorder(Session):
    """A session that keeps the inputs of every graph."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.feeds: dict[str, list[Mapping[str, NDArray[Any]]]] = {}
        """Inputs of each call, by graph."""

    def run(self, graph: GraphName, inputs: Mapping[str, NDArray[np.generic]]) -> Tensors:
        """Runs the graph."""
        self.feeds.setdefault(graph, []).append(dict(inputs))
        return self._session.run(graph, inputs)

    def close(self) -> None:
        """Closes the session below."""
        self._session.close()


def _record_inputs(
    graphs: Mapping[str, onnx.ModelProto], pictures: Sequence[NDArray[np.uint8]], levels: Sequence[int], width: int
) -> dict[str, list[Mapping[str, NDArray[Any]]]]:
    """Inputs of every graph when pictures are encoded and decoded in fp32."""
    recorder = Recorder(OnnxSession({name: m.SerializeToString() for name, m in graphs.items()}, threads=1))
    networks, clock = Networks(recorder, width), Clock()
    for picture in pictures:
        grid = patch_grid(picture.shape[1], picture.shape[0])
        everything = np.arange(grid[0] * grid[1], dtype=np.int32)
        prior = networks.prior(networks.global_codes(picture, False, clock), clock)
        stacks = _every_stack(networks, picture, prior, clock)
        depth = stacks.shape[1] // len(levels)
        for count in (len(everything), len(everything) // 2, 0):
            positions, codes = np.repeat(everything[:count], depth), stacks[:count].reshape(-1, len(levels))
            state = kernels.decoder_state(codes, positions, prior.expected, prior.entropy, levels)
            networks.pixels(state, prior.context, prior.mean, grid, clock)
    return recorder.feeds
