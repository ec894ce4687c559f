"""The int8 decoder: same tokens, nearly the same pictures, and what its export refuses."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tatok_edge.cli.main import main
from tatok_edge.errors import BackendError, BundleError, InputError
from tatok_edge.evaluation.metrics import psnr
from tatok_edge.model.bundle import MODELS, open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.encoder import StreamEncoder
from tatok_edge.tokens.budget import TokenBudget


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the shipped bundle."""
    return Path(shutil.copytree(MODELS / "tatok-s8", tmp_path / "bundle"))


def manifest_of(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text())


def write_manifest(folder: Path, manifest: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(manifest))


# --- what users do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1.0, 0.35, 0.05])
def test_tokens_are_the_same_and_pictures_close(tokenizer: Tokenizer, keep: float) -> None:
    with Tokenizer.load(precision="int8") as quantized:
        assert quantized.backend.precision == "int8" and quantized.tag == tokenizer.tag
        for number in range(3):
            image = render(Scene(width=200 + 40 * number, height=144, seed=number), 7)
            frame = tokenizer.encode(image, budget=TokenBudget(keep=keep))
            assert quantized.encode(image, budget=TokenBudget(keep=keep)) == frame
            picture = quantized.decode(frame)
            assert psnr(tokenizer.decode(frame), picture) > 42
            assert psnr(image, picture) > psnr(image, tokenizer.decode(frame)) - 0.3
            assert np.array_equal(picture, quantized.decode(frame))


def test_pictures_do_not_depend_on_threads(tokenizer: Tokenizer) -> None:
    frame = tokenizer.encode(render(Scene(width=352, height=288, seed=5), 3), budget=TokenBudget(keep=0.5))
    with Tokenizer.load(precision="int8", threads=1) as one, Tokenizer.load(precision="int8", threads=2) as two:
        # The convolutions add integers; what surrounds them in fp32 may round another way.
        difference = np.abs(one.decode(frame).astype(int) - two.decode(frame).astype(int))
        assert difference.max() <= 2 and (difference > 0).mean() < 0.01


def test_streams_read_each_others_packets(tokenizer: Tokenizer) -> None:
    frames = [render(Scene(width=160, height=128, seed=2), 3 * number) for number in range(8)]
    with Tokenizer.load(precision="int8") as quantized:
        for writer, reader in ((tokenizer, quantized), (quantized, tokenizer)):
            encoder, decoder = StreamEncoder(writer), StreamDecoder(reader)
            for index, image in enumerate(frames):
                decoded = decoder.decode(encoder.encode(image, timestamp_us=40_000 * index).packet)
                assert decoded.complete
            assert psnr(image, decoded.image) > 20


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = str(tmp_path / "a.ttk")
    assert main(["encode", "synthetic:frames=2,width=160,height=128", "-o", tokens, "--keep", "0.5"]) == 0
    for precision in ("fp32", "int8"):
        assert main(["decode", tokens, "-o", str(tmp_path / precision), "--precision", precision]) == 0
    pictures = [cv2.imread(str(next((tmp_path / name).iterdir()))) for name in ("fp32", "int8")]
    assert 42 < psnr(pictures[0], pictures[1]) < 80
    capsys.readouterr()
    assert main(["decode", tokens, "-o", str(tmp_path / "x"), "--precision", "int8", "--backend", "tensorrt"]) == 1
    assert "precision int8 runs on the CPU" in capsys.readouterr().err
    assert main(["dataset", "synthetic:frames=2", "-o", str(tmp_path / "d"), "--precision", "int8"]) == 2
    assert "only encoded" in capsys.readouterr().err


# --- bundles --------------------------------------------------------------------------------------


def test_a_bundle_without_int8_says_how_to_make_it(folder: Path) -> None:
    manifest = manifest_of(folder)
    del manifest["int8"]
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"no int8 decoder: add one with 'python -m tatok_edge\.export\.bundle\.int8"):
        Tokenizer.load(folder, precision="int8")
    Tokenizer.load(folder).close()


def test_other_precisions_are_refused() -> None:
    with pytest.raises(InputError, match="precision must be one of fp32, int8, got 'int4'"):
        Tokenizer.load(precision="int4")  # type: ignore[arg-type]
    with pytest.raises(BackendError, match="not with backend 'tensorrt-rtx'"):
        Tokenizer.load(precision="int8", backend="tensorrt-rtx")


def test_a_damaged_int8_decoder(folder: Path) -> None:
    data = bytearray((folder / "decoder.int8.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "decoder.int8.onnx").write_bytes(data)
    with pytest.raises(BundleError, match=r"decoder\.int8\.onnx: SHA-256"):
        Tokenizer.load(folder, precision="int8")
    Tokenizer.load(folder).close()  # what is good stays usable


@pytest.mark.parametrize(
    ("section", "text"),
    [
        (None, "must hold 'files'"),
        ([], "must hold 'files'"),
        ({"files": {}}, "must hold 'files'"),
        ({"files": {"decoder": {}}}, "has no 'decoder'"),
        ({"files": {"decoder": {"file": "../x", "sha256": "0" * 64}}}, "without folders"),
        ({"files": {"decoder": {"file": "x", "sha256": "Z" * 64}}}, "64 hexadecimal"),
        ({"files": {"patch_encoder": {"file": "x", "sha256": "0" * 64}}}, "and no other"),
    ],
)
def test_manifests_with_a_bad_section(folder: Path, section: Any, text: str) -> None:
    write_manifest(folder, manifest_of(folder) | {"int8": section})
    with pytest.raises(BundleError, match=text):
        open_bundle(folder)


# --- the export -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny model; do not write to it."""
    onnx_export = pytest.importorskip("tatok_edge.export.bundle.onnx", reason="the export needs PyTorch and onnx")
    out = tmp_path_factory.mktemp("int8") / "tiny"
    onnx_export.export_bundle(finished_run / "checkpoint.safetensors", out)
    return out


@pytest.fixture
def int8(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, for fewer pictures."""
    module = pytest.importorskip("tatok_edge.export.bundle.int8", reason="quantization needs onnx")
    monkeypatch.setattr("tatok_edge.export.bundle.pictures.MAX_PICTURES", 8)
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_int8_decoder_is_added(
    tiny: Path, tmp_path: Path, pictures: Path, int8: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    before = contents(path)
    assert int8.main([str(path), "--pictures", str(pictures), "--threads", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["pictures"] == 4 and record["between_db"] > 35
    assert all(row["loss_db"] <= 0.1 for row in record["shares"].values())
    after = contents(path)
    assert set(after) == {*before, "decoder.int8.onnx"}
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert open_bundle(path).tag == open_bundle(tiny).tag
    with Tokenizer.load(path, precision="int8", threads=1) as loaded:
        assert loaded.decode(loaded.encode(render(Scene(width=96, height=64), 0))).shape == (64, 96, 3)


def test_what_the_export_refuses(
    tiny: Path, tmp_path: Path, pictures: Path, int8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    before = contents(path)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"has 0 pictures of at least 256x256 pixels .* 8 are needed"):
        int8.add_int8(path, tmp_path / "none", threads=1)
    with pytest.raises(BundleError, match="must be a bundle folder"):
        int8.add_int8(tmp_path / "no.zip", pictures, threads=1)
    monkeypatch.setattr(int8, "MAX_LOSS_DB", -50.0)
    with pytest.raises(BundleError, match=r"loses -?\d+\.\d+ dB, at most -50\.0 dB are allowed; nothing was written"):
        int8.add_int8(path, pictures, threads=1)
    assert contents(path) == before


def test_smoothing_does_not_change_the_function(int8: Any) -> None:
    import onnx

    from tatok_edge.runtime.onnxruntime import OnnxSession

    bundle = open_bundle("tatok-s8")
    feeds = int8.decoder_inputs(bundle, [render(Scene(width=256, height=256, seed=1), 0)], 1)
    model = onnx.load_model_from_string(bundle.read("decoder"))
    smoothed = int8.smooth(model, feeds)
    assert sum(node.op_type == "Mul" for node in smoothed.graph.node) == 7  # the stem, five blocks, the last layers
    graphs = [
        OnnxSession({"decoder": candidate.SerializeToString()}, threads=1).run("decoder", feeds[0])["pixels"]
        for candidate in (model, smoothed)
    ]
    assert np.abs(graphs[0] - graphs[1]).max() < 1e-4
