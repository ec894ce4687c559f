"""``tatok doctor``: what this machine can run, and why not the rest. Opens no camera and builds no engine."""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

CPU_FEATURES = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "aarch64": ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
"""Instruction sets that decide how fast the networks run, as Linux names them."""

CPU_ONLY = "this version runs its networks on the CPU only"

Report = dict[str, Any]


def run(*, as_json: bool) -> int:
    """Prints the report.

    Returns:
        0 where frames can be tokenized here, 1 where something that this needs is missing.
    """
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print(_text(report))
    return 0 if report["ok"] else 1


def examine() -> Report:
    """Everything that ``tatok doctor`` reports, as JSON-compatible values."""
    backends = [_onnxruntime(), _onnxruntime_cuda(), _tensorrt()]
    opencv = _opencv()
    models = _models()
    kernels = _kernels()
    ok = backends[0]["usable"] and opencv["usable"] and kernels["usable"] and any(model["usable"] for model in models)
    return {
        "ok": ok,
        "versions": _versions(),
        "cpu": _cpu(),
        "kernels": kernels,
        "backends": backends,
        "opencv": opencv,
        "gstreamer": _gstreamer(),
        "cameras": _cameras(),
        "models": models,
    }


def _versions() -> Report:
    names = {"tatok_edge": "tatok-edge", "numpy": "numpy", "onnxruntime": "onnxruntime", "av": "av"}
    versions: Report = {"python": platform.python_version(), "platform": platform.platform()}
    return versions | {key: _installed(name) for key, name in names.items()}


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _import(name: str) -> tuple[Any, str]:
    """A module, or None and why it cannot be imported."""
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        return None, " ".join(str(error).split())


def _kernels() -> Report:
    module, reason = _import("tatok_edge.runtime._kernels")
    if module is None:
        return {"usable": False, "reason": f"{reason}; install the package with a C++ compiler at hand"}
    return {"usable": True, "reason": Path(module.__file__).name}


def _onnxruntime() -> Report:
    ort, reason = _import("onnxruntime")
    if ort is None:
        return _backend("onnxruntime", False, f"{reason}; pip install onnxruntime")
    return _backend("onnxruntime", True, f"{ort.__version__}, on the CPU")


def _onnxruntime_cuda() -> Report:
    ort, reason = _import("onnxruntime")
    if ort is not None:
        providers = ort.get_available_providers()
        reason = f"onnxruntime here {'has' if 'CUDAExecutionProvider' in providers else 'lacks'} CUDA"
    return _backend("onnxruntime-cuda", False, f"{CPU_ONLY}; {reason}, {_nvidia_gpu()}")


def _tensorrt() -> Report:
    names = {name: _installed(name) for name in ("tensorrt", "tensorrt-rtx")}
    found = ", ".join(f"{name} {version}" for name, version in names.items() if version) or "TensorRT is not installed"
    return _backend("tensorrt", False, f"{CPU_ONLY}; {found}, {_nvidia_gpu()}")


def _backend(name: str, usable: bool, reason: str) -> Report:
    return {"name": name, "usable": usable, "reason": reason}


def _nvidia_gpu() -> str:
    """The first NVIDIA GPU, or why there is none; asks the driver only."""
    try:
        cuda = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return "no NVIDIA driver"
    count, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    if status := cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return f"the NVIDIA driver reports error {status}"
    if not count.value or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return "the NVIDIA driver finds no GPU"
    cuda.cuDeviceGetName(name, len(name), device)
    return f"GPU {name.value.decode(errors='replace')}"


def _opencv() -> Report:
    cv2, reason = _import("cv2")
    if cv2 is None:
        hint = "pip install opencv-python-headless (on a Jetson keep JetPack's: apt install python3-opencv)"
        return {"usable": False, "reason": f"{reason}; {hint}"}
    build = cv2.getBuildInformation()

    def has(feature: str) -> bool:
        return re.search(rf"^\s*{feature}:\s+YES", build, re.MULTILINE) is not None

    features = {"ffmpeg": has("FFMPEG"), "gstreamer": has("GStreamer"), "v4l2": has("v4l/v4l2")}
    missing = []
    if not features["ffmpeg"]:
        missing.append("no FFmpeg: no RTSP and no video files except through a gst: pipeline")
    if tuple(int(part) for part in cv2.__version__.split(".")[:2]) < (4, 13):
        missing.append("before 4.13: a video that changes its size freezes at its last picture of the first size")
    if not features["v4l2"]:
        missing.append("no V4L2: no USB cameras on Linux")
    return {
        "usable": True,
        "version": cv2.__version__,
        "path": str(Path(cv2.__file__).parent),
        **features,
        "reason": "; ".join(missing) or "everything is in it",
    }


def _gstreamer() -> Report:
    try:
        from tatok_edge import gstreamer
    except ImportError as error:  # OpenCV is missing, which has its own line
        return {"usable": False, "reason": " ".join(str(error).split()), "jetson_camera": False}
    usable, reason = gstreamer.find()
    camera = usable and all(map(gstreamer.has_element, ("nvarguscamerasrc", "nvvidconv")))
    if usable:
        reason += ", with the CSI cameras of a Jetson" if camera else "; no CSI cameras: this is no Jetson"
    return {"usable": usable, "reason": reason, "jetson_camera": camera}


def _cpu() -> Report:
    machine = platform.machine()
    machine = {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    flags_line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    name_line = re.search(r"^(?:model name|Model)\s*:(.*)$", text, re.MULTILINE)
    flags = set(flags_line.group(1).split()) if flags_line else None
    known = CPU_FEATURES.get(machine, ())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": machine,
        "model": name_line.group(1).strip() if name_line else platform.processor() or None,
        "cores": cores,
        "features": None if flags is None else [feature for feature in known if feature in flags],
        "missing": None if flags is None else [feature for feature in known if feature not in flags],
    }


def _cameras() -> list[Report]:
    try:
        from tatok_edge.sources import find_cameras
    except ImportError:  # OpenCV is missing, which has its own line
        return []
    return [{"path": path, "name": name, "readable": os.access(path, os.R_OK)} for path, name in find_cameras()]


def _models() -> list[Report]:
    from tatok_edge.bundle import list_models

    return [_model(name) for name in list_models()]


def _model(name: str) -> Report:
    from tatok_edge.bundle import open_bundle
    from tatok_edge.errors import TaTokError

    try:
        bundle = open_bundle(name)
        for entry in bundle.manifest["files"]:
            bundle.read(entry)
    except TaTokError as error:
        return {"name": name, "usable": False, "reason": str(error)}
    return {"name": name, "usable": True, "tag": bundle.tag.hex(), "reason": "all hashes verified"}


def _text(report: Report) -> str:
    versions, cpu, opencv = report["versions"], report["cpu"], report["opencv"]
    features = "unknown" if cpu["features"] is None else " ".join(cpu["features"]) or "none of those that matter"
    if cpu["missing"]:
        features += f" (not: {' '.join(cpu['missing'])})"
    lines = [
        f"tatok-edge  {versions['tatok_edge']}, Python {versions['python']}, {versions['platform']}",
        f"cpu         {cpu['model'] or cpu['machine']}, {cpu['cores']} cores",
        f"            {features}",
        f"numpy       {versions['numpy']}",
        _line("kernels", report["kernels"]),
        _line(f"opencv {opencv['version']}" if opencv["usable"] else "opencv", opencv),
        _line("gstreamer", report["gstreamer"]),
        "backends",
        *(f"  {_line(backend['name'], backend)}" for backend in report["backends"]),
        "models" if report["models"] else "models      none found: reinstall the package",
        *(f"  {_line(model['name'], model)}" for model in report["models"]),
        "cameras" if report["cameras"] else "cameras     none found",
    ]
    for camera in report["cameras"]:
        access = "" if camera["readable"] else " (no permission: join the group 'video')"
        lines.append(f"  {camera['path']}  {camera['name']}{access}")
    lines.append("ready" if report["ok"] else "not ready: something marked 'no' above is needed to tokenize frames")
    return "\n".join(lines)


def _line(name: str, part: Report) -> str:
    return f"{name:<18}{'yes' if part['usable'] else 'no '}  {part['reason']}"
