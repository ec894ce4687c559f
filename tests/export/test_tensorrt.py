"""Building engines: real ones with TensorRT-RTX on the CPU, the API of other versions, and all that goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="building engines needs onnx")

from helpers.needs import missing
from helpers.paths import ROOT
from onnx import TensorProto, helper

from tatok_edge.errors import BackendError, InputError
from tatok_edge.export.engines import tensorrt
from tatok_edge.export.engines.profiles import parse_profiles
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt.choice import EngineTarget, check_manifest, find_engines
from tatok_edge.runtime.tensorrt.flavour import Flavour, find_flavour, target_sms
from tatok_edge.runtime.tensorrt.manifest import EngineMismatch, ShapeRange, read_manifest
from tatok_edge.runtime.tensorrt.store import read_engine

SMS = ("8.6", "8.9", "12.0")
PROFILES = {
    "format_version": 1,
    "tokens": [64, 256, 576, 1728],
    "frames": [
        {"batch": [1, 1, 2], "height": [32, 224, 224], "width": [32, 384, 384]},
        {"batch": [1, 1, 1], "height": [288, 288, 288], "width": [384, 384, 384]},
    ],
}
SMALL = {
    "format_version": 1,
    "tokens": [16],
    "frames": [{"batch": [1, 1, 1], "height": [32, 32, 32], "width": [32, 32, 32]}],
}


@pytest.fixture
def profile_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


def tatok(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tatok_edge", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def one_line(done: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("tatok build: ") and says in last, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


# --- real engines ---------------------------------------------------------------------------------


BUILD_SECONDS = 150.0
"""What all engines of one precision may take: both in five minutes."""


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_engines_for_three_architectures(tmp_path: Path, rtx: Flavour, kind: Any) -> None:
    """All graphs of the shipped model, four ragged profiles, with the plugin and with standard operators."""
    start = time.monotonic()
    bundle = open_bundle("tatok-s8")
    profiles = parse_profiles(PROFILES, "test")
    lines: list[str] = []
    shares: dict[str, list[float]] = {}
    built = tensorrt.build_engines(
        bundle,
        rtx,
        profiles,
        precision=kind,
        sms=SMS,
        folder=tmp_path,
        extra={
            "dtf_plugin": tensorrt.dtf_graph(rtx, "plugin", 0.5, profiles, depth=bundle.depth),
            "dtf_onnx": tensorrt.dtf_graph(rtx, "onnx", 0.5, profiles, depth=bundle.depth),
        },
        say=lines.append,
        advance=lambda graph, share: shares.setdefault(graph, []).append(share),
    )
    assert time.monotonic() - start < BUILD_SECONDS
    assert [engine.manifest.graph for engine in built] == [*GRAPHS, "dtf_plugin", "dtf_onnx"]
    count = {"patch_encoder": 4}
    for engine in built:
        manifest = read_manifest(engine.path)
        plan = read_engine(engine.path, manifest)
        assert manifest == engine.manifest and engine.path.name == manifest.file
        assert manifest.sms == SMS and manifest.precision == kind and manifest.version == rtx.version
        assert len(manifest.profiles) == count.get(manifest.graph, 2)
        assert (manifest.plugin is not None) == (manifest.graph == "dtf_plugin")
        assert shares[manifest.graph] == sorted(shares[manifest.graph]) and 0 <= shares[manifest.graph][0] <= 1
        if manifest.graph in GRAPHS:
            source = bundle.read(manifest.graph)
            assert manifest.onnx_sha256 == hashlib.sha256(source).hexdigest()
            # A plan holds the weights.
            assert len(plan) > len(source) * (0.9 if kind == "fp32" else 0.4)
            found = EngineTarget(bundle.name, manifest.onnx_sha256, "rtx", rtx.version, "8.9", kind, profiles.tag)
            check_manifest(manifest, found)
            # Each kind of mismatch, on engines that were really built.
            for mismatch, change in {
                "weights": {"onnx_sha256": "0" * 64},
                "precision": {"precision": "int8"},
                "profile": {"profile_set": "0" * 64},
                "version": {"version": rtx.version + ".1"},
                "architecture": {"sm": "9.0"},
            }.items():
                with pytest.raises(EngineMismatch) as caught:
                    check_manifest(manifest, dataclasses.replace(found, **change))
                assert caught.value.kind == mismatch
        elif manifest.plugin is not None:
            sha256 = manifest.onnx_sha256
            found = EngineTarget(bundle.name, sha256, "rtx", rtx.version, "8.9", plugin_version=None)
            with pytest.raises(EngineMismatch, match="plugin TaTokDTF version 1, found none"):
                check_manifest(manifest, found)
    agreement = built[0].manifest.notes["agreement"]
    if kind == "fp16":
        assert (
            agreement["patch_tokens"] >= 0.95
            and agreement["largest_code_step"] <= 1
            and agreement["finite"]
            and agreement["source"] == "rendered"
        )
    else:
        assert agreement is None
    [encoder] = [engine for engine in built if engine.manifest.graph == "patch_encoder"]
    assert encoder.manifest.notes["edges"] == PROFILES["tokens"]
    assert any("for SM 8.6, 8.9, 12.0" in line and "usually 2 to 10 seconds" in line for line in lines)
    assert max(max(values) for values in shares.values()) > 0.5
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".part-", ".probe-"))]
    chosen = find_engines(
        tmp_path,
        {
            engine.manifest.graph: EngineTarget("tatok-s8", engine.manifest.onnx_sha256, "rtx", rtx.version, "12.0")
            for engine in built[: len(GRAPHS)]
        },
        GRAPHS,
    )
    for name in GRAPHS:
        assert len(chosen.load(name)) == chosen.manifests[name].engine_bytes


def test_the_command_calibrates_builds_and_takes_what_is_there(tmp_path: Path, rtx: Flavour) -> None:
    video = "synthetic:frames=8,width=96,height=64"
    arguments = ["build", "--flavour", "rtx", "--sm", "8.6", "--calibrate", video, "--tau", "0.6"]
    arguments += ["-o", "engines", "--json"]
    done = tatok(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["flavour"], report["version"], report["sms"]) == ("rtx", rtx.version, ["8.6"])
    assert [engine["graph"] for engine in report["engines"]] == list(GRAPHS)
    assert report["agreement"]["source"] == "given" and report["agreement"]["pictures"] == 4
    notes = report["profiles"]["notes"]
    # As a stream: eight frames, and the looks at what holding costs.
    assert notes["frames"] == 8 and notes["budget"].startswith("stream, tau=0.6")
    assert sum(n for _, n in notes["histogram"]) == 8 + notes["probes"] and notes["probes"] >= 1
    assert report["profiles"]["tokens"] == notes["edges"] and notes["edges"][-1] == 96
    assert notes["waste"] <= notes["waste_of_equal_widths"]
    assert report["profiles"]["frames"] == [{"batch": [1, 1, 1], "height": [64] * 3, "width": [96] * 3}]
    for engine in report["engines"]:
        manifest = json.loads((tmp_path / engine["manifest"]).read_text())
        assert manifest["notes"]["profiles"]["histogram"] == notes["histogram"]
        assert (tmp_path / engine["file"]).stat().st_size == engine["bytes"] and not engine["reused"]
    assert f"building {len(GRAPHS)} engines of tatok-s8 in fp16 with TensorRT-RTX" in done.stderr

    # Again: nothing is built. Damage one: only that one is.
    (tmp_path / report["engines"][1]["file"]).write_bytes(b"")
    done = tatok(*arguments, cwd=tmp_path)
    again = json.loads(done.stdout)
    assert [engine["reused"] for engine in again["engines"]] == [number != 1 for number in range(len(GRAPHS))]
    assert "building 1 engine of tatok-s8" in done.stderr
    assert (tmp_path / again["engines"][1]["file"]).stat().st_size == again["engines"][1]["bytes"]


def test_help_names_the_options(tmp_path: Path) -> None:
    done = tatok("build", "--help", cwd=tmp_path)
    for option in ("--flavour", "--precision", "--profiles", "--calibrate", "--sm", "--dtf", "--json"):
        assert option in done.stdout


BUILD = ("build", "--flavour", "rtx", "--sm", "8.6", "--precision", "fp32", "-o", "engines")


def test_two_processes_end_with_good_engines(tmp_path: Path, rtx: Flavour, profile_file: Path) -> None:
    command = [sys.executable, "-m", "tatok_edge", *BUILD, "--profiles", str(profile_file), "--json"]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    reports = [json.loads(out)["engines"] for out, _ in outputs]
    for first, second in zip(*reports, strict=True):
        assert first["file"] == second["file"]
        assert first["reused"] or second["reused"]
        path = tmp_path / first["file"]
        read_engine(path, read_manifest(path))


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGINT, 0.0), (signal.SIGINT, 0.1), (signal.SIGKILL, 0.1)])
def test_an_interrupted_build_leaves_no_half_engine(
    tmp_path: Path, rtx: Flavour, profile_file: Path, number: signal.Signals, delay: float
) -> None:
    command = [sys.executable, "-m", "tatok_edge", *BUILD, "--profiles", str(profile_file)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        # Tests that run in the background inherit that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "context: 1 profile" in line:
            break
    time.sleep(delay)
    process.send_signal(number)
    out, rest = process.communicate(timeout=120)
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert rest.splitlines()[-1] == "tatok build: interrupted" and out == ""
    left = {path.name for path in (tmp_path / "engines").iterdir() if not path.name.startswith(".")}
    assert len(left) == 2 and all("global_encoder" in name for name in left), left
    done = tatok(*BUILD, "--profiles", profile_file, "--json", cwd=tmp_path)
    assert [engine["reused"] for engine in json.loads(done.stdout)["engines"]] == [
        number == 0 for number in range(len(GRAPHS))
    ]


def test_what_tensorrt_refuses_is_said_in_one_line(rtx: Flavour) -> None:
    def model(op: str, shape: list[Any]) -> bytes:
        graph = helper.make_graph(
            [helper.make_node(op, ["x"], ["y"], name="the_node")],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.INT64 if op == "NonZero" else TensorProto.FLOAT, None)],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(made.SerializeToString())

    profile = {"x": ShapeRange((1, 4), (2, 4), (3, 4))}
    good = model("Relu", ["n", 4])
    assert len(tensorrt.build_plan(rtx, good, "g", [profile], ["8.6"])) > 100
    for data, profiles, says in [
        (model("NonZero", ["n", 4]), [profile], "cannot parse graph 'g' at node 'the_node', operator NonZero"),
        (b"junk", [profile], "cannot parse graph 'g'"),
        (good, [{"y": profile["x"]}], "has inputs x, profile 0 names y"),
        (good, [{"x": ShapeRange((2, 4), (1, 4), (3, 4))}], "refuses profile 0 of graph 'g'"),
        (good, [{"x": ShapeRange((1, 5), (2, 5), (3, 5))}], "cannot build graph 'g'"),
    ]:
        with pytest.raises(BackendError, match=r"TensorRT-RTX|inputs x") as caught:
            tensorrt.build_plan(rtx, data, "g", profiles, ["8.6"])
        assert says in str(caught.value) and "\n" not in str(caught.value)


# --- wrong use ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--sm", "8.7"], 1, "does not build for SM 8.7; it does for 7.5, 8.0, 8.6"),
        (["--sm", "orin"], 1, "GPU architectures are written like 8.6 or 12.0, got 'orin'"),
        (["--sm", ","], 1, "name at least one, such as 8.6"),
        (["--profiles", "none.json"], 1, "none.json: cannot be read"),
        (["--profiles", "none.json", "--calibrate", "a.mp4"], 1, "give either --calibrate or --profiles FILE"),
        (["--calibrate", "none.mp4"], 1, "none.mp4: no such file"),
        (["--tau", "0"], 2, "--tau must be above 0 and at most 1, got 0"),
        (["--precision", "int3"], 2, "invalid choice: 'int3'"),
        (["--flavour", "tflite"], 2, "invalid choice: 'tflite'"),
        (["-o", "file/engines"], 1, "cannot be written (Not a directory): name another folder with -o"),
        (["no-such-model"], 1, "unknown model 'no-such-model'"),
    ],
)
def test_wrong_use(tmp_path: Path, rtx: Flavour, arguments: list[str], code: int, says: str) -> None:
    (tmp_path / "file").write_text("")
    one_line(
        tatok("build", *arguments, *([] if "--flavour" in arguments else ["--flavour", "rtx"]), cwd=tmp_path),
        code,
        says,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_any_tensorrt(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tensorrt'] = sys.modules['tensorrt_rtx'] = None;"
        "from tatok_edge.cli.main import main; sys.exit(main(['build']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    one_line(done, 1, "TensorRT is not installed: pip install 'tatok-edge[tensorrt]'")
    assert "TensorRT-RTX is not installed: pip install 'tatok-edge[rtx]'" in done.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("__version__ = '8.6.1'", "TensorRT 8.6.1 is installed; this tatok-edge takes 10.3 up to, but not, 12.0"),
        ("__version__ = '10.2.0'", "TensorRT 10.2.0 is installed"),
        ("__version__ = '12.0.0'", "TensorRT 12.0.0 is installed"),
        ("", "TensorRT without a version is installed"),
        ("raise ImportError('libnvinfer.so.10: cannot open\\nshared object')", "cannot be imported (libnvinfer.so.10"),
        ("import no_such_part", "cannot be imported (No module named 'no_such_part')"),
        ("__version__ = '10.3.0'", ""),
    ],
)
def test_versions_that_are_taken(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt" / "__init__.py").write_text(text)
    code = (
        "import sys; sys.path.insert(0, '.'); from tatok_edge.runtime.tensorrt.flavour import find_flavour\n"
        "try: print(find_flavour('trt').title)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    if says:
        assert done.stdout.startswith("BackendError ") and says in done.stdout and done.stdout.count("\n") == 1
    else:
        assert done.stdout == "TensorRT 10.3.0\n"


def fake(name: Any, **members: Any) -> Flavour:
    capabilities = SimpleNamespace(__members__=dict.fromkeys(("NONE", "CURRENT", "SM75", "SM86", "SM120")))
    api: Any = SimpleNamespace(ComputeCapability=capabilities, **members)
    return Flavour(name, "10.3.0", Path("."), api)


def test_which_architectures_are_built_for() -> None:
    assert target_sms(fake("trt"), None, "8.7") == ("8.7",)
    assert target_sms(fake("trt"), ["8.7"], "8.7") == ("8.7",)
    assert target_sms(fake("rtx"), None, "8.6") == ("8.6",)
    assert target_sms(fake("rtx"), ["12.0", "8.6", "12.0"], None) == ("8.6", "12.0")
    assert tensorrt_flavour.rtx_sms(fake("rtx")) == ("7.5", "8.6", "12.0")
    with pytest.raises(BackendError, match="builds on the GPU that it builds for, and this machine has none"):
        target_sms(fake("trt"), None, None)
    with pytest.raises(InputError, match=r"builds for this machine's GPU, SM 8\.7, only; got 8\.6"):
        target_sms(fake("trt"), ["8.6"], "8.7")
    with pytest.raises(InputError, match=r"does not build for SM 8\.7; it does for 7\.5, 8\.6, 12\.0"):
        target_sms(fake("rtx"), None, "8.7")
    with pytest.raises(InputError, match="unknown TensorRT flavour 'x'"):
        find_flavour("x")


def test_too_little_memory(tmp_path: Path, rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "available_memory", lambda: 50 << 20)
    profiles = parse_profiles(SMALL, "test")
    with pytest.raises(BackendError, match=r"needs about 0\.\d GB of memory, 0\.1 GB are free: .*--ignore-memory"):
        tensorrt.build_engines(open_bundle("tatok-s8"), rtx, profiles, precision="fp32", sms=["8.6"], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_free_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    assert tensorrt.available_memory(tmp_path) is None
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 1000 kB\nSwapFree: 24 kB\n")
    assert tensorrt.available_memory(tmp_path) == 1024 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("1000\n")
    assert tensorrt.available_memory(tmp_path) == 1024 * 1024
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("5000\n")
    assert tensorrt.available_memory(tmp_path) == 4000
    if sys.platform == "linux":
        assert (tensorrt.available_memory() or 0) > 1 << 20


def test_the_timing_cache_is_kept_between_builds(tmp_path: Path) -> None:
    given: list[bytes] = []

    class Config:
        def create_timing_cache(self, serialized_timing_cache: bytes) -> bytes:
            given.append(serialized_timing_cache)
            return serialized_timing_cache

        def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
            assert not ignore_mismatch
            return True

        def get_timing_cache(self) -> Any:
            return SimpleNamespace(serialize=lambda: given[-1] + b"more")

    manifest: Any = SimpleNamespace(sms=("8.7",))
    for _ in range(3):
        cache = tensorrt._TimingCache(fake("trt"), manifest, tmp_path)
        cache.give(Config())
        cache.take(Config())
        cache.store()
    assert given == [b"", b"more", b"moremore"]
    assert [path.name for path in tmp_path.iterdir()] == ["timing-trt10.3.0-sm87.cache"]
    nothing = tensorrt._TimingCache(fake("rtx"), manifest, tmp_path)
    nothing.give(None)
    nothing.take(None)
    nothing.store()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_plugin_library_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"plugin library .*none\.so is missing"):
        tensorrt_flavour.load_plugins(fake("trt"), tmp_path / "none.so")
    (tmp_path / "p.so").write_bytes(b"")
    for registry, says in [
        (None, "has no plugin registry"),
        (SimpleNamespace(load_library=lambda path: None), "it is no plugin library for this version"),
    ]:
        with pytest.raises(BackendError, match=says):
            tensorrt_flavour.load_plugins(fake("trt", get_plugin_registry=lambda r=registry: r), tmp_path / "p.so")


# --- the API of other versions --------------------------------------------------------------------

BINDINGS = {
    "10.3.0": "tensorrt_cu12_bindings",
    "10.7.0": "tensorrt_cu12_bindings",
    "10.13.3.9": "tensorrt_cu13_bindings",
    "10.16.1.11": "tensorrt_cu13_bindings",
    "11.4.0.106": "tensorrt_cu13_bindings",
}
"""JetPack 6, two desktop versions between, JetPack 7, and the newest."""
SYMBOLS = """createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL
createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getBuilderPluginRegistry getNvOnnxParserVersion
getPluginRegistry initLibNvInferPlugins"""


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Libraries with the names of TensorRT's, in which every function returns nothing."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        missing("the stand-ins for TensorRT's libraries need Linux and gcc")
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "stub.c").write_text("".join(f"void* {name}(void) {{ return 0; }}\n" for name in SYMBOLS.split()))
    for major in (10, 11):
        for library in ("nvinfer", "nvonnxparser", "nvinfer_plugin"):
            name = f"lib{library}.so.{major}"
            command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "stub.c", "-o", name]
            subprocess.run(command, check=True, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def bindings(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Installs the Python bindings of one version into a folder of their own, 2 MB each, once per user."""
    kept = os.environ.get("TATOK_TEST_BINDINGS")
    base = Path(kept) if kept else tmp_path_factory.mktemp("bindings")

    def install(version: str) -> Path:
        folder = base / f"{version}-py{sys.version_info[0]}{sys.version_info[1]}"
        if not (folder / "tensorrt").is_dir():
            package = f"{BINDINGS[version]}=={version}"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:"]
            done = subprocess.run(
                [*command, "--disable-pip-version-check", "--target", str(folder), package],
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
                missing(f"pip cannot get {package}: {reason}")
            # The package tensorrt, which the bindings are a part of, only passes their names on.
            (folder / "tensorrt").mkdir()
            (folder / "tensorrt" / "__init__.py").write_text(
                "from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n"
            )
        return folder

    return install


def run_names(flavour: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tests/helpers/tensorrt_names.py"), flavour],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("version", BINDINGS)
def test_every_name_exists_in_every_version(
    version: str, stubs: Path, bindings: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = bindings(version)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = run_names("trt", tmp_path, {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(stubs)})
    assert done.stdout.startswith(f"version {version}"), done.stderr
    assert "PROBLEM" not in done.stdout, done.stdout
    assert int(done.stdout.split()[-1]) >= 60  # so many were looked up


def test_every_name_exists_in_rtx(rtx: Flavour, tmp_path: Path) -> None:
    done = run_names("rtx", tmp_path, {})
    assert done.stdout.startswith(f"version {rtx.version}"), done.stderr
    assert "PROBLEM" not in done.stdout, done.stdout


def test_jetpacks_tensorrt_is_found_from_a_virtual_environment(
    stubs: Path, bindings: Callable[[str], Path], tmp_path: Path
) -> None:
    shutil.copytree(bindings("10.3.0") / "tensorrt_bindings", tmp_path / "dist-packages" / "tensorrt")
    code = (
        "import sys; from pathlib import Path; from tatok_edge.runtime.tensorrt import flavour as t\n"
        "t.SYSTEM_FOLDERS = (Path('empty').resolve(), Path('dist-packages').resolve())\n"
        "try: print(t.find_flavour('trt').title, t.find_flavour('trt').location.name)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stubs)}

    def run() -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout

    assert run() == "TensorRT 10.3.0 tensorrt\n"
    extension = tmp_path / "dist-packages" / "tensorrt" / "tensorrt.so"
    extension.rename(extension.with_name("tensorrt.cpython-38-aarch64-linux-gnu.so"))
    assert "is for another Python (tensorrt.cpython-38-aarch64-linux-gnu.so; this one needs" in run()
    shutil.rmtree(extension.parent)
    assert "TensorRT is not installed: pip install" in run()
