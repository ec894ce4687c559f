"""Dynamic Token Filtering as ONNX: one plugin node, or standard operators only.

Both forms take scores (B, N, K), float32 or float16, and give the kept tokens in raster order, depth innermost: dense
int32 positions (B, N * K), padded with -1; their depths (B, N * K), from 1 and padded with 0; and int32 counts (B,). An
image with a score that is negative or not finite keeps nothing and has the count ``-1 - i``, where ``i`` is its first
such score in (N, K). Both equal the specification (``runtime/reference.py``) bit for bit.

The plugin-free form sorts nothing and compares no pairs, so it needs neither TopK (3,840 elements at most in TensorRT)
nor memory that grows with N squared: eight rounds, each with fifteen candidates, find the fixed-point score at which
the kept prefix ends, four bits a round. A fixed-point score has at most 24 significant bits, since it comes from a
float32, so float32 holds it exactly. Its sums are matrix products of zeros and ones with digits of 4 bits: every
partial sum is an integer below 2^23 for up to 2^19 tokens, so float32 (and TF32, which keeps 11 bits of a factor) adds
them exactly in any order. Only the few sums themselves, per image, are put together as int64. Tokens stand by depth,
then by position, as ties are taken; only the outputs are in raster order. Operators and types are those that TensorRT
10.3 takes (opset 17).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tatok_edge.runtime.cuda.kernels import MAX_DEPTH, MAX_PATCHES, DtfLimits
from tatok_edge.runtime.tensorrt.plugin import NAMESPACE, PLUGIN_NAME, PLUGIN_VERSION, plugin_attributes

OPSET = 17
DOMAIN = NAMESPACE
"""Domain of the plugin node. TensorRT looks for a plugin with this namespace."""

_DIGIT = 4
_ROUNDS = 8  # of 4 bits: saturated scores stand at 2^31
_SATURATED = float(1 << 31)
_DIGITS = tuple(1 << (_DIGIT * digit) for digit in range(_ROUNDS))
_TAU_ONE = 1 << 30


@dataclass(slots=True)
class GraphBuilder:
    """Nodes and constants under one prefix; the methods return the names of the values that they add."""

    prefix: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = field(default_factory=dict)

    def op(self, kind: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """A node with one output."""
        name = name or f"{self.prefix}{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=self._node_name(), **attributes))
        return name

    def _node_name(self) -> str:
        return f"{self.prefix}node_{len(self.nodes)}"

    def constant(self, value: Any, dtype: Any) -> str:
        """A constant; equal ones are stored once."""
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
        """The value in another element type of ONNX."""
        return self.op("Cast", value, to=to)


@dataclass(frozen=True, slots=True)
class FilterOutputs:
    """Names of the outputs of token filtering."""

    positions: str = "positions"
    depths: str = "depths"
    counts: str = "counts"


def plugin_node(scores: str, outputs: FilterOutputs, limits: DtfLimits, *, name: str = "dtf") -> onnx.NodeProto:
    """The plugin ``TaTokDTF`` as one node; a model with it imports :data:`DOMAIN`, version 1."""
    attributes: dict[str, Any] = dict(plugin_attributes(limits))
    return helper.make_node(
        PLUGIN_NAME,
        [scores],
        [outputs.positions, outputs.depths, outputs.counts],
        name=name,
        domain=DOMAIN,
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=NAMESPACE,
        **attributes,
    )


def standard_nodes(
    scores: str, depth: int, outputs: FilterOutputs, limits: DtfLimits, *, prefix: str = "dtf_"
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Dynamic Token Filtering in standard operators, for up to 65,536 patches.

    Args:
        scores: Name of the scores (B, N, K), float32 or float16.
        depth: K, from 1 to 8.
        outputs: Names that the outputs get.
        limits: Limits of the kept tokens.
        prefix: Prefix of the names of all other values.

    Returns:
        Nodes in topological order, and initializers.
    """
    g = _FilterBuilder(prefix, limits=limits, depth=depth)
    good, fixed = g.fixed_point(scores)
    g.tabulate(fixed)
    size, total = g.totals(g.op("Unsqueeze", g.ones, g.constant([1], np.int64)))
    target = g.share_of(total)
    least, most = g.count_limits(size)
    threshold = g.find_threshold(least, most, target)
    chosen = g.raster_order(g.choose(threshold, least, most, target))
    kept, number, first_bad, fine = g.refuse_bad(good, chosen)
    g.write_outputs(kept, number, first_bad, fine, outputs)
    return g.nodes, list(g.constants.values())


@dataclass(slots=True)
class _FilterBuilder(GraphBuilder):
    """The steps of :func:`standard_nodes`. ``B`` images, ``T = K * N`` tokens by depth, then position, ``M`` masks."""

    limits: DtfLimits = field(default_factory=DtfLimits.make)
    depth: int = 1
    """Scores per patch, ``K``."""
    ones: str = ""
    """A one for each token, (B, T)."""
    table: str = ""
    """For each token the digits of its score, a one to count with, and whether it is saturated: (B, T, 10)."""
    row: str = ""
    """Fixed-point scores (B, 1, T)."""

    def mask(self, condition: str) -> str:
        """A condition as zeros and ones."""
        return self.cast(condition, TensorProto.FLOAT)

    def big(self, value: str) -> str:
        """A value as int64."""
        return self.cast(value, TensorProto.INT64)

    def fixed_point(self, scores: str) -> tuple[str, str]:
        """Whether scores are good, (B, T) in raster order; and ``round(score * 2^16)``, (B, T), smallest up to a depth.

        Ties are rounded to even; bad scores count as 0; 2^31 stands for the saturated 2^31 - 1.
        """
        raw = self.cast(scores, TensorProto.FLOAT)
        good = self.op(
            "And",
            self.op("GreaterOrEqual", raw, self.constant(0, np.float32)),
            self.op("LessOrEqual", raw, self.constant(np.finfo(np.float32).max, np.float32)),
        )
        valid = self.op("Where", good, raw, self.constant(0, np.float32))
        capped = self.op(
            "Min", valid, self.constant(65536.0, np.float32)
        )  # before the product, which must not overflow
        scaled = self.op("Round", self.op("Mul", capped, self.constant(65536.0, np.float32)))
        columns = self.split(self.op("Min", scaled, self.constant(_SATURATED, np.float32)), self.depth, axis=2)
        for shallower, k in enumerate(range(1, self.depth)):
            columns[k] = self.op("Min", columns[shallower], columns[k])
        rows = self.op("Concat", *columns, axis=1)
        return self.op("Reshape", good, self._flat()), self.op("Reshape", rows, self._flat())

    def _flat(self) -> str:
        """The shape (B, T)."""
        return self.constant([0, -1], np.int64)

    def raster_order(self, mask: str) -> str:
        """A mask (B, 1, T) by depth, then position, as one by position, then depth."""
        planes = self.op("Reshape", mask, self.constant([0, self.depth, -1], np.int64))
        stacks = self.op("Transpose", planes, perm=[0, 2, 1])
        return self.op("Reshape", stacks, self.constant([0, 1, -1], np.int64))

    def tabulate(self, fixed: str) -> None:
        """Fill :attr:`ones`, :attr:`table` and :attr:`row` from the fixed-point scores (B, T)."""
        columns, rest = [], fixed
        for weight in reversed(_DIGITS):
            digit = self.op("Floor", self.op("Mul", rest, self.constant(1 / weight, np.float32)))
            rest = self.op("Sub", rest, self.op("Mul", digit, self.constant(weight, np.float32)))
            columns.append(digit)
        columns.reverse()
        self.ones = self.mask(self.op("GreaterOrEqual", fixed, self.constant(0, np.float32)))
        columns += [self.ones, self.mask(self.op("GreaterOrEqual", fixed, self.constant(_SATURATED, np.float32)))]
        last = self.constant([2], np.int64)
        self.table = self.op("Concat", *[self.op("Unsqueeze", column, last) for column in columns], axis=2)
        self.row = self.op("Unsqueeze", fixed, self.constant([1], np.int64))

    def totals(self, chosen: str) -> tuple[str, str]:
        """Count and exact sum, int64 (B, M, 1), of the tokens in the masks ``chosen`` (B, M, T)."""
        sums = self.op("MatMul", chosen, self.table)
        *digits, count, saturated = self.split(self.big(sums), len(_DIGITS) + 2, axis=2)
        total = digits[0]
        for digit, weight in zip(digits[1:], _DIGITS[1:], strict=True):
            total = self.op("Add", total, self.op("Mul", digit, self.constant(weight, np.int64)))
        return count, self.op("Sub", total, saturated)

    def share_of(self, total: str) -> str:
        """``ceil(share * total / 2^30)``: the product of 77 bits in two parts, as in dtf.hpp."""
        one = self.constant(_TAU_ONE, np.int64)
        high = self.op("Div", total, one)
        low = self.op("Sub", total, self.op("Mul", high, one))
        share = self.constant(self.limits.share, np.int64)
        rounded = self.op("Add", self.op("Mul", share, low), self.constant(_TAU_ONE - 1, np.int64))
        return self.op("Add", self.op("Mul", share, high), self.op("Div", rounded, one))

    def count_limits(self, size: str) -> tuple[str, str]:
        """The least and the largest number of kept tokens.

        A fixed-point score reaches the floor where it reaches the next float32 at or above the floor.
        """
        limits = self.limits
        floor = np.float32(limits.floor_score)
        if int(floor) < limits.floor_score:
            floor = np.nextafter(floor, np.float32(np.inf), dtype=np.float32)
        above = self.op("GreaterOrEqual", self.row, self.constant(floor, np.float32))
        above_floor, _ = self.totals(self.mask(above))
        least = self.op("Min", size, self.constant(limits.min_tokens, np.int64))
        upper = self.op("Min", size, self.constant(limits.max_tokens, np.int64))
        return least, self.op("Min", upper, above_floor)

    def find_threshold(self, least: str, most: str, target: str) -> str:
        """The largest threshold (B, 1, 1) that enough tokens reach.

        Candidates that float32 rounds are harmless: where they lie closer together than float32 values do, no score
        lies between them.
        """
        row = self.row
        threshold = self.op("Mul", self.op("ReduceMax", row, axes=[2], keepdims=1), self.constant(0, np.float32))
        for round_ in reversed(range(_ROUNDS)):
            step = float(1 << (_DIGIT * round_))
            steps = self.constant(np.arange(1, 1 << _DIGIT).reshape(1, -1, 1) * step, np.float32)
            candidates = self.op("Add", threshold, steps)
            count, total = self.totals(self.mask(self.op("GreaterOrEqual", row, candidates)))
            reached = self.op("Or", self.op("GreaterOrEqual", count, most), self.op("GreaterOrEqual", total, target))
            passed = self.mask(self.op("And", self.op("GreaterOrEqual", count, least), reached))
            accepted = self.op("ReduceSum", passed, self.constant([1], np.int64), keepdims=1)
            threshold = self.op("Add", threshold, self.op("Mul", accepted, self.constant(step, np.float32)))
        return threshold

    def choose(self, threshold: str, least: str, most: str, target: str) -> str:
        """A mask (B, 1, T): all tokens above the threshold, and the first of the equal ones, as many as are needed."""
        is_above = self.op("Greater", self.row, threshold)
        is_equal = self.op("Equal", self.row, threshold)
        count, total_above = self.totals(self.mask(is_above))
        saturated = self.big(self.mask(self.op("GreaterOrEqual", threshold, self.constant(_SATURATED, np.float32))))
        # Where nothing is kept, the threshold is above every score, at most 2^32 - 1. As a divisor it must not be 0.
        value = self.op("Max", self.op("Sub", self.big(threshold), saturated), self.constant(1, np.int64))
        missing = self.op("Max", self.op("Sub", target, total_above), self.constant(0, np.int64))
        needed = self.op("Div", self.op("Sub", self.op("Add", missing, value), self.constant(1, np.int64)), value)
        ties = self.op("Max", needed, self.constant(1, np.int64))
        ties = self.op("Min", ties, self.op("Sub", most, count))
        ties = self.op("Max", ties, self.op("Sub", least, count))
        # (B, 1, T): the place of every token among the equal ones, from 1 on.
        place = self.op("CumSum", self.mask(is_equal), self.constant(2, np.int64))
        chosen = self.op("LessOrEqual", place, self.cast(ties, TensorProto.FLOAT))
        return self.mask(self.op("Or", is_above, self.op("And", is_equal, chosen)))

    def refuse_bad(self, good: str, kept: str) -> tuple[str, str, str, str]:
        """Keep nothing of an image with a bad score; everything is in raster order.

        Returns:
            The mask (B, 1, T); the numbers of all tokens, from 1 on; the number of the first bad score, or a number
            above all; and whether the image has no bad score.
        """
        bad = self.mask(self.op("Not", self.op("Unsqueeze", good, self.constant([1], np.int64))))
        row = self.op("Unsqueeze", self.ones, self.constant([1], np.int64))
        number = self.op("CumSum", row, self.constant(2, np.int64))
        far = self.constant(float(1 << 20), np.float32)
        distance = self.op("Mul", self.op("Sub", self.constant(1, np.float32), bad), far)
        first_bad = self.op("ReduceMin", self.op("Add", number, distance), axes=[2], keepdims=1)
        fine = self.op("GreaterOrEqual", first_bad, far)
        return self.op("Mul", kept, self.mask(fine)), number, first_bad, fine

    def write_outputs(self, kept: str, number: str, first_bad: str, fine: str, outputs: FilterOutputs) -> None:
        """Kept tokens to the front, the others behind them: a permutation, so no two updates meet."""
        kept_up_to = self.op("CumSum", kept, self.constant(2, np.int64))
        kept_all = self.op("ReduceSum", kept, self.constant([2], np.int64), keepdims=1)
        behind = self.op("Sub", self.op("Add", kept_all, number), kept_up_to)
        is_kept = self.op("Greater", kept, self.constant(0.5, np.float32))
        one, half = self.constant(1, np.float32), self.constant(0.5, np.float32)
        flat = self.constant([1], np.int64)
        slot = self.op("Sub", self.op("Where", is_kept, kept_up_to, behind), one)
        slots = self.cast(self.op("Squeeze", slot, flat), TensorProto.INT32)
        # Half a token more, so that no rounding of the quotient gets below a whole number.
        size = self.constant(self.depth, np.float32)
        quotient = self.op("Mul", self.op("Sub", number, half), self.constant(1 / self.depth, np.float32))
        position = self.op("Floor", quotient)
        depth = self.op("Sub", number, self.op("Mul", position, size))
        for value, padding, name in ((position, -1, outputs.positions), (depth, 0, outputs.depths)):
            update = self.op("Where", is_kept, value, self.constant(padding, np.float32))
            updates = self.op("Squeeze", update, flat)
            scattered = self.op("ScatterElements", updates, slots, updates, axis=1)
            self.op("Cast", scattered, name=name, to=TensorProto.INT32)
        refused = self.op("Sub", self.constant(0, np.float32), first_bad)
        result = self.op("Squeeze", self.op("Where", fine, kept_all, refused), self.constant([1, 2], np.int64))
        self.op("Cast", result, name=outputs.counts, to=TensorProto.INT32)


def dtf_model(
    limits: DtfLimits,
    *,
    form: Literal["plugin", "onnx"],
    depth: int,
    dtype: Any = np.float32,
    shape: Sequence[int | str] = ("batch", "patches"),
) -> onnx.ModelProto:
    """A whole model of token filtering: ``scores`` (B, N, K) to ``positions``, ``depths`` (B, N * K) and ``counts``.

    Args:
        limits: Limits of the kept tokens.
        form: The plugin node, or standard operators.
        depth: K, scores per patch.
        dtype: ``numpy.float32`` or ``numpy.float16``, of the scores.
        shape: B and N; a string is a dynamic axis of that name.

    Raises:
        ValueError: an unknown form or dtype, too many patches, or a depth out of range.
    """
    if form not in ("plugin", "onnx"):
        raise ValueError(f"form must be 'plugin' or 'onnx', got {form!r}")
    if np.dtype(dtype) not in (np.float32, np.float16):
        raise ValueError(f"dtype must be float32 or float16, got {np.dtype(dtype)}")
    if not 1 <= depth <= MAX_DEPTH:
        raise ValueError(f"token filtering takes 1 to {MAX_DEPTH} scores per patch, got {depth}")
    batch, patches = shape
    if isinstance(patches, int) and not 1 <= patches <= MAX_PATCHES:
        raise ValueError(f"token filtering takes 1 to {MAX_PATCHES} patches, got {patches}")
    constants: list[onnx.TensorProto] = []
    outputs = FilterOutputs()
    if form == "plugin":
        nodes = [plugin_node("scores", outputs, limits)]
    else:
        nodes, constants = standard_nodes("scores", depth, outputs, limits)
    tokens = patches * depth if isinstance(patches, int) else "tokens"
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "dtf",
        [helper.make_tensor_value_info("scores", element, [batch, patches, depth])],
        [
            helper.make_tensor_value_info(outputs.positions, TensorProto.INT32, [batch, tokens]),
            helper.make_tensor_value_info(outputs.depths, TensorProto.INT32, [batch, tokens]),
            helper.make_tensor_value_info(outputs.counts, TensorProto.INT32, [batch]),
        ],
        initializer=constants,
    )
    opsets = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(DOMAIN, 1)] if form == "plugin" else [])
    model = helper.make_model(graph, opset_imports=opsets, producer_name="tatok-edge", ir_version=8)
    onnx.checker.check_model(model)
    return model
