"""Checks that every TensorRT from 10.3 on, and TensorRT-RTX, can parse a graph.

The newest TensorRT accepts more operators than the TensorRT of an older Jetson. So each graph is checked against a
fixed list before a build. The check names the wrong node; TensorRT's parser does not always do so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tatok_edge.errors import BackendError, BundleError

if TYPE_CHECKING:
    import onnx

MAX_OPSET = 20
"""Newest ONNX operator set of TensorRT 10.3."""
MAX_TOPK = 3840
"""The largest K of TopK in every version."""
PLUGIN_DOMAIN = "tatok"
"""Domain of our plugins' nodes."""
PLUGINS = {"TaTokDTF": "1"}
"""Plugins that a graph may use, and their versions."""
_OPERATORS = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout
Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish Identity If
InstanceNormalization IsInf IsNaN LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization
MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not OneHot Or PRelu Pad Pow QuantizeLinear Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu
Reshape Resize ReverseSequence Round ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax
Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
Unsqueeze Where Xor
"""
OPERATORS = frozenset(_OPERATORS.split())
"""Operators of the default domain that TensorRT 10.3 and TensorRT-RTX parse."""


def load_graph(data: bytes, name: str) -> onnx.ModelProto:
    """Parses a serialised graph.

    Raises:
        BackendError: the package ``onnx`` is not installed.
        BundleError: it is not an ONNX graph.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendError("building engines needs the package onnx: pip install onnx") from error
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's own errors differ between its versions
        raise BundleError(f"graph {name!r} is not a valid ONNX graph ({' '.join(str(error).split())})") from error
    return model


def check_graph(model: onnx.ModelProto, name: str) -> None:
    """Refuses a graph that some supported TensorRT cannot parse.

    Args:
        model: The graph.
        name: Name of the graph, for the message.

    Raises:
        BundleError: the graph has such nodes; the message names the first ones and the reasons.
    """
    problems = list(find_problems(model))
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise BundleError(f"graph {name!r} does not fit TensorRT 10.3: {'; '.join(problems[:3])}{more}")


def find_problems(model: onnx.ModelProto) -> list[str]:
    """All parts of a graph that some supported TensorRT cannot parse, one line each."""
    import onnx

    problems = []
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            if opset.version > MAX_OPSET:
                problems.append(f"opset {opset.version} is newer than {MAX_OPSET}: export with an older one")
        elif opset.domain != PLUGIN_DOMAIN:
            problems.append(f"operator domain {opset.domain!r} is unknown")
    try:
        model = onnx.shape_inference.infer_shapes(model)
    except onnx.shape_inference.InferenceError as error:
        problems.append(f"its shapes cannot be inferred ({' '.join(str(error).split())})")
    problems.extend(_graph_problems(model.graph, {}))
    return problems


def _graph_problems(graph: onnx.GraphProto, outer: dict[str, onnx.TensorProto]) -> Iterator[str]:
    import onnx

    allowed = {
        getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL")
    }
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info, *graph.output)}
    constants = outer | {tensor.name: tensor for tensor in graph.initializer}
    types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
                    types[node.output[0]] = attribute.t.data_type
    for name, kind in types.items():
        if kind and kind not in allowed:
            yield f"tensor {name!r} has type {onnx.TensorProto.DataType.Name(kind)}, which TensorRT does not take"
    for node in graph.node:
        where = f"node {node.name or node.output[0]!r}"
        yield from (f"{where}: {problem}" for problem in _node_problems(node, types, constants))
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graph_problems(inner, constants)


def _node_problems(
    node: onnx.NodeProto, types: dict[str, int], constants: dict[str, onnx.TensorProto]
) -> Iterator[str]:
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.domain == PLUGIN_DOMAIN:
        version = attributes.get("plugin_version", b"").decode()
        if PLUGINS.get(node.op_type) != version:
            yield f"plugin {node.op_type} version {version or 'none'} is unknown"
        if "plugin_namespace" not in attributes:
            yield f"plugin {node.op_type} has no attribute plugin_namespace, without which it is not found"
        return
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        yield f"operator {node.op_type} is not one of TensorRT 10.3"
    elif node.op_type == "TopK":
        k = constants.get(node.input[1])
        if k is None:
            yield "TopK needs a constant K"
        elif int(onnx.numpy_helper.to_array(k).reshape(-1)[0]) > MAX_TOPK:
            yield f"TopK takes K up to {MAX_TOPK}"
    elif node.op_type == "CumSum" and types.get(node.input[0]) not in (
        None,
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.FLOAT16,
    ):
        yield "CumSum takes floats only"
    elif node.op_type == "Resize" and attributes.get("antialias"):
        yield "Resize with antialias is not taken"
    elif node.op_type in ("ScatterElements", "ScatterND") and attributes.get("reduction", b"none") != b"none":
        yield f"{node.op_type} with a reduction is not taken"
    elif node.op_type == "MaxPool" and len(node.output) > 1:
        yield "MaxPool with indices is not taken"
