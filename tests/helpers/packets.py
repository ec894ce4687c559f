"""Packets of any header fields, files of frames, and frames as plain values."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from helpers.coder_reference import Held, Models
from helpers.example_frames import StaticModel
from helpers.paths import ROOT
from tatok_edge.format.varint import varint
from tatok_edge.format.writer import Writer
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens

MODEL = StaticModel()
OTHER_TAG = b"other!!!"
PAGE = ROOT / "docs" / "format.md"


DELTA_ARRAYS = ("updated", "refined", "positions", "ids", "cells", "global_ids", "turns", "vectors")


def as_dict(frame: TokenFrame) -> dict[str, object]:
    return {
        "ids": frame.ids.tolist(),
        "positions": frame.positions.tolist(),
        "global_ids": frame.global_ids.tolist(),
        "width": frame.width,
        "height": frame.height,
        "index": frame.index,
        "timestamp_us": frame.timestamp_us,
    }


def delta_as_dict(delta: DeltaFrame) -> dict[str, object]:
    arrays = {name: getattr(delta, name).tolist() for name in DELTA_ARRAYS}
    numbers = {
        name: getattr(delta, name) for name in ("width", "height", "index", "reference", "follows", "timestamp_us")
    }
    return arrays | numbers


def held_as_plain(held: HeldTokens) -> Held:
    stacks = [ids[:depth] for ids, depth in zip(held.ids.tolist(), held.depths.tolist(), strict=True)]
    return Held(held.global_ids.tolist(), stacks)


def models_of(model: Any) -> Models:
    """A model of :mod:`helpers.example_frames` for the reference."""
    return Models(model.levels, model.depth, model.global_rows, model.patch_rows)


def write_file(path: Path, frames: list[TokenFrame], model: Any = MODEL, **options: Any) -> Path:
    with Writer(path, model, name="static", **options) as writer:
        for frame in frames:
            writer.write(frame)
    return path


def with_crc(packet: bytes) -> bytes:
    """A packet with its CRC made right again, so that the checks after the CRC are reached."""
    return packet[:-4] + zlib.crc32(packet[:-4]).to_bytes(4, "little")


def make_packet(*fields: int, flags: int = 0, body: bytes = b"", length: int | None = None, version: int = 1) -> bytes:
    """A packet of any header fields."""
    rest = b"".join(map(varint, fields)) + body
    head = bytes([0xA9, version << 4 | flags]) + varint(len(rest) + 4 if length is None else length) + rest
    return head + zlib.crc32(head).to_bytes(4, "little")


def make_delta_packet(
    back: int,
    updated: int,
    tokens: int = 0,
    cells: int = 0,
    refined: int = 0,
    *,
    body: bytes = b"",
    index: int = 9,
    side: int = 64,
) -> bytes:
    """A delta packet of any counts for an image of ``side`` x ``side`` pixels."""
    counts = [updated, *([refined] if refined else []), *([tokens] if updated else [])]
    if updated > refined:
        counts.append(cells)
    rest = varint(back) + b"\1\2\3\4" + b"".join(map(varint, counts))
    return make_packet(index, 0, side, side, flags=1 | (4 if refined else 0), body=rest + body)
