"""Graphs for TensorRT: which operators it takes, and the conversion to fp16."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="converting graphs needs onnx")

from onnx import TensorProto, helper, numpy_helper

from tatok_edge.errors import BackendError, BundleError
from tatok_edge.export.engines import lint, precision
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.flavour import Flavour
from tatok_edge.sources.open import open_source

# --- lint -----------------------------------------------------------------------------------------


def graph_of(
    nodes: list[Any], *, kind: int = TensorProto.FLOAT, opset: int = 17, weights: Any = (), shape: Any = None
) -> Any:
    used = {name for node in nodes for name in node.output}
    inputs = ["x"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, ["n", 8]) for name in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name in sorted(used) if name.startswith("y")],
        list(weights),
    )
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def constant(name: str, value: Any, kind: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(value, kind), name)


def test_the_shipped_graphs_are_for_tensorrt() -> None:
    bundle = open_bundle("tatok-s8")
    for name in GRAPHS:
        lint.check_graph(lint.load_graph(bundle.read(name), name), name)


def test_rtx_parses_every_operator_of_the_list(rtx: Flavour) -> None:
    messages = tensorrt_flavour.Messages()
    logger = tensorrt_flavour.make_logger(rtx, messages)
    builder = tensorrt_flavour.make_builder(rtx, logger, messages)
    network = tensorrt_flavour.make_network(rtx, builder)
    parser = tensorrt_flavour.make_parser(rtx, network, logger)
    assert [name for name in sorted(lint.OPERATORS) if not parser.supports_operator(name)] == []


NODE, INT64 = helper.make_node, TensorProto.INT64
AXIS, INDEX = constant("a", 1), constant("i", [[0]])


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (graph_of([NODE("Unique", ["x"], ["y"], name="u")]), "node 'u': operator Unique is not one of TensorRT 10.3"),
        (graph_of([NODE("NonZero", ["x"], ["y"])]), "node 'y': operator NonZero"),
        (graph_of([NODE("Relu", ["x"], ["y"])], opset=21), "opset 21 is newer than 20: export with an older one"),
        (graph_of([NODE("Relu", ["x"], ["y"])], kind=TensorProto.DOUBLE), "'x' has type DOUBLE"),
        (graph_of([NODE("TopK", ["x", "k"], ["y", "i"])], weights=[constant("k", [3841])]), "TopK takes K up to 3840"),
        (graph_of([NODE("TopK", ["x", "k"], ["y", "i"]), NODE("Shape", ["x"], ["k"])]), "TopK needs a constant K"),
        (graph_of([NODE("CumSum", ["x", "a"], ["y"])], kind=INT64, weights=[AXIS]), "CumSum takes floats"),
        (graph_of([NODE("ScatterND", ["x", "i", "x"], ["y"], reduction="add")], weights=[INDEX]), "with a reduction"),
        (graph_of([NODE("MaxPool", ["x"], ["y", "i"], kernel_shape=[1])]), "MaxPool with indices"),
        (graph_of([NODE("Relu", ["x"], ["y"], domain="com.microsoft")]), "operator domain 'com.microsoft' is unknown"),
        (graph_of([NODE("TaTokDTF", ["x"], ["y"], domain="tatok", plugin_version="2")]), "version 2 is unknown"),
        (graph_of([NODE("TaTokDTF", ["x"], ["y"], domain="tatok", plugin_version="1")]), "attribute plugin_namespace"),
    ],
)  # fmt: skip
def test_what_tensorrt_10_3_does_not_take(model: Any, says: str) -> None:
    with pytest.raises(BundleError, match=r"graph 'g' does not fit TensorRT 10\.3") as caught:
        lint.check_graph(model, "g")
    assert says in str(caught.value)


def test_inside_of_branches_is_looked_at_too() -> None:
    branch = helper.make_graph(
        [NODE("Det", ["x"], ["inner"], name="hidden")],
        "b",
        [],
        [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
    )
    graph = graph_of(
        [NODE("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], weights=[constant("c", True, np.bool_)]
    )
    assert sum("hidden" in problem for problem in lint.find_problems(graph)) == 2


@pytest.mark.parametrize("data", [b"", b"junk", b"\x08\x08"])
def test_graphs_that_are_none(data: bytes) -> None:
    with pytest.raises(BundleError, match="'context' is not a valid ONNX graph"):
        lint.load_graph(data, "context")


# --- fp16 -----------------------------------------------------------------------------------------


def small_network(scale: float = 1.0) -> Any:
    """Two layers and a code head; weights are not fp16 numbers."""
    random = np.random.default_rng(3)
    weights = [
        numpy_helper.from_array((scale * random.normal(size=(8, 2048)) / 3).astype(np.float32), "w1"),
        numpy_helper.from_array((random.normal(size=(2048, 8)) / 50).astype(np.float32), "w2"),
        numpy_helper.from_array(np.array(3.3, np.float32), "c"),
    ]
    nodes = [
        NODE("MatMul", ["x", "w1"], ["h"]),
        NODE("Relu", ["h"], ["r"]),
        NODE("MatMul", ["r", "w2"], ["y_out"]),
        NODE("Mul", ["y_out", "c"], ["m"]),
        NODE("Floor", ["m"], ["y_codes"]),
    ]
    model = graph_of(nodes, weights=weights, shape=["n", 8])
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: Any, x: Any) -> dict[str, Any]:
    return dict(OnnxSession({"decoder": model.SerializeToString()}, threads=1).run("decoder", {"x": x}))


def test_the_emulation_rounds_as_fp16_does(rng: np.random.Generator) -> None:
    """Against numpy, tensor by tensor: ONNX Runtime alone would keep the chain in fp32."""
    model = small_network()
    half = precision.to_half(model)
    x = rng.normal(size=(5, 8)).astype(np.float32)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def rounded(value: Any) -> Any:
        return value.astype(np.float16).astype(np.float32)

    hidden = rounded(rounded(x) @ rounded(weights["w1"]))
    expected = rounded(np.maximum(hidden, 0) @ rounded(weights["w2"]))
    got = run(precision.emulate(half), x)
    # Sums come in another order, so a result may fall on the neighbouring fp16 number.
    assert np.abs(got["y_out"] - expected).max() <= np.abs(expected).max() * 2.0**-10
    assert (got["y_out"] == rounded(got["y_out"])).all()
    assert (got["y_codes"] == np.floor(got["y_out"] * np.float32(3.3))).all()  # the head is in fp32
    assert np.abs(run(model, x)["y_out"] - got["y_out"]).max() > 0


def test_types_of_a_converted_graph() -> None:
    half = precision.to_half(small_network())
    types = {value.name: value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)}
    assert set(types.values()) == {TensorProto.FLOAT} and set(types) == {"x", "y_out", "y_codes"}
    weights = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert weights == {"w1.half": TensorProto.FLOAT16, "w2.half": TensorProto.FLOAT16, "c": TensorProto.FLOAT}


def test_what_would_overflow_stays_in_fp32() -> None:
    model = small_network(scale=1e5)
    x = np.full((2, 8), 3.0, np.float32)
    ranges = precision.activation_ranges(model, [{"x": x}])
    assert ranges["h"] > precision.LARGEST and ranges["x"] == 3
    careless = run(precision.emulate(precision.to_half(model)), x)
    careful = run(precision.emulate(precision.to_half(model, ranges)), x)
    assert not np.isfinite(careless["y_out"]).all()
    assert np.isfinite(careful["y_out"]).all()
    assert np.abs(careful["y_out"] / run(model, x)["y_out"] - 1).max() < 0.01


def test_control_flow_is_not_converted() -> None:
    branch = helper.make_graph(
        [NODE("Relu", ["x"], ["i"])], "b", [], [helper.make_tensor_value_info("i", TensorProto.FLOAT, None)]
    )
    graph = graph_of(
        [NODE("If", ["c"], ["y"], then_branch=branch, else_branch=branch)], weights=[constant("c", True, np.bool_)]
    )
    with pytest.raises(BackendError, match="build with --precision fp32"):
        precision.to_half(graph)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    bundle = open_bundle("tatok-s8")
    return {name: lint.load_graph(bundle.read(name), name) for name in GRAPHS}


@pytest.fixture(scope="module")
def picture() -> Any:
    with open_source("synthetic:frames=1,width=96,height=96") as source:
        return next(iter(source)).image


def test_the_shipped_model_in_fp16(shipped: dict[str, Any], picture: Any) -> None:
    bundle = open_bundle("tatok-s8")
    converted, record = precision.convert_bundle(shipped, [picture], bundle.levels, bundle.context_width)
    assert (
        record["patch_tokens"] >= 0.95
        and record["largest_code_step"] <= 1
        and record["kept_sets"] >= 0.98
        and record["pixel_difference"] < 0.005
    )
    for name, graph in converted.items():
        lint.check_graph(graph, name)
        assert graph.ByteSize() < 0.6 * shipped[name].ByteSize()
        inputs = [(value.name, value.type.tensor_type.elem_type) for value in graph.graph.input]
        assert inputs == [(value.name, value.type.tensor_type.elem_type) for value in shipped[name].graph.input]
        outputs = [(value.name, value.type.tensor_type.elem_type) for value in graph.graph.output]
        assert outputs == [(value.name, value.type.tensor_type.elem_type) for value in shipped[name].graph.output]
    same = precision.compare(shipped, shipped, [picture], bundle.levels, bundle.context_width)
    assert same["patch_tokens"] == same["global_tokens"] == same["kept_sets"] == 1
    assert same["pixel_difference"] == same["largest_code_step"] == 0


@pytest.mark.parametrize(
    ("graph", "weight", "value", "says"),
    [
        ("patch_encoder", "network.skip.bias", 0.3, "% of the tokens agree with fp32, at least 95% are needed"),
        ("decoder", "network.skip.bias", 0.2, "% of full scale, at most 2% is allowed"),
        ("context", "network.logits.bias", np.nan, "not all numbers are finite"),
    ],
)
def test_a_conversion_that_goes_wrong_is_refused(
    shipped: dict[str, Any],
    picture: Any,
    monkeypatch: pytest.MonkeyPatch,
    graph: str,
    weight: str,
    value: float,
    says: str,
) -> None:
    emulate = precision.emulate

    def damage(model: Any) -> Any:
        result = emulate(model)
        for tensor in result.graph.initializer:
            if tensor.name.removesuffix(".half") == weight and np.prod(tensor.dims) == np.prod(original[weight].dims):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(value), tensor.name))
        return result

    original = {tensor.name: tensor for tensor in shipped[graph].graph.initializer}
    monkeypatch.setattr(precision, "emulate", damage)
    bundle = open_bundle("tatok-s8")
    with pytest.raises(BackendError, match="build with --precision fp32") as caught:
        precision.convert_bundle(shipped, [picture], bundle.levels, bundle.context_width)
    assert says in str(caught.value)
