"""The steps around the networks in a Triton server, as ONNX graphs: pixels in, token ids out, and back.

They compute the same as the CPU kernels (``runtime/reference.py``), in the same order of operations, so the server
keeps the same tokens. Standard operators of opset 17 only; ONNX Runtime runs them on the CPU or a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tatok_edge.export.engines.dtf_onnx import OPSET, GraphBuilder, standard_nodes
from tatok_edge.geometry import CELL, PATCH, PATCH_VALUES, THUMBNAIL, WINDOW, WINDOW_VALUES
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


def select_model(limits: DtfLimits, context_width: int) -> onnx.ModelProto:
    """The positions of the kept patches of one picture, and their feature rows.

    ``image`` (1, H, W, 3), ``context`` (1, Dc, h, w) and ``mean`` (1, 192, h, w) to ``positions`` (T,) and ``features``
    (T, 960 + Dc). Patches are ranked by residual.

    Args:
        limits: Limits of Dynamic Token Filtering.
        context_width: Dc.
    """
    g = _Builder()
    padded, rows, columns = g.padded("image")
    h, w = (g.op("Div", size, g.integers(PATCH)) for size in (rows, columns))
    _scores(g, padded, h, w)
    nodes, constants = standard_nodes("scores", "indices", "counts", limits)
    g.nodes += nodes
    g.initializers += constants
    indices = g.reshape("indices", -1)
    g.op("Slice", indices, g.constant([0], np.int32), "counts", name="positions")

    # Windows overlap: each is made of four 8x8 blocks of the picture with a margin of four pixels around it.
    margin = (WINDOW - PATCH) // 2
    around = g.op("Pad", padded, g.integers(0, margin, margin, 0, 0, margin, margin, 0), mode="edge")
    one = g.integers(1)
    block_rows, block_columns = g.op("Add", h, one), g.op("Add", w, one)
    blocks = g.reshape(around, block_rows, PATCH, block_columns, PATCH, 3)
    blocks = g.op("Transpose", blocks, perm=[0, 2, 1, 3, 4])
    blocks = g.reshape(blocks, -1, PATCH, PATCH, 3)
    where = g.cast("positions", TensorProto.INT64)
    first = g.op("Add", where, g.op("Div", where, w))
    corners = g.reshape(first, -1, 1, 1)
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
            "context": ("float", [1, context_width, "patch_rows", "patch_columns"]),
            "mean": ("float", [1, PATCH_VALUES, "patch_rows", "patch_columns"]),
        },
        {
            "positions": ("int", ["tokens"]),
            "features": ("float", ["tokens", WINDOW_VALUES + context_width + PATCH_VALUES]),
        },
    )


def _scores(g: _Builder, padded: str, h: str, w: str) -> None:
    """The residual of every patch as ``scores`` (1, N)."""
    half = PATCH // 2
    quads = g.reshape(padded, h, half, 2, w, half, 2, 3)
    sums = g.op("ReduceSum", quads, g.integers(2, 5), keepdims=0)
    sums = g.reshape(g.op("Transpose", sums, perm=[0, 2, 1, 3, 4]), -1, half * half * 3)
    pairs = [
        g.op("Add", *g.split(row, 2, axis=3)) for row in g.split(g.reshape("mean", half, 2, half, 2, 3, -1), 2, axis=1)
    ]
    expected = g.reshape(g.op("Add", *pairs), half * half * 3, -1)
    levels = g.op("Mul", expected, g.constant(127.5, np.float32))
    levels = g.op("Transpose", g.op("Add", levels, g.constant(510, np.float32)), perm=[1, 0])
    differences = g.op("Mul", g.op("Sub", sums, levels), g.constant(0.25, np.float32))
    squares = g.split(g.op("Mul", differences, differences), half * half * 3, axis=1)
    # The sums have the order of the kernel: another order gives other last bits, and sometimes other tokens.
    total = squares[0]
    for square in squares[1:]:
        total = g.op("Add", total, square)
    g.reshape(g.op("Mul", total, g.constant(1 / 48, np.float32)), 1, -1, name="scores")


def pack_model(levels: Sequence[int]) -> onnx.ModelProto:
    """``codes`` (T, D) and ``global_codes`` (1, D, hc, wc) to ``ids`` (T,) and ``global_ids`` (G,)."""
    g = _Builder()
    place = _places(levels)
    g.op("ReduceSum", g.op("Mul", "codes", g.constant(place, np.int32)), g.integers(1), keepdims=0, name="ids")
    flat = g.reshape("global_codes", len(levels), -1)
    weighted = g.op("Mul", flat, g.constant(place[:, None], np.int32))
    g.op("ReduceSum", weighted, g.integers(0), keepdims=0, name="global_ids")
    return g.model(
        "pack",
        {
            "codes": ("int", ["tokens", len(levels)]),
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


def scatter_model(levels: Sequence[int]) -> onnx.ModelProto:
    """The tokens of several pictures, end to end, to the grids that the decoder takes.

    ``ids`` (K,) and ``positions`` (K,) hold the tokens of all pictures, ``ends`` (B,) the end of each picture's tokens;
    ``expected`` (B, D, h, w) and ``entropy`` (B, h, w) come from the context. Gives ``state`` (B, D + 2, h, w).
    """
    g = _Builder()
    dims = len(levels)
    h, w = g.size("expected", 2), g.size("expected", 3)
    # The number of pictures must equal the number of ends; otherwise the server reports an error.
    batch = g.op("Shape", "ends")
    patches = g.op("Mul", h, w)
    digits = g.op("Div", g.op("Unsqueeze", "ids", g.integers(1)), g.constant(_places(levels)[None], np.int32))
    codes = g.cast(g.op("Mod", digits, g.constant([levels], np.int32)), TensorProto.FLOAT)
    doubled = g.op("Add", g.op("Mul", codes, g.constant(2, np.float32)), g.constant(1, np.float32))
    values = g.op("Sub", g.op("Div", doubled, g.constant([levels], np.float32)), g.constant(1, np.float32))

    count = g.op("Shape", "ids")
    number = g.op("Range", g.constant(0, np.int64), g.op("Squeeze", count, g.integers(0)), g.constant(1, np.int64))
    ends = g.op("Unsqueeze", g.cast("ends", TensorProto.INT64), g.integers(0))
    passed = g.op("GreaterOrEqual", g.op("Unsqueeze", number, g.integers(1)), ends)
    owner = g.op("ReduceSum", g.cast(passed, TensorProto.INT64), g.integers(1), keepdims=0)
    index = g.op("Add", g.op("Mul", owner, patches), g.cast("positions", TensorProto.INT64))
    index = g.op("Unsqueeze", index, g.integers(1))

    base = g.reshape(g.op("Transpose", "expected", perm=[0, 2, 3, 1]), g.op("Mul", batch, patches), dims)
    grid = g.reshape(g.op("ScatterND", base, index, values), batch, h, w, dims)
    grid = g.op("Transpose", grid, perm=[0, 3, 1, 2])
    nothing = g.op("ConstantOfShape", g.op("Mul", batch, patches))
    ones = g.op("Expand", g.constant([1], np.float32), count)
    keep = g.reshape(g.op("ScatterND", nothing, index, ones), batch, 1, h, w)
    entropy = g.op("Div", g.op("Unsqueeze", "entropy", g.integers(1)), g.constant(16, np.float32))
    g.op("Concat", grid, keep, entropy, axis=1, name="state")
    return g.model(
        "scatter",
        {
            "ids": ("int", ["tokens"]),
            "positions": ("int", ["tokens"]),
            "ends": ("int", ["batch"]),
            "expected": ("float", ["batch", dims, "patch_rows", "patch_columns"]),
            "entropy": ("float", ["batch", "patch_rows", "patch_columns"]),
        },
        {"state": ("float", ["batch", dims + 2, "patch_rows", "patch_columns"])},
    )


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
