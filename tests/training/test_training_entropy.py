"""The entropy model that is fitted at the end of a training, or later to a bundle."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import coder_reference as plain

torch = pytest.importorskip("torch", reason="training needs PyTorch")


from helpers.training_cases import TINY, tensors

from tatok_edge.errors import FormatError
from tatok_edge.format.entropy import IntegerEntropyModel, exp_table, load_tables, save_tables
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cpu.coder import RangeEncoder
from tatok_edge.training import entropy
from tatok_edge.training.data import (
    decode_picture,
    read_pictures,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_entropy_tables_of_a_run_are_valid(finished_run: Path) -> None:
    found = tensors(finished_run / "checkpoint.safetensors")
    tables = {key[8:]: value.numpy() for key, value in found.items() if key.startswith("entropy.")}
    loaded = load_tables(save_tables(tables), TINY.levels, "run")
    assert all(np.array_equal(loaded[name], table) for name, table in tables.items())
    assert found["samples"].dtype == torch.uint8 and found["samples"].shape[1:] == (256, 256, 3)


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that run; do not write to it."""
    onnx_export = pytest.importorskip("tatok_edge.export.bundle.onnx")
    out = tmp_path_factory.mktemp("exported") / "bundle"
    assert onnx_export.main([str(finished_run / "checkpoint.safetensors"), "--out", str(out)]) == 0
    return out


def test_a_bundle_gets_another_entropy_model(
    exported: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    image = decode_picture(read_pictures(pictures, "ship")[0])
    before = Tokenizer.load(folder, threads=1)
    packet = before.pack(before.encode(image))
    assert entropy.main([str(folder), "--data", str(pictures), "--images", "16", "--steps", "40"]) == 0
    after = Tokenizer.load(folder, threads=1)
    assert f"{before.tag.hex()} is now {after.tag.hex()}" in capsys.readouterr().out
    assert after.tag != before.tag and after.tag.hex() in (folder / "MODEL_CARD.md").read_text()
    frame = after.encode(image)
    assert np.array_equal(frame.ids, before.encode(image).ids)
    assert after.unpack(after.pack(frame)) == frame
    with pytest.raises(FormatError, match="was made by model"):
        after.unpack(packet)
    assert {path.name for path in folder.iterdir()} == {path.name for path in exported.iterdir()}


def test_entropy_models_that_cannot_be_fitted(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(exported, folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for bundle, data, says in (
        (folder, tmp_path / "none", "none"),
        (tmp_path / "no-bundle", tmp_path, "must be a bundle folder"),
    ):
        assert entropy.main([str(bundle), "--data", str(data)]) == 1
        assert says in capsys.readouterr().err
    for option in ("--images", "--steps", "--threads"):
        with pytest.raises(SystemExit):
            entropy.main([str(folder), "--data", str(tmp_path), option, "0"])
        assert f"{option} must be at least 1, got 0" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_the_integer_networks_cost_what_their_float_twins_say() -> None:
    """Their inputs are in the same order, and neighbours that say something make a code cheap."""
    random = np.random.default_rng(0)
    levels = (8, 5)
    cells = random.integers(0, 5, (12, 4, 5, 2))
    cells[:, :, 1:, 0] = cells[:, :, :1, 0]  # a row of cells has one value
    patches = random.integers(0, 5, (12, 16, 20, 2))
    patches[:, 1:, :, 1] = patches[:, :1, :, 1]  # a column of patches has one value
    patches[..., 0] = cells[..., 1].repeat(4, 1).repeat(4, 2)  # and patches repeat their cell
    # What is kept are parts of columns.
    scores = torch.from_numpy((random.random((12, 1, 20)) + 0.1 * random.random((12, 16, 20))).astype(np.float32))
    codes = entropy.Codes(torch.from_numpy(cells.astype(np.uint8)), torch.from_numpy(patches.astype(np.uint8)), scores)
    nets = entropy.fit_networks(codes, levels, steps=150, seed=0)
    model = IntegerEntropyModel(levels, bytes(8), nets.tables())
    kept = scores > 0.5
    encoders = {"cells": RangeEncoder(), "keep": RangeEncoder(), "patches": RangeEncoder()}
    expected = dict.fromkeys(encoders, 0.0)
    exp = exp_table().tolist()

    def cost(net: entropy.TokenNet, forward: Callable[[], Any], tokens: Any, levels: tuple[int, ...]) -> float:
        """Bits of tokens by what the float network says, with the coder's adaptation to them."""
        logits: list[torch.Tensor] = []
        with torch.no_grad(), net.register_forward_hook(lambda _net, _inputs, output: logits.append(output)):
            forward()
        adaptation, bits = plain.Adaptation(levels), 0.0
        for code, totals in zip(tokens.tolist(), (logits[0].double() * 65536).round().long().tolist(), strict=True):
            rows = adaptation.rows(totals, exp)
            bits -= sum(math.log2(row[value] / 4096) for row, value in zip(rows, code, strict=True))
            adaptation.learn(totals, rows, code)
        return bits

    there, everywhere = torch.ones(1, 4, 5, dtype=torch.bool), torch.ones(1, 16, 20, dtype=torch.bool)
    for number in range(12):
        own = np.ascontiguousarray(cells[number].reshape(-1, 2).astype(np.int32))
        model.encode_globals(encoders["cells"], own, np.arange(20, dtype=np.int32), (4, 5))
        keep = kept[number].numpy()
        model.encode_keep_map(encoders["keep"], keep.view(np.uint8), own)
        positions = np.flatnonzero(keep).astype(np.int32)
        of_patches = np.ascontiguousarray(patches[number].reshape(-1, 2)[positions].astype(np.int32))
        model.encode_patches(encoders["patches"], of_patches, positions, own, (16, 20))
        one = slice(number, number + 1)
        c, p, k = codes.cells[one], codes.patches[one], kept[one]
        expected["cells"] += cost(nets.cells, partial(nets.cells_nats, c, there), own, levels)
        bits_of_map = keep.reshape(-1, 1).astype(int)
        expected["keep"] += cost(nets.keep, partial(nets.keep_nats, c, k, everywhere), bits_of_map, (2,))
        expected["patches"] += cost(nets.patches, partial(nets.patches_nats, c, p, k, k), of_patches, levels)
    ceiling = {"cells": 240 * math.log2(25), "keep": 0.7 * kept.numel(), "patches": int(kept.sum()) * math.log2(25)}
    for grid, encoder in encoders.items():
        bits = 8 * len(encoder.finish())
        assert bits == pytest.approx(expected[grid], rel=0.03)
        assert bits < 0.8 * ceiling[grid]
