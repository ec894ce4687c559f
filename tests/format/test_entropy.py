"""The integer entropy model: the same frequencies on every machine, each from what was coded before."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from helpers import coder_reference as plain
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.format.entropy import (
    GRIDS,
    PHASES,
    SHARE_LIMITS,
    SHARES,
    IntegerEntropyModel,
    exp_table,
    load_tables,
    save_tables,
    share_class,
)
from tatok_edge.format.packet import pack, unpack
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu.coder import CONTEXT_TOKENS, RangeDecoder, RangeEncoder
from tatok_edge.runtime.cpu.kernels import codes_from_ids, ids_from_codes
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.tokens.budget import TokenBudget
from tatok_edge.tokens.frame import TokenFrame

TAG = bytes(range(8))
LEVEL_SETS = [(8, 8, 8, 5, 5, 5), (2,), (64, 3), (5, 9, 4)]
levels_of = st.sampled_from(LEVEL_SETS)

Ints = np.ndarray[Any, np.dtype[np.int32]]


def make_tables(levels: tuple[int, ...], seed: int, *, width: int = 12, spread: int = 2000) -> dict[str, Any]:
    """Random tables; a large ``spread`` makes rows that are nearly certain."""
    random = np.random.default_rng(seed)
    dims, states = len(levels), sum(levels)
    context = CONTEXT_TOKENS * (dims + 2)
    tables: dict[str, Any] = {"exp": exp_table()}
    above = 9 * dims + SHARES + PHASES
    sizes = ((context, states), (above + 3 * CONTEXT_TOKENS, 2), (above + context, states))
    for grid, (inputs, outputs) in zip(GRIDS, sizes, strict=True):
        shapes = {"w1": (inputs, width), "w2": (width, width), "w3": (width, outputs)}
        for name, shape in shapes.items():
            tables[f"{grid}_{name}"] = random.integers(-spread, spread + 1, shape, dtype=np.int16)
        for name, size in (("b1", width), ("b2", width), ("b3", outputs)):
            tables[f"{grid}_{name}"] = random.integers(-64 * spread, 64 * spread + 1, size, dtype=np.int32)
    return tables


def make_model(levels: tuple[int, ...], seed: int, **how: int) -> IntegerEntropyModel:
    return IntegerEntropyModel(levels, TAG, load_tables(save_tables(make_tables(levels, seed, **how)), levels, "test"))


def random_codes(levels: tuple[int, ...], count: int, seed: int) -> Ints:
    random = np.random.default_rng(seed)
    return np.stack([random.integers(0, level, count) for level in levels], 1).astype(np.int32)


def centres(code: list[int], levels: tuple[int, ...]) -> list[int]:
    return [(2 * c + 1) * 64 // level - 64 for c, level in zip(code, levels, strict=True)]


def layer(inputs: list[int], weights: list[list[int]], biases: list[int]) -> list[int]:
    columns = zip(*weights, strict=True)
    return [
        sum(a * w for a, w in zip(inputs, column, strict=True)) + b for column, b in zip(columns, biases, strict=True)
    ]


def reference_totals(
    tables: dict[str, Any],
    name: str,
    levels: tuple[int, ...],
    grid: tuple[int, int],
    coded: dict[int, list[int]],
    positions: set[int],
    position: int,
    cell_codes: list[list[int]],
    kept: int,
) -> list[int]:
    """The sums of the last layer for one token in Python's integers, which have no width."""
    height, width = grid
    y, x = divmod(position, width)
    inputs: list[int] = []
    own = (2,) if name == "keep" else levels
    if name != "global":
        hc, wc = height // 4, width // 4
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                cell = min(max(y // 4 + dy, 0), hc - 1) * wc + min(max(x // 4 + dx, 0), wc - 1)
                inputs += centres(cell_codes[cell], levels)
        limits = enumerate((32, 16, 8, 4, 3, 2))
        share = next((i for i, n in limits if kept * n <= height * width), 6)
        inputs += [64 if i == share else 0 for i in range(7)]
        inputs += [64 if i == y % 4 * 4 + x % 4 else 0 for i in range(16)]
    near = [(dy, dx) for dy in range(-2, 3) for dx in range(-2, 3)]
    for dy, dx in near:
        if (dy, dx) < (0, 0):
            inside = y + dy >= 0 and 0 <= x + dx < width
            code = coded.get(position + dy * width + dx) if inside else None
            inputs += [0] * (len(own) + 1) if code is None else [*centres(code, own), 64]
    for dy, dx in near:
        if (dy, dx) > (0, 0):
            inside = y + dy < height and 0 <= x + dx < width
            inputs.append(64 if inside and position + dy * width + dx in positions else 0)
    for w, b in (("w1", "b1"), ("w2", "b2")):
        totals = layer(inputs, tables[f"{name}_{w}"], tables[f"{name}_{b}"])
        inputs = [min(max(total >> 10, 0), 255) for total in totals]
    return layer(inputs, tables[f"{name}_w3"], tables[f"{name}_b3"])


def reference_bytes(
    model: IntegerEntropyModel, name: str, codes: Ints, positions: Ints, grid: tuple[int, int], cell_codes: Ints
) -> bytes:
    """A body with these tokens by the coder in plain Python."""
    tables = {key: array.tolist() for key, array in model.tables.items()}
    coder = plain.Encoder()
    coded: dict[int, list[int]] = {}
    adapting = plain.Adaptation(model.levels)
    there = set(positions.tolist())
    for code, position in zip(codes.tolist(), positions.tolist(), strict=True):
        cells = cell_codes.tolist()
        totals = reference_totals(tables, name, model.levels, grid, coded, there, position, cells, len(there))
        rows = adapting.rows(totals, tables["exp"])
        plain.encode_symbols(coder, code, rows)
        adapting.learn(totals, rows, code)
        coded[position] = code
    return coder.finish()


def reference_keep_bytes(model: IntegerEntropyModel, keep: np.ndarray, cell_codes: Ints) -> bytes:
    """A body with this map by the coder in plain Python."""
    tables = {key: array.tolist() for key, array in model.tables.items()}
    coder = plain.Encoder()
    coded: dict[int, list[int]] = {}
    everywhere, kept, cells = set(range(keep.size)), int(keep.sum()), cell_codes.tolist()
    ones = kept
    adapting = plain.Adaptation((2,))
    for position, bit in enumerate(keep.ravel().tolist()):
        if 0 < ones < keep.size - position:
            totals = reference_totals(
                tables, "keep", model.levels, keep.shape, coded, everywhere, position, cells, kept
            )
            rows = adapting.rows(totals, tables["exp"])
            plain.encode_symbols(coder, [bit], rows)
            adapting.learn(totals, rows, [bit])
        coded[position] = [bit]
        ones -= bit
    return coder.finish()


@st.composite
def requests(draw: st.DrawFn) -> tuple[IntegerEntropyModel, Ints, tuple[int, int], Ints, Ints]:
    """A model, cell codes, cells, positions of patches, their codes."""
    levels = draw(levels_of)
    model = make_model(levels, draw(st.integers(0, 50)), spread=draw(st.sampled_from([0, 50, 2000, 25000])))
    cells = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    patches = cells[0] * cells[1] * PHASES
    positions = sorted(draw(st.sets(st.integers(0, patches - 1), min_size=1, max_size=24)))
    seed = draw(st.integers(0, 50))
    codes = random_codes(levels, len(positions), seed + 1)
    return model, random_codes(levels, cells[0] * cells[1], seed), cells, np.array(positions, np.int32), codes


@given(requests())
def test_patch_tokens_have_the_bytes_of_unbounded_integers(request: Any) -> None:
    model, cell_codes, cells, positions, codes = request
    grid = (cells[0] * 4, cells[1] * 4)
    encoder = RangeEncoder()
    model.encode_patches(encoder, codes, positions, cell_codes, grid)
    data = encoder.finish()
    assert data == reference_bytes(model, "patch", codes, positions, grid, cell_codes)
    decoder = RangeDecoder(data)
    assert np.array_equal(model.decode_patches(decoder, positions, cell_codes, grid), codes)
    decoder.finish()
    # What tokens are said to cost is what they were coded with.
    frequencies = np.rint(4096 * np.exp2(model.patch_log2_probs(codes, positions, cell_codes, grid))).astype(int)
    coder = plain.Encoder()
    starts = np.cumsum(model.levels)[:-1]
    for code, column in zip(codes.tolist(), frequencies.T, strict=True):
        plain.encode_symbols(coder, code, [row.tolist() for row in np.split(column, starts)])
    assert coder.finish() == data


@given(requests())
def test_maps_of_kept_patches_have_the_bytes_of_unbounded_integers(request: Any) -> None:
    model, cell_codes, cells, positions, _ = request
    keep = np.zeros((cells[0] * 4, cells[1] * 4), np.uint8)
    keep.ravel()[positions] = 1
    for chosen in (keep, 1 - keep):
        encoder = RangeEncoder()
        model.encode_keep_map(encoder, chosen, cell_codes)
        data = encoder.finish()
        assert data == reference_keep_bytes(model, chosen, cell_codes)
        decoder = RangeDecoder(data)
        decoded = model.decode_keep_map(decoder, int(chosen.sum()), cell_codes, keep.shape)
        assert np.array_equal(decoded, chosen)
        decoder.finish()


@given(st.binary(max_size=40), st.integers(0, 64))
def test_whatever_the_data_a_map_has_its_number_of_ones(data: bytes, kept: int) -> None:
    model = make_model((8, 5), 0)
    cell_codes = random_codes((8, 5), 4, 0)
    with suppress(ValueError):  # the data may be too short
        keep = model.decode_keep_map(RangeDecoder(data), kept, cell_codes, (8, 8))
        assert keep.sum() == kept and keep.max(initial=0) <= 1
    assert model.decode_keep_map(RangeDecoder(b""), 64, cell_codes, (8, 8)).all()


@given(requests(), st.data())
def test_global_tokens_have_the_bytes_of_unbounded_integers(request: Any, data: st.DataObject) -> None:
    """Of all cells, as in a key packet, or of some, as in a delta packet."""
    model, codes, grid, _, _ = request
    count = len(codes)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=count))), np.int32)
    for cells in (np.arange(count, dtype=np.int32), chosen):
        encoder = RangeEncoder()
        model.encode_globals(encoder, codes[cells], cells, grid)
        body = encoder.finish()
        assert body == reference_bytes(model, "global", codes[cells], cells, grid, codes)
        decoder = RangeDecoder(body)
        assert np.array_equal(model.decode_globals(decoder, cells, grid), codes[cells])
        decoder.finish()


def test_adaptation_stays_within_its_limits() -> None:
    """Many tokens that the network is wrong about: scale and bias come to their ends, and no sum overflows."""
    levels = (4, 3)
    tables = make_tables(levels, 0)
    for name in ("patch_w1", "patch_w2", "patch_w3", "patch_b1", "patch_b2"):
        tables[name][:] = 0
    tables["patch_b3"][:] = [2**31 - 1, 0, 0, -(2**31) + 1, 1 << 18, 0, 0]
    model = IntegerEntropyModel(levels, TAG, tables)
    positions = np.arange(32 * 32, dtype=np.int32)
    codes = np.tile(np.array([[3, 1]], np.int32), (len(positions), 1))
    codes[700:] = 0, 0
    cells = random_codes(levels, 64, 0)
    adaptation, ends = plain.Adaptation(levels), set()
    totals = tables["patch_b3"].tolist()
    for code in codes.tolist():
        adaptation.learn(totals, adaptation.rows(totals, tables["exp"].tolist()), code)
        ends |= {adaptation.scales[0], *adaptation.biases}
    assert {-3145728, 2**20, -(2**20)} <= ends
    encoder = RangeEncoder()
    model.encode_patches(encoder, codes, positions, cells, (32, 32))
    data = encoder.finish()
    assert data == reference_bytes(model, "patch", codes, positions, (32, 32), cells)
    assert np.array_equal(model.decode_patches(RangeDecoder(data), positions, cells, (32, 32)), codes)


def test_no_token_takes_no_byte() -> None:
    model = make_model((8, 5), 0)
    none, no_codes = np.zeros(0, np.int32), np.zeros((0, 2), np.int32)
    encoder = RangeEncoder()
    model.encode_patches(encoder, no_codes, none, random_codes((8, 5), 4, 0), (8, 8))
    model.encode_globals(encoder, no_codes, none, (2, 2))
    assert encoder.finish() == b""
    assert model.decode_patches(RangeDecoder(b""), none, random_codes((8, 5), 4, 0), (8, 8)).shape == (0, 2)


def test_a_damaged_body_is_refused() -> None:
    model = make_model((8, 8, 8, 5, 5, 5), 1)
    cells, positions = random_codes(model.levels, 6, 0), np.arange(96, dtype=np.int32)
    encoder = RangeEncoder()
    model.encode_patches(encoder, random_codes(model.levels, 96, 1), positions, cells, (8, 12))
    data = encoder.finish()
    with pytest.raises(ValueError, match="cut off, at token"):
        model.decode_patches(RangeDecoder(data[: len(data) // 2]), positions, cells, (8, 12))
    with pytest.raises(ValueError, match="damaged or from another model, at token"):
        model.decode_patches(RangeDecoder(b"\xff" * len(data)), positions, cells, (8, 12))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"codes": np.full((3, 2), 8, np.int32)}, r"below their levels \(8, 5\), got \[8, 8\] in token 0"),
        ({"codes": np.full((3, 2), -1, np.int32)}, "below their levels"),
        ({"codes": np.zeros((2, 2), np.int32)}, r"codes must have shape \(3, 2\)"),
        ({"positions": np.array([0, 2, 2], np.int32)}, "increase strictly from 0 to below 64, got 2 at 2"),
        ({"positions": np.array([0, 2, 64], np.int32)}, "increase strictly from 0 to below 64, got 64 at 2"),
        ({"positions": np.array([-1, 2, 3], np.int32)}, "increase strictly"),
        ({"global_codes": np.zeros((5, 2), np.int32)}, "cell_codes of 8 x 8 patches must be"),
        ({"global_codes": np.full((4, 2), 5, np.int32)}, "cell_codes must be from 0 to below their levels"),
        ({"grid": (8, 6)}, "cell_codes of 8 x 6 patches must be"),
        ({"grid": (0, 8)}, "a grid must have"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {
        "codes": np.zeros((3, 2), np.int32),
        "positions": np.array([0, 1, 2], np.int32),
        "global_codes": np.zeros((4, 2), np.int32),
        "grid": (8, 8),
    }
    model = make_model((8, 5), 0)
    with pytest.raises(ValueError, match=says):
        model.encode_patches(RangeEncoder(), **(arguments | change))
    with pytest.raises(ValueError, match=says):
        model.patch_log2_probs(**(arguments | change))


def test_sums_that_may_leave_32_bits_are_refused() -> None:
    tables = make_tables((8, 5), 0, width=256)
    tables["patch_w2"][:] = 32767
    tables["patch_b2"][:] = 0
    IntegerEntropyModel((8, 5), TAG, tables)  # 256 * 255 * 32767 is just below 2**31
    tables["patch_b2"][3] = -(1 << 24)
    with pytest.raises(ValueError, match="network 'patch': sums of w2 and b2 may reach"):
        IntegerEntropyModel((8, 5), TAG, tables)


@given(st.integers(1, 2**24), st.data())
def test_share_class_is_the_limit_in_exact_fractions(patches: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, patches))
    index = share_class(kept, patches)
    bounds = [0, *(patches / limit for limit in SHARE_LIMITS), patches]
    assert kept <= bounds[index + 1]
    assert index == 0 or kept > bounds[index]


def test_exp_table() -> None:
    table = exp_table()
    assert table[0] == 65536 and table[16] == round(65536 / np.e) and table[-1] >= 1
    assert (np.diff(table) <= 0).all()


@given(requests())
def test_packets_come_back(request: Any) -> None:
    model, cell_codes, cells, positions, codes = request
    frame = TokenFrame(
        ids=ids_from_codes(codes, model.levels),
        positions=positions,
        global_ids=ids_from_codes(cell_codes, model.levels),
        width=cells[1] * 32,
        height=cells[0] * 32,
        model=TAG,
    )
    assert unpack(pack(frame, model), model) == frame


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return render(Scene(width=256, height=192), 0)


@pytest.mark.parametrize("keep", [1.0, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02])  # one of each class
def test_the_shipped_model_has_the_bytes_of_unbounded_integers(
    tokenizer: Tokenizer, picture: np.ndarray, keep: float
) -> None:
    model = tokenizer.entropy_model
    frame = tokenizer.encode(picture, budget=TokenBudget(keep=keep))
    cell_codes = codes_from_ids(frame.global_ids, model.levels)
    positions = frame.positions[:60]
    if keep < 1:
        positions = frame.positions
    codes = codes_from_ids(frame.ids, model.levels)[: len(positions)]
    encoder = RangeEncoder()
    model.encode_patches(encoder, codes, positions, cell_codes, frame.grid)
    assert encoder.finish() == reference_bytes(model, "patch", codes, positions, frame.grid, cell_codes)


def test_neighbours_make_real_tokens_cheaper(tokenizer: Tokenizer, picture: np.ndarray) -> None:
    """The same tokens in other places, where their neighbours say nothing, take more bytes."""
    model = tokenizer.entropy_model
    frame = tokenizer.encode(picture)
    cell_codes = codes_from_ids(frame.global_ids, model.levels)
    cells = np.arange(len(cell_codes), dtype=np.int32)
    grid = frame.cell_grid

    def size(codes: Ints) -> int:
        encoder = RangeEncoder()
        model.encode_globals(encoder, codes, cells, grid)
        return len(encoder.finish())

    shuffled = np.random.default_rng(0).permutation(cell_codes)
    assert size(cell_codes) < 0.9 * size(shuffled)

    def cost(codes: Ints) -> int:
        encoder = RangeEncoder()
        model.encode_patches(encoder, codes, frame.positions, cell_codes, frame.grid)
        return len(encoder.finish())

    keep = tokenizer.encode(picture, budget=TokenBudget(keep=0.2)).keep_map().view(np.uint8)
    by_model, bitmap = RangeEncoder(), RangeEncoder()
    model.encode_keep_map(by_model, keep, cell_codes)
    bitmap.bitmap(keep)
    assert len(by_model.finish()) < 0.95 * len(bitmap.finish())

    codes = codes_from_ids(frame.ids, model.levels)
    grid_codes = codes.reshape(*frame.grid, -1)
    # Each cell keeps its own patches, in another order.
    blocks = grid_codes.reshape(grid[0], 4, grid[1], 4, -1)[:, ::-1, :, ::-1]
    mixed = np.ascontiguousarray(blocks.reshape(codes.shape))
    assert cost(codes) < 0.95 * cost(mixed)
