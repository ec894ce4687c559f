"""Token filtering in TensorRT: the plugin in C++ and in Python, and the ONNX form without it, as it is specified.

Nothing here needs a GPU: TensorRT-RTX builds engines on a CPU, ONNX Runtime runs the plugin-free form, and the plugins
run on the emulated kernels.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import dtf_cases
from helpers.kernel_cases import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tatok_edge.errors import BackendError, InputError
from tatok_edge.runtime import reference
from tatok_edge.runtime.cpu import kernels as cpu_kernels
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import DtfLimits, Kernels
from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin
from tatok_edge.runtime.tensorrt.flavour import Flavour, find_flavour

onnx = pytest.importorskip("onnx", reason="the ONNX form needs the export extra")
ort = pytest.importorskip("onnxruntime")
dtf_onnx = pytest.importorskip("tatok_edge.export.engines.dtf_onnx")

SEEDS = st.integers(0, 2**32 - 1)
TYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16])


def assert_dense(actual: Sequence[NDArray[Any]], scores: NDArray[Any], limits: dict[str, Any]) -> None:
    """Positions, depths and counts are those of the specification, in every bit."""
    expected = dtf_cases.dense(*reference.dtf(scores.astype(np.float32), **limits), scores.shape)
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


# --- the plugin-free form, in ONNX Runtime --------------------------------------------------------


def run_onnx(scores: NDArray[Any], limits: dict[str, Any]) -> list[NDArray[Any]]:
    model = dtf_onnx.dtf_model(DtfLimits.make(**limits), form="onnx", depth=scores.shape[2], dtype=scores.dtype)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # seconds less; the bits are the same
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[NDArray[Any]] = session.run(["positions", "depths", "counts"], {"scores": scores})
    return results


PLAN = ((4, 48, -100), (1, 8, -1200), (1, 2, 4800))


@settings(max_examples=20)
@given(seed=SEEDS)
def test_plugin_free_form_equals_specification(seed: int) -> None:
    for scores, limits in dtf_cases.groups(seed, PLAN):
        assert_dense(run_onnx(scores, limits), scores, limits)


@pytest.mark.parametrize("depth", [1, 4])
@pytest.mark.parametrize("kind", dtf_cases.KINDS)
def test_plugin_free_form_at_the_largest_frame(kind: str, depth: int) -> None:
    scores = dtf_cases.scores(np.random.default_rng(11), kind, 1, 16384, depth)
    limits = {"tau": 0.6, "floor_bits": 2.0**-16}
    assert_dense(run_onnx(scores, limits), scores, limits)


def test_plugin_free_form_sums_the_largest_grid_exactly() -> None:
    scores = np.full((1, cuda_kernels.MAX_PATCHES, cuda_kernels.MAX_DEPTH), 3e38, np.float32)
    positions, depths, counts = run_onnx(scores, {"tau": 0.5})
    assert counts.tolist() == [1 << 18]
    assert (positions[0, : 1 << 18] == np.arange(1 << 18) // 4).all()
    assert (depths[0, : 1 << 18] == np.arange(1 << 18) % 4 + 1).all()


def test_plugin_free_form_takes_half_scores() -> None:
    for scores, limits in dtf_cases.groups(3, ((20, 6, -160),)):
        half = np.minimum(scores, 65504).astype(np.float16)
        assert_dense(run_onnx(half, limits), half, limits)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -1e-30])
def test_plugin_free_form_names_a_bad_score(bad: float) -> None:
    scores = np.ones((3, 50, 3), np.float32)
    scores[1, [13, 40], [2, 0]] = bad
    positions, depths, counts = run_onnx(scores, {})
    assert counts.tolist() == [150, -1 - 41, 150]
    assert (positions[1] == -1).all() and (depths[1] == 0).all()
    assert (positions[[0, 2]] == np.arange(150) // 3).all()


def test_models_refuse_what_they_cannot_be() -> None:
    limits = DtfLimits.make()
    with pytest.raises(ValueError, match="form must be"):
        dtf_onnx.dtf_model(limits, form="other", depth=1)
    with pytest.raises(ValueError, match="float32 or float16, got float64"):
        dtf_onnx.dtf_model(limits, form="onnx", depth=1, dtype=np.float64)
    with pytest.raises(ValueError, match="1 to 65536 patches, got 65537"):
        dtf_onnx.dtf_model(limits, form="onnx", depth=1, shape=(1, 65537))
    for depth in (0, 9):
        with pytest.raises(ValueError, match=f"1 to 8 scores per patch, got {depth}"):
            dtf_onnx.dtf_model(limits, form="onnx", depth=depth)


# --- all of them ----------------------------------------------------------------------------------


def plugin_results(flavour: Flavour, kernels: Kernels, scores: NDArray[Any], limits: DtfLimits) -> list[NDArray[Any]]:
    """Outputs of the plugin in Python, on the emulated kernels."""
    api: Any = flavour.api
    attributes = tensorrt_plugin.plugin_attributes(limits)
    fields = api.PluginFieldCollection(
        [api.PluginField(n, np.array([v], np.int32), api.PluginFieldType.INT32) for n, v in attributes.items()]
    )
    creator = tensorrt_plugin.make_creator(api, kernels)
    plugin = creator.create_plugin("node", fields, None).clone().attach_to_context(None)
    images, patches, depth = scores.shape
    outputs = [np.empty(shape, np.int32) for shape in ((images, patches * depth), (images, patches * depth), (images,))]
    kind = api.DataType.HALF if scores.dtype == np.float16 else api.DataType.FLOAT
    description = [SimpleNamespace(dims=scores.shape, type=kind)]
    plugin.on_shape_change(description, None)
    plugin.enqueue(description, None, [scores.ctypes.data], [output.ctypes.data for output in outputs], 0, 0)
    return outputs


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    """TensorRT-RTX."""
    try:
        return find_flavour("rtx")
    except BackendError as error:
        pytest.skip(str(error))


# `make explore` runs many cases, other runs a fixed choice of them.
CASES = 10_000 if os.environ.get("TATOK_HYPOTHESIS") == "explore" else 60


@settings(max_examples=CASES)
@given(
    seed=SEEDS,
    kind=st.sampled_from(dtf_cases.KINDS),
    images=st.integers(1, 3),
    patches=st.integers(1, 60),
    depth=st.integers(1, 4),
)
def test_all_implementations_keep_the_same_tokens(
    kernels: Kernels, flavour: Flavour, seed: int, kind: str, images: int, patches: int, depth: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = dtf_cases.scores(rng, kind, images, patches, depth)
    limits = dtf_cases.limits(rng, scores)
    expected = reference.dtf(scores, **limits)
    for actual, wanted in zip(cpu_kernels.dtf(scores, **limits), expected, strict=True):
        assert_same(actual, wanted)
    assert_dense(run_onnx(scores, limits), scores, limits)
    assert_dense(plugin_results(flavour, kernels, scores, DtfLimits.make(**limits)), scores, limits)


@settings(max_examples=CASES)
@given(seed=SEEDS, kind=st.sampled_from(dtf_cases.KINDS), patches=st.integers(1, 60), depth=st.integers(1, 4))
def test_training_keeps_the_same_tokens(seed: int, kind: str, patches: int, depth: int) -> None:
    torch = pytest.importorskip("torch", reason="training needs PyTorch")
    filtering = pytest.importorskip("tatok_edge.training.filtering")
    rng = np.random.default_rng(seed)
    scores = np.minimum.accumulate(dtf_cases.scores(rng, kind, 2, patches, depth), axis=2)
    planes = torch.from_numpy(np.ascontiguousarray(scores.transpose(0, 2, 1)))[..., None]
    counts = rng.integers(0, patches * depth + 1, 2)
    kept = filtering.select(planes, torch.from_numpy(counts / patches))
    for image, count in enumerate(counts):
        positions, depths, _ = reference.dtf(scores[[image]], min_tokens=int(count), max_tokens=int(count))
        expected = np.zeros((depth, patches), bool)
        expected[depths - 1, positions] = True
        assert (kept[image, :, :, 0].numpy() == expected).all()


# --- fields ---------------------------------------------------------------------------------------


@given(tau=st.floats(0, 1, exclude_min=True), low=st.integers(0, 99), floor_bits=st.floats(0, 40000))
def test_fields_give_back_the_limits(tau: float, low: int, floor_bits: float) -> None:
    limits = DtfLimits.make(tau=tau, min_tokens=low, floor_bits=floor_bits)
    fields = {name: np.array([v], np.int32) for name, v in tensorrt_plugin.plugin_attributes(limits).items()}
    assert tensorrt_plugin.limits_of_fields("node", fields) == limits
    assert tensorrt_plugin.limits_of_fields("node", {}) == DtfLimits.make()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tau_q30", np.float32([0.5])), ("tau_q30", np.int32([0])), ("max_tokens", np.int32([2]))),
        *(("floor_q16", [1, 2]), ("min_tokens", np.int64([-1]))),
    ],
)
def test_bad_fields_are_named(name: str, value: Any) -> None:
    fields = {"min_tokens": np.int32([3]), name: np.asarray(value)}
    with pytest.raises(InputError, match=f"TaTokDTF scores_filter.*{name}"):
        tensorrt_plugin.limits_of_fields("scores_filter", fields)


# --- engines, built by TensorRT-RTX on the CPU ----------------------------------------------------

BUILD = """
import sys
import numpy as np
from tatok_edge.export.engines.dtf_onnx import dtf_model
from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin
from tatok_edge.runtime.cuda.kernels import DtfLimits
from tatok_edge.runtime.tensorrt.flavour import *
from pathlib import Path

form, dtype, library = sys.argv[1:4]
flavour = find_flavour("rtx")
if form == "plugin":
    choice = {"library": Path(library)} if library else {"kind": "python"}
    plugin = tensorrt_plugin.register(flavour, **choice)
    assert plugin.kind == ("library" if library else "python")
    assert tensorrt_plugin.register(flavour) == plugin
    if library:
        assert plugin.sha256 == tensorrt_plugin.sha256_of(Path(library))
messages = Messages()
logger = make_logger(flavour, messages)
builder = make_builder(flavour, logger, messages)
network = make_network(flavour, builder)
parser = make_parser(flavour, network, logger)
limits = DtfLimits.make(tau=0.6, min_tokens=3, max_tokens=900, floor_bits=0.5)
model = dtf_model(limits, form=form, depth=4, dtype=np.dtype(dtype))
if len(sys.argv) > 4:
    model.graph.node[0].attribute[-1].i = int(sys.argv[4])  # floor_q16
parsed = parser.parse(model.SerializeToString())
if not parsed:
    print("refused:", *messages.problems, *[parser.get_error(i).desc() for i in range(parser.num_errors)])
    sys.exit()
print([(network.get_output(i).name, tuple(network.get_output(i).shape)) for i in range(network.num_outputs)])
config = builder.create_builder_config()
set_targets(flavour, config, ("8.6", "12.0"))
profile = builder.create_optimization_profile()
profile.set_shape("scores", (1, 1, 4), (1, 4800, 4), (4, 16384, 4))
assert config.add_optimization_profile(profile) == 0
plan = builder.build_serialized_network(network, config)
print("engine of", plan.nbytes if plan is not None else messages.problems)
"""


def build_engine(folder: Path, form: str, dtype: Any, library: str = "", *more: str) -> str:
    """What a process that builds an engine prints; a process each, because plugins stay registered."""
    pytest.importorskip("tensorrt_rtx", reason="building engines on a CPU needs the rtx extra")
    command = [sys.executable, "-c", BUILD, form, np.dtype(dtype).name, library, *more]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@TYPES
@pytest.mark.parametrize("form", ["plugin", "onnx"])
def test_engines_build_with_the_python_plugin_and_without_any(tmp_path: Path, form: str, dtype: Any) -> None:
    lines = build_engine(tmp_path, form, dtype).splitlines()
    assert lines[0] == "[('positions', (-1, -1)), ('depths', (-1, -1)), ('counts', (-1,))]"
    assert int(lines[1].removeprefix("engine of ")) > 1000


def test_a_node_out_of_range_does_not_parse(tmp_path: Path) -> None:
    assert build_engine(tmp_path, "plugin", np.float32, "", "-5").startswith("refused:")


# --- the plugin in Python, run on emulated kernels ------------------------------------------------


@TYPES
def test_python_plugin_equals_specification(flavour: Flavour, kernels: Kernels, dtype: Any) -> None:
    creator = tensorrt_plugin.make_creator(flavour.api, kernels)
    assert (creator.name, creator.plugin_version, creator.plugin_namespace) == ("TaTokDTF", "1", "tatok")
    for scores, limits in dtf_cases.groups(17, ((30, 5, -120), (2, 2, 4800))):
        values = np.minimum(scores, 65504).astype(dtype)
        assert_dense(plugin_results(flavour, kernels, values, DtfLimits.make(**limits)), values, limits)


@pytest.mark.parametrize("shape", [(1, 65537, 1), (1, 4, 0), (1, 4, 9)])
def test_python_plugin_names_the_shapes_that_it_takes(flavour: Flavour, shape: tuple[int, ...]) -> None:
    plugin = tensorrt_plugin.make_creator(flavour.api, None).create_plugin("node", [], None)
    with pytest.raises(InputError, match=rf"N up to 65536 and K from 1 to 8, got \({shape[0]}, {shape[1]}, "):
        plugin.on_shape_change([SimpleNamespace(dims=shape)], None)


def test_python_plugin_without_kernels_says_how_to_get_them(flavour: Flavour) -> None:
    plugin = tensorrt_plugin.make_creator(flavour.api, None).create_plugin("node", [], None)
    with pytest.raises(BackendError, match="has no kernel: build them"):
        plugin.enqueue([SimpleNamespace(dims=(1, 1, 1), type=None)], None, [0], [0, 0, 0], 0, 0)


# --- the plugin in C++ ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def headers() -> Path:
    """TensorRT's headers, which come with JetPack and the TensorRT packages."""
    folder = tensorrt_plugin.find_headers()
    if folder is None:
        pytest.skip("no TensorRT headers here (TENSORRT_ROOT names a folder with them)")
    return folder


def cuda_headers() -> Path:
    try:
        return cuda_kernels.toolkit_folder(cuda_kernels.find_nvcc()) / "include"
    except BackendError as error:
        pytest.skip(str(error))


# Calls the plugin as TensorRT does, with host memory and the emulated kernel.
HARNESS = """
#include <NvInferRuntime.h>
#include <cstdio>
#include <cstring>
extern "C" nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t&);
extern "C" __attribute__((visibility("default"))) int filter(const void* scores, int half, int32_t images,
        int32_t patches, int32_t depth, const int32_t* values, int32_t* positions, int32_t* depths, int32_t* counts) {
    using namespace nvinfer1;
    int32_t found = 0;
    auto* creator = static_cast<IPluginCreatorV3One*>(getCreators(found)[0]);
    if (found != 1 || std::strcmp(creator->getPluginName(), "TaTokDTF") != 0) return -1;
    const char* names[] = {"tau_q30", "min_tokens", "max_tokens", "floor_q16"};
    PluginField fields[4];
    for (int i = 0; i < 4; ++i) fields[i] = PluginField(names[i], values + i, PluginFieldType::kINT32, 1);
    PluginFieldCollection given{4, fields};
    auto* built = creator->createPlugin("node", &given, TensorRTPhase::kBUILD);
    if (built == nullptr) return -2;
    // As an engine does: what was serialised makes the plugin that runs.
    auto* core = static_cast<IPluginV3OneRuntime*>(built->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto* copy = creator->createPlugin("node", core->getFieldsToSerialize(), TensorRTPhase::kRUNTIME);
    auto* runtime = static_cast<IPluginV3OneRuntime*>(copy->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto* attached = runtime->attachToContext(nullptr);
    auto* run = static_cast<IPluginV3OneRuntime*>(attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginTensorDesc in{};
    in.dims.nbDims = 3;
    in.dims.d[0] = images;
    in.dims.d[1] = patches;
    in.dims.d[2] = depth;
    in.type = half ? DataType::kHALF : DataType::kFLOAT;
    const void* inputs[] = {scores};
    void* outputs[] = {positions, depths, counts};
    int result = run->onShapeChange(&in, 1, nullptr, 3);
    if (result == 0) result = run->enqueue(&in, nullptr, inputs, outputs, nullptr, nullptr);
    delete attached;
    delete copy;
    delete built;
    return result;
}
"""


def test_cpp_plugin_equals_specification(kernels: Kernels, headers: Path, tmp_path: Path) -> None:
    (tmp_path / "harness.cpp").write_text(HARNESS)
    plugin = tensorrt_plugin.SOURCE / "tatok_dtf_plugin.cpp"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-w", "-U_FORTIFY_SOURCE"]
    include = [f"-isystem{headers}", f"-isystem{cuda_headers()}"]
    emulated = [*flags, "-x", "c++", "-c", str(cuda_kernels.SOURCE), "-o", str(tmp_path / "kernels.o")]
    subprocess.run(["g++", *emulated], check=True)
    sources = [str(plugin), str(tmp_path / "harness.cpp"), str(tmp_path / "kernels.o")]
    subprocess.run(["g++", *flags, "-shared", *include, *sources, "-o", str(tmp_path / "plugin.so")], check=True)
    run = ctypes.CDLL(str(tmp_path / "plugin.so")).filter
    pointer = ctypes.c_void_p
    run.argtypes = (pointer, *(ctypes.c_int32,) * 4, *(pointer,) * 4)

    def call(values: NDArray[Any], fields: list[int]) -> tuple[int, list[NDArray[np.int32]]]:
        images, patches, depth = values.shape
        shapes = ((images, patches * depth), (images, patches * depth), (images,))
        outputs = [np.empty(shape, np.int32) for shape in shapes]
        given_fields = np.array(fields, np.int32)
        pointers = (a.ctypes.data for a in (given_fields, *outputs))
        return run(values.ctypes.data, values.dtype == np.float16, *values.shape, *pointers), outputs

    for scores, limits in dtf_cases.groups(29, ((25, 20, -120), (2, 3, 4800), (1, 1, 16384))):
        fields = list(tensorrt_plugin.plugin_attributes(DtfLimits.make(**limits)).values())
        for values in (scores, np.minimum(scores, 65504).astype(np.float16)):
            result, outputs = call(values, fields)
            assert result == 0
            assert_dense(outputs, values, limits)
    for fields in ([0, 0, 5, 0], [1, -1, 5, 0], [1, 3, 2, 0], [1, 0, 5, -1]):
        assert call(np.ones((1, 4, 2), np.float32), fields)[0] == -2
    for shape in ((1, 65537, 1), (1, 4, 9)):
        assert call(np.ones(shape, np.float32), [1, 0, 5, 0])[0] != 0


def test_cpp_plugin_builds_with_cmake_and_loads(headers: Path, tmp_path: Path) -> None:
    cuda_headers()
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not on the path")
    out = tmp_path / "tatok_dtf_plugin.so"
    assert tensorrt_plugin.main(["build", "--headers", str(headers), "--sm", "8.6", "--out", str(out)]) == 0
    symbols = ctypes.CDLL(str(out))
    assert symbols.getCreators and symbols.setLoggerFinder
    lines = build_engine(tmp_path, "plugin", np.float16, str(out)).splitlines()
    assert lines[0] == "[('positions', (-1, -1)), ('depths', (-1, -1)), ('counts', (-1,))]"
    assert int(lines[1].removeprefix("engine of ")) > 1000


def test_building_without_headers_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tensorrt_plugin.main(["build", "--headers", str(tmp_path)]) == 1
    assert "libnvinfer-headers-dev" in capsys.readouterr().err


def test_the_library_that_a_variable_names_must_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(tensorrt_plugin.LIBRARY_VARIABLE, str(tmp_path / "missing.so"))
    with pytest.raises(BackendError, match=r"TATOK_TENSORRT_PLUGIN names .*missing\.so"):
        tensorrt_plugin.find_library()
    monkeypatch.delenv(tensorrt_plugin.LIBRARY_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tensorrt_plugin.find_library() is None
    assert tensorrt_plugin.main(["find"]) == 1
    assert "build it: python -m tatok_edge.runtime.tensorrt.plugin" in capsys.readouterr().err
    built = tmp_path / "plugin.so"
    built.write_bytes(b"library")
    monkeypatch.setenv(tensorrt_plugin.LIBRARY_VARIABLE, str(built))
    assert tensorrt_plugin.main(["find"]) == 0
    assert capsys.readouterr().out.startswith(f"{built} sha256 ")
