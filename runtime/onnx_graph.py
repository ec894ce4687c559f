"""Checks ONNX graphs before a library opens them: the bytes of a graph must not name other files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tatok_edge.errors import BundleError

_MESSAGES: Final = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Fields of the messages of ONNX (``onnx.proto``) that lead to tensors, and the message in each."""
_EXTERNAL, _LOCATION = 13, 14
"""Fields of a tensor whose values are in another file: where they are, and that they are."""
_DEEPEST: Final = 64


def check_graph(data: bytes, name: str) -> None:
    """Checks that all values of a graph are in its own bytes.

    Args:
        data: A serialised ONNX model.
        name: Its name in messages.

    Raises:
        BundleError: A value is in another file, or the bytes are no protocol buffer.
    """
    try:
        _check(memoryview(data), "model", name, 0)
    except (IndexError, ValueError):
        raise BundleError(f"graph {name!r} is damaged: it is no ONNX model") from None


def _check(data: memoryview, kind: str, name: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("too deep")
    inside = _MESSAGES[kind]
    for field, value in _fields(data):
        if kind == "tensor" and (field == _EXTERNAL or (field == _LOCATION and value != 0)):
            raise BundleError(f"graph {name!r} takes values from another file; a bundle holds all values in its graphs")
        if field in inside:
            if not isinstance(value, memoryview):
                raise ValueError("no message")
            _check(value, inside[field], name, depth + 1)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Numbers and values of the fields of a message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise ValueError("cut off")
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise ValueError("unknown kind of field")
    if at > len(data):
        raise ValueError("cut off")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift >= 70:
            raise ValueError("too long")
