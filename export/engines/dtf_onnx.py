"""Dynamic Token Filtering as ONNX: one plugin node, or standard operators only.

Both forms take scores (B, N), float32 or float16, and give dense int32 indices (B, N), ascending and padded with -1,
and int32 counts (B,); an image with a score that is negative or not finite keeps nothing and has the count ``-1 - i``,
where ``i`` is its first such score. Both equal the specification (``runtime/reference.py``) bit for bit.

The plugin-free form sorts nothing and compares no pairs, so it needs neither TopK (3,840 elements at most in TensorRT)
nor memory that grows with N squared: eight rounds, each with fifteen candidates, find the fixed-point score at which
the kept prefix ends, four bits a round. A fixed-point score has at most 24 significant bits, since it comes from a
float32, so float32 holds it exactly. Its sums are matrix products of zeros and ones with bytes: every partial sum is an
integer below 2^24 for up to 2^16 tokens, so float32 (and TF32, which keeps 11 bits of a factor) adds them exactly in
any order. Only the few sums themselves, per image, are put together as int64. Operators and types are those that
TensorRT 10.3 takes (opset 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tatok_edge.runtime.cuda.kernels import MAX_PATCHES, DtfLimits
from tatok_edge.runtime.tensorrt.plugin import NAMESPACE, PLUGIN_NAME, PLUGIN_VERSION, plugin_attributes

OPSET = 17
DOMAIN = NAMESPACE
"""Of the plugin node: TensorRT takes a node of a domain of its own for a plugin of that namespace."""

_DIGIT = 4
_ROUNDS = 8  # of 4 bits: saturated scores stand at 2^31
_SATURATED = float(1 << 31)
_BYTES = (1, 1 << 8, 1 << 16, 1 << 24)
_TAU_ONE = 1 << 30


@dataclass(slots=True)
class _Graph:
    """Nodes and constants under one prefix; the methods name what they add."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        name = name or f"{self.prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=self._node_name(), **attributes))
        return name

    def _node_name(self) -> str:
        return f"{self.prefix}node_{len(self.nodes)}"

    def constant(self, value: Any, dtype: Any) -> str:
        array = np.asarray(value, dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"{self.prefix}constant_{len(self.constants)}")
        return self.constants[key].name

    def split(self, value: str, parts: int, axis: int) -> list[str]:
        """Slices of size 1 along an axis."""
        names = [f"{self.prefix}Split_{len(self.nodes)}_{part}" for part in range(parts)]
        sizes = self.constant([1] * parts, np.int64)
        self.nodes.append(helper.make_node("Split", [value, sizes], names, name=self._node_name(), axis=axis))
        return names

    def cast(self, value: str, to: int) -> str:
        return self.op("Cast", value, to=to)


def plugin_node(scores: str, indices: str, counts: str, limits: DtfLimits, *, name: str = "dtf") -> onnx.NodeProto:
    """The plugin ``TaTokDTF`` as one node; a model with it imports :data:`DOMAIN`, version 1."""
    attributes: dict[str, Any] = dict(plugin_attributes(limits))
    return helper.make_node(
        PLUGIN_NAME,
        [scores],
        [indices, counts],
        name=name,
        domain=DOMAIN,
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=NAMESPACE,
        **attributes,
    )


def standard_nodes(
    scores: str, indices: str, counts: str, limits: DtfLimits, *, prefix: str = "dtf_"
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Dynamic Token Filtering in standard operators, for up to 65,536 tokens.

    Args:
        scores: Name of the scores (B, N), float32 or float16.
        indices: Name that the indices (B, N) get.
        counts: Name that the counts (B,) get.
        limits: What is kept.
        prefix: Of the names of everything between.

    Returns:
        Nodes in topological order, and initializers.
    """
    g = _Graph(prefix)
    f32, i32, i64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64

    def mask(condition: str) -> str:
        return g.cast(condition, f32)

    def big(value: str) -> str:
        return g.cast(value, i64)

    # Fixed point: round(score * 2^16), ties to even; 2^31 stands for the saturated 2^31 - 1. Bad scores count as 0.
    raw = g.cast(scores, f32)
    good = g.op(
        "And",
        g.op("GreaterOrEqual", raw, g.constant(0, np.float32)),
        g.op("LessOrEqual", raw, g.constant(np.finfo(np.float32).max, np.float32)),
    )
    valid = g.op("Where", good, raw, g.constant(0, np.float32))
    capped = g.op("Min", valid, g.constant(65536.0, np.float32))  # before the product, which must not overflow
    scaled = g.op("Round", g.op("Mul", capped, g.constant(65536.0, np.float32)))
    fixed = g.op("Min", scaled, g.constant(_SATURATED, np.float32))

    # Per token its four bytes, a one to count with, and whether it is saturated: (B, N, 6).
    columns, rest = [], fixed
    for weight in reversed(_BYTES):
        digit = g.op("Floor", g.op("Mul", rest, g.constant(1 / weight, np.float32)))
        rest = g.op("Sub", rest, g.op("Mul", digit, g.constant(weight, np.float32)))
        columns.append(digit)
    columns.reverse()
    ones = mask(g.op("GreaterOrEqual", fixed, g.constant(0, np.float32)))
    columns += [ones, mask(g.op("GreaterOrEqual", fixed, g.constant(_SATURATED, np.float32)))]
    last = g.constant([2], np.int64)
    table = g.op("Concat", *[g.op("Unsqueeze", column, last) for column in columns], axis=2)
    row = g.op("Unsqueeze", fixed, g.constant([1], np.int64))  # (B, 1, N)

    def totals(chosen: str) -> tuple[str, str]:
        """Count and exact sum, int64 (B, K, 1), of the tokens in the masks ``chosen`` (B, K, N)."""
        sums = g.op("MatMul", chosen, table)
        parts = g.split(big(sums), 6, axis=2)
        total = parts[0]
        for part, weight in zip(parts[1:4], _BYTES[1:], strict=True):
            total = g.op("Add", total, g.op("Mul", part, g.constant(weight, np.int64)))
        return parts[4], g.op("Sub", total, parts[5])

    size, total = totals(g.op("Unsqueeze", ones, g.constant([1], np.int64)))

    # ceil(share * total / 2^30): the product of 77 bits in two parts, as in dtf.hpp.
    one = g.constant(_TAU_ONE, np.int64)
    high = g.op("Div", total, one)
    low = g.op("Sub", total, g.op("Mul", high, one))
    share = g.constant(limits.share, np.int64)
    rounded = g.op("Add", g.op("Mul", share, low), g.constant(_TAU_ONE - 1, np.int64))
    target = g.op("Add", g.op("Mul", share, high), g.op("Div", rounded, one))

    # Count limits. A fixed-point score reaches the floor where it reaches the next float32 at or above the floor.
    floor = np.float32(limits.floor_score)
    if int(floor) < limits.floor_score:
        floor = np.nextafter(floor, np.float32(np.inf), dtype=np.float32)
    above_floor, _ = totals(mask(g.op("GreaterOrEqual", row, g.constant(floor, np.float32))))
    least = g.op("Min", size, g.constant(limits.min_tokens, np.int64))
    most = g.op("Min", g.op("Min", size, g.constant(limits.max_tokens, np.int64)), above_floor)

    def enough(count: str, total: str) -> str:
        reached = g.op("Or", g.op("GreaterOrEqual", count, most), g.op("GreaterOrEqual", total, target))
        return g.op("And", g.op("GreaterOrEqual", count, least), reached)

    # The largest threshold at which the tokens that reach it are enough. Candidates that float32 rounds are harmless:
    # where they lie closer together than float32 values do, no score lies between them.
    threshold = g.op("Mul", g.op("ReduceMax", row, axes=[2], keepdims=1), g.constant(0, np.float32))  # (B, 1, 1)
    for round_ in reversed(range(_ROUNDS)):
        step = float(1 << (_DIGIT * round_))
        steps = g.constant(np.arange(1, 1 << _DIGIT).reshape(1, -1, 1) * step, np.float32)
        candidates = g.op("Add", threshold, steps)
        passed = mask(enough(*totals(mask(g.op("GreaterOrEqual", row, candidates)))))
        accepted = g.op("ReduceSum", passed, g.constant([1], np.int64), keepdims=1)
        threshold = g.op("Add", threshold, g.op("Mul", accepted, g.constant(step, np.float32)))

    # All above the threshold, and as many of those equal to it as are needed, the first in raster order.
    is_above = g.op("Greater", row, threshold)
    is_equal = g.op("Equal", row, threshold)
    count, total_above = totals(mask(is_above))
    saturated = big(mask(g.op("GreaterOrEqual", threshold, g.constant(_SATURATED, np.float32))))
    # Where nothing is kept the threshold is above every score, at most 2^32 - 1; it must only not be 0 as a divisor.
    value = g.op("Max", g.op("Sub", big(threshold), saturated), g.constant(1, np.int64))
    missing = g.op("Max", g.op("Sub", target, total_above), g.constant(0, np.int64))
    needed = g.op("Div", g.op("Sub", g.op("Add", missing, value), g.constant(1, np.int64)), value)
    ties = g.op("Max", needed, g.constant(1, np.int64))
    ties = g.op("Min", ties, g.op("Sub", most, count))
    ties = g.op("Max", ties, g.op("Sub", least, count))
    # (B, 1, N): the place of every token among the equal ones, from 1 on.
    place = g.op("CumSum", mask(is_equal), g.constant(2, np.int64))
    chosen = g.op("LessOrEqual", place, g.cast(ties, f32))
    kept = mask(g.op("Or", is_above, g.op("And", is_equal, chosen)))

    # Nothing is kept of an image with a bad score.
    bad = mask(g.op("Not", g.op("Unsqueeze", good, g.constant([1], np.int64))))
    number = g.op("CumSum", g.op("Unsqueeze", ones, g.constant([1], np.int64)), g.constant(2, np.int64))  # from 1 on
    far = g.constant(float(1 << 20), np.float32)
    bad_number = g.op("Add", number, g.op("Mul", g.op("Sub", g.constant(1, np.float32), bad), far))
    first_bad = g.op("ReduceMin", bad_number, axes=[2], keepdims=1)
    fine = g.op("GreaterOrEqual", first_bad, far)
    kept = g.op("Mul", kept, mask(fine))

    # Kept tokens to the front, the others behind them: a permutation, so no two updates meet.
    kept_up_to = g.op("CumSum", kept, g.constant(2, np.int64))
    kept_all = g.op("ReduceSum", kept, g.constant([2], np.int64), keepdims=1)
    behind = g.op("Sub", g.op("Add", kept_all, number), kept_up_to)
    is_kept = g.op("Greater", kept, g.constant(0.5, np.float32))
    one_f = g.constant(1, np.float32)
    slot = g.op("Sub", g.op("Where", is_kept, kept_up_to, behind), one_f)
    update = g.op("Where", is_kept, g.op("Sub", number, one_f), g.constant(-1, np.float32))
    flat = g.constant([1], np.int64)
    updates = g.op("Squeeze", update, flat)
    slots = g.cast(g.op("Squeeze", slot, flat), i32)
    g.op("Cast", g.op("ScatterElements", updates, slots, updates, axis=1), name=indices, to=i32)
    refused = g.op("Sub", g.constant(0, np.float32), first_bad)
    result = g.op("Squeeze", g.op("Where", fine, kept_all, refused), g.constant([1, 2], np.int64))
    g.op("Cast", result, name=counts, to=i32)
    return g.nodes, list(g.constants.values())


def dtf_model(
    limits: DtfLimits,
    *,
    form: Literal["plugin", "onnx"],
    dtype: Any = np.float32,
    shape: Sequence[int | str] = ("batch", "tokens"),
) -> onnx.ModelProto:
    """A whole model of token filtering: ``scores`` (B, N) to ``indices`` (B, N) and ``counts`` (B,).

    Args:
        limits: What is kept.
        form: The plugin node, or standard operators.
        dtype: ``numpy.float32`` or ``numpy.float16``, of the scores.
        shape: Of the scores; a string is a dynamic axis of that name.

    Raises:
        ValueError: an unknown form or dtype, or too many tokens.
    """
    if form not in ("plugin", "onnx"):
        raise ValueError(f"form must be 'plugin' or 'onnx', got {form!r}")
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise ValueError(f"dtype must be float32 or float16, got {np.dtype(dtype)}")
    batch, tokens = shape
    if isinstance(tokens, int) and not 1 <= tokens <= MAX_PATCHES:
        raise ValueError(f"token filtering takes 1 to {MAX_PATCHES} tokens, got {tokens}")
    constants: list[onnx.TensorProto] = []
    if form == "plugin":
        nodes = [plugin_node("scores", "indices", "counts", limits)]
    else:
        nodes, constants = standard_nodes("scores", "indices", "counts", limits)
    graph = helper.make_graph(
        nodes,
        "dtf",
        [helper.make_tensor_value_info("scores", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [batch, tokens])],
        [
            helper.make_tensor_value_info("indices", TensorProto.INT32, [batch, tokens]),
            helper.make_tensor_value_info("counts", TensorProto.INT32, [batch]),
        ],
        initializer=constants,
    )
    opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(DOMAIN, 1)] if form == "plugin" else [])
    model = helper.make_model(graph, opset_imports=opsets, producer_name="tatok-edge", ir_version=8)
    onnx.checker.check_model(model)
    return model
