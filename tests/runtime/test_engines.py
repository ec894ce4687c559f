"""Engines on disk: what is checked before TensorRT sees them, and that nothing half-written is ever left."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.engine_files import PLAN, found, make, sha
from helpers.paths import ROOT
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import BackendError, InputError
from tatok_edge.runtime.tensorrt.choice import EngineTarget, check_manifest, choose_profile, find_engines
from tatok_edge.runtime.tensorrt.manifest import (
    EngineMismatch,
    PluginRecord,
    ShapeRange,
    manifest_path,
    read_manifest,
)
from tatok_edge.runtime.tensorrt.store import (
    build_lock,
    cache_folder,
    prepare_folder,
    read_engine,
    store_engine,
    stored_engine,
)

GRAPHS = ("context", "patch_encoder")
W, P = sha("weights")[:12], sha("plugin")[:12]


# --- what is checked before deserialisation -------------------------------------------------------


def test_what_was_built_here_for_this_runs(tmp_path: Path) -> None:
    path = store_engine(tmp_path, make(), PLAN)
    manifest = read_manifest(path)
    assert manifest == make() and dict(manifest.notes) == dict(make().notes)
    check_manifest(manifest, found())
    check_manifest(manifest, found(precision="fp16", profile_set=sha("profiles")))
    assert read_engine(path, manifest) == PLAN
    assert read_manifest(manifest_path(path)) == manifest
    for part in ("tatok-s8", "patch_encoder", sha("converted")[:16], sha("profiles")[:8], "fp16", "trt10.3.0", "sm87"):
        assert part in path.name


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"onnx_sha256": sha("other")}, "weights", rf"with the weights {W}\S*, found the weights {sha('other')[:12]}"),
        ({"precision": "fp32"}, "precision", "with precision fp16, found precision fp32"),
        ({"profile_set": sha("wider")}, "profile", rf"with the profile set {sha('profiles')[:12]}\S*, found"),
        ({"version": "10.7.0"}, "version", r"with TensorRT 10\.3\.0, found TensorRT 10\.7\.0"),
        ({"flavour": "rtx", "version": "1.7.1"}, "version", r"with TensorRT 10\.3\.0, found TensorRT-RTX 1\.7\.1"),
        ({"sm": "8.9"}, "architecture", r"for a GPU of SM 8\.7, found one of SM 8\.9"),
        ({"plugin_version": None, "plugin_sha256": None}, "plugin", "plugin TaTokDTF version 1, found none"),
        ({"plugin_version": "2"}, "plugin", "plugin TaTokDTF version 1, found version 2"),
        ({"plugin_sha256": sha("new")}, "plugin", rf"hash {P}\S*, found one with hash {sha('new')[:12]}"),
        ({"plugin_sha256": None}, "plugin", "found one without a library"),
    ],
)  # fmt: skip
def test_each_kind_of_mismatch(changes: dict[str, Any], kind: str, says: str) -> None:
    with pytest.raises(EngineMismatch, match=f"patch_encoder was built .*{says}") as caught:
        check_manifest(make(), found(**changes))
    assert caught.value.kind == kind
    assert "run 'tatok build tatok-s8 --precision fp16'" in str(caught.value) and "\n" not in str(caught.value)


def test_an_engine_for_several_architectures() -> None:
    manifest = make(sms=("8.6", "8.9", "12.0"), flavour="rtx", version="1.7.1")
    for sm in manifest.sms:
        check_manifest(manifest, found(sm=sm, flavour="rtx", version="1.7.1"))
    with pytest.raises(EngineMismatch, match=r"SM 8\.6 or 8\.9 or 12\.0, found one of SM 8\.7"):
        check_manifest(manifest, found(flavour="rtx", version="1.7.1"))
    assert "sm86-89-120" in manifest.file


def test_an_engine_without_plugin_needs_none() -> None:
    check_manifest(make(plugin=None), found(plugin_version=None, plugin_sha256=None))
    built_without_library = make(plugin=PluginRecord("TaTokDTF", "1", None, None))
    check_manifest(built_without_library, found())


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: b"", "truncated"),
        (lambda data: data + b"\0", "damaged"),
        (lambda data: data[:100] + b"\xff" + data[101:], "damaged"),
        (None, "missing"),
    ],
)
def test_engines_that_were_damaged(tmp_path: Path, change: Any, kind: str) -> None:
    path = store_engine(tmp_path, make(), PLAN)
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(PLAN))
    with pytest.raises(EngineMismatch, match="run 'tatok build tatok-s8") as caught:
        read_engine(path, read_manifest(path))
    assert caught.value.kind == kind and str(path) in str(caught.value)
    assert stored_engine(tmp_path, make()) is None


def corrupt(data: dict[str, Any], path: str, value: Any) -> str:
    *parents, last = path.split(".")
    inner: Any = data
    for key in parents:
        inner = inner[int(key) if isinstance(inner, list) else key]
    if value is KeyError:
        del inner[last]
    else:
        inner[last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format_version", 2, "format is 2, this version reads 1"),
        ("tag", "xyz", "'tag' must be 16 hexadecimal digits"),
        ("onnx_sha256", None, "'onnx_sha256' must be 64"),
        ("version", KeyError, "'version' is missing"),
        ("version", "10\n3", "'version' must be a printable string"),
        ("graph", ["context"], "'graph' must be a printable string"),
        ("sms", [], "a list of 1 to 256"),
        ("sms", "8.7", "a list of 1 to 256"),
        ("profiles", [], "a list of 1 to 256"),
        ("profiles", [{}], "must name its inputs"),
        ("profiles.0.features.min", [0, 1056], "positive integers"),
        ("profiles.0.features.min", [1], "as many for min as for max"),
        ("profiles.0.features.min", [65, 1056], "must rise from min over opt to max"),
        ("engine.bytes", -1, "cannot have -1 bytes"),
        ("engine.bytes", 1 << 50, "cannot have"),
        ("engine.sha256", "0" * 63, "'sha256' must be 64"),
        ("plugin.sha256", 5, "'sha256' must be 64"),
        ("plugin", {}, "'name' is missing"),
    ],
)
def test_manifests_that_make_no_sense(tmp_path: Path, path: str, value: Any, says: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(corrupt(make().to_json(), path, value))
    with pytest.raises(EngineMismatch, match=says) as caught:
        read_manifest(file)
    assert caught.value.kind == "damaged" and "run 'tatok build' again" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, " " * (5 << 20), '{"format_version": 1}'])
def test_files_that_are_no_manifest(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(EngineMismatch):
        read_manifest(file)
    with pytest.raises(EngineMismatch, match=r"y\.json is missing") as caught:
        read_manifest(tmp_path / "y.engine")
    assert caught.value.kind == "missing"


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["min", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@given(st.sampled_from(sorted(make().to_json())), JUNK)
def test_junk_in_a_manifest_is_refused_or_harmless(tmp_path_factory: Any, key: str, junk: Any) -> None:
    file = tmp_path_factory.mktemp("junk") / "x.json"
    file.write_text(json.dumps(make().to_json() | {key: junk}))
    try:
        manifest = read_manifest(file)
    except EngineMismatch:
        return
    assert isinstance(manifest.file, str) and os.sep not in manifest.file


def test_names_of_models_stay_within_the_folder() -> None:
    assert os.sep not in make(model="../../etc/x y").file


# --- profiles at run time -------------------------------------------------------------------------


def test_the_smallest_profile_that_fits_is_taken() -> None:
    manifest = make()
    assert [choose_profile(manifest, {"features": (t, 1056)}) for t in (1, 64, 65, 576)] == [0, 0, 1, 1]
    wide = ShapeRange((1, 6, 1, 1), (1, 6, 8, 8), (4, 6, 34, 60))
    small = ShapeRange((1, 6, 1, 1), (1, 6, 8, 8), (1, 6, 16, 16))
    both = make(graph="context", profiles=({"codes": wide}, {"codes": small}))
    assert choose_profile(both, {"codes": (1, 6, 8, 8)}) == 1
    assert choose_profile(both, {"codes": (2, 6, 8, 8)}) == 0


def test_out_of_range_names_the_tensor_and_the_command() -> None:
    with pytest.raises(InputError) as caught:
        choose_profile(make(), {"features": (577, 1056)})
    assert str(caught.value) == (
        "patch_encoder: features has shape (577, 1056), the engine takes (1..64, 1056) or (65..576, 1056): widen it "
        "with 'tatok build tatok-s8 --precision fp16 --profiles FILE', where FILE has ranges that hold it"
    )
    with pytest.raises(InputError, match="takes the inputs features, got tokens"):
        choose_profile(make(), {"tokens": (1, 1056)})
    ranges = {name: ShapeRange((1, 8), (1, 8), (1, 8)) for name in ("state", "mean")}
    decoder = make(graph="decoder", profiles=(ranges,))
    with pytest.raises(InputError, match=r"decoder: mean has shape \(2, 8\)"):
        choose_profile(decoder, {"state": (1, 8), "mean": (2, 8)})


# --- finding sets ---------------------------------------------------------------------------------


def put_set(folder: Path, age: float, **changes: Any) -> None:
    for graph in GRAPHS:
        path = store_engine(folder, make(graph=graph, **changes), PLAN)
        os.utime(manifest_path(path), (time.time() - age,) * 2)


def here(**changes: Any) -> dict[str, EngineTarget]:
    return {graph: found(**changes) for graph in GRAPHS}


def test_the_newest_set_that_fits_is_found(tmp_path: Path) -> None:
    put_set(tmp_path, 300)
    put_set(tmp_path, 200, profile_set=sha("newer"))
    put_set(tmp_path, 100, version="10.7.0")
    put_set(tmp_path, 50, tag="f" * 16, onnx_sha256=sha("retrained"), built_sha256=sha("c2"))
    (tmp_path / "other.json").write_text("{}")
    chosen = find_engines(tmp_path, here(), GRAPHS)
    assert {m.profile_set for m in chosen.manifests.values()} == {sha("newer")}
    assert chosen.load("context") == PLAN
    assert find_engines(tmp_path, here(version="10.7.0"), GRAPHS).manifests["context"].version == "10.7.0"
    assert find_engines(tmp_path, here(profile_set=sha("profiles")), GRAPHS).manifests["context"].graph == "context"


def test_what_does_not_fit_is_said_of_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(EngineMismatch, match=r"no engines of tatok-s8 in .*: run 'tatok build tatok-s8'") as caught:
        find_engines(tmp_path / "none", here(), GRAPHS)
    assert caught.value.kind == "missing"
    put_set(tmp_path, 10, tag="f" * 16, onnx_sha256=sha("other"), built_sha256=sha("o"))
    put_set(tmp_path, 20, version="10.7.0")
    with pytest.raises(EngineMismatch, match=r"with TensorRT 10\.7\.0, found TensorRT 10\.3\.0"):
        find_engines(tmp_path, here(), GRAPHS)
    with pytest.raises(EngineMismatch, match="weights"):
        find_engines(tmp_path, here(onnx_sha256=sha("third")), GRAPHS)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"onnx_sha256": sha("retrained")}, "weights"),
        ({"profile_set": sha("wider")}, "profile"),
        ({"precision": "fp32"}, "precision"),
        ({"version": "10.3.1"}, "version"),
        ({"flavour": "rtx", "version": "10.3.0"}, "version"),
        ({"sm": "8.6"}, "architecture"),
        ({"plugin_version": "2"}, "plugin"),
        ({"plugin_sha256": sha("rebuilt")}, "plugin"),
        ({"plugin_version": None, "plugin_sha256": None}, "plugin"),
    ],
)
def test_a_mismatch_is_found_before_an_engine_is_opened(tmp_path: Path, changes: dict[str, Any], kind: str) -> None:
    """From the manifests alone: there is no engine here that could be read, let alone deserialised."""
    put_set(tmp_path, 10)
    for path in tmp_path.glob("*.engine"):
        path.unlink()
    assert find_engines(tmp_path, here(), GRAPHS).manifests["context"] == make(graph="context")
    with pytest.raises(EngineMismatch) as caught:
        find_engines(tmp_path, here(**changes), GRAPHS)
    assert caught.value.kind == kind and "run 'tatok build tatok-s8 --precision fp16'" in str(caught.value)
    with pytest.raises(EngineMismatch, match=r"\.engine is missing"):
        find_engines(tmp_path, here(), GRAPHS).load("context")


def test_a_set_that_is_not_complete(tmp_path: Path) -> None:
    store_engine(tmp_path, make(graph="context"), PLAN)
    with pytest.raises(
        EngineMismatch, match="no engine for patch_encoder: run 'tatok build tatok-s8 --precision fp16'"
    ):
        find_engines(tmp_path, here(), GRAPHS)


# --- writing --------------------------------------------------------------------------------------


def test_only_the_same_content_is_taken_again(tmp_path: Path) -> None:
    store_engine(tmp_path, make(), PLAN)
    draft = dataclasses.replace(make(), engine_bytes=0, engine_sha256="", notes={})
    assert stored_engine(tmp_path, draft) == make()
    assert stored_engine(tmp_path, dataclasses.replace(draft, built_sha256=sha("x"))) is None
    assert stored_engine(tmp_path, dataclasses.replace(draft, profiles=draft.profiles[:1])) is None
    assert stored_engine(tmp_path, dataclasses.replace(draft, version="10.3.1")) is None


def test_a_new_engine_replaces_the_old_pair(tmp_path: Path) -> None:
    store_engine(tmp_path, make(), PLAN)
    again = PLAN[::-1]
    path = store_engine(tmp_path, make(engine_sha256=hashlib.sha256(again).hexdigest()), again)
    assert read_engine(path, read_manifest(path)) == again
    assert len(list(tmp_path.iterdir())) == 2


def run_python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


STORE = """
import sys, resource
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from helpers import engine_files
from tatok_edge.errors import BackendError
from tatok_edge.runtime.tensorrt import store
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk does, writing fails half-way
try:
    store.store_engine(Path(sys.argv[1]), engine_files.make(), engine_files.PLAN)
except BackendError as error:
    print(error)
"""


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    done = run_python(STORE, tmp_path / "", ROOT / "tests", cwd=tmp_path)
    assert "cannot be written (File too large): name another folder with -o or $TATOK_ENGINES" in done.stdout, (
        done.stderr
    )
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"MB free, the engines need about \d+ MB: free some"):
        prepare_folder(tmp_path / "new", 1 << 60)
    prepare_folder(tmp_path / "new", 1)
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_build_left_is_removed_in_time(tmp_path: Path) -> None:
    for name, age in ((".part-old.engine", 7200), (".part-new.engine", 10), ("mine.engine", 7200)):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    prepare_folder(tmp_path, 1)
    assert {path.name for path in tmp_path.iterdir()} == {".part-new.engine", "mine.engine"}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file" / "engines", tmp_path / "file"):
        with pytest.raises(BackendError, match=r"cannot be written .* name another folder with -o"):
            prepare_folder(folder, 1)
        with pytest.raises(BackendError, match="cannot be written"), build_lock(folder / "x.engine"):
            pass


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TATOK_ENGINES", raising=False)
    assert cache_folder() == tmp_path / "tatok-edge" / "engines"
    monkeypatch.setenv("TATOK_ENGINES", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("TATOK_ENGINES")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "tatok-edge" / "engines"


HOLD = """
import sys
from pathlib import Path
from tatok_edge.runtime.tensorrt.store import build_lock
with build_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_the_second_process_waits_for_the_first(tmp_path: Path) -> None:
    path = tmp_path / "x.engine"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.7)
        holder.kill()  # a process that dies does not keep the lock
        assert waiting.communicate("\n", timeout=60)[0] == "held\n"
    finally:
        holder.kill()
        holder.wait()
    with build_lock(path) as waited:
        assert not waited


def test_nothing_of_tensorrt_or_torch_is_needed(tmp_path: Path) -> None:
    code = (
        "import sys, tatok_edge.runtime.tensorrt.flavour, tatok_edge.export.engines.profiles;"
        "print({'torch', 'onnx', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules))"
    )
    assert run_python(code, cwd=tmp_path).stdout == "set()\n"
