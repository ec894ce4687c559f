"""The session that runs TensorRT engines, on a stand-in of a GPU: bad input, engines that do not fit, and which backend
runs.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("onnx", reason="the stand-in of TensorRT reads ONNX graphs")

from helpers import fake_tensorrt
from helpers.fake_tensorrt import Gpu, Open, install, store_engines

from tatok_edge.errors import BackendError, InputError
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.runtime.cuda.kernels import Kernels
from tatok_edge.runtime.open import BACKENDS, open_session
from tatok_edge.runtime.tensorrt import api as tensorrt_api
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.manifest import PluginRecord
from tatok_edge.runtime.tensorrt.session import TensorRTSession
from tatok_edge.tokens.budget import TokenBudget

# --- bad input ------------------------------------------------------------------------------------


def test_shapes_out_of_range_name_tensor_range_and_command(opened: Open) -> None:
    gpu = opened()
    run, executed = gpu.session.run, len(gpu.api.executed)
    wide = np.zeros((1, 192, 3, 9), np.float32)
    with pytest.raises(InputError) as raised:
        run("global_encoder", {"cells": wide})
    text = str(raised.value)
    assert "global_encoder: cells has shape (1, 192, 3, 9), the engine takes (1, 192, 1..3, 1..3) or" in text
    assert "'tatok build tatok-s8 --precision fp32 --profiles FILE'" in text
    with pytest.raises(InputError, match="a frame of 300x64 pixels does not fit: global_encoder: cells has shape"):
        gpu.tokenizer.encode(np.zeros((64, 300, 3), np.uint8))
    tokens = gpu.tokenizer.encode(np.zeros((64, 64, 3), np.uint8))
    assert gpu.tokenizer.decode(tokens).shape == (64, 64, 3)
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("cell_context", {}, "cell_context takes the inputs codes, got none"),
        ("cell_context", {"code": wide}, "cell_context takes the inputs codes, got code"),
        ("cell_context", {"codes": np.zeros((1, 6, 2, 2), np.int64)}, "codes has dtype int64, the engine takes int32"),
        ("cell_context", {"codes": np.zeros((1, 5, 2, 2), np.int32)}, r"codes has shape \(1, 5, 2, 2\)"),
        ("cell_context", {"codes": np.zeros((1, 6, 0, 2), np.int32)}, r"codes has shape \(1, 6, 0, 2\)"),
        ("patch_encoder", {"features": np.zeros((4, 1055), np.float32)}, r"features has shape \(4, 1055\)"),
        ("patch_encoder", {"features": np.zeros(4, np.float32)}, r"features has shape \(4,\)"),
    ]
    for graph, inputs, message in wrong:
        with pytest.raises(InputError, match=message):
            run(graph, inputs)
    assert gpu.tokenizer.encode(np.zeros((64, 64, 3), np.uint8)).n_patches == 64  # and it goes on
    assert len(gpu.api.executed) > executed


def test_outputs_that_are_no_numbers_are_an_error(
    opened: Open, cpu: Tokenizer, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = opened()

    def spoil(graph: str, outputs: dict[str, NDArray[Any]]) -> None:
        if graph == "context":
            outputs["entropy"].reshape(4, -1)[1, 5] = np.nan
            outputs["log2_probs"].reshape(4, 39, -1)[0, :, 3] = -np.inf

    gpu.api.change_outputs = spoil
    for score, token in (("entropy", "token 2 of patch 5 is nan"), ("information", "token 1 of patch 3 is inf")):
        with pytest.raises(BackendError, match=rf"tokens cannot be ranked \(.*{token}\).*--precision fp32"):
            gpu.tokenizer.encode(frames[0], budget=TokenBudget(score=score))

    def nonsense(graph: str, outputs: dict[str, NDArray[Any]]) -> None:
        if graph == broken:
            outputs["codes"].reshape(-1)[0] = 9

    gpu.api.change_outputs = nonsense
    for broken in ("patch_encoder", "global_encoder"):
        with pytest.raises(BackendError, match=f"{broken} gave the code 9, which no level has"):
            gpu.tokenizer.encode(frames[0], budget=TokenBudget(score="information"))
    seen: list[str] = []

    def second(graph: str, outputs: dict[str, NDArray[Any]]) -> None:
        seen.append(graph)
        if seen.count("context") == 2:
            spoil(graph, outputs)

    gpu.api.change_outputs = second
    with pytest.raises(BackendError, match="tokens cannot be ranked"):
        gpu.tokenizer.encode_batch(frames, budget=TokenBudget(score="entropy"))
    gpu.api.change_outputs = lambda graph, outputs: None
    assert gpu.tokenizer.encode(frames[0]) == cpu.encode(frames[0])  # nothing is left of the first frame


def test_what_tensorrt_says_while_it_runs_is_passed_on(opened: Open, frames: list[NDArray[np.uint8]]) -> None:
    gpu = opened(stream=0)
    for method in ("execute_async_v3", "set_input_shape"):
        gpu.api.fail, gpu.api.says = method, "it is\ntired"
        with pytest.raises(
            BackendError, match=r"TensorRT 10\.3\.0 .* it is tired; run 'tatok build tatok-s8 --precision"
        ):
            gpu.tokenizer.encode(frames[2])
        assert not any(gpu.gpu.queues.values())  # nothing works on in the caller's memory
    gpu.api.fail = None
    gpu.tokenizer.encode(frames[2])


@pytest.mark.parametrize(
    ("method", "says", "message"),
    [
        ("deserialize_cuda_engine", "bad magic", r"cannot load the engine .*\.engine: bad magic; run 'tatok build"),
        (
            "create_execution_context",
            "CUDA out of memory",
            "no context .*out of memory; close what else uses the GPU, or",
        ),
        ("set_optimization_profile_async", "no", "cannot set profile 0 of global_encoder: no; run"),
        ("set_tensor_address", "no", "refuses the memory of cells of global_encoder"),
        ("execute_async_v3", "no", "cannot run global_encoder: no"),
    ],
)
def test_engines_that_tensorrt_refuses(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path, method: str, says: str, message: str
) -> None:
    gpu = Gpu()
    made = install(monkeypatch, gpu, kernels)
    made.api.fail, made.api.says = method, says
    with pytest.raises(BackendError, match=message) as raised:
        Tokenizer.load(backend="tensorrt", engines=folder)
    assert "\n" not in str(raised.value)
    del raised
    gc.collect()
    assert gpu.clean and not gpu.backing and not gpu.problems
    with Tokenizer.load(engines=folder, threads=1) as tokenizer:
        assert tokenizer.backend.name == "onnxruntime"
        assert tokenizer.backend.reason.startswith("auto: the CPU, because TensorRT 10.3.0 ")


def test_an_engine_that_is_not_the_one_of_its_manifest(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    gpu = Gpu()
    made = install(monkeypatch, gpu, kernels)
    store_engines(tmp_path, open_bundle("tatok-s8"))
    monkeypatch.setattr(fake_tensorrt.ICudaEngine, "get_tensor_profile_shape", lambda *_: [[1], [1], [1]])
    with pytest.raises(BackendError, match="has other tensors or profiles than its manifest says: run 'tatok build"):
        Tokenizer.load(backend="tensorrt", engines=tmp_path)
    assert gpu.clean and made.api.contexts == 0


def test_running_out_of_memory_frees_everything(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path, frames: list[NDArray[np.uint8]]
) -> None:
    gpu = Gpu()
    install(monkeypatch, gpu, kernels)
    with Tokenizer.load(backend="tensorrt", engines=folder) as tokenizer:
        needed = gpu.allocations
        tokenizer.encode(frames[0])
        assert gpu.allocations == needed > 15
    graphs = {name: open_bundle("tatok-s8").read(name) for name in GRAPHS}
    for number in range(1, needed + 1):
        gpu = Gpu()
        install(monkeypatch, gpu, kernels)
        gpu.fail_allocation = number
        if number == 1:  # the probe of the kernels, without which frames are prepared on the CPU
            session, backend = open_session(graphs, backend="tensorrt", engines=folder)
            assert "because Stand-in GPU has no 0.0 MiB left" in backend.reason and session.frames is None
            session.close()
        else:
            with pytest.raises(
                BackendError, match=r"Stand-in GPU has no .* MiB left .*: use smaller profiles, or close"
            ):
                open_session(graphs, backend="tensorrt", engines=folder)
        assert gpu.clean and not gpu.backing and not gpu.problems, number


def test_engines_that_do_not_fit_what_is_there(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    bundle = open_bundle("tatok-s8")
    gpu = Gpu()
    install(monkeypatch, gpu, kernels)
    plugin = PluginRecord("TaTokDTF", "1", None, "0" * 64)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"version": "11.0.0"}, "was built with TensorRT 11.0.0, found TensorRT 10.3.0: run 'tatok build tatok-s8"),
        ({"sms": ("8.9",)}, "was built for a GPU of SM 8.9, found one of SM 8.7: run 'tatok build tatok-s8"),
        ({"flavour": "rtx", "version": "1.7"}, "was built with TensorRT-RTX 1.7, found TensorRT 10.3.0: run"),
        ({"plugin": plugin}, "no plugin registry|plugin TaTokDTF"),
    ]
    for number, (options, message) in enumerate(cases):
        folder = tmp_path / str(number)
        store_engines(folder, bundle, **options)
        if "plugin" in options:
            from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin

            there = tensorrt_plugin.RegisteredPlugin("library", Path("plugin.so"), "1" * 64)
            monkeypatch.setattr(tensorrt_plugin, "register", lambda flavour, there=there: there)
            message = r"plugin TaTokDTF with hash 000000000000\.\.\., found one with hash 111111111111"
        with pytest.raises(BackendError, match=message):
            Tokenizer.load(backend="tensorrt", engines=folder)
        with Tokenizer.load(backend="auto", engines=folder, threads=1) as tokenizer:
            assert tokenizer.backend.name == "onnxruntime" and "auto: the CPU, because" in tokenizer.backend.reason
    paths = store_engines(tmp_path / "cut", bundle)
    data = paths["decoder"].read_bytes()
    paths["decoder"].write_bytes(data[:-100])
    with pytest.raises(
        BackendError, match=rf"decoder.* has {len(data) - 100} bytes, it was built with {len(data)}: run"
    ):
        Tokenizer.load(backend="tensorrt", engines=tmp_path / "cut")
    for empty in (tmp_path / "none", tmp_path):
        with pytest.raises(BackendError, match=r"no engines of tatok-s8 in .*: run 'tatok build tatok-s8'"):
            Tokenizer.load(backend="tensorrt", engines=empty)
        with Tokenizer.load(engines=empty, threads=1) as tokenizer:
            assert "because there are no engines of tatok-s8 in" in tokenizer.backend.reason
    assert gpu.clean


def test_engines_with_the_plugin_run_where_it_is_there(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin

    install(monkeypatch, Gpu(), kernels)
    store_engines(tmp_path, open_bundle("tatok-s8"), plugin=PluginRecord("TaTokDTF", "1", None, "1" * 64))
    there = tensorrt_plugin.RegisteredPlugin("library", Path("plugin.so"), "1" * 64)
    monkeypatch.setattr(tensorrt_plugin, "register", lambda flavour: there)
    with Tokenizer.load(engines=tmp_path) as tokenizer:
        assert tokenizer.backend.name == "tensorrt"


# --- which backend, and why -----------------------------------------------------------------------


def test_auto_takes_the_gpu_where_it_can(opened: Open) -> None:
    gpu = opened(backend="auto")
    backend = gpu.tokenizer.backend
    assert isinstance(gpu.session, TensorRTSession)
    assert (backend.name, backend.version, backend.device, backend.precision) == (
        *("tensorrt", "10.3.0", "Stand-in GPU (SM 8.7)", "fp32"),
    )
    assert backend.reason.startswith("auto; engines in ") and "threads" not in str(backend)
    assert "CUDA graphs used; frames prepared on the GPU" in backend.reason


def test_the_flavour_that_there_are_engines_of_is_taken(
    monkeypatch: pytest.MonkeyPatch, kernels: Kernels, tmp_path: Path
) -> None:
    install(monkeypatch, Gpu(), kernels, flavour="rtx")
    asked: list[str] = []
    find = tensorrt_flavour.find_flavour
    monkeypatch.setattr(tensorrt_flavour, "find_flavour", lambda name: asked.append(name) or find(name))  # type: ignore[func-returns-value]
    store_engines(tmp_path, open_bundle("tatok-s8"), flavour="rtx")
    with Tokenizer.load(engines=tmp_path) as tokenizer:
        assert tokenizer.backend.name == "tensorrt-rtx" and asked == ["rtx"]


def test_without_tensorrt_it_is_named(monkeypatch: pytest.MonkeyPatch, kernels: Kernels, folder: Path) -> None:
    real = tensorrt_flavour.find_flavour
    install(monkeypatch, Gpu(), kernels)
    monkeypatch.setattr(tensorrt_flavour, "find_flavour", real)
    missing = {name: replace(facts, module=f"no_{facts.module}") for name, facts in tensorrt_flavour.FLAVOURS.items()}
    monkeypatch.setattr(tensorrt_flavour, "FLAVOURS", missing)
    with pytest.raises(BackendError, match=r"TensorRT is not installed: pip install 'tatok-edge\[tensorrt\]'"):
        Tokenizer.load(backend="tensorrt", engines=folder)
    with Tokenizer.load(engines=folder, threads=1) as tokenizer:
        assert "because TensorRT is not installed" in tokenizer.backend.reason


@pytest.mark.skipif(tensorrt_flavour.gpu_architecture() is not None, reason="this machine has a GPU")
def test_without_a_driver_it_is_the_cpu_and_says_so(folder: Path, tmp_path: Path) -> None:
    with Tokenizer.load(threads=1) as tokenizer:
        assert tokenizer.backend.name == "onnxruntime"
        assert tokenizer.backend.reason.startswith("auto: the CPU, because this machine has no NVIDIA driver")
    for name in BACKENDS[2:]:
        with pytest.raises(BackendError, match=r"no usable NVIDIA driver or GPU .*nvidia-smi.*backend 'onnxruntime'"):
            Tokenizer.load(backend=name, engines=folder)
    code = (
        "import sys; from tatok_edge import Tokenizer; Tokenizer.load()\n"
        "print(sorted(name for name in sys.modules if name.startswith('tatok_edge.runtime.')))"
    )
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "tensorrt" not in loaded and "device" not in loaded and "cuda" not in loaded
    command = [sys.executable, "-m", "tatok_edge", "encode", "synthetic", "-o", "x.ttk", "--backend", "tensorrt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "nvidia-smi" in done.stderr


def test_the_stand_in_has_the_names_of_tensorrt() -> None:
    """What the session calls exists in TensorRT: the stand-in has nothing that ``tensorrt_api`` has not."""
    for kind in (fake_tensorrt.Runtime, fake_tensorrt.ICudaEngine, fake_tensorrt.IExecutionContext):
        known = getattr(tensorrt_api, kind.__name__)
        assert fake_tensorrt.public(kind) <= {*vars(known), *known.__annotations__}, kind
    module = fake_tensorrt.public(fake_tensorrt.TensorRT) - {"gpu", "fail", "says", "contexts", "executed", "fails"}
    assert module - {"change_outputs"} <= {*vars(tensorrt_api.Api), *tensorrt_api.Api.__annotations__}
