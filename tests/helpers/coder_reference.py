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

    def logits(self, totals: Sequence[int]) -> list[int]:
        """The logits of the sums of the last layer as they are before they are adapted."""
        return [min(max(total >> 8, -32767), 32767) for total in totals]

    def rows(self, totals: Sequence[int], exp: Sequence[int]) -> list[list[int]]:
        rows, at = [], 0
        for scale, level in zip(self.scales, self.levels, strict=True):
            pairs = zip(self.logits(totals[at : at + level]), self.biases[at : at + level], strict=True)
            logits = [(logit * (16384 + (scale >> 8)) >> 14) + (bias >> 9) for logit, bias in pairs]
            at += level
            weights = [exp[min(max(logits) - logit >> 4, 177)] for logit in logits]
            unit = (4096 - level << 18) // sum(weights)
            row = [1 + (weight * unit >> 18) for weight in weights]
            row[logits.index(max(logits))] += 4096 - sum(row)
            rows.append(row)
        return rows

    def learn(self, totals: Sequence[int], rows: Rows, code: Sequence[int]) -> None:
        at = 0
        for d, (level, row) in enumerate(zip(self.levels, rows, strict=True)):
            slopes = [4096 * (k == code[d]) - frequency for k, frequency in enumerate(row)]
            logits = self.logits(totals[at : at + level])
            step = sum(slope * logit for slope, logit in zip(slopes, logits, strict=True))
            self.scales[d] = min(max(self.scales[d] + (step >> 4), -3145728), 3145728)
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


def encode_number(coder: Encoder, value: int, largest: int) -> None:
    for bit in reversed(range(largest.bit_length())):
        coder.encode((value >> bit & 1) * 2048, 2048)


def decode_number(coder: Decoder, largest: int) -> int:
    value = 0
    for _ in range(largest.bit_length()):
        value = 2 * value + coder.decode([2048, 2048])
    if value > largest:
        raise ValueError("number too large")
    return value


def grid_of(chosen: Sequence[int], rows: int, columns: int) -> list[list[int]]:
    """Raster indices as a map of zeros and ones."""
    members = set(chosen)
    return [[int(y * columns + x in members) for x in range(columns)] for y in range(rows)]


def members_of(grid: Grid) -> list[int]:
    """Inverse of :func:`grid_of`."""
    return [i for i, bit in enumerate(bit for row in grid for bit in row) if bit]


def encode_map(
    coder: Encoder, chosen: Sequence[int], places: Sequence[int], grid: tuple[int, int], gaps: bool | None
) -> None:
    """A map of raster indices among places. ``gaps`` None: the shorter coding, as a writer chooses it."""
    if not 0 < len(chosen) < len(places):
        return
    rank = {place: number for number, place in enumerate(places)}
    ranks = [rank[place] for place in chosen]
    bitmap = grid_of(chosen, *grid), grid_of(places, *grid)
    if gaps is None:
        by_gaps, by_bitmap = Encoder(), Encoder()
        encode_gaps(by_gaps, ranks)
        encode_bitmap(by_bitmap, *bitmap)
        gaps = 32 * len(chosen) < len(places) and len(by_gaps.finish()) < len(by_bitmap.finish())
    encode_number(coder, int(gaps), 1)
    if gaps:
        encode_gaps(coder, ranks)
    else:
        encode_bitmap(coder, *bitmap)


def decode_map(coder: Decoder, count: int, places: Sequence[int], grid: tuple[int, int]) -> list[int]:
    if count > len(places):
        raise ValueError("more than there are places")
    if count in (0, len(places)):
        return list(places) if count else []
    if decode_number(coder, 1):
        return [places[rank] for rank in decode_gaps(coder, count, len(places))]
    return members_of(decode_bitmap(coder, *grid, count, grid_of(places, *grid)))


class Bounds(NamedTuple):
    """Fewest and most tokens of each patch, and of any patch."""

    least: list[int]
    most: list[int]
    depth: int


def _count_range(left: int, places: int, depth: int, bounds: Bounds) -> tuple[int, int]:
    """Fewest and most patches that can get a token of a depth, where ``left`` tokens are to be given."""
    room = sum(most - least for most, least in zip(bounds.most, bounds.least, strict=True) if least >= depth)
    fewest = 0
    while room + fewest * (bounds.depth - depth + 1) < left:
        fewest += 1
    return fewest, min(places, left)


def encode_depths(
    coder: Encoder, depths: Sequence[int], bounds: Bounds, grid: tuple[int, int], gaps: bool | None
) -> None:
    """Tokens of each patch as nested maps."""
    left = sum(depths) - sum(bounds.least)
    for depth in range(1, bounds.depth + 1):
        places = [
            p for p, d in enumerate(depths) if d >= depth - 1 and bounds.most[p] >= depth and bounds.least[p] < depth
        ]
        chosen = [p for p in places if depths[p] >= depth]
        if left == 0:
            return
        fewest, largest = _count_range(left, len(places), depth, bounds)
        encode_number(coder, len(chosen) - fewest, largest - fewest)
        encode_map(coder, chosen, places, grid, gaps)
        left -= len(chosen)


def decode_depths(coder: Decoder, count: int, bounds: Bounds, grid: tuple[int, int]) -> list[int]:
    depths = list(bounds.least)
    left = count - sum(depths)
    for depth in range(1, bounds.depth + 1):
        if left == 0:
            break
        places = [
            p for p, d in enumerate(depths) if d >= depth - 1 and bounds.most[p] >= depth and bounds.least[p] < depth
        ]
        fewest, largest = _count_range(left, len(places), depth, bounds)
        if fewest > largest:
            raise ValueError("more tokens than the patches can have")
        ones = fewest + decode_number(coder, largest - fewest)
        for place in decode_map(coder, ones, places, grid):
            depths[place] = depth
        left -= ones
    return depths


class Token(NamedTuple):
    """A patch token, as an entropy model sees it before it is coded."""

    position: int
    depth: int
    ahead: list[list[int]]
    """Codes of the tokens ahead in its stack."""
    held: list[int] | None
    """Code that the patch held at this depth."""


GlobalRows = Callable[[tuple[int, int]], Rows]
PatchRows = Callable[[list[list[int]], tuple[int, int], list[Token], int], Rows]
"""Takes global codes, cells, tokens of one depth, and the number of all tokens of the frame."""


class Models(NamedTuple):
    """What both sides know of the model of a bundle."""

    levels: Sequence[int]
    depth: int
    global_rows: GlobalRows
    patch_rows: PatchRows


Code = list[int]


def _code_stacks(
    models: Models,
    global_codes: list[Code],
    cells: tuple[int, int],
    stacks: list[list[Code | None]],
    held: list[list[Code]],
    code: Callable[[Sequence[Sequence[int]], Token], Code],
) -> None:
    """Fills the unknown codes of stacks, depth by depth; ``code`` codes one, with its rows."""
    total, dims = sum(map(len, stacks)), len(models.levels)
    for depth in range(1, models.depth + 1):
        tokens = [
            Token(p, depth, stack[: depth - 1], held[p][depth - 1] if len(held[p]) >= depth else None)  # type: ignore[arg-type]
            for p, stack in enumerate(stacks)
            if len(stack) >= depth and stack[depth - 1] is None
        ]
        rows = models.patch_rows(global_codes, cells, tokens, total)
        for number, token in enumerate(tokens):
            stacks[token.position][depth - 1] = code(rows[number * dims : (number + 1) * dims], token)


def _encode_stacks(
    coder: Encoder,
    models: Models,
    global_codes: list[Code],
    cells: tuple[int, int],
    stacks: list[list[Code]],
    sent: Sequence[int],
    held: list[list[Code]],
) -> None:
    """The last ``sent`` codes of each stack."""
    known: list[list[Code | None]] = [
        [*stack[: len(stack) - new], *[None] * new] for stack, new in zip(stacks, sent, strict=True)
    ]

    def code(rows: Rows, token: Token) -> Code:
        own = stacks[token.position][token.depth - 1]
        encode_symbols(coder, own, rows)
        return own

    _code_stacks(models, global_codes, cells, known, held, code)


def _decode_stacks(
    coder: Decoder,
    models: Models,
    global_codes: list[Code],
    cells: tuple[int, int],
    stays: list[list[Code]],
    sent: Sequence[int],
    held: list[list[Code]],
) -> list[list[Code]]:
    """The codes that follow those that stay in each stack."""
    stacks: list[list[Code | None]] = [[*stack, *[None] * new] for stack, new in zip(stays, sent, strict=True)]
    _code_stacks(models, global_codes, cells, stacks, held, lambda rows, _: decode_symbols(coder, rows))
    return [
        code  # type: ignore[misc]
        for stack, new in zip(stacks, sent, strict=True)
        for code in stack[len(stack) - new :]
    ]


def _shape(width: int, height: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Grids of cells and patches, and the number of patches."""
    cells = (-(-height // 32), -(-width // 32))
    return cells, (cells[0] * 4, cells[1] * 4), cells[0] * cells[1] * 16


def _stacks_of(positions: Sequence[int], codes: Sequence[Code], patches: int) -> list[list[Code]]:
    stacks: list[list[Code]] = [[] for _ in range(patches)]
    for position, code in zip(positions, codes, strict=True):
        stacks[position].append(code)
    return stacks


def pack(frame: dict[str, object], models: Models, *, tag: bytes | None, gaps: bool | None) -> tuple[bytes, Encoder]:
    """A key packet from ``ids, positions, global_ids, width, height, index, timestamp_us``."""
    width, height = int(frame["width"]), int(frame["height"])  # type: ignore[call-overload]
    cells, grid, patches = _shape(width, height)
    positions: list[int] = list(frame["positions"])  # type: ignore[call-overload]
    global_codes = [code_from_id(i, models.levels) for i in frame["global_ids"]]  # type: ignore[attr-defined]
    codes = [code_from_id(i, models.levels) for i in frame["ids"]]  # type: ignore[attr-defined]
    coder = Encoder()
    encode_symbols(coder, [c for code in global_codes for c in code], models.global_rows(cells))
    stacks = _stacks_of(positions, codes, patches)
    depths = [len(stack) for stack in stacks]
    encode_depths(coder, depths, Bounds([0] * patches, [models.depth] * patches, models.depth), grid, gaps)
    _encode_stacks(coder, models, global_codes, cells, stacks, depths, [[]] * patches)
    index, time = int(frame["index"]), int(frame["timestamp_us"])  # type: ignore[call-overload]
    rest = varint(len(positions)) + coder.finish()
    return _assemble(0x10, Head(index, time, width, height), tag, rest), coder


def unpack(data: bytes, models: Models) -> dict[str, object]:
    """Inverse of :func:`pack`."""
    assert data[0] == 0xA9 and data[1] >> 4 == 1 and not data[1] & 0b1101
    head, at = _read_head(data)
    count, at = read_varint(data, at)
    cells, grid, patches = _shape(head.width, head.height)
    dims = len(models.levels)
    coder = Decoder(data[at:-4])
    flat = decode_symbols(coder, models.global_rows(cells))
    global_codes = [flat[i : i + dims] for i in range(0, len(flat), dims)]
    depths = decode_depths(coder, count, Bounds([0] * patches, [models.depth] * patches, models.depth), grid)
    codes = _decode_stacks(coder, models, global_codes, cells, [[]] * patches, depths, [[]] * patches)
    coder.finish()
    return {
        "ids": [id_from_code(code, models.levels) for code in codes],
        "positions": [p for p, depth in enumerate(depths) for _ in range(depth)],
        "global_ids": [id_from_code(code, models.levels) for code in global_codes],
        **head._asdict(),
    }


STEPS = [1 + 1536 // (1 + abs(step)) ** 2 for step in range(-124, 125)]
"""Row of the steps from one motion vector to the next; the middle takes what is left of 4096."""
STEPS[124] += 4096 - sum(STEPS)


class Held(NamedTuple):
    """The state ahead of a delta."""

    global_ids: list[int]
    stacks: list[list[int]]
    """Ids of the tokens of each patch."""


def _bounds(updated: Sequence[int], refined: Sequence[int], held: Held, depth: int) -> Bounds:
    least, most = [0] * len(held.stacks), [0] * len(held.stacks)
    for place in updated:
        most[place] = depth
    for place in refined:
        least[place] = 1
        most[place] = depth - len(held.stacks[place])
    return Bounds(least, most, depth)


def _refinable(updated: Sequence[int], held: Held, depth: int) -> list[int]:
    return [place for place in updated if 0 < len(held.stacks[place]) < depth]


def pack_delta(
    delta: dict[str, object], held: Held, models: Models, *, tag: bytes | None, gaps: bool | None
) -> tuple[bytes, Encoder]:
    """A delta packet from the fields of a delta."""
    width, height, index, reference, time = (
        int(delta[name])  # type: ignore[call-overload]
        for name in ("width", "height", "index", "reference", "timestamp_us")
    )
    updated, refined, positions, ids, changed, turns = (
        list(delta[name])  # type: ignore[call-overload]
        for name in ("updated", "refined", "positions", "ids", "cells", "turns")
    )
    levels = models.levels
    cells, grid, patches = _shape(width, height)
    dims = len(levels)
    global_codes = [code_from_id(i, levels) for i in held.global_ids]
    for cell, i in zip(changed, delta["global_ids"], strict=True):  # type: ignore[call-overload]
        global_codes[cell] = code_from_id(i, levels)
    coder = Encoder()
    if turns:
        encode_bitmap(coder, grid_of(turns, *cells))
        before = [0, 0]
        for vector in delta["vectors"]:  # type: ignore[attr-defined]
            for new, old in zip(vector, before, strict=True):
                encode_symbols(coder, [new - old + 124], [STEPS])
            before = vector
    if updated:
        encode_map(coder, updated, range(patches), grid, gaps)
        encode_bitmap(coder, grid_of(changed, *cells))
        rows = models.global_rows(cells)
        for cell in changed:
            encode_symbols(coder, global_codes[cell], rows[cell * dims : (cell + 1) * dims])
        encode_map(coder, refined, _refinable(updated, held, models.depth), grid, gaps)
        codes = [code_from_id(i, levels) for i in ids]
        new = _stacks_of(positions, codes, patches)
        sent = [len(stack) for stack in new]
        encode_depths(coder, sent, _bounds(updated, refined, held, models.depth), grid, gaps)
        old = [[code_from_id(i, levels) for i in stack] for stack in held.stacks]
        renewed = set(updated) - set(refined)
        stacks = [[*([] if p in renewed else old[p]), *new[p]] for p in range(patches)]
        _encode_stacks(coder, models, global_codes, cells, stacks, sent, old)
    rest = varint(index - reference)
    rest += int(delta["follows"]).to_bytes(4, "little") + varint(len(updated))  # type: ignore[call-overload]
    if turns:
        rest += varint(len(turns))
    if refined:
        rest += varint(len(refined))
    if updated:
        rest += varint(len(positions))
    if len(updated) > len(refined):
        rest += varint(len(changed))
    rest += coder.finish() if updated or turns else b""
    kind = 0x11 | (4 if refined else 0) | (8 if turns else 0)
    return _assemble(kind, Head(index, time, width, height), tag, rest), coder


def unpack_delta(data: bytes, held: Held, models: Models) -> dict[str, object]:
    """Inverse of :func:`pack_delta`."""
    assert data[0] == 0xA9 and data[1] >> 4 == 1 and data[1] & 1
    levels = models.levels
    head, at = _read_head(data)
    back, at = read_varint(data, at)
    follows = int.from_bytes(data[at : at + 4], "little")
    n_updated, at = read_varint(data, at + 4)
    n_cells = count = n_vectors = n_refined = 0
    if data[1] & 8:
        n_vectors, at = read_varint(data, at)
    if data[1] & 4:
        n_refined, at = read_varint(data, at)
    if n_updated:
        count, at = read_varint(data, at)
    if n_updated > n_refined:
        n_cells, at = read_varint(data, at)
    cells, grid, patches = _shape(head.width, head.height)
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
    updated = decode_map(coder, n_updated, range(patches), grid)
    changed = members_of(decode_bitmap(coder, *cells, n_cells))
    global_codes = [code_from_id(i, levels) for i in held.global_ids]
    rows = models.global_rows(cells)
    for cell in changed:
        global_codes[cell] = decode_symbols(coder, rows[cell * dims : (cell + 1) * dims])
    refined = decode_map(coder, n_refined, _refinable(updated, held, models.depth), grid)
    sent = decode_depths(coder, count, _bounds(updated, refined, held, models.depth), grid)
    old = [[code_from_id(i, levels) for i in stack] for stack in held.stacks]
    renewed = set(updated) - set(refined)
    stays = [[] if p in renewed else old[p] for p in range(patches)]
    codes = _decode_stacks(coder, models, global_codes, cells, stays, sent, old)
    coder.finish()
    return {
        "updated": updated,
        "refined": refined,
        "positions": [p for p, new in enumerate(sent) for _ in range(new)],
        "ids": [id_from_code(code, levels) for code in codes],
        "cells": changed,
        "global_ids": [id_from_code(global_codes[cell], levels) for cell in changed],
        **head._asdict(),
        "reference": head.index - back,
        "follows": follows,
        "turns": turns,
        "vectors": vectors,
    }
