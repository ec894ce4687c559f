"""The steps around the networks in a Triton server, as ONNX graphs: pixels in, token ids out, and back.

They compute the same as the CPU kernels (``runtime/reference.py``), in the same order of operations, so the server
keeps the same tokens. Standard operators of opset 17 only; ONNX Runtime runs them on the CPU or a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tatok_edge.export.engines.dtf_onnx import OPSET, FilterOutputs, GraphBuilder, standard_nodes
from tatok_edge.geometry import CELL, CELL_SIDE, PATCH, PATCH_VALUES, THUMBNAIL, WINDOW, WINDOW_VALUES
from tatok_edge.runtime.cuda.kernels import DtfLimits

_TYPES = {"float": TensorProto.FLOAT, "int": TensorProto.INT32, "byte": TensorProto.UINT8}
Shape = Sequence[int | str]
Values = dict[str, tuple[str, Shape]]
"""Type and shape of inputs or outputs by name; a string is a dynamic axis."""


def cells_model() -> onnx.ModelProto:
    """``image`` (B, H, W, 3), uint8 RGB, to ``cells`` (B, 192, hc, wc), the input of the global encoder."""
    g = _Builder()
    padded, rows, columns = g.padded("image")
    side = CELL // THUMBNAIL
    batch = g.size("image", 0)
    hc, wc = (g.op("Div", size, g.integers(CELL)) for size in (rows, columns))
    squares = g.reshape(padded, batch, hc, side, THUMBNAIL, wc, side, THUMBNAIL, 3)
    sums = g.op("ReduceSum", squares, g.integers(3, 6), keepdims=0)
    scaled = g.op("Mul", sums, g.constant(1 / (THUMBNAIL * THUMBNAIL * 127.5), np.float32))
    thumbnail = g.op("Sub", scaled, g.constant(1, np.float32))
    turned = g.op("Transpose", thumbnail, perm=[0, 2, 4, 5, 1, 3])
    g.reshape(turned, batch, side * side * 3, hc, wc, name="cells")
    return g.model(
        "cells",
        {"image": ("byte", ["batch", "height", "width", 3])},
        {"cells": ("float", ["batch", PATCH_VALUES, "cell_rows", "cell_columns"])},
    )


def rows_model(context_width: int) -> onnx.ModelProto:
    """``coarse`` (B, Dc, h, w) to ``coarse_rows`` (B, Dc, 1, h w): the context takes patches in one row."""
    g = _Builder()
    g.reshape("coarse", 0, context_width, 1, -1, name="coarse_rows")
    return g.model(
        "rows",
        {"coarse": ("float", ["batch", context_width, "patch_rows", "patch_columns"])},
        {"coarse_rows": ("float", ["batch", context_width, 1, "patches"])},
    )


def select_model(limits: DtfLimits, context_width: int, basis: NDArray[np.int16]) -> onnx.ModelProto:
    """The kept tokens of one picture, and the feature rows of their patches.

    ``image`` (1, H, W, 3), ``context`` (1, Dc, 1, N) and ``mean`` (1, 192, h, w) to ``positions`` (T,), where a patch
    comes as often as it has tokens; ``places`` (T,), where each token is among the P stacks of the patches; and
    ``features`` (P, 960 + Dc). Tokens are ranked by residual.

    Args:
        limits: Limits of Dynamic Token Filtering.
        context_width: Dc.
        basis: Directions of the scores, (K, D, 192).
    """
    g = _Builder()
    padded, rows, columns = g.padded("image")
    h, w = (g.op("Div", size, g.integers(PATCH)) for size in (rows, columns))
    _scores(g, padded, h, w, basis)
    depth = len(basis)
    dense = FilterOutputs("dense_positions", "dense_depths", "counts")
    nodes, constants = standard_nodes("scores", depth, dense, limits)
    g.nodes += nodes
    g.initializers += constants
    start = g.constant([0], np.int32)
    g.op("Slice", g.reshape(dense.positions, -1), start, dense.counts, name="positions")
    depths = g.op("Slice", g.reshape(dense.depths, -1), start, dense.counts)
    first = g.op("Equal", depths, g.constant(1, np.int32))
    stack = g.op("CumSum", g.cast(first, TensorProto.INT32), g.constant(0, np.int64))
    above = g.op("Mul", g.op("Sub", stack, g.constant(1, np.int32)), g.constant(depth, np.int32))
    g.op("Add", above, g.op("Sub", depths, g.constant(1, np.int32)), name="places")

    # Windows overlap: each is made of four 8x8 blocks of the picture with a margin of four pixels around it.
    margin = (WINDOW - PATCH) // 2
    around = g.op("Pad", padded, g.integers(0, margin, margin, 0, 0, margin, margin, 0), mode="edge")
    one = g.integers(1)
    block_rows, block_columns = g.op("Add", h, one), g.op("Add", w, one)
    blocks = g.reshape(around, block_rows, PATCH, block_columns, PATCH, 3)
    blocks = g.op("Transpose", blocks, perm=[0, 2, 1, 3, 4])
    blocks = g.reshape(blocks, -1, PATCH, PATCH, 3)
    where = g.cast(g.op("Compress", "positions", first, axis=0), TensorProto.INT64)
    corners = g.reshape(g.op("Add", where, g.op("Div", where, w)), -1, 1, 1)
    below = g.op("Concat", g.integers(0), block_columns, axis=0)
    offsets = g.op("Add", g.reshape(below, 2, 1), g.reshape(g.integers(0, 1), 1, 2))
    windows = g.op("Gather", blocks, g.op("Add", corners, offsets), axis=0)
    windows = g.reshape(g.op("Transpose", windows, perm=[0, 1, 3, 2, 4, 5]), -1, WINDOW_VALUES)
    scaled = g.op("Div", windows, g.constant(127.5, np.float32))
    values = g.op("Sub", scaled, g.constant(1, np.float32))

    def columns_of(name: str, width: int) -> str:
        flat = g.reshape(name, width, -1)
        return g.op("Transpose", g.op("Gather", flat, where, axis=1), perm=[1, 0])

    rest = columns_of("context", context_width), columns_of("mean", PATCH_VALUES)
    g.op("Concat", values, *rest, axis=1, name="features")
    return g.model(
        "select",
        {
            "image": ("byte", [1, "height", "width", 3]),
            "context": ("float", [1, context_width, 1, "patches"]),
            "mean": ("float", [1, PATCH_VALUES, "patch_rows", "patch_columns"]),
        },
        {
            "positions": ("int", ["tokens"]),
            "places": ("int", ["tokens"]),
            "features": ("float", ["stacks", WINDOW_VALUES + context_width + PATCH_VALUES]),
        },
    )


def _scores(g: _Builder, padded: str, h: str, w: str, basis: NDArray[np.int16]) -> None:
    """The energy of the residual of every patch in the directions of each token, as ``scores`` (1, N, K).

    Integers throughout, as in the kernel: float64 holds all products and their sums exactly.
    """
    depth, dims, _ = basis.shape
    squares = g.op("Transpose", g.reshape(padded, h, PATCH, w, PATCH, 3), perm=[0, 2, 1, 3, 4])
    pixels = g.op("Mul", g.reshape(squares, -1, PATCH_VALUES), g.constant(16, np.float32))
    scaled = g.op("Mul", g.reshape("mean", PATCH_VALUES, -1), g.constant(2040, np.float32))
    sixteenths = g.op("Add", scaled, g.constant(2040, np.float32))
    known = g.op("Where", g.op("IsNaN", sixteenths), g.constant(-8192, np.float32), sixteenths)
    clipped = g.op("Clip", known, g.constant(-8192, np.float32), g.constant(8192, np.float32))
    mean = g.op("Transpose", g.op("Round", clipped), perm=[1, 0])
    residual = g.op("Clip", g.op("Sub", pixels, mean), g.constant(-4095, np.float32), g.constant(4095, np.float32))
    directions = g.constant(basis.reshape(-1, PATCH_VALUES).T, np.float64)
    products = g.op("MatMul", g.cast(residual, TensorProto.DOUBLE), directions)
    shifted = g.cast(g.op("Floor", g.op("Mul", products, g.constant(1 / 16, np.float64))), TensorProto.INT64)
    energies = g.reshape(g.op("Mul", shifted, shifted), -1, depth, dims)
    energy = g.cast(g.op("ReduceSum", energies, g.integers(2), keepdims=0), TensorProto.DOUBLE)
    scores = g.cast(g.op("Div", energy, g.constant(PATCH_VALUES * 2.0**28, np.float64)), TensorProto.FLOAT)
    g.reshape(scores, 1, -1, depth, name="scores")


def pack_model(levels: Sequence[int], depth: int) -> onnx.ModelProto:
    """``codes`` (P, K * D), ``places`` (T,) and ``global_codes`` (1, D, hc, wc) to ``ids`` (T,) and ``global_ids``."""
    g = _Builder()
    place = _places(levels)
    tokens = g.op("Gather", g.reshape("codes", -1, len(levels)), "places", axis=0)
    g.op("ReduceSum", g.op("Mul", tokens, g.constant(place, np.int32)), g.integers(1), keepdims=0, name="ids")
    flat = g.reshape("global_codes", len(levels), -1)
    weighted = g.op("Mul", flat, g.constant(place[:, None], np.int32))
    g.op("ReduceSum", weighted, g.integers(0), keepdims=0, name="global_ids")
    return g.model(
        "pack",
        {
            "codes": ("int", ["stacks", depth * len(levels)]),
            "places": ("int", ["tokens"]),
            "global_codes": ("int", [1, len(levels), "cell_rows", "cell_columns"]),
        },
        {"ids": ("int", ["tokens"]), "global_ids": ("int", ["cells"])},
    )


def codes_model(levels: Sequence[int]) -> onnx.ModelProto:
    """``global_ids`` (B, hc, wc) to ``codes`` (B, D, hc, wc)."""
    g = _Builder()
    column = [-1, 1, 1]
    digits = g.op(
        "Div", g.op("Unsqueeze", "global_ids", g.integers(1)), g.constant(_places(levels).reshape(column), np.int32)
    )
    g.op("Mod", digits, g.constant(np.reshape(levels, column), np.int32), name="codes")
    return g.model(
        "codes",
        {"global_ids": ("int", ["batch", "cell_rows", "cell_columns"])},
        {"codes": ("int", ["batch", len(levels), "cell_rows", "cell_columns"])},
    )


def scatter_model(levels: Sequence[int], depth: int, context_width: int) -> onnx.ModelProto:
    """The tokens of several pictures, end to end, to the grids that the decoder takes.

    ``ids`` and ``positions`` (T,) hold the tokens of all pictures, ``ends`` (B,) the end of each picture's tokens,
    ``global_ids`` (B, hc, wc) say the size; ``expected`` (B, K * D, 1, N), ``entropy`` (B, K, 1, N) and ``context``
    come from the context. Gives ``state`` (B, K * (D + 2), h, w) and ``context_grid``.

    Positions that fall within a picture, or come more than K times, are an error of the server.
    """
    g = _Builder()
    dims = len(levels)
    h, w = (g.op("Mul", g.size("global_ids", axis), g.integers(CELL_SIDE)) for axis in (1, 2))
    # The number of pictures must equal the number of ends; otherwise the server reports an error.
    batch = g.op("Shape", "ends")
    stacks = g.op("Mul", batch, g.op("Mul", h, w))
    digits = g.op("Div", g.op("Unsqueeze", "ids", g.integers(1)), g.constant(_places(levels)[None], np.int32))
    codes = g.cast(g.op("Mod", digits, g.constant([levels], np.int32)), TensorProto.FLOAT)
    doubled = g.op("Add", g.op("Mul", codes, g.constant(2, np.float32)), g.constant(1, np.float32))
    values = g.op("Sub", g.op("Div", doubled, g.constant([levels], np.float32)), g.constant(1, np.float32))

    index = g.op("Unsqueeze", _token_index(g, g.op("Mul", h, w), stacks, depth), g.integers(1))
    parts = g.op("Transpose", g.reshape("expected", 0, depth, dims, -1), perm=[0, 3, 1, 2])
    scattered = g.op("ScatterND", g.reshape(parts, -1, dims), index, values)
    grid = g.op("Transpose", g.reshape(scattered, batch, h, w, depth, dims), perm=[0, 3, 4, 1, 2])
    grid = g.reshape(grid, batch, depth * dims, h, w)
    nothing = g.op("ConstantOfShape", g.op("Mul", stacks, g.integers(depth)))
    ones = g.op("Expand", g.constant([1], np.float32), g.op("Shape", "ids"))
    kept = g.reshape(g.op("ScatterND", nothing, index, ones), batch, h, w, depth)
    keep = g.op("Transpose", kept, perm=[0, 3, 1, 2])
    entropy = g.reshape(g.op("Div", "entropy", g.constant(16, np.float32)), batch, depth, h, w)
    g.op("Concat", grid, keep, entropy, axis=1, name="state")
    g.reshape("context", batch, context_width, h, w, name="context_grid")

    def rows(channels: int) -> tuple[str, Shape]:
        return "float", ["batch", channels, 1, "patches"]

    def map_of(channels: int) -> tuple[str, Shape]:
        return "float", ["batch", channels, "patch_rows", "patch_columns"]

    return g.model(
        "scatter",
        {
            "ids": ("int", ["tokens"]),
            "positions": ("int", ["tokens"]),
            "ends": ("int", ["batch"]),
            "global_ids": ("int", ["batch", "cell_rows", "cell_columns"]),
            "expected": rows(depth * dims),
            "entropy": rows(depth),
            "context": rows(context_width),
        },
        {
            "state": map_of(depth * (dims + 2)),
            "context_grid": map_of(context_width),
        },
    )


def _token_index(g: _Builder, patches: str, stacks: str, depth: int) -> str:
    """Where each token goes in the stacks of all pictures, (T,): ``depth`` places a patch; outside if it is wrong."""
    count = g.op("Shape", "ids")
    number = g.op("Range", g.constant(0, np.int64), g.op("Squeeze", count, g.integers(0)), g.constant(1, np.int64))
    ends = g.op("Unsqueeze", g.cast("ends", TensorProto.INT64), g.integers(0))
    passed = g.op("GreaterOrEqual", g.op("Unsqueeze", number, g.integers(1)), ends)
    owner = g.op("ReduceSum", g.cast(passed, TensorProto.INT64), g.integers(1), keepdims=0)
    position = g.cast("positions", TensorProto.INT64)
    outside = g.op("Or", g.op("Less", position, g.integers(0)), g.op("GreaterOrEqual", position, patches))
    patch = g.op("Add", g.op("Mul", owner, patches), position)
    before = g.op("Pad", patch, g.integers(depth, 0), g.constant(-1, np.int64))
    token = ""
    for back in range(1, depth + 1):
        start = g.integers(depth - back)
        other = g.op("Slice", before, start, g.op("Add", count, start))
        same = g.cast(g.op("Equal", patch, other), TensorProto.INT64)
        token = g.op("Add", token, same) if token else same
        if back == 1:
            falls = g.op("Less", patch, other)
    deep = g.op("Equal", token, g.constant(depth, np.int64))
    size = g.constant(depth, np.int64)
    place = g.op("Add", g.op("Mul", patch, size), token)
    wrong = g.op("Or", outside, g.op("Or", falls, deep))
    return g.op("Where", wrong, g.op("Mul", stacks, size), place)


def picture_model() -> onnx.ModelProto:
    """``pixels`` (B, 192, h, w) to ``image`` (B, 8 h, 8 w, 3), uint8 RGB, padding included."""
    g = _Builder()
    batch, h, w = (g.size("pixels", axis) for axis in (0, 2, 3))
    grey = g.constant(127.5, np.float32)
    levels = g.op("Round", g.op("Add", g.op("Mul", "pixels", grey), grey))
    clipped = g.op("Clip", levels, g.constant(0, np.float32), g.constant(255, np.float32))
    squares = g.reshape(g.cast(clipped, TensorProto.UINT8), batch, PATCH, PATCH, 3, h, w)
    turned = g.op("Transpose", squares, perm=[0, 4, 1, 5, 2, 3])
    side = g.integers(PATCH)
    g.reshape(turned, batch, g.op("Mul", h, side), g.op("Mul", w, side), 3, name="image")
    return g.model(
        "picture",
        {"pixels": ("float", ["batch", PATCH_VALUES, "patch_rows", "patch_columns"])},
        {"image": ("byte", ["batch", "height", "width", 3])},
    )


def _places(levels: Sequence[int]) -> Any:
    """The factor of each code dimension in a token id."""
    return np.cumprod([1, *levels[:-1]], dtype=np.int32)


class _Builder(GraphBuilder):
    """A graph with initializers, and operations on pictures."""

    def __init__(self) -> None:
        super().__init__("n_")
        self.initializers: list[onnx.TensorProto] = []

    def integers(self, *values: int) -> str:
        """A constant int64 vector."""
        return self.constant(list(values), np.int64)

    def size(self, value: str, axis: int) -> str:
        """The length of an axis, int64 (1,)."""
        return self.op("Shape", value, start=axis, end=axis + 1)

    def reshape(self, value: str, *shape: int | str, name: str | None = None) -> str:
        """Another shape; a string is the name of a length, int64 (1,)."""
        if all(isinstance(length, int) for length in shape):
            target = self.constant(list(shape), np.int64)
        else:
            lengths = [self.integers(length) if isinstance(length, int) else length for length in shape]
            target = self.op("Concat", *lengths, axis=0)
        return self.op("Reshape", value, target, name=name)

    def padded(self, image: str) -> tuple[str, str, str]:
        """A picture (B, H, W, 3) as float32, padded to whole cells by its right and bottom edge; its height, width."""
        pads, sizes = [], []
        for axis in (1, 2):
            size = self.size(image, axis)
            pad = self.op("Mod", self.op("Neg", size), self.integers(CELL))
            pads.append(pad)
            sizes.append(self.op("Add", size, pad))
        zero = self.integers(0)
        amounts = self.op("Concat", self.integers(0, 0, 0, 0), zero, *pads, zero, axis=0)
        return self.op("Pad", self.cast(image, TensorProto.FLOAT), amounts, mode="edge"), sizes[0], sizes[1]

    def model(self, name: str, inputs: Values, outputs: Values) -> onnx.ModelProto:
        """The whole graph as a checked model."""

        def infos(values: Values) -> list[onnx.ValueInfoProto]:
            return [helper.make_tensor_value_info(key, _TYPES[kind], shape) for key, (kind, shape) in values.items()]

        graph = helper.make_graph(
            self.nodes,
            name,
            infos(inputs),
            infos(outputs),
            initializer=[*self.constants.values(), *self.initializers],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="tatok-edge", ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return model
