"""``tatok doctor`` on machines of every kind: calm without a GPU; with one, what is missing and what to do.

GPUs are a driver in C that the real code loads, or an object that answers as the driver does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
from helpers import engine_files

from tatok_edge.cli import doctor
from tatok_edge.errors import BackendError
from tatok_edge.export.engines import record
from tatok_edge.export.engines.profiles import default_profiles, graph_profiles
from tatok_edge.model.bundle import GRAPHS, open_bundle
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.tensorrt import flavour as tensorrt_flavour
from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin
from tatok_edge.runtime.tensorrt.choice import EngineSet
from tatok_edge.runtime.tensorrt.flavour import Flavour
from tatok_edge.runtime.tensorrt.manifest import manifest_path

ORIN = {"name": b"Orin", "sm": (8, 7), "memory": 32 << 30, "integrated": 1}
ADA = {"name": b"NVIDIA RTX 4090", "sm": (8, 9), "memory": 24 << 30, "integrated": 0}


class Driver:
    """Answers as the CUDA driver does; everything is written through pointers."""

    def __init__(self, *gpus: dict[str, Any], cuda: int = 12060, init: int = 0, open_error: int = 0) -> None:
        self.gpus, self.cuda, self.init, self.open_error = gpus, cuda, init, open_error

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.cuda
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return self.open_error

    def cuDeviceGetName(self, name: Any, size: int, device: Any) -> int:
        name.value = self.gpus[device.value]["name"]
        return 0

    def cuDeviceTotalMem_v2(self, memory: Any, device: Any) -> int:
        memory._obj.value = self.gpus[device.value]["memory"]
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        gpu = self.gpus[device.value]
        value._obj.value = {75: gpu["sm"][0], 76: gpu["sm"][1], 18: gpu["integrated"]}[attribute]
        return 0


Machine = Callable[..., dict[str, Any]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """What the doctor says of a machine with these parts."""
    monkeypatch.setattr(doctor, "ROOT", tmp_path / "root")
    monkeypatch.setenv("TATOK_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for variable in (cuda_kernels.LIBRARY_VARIABLE, tensorrt_plugin.LIBRARY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    installed = doctor._installed

    def examine(
        driver: Driver | None = None,
        *,
        files: dict[str, str] | None = None,
        packages: dict[str, str] | None = None,
        flavours: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        for name, text in (files or {}).items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        known = {"cuda-bindings", "pycuda"}
        monkeypatch.setattr(doctor, "_driver", lambda: driver)
        monkeypatch.setattr(
            doctor, "_installed", lambda name: (packages or {}).get(name) if name in known else installed(name)
        )

        def find(wanted: str) -> Flavour:
            version = (flavours or {}).get(wanted)
            if version is None:
                raise BackendError(f"{wanted} is not installed: pip install it")
            api: Any = SimpleNamespace()
            return Flavour(wanted, version, Path("/opt"), api)  # type: ignore[arg-type]

        monkeypatch.setattr(tensorrt_flavour, "find_flavour", find)
        report = doctor.examine()
        assert json.loads(json.dumps(report)) == report
        return report

    return examine


def lines(report: dict[str, Any]) -> str:
    return doctor._text(report)


# --- without a GPU --------------------------------------------------------------------------------


def test_without_a_gpu_it_is_calm(machine: Machine) -> None:
    report = machine()
    assert report["ok"] is True
    assert report["nvidia"]["reason"] == "no NVIDIA driver: CPU backend"
    assert report["nvidia"]["gpus"] == [] and report["nvidia"]["jetson"] is None
    text = lines(report)
    assert "nvidia            no   no NVIDIA driver: CPU backend" in text
    assert text.splitlines()[-1] == "ready"
    # What only a GPU needs is not listed as missing.
    for word in ("cuda kernels", "dtf plugin", "device memory", "engines"):
        assert word not in text
    backends = {one["name"]: one for one in report["backends"]}
    assert list(backends) == ["onnxruntime", "tensorrt", "tensorrt-rtx"]
    assert [one["usable"] for one in backends.values()] == [True, False, False]


def test_rtx_builds_without_a_gpu(machine: Machine) -> None:
    report = machine(flavours={"rtx": "1.7.1.116"})
    trt, rtx = report["tensorrt"]
    assert not trt["usable"] and trt["reason"] == doctor.NOT_NEEDED
    assert rtx["version"] == "1.7.1.116" and rtx["reason"].endswith("runs nothing without a GPU, but builds")


def test_a_broken_tensorrt_is_shown_even_without_a_gpu(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine()

    def broken(wanted: str) -> Flavour:
        raise BackendError("TensorRT 8.6.1 is installed; this tatok-edge takes 10.3 up to, but not, 12.0")

    monkeypatch.setattr(tensorrt_flavour, "find_flavour", broken)
    assert "TensorRT 8.6.1 is installed" in lines(doctor.examine())


# --- drivers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("driver", "says"),
    [
        (Driver(init=100), "the NVIDIA driver does not start (cuInit: error 100): see nvidia-smi, reboot after"),
        (Driver(init=803), "in a container, start it with --gpus all (on a Jetson: --runtime nvidia)"),
        (Driver(), "the NVIDIA driver finds no GPU: CPU backend"),
        (Driver(ADA, open_error=2), "the NVIDIA driver does not open its GPU: see nvidia-smi"),
    ],
)
def test_drivers_that_do_not_work(machine: Machine, driver: Driver, says: str) -> None:
    report = machine(driver)
    assert not report["nvidia"]["usable"] and says in report["nvidia"]["reason"]
    assert report["ok"] is True and report["backends"][1]["reason"] == report["nvidia"]["reason"]


def test_gpus_of_a_desktop(machine: Machine) -> None:
    report = machine(
        Driver(ADA, ORIN, cuda=13000),
        files={"sys/module/nvidia/version": "580.65.06\n"},
        packages={"cuda-bindings": "13.0.3"},
        flavours={"trt": "10.13.3.9"},
    )
    nvidia = report["nvidia"]
    assert nvidia["usable"] and (nvidia["cuda"], nvidia["driver"]) == ("13.0", "580.65.06")
    assert nvidia["gpus"][0] == {
        "name": "NVIDIA RTX 4090",
        "sm": "8.9",
        "memory_bytes": 24 << 30,
        "integrated": False,
    }
    assert nvidia["reason"] == "NVIDIA RTX 4090, SM 8.9, 25.8 GB and 1 more; driver for CUDA 13.0"
    assert report["device_memory"] == {"usable": True, "reason": "cuda-bindings 13.0.3"}
    # What is missing comes with the command that brings it.
    text = lines(report)
    assert "build them: python -m tatok_edge.runtime.cuda.kernels build (needs nvcc) --sm 8.9" in text
    assert "python -m tatok_edge.runtime.tensorrt.plugin build" in text
    assert "tatok build tatok-s8" in text
    trt = {one["name"]: one for one in report["backends"]}["tensorrt"]
    assert not trt["usable"] and trt["reason"] == "no engines for this GPU: tatok build tatok-s8 --flavour trt"
    assert "Orin, SM 8.7" in text


JETPACK_6 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan 8 2025\n"


@pytest.mark.parametrize(
    ("release", "jetpack", "l4t", "note"),
    [
        (JETPACK_6, "JetPack 6", "36.4.3", ""),
        (JETPACK_6.replace("R36", "R38").replace("4.3", "2.0"), "JetPack 7", "38.2.0", ""),
        (JETPACK_6.replace("R36", "R35"), "JetPack 5", "35.4.3", "JetPack 5 is too old: flash JetPack 6.1 or newer"),
        ("something else", None, None, ""),
    ],
)
def test_boards(machine: Machine, release: str, jetpack: str | None, l4t: str | None, note: str) -> None:
    files = {"etc/nv_tegra_release": release, "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0"}
    report = machine(Driver(ORIN), files=files)
    jetson = report["nvidia"]["jetson"]
    assert (jetson["model"], jetson["jetpack"], jetson["l4t"]) == (files["proc/device-tree/model"][:-1], jetpack, l4t)
    assert "34.4 GB shared with the CPU" in report["nvidia"]["reason"] and note in report["nvidia"]["reason"]
    assert f"NVIDIA Jetson AGX Orin Developer Kit, {jetpack or 'unknown JetPack'}" in lines(report)


def test_a_jetson_whose_driver_is_not_visible(machine: Machine) -> None:
    report = machine(files={"etc/nv_tegra_release": JETPACK_6, "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"})
    assert report["nvidia"]["reason"].startswith("no NVIDIA driver, although this is a NVIDIA Jetson Orin Nano")
    assert "--runtime nvidia" in report["nvidia"]["reason"]


@pytest.mark.parametrize(
    ("packages", "usable", "says"),
    [
        ({"cuda-bindings": "12.6.2"}, True, "cuda-bindings 12.6.2"),
        ({"cuda-bindings": "12.9.1", "pycuda": "2026.1"}, True, "cuda-bindings 12.9.1"),
        ({"pycuda": "2026.1"}, True, "pycuda 2026.1"),
        ({"cuda-bindings": "13.0.3", "pycuda": "2026.1"}, True, "pycuda 2026.1"),
        (
            {"cuda-bindings": "13.0.3"},
            False,
            "cuda-bindings 13.0.3 need a driver for CUDA 13, this one is for 12.6: pip install 'cuda-bindings==12.*'",
        ),
        ({}, False, "neither cuda-bindings nor pycuda: pip install 'cuda-bindings==12.*'"),
    ],
)
def test_what_manages_device_memory(machine: Machine, packages: dict[str, str], usable: bool, says: str) -> None:
    report = machine(Driver(ORIN), packages=packages, flavours={"trt": "10.3.0"})
    assert report["device_memory"] == {"usable": usable, "reason": says}
    trt = report["backends"][1]
    assert not trt["usable"] and (trt["reason"] == says) is not usable


# --- what was built -------------------------------------------------------------------------------


def test_kernels_and_plugin_that_were_built(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, plugin = tmp_path / "kernels.so", tmp_path / "plugin.so"
    for path in (kernels, plugin):
        path.write_bytes(b"ELF")
    monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(kernels))
    monkeypatch.setenv(tensorrt_plugin.LIBRARY_VARIABLE, str(plugin))
    machine()
    monkeypatch.setenv(cuda_kernels.LIBRARY_VARIABLE, str(kernels))
    report = doctor.examine()
    assert report["cuda_kernels"] == {"usable": True, "reason": str(kernels)}
    sha256 = hashlib.sha256(b"ELF").hexdigest()[:12]
    assert report["plugin"] == {"usable": True, "reason": f"{plugin}, SHA-256 {sha256}..."}
    monkeypatch.setenv(tensorrt_plugin.LIBRARY_VARIABLE, str(tmp_path / "none.so"))
    assert "which is no file" in doctor.examine()["plugin"]["reason"]


def store_engines(folder: Path, **changes: Any) -> EngineSet:
    bundle = open_bundle("tatok-s8")
    return engine_files.store_set(folder, bundle, graph_profiles(default_profiles(), bundle), **changes)


def on_orin(machine: Machine) -> dict[str, Any]:
    return machine(Driver(ORIN), packages={"cuda-bindings": "12.6.2"}, flavours={"trt": "10.3.0"})


def test_engines_that_fit(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = store_engines(tmp_path / "engines")
    report = on_orin(machine)
    (one,) = report["engines"]
    assert one["usable"] and not one["verified"] and one["graphs"] == sorted(GRAPHS)
    assert one["reason"] == "fp16, TensorRT 10.3.0, SM 8.7: not verified: tatok verify tatok-s8"
    trt = report["backends"][1]
    assert trt["usable"] and trt["reason"] == "TensorRT 10.3.0 in /opt, with engines of tatok-s8"
    monkeypatch.setattr(record, "is_verified", lambda engine_set: engine_set == there)
    (one,) = on_orin(machine)["engines"]
    assert one["verified"] and one["reason"] == "fp16, TensorRT 10.3.0, SM 8.7: verified"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sms": ("8.6", "8.9")}, "was built for a GPU of SM 8.6 or 8.9, found one of SM 8.7: run 'tatok build"),
        ({"version": "10.7.0"}, "was built with TensorRT 10.7.0, found TensorRT 10.3.0: run 'tatok build tatok-s8"),
        ({"onnx_sha256": "0" * 64}, "was built with the weights 000000000000..., found the weights"),
        ({"flavour": "rtx"}, "complete, for this model; no TensorRT-RTX here"),
    ],
)
def test_engines_that_do_not_fit(machine: Machine, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    store_engines(tmp_path / "engines", **changes)
    report = on_orin(machine)
    (one,) = report["engines"]
    assert not one["usable"] and says in one["reason"]
    assert not report["backends"][1]["usable"] and report["ok"]


def test_engines_that_are_damaged_or_not_all_there(machine: Machine, tmp_path: Path) -> None:
    there = store_engines(tmp_path / "engines")
    (tmp_path / "engines" / there.manifests["context"].file).write_bytes(b"short")
    assert "has 5 bytes, it was built with" in on_orin(machine)["engines"][0]["reason"]
    (tmp_path / "engines" / manifest_path(Path(there.manifests["context"].file)).name).unlink()
    assert "context missing: tatok build tatok-s8" in on_orin(machine)["engines"][0]["reason"]


def test_engines_of_two_precisions_and_other_files(machine: Machine, tmp_path: Path) -> None:
    store_engines(tmp_path / "engines")
    store_engines(tmp_path / "engines", precision="fp32")
    store_engines(tmp_path / "engines", model="another")
    (tmp_path / "engines" / "tatok-s8.verified.json").write_text("{}")
    report = on_orin(machine)
    assert sorted(one["precision"] for one in report["engines"]) == ["fp16", "fp32"]
    # Without a GPU they are whole, and nothing more can be said.
    report = machine()
    assert all("complete, for this model; no GPU to run them" in one["reason"] for one in report["engines"])


# --- OpenCV ---------------------------------------------------------------------------------------

BUILD = (
    "  Video I/O:\n    FFMPEG:                      YES\n    GStreamer:                   {}\n    v4l/v4l2:     YES\n"
)


@pytest.mark.parametrize("gstreamer", ["YES (1.20.3)", "NO"])
@pytest.mark.parametrize("jetson", [False, True])
def test_opencv(machine: Machine, monkeypatch: pytest.MonkeyPatch, gstreamer: str, jetson: bool) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: BUILD.format(gstreamer))
    monkeypatch.setattr(cv2, "__version__", "4.13.0")
    opencv = machine(files={"etc/nv_tegra_release": JETPACK_6} if jetson else {})["opencv"]
    if gstreamer == "NO":
        assert "built without GStreamer" in opencv["reason"] and opencv["gstreamer"] is False
        assert ("pip uninstall opencv-python" in opencv["reason"]) is jetson
    else:
        assert opencv["gstreamer"] is True and opencv["reason"] == "all features are built in"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("numpy.core.multiarray failed to import", "multiarray failed to import; pip install 'numpy<2'"),
        ("No module named 'cv2'", "pip install opencv-python-headless (on a Jetson keep JetPack's"),
    ],
)
def test_opencv_that_cannot_be_imported(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: str, says: str
) -> None:
    real = doctor._import
    monkeypatch.setattr(doctor, "_import", lambda name: (None, error) if name == "cv2" else real(name))
    report = machine()
    assert not report["ok"] and says in report["opencv"]["reason"]


def test_pyav(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor._import
    made = SimpleNamespace(
        __version__="99.0", library_versions={"libavcodec": (62, 3, 100)}, codecs_available={"mpeg4"}
    )
    monkeypatch.setattr(doctor, "_import", lambda name: (made, "") if name == "av" else real(name))
    report = machine()
    assert "pyav 99.0         yes  libavcodec 62.3.100; no H.264 encoder" in lines(report)
    monkeypatch.setattr(doctor, "_import", lambda name: (None, "No module named 'av'") if name == "av" else real(name))
    report = machine()
    assert report["ok"] and "pip install 'av<19'" in report["pyav"]["reason"]
    assert "pyav              no   No module named 'av'" in lines(report)


# --- the command, with a driver in C --------------------------------------------------------------

STUB = """
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 12060; return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int index) { *device = 40 + index; return index; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, "Orin", size); return device != 40; }
int cuDeviceTotalMem_v2(size_t* memory, int device) { *memory = (size_t)8 << 30; return device != 40; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18;
  return device != 40;
}
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux and gcc")
def test_the_command_asks_a_driver(tmp_path: Path) -> None:
    (tmp_path / "stub.c").write_text(STUB)
    command = ["gcc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "stub.c", "-o", "libcuda.so.1"]
    subprocess.run(command, check=True, cwd=tmp_path)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "TATOK_ENGINES": str(tmp_path / "none")}
    command = [sys.executable, "-m", "tatok_edge", "doctor"]
    done = subprocess.run(
        [*command, "--json"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    gpu = {"name": "Orin", "sm": "8.7", "memory_bytes": 8 << 30, "integrated": True}
    assert report["nvidia"]["gpus"] == [gpu] and report["nvidia"]["cuda"] == "12.6"
    assert report["engines"][0]["reason"] == f"none in {tmp_path / 'none'}: tatok build tatok-s8"
    text = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False).stdout
    assert "nvidia            yes  Orin, SM 8.7, 8.6 GB shared with the CPU; driver for CUDA 12.6" in text
