"""The integer entropy model: the same frequencies on every machine, in every order and in parts."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.entropy import (
    INPUT_SCALE,
    NEIGHBOURS,
    PHASES,
    SHARE_LIMITS,
    TOTAL,
    IntegerEntropyModel,
    cell_inputs,
    exp_table,
    load_tables,
    save_tables,
    share_class,
    share_inputs,
)
from tatok_edge.packet import pack, unpack
from tatok_edge.runtime._kernels import ids_from_codes
from tatok_edge.tokenizer import Tokenizer
from tatok_edge.tokens import TokenFrame

TAG = bytes(range(8))
LEVEL_SETS = [(8, 8, 8, 5, 5, 5), (2,), (64, 3), (5, 9, 4)]
levels_of = st.sampled_from(LEVEL_SETS)


def make_model(levels: tuple[int, ...], seed: int, *, width: int = 12, spread: int = 2000) -> IntegerEntropyModel:
    """A model of random tables; a large ``spread`` makes rows that are nearly certain."""
    random = np.random.default_rng(seed)
    dims, states = len(levels), sum(levels)
    shapes = {
        "w1": (NEIGHBOURS * dims + len(SHARE_LIMITS) + 1, width),
        "b1": (width,),
        "w2": (width, width),
        "b2": (width,),
        "w3": (width, PHASES * states),
        "b3": (PHASES * states,),
    }
    tables: dict[str, Any] = {
        name: random.integers(-spread, spread + 1, shape, dtype=np.int32) for name, shape in shapes.items()
    }
    tables["b1"] = tables["b1"] * 64
    tables["exp"] = exp_table()
    tables["global_freqs"] = np.zeros((dims, max(levels)), np.uint16)
    for d, level in enumerate(levels):
        tables["global_freqs"][d, :level] = TOTAL // level
        tables["global_freqs"][d, 0] += TOTAL % level
    return IntegerEntropyModel(levels, TAG, load_tables(save_tables(tables), levels, "test"))


def random_globals(model: IntegerEntropyModel, cells: tuple[int, int], seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    columns = [random.integers(0, level, cells[0] * cells[1]) for level in model.levels]
    return np.stack(columns, 1).astype(np.int32)


def reference_rows(
    model: IntegerEntropyModel, global_codes: np.ndarray, cells: tuple[int, int], position: int, kept: int
) -> list[list[int]]:
    """The rows of one patch in Python's integers, which have no width: the specification in plain words."""
    tables = {name: array.tolist() for name, array in model.tables.items()}
    levels, (hc, wc) = model.levels, cells
    y, x = divmod(position, wc * 4)
    inputs = []
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            cell = min(max(y // 4 + dy, 0), hc - 1) * wc + min(max(x // 4 + dx, 0), wc - 1)
            inputs += [(2 * int(c) + 1) * 64 // n - 64 for c, n in zip(global_codes[cell], levels, strict=True)]
    share = next((i for i, n in enumerate((32, 16, 8, 4, 3, 2)) if kept * n <= hc * wc * 16), 6)
    inputs += [64 if i == share else 0 for i in range(7)]
    for weight, bias in (("w1", "b1"), ("w2", "b2")):
        columns = list(zip(*tables[weight], strict=True))
        sums = [
            sum(a * w for a, w in zip(inputs, c, strict=True)) + b for c, b in zip(columns, tables[bias], strict=True)
        ]
        inputs = [min(max(total >> 10, 0), 255) for total in sums]
    columns = list(zip(*tables["w3"], strict=True))
    phase, states = y % 4 * 4 + x % 4, sum(levels)
    rows, at = [], phase * states
    for level in levels:
        logits = [
            sum(a * w for a, w in zip(inputs, columns[i], strict=True)) + tables["b3"][i] >> 12
            for i in range(at, at + level)
        ]
        at += level
        below = [max(logits) - logit for logit in logits]
        weights = [tables["exp"][min(step, 177)] for step in below]
        row = [1 + weight * (4096 - level) // sum(weights) for weight in weights]
        row[below.index(0)] += 4096 - sum(row)
        rows.append(row + [0] * (max(levels) - level))
    return rows


def check_rows(rows: np.ndarray, levels: tuple[int, ...]) -> None:
    """What the coder asks of every row."""
    assert rows.dtype == np.uint16
    assert (rows.astype(np.int64).sum(1) == TOTAL).all()
    for d, level in enumerate(levels):
        assert (rows[d :: len(levels), :level] >= 1).all()
        assert not rows[d :: len(levels), level:].any()


@st.composite
def requests(draw: st.DrawFn) -> tuple[IntegerEntropyModel, np.ndarray, tuple[int, int], np.ndarray, int]:
    levels = draw(levels_of)
    model = make_model(levels, draw(st.integers(0, 50)), spread=draw(st.sampled_from([0, 50, 2000, 2**31 - 1])))
    cells = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    patches = cells[0] * cells[1] * PHASES
    positions = sorted(draw(st.sets(st.integers(0, patches - 1), min_size=1, max_size=12)))
    kept = draw(st.integers(len(positions), patches))
    return model, random_globals(model, cells, draw(st.integers(0, 50))), cells, np.array(positions, np.int32), kept


@given(requests())
def test_rows_are_those_of_unbounded_integers(request: Any) -> None:
    model, global_codes, cells, positions, kept = request
    rows = model.patch_freqs(global_codes, cells, positions, kept)
    check_rows(rows, model.levels)
    expected = [row for p in positions.tolist() for row in reference_rows(model, global_codes, cells, p, kept)]
    assert rows.tolist() == expected


@given(requests(), st.data())
def test_rows_are_the_same_when_asked_for_in_parts(request: Any, data: st.DataObject) -> None:
    model, global_codes, cells, positions, kept = request
    cut = data.draw(st.integers(0, len(positions)))
    whole = model.patch_freqs(global_codes, cells, positions, kept)
    parts = [model.patch_freqs(global_codes, cells, part, kept) for part in (positions[:cut], positions[cut:])]
    assert np.array_equal(whole, np.concatenate(parts))


def test_no_position_gives_no_row() -> None:
    model = make_model((8, 5), 0)
    rows = model.patch_freqs(random_globals(model, (2, 2), 0), (2, 2), np.zeros(0, np.int32), 0)
    assert rows.shape == (0, 8) and rows.dtype == np.uint16


def test_rows_follow_what_they_may_depend_on_and_nothing_else() -> None:
    """A row sees its cell, the eight around it, its phase, and the share of kept patches."""
    model, cells = make_model((8, 8, 8, 5, 5, 5), 3, spread=3000), (5, 6)
    global_codes = random_globals(model, cells, 3)
    position = np.array([2 * 4 * 24 + 3 * 4], np.int32)  # first patch of cell (2, 3)
    rows = model.patch_freqs(global_codes, cells, position, 40)
    for cell in range(30):
        changed = global_codes.copy()
        changed[cell] = (changed[cell] + 3) % np.array(model.levels)
        near = abs(cell // 6 - 2) <= 1 and abs(cell % 6 - 3) <= 1
        same = np.array_equal(rows, model.patch_freqs(changed, cells, position, 40))
        assert same or near
        assert not (same and cell == 2 * 6 + 3)
    assert not np.array_equal(rows, model.patch_freqs(global_codes, cells, position + 1, 40))
    assert np.array_equal(rows, model.patch_freqs(global_codes, cells, position, 45))  # 40 and 45 are both above 1/16
    assert not np.array_equal(rows, model.patch_freqs(global_codes, cells, position, 480))


@given(st.integers(1, 2**24), st.data())
def test_share_class_is_the_limit_in_exact_fractions(patches: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, patches))
    index = share_class(kept, patches)
    bounds = [0, *(patches / limit for limit in SHARE_LIMITS), patches]
    assert kept <= bounds[index + 1]
    assert index == 0 or kept > bounds[index]
    row = share_inputs(kept, patches)
    assert row.dtype == np.int32 and row.sum() == INPUT_SCALE == row[index]


@given(levels_of, st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_cell_inputs_are_bin_centres_of_the_cells_around(levels: tuple[int, ...], hc: int, wc: int, seed: int) -> None:
    model = make_model(levels, 0)
    codes = random_globals(model, (hc, wc), seed)
    inputs = cell_inputs(codes, (hc, wc), levels).reshape(hc, wc, NEIGHBOURS, len(levels))
    assert inputs.dtype == np.int32
    own = ((2 * codes + 1) / np.array(levels) - 1) * INPUT_SCALE
    assert np.abs(inputs[:, :, 4].reshape(own.shape) - own).max() < 1
    assert np.abs(inputs).max() < INPUT_SCALE
    for k in range(NEIGHBOURS):
        y = np.clip(np.arange(hc) + k // 3 - 1, 0, hc - 1)
        x = np.clip(np.arange(wc) + k % 3 - 1, 0, wc - 1)
        assert np.array_equal(inputs[:, :, k], inputs[y][:, x][:, :, 4])


def test_exp_table() -> None:
    table = exp_table()
    assert table[0] == 65536 and table[16] == round(65536 / np.e) and table[-1] >= 1
    assert (np.diff(table) <= 0).all()


@given(levels_of, st.integers(1, 3), st.integers(1, 3))
def test_global_rows(levels: tuple[int, ...], hc: int, wc: int) -> None:
    rows = make_model(levels, 0).global_freqs((hc, wc))
    assert rows.shape == (hc * wc * len(levels), max(levels))
    check_rows(rows, levels)


@given(requests())
def test_packets_come_back(request: Any) -> None:
    model, global_codes, cells, positions, _ = request
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, level, len(positions)) for level in model.levels], 1).astype(np.int32)
    frame = TokenFrame(
        ids=ids_from_codes(codes, model.levels),
        positions=positions,
        global_ids=ids_from_codes(global_codes, model.levels),
        width=cells[1] * 32,
        height=cells[0] * 32,
        model=TAG,
    )
    assert unpack(pack(frame, model), model) == frame


def test_the_shipped_model_has_valid_rows_everywhere(tokenizer: Tokenizer) -> None:
    model = tokenizer.entropy_model
    cells = (6, 7)
    positions = np.arange(6 * 7 * PHASES, dtype=np.int32)
    check_rows(model.global_freqs(cells), model.levels)
    for seed, kept in enumerate([1, 40, 80, 160, 220, 330, 672]):  # one of each class
        global_codes = random_globals(model, cells, seed)
        rows = model.patch_freqs(global_codes, cells, positions, kept)
        check_rows(rows, model.levels)
        for position in (0, 333, 671):
            part = rows[position * 6 : position * 6 + 6].tolist()
            assert part == reference_rows(model, global_codes, cells, position, kept)


PROBE = """
import hashlib, numpy as np
from tatok_edge.tokenizer import Tokenizer
model = Tokenizer.load(threads=1).entropy_model
random = np.random.default_rng(0)
codes = np.stack([random.integers(0, level, 30 * 40) for level in model.levels], 1).astype(np.int32)
rows = model.patch_freqs(codes, (30, 40), np.arange(30 * 40 * 16, dtype=np.int32), 9000)
print(hashlib.sha256(rows.tobytes()).hexdigest())
"""


@pytest.mark.parametrize("kernel", [{}, {"OPENBLAS_CORETYPE": "Prescott"}], ids=["default", "other kernels"])
def test_rows_do_not_depend_on_the_matrix_library(kernel: dict[str, str], tmp_path: Path) -> None:
    """The same with one thread, with several, and with the kernels of another processor."""
    digests = set()
    for threads in ("1", "3"):
        environment = os.environ | kernel | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        result = subprocess.run(
            [sys.executable, "-c", PROBE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        digests.add(result.stdout)
    model = Tokenizer.load(threads=1).entropy_model
    random = np.random.default_rng(0)
    codes = np.stack([random.integers(0, level, 30 * 40) for level in model.levels], 1).astype(np.int32)
    rows = model.patch_freqs(codes, (30, 40), np.arange(30 * 40 * 16, dtype=np.int32), 9000)
    assert digests == {hashlib.sha256(rows.tobytes()).hexdigest() + "\n"}
