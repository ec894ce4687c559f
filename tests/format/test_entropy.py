"""The integer entropy model: the same frequencies on every machine, each from what was coded before."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from helpers import coder_reference as plain
from helpers.example_frames import stacked
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.format.entropy import (
    SHARE_LIMITS,
    SHARES,
    IntegerEntropyModel,
    exp_table,
    load_tables,
    network_kinds,
    save_tables,
    share_class,
)
from tatok_edge.format.packet import pack, unpack
from tatok_edge.format.protocol import Stacks
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu.coder import RangeDecoder, RangeEncoder, input_sizes
from tatok_edge.runtime.cpu.kernels import codes_from_ids, ids_from_codes
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

TAG = bytes(range(8))
LEVEL_SETS = [(8, 8, 8, 5, 5, 5), (2,), (64, 3), (5, 9, 4)]
levels_of = st.sampled_from(LEVEL_SETS)

Ints = np.ndarray[Any, np.dtype[np.int32]]


def make_tables(
    levels: tuple[int, ...], depth: int, seed: int, *, width: int = 12, spread: int = 2000
) -> dict[str, Any]:
    """Random tables; a large ``spread`` makes rows that are nearly certain."""
    random = np.random.default_rng(seed)
    tables: dict[str, Any] = {"exp": exp_table()}
    for net, kind in network_kinds(levels, depth).items():
        around = (len(levels), SHARES) if kind.of_patches else (0, 0)
        inputs, outputs = sum(input_sizes(len(kind.levels), *around, kind.shallower, kind.held)), sum(kind.levels)
        shapes = {"w1": (inputs, width), "w2": (width, width + 3), "w3": (width + 3, outputs)}
        for name, shape in shapes.items():
            tables[f"{net}_{name}"] = random.integers(-spread, spread + 1, shape, dtype=np.int16)
        for name, size in (("b1", width), ("b2", width + 3), ("b3", outputs)):
            tables[f"{net}_{name}"] = random.integers(-64 * spread, 64 * spread + 1, size, dtype=np.int32)
    return tables


def make_model(levels: tuple[int, ...], depth: int, seed: int, **how: int) -> IntegerEntropyModel:
    data = save_tables(make_tables(levels, depth, seed, **how))
    return IntegerEntropyModel(levels, depth, TAG, load_tables(data, levels, depth, "test"))


def random_codes(levels: tuple[int, ...], count: int, seed: int) -> Ints:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(0, level, count) for level in levels], 1).astype(np.int32)


def random_stacks(levels: tuple[int, ...], grid: tuple[int, int], tokens: int, depth: int, seed: int) -> Stacks:
    patches = grid[0] * grid[1]
    depths = np.bincount(stacked(patches, tokens, depth, seed), minlength=patches).astype(np.int32).reshape(grid)
    return Stacks(random_codes(levels, int(depths.sum()), seed), depths)


def centres(code: list[int], levels: tuple[int, ...]) -> list[int]:
    return [(2 * c + 1) * 64 // level - 64 for c, level in zip(code, levels, strict=True)]


def layer(inputs: list[int], weights: list[list[int]], biases: list[int]) -> list[int]:
    columns = zip(*weights, strict=True)
    return [
        sum(a * w for a, w in zip(inputs, column, strict=True)) + b for column, b in zip(columns, biases, strict=True)
    ]


class Reference:
    """The networks of a model in Python's integers, which have no width."""

    def __init__(self, model: IntegerEntropyModel) -> None:
        self.model = model
        self.tables = {key: array.tolist() for key, array in model.tables.items()}

    def share_inputs(self, tokens: int, patches: int) -> list[int]:
        limits = enumerate((1, 2, 4, 8, 16, 24, 32, 48, 64, 96))
        share = next((i for i, n in limits if tokens * 32 <= n * patches), 10)
        return [64 if i == share else 0 for i in range(11)]

    def patch_inputs(self, grid: tuple[int, int], position: int, cell_codes: list[list[int]], tokens: int) -> list[int]:
        height, width = grid
        y, x = divmod(position, width)
        hc, wc = height // 4, width // 4
        inputs: list[int] = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                cell = min(max(y // 4 + dy, 0), hc - 1) * wc + min(max(x // 4 + dx, 0), wc - 1)
                inputs += centres(cell_codes[cell], self.model.levels)
        inputs += self.share_inputs(tokens, height * width)
        return inputs + [64 if i == y % 4 * 4 + x % 4 else 0 for i in range(16)]

    def stack_inputs(self, depth: int, ahead: list[list[int]], held: list[int] | None) -> list[int]:
        levels, most = self.model.levels, self.model.depth
        inputs: list[int] = []
        if depth > 1:
            inputs += [64 if i == depth - 2 else 0 for i in range(most - 1)]
            inputs += [value for code in ahead for value in centres(code, levels)]
            inputs += [0] * (len(levels) * (most - depth))
        return inputs + ([0] * (len(levels) + 1) if held is None else [*centres(held, levels), 64])

    def around_inputs(
        self,
        levels: tuple[int, ...],
        grid: tuple[int, int],
        position: int,
        coded: dict[int, list[int]],
        there: set[int],
    ) -> list[int]:
        height, width = grid
        y, x = divmod(position, width)
        inputs: list[int] = []
        near = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
        for dy, dx in near:
            if (dy, dx) < (0, 0):
                inside = y + dy >= 0 and 0 <= x + dx < width
                code = coded.get(position + dy * width + dx) if inside else None
                inputs += [0] * (len(levels) + 1) if code is None else [*centres(code, levels), 64]
        for dy, dx in near:
            if (dy, dx) > (0, 0):
                inside = y + dy < height and 0 <= x + dx < width
                inputs.append(64 if inside and position + dy * width + dx in there else 0)
        return inputs

    def totals(self, name: str, inputs: list[int]) -> list[int]:
        """The sums of the last layer for one token."""
        for w, b in (("w1", "b1"), ("w2", "b2")):
            totals = layer(inputs, self.tables[f"{name}_{w}"], self.tables[f"{name}_{b}"])
            inputs = [min(max(total >> 10, 0), 255) for total in totals]
        return layer(inputs, self.tables[f"{name}_w3"], self.tables[f"{name}_b3"])

    def code(self, coder: plain.Encoder, adapting: plain.Adaptation, totals: list[int], code: list[int]) -> None:
        rows = adapting.rows(totals, self.tables["exp"])
        plain.encode_symbols(coder, code, rows)
        adapting.learn(totals, rows, code)

    def patch_bytes(self, stacks: Stacks, cell_codes: Ints, given: Any = None, held: Stacks | None = None) -> bytes:
        """A body with these tokens."""
        grid, cells = stacks.depths.shape, cell_codes.tolist()
        own, before = split(stacks), [[] for _ in range(stacks.depths.size)] if held is None else split(held)
        starts = np.cumsum(stacks.depths.ravel()) - stacks.depths.ravel()
        coder = plain.Encoder()
        for depth in range(1, self.model.depth + 1):
            adapting = plain.Adaptation(self.model.levels)
            there = {p for p, stack in enumerate(own) if len(stack) >= depth}
            coded: dict[int, list[int]] = {}
            for position in sorted(there):
                code = own[position][depth - 1]
                if given is None or not given[starts[position] + depth - 1]:
                    inputs = self.patch_inputs(grid, position, cells, len(stacks.codes))
                    old = before[position][depth - 1] if len(before[position]) >= depth else None
                    inputs += self.stack_inputs(depth, own[position][: depth - 1], old)
                    inputs += self.around_inputs(self.model.levels, grid, position, coded, there)
                    self.code(coder, adapting, self.totals("deeper" if depth > 1 else "patches", inputs), code)
                coded[position] = code
        return coder.finish()

    def cell_bytes(self, codes: Ints, cells: Ints, grid: tuple[int, int]) -> bytes:
        coder, adapting = plain.Encoder(), plain.Adaptation(self.model.levels)
        coded: dict[int, list[int]] = {}
        for code, cell in zip(codes.tolist(), cells.tolist(), strict=True):
            inputs = self.around_inputs(self.model.levels, grid, cell, coded, set(cells.tolist()))
            self.code(coder, adapting, self.totals("cells", inputs), code)
            coded[cell] = code
        return coder.finish()

    def depth_bytes(self, depths: Ints, cell_codes: Ints) -> bytes:
        most, grid, cells = self.model.depth, depths.shape, cell_codes.tolist()
        coder, adapting = plain.Encoder(), plain.Adaptation((most + 1,))
        coded: dict[int, list[int]] = {}
        left, everywhere = int(depths.sum()), set(range(depths.size))
        for position, depth in enumerate(depths.ravel().tolist()):
            if 0 < left < most * (depths.size - position):
                inputs = self.patch_inputs(grid, position, cells, int(depths.sum()))
                inputs += self.around_inputs((most + 1,), grid, position, coded, everywhere)
                self.code(coder, adapting, self.totals("depths", inputs), [depth])
            coded[position] = [depth]
            left -= depth
        return coder.finish()


def split(stacks: Stacks) -> list[list[list[int]]]:
    """The codes of each patch."""
    ends = np.cumsum(stacks.depths.ravel())[:-1]
    return [part.tolist() for part in np.split(stacks.codes, ends)]


Request = tuple[IntegerEntropyModel, Ints, Stacks]


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """A model, cell codes, and the tokens of all patches."""
    levels, depth = draw(levels_of), draw(st.integers(1, 4))
    model = make_model(levels, depth, draw(st.integers(0, 50)), spread=draw(st.sampled_from([0, 50, 2000, 25000])))
    cells = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    grid = (cells[0] * 4, cells[1] * 4)
    seed = draw(st.integers(0, 50))
    stacks = random_stacks(levels, grid, draw(st.integers(1, 24)), depth, seed + 1)
    return model, random_codes(levels, cells[0] * cells[1], seed), stacks


@given(requests())
def test_patch_tokens_have_the_bytes_of_unbounded_integers(request: Request) -> None:
    model, cell_codes, stacks = request
    encoder = RangeEncoder()
    model.encode_patches(encoder, stacks, cell_codes)
    data = encoder.finish()
    assert data == Reference(model).patch_bytes(stacks, cell_codes)
    decoder, codes = RangeDecoder(data), np.zeros_like(stacks.codes)
    model.decode_patches(decoder, Stacks(codes, stacks.depths), cell_codes)
    assert np.array_equal(codes, stacks.codes)
    decoder.finish()
    # What tokens are said to cost is what they were coded with.
    counts = stacks.depths.ravel()
    positions = np.repeat(np.arange(counts.size, dtype=np.int32), counts)
    log2 = model.patch_log2_probs(stacks.codes, positions, cell_codes, stacks.depths.shape)
    frequencies = np.rint(4096 * np.exp2(log2)).astype(int)
    depths = np.arange(len(positions)) - np.repeat(np.cumsum(counts) - counts, counts)
    coder = plain.Encoder()
    starts = np.cumsum(model.levels)[:-1]
    for token in np.lexsort((positions, depths)).tolist():
        rows = [row.tolist() for row in np.split(frequencies[:, token], starts)]
        plain.encode_symbols(coder, stacks.codes[token].tolist(), rows)
    assert coder.finish() == data


@given(requests(), st.integers(0, 20), st.data())
def test_what_both_sides_know_is_not_coded_and_predicts_the_rest(
    request: Request, before: int, data: st.DataObject
) -> None:
    """As in a delta packet: some tokens stay, and patches held others before."""
    model, cell_codes, stacks = request
    given_tokens = data.draw(st.lists(st.integers(0, 1), min_size=len(stacks.codes), max_size=len(stacks.codes)))
    given_flags = np.array(given_tokens, np.uint8)
    held = random_stacks(model.levels, stacks.depths.shape, before, model.depth, before)
    encoder = RangeEncoder()
    model.encode_patches(encoder, stacks, cell_codes, given_flags, held)
    body = encoder.finish()
    assert body == Reference(model).patch_bytes(stacks, cell_codes, given_flags, held)
    codes = stacks.codes * given_flags[:, None]
    decoder = RangeDecoder(body)
    model.decode_patches(decoder, Stacks(codes, stacks.depths), cell_codes, given_flags, held)
    assert np.array_equal(codes, stacks.codes)
    decoder.finish()
    if given_flags.all():
        assert body == b""


@given(requests())
def test_depth_maps_have_the_bytes_of_unbounded_integers(request: Request) -> None:
    model, cell_codes, stacks = request
    for depths in (stacks.depths, model.depth - stacks.depths):
        encoder = RangeEncoder()
        model.encode_depths(encoder, depths, cell_codes)
        data = encoder.finish()
        assert data == Reference(model).depth_bytes(depths, cell_codes)
        decoder = RangeDecoder(data)
        decoded = model.decode_depths(decoder, int(depths.sum()), cell_codes, depths.shape)
        assert np.array_equal(decoded, depths)
        decoder.finish()


@given(st.binary(max_size=40), st.integers(1, 4), st.data())
def test_whatever_the_data_a_depth_map_has_its_number_of_tokens(data: bytes, depth: int, draw: st.DataObject) -> None:
    tokens = draw.draw(st.integers(0, 64 * depth))
    model = make_model((8, 5), depth, 0)
    cell_codes = random_codes((8, 5), 4, 0)
    with suppress(ValueError):  # the data may be too short
        depths = model.decode_depths(RangeDecoder(data), tokens, cell_codes, (8, 8))
        assert depths.sum() == tokens and depths.max(initial=0) <= depth and depths.min(initial=0) >= 0
    assert (model.decode_depths(RangeDecoder(b""), 64 * depth, cell_codes, (8, 8)) == depth).all()
    with pytest.raises(ValueError, match="count must be from 0"):
        model.decode_depths(RangeDecoder(b""), 64 * depth + 1, cell_codes, (8, 8))


@given(requests(), st.data())
def test_global_tokens_have_the_bytes_of_unbounded_integers(request: Request, data: st.DataObject) -> None:
    """Of all cells, as in a key packet, or of some, as in a delta packet."""
    model, codes, stacks = request
    grid, count = (stacks.depths.shape[0] // 4, stacks.depths.shape[1] // 4), len(codes)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=count))), np.int32)
    for cells in (np.arange(count, dtype=np.int32), chosen):
        encoder = RangeEncoder()
        model.encode_globals(encoder, codes[cells], cells, grid)
        body = encoder.finish()
        assert body == Reference(model).cell_bytes(codes[cells], cells, grid)
        decoder = RangeDecoder(body)
        assert np.array_equal(model.decode_globals(decoder, cells, grid), codes[cells])
        decoder.finish()


def test_adaptation_stays_within_its_limits() -> None:
    """Many tokens that the network is wrong about: scale and bias come to their ends, and no sum overflows."""
    levels = (4, 3)
    tables = make_tables(levels, 1, 0)
    for name in ("patches_w1", "patches_w2", "patches_w3", "patches_b1", "patches_b2"):
        tables[name][:] = 0
    tables["patches_b3"][:] = [2**31 - 1, 0, 0, -(2**31) + 1, 1 << 18, 0, 0]
    model = IntegerEntropyModel(levels, 1, TAG, tables)
    codes = np.tile(np.array([[3, 1]], np.int32), (32 * 32, 1))
    codes[700:] = 0, 0
    stacks = Stacks(codes, np.ones((32, 32), np.int32))
    cells = random_codes(levels, 64, 0)
    adaptation, ends = plain.Adaptation(levels), set()
    totals = tables["patches_b3"].tolist()
    for code in codes.tolist():
        adaptation.learn(totals, adaptation.rows(totals, tables["exp"].tolist()), code)
        ends |= {adaptation.scales[0], *adaptation.biases}
    assert {-3145728, 2**20, -(2**20)} <= ends
    encoder = RangeEncoder()
    model.encode_patches(encoder, stacks, cells)
    data = encoder.finish()
    assert data == Reference(model).patch_bytes(stacks, cells)
    decoded = np.zeros_like(codes)
    model.decode_patches(RangeDecoder(data), Stacks(decoded, stacks.depths), cells)
    assert np.array_equal(decoded, codes)


def test_no_token_takes_no_byte() -> None:
    model = make_model((8, 5), 3, 0)
    none, no_codes = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    nothing = Stacks(no_codes, np.zeros((8, 8), np.int32))
    encoder = RangeEncoder()
    model.encode_patches(encoder, nothing, random_codes((8, 5), 4, 0))
    model.encode_globals(encoder, no_codes, none, (2, 2))
    model.encode_depths(encoder, nothing.depths, random_codes((8, 5), 4, 0))
    assert encoder.finish() == b""
    model.decode_patches(RangeDecoder(b""), nothing, random_codes((8, 5), 4, 0))


def test_a_damaged_body_is_refused() -> None:
    model = make_model((8, 8, 8, 5, 5, 5), 2, 1)
    cells, stacks = random_codes(model.levels, 6, 0), random_stacks(model.levels, (8, 12), 150, 2, 1)
    encoder = RangeEncoder()
    model.encode_patches(encoder, stacks, cells)
    data = encoder.finish()
    with pytest.raises(ValueError, match="cut off, at token"):
        model.decode_patches(RangeDecoder(data[: len(data) // 2]), stacks, cells)
    with pytest.raises(ValueError, match="damaged or from another model, at token"):
        model.decode_patches(RangeDecoder(b"\xff" * len(data)), stacks, cells)


def with_depth(position: int, depth: int) -> Ints:
    depths = np.zeros((8, 8), np.int32)
    depths.ravel()[[0, 1, position]] = 1, 1, depth
    return depths


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codes": np.full((3, 2), 8, np.int32)}, r"below their levels \(8, 5\), got \[8, 8\] in token 0"),
        ({"codes": np.full((3, 2), -1, np.int32)}, "below their levels"),
        ({"codes": np.zeros((2, 2), np.int32)}, r"codes must have shape \(3, 2\)"),
        ({"depths": with_depth(2, -1)}, "depths must be from 0 to 8"),
        ({"depths": with_depth(2, 3)}, "depths must be at most 2, the depth of the model, got 3"),
        ({"depths": np.ones((8, 6), np.int32)}, "cell_codes of 8 x 6 patches must be"),
        ({"depths": np.ones((0, 8), np.int32)}, "a grid must have|must be"),
        ({"global_codes": np.zeros((5, 2), np.int32)}, "cell_codes of 8 x 8 patches must be"),
        ({"global_codes": np.full((4, 2), 5, np.int32)}, "cell_codes must be from 0 to below their levels"),
        ({"given": np.zeros(2, np.uint8)}, r"given must have shape \(3,\)"),
        (
            {"held": Stacks(np.zeros((1, 2), np.int32), np.zeros((8, 8), np.int32))},
            r"held codes must have shape \(0, 2\)",
        ),
        (
            {"held": Stacks(np.zeros((0, 2), np.int32), np.zeros((8, 4), np.int32))},
            r"held depths must have shape \(8, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {
        "codes": np.zeros((3, 2), np.int32),
        "depths": with_depth(2, 1),
        "global_codes": np.zeros((4, 2), np.int32),
    } | change
    stacks = Stacks(arguments.pop("codes"), arguments.pop("depths"))
    model = make_model((8, 5), 2, 0)
    if not stacks.depths.size:
        return
    with pytest.raises(ValueError, match=says):
        model.encode_patches(RangeEncoder(), stacks, **arguments)
    with pytest.raises(ValueError, match=says):
        model.decode_patches(RangeDecoder(b""), stacks, **arguments)


def test_sums_that_may_leave_32_bits_are_refused() -> None:
    tables = make_tables((8, 5), 2, 0, width=253)
    tables["deeper_w2"][:] = 32767
    tables["deeper_b2"][:] = 0
    IntegerEntropyModel((8, 5), 2, TAG, tables)  # 253 * 255 * 32767 is just below 2**31
    tables["deeper_b2"][3] = -(1 << 26)
    with pytest.raises(ValueError, match="network 'deeper': sums of w2 and b2 may reach"):
        IntegerEntropyModel((8, 5), 2, TAG, tables)


@given(st.integers(1, 2**24), st.data())
def test_share_class_is_the_limit_in_exact_fractions(patches: int, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(0, 4 * patches))
    index = share_class(tokens, patches)
    bounds = [0, *(patches * limit / 32 for limit in SHARE_LIMITS), 4 * patches]
    assert tokens <= bounds[index + 1]
    assert index == 0 or tokens > bounds[index]


def test_exp_table() -> None:
    table = exp_table()
    assert table[0] == 65536 and table[16] == round(65536 / np.e) and table[-1] >= 1
    assert (np.diff(table) <= 0).all()


@given(requests())
def test_packets_come_back(request: Request) -> None:
    model, cell_codes, stacks = request
    height, width = stacks.depths.shape
    counts = stacks.depths.ravel()
    frame = TokenFrame(
        ids=ids_from_codes(stacks.codes, model.levels),
        positions=np.repeat(np.arange(counts.size, dtype=np.int32), counts),
        global_ids=ids_from_codes(cell_codes, model.levels),
        width=width * 8,
        height=height * 8,
        model=TAG,
    )
    assert unpack(pack(frame, model), model) == frame


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render(Scene(width=256, height=192), 0)


def stacks_of(frame: TokenFrame, model: IntegerEntropyModel) -> tuple[Stacks, Ints]:
    """Tokens and global codes of a frame."""
    return (
        Stacks(codes_from_ids(frame.ids, model.levels), frame.depth_map()),
        codes_from_ids(frame.global_ids, model.levels),
    )


@pytest.mark.parametrize("keep", [0.4, 0.2, 0.1, 0.05, 0.02])
def test_the_shipped_model_has_the_bytes_of_unbounded_integers(
    tokenizer: Tokenizer, picture: np.ndarray, keep: float
) -> None:
    model = tokenizer.entropy_model
    stacks, cell_codes = stacks_of(tokenizer.encode(picture, budget=TokenBudget(keep=keep)), model)
    encoder = RangeEncoder()
    model.encode_patches(encoder, stacks, cell_codes)
    assert encoder.finish() == Reference(model).patch_bytes(stacks, cell_codes)


def test_neighbours_make_real_tokens_cheaper(tokenizer: Tokenizer, picture: np.ndarray) -> None:
    """The same tokens in other places, where their neighbours say nothing, take more bytes."""
    model = tokenizer.entropy_model
    frame = tokenizer.encode(picture)
    stacks, cell_codes = stacks_of(frame, model)
    cells = np.arange(len(cell_codes), dtype=np.int32)
    grid = frame.cell_grid

    def size(codes: Ints) -> int:
        encoder = RangeEncoder()
        model.encode_globals(encoder, codes, cells, grid)
        return len(encoder.finish())

    shuffled = np.random.default_rng(0).permutation(cell_codes)
    assert size(cell_codes) < 0.9 * size(shuffled)

    def cost(stacks: Stacks, held: Stacks | None = None) -> int:
        encoder = RangeEncoder()
        model.encode_patches(encoder, stacks, cell_codes, None, held)
        return len(encoder.finish())

    depths = tokenizer.encode(picture, budget=TokenBudget(keep=0.2)).depth_map()
    by_model, nested = RangeEncoder(), RangeEncoder()
    model.encode_depths(by_model, depths, cell_codes)
    for depth in range(1, model.depth + 1):
        if (depths >= depth - 1).any():
            nested.bitmap((depths >= depth).view(np.uint8), (depths >= depth - 1).view(np.uint8))
    assert len(by_model.finish()) < 0.95 * len(nested.finish())

    counts = stacks.depths.ravel()
    order = np.arange(counts.size).reshape(grid[0], 4, grid[1], 4)
    # Each cell keeps its own patches, in another order.
    order = order[:, ::-1, :, ::-1].ravel()
    parts = np.split(stacks.codes, np.cumsum(counts)[:-1])
    mixed = Stacks(np.concatenate([parts[i] for i in order]), counts[order].reshape(stacks.depths.shape))
    assert cost(stacks) < 0.95 * cost(mixed)
    assert cost(stacks, stacks) < 0.7 * cost(stacks)  # what a patch held predicts what it gets
