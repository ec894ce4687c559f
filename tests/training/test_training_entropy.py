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
from tatok_edge.format.protocol import Stacks
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
    loaded = load_tables(save_tables(tables), TINY.levels, TINY.depth, "run")
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
    """Their inputs are in the same order, and known tokens that say something make a code cheap."""
    random = np.random.default_rng(0)
    levels, depth = (8, 5), 2
    cells = random.integers(0, 5, (12, 4, 5, 2))
    cells[:, :, 1:, 0] = cells[:, :, :1, 0]  # a row of cells has one value
    patches = random.integers(0, 5, (12, 16, 20, depth, 2))
    patches[:, 1:, :, 0, 1] = patches[:, :1, :, 0, 1]  # a column of patches has one value
    patches[..., 0, 0] = cells[..., 1].repeat(4, 1).repeat(4, 2)  # first tokens repeat their cell
    patches[..., 1, 0] = patches[..., 0, 1]  # second tokens repeat the first
    earlier = patches.copy()
    earlier[..., 0] = random.integers(0, 5, earlier[..., 0].shape)  # and half of the code that was held
    # What is kept are parts of columns; a second token is worth less.
    scores = random.random((12, 1, 1, 20)) + 0.1 * random.random((12, 1, 16, 20))
    scores = torch.from_numpy((scores * np.array([1, 0.6]).reshape(1, 2, 1, 1)).astype(np.float32))
    bytes_of = [torch.from_numpy(part.astype(np.uint8)) for part in (cells, patches, earlier)]
    codes = entropy.Codes(bytes_of[0], bytes_of[1], scores, bytes_of[2])
    nets = entropy.fit_networks(codes, levels, steps=150, seed=0)
    model = IntegerEntropyModel(levels, depth, bytes(8), nets.tables())
    depths = (scores > 0.4).sum(1)
    costs = {"cells": 0.0, "depths": 0.0, "patches": 0.0}
    exp = exp_table().tolist()

    def cost(name: str, forward: Callable[[], Any], tokens: Any, levels: tuple[int, ...]) -> float:
        """Bits of tokens by what the float network says, with the coder's adaptation to them."""
        logits: list[torch.Tensor] = []
        net = nets.nets[name]
        with torch.no_grad(), net.register_forward_hook(lambda _net, _inputs, output: logits.append(output)):
            forward()
        adaptation, bits = plain.Adaptation(levels), 0.0
        for code, totals in zip(tokens.tolist(), (logits[0].double() * 65536).round().long().tolist(), strict=True):
            rows = adaptation.rows(totals, exp)
            bits -= sum(math.log2(row[value] / 4096) for row, value in zip(rows, code, strict=True))
            adaptation.learn(totals, rows, code)
        return bits

    there, everywhere = torch.ones(1, 4, 5, dtype=torch.bool), torch.ones(1, 16, 20, dtype=torch.bool)
    encoders = {name: RangeEncoder() for name in costs}
    for number in range(12):
        one = slice(number, number + 1)
        c, p, d, e = codes.cells[one], codes.patches[one], depths[one], codes.earlier[one]
        own = np.ascontiguousarray(cells[number].reshape(-1, 2).astype(np.int32))
        map_of = np.ascontiguousarray(d[0].numpy().astype(np.int32))
        mask = np.arange(depth) < map_of.reshape(-1, 1)
        stacks = Stacks(np.ascontiguousarray(patches[number].reshape(-1, depth, 2)[mask].astype(np.int32)), map_of)
        held = Stacks(np.ascontiguousarray(e[0].numpy().reshape(-1, depth, 2)[mask].astype(np.int32)), map_of)
        model.encode_globals(encoders["cells"], own, np.arange(20, dtype=np.int32), (4, 5))
        model.encode_depths(encoders["depths"], map_of, own)
        model.encode_patches(encoders["patches"], stacks, own, None, held)
        costs["cells"] += cost("cells", partial(nets.cells_nats, c, there), own, levels)
        bits_of_map = map_of.reshape(-1, 1)
        costs["depths"] += cost("depths", partial(nets.depths_nats, c, d, everywhere), bits_of_map, (depth + 1,))
        for of, name in ((1, "patches"), (2, "deeper")):
            at = d >= of
            forward = partial(nets.patches_nats, c, p, d, (e, d), torch.tensor([of]), at)
            costs["patches"] += cost(name, forward, p[0, :, :, of - 1][at[0]], levels)
    ceilings = {
        "cells": 240 * math.log2(25),
        "depths": depths.numel() * math.log2(3),
        "patches": int(depths.sum()) * math.log2(25),
    }
    for name, encoder in encoders.items():
        bits = 8 * len(encoder.finish())
        assert bits == pytest.approx(costs[name], rel=0.03)
        assert bits < 0.8 * ceilings[name]
