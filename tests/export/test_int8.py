"""The int8 graphs: tokens as good, nearly the same pictures, and what their export refuses."""

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
from tatok_edge.model.bundle import INT8_GRAPHS, MODELS, open_bundle
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


@pytest.mark.parametrize("keep", [2.0, 1.0, 0.35])
def test_tokens_and_pictures_are_as_good(tokenizer: Tokenizer, keep: float) -> None:
    budget = TokenBudget(keep=keep)
    losses = []
    with Tokenizer.load(precision="int8") as quantized:
        assert quantized.backend.precision == "int8" and quantized.tag == tokenizer.tag
        for number in range(3):
            image = render(Scene(width=200 + 40 * number, height=144, seed=number), 7)
            exact, frame = tokenizer.encode(image, budget=budget), quantized.encode(image, budget=budget)
            assert frame.n_tokens == exact.n_tokens and quantized.encode(image, budget=budget) == frame
            # Either precision decodes the tokens of both, from packets, too.
            for one in (exact, frame):
                pictures = [reader.decode(reader.unpack(tokenizer.pack(one))) for reader in (tokenizer, quantized)]
                assert psnr(*pictures) > 36
            losses.append(psnr(image, tokenizer.decode(exact)) - psnr(image, quantized.decode(frame)))
    assert np.mean(losses) < 0.3


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
    assert "tokens of fp32" in capsys.readouterr().err


# --- bundles --------------------------------------------------------------------------------------


def test_a_bundle_without_int8_says_how_to_make_it(folder: Path) -> None:
    manifest = manifest_of(folder)
    del manifest["int8"]
    write_manifest(folder, manifest)
    with pytest.raises(BundleError, match=r"no int8 graphs: add them with 'python -m tatok_edge\.export\.bundle\.int8"):
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
        ({"files": {"context": {}}}, "has no 'context'"),
        ({"files": {"decoder": {"file": "../x", "sha256": "0" * 64}}}, "without folders"),
        ({"files": {"decoder": {"file": "x", "sha256": "Z" * 64}}}, "64 hexadecimal"),
        (
            {"files": {"global_encoder": {"file": "x", "sha256": "0" * 64}}},
            "patch_encoder, .* no other",
        ),
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
    """The module, for fewer pictures, and with times that do not depend on the machine: int8 is faster."""
    module = pytest.importorskip("tatok_edge.export.bundle.int8", reason="quantization needs onnx")
    monkeypatch.setattr("tatok_edge.export.bundle.pictures.MAX_PICTURES", 8)
    monkeypatch.setattr(module, "times", lambda *given: {"fp32_ms": 2.0, "int8_ms": 1.0})
    return module


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_int8_graphs_are_added(
    tiny: Path, tmp_path: Path, pictures: Path, int8: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    before = contents(path)
    assert int8.main([str(path), "--pictures", str(pictures), "--threads", "1"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["pictures"] == 4 and list(record["keeps"]) == ["0.35", "1", "2"]
    assert all(row["loss_db"] <= 0.1 for row in record["keeps"].values())
    added = {f"{name}.int8.onnx" for name in INT8_GRAPHS if name not in record["fp32"]}
    after = contents(path)
    assert added and set(after) == {*before, *added}
    assert all(after[name] == data for name, data in before.items() if name != "manifest.json")
    assert open_bundle(path).tag == open_bundle(tiny).tag
    with Tokenizer.load(path, precision="int8", threads=1) as loaded:
        assert loaded.decode(loaded.encode(render(Scene(width=96, height=64), 0))).shape == (64, 96, 3)


def test_graphs_that_do_not_pass_stay_fp32(
    tiny: Path, tmp_path: Path, pictures: Path, int8: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    monkeypatch.setattr(int8, "MAX_LOSS_DB", 50.0)
    assert int8.add_int8(path, pictures, threads=1)["fp32"] == {}
    slow = {"fp32_ms": 1.0, "int8_ms": 1.5}
    monkeypatch.setattr(
        int8, "times", lambda bundle, name, *rest: slow if name == "context" else {"fp32_ms": 1.0, "int8_ms": 0.5}
    )
    record = int8.add_int8(path, pictures, threads=1)
    assert record["fp32"] == {"context": "not faster: 1.50 ms, in fp32 1.00 ms"}
    assert set(manifest_of(path)["int8"]["files"]) == {"decoder", "patch_encoder"}
    assert not (path / "context.int8.onnx").exists()  # that of the run before
    assert open_bundle(path).graphs("int8")["context"] == open_bundle(tiny).graphs()["context"]


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
    text = r"no graph passes in int8 \(decoder loses -?\d+\.\d+ dB, at most -50\.0 dB are .*nothing was written"
    with pytest.raises(BundleError, match=text):
        int8.add_int8(path, pictures, threads=1)
    assert contents(path) == before


# --- the conversion ---------------------------------------------------------------------------------


def outputs(name: str, model: Any, feed: Any) -> dict[str, np.ndarray]:
    from tatok_edge.runtime.onnxruntime import OnnxSession

    return OnnxSession({name: model.SerializeToString()}, threads=1).run(name, feed)


def kinds(model: Any) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_other_forms_are_the_same_function(tiny: Path, int8: Any) -> None:
    import onnx

    quantize = pytest.importorskip("tatok_edge.export.bundle.quantize")
    bundle = open_bundle(tiny)
    feeds = int8.graph_inputs(bundle, [render(Scene(width=128, height=128, seed=1), 0)], 1)
    models = {name: onnx.load_model_from_string(bundle.read(name)) for name in INT8_GRAPHS}
    folded = quantize.fold(models["context"])
    assert kinds(folded).count("Conv") == kinds(models["context"]).count("Conv") - 1  # the block's depthwise layer
    equal = quantize.equalize(folded, feeds["context"], quantize.wide_layers(folded, 12))
    decoder = quantize.fold(models["decoder"])
    smoothed = quantize.smooth(decoder, feeds["decoder"], quantize.wide_layers(decoder, 12))
    assert "Mul" in kinds(smoothed)
    parted = quantize.split(models["patch_encoder"], {"features": (768, bundle.context_width, 192)})
    assert kinds(parted).count("Gemm") == kinds(models["patch_encoder"]).count("Gemm") + 4  # 3 and 3 parts for 2
    for name, model in (("context", folded), ("context", equal), ("decoder", smoothed)):
        expected = outputs(name, models[name], feeds[name][0])
        for key, value in outputs(name, model, feeds[name][0]).items():
            assert np.abs(value - expected[key]).max() < 1e-3
    codes = [outputs("patch_encoder", m, feeds["patch_encoder"][0])["codes"] for m in (models["patch_encoder"], parted)]
    assert (codes[0] == codes[1]).mean() > 0.999


def test_int8_layers(tiny: Path, int8: Any) -> None:
    import onnx

    bundle = open_bundle(tiny)
    feeds = int8.graph_inputs(bundle, [render(Scene(width=128, height=128, seed=1), 0)], 1)
    for name in INT8_GRAPHS:
        model = int8.quantized(bundle, name, feeds[name])
        exact, rounded = (
            outputs(name, one, feeds[name][0]) for one in (onnx.load_model_from_string(bundle.read(name)), model)
        )
        types = {tensor.data_type for tensor in model.graph.initializer}
        assert {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT32} <= types
        for key, value in rounded.items():
            assert value.dtype == exact[key].dtype and value.shape == exact[key].shape
            if key == "codes":
                assert np.abs(value - exact[key]).mean() < 0.3  # levels
            elif key in ("context", "mean", "pixels"):
                assert np.abs(value - exact[key]).mean() < 0.05 * exact[key].std() + 0.01
    # What decides a level is not quantized.
    graph = onnx.load_model_from_string(bundle.read("patch_encoder"))
    model = int8.quantized(bundle, "patch_encoder", feeds["patch_encoder"])
    last = {node.name for node in graph.graph.node if node.name.endswith(("/out/Gemm", "/skip/Gemm"))}
    last |= int8.layers_before_codes(graph)
    plain = {node.name for node in model.graph.node if node.op_type == "Gemm" and "rounded" not in node.input[1]}
    assert last and last <= plain
