"""``tatok verify``: good candidates are blessed with a record, every kind of broken one is refused with a reason."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.paths import shared

onnx = pytest.importorskip("onnx", reason="converting graphs needs onnx")

from helpers import engine_files, fake_tensorrt
from onnx import numpy_helper

from tatok_edge.cli import verify as verify_command
from tatok_edge.cli.main import main
from tatok_edge.cli.verify import read_frames
from tatok_edge.errors import BackendError, InputError
from tatok_edge.export.engines import lint, precision, record
from tatok_edge.export.engines.profiles import graph_profiles, parse_profiles
from tatok_edge.export.engines.record import is_verified, record_path, remove_record, write_record
from tatok_edge.export.engines.verdict import BOUNDS, Verification
from tatok_edge.export.engines.verify import token_counts, verify
from tatok_edge.model.bundle import GRAPHS, Bundle, open_bundle
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.onnxruntime import OnnxSession
from tatok_edge.runtime.session import Backend, Session
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.choice import EngineSet, EngineTarget, find_engines

PROFILES = {
    "format_version": 1,
    "tokens": [16, 40, 120],
    "frames": [{"batch": [1, 1, 3], "height": [32, 64, 96], "width": [32, 64, 128]}],
}
Change = Callable[[str, dict[str, Any], int], Mapping[str, Any]]
"""Graph, outputs and number of the call to other outputs."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle("tatok-s8")


@pytest.fixture(scope="module")
def graphs(bundle: Bundle) -> dict[str, bytes]:
    return {name: bundle.read(name) for name in GRAPHS}


@pytest.fixture(scope="module")
def models(graphs: dict[str, bytes]) -> dict[str, Any]:
    return {name: lint.load_graph(data, name) for name, data in graphs.items()}


@pytest.fixture(scope="module")
def reference(graphs: dict[str, bytes]) -> OnnxSession:
    return OnnxSession(graphs, threads=1)


@pytest.fixture(scope="module")
def frames() -> list[Any]:
    return read_frames("synthetic:frames=12,width=128,height=96", 3)


@pytest.fixture(scope="module")
def half(bundle: Bundle, models: dict[str, Any], frames: list[Any]) -> dict[str, Any]:
    return precision.convert_bundle(models, frames, bundle.levels, bundle.context_width)[0]


class Changed(Session):
    """A candidate that computes as the reference does, and then something else."""

    def __init__(self, session: OnnxSession, change: Change, runs: EngineSet | None = None) -> None:
        self.session = session
        self.change = change
        self.runs = runs
        self.calls = 0

    @property
    def engines(self) -> EngineSet | None:
        return self.runs

    def run(self, graph: Any, inputs: Mapping[str, Any]) -> Any:
        self.calls += 1
        outputs = {name: np.array(value) for name, value in self.session.run(graph, inputs).items()}
        return self.change(graph, outputs, self.calls)

    def close(self) -> None:
        self.session.close()


def check(
    bundle: Bundle, reference: OnnxSession, candidate: Any, frames: list[Any], kind: str = "fp32", shapes: Any = None
) -> Verification:
    profiles = graph_profiles(parse_profiles(PROFILES | (shapes or {}), "test"), bundle)
    return verify(bundle, reference, candidate, frames=frames, profiles=profiles, bounds=BOUNDS[kind])


# --- good candidates ------------------------------------------------------------------------------


def test_the_same_graphs_agree_in_everything(
    bundle: Bundle, graphs: dict[str, bytes], reference: OnnxSession, frames: list[Any]
) -> None:
    result = check(bundle, reference, OnnxSession(graphs, threads=2), frames)
    assert result.ok and result.failures == ()
    for name in GRAPHS:
        figures = result.graphs[name]
        assert figures["calls"] >= 5 and figures["values"] > 0
        assert figures["not_finite"] == figures["not_repeated"] == figures["not_equal"] == 0
    assert result.graphs["patch_encoder"]["tokens"] == result.graphs["global_encoder"]["tokens"] == 1
    assert result.graphs["cell_context"]["kept"]["residual"] == {"jaccard": 1.0, "exact": 1.0}
    assert result.graphs["decoder"]["pixels"]["psnr_db"] > 100
    assert result.end_to_end["patch_tokens"] == 1 and result.end_to_end["pictures"] == 6
    # Several sizes, batches, and counts on both sides of every edge.
    for shape in ("1 x 32x32", "3 x 32x32", "1 x 128x96", "3 x 128x96"):
        assert shape in result.shapes
    for count in (1, 16, 17, 40, 41, 120):
        assert f"{count} patches" in result.shapes
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["ok"] is True


@pytest.mark.parametrize("form", ["emulated", "as it is"])
def test_the_fp16_graphs_pass(
    bundle: Bundle, half: dict[str, Any], reference: OnnxSession, frames: list[Any], form: str
) -> None:
    run = {name: precision.emulate(graph) if form == "emulated" else graph for name, graph in half.items()}
    session = OnnxSession({name: graph.SerializeToString() for name, graph in run.items()}, threads=1)
    result = check(bundle, reference, session, frames, "fp16")
    assert result.ok, result.failures
    assert 0.95 < result.graphs["patch_encoder"]["tokens"] < 1
    assert result.graphs["patch_encoder"]["code_step"] == 1
    assert 1e-6 < result.graphs["decoder"]["pixels"]["max"] < 0.005
    # fp16 is not fp32, and does not pass for it.
    strict = check(bundle, reference, session, frames, "fp32")
    assert any("patch_encoder" in text and "at least 99.9% are needed" in text for text in strict.failures)


def test_on_a_real_clip(bundle: Bundle, graphs: dict[str, bytes], half: dict[str, Any], reference: Any) -> None:
    clip = shared("videos/highway_static.mp4")
    session = OnnxSession(
        {name: precision.emulate(graph).SerializeToString() for name, graph in half.items()}, threads=1
    )
    size = [{"batch": [1, 1, 1], "height": [256, 256, 256], "width": [320, 320, 320]}]
    result = check(
        bundle, reference, session, read_frames(str(clip), 2), "fp16", {"frames": size, "tokens": [100, 1280]}
    )
    assert result.ok, result.failures
    assert result.end_to_end["reference_db"] > 25


# --- broken candidates ----------------------------------------------------------------------------


def one_in_ten(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "patch_encoder":
        codes = outputs["codes"]
        codes[::10, 0] = np.where(codes[::10, 0] > 0, codes[::10, 0] - 1, 1)
    return outputs


def one_far_off(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "global_encoder":
        codes = outputs["codes"]
        codes[0, 0, 0, 0] = (codes[0, 0, 0, 0] + 4) % 8
    return outputs


def nan_in(which: str, output: str) -> Change:
    def change(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
        if graph == which:
            outputs[output].flat[7 % outputs[output].size] = np.nan
        return outputs

    return change


def rows_mixed_up(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    """The last row of a batch gets what another one should have got."""
    if graph == "context":
        for value in outputs.values():
            if len(value) > 2:
                value[-1] = value[1]
    return outputs


def never_the_same(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "decoder":
        outputs["pixels"] = outputs["pixels"] + np.float32(1e-6 * (call % 2))
    return outputs


def darker(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "decoder":
        outputs["pixels"] = outputs["pixels"] - np.float32(0.02)
    return outputs


def other_scores(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "context":
        outputs["entropy"] = np.ascontiguousarray(outputs["entropy"][..., ::-1])
    return outputs


def out_of_memory(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "patch_encoder" and len(outputs["codes"]) == 41:
        raise BackendError("CUDA out of memory\n(41 rows)")
    return outputs


def cut_off(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "decoder":
        outputs["pixels"] = outputs["pixels"].astype(np.float16)
    return outputs


def without_output(graph: str, outputs: dict[str, Any], call: int) -> Mapping[str, Any]:
    if graph == "context":
        del outputs["expected"]
    return outputs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (one_in_ten, r"patch_encoder: \d+\.\d\d% of \d+ tokens are those of the reference, at least 99\.9% are needed"),
        (one_far_off, r"global_encoder: a code is 4 levels off, at most 1 is allowed; first in cells \(1, 192, 1, 1\)"),
        (nan_in("decoder", "pixels"), r"decoder: \d+ of \d+ values are not finite, none may; first in pixels at state"),
        (nan_in("context", "entropy"), r"context: \d+ of \d+ values are not finite, none may; first in entropy at"),
        (nan_in("cell_context", "mean"), r"cell_context: \d+ of \d+ values are not finite, none may; first in mean at"),
        (
            rows_mixed_up,
            r"context: \d+ of \d+ values differ between equal rows of a batch, none may; first in \w+ at coarse \(3,",
        ),
        (never_the_same, r"decoder: \d+ of \d+ values differ when the same call is made again, none may"),
        (darker, r"decoder: pixels (differ by up to 1\.00% of full scale, at most 0\.2% |agree to 40\.\d dB)"),
        (other_scores, r"context: sets kept by entropy have a Jaccard index of 0\.\d{4}, at least 0\.995 is needed"),
        (out_of_memory, r"patch_encoder: fails in 1 of 9 calls, none may: features \(41, 1056\): CUDA out of mem"),
        (cut_off, r"decoder: fails in \d of \d calls, none may: .*gives pixels as float16 \(1, 192, 4, 4\), float32"),
        (without_output, r"context: fails in .* gives context, entropy, log2_probs where .*expected"),
    ],
)  # fmt: skip
def test_a_broken_candidate_is_refused(
    bundle: Bundle, reference: OnnxSession, frames: list[Any], change: Change, says: str
) -> None:
    result = check(bundle, reference, Changed(reference, change), frames)
    assert not result.ok
    assert any(re.search(says, text) for text in result.failures), result.failures
    assert all("\n" not in text for text in result.failures)
    if change is darker:
        assert len([text for text in result.failures if "decoder: pixels" in text]) == 2
    graph = says.split(":")[0]
    # What is wrong in one graph is not blamed on another.
    assert {text.split(":")[0] for text in result.failures} <= {graph, "whole frames"}, result.failures


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_weights_of_another_model_are_refused(
    bundle: Bundle,
    graphs: dict[str, bytes],
    models: dict[str, Any],
    reference: OnnxSession,
    frames: list[Any],
    graph: str,
) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(models[graph])
    random = np.random.default_rng(5)
    for tensor in other.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size > 1000:
            tensor.CopyFrom(numpy_helper.from_array(random.permuted(values, axis=0), tensor.name))
    session = OnnxSession(graphs | {graph: other.SerializeToString()}, threads=1)
    result = check(bundle, reference, session, frames, "fp16")
    assert not result.ok
    # What the cells say has no limit of its own: it shows in the frames.
    shown = "whole frames" if graph == "cell_context" else graph
    assert any(text.startswith(f"{shown}: ") and "at least" in text for text in result.failures), result.failures
    assert {text.split(":")[0] for text in result.failures} <= {graph, "whole frames"}


def test_sizes_that_no_profile_takes(bundle: Bundle, reference: OnnxSession, frames: list[Any]) -> None:
    """An engine for one size only is verified with frames cut to it."""
    size = [{"batch": [1, 1, 1], "height": [64, 64, 64], "width": [160, 160, 160]}]
    result = check(bundle, reference, reference, frames, shapes={"frames": size})
    assert result.ok, result.failures
    assert [shape for shape in result.shapes if " x " in shape] == ["1 x 160x64"]
    assert result.end_to_end["pictures"] == 6 and result.end_to_end["patch_tokens"] == 1
    with pytest.raises(InputError, match="frames must hold at least one picture"):
        check(bundle, reference, reference, [])


def test_counts_at_every_edge(bundle: Bundle) -> None:
    shapes = graph_profiles(parse_profiles(PROFILES, "test"), bundle)["patch_encoder"]
    assert token_counts(shapes) == [1, 8, 16, 17, 28, 40, 41, 80, 120]


# --- records --------------------------------------------------------------------------------------

REFERENCE = Backend("onnxruntime", "1.0", "cpu", "fp32", 1, "test")
CANDIDATE = Backend("tensorrt-rtx", "1.7.1.116", "GPU", "fp16", 1, "test")


def engine_set(folder: Path, bundle: Bundle) -> EngineSet:
    """Engines of TensorRT-RTX for a GPU of SM 8.9."""
    profiles = graph_profiles(parse_profiles(PROFILES, "test"), bundle)
    return engine_files.store_set(folder, bundle, profiles, flavour="rtx", version="1.7.1.116", sms=("8.9",))


@pytest.fixture(scope="module")
def good(bundle: Bundle, reference: OnnxSession, frames: list[Any]) -> Verification:
    return check(bundle, reference, reference, frames, shapes={"tokens": [4]})


def test_a_record_names_what_it_vouches_for(tmp_path: Path, bundle: Bundle, good: Verification) -> None:
    there = engine_set(tmp_path, bundle)
    assert not is_verified(there)
    path = write_record(bundle, there, good, reference=REFERENCE, candidate=CANDIDATE)
    assert is_verified(there) and path.parent == tmp_path and path.name.startswith("tatok-s8.")
    written = json.loads(path.read_text())
    assert written["tag"] == bundle.tag.hex()
    for graph in GRAPHS:
        assert written["onnx_sha256"][graph] == hashlib.sha256(bundle.read(graph)).hexdigest()
        engine = (tmp_path / written["engines"][graph]["file"]).read_bytes()
        assert written["engines"][graph]["sha256"] == hashlib.sha256(engine).hexdigest()
    assert written["result"]["ok"] is True and written["result"]["frames_sha256"] == good.frames_sha256
    assert written["result"]["bounds"]["tokens"] == BOUNDS["fp32"].tokens
    assert (written["reference"]["name"], written["candidate"]["device"]) == ("onnxruntime", "GPU")
    # It lies among manifests and disturbs nobody who looks for engines.
    first = there.manifests["context"]
    found = {
        g: EngineTarget("tatok-s8", m.onnx_sha256, "rtx", first.version, "8.9") for g, m in there.manifests.items()
    }
    assert find_engines(tmp_path, found, GRAPHS).manifests == there.manifests
    assert not [name for name in tmp_path.iterdir() if name.name.startswith(".part-")]


def test_other_engines_are_not_vouched_for(tmp_path: Path, bundle: Bundle, good: Verification) -> None:
    there = engine_set(tmp_path, bundle)
    path = write_record(bundle, there, good, reference=REFERENCE, candidate=CANDIDATE)
    rebuilt = dataclasses.replace(there.manifests["context"], engine_sha256="0" * 64)
    assert not is_verified(EngineSet(tmp_path, {**there.manifests, "context": rebuilt}))
    for text in ("", "{", "[]", '{"format_version": 1}', "[" * 100_000, " " * (2 << 20)):
        path.write_text(text)
        assert not is_verified(there)


def test_an_engine_that_has_changed_is_not_blessed(tmp_path: Path, bundle: Bundle, good: Verification) -> None:
    there = engine_set(tmp_path, bundle)
    (tmp_path / there.manifests["decoder"].file).write_bytes(b"x" * (len(engine_files.PLAN) + 1))
    with pytest.raises(BackendError, match=r"decoder.* SHA-256 is .* damaged or changed"):
        write_record(bundle, there, good, reference=REFERENCE, candidate=CANDIDATE)
    assert not record_path(there).exists()


def test_a_broken_bound_takes_the_blessing_away(
    tmp_path: Path, bundle: Bundle, good: Verification, reference: OnnxSession, frames: list[Any]
) -> None:
    there = engine_set(tmp_path, bundle)
    path = write_record(bundle, there, good, reference=REFERENCE, candidate=CANDIDATE)
    bad = check(bundle, reference, Changed(reference, one_far_off), frames, shapes={"tokens": [4]})
    with pytest.raises(BackendError, match=r"not verified: global_encoder: 2 of 336 values differ between equal rows"):
        write_record(bundle, there, bad, reference=REFERENCE, candidate=CANDIDATE)
    assert not path.exists() and not is_verified(there)
    remove_record(there)  # nothing to remove is no error


def test_a_folder_that_cannot_be_written(
    tmp_path: Path, bundle: Bundle, good: Verification, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = engine_set(tmp_path, bundle)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "write_whole", full)
    with pytest.raises(BackendError, match=r"cannot be written \(No space left on device\): the engines are good"):
        write_record(bundle, there, good, reference=REFERENCE, candidate=CANDIDATE)


# --- the command ----------------------------------------------------------------------------------

SMALL = "synthetic:frames=6,width=96,height=64"


def test_the_command(tmp_path: Path) -> None:
    arguments = ["--backend", "onnxruntime", "--precision", "fp16", "--source", SMALL, "--frames", "2"]
    command = [sys.executable, "-m", "tatok_edge", "verify", "tatok-s8", *arguments]
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and report["frames"] == 2 and report["precision"] == "fp16" and report["record"] is None
    assert set(report["graphs"]) == set(GRAPHS)
    assert list(tmp_path.iterdir()) == []
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "all bounds hold" in done.stdout and "patch_encoder" in done.stdout


def run_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["verify", "tatok-s8", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def built(
    tmp_path: Path, bundle: Bundle, reference: OnnxSession, half: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Change | None], EngineSet]:
    """Engines on disk, and what stands in for the GPU that would run them."""

    def make(change: Change | None) -> EngineSet:
        there = engine_set(tmp_path, bundle)
        graphs = {name: precision.emulate(graph).SerializeToString() for name, graph in half.items()}
        changed = change or (lambda graph, outputs, call: outputs)
        session = Changed(OnnxSession(graphs, threads=1), changed, there)
        monkeypatch.setattr(tensorrt_flavour, "gpu_architecture", lambda device=0: "8.9")
        real = verify_command.open_session

        def opened(*arguments: Any, **options: Any) -> Any:
            if options.get("backend") == "onnxruntime":
                return real(*arguments, **options)
            assert Path(options["engines"]) == tmp_path
            return session, CANDIDATE

        monkeypatch.setattr(verify_command, "open_session", opened)
        return there

    return make


def test_good_engines_get_a_record(
    tmp_path: Path, built: Callable[[Change | None], EngineSet], capsys: pytest.CaptureFixture[str]
) -> None:
    there = built(None)
    code, out, err = run_main(capsys, "--engines", str(tmp_path), "--source", SMALL, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["record"] == str(record_path(there)) and is_verified(there)
    assert "16 patches" in report["shapes"] and "3 x 128x96" in report["shapes"]
    code, out, err = run_main(capsys, "--engines", str(tmp_path), "--source", SMALL, "--precision", "fp32")
    assert code == 1 and "are in fp16, not in fp32: run 'tatok build tatok-s8 --precision fp32'" in err


def test_bad_engines_are_refused(
    tmp_path: Path,
    bundle: Bundle,
    good: Verification,
    built: Callable[[Change | None], EngineSet],
    capsys: pytest.CaptureFixture[str],
) -> None:
    there = built(nan_in("decoder", "pixels"))
    write_record(bundle, there, good, reference=REFERENCE, candidate=CANDIDATE)
    code, out, err = run_main(capsys, "--engines", str(tmp_path), "--source", SMALL, "--json")
    assert code == 1 and not is_verified(there)
    report = json.loads(out)
    assert report["ok"] is False and report["record"] is None and report["failures"]
    lines = err.splitlines()
    assert lines[0].startswith("tatok verify: decoder: ") and "values are not finite, none may" in lines[0]
    assert "tatok-s8 on tensorrt-rtx is not verified: do not use the engines in" in lines[-1]


# --- the session of TensorRT, on the stand-in of a GPU --------------------------------------------


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    if sys.platform != "linux" or shutil.which("g++") is None:
        pytest.skip("the emulation needs Linux and g++")
    return Kernels(cuda_kernels.build_emulation(tmp_path_factory.mktemp("cuda") / "emulated.so"))


ON_GPU = ("--backend", "tensorrt", "--source", "synthetic:frames=6,width=120,height=90", "--frames", "2", "--json")


@pytest.mark.parametrize("on_device", [True, False])
def test_engines_on_a_gpu_are_verified(
    tmp_path: Path,
    bundle: Bundle,
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    on_device: bool,
) -> None:
    fake_tensorrt.store_engines(tmp_path, bundle)
    made = fake_tensorrt.install(monkeypatch, fake_tensorrt.Gpu(), kernels if on_device else None)
    code, out, err = run_main(capsys, "--engines", str(tmp_path), *ON_GPU)
    assert code == 0, err
    report = json.loads(out)
    assert report["candidate"].startswith("tensorrt 10.3.0") and report["precision"] == "fp32"
    for count in (1, 16, 17, 64, 65, 200):  # every edge of the engines' profiles
        assert f"{count} patches" in report["shapes"]
    assert "2 x 160x128" in report["shapes"] and report["end_to_end"]["pictures"] == 4
    assert {profile for graph, profile, _ in made.api.executed if graph == "patch_encoder"} == {0, 1, 2}
    written = json.loads(Path(report["record"]).read_text())
    assert written["flavour"] == "trt" and set(written["engines"]) == set(GRAPHS)
    assert made.gpu.clean  # closed again


def drop_a_row(graph: str, outputs: dict[str, Any]) -> None:
    """A kernel that does not write what lies behind a tile."""
    if graph == "patch_encoder" and len(outputs["codes"]) > 64:
        outputs["codes"][64:] = 0


def overflow(graph: str, outputs: dict[str, Any]) -> None:
    if graph == "context" and outputs["entropy"].shape[0] > 1:
        outputs["entropy"][1:] = np.inf


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_a_row, r"patch_encoder: \d+\.\d+% of \d+ tokens are those of the reference, at least 99\.9% are needed"),
        (overflow, r"context: \d+ of \d+ values are not finite, none may; first in entropy at coarse \(2, 96, 1, 16\)"),
    ],
)
def test_bad_engines_on_a_gpu_are_refused(
    tmp_path: Path,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: Any,
    says: str,
) -> None:
    fake_tensorrt.store_engines(tmp_path, bundle)
    made = fake_tensorrt.install(monkeypatch, fake_tensorrt.Gpu(), None)
    made.api.change_outputs = change
    code, out, err = run_main(capsys, "--engines", str(tmp_path), *ON_GPU)
    report = json.loads(out)
    assert code == 1 and not report["ok"] and report["record"] is None
    assert any(re.search(says, text) for text in report["failures"]), report["failures"]
    assert re.search(says, err) and not list(tmp_path.glob("*.verified.json"))
