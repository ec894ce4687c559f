"""Packets in plain Python, written from docs/format.md: slow, without numpy, and the same bytes as the package.

``steps`` of an encoder lists what was coded, for the worked example of the page.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

Rows = Sequence[Sequence[int]]


class Encoder:
    """Range coder: the value is kept as one big number, so that no carry needs care."""

    def __init__(self) -> None:
        self.low = 0
        self.range = 0xFFFFFFFF
        self.shifts = 0
        self.steps: list[tuple[int, int]] = []

    def encode(self, start: int, frequency: int) -> None:
        self.steps.append((start, frequency))
        unit = self.range >> 12
        self.low += unit * start
        self.range = unit * frequency
        while self.range < 1 << 24:
            self.low <<= 8
            self.range <<= 8
            self.shifts += 1

    def finish(self) -> bytes:
        value = (self.low + (1 << 24) - 1) >> 24
        text = value.to_bytes(self.shifts + 1, "big")
        return text if text[-1] else text[:-1]


class Decoder:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.low = 0
        self.range = 0xFFFFFFFF
        self.shifts = 0

    def _code(self) -> int:
        """Value of the first ``shifts + 4`` bytes, zeros past the end, less what is decoded."""
        count = self.shifts + 4
        return int.from_bytes(self.data[:count].ljust(count, b"\0"), "big") - self.low

    def decode(self, row: Sequence[int]) -> int:
        """Index of the part of 4096 that the value lies in."""
        unit = self.range >> 12
        code = self._code()
        start = symbol = 0
        while code >= unit * (start + row[symbol]):
            start += row[symbol]
            symbol += 1
            if symbol == len(row):
                raise ValueError("outside every part")
        self.low += unit * start
        self.range = unit * row[symbol]
        while self.range < 1 << 24:
            self.low <<= 8
            self.range <<= 8
            self.shifts += 1
        if self.shifts > len(self.data):
            raise ValueError("cut off")
        return symbol

    def finish(self) -> None:
        value = (self.low + (1 << 24) - 1) >> 24
        text = value.to_bytes(self.shifts + 1, "big")
        if self.data != (text if text[-1] else text[:-1]):
            raise ValueError("does not end here")


class AdaptiveBit:
    def __init__(self) -> None:
        self.one = 2048
        self.shift = 1

    def update(self, bit: int) -> None:
        if bit:
            self.one += (4096 - self.one) >> self.shift
        else:
            self.one -= self.one >> self.shift
        self.shift = min(self.shift + 1, 5)


def encode_bit(coder: Encoder, model: AdaptiveBit, bit: int) -> int:
    coder.encode(*((0, model.one) if bit else (model.one, 4096 - model.one)))
    model.update(bit)
    return bit


def decode_bit(coder: Decoder, model: AdaptiveBit) -> int:
    bit = 1 - coder.decode([model.one, 4096 - model.one])
    model.update(bit)
    return bit


def encode_symbols(coder: Encoder, symbols: Sequence[int], rows: Rows) -> None:
    for symbol, row in zip(symbols, rows, strict=True):
        coder.encode(sum(row[:symbol]), row[symbol])


def decode_symbols(coder: Decoder, rows: Rows) -> list[int]:
    return [coder.decode(row) for row in rows]


Grid = Sequence[Sequence[int]]


class Adaptation:
    """Scale and biases of the dimensions of a network's tokens, which follow what a body has coded with it so far."""

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = levels
        self.scales = [0] * len(levels)
        self.biases = [0] * sum(levels)

    def rows(self, totals: Sequence[int], exp: Sequence[int]) -> list[list[int]]:
        rows, at = [], 0
        for scale, level in zip(self.scales, self.levels, strict=True):
            pairs = zip(totals[at : at + level], self.biases[at : at + level], strict=True)
            logits = [(total + (total * (scale >> 6) >> 16) + (bias >> 1)) >> 12 for total, bias in pairs]
            at += level
            below = [max(logits) - logit for logit in logits]
            weights = [exp[min(step, 177)] for step in below]
            row = [1 + weight * (4096 - level) // sum(weights) for weight in weights]
            row[below.index(0)] += 4096 - sum(row)
            rows.append(row)
        return rows

    def learn(self, totals: Sequence[int], rows: Rows, code: Sequence[int]) -> None:
        at = 0
        for d, (level, row) in enumerate(zip(self.levels, rows, strict=True)):
            slopes = [4096 * (k == code[d]) - frequency for k, frequency in enumerate(row)]
            step = sum(slope * (total >> 12) for slope, total in zip(slopes, totals[at : at + level], strict=True))
            self.scales[d] = min(max(self.scales[d] + step, -3145728), 3145728)
            for k, slope in enumerate(slopes):
                self.biases[at + k] = min(max(self.biases[at + k] + slope, -(2**20)), 2**20)
            at += level


def _walk(
    height: int, width: int, count: int, places: Grid | None, bit: Callable[[AdaptiveBit, int, int], int]
) -> list[list[int]]:
    models = [AdaptiveBit() for _ in range(16)]
    grid = [[0] * width for _ in range(height)]

    def at(y: int, x: int) -> int:
        return grid[y][x] if y >= 0 and 0 <= x < width else 0

    left = count
    cells = height * width if places is None else sum(map(sum, places))
    for y in range(height):
        for x in range(width):
            if places is not None and not places[y][x]:
                continue
            if left == 0:
                value = 0
            elif left == cells:
                value = 1
            else:
                context = at(y, x - 1) + 2 * at(y - 1, x) + 4 * at(y - 1, x - 1) + 8 * at(y - 1, x + 1)
                value = bit(models[context], y, x)
            grid[y][x] = value
            left -= value
            cells -= 1
    return grid


def encode_bitmap(coder: Encoder, grid: Grid, places: Grid | None = None) -> None:
    count = sum(map(sum, grid))
    _walk(len(grid), len(grid[0]), count, places, lambda model, y, x: encode_bit(coder, model, grid[y][x]))


def decode_bitmap(coder: Decoder, height: int, width: int, count: int, places: Grid | None = None) -> list[list[int]]:
    return _walk(height, width, count, places, lambda model, y, x: decode_bit(coder, model))


def encode_gaps(coder: Encoder, positions: Sequence[int]) -> None:
    models = [AdaptiveBit() for _ in range(31)]
    last = -1
    for position in positions:
        value = position - last
        length = value.bit_length() - 1
        for n in range(length):
            encode_bit(coder, models[n], 1)
        encode_bit(coder, models[length], 0)
        for n in reversed(range(length)):
            coder.encode((value >> n & 1) * 2048, 2048)
        last = position


def decode_gaps(coder: Decoder, count: int, cells: int) -> list[int]:
    models = [AdaptiveBit() for _ in range(31)]
    positions = []
    last = -1
    for _ in range(count):
        length = 0
        while decode_bit(coder, models[length]):
            length += 1
            if length == 31:
                raise ValueError("gap too long")
        value = 1
        for _ in range(length):
            value = 2 * value + coder.decode([2048, 2048])
        last += value
        if last >= cells:
            raise ValueError("position outside")
        positions.append(last)
    return positions


def varint(value: int) -> bytes:
    out = []
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 128:
        value += (data[at] - 128) << shift
        shift += 7
        at += 1
    return value + (data[at] << shift), at + 1


def code_from_id(number: int, levels: Sequence[int]) -> list[int]:
    code = []
    for level in levels:
        code.append(number % level)
        number //= level
    return code


def id_from_code(code: Sequence[int], levels: Sequence[int]) -> int:
    number = 0
    for digit, level in zip(reversed(code), reversed(levels), strict=True):
        number = number * level + digit
    return number


class Head(NamedTuple):
    """What every packet says about its frame."""

    index: int
    timestamp_us: int
    width: int
    height: int


def _assemble(kind: int, head: Head, tag: bytes | None, rest: bytes) -> bytes:
    """A packet of version and flags without the one for the tag, of its head, and of what comes behind the tag."""
    time = head.timestamp_us
    content = varint(head.index) + varint(2 * time if time >= 0 else -2 * time - 1)
    content += varint(head.width) + varint(head.height) + (tag or b"") + rest
    packet = bytes([0xA9, kind | (2 if tag else 0)]) + varint(len(content) + 4) + content
    return packet + zlib.crc32(packet).to_bytes(4, "little")


def _read_head(data: bytes) -> tuple[Head, int]:
    """The head of a whole packet, and where what comes behind the tag begins."""
    length, at = read_varint(data, 2)
    assert at + length == len(data) and zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little")
    index, at = read_varint(data, at)
    time, at = read_varint(data, at)
    width, at = read_varint(data, at)
    height, at = read_varint(data, at)
    head = Head(index, time // 2 if time % 2 == 0 else -(time + 1) // 2, width, height)
    return head, at + (8 if data[1] & 2 else 0)


GlobalRows = Callable[[tuple[int, int]], Rows]
PatchRows = Callable[[list[list[int]], tuple[int, int], list[int], int], Rows]


def pack(
    frame: dict[str, object],
    levels: Sequence[int],
    global_rows: GlobalRows,
    patch_rows: PatchRows,
    *,
    tag: bytes | None,
    gaps: bool,
) -> tuple[bytes, Encoder]:
    """A key packet from ``ids, positions, global_ids, width, height, index, timestamp_us``."""
    width, height = int(frame["width"]), int(frame["height"])  # type: ignore[call-overload]
    cells = (-(-height // 32), -(-width // 32))
    grid = (cells[0] * 4, cells[1] * 4)
    positions: list[int] = list(frame["positions"])  # type: ignore[call-overload]
    global_codes = [code_from_id(i, levels) for i in frame["global_ids"]]  # type: ignore[attr-defined]
    codes = [code_from_id(i, levels) for i in frame["ids"]]  # type: ignore[attr-defined]
    coder = Encoder()
    encode_symbols(coder, [c for code in global_codes for c in code], global_rows(cells))
    if gaps:
        encode_gaps(coder, positions)
    else:
        kept = set(positions)
        encode_bitmap(coder, [[int(y * grid[1] + x in kept) for x in range(grid[1])] for y in range(grid[0])])
    rows = patch_rows(global_codes, cells, positions, len(positions))
    encode_symbols(coder, [c for code in codes for c in code], rows)
    index, time = int(frame["index"]), int(frame["timestamp_us"])  # type: ignore[call-overload]
    rest = varint(len(positions)) + coder.finish()
    return _assemble(0x10 | (4 if gaps else 0), Head(index, time, width, height), tag, rest), coder


def unpack(data: bytes, levels: Sequence[int], global_rows: GlobalRows, patch_rows: PatchRows) -> dict[str, object]:
    """Inverse of :func:`pack`."""
    assert data[0] == 0xA9 and data[1] >> 4 == 1 and not data[1] & 0b1001
    head, at = _read_head(data)
    count, at = read_varint(data, at)
    cells = (-(-head.height // 32), -(-head.width // 32))
    grid = (cells[0] * 4, cells[1] * 4)
    dims = len(levels)
    coder = Decoder(data[at:-4])
    flat = decode_symbols(coder, global_rows(cells))
    global_codes = [flat[i : i + dims] for i in range(0, len(flat), dims)]
    if data[1] & 4:
        positions = decode_gaps(coder, count, grid[0] * grid[1])
    else:
        bits = [b for row in decode_bitmap(coder, *grid, count) for b in row]
        positions = [i for i, b in enumerate(bits) if b]
    flat = decode_symbols(coder, patch_rows(global_codes, cells, positions, count))
    coder.finish()
    return {
        "ids": [id_from_code(flat[i : i + dims], levels) for i in range(0, len(flat), dims)],
        "positions": positions,
        "global_ids": [id_from_code(code, levels) for code in global_codes],
        **head._asdict(),
    }


STEPS = [1 + 1536 // (1 + abs(step)) ** 2 for step in range(-124, 125)]
"""Row of the steps from one motion vector to the next; the middle takes what is left of 4096."""
STEPS[124] += 4096 - sum(STEPS)


def grid_of(chosen: Sequence[int], rows: int, columns: int) -> list[list[int]]:
    """Raster indices as a map of zeros and ones."""
    members = set(chosen)
    return [[int(y * columns + x in members) for x in range(columns)] for y in range(rows)]


def members_of(grid: Grid) -> list[int]:
    """Inverse of :func:`grid_of`."""
    return [i for i, bit in enumerate(bit for row in grid for bit in row) if bit]


def pack_delta(
    delta: dict[str, object],
    global_ids: Sequence[int],
    levels: Sequence[int],
    global_rows: GlobalRows,
    patch_rows: PatchRows,
    *,
    tag: bytes | None,
    update_gaps: bool,
    gaps: bool,
) -> tuple[bytes, Encoder]:
    """A delta packet from ``updated, positions, ids, cells, window, follows, reference`` and what every frame has.

    ``global_ids`` are those of all cells after the update.
    """
    width, height, index, reference, time = (
        int(delta[name])  # type: ignore[call-overload]
        for name in ("width", "height", "index", "reference", "timestamp_us")
    )
    updated, positions, ids, changed = (
        list(delta[name])  # type: ignore[call-overload]
        for name in ("updated", "positions", "ids", "cells")
    )
    cells = (-(-height // 32), -(-width // 32))
    grid = (cells[0] * 4, cells[1] * 4)
    dims = len(levels)
    global_codes = [code_from_id(i, levels) for i in global_ids]
    coder = Encoder()
    turns = list(delta["turns"])  # type: ignore[call-overload]
    if turns:
        encode_bitmap(coder, grid_of(turns, *cells))
        before = [0, 0]
        for vector in delta["vectors"]:  # type: ignore[attr-defined]
            for new, old in zip(vector, before, strict=True):
                encode_symbols(coder, [new - old + 124], [STEPS])
            before = vector
    if update_gaps:
        encode_gaps(coder, updated)
    elif updated:
        encode_bitmap(coder, grid_of(updated, *grid))
    if updated:
        encode_bitmap(coder, grid_of(changed, *cells))
    rows = global_rows(cells)
    for cell in changed:
        encode_symbols(coder, global_codes[cell], rows[cell * dims : (cell + 1) * dims])
    if gaps:
        encode_gaps(coder, [updated.index(position) for position in positions])
    else:
        encode_bitmap(coder, grid_of(positions, *grid), grid_of(updated, *grid))
    rows = patch_rows(global_codes, cells, positions, len(positions))
    encode_symbols(coder, [c for i in ids for c in code_from_id(i, levels)], rows)
    rest = varint(index - reference)
    rest += int(delta["follows"]).to_bytes(4, "little") + varint(len(updated))  # type: ignore[call-overload]
    if turns:
        rest += varint(len(turns))
    if updated:
        rest += varint(len(changed)) + varint(len(positions))
        rest += b"".join(map(varint, delta["window"]))  # type: ignore[call-overload]
    rest += coder.finish() if updated or turns else b""
    kind = (0x20 if turns else 0x10) | 1 | (4 if gaps else 0) | (8 if update_gaps else 0)
    return _assemble(kind, Head(index, time, width, height), tag, rest), coder


def unpack_delta(
    data: bytes, global_ids: Sequence[int], levels: Sequence[int], global_rows: GlobalRows, patch_rows: PatchRows
) -> dict[str, object]:
    """Inverse of :func:`pack_delta`, but ``global_ids`` are those of all cells before the update."""
    assert data[0] == 0xA9 and data[1] >> 4 in (1, 2) and data[1] & 1
    head, at = _read_head(data)
    back, at = read_varint(data, at)
    follows = int.from_bytes(data[at : at + 4], "little")
    n_updated, at = read_varint(data, at + 4)
    n_cells = count = n_vectors = 0
    if data[1] >> 4 == 2:
        n_vectors, at = read_varint(data, at)
    window = [0, 0, 0, 0]
    if n_updated:
        n_cells, at = read_varint(data, at)
        count, at = read_varint(data, at)
        for side in range(4):
            window[side], at = read_varint(data, at)
    cells = (-(-head.height // 32), -(-head.width // 32))
    grid = (cells[0] * 4, cells[1] * 4)
    dims = len(levels)
    coder = Decoder(data[at:-4])
    turns: list[int] = []
    vectors: list[list[int]] = []
    if n_vectors:
        turns = members_of(decode_bitmap(coder, *cells, n_vectors))
        y = x = 0
        for _ in turns:
            y += decode_symbols(coder, [STEPS])[0] - 124
            x += decode_symbols(coder, [STEPS])[0] - 124
            vectors.append([y, x])
    if data[1] & 8:
        updated = decode_gaps(coder, n_updated, grid[0] * grid[1])
    else:
        updated = members_of(decode_bitmap(coder, *grid, n_updated))
    changed = members_of(decode_bitmap(coder, *cells, n_cells))
    global_codes = [code_from_id(i, levels) for i in global_ids]
    rows = global_rows(cells)
    for cell in changed:
        global_codes[cell] = decode_symbols(coder, rows[cell * dims : (cell + 1) * dims])
    if data[1] & 4:
        positions = [updated[rank] for rank in decode_gaps(coder, count, n_updated)]
    else:
        positions = members_of(decode_bitmap(coder, *grid, count, grid_of(updated, *grid)))
    flat = decode_symbols(coder, patch_rows(global_codes, cells, positions, count))
    coder.finish()
    return {
        "updated": updated,
        "positions": positions,
        "ids": [id_from_code(flat[i : i + dims], levels) for i in range(0, len(flat), dims)],
        "cells": changed,
        "global_ids": [id_from_code(global_codes[cell], levels) for cell in changed],
        **head._asdict(),
        "reference": head.index - back,
        "follows": follows,
        "window": tuple(window),
        "turns": turns,
        "vectors": vectors,
    }
