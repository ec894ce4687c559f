"""``tatok doctor``: the parts that can run on this machine, and what the others miss.

It opens no camera, builds no engine and loads none. A machine without an NVIDIA GPU is healthy: parts that only a GPU
needs are then reported as not needed.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tatok_edge.cli.report import Report, print_json
from tatok_edge.runtime.cores import usable_cores
from tatok_edge.runtime.nvidia import driver_library
from tatok_edge.runtime.tensorrt.flavour import FLAVOURS, FlavourFacts, flavour_title

if TYPE_CHECKING:
    from tatok_edge.model.bundle import Bundle
    from tatok_edge.runtime.tensorrt.manifest import EngineManifest

CPU_FEATURES = {
    "x86_64": ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"),
    "aarch64": ("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
}
"""Instruction sets that decide how fast the networks run, as Linux names them."""

ROOT = Path("/")
"""Where the system's files are."""
NOT_NEEDED = "not needed without an NVIDIA GPU"
_COMPUTE_MAJOR, _COMPUTE_MINOR, _INTEGRATED = 75, 76, 18  # CUdevice_attribute
_IN_CONTAINER = "in a container, start it with --gpus all (on a Jetson: --runtime nvidia)"


EXAMPLES = (
    "tatok doctor",
    "tatok doctor --json",
    "tatok doctor --debug",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines no options besides those of every command."""


def run(args: argparse.Namespace) -> int:
    """Prints the report.

    Returns:
        0 if this machine can tokenize frames, 1 if a part that this needs is missing.
    """
    report = examine()
    if args.json:
        print_json(report)
    else:
        print(_text(report))
    return 0 if report["ok"] else 1


def examine() -> Report:
    """Everything that ``tatok doctor`` reports, as JSON-compatible values."""
    opencv = _opencv()
    models = _models()
    kernels = _kernels()
    nvidia = _nvidia()
    flavours: dict[str, Report] = {name: _flavour(facts, nvidia) for name, facts in FLAVOURS.items()}
    memory = _device_memory(nvidia)
    engines = _engines(nvidia, flavours)
    onnxruntime = _onnxruntime()
    backends = [onnxruntime]
    backends += [_tensorrt(facts, nvidia, memory, flavours[name], engines) for name, facts in FLAVOURS.items()]
    ok = onnxruntime["usable"] and opencv["usable"] and kernels["usable"] and any(model["usable"] for model in models)
    return {
        "ok": ok,
        "versions": _versions(),
        "cpu": _cpu(),
        "kernels": kernels,
        "backends": backends,
        "nvidia": nvidia,
        "device_memory": memory,
        "cuda_kernels": _cuda_kernels(nvidia),
        "tensorrt": [flavours[name] for name in FLAVOURS],
        "plugin": _plugin(nvidia),
        "engines": engines,
        "opencv": opencv,
        "pyav": _pyav(),
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
    module, reason = _import("tatok_edge.runtime.cpu.kernels")
    if module is None:
        return {"usable": False, "reason": f"{reason}; install the package with a C++ compiler at hand"}
    return {"usable": True, "reason": Path(module.__file__).name}


def _onnxruntime() -> Report:
    ort, reason = _import("onnxruntime")
    if ort is None:
        return _backend("onnxruntime", False, f"{reason}; pip install onnxruntime")
    return _backend("onnxruntime", True, f"{ort.__version__}, on the CPU")


def _tensorrt(
    facts: FlavourFacts, nvidia: Report, memory: Report, flavour: Report, engines: Sequence[Report]
) -> Report:
    """Whether a flavour of TensorRT can run a model here, or the first thing that is missing."""
    for part in (nvidia, memory, flavour):
        if not part["usable"]:
            return _backend(facts.backend, False, part["reason"])
    fitting = [one for one in engines if one["usable"] and one["flavour"] == facts.name]
    if not fitting:
        return _backend(facts.backend, False, "no engines for this GPU: tatok build tatok-s8 --flavour " + facts.name)
    models = ", ".join(dict.fromkeys(one["model"] for one in fitting))
    return _backend(facts.backend, True, f"{flavour['reason']}, with engines of {models}")


def _backend(name: str, usable: bool, reason: str) -> Report:
    return {"name": name, "usable": usable, "reason": reason}


# --- GPU ------------------------------------------------------------------------------------------


def _driver() -> Any:
    """The driver's library; None without one."""
    try:
        return driver_library()
    except OSError:
        return None


def _nvidia() -> Report:
    """The driver, its GPUs and the board; asks the driver only, and makes no context."""
    jetson = _jetson()
    report: Report = {"usable": False, "cuda": None, "driver": _driver_version(), "gpus": [], "jetson": jetson}
    cuda = _driver()
    if cuda is None:
        reason = "no NVIDIA driver: CPU backend"
        if jetson is not None:
            reason = f"no NVIDIA driver, although this is a {jetson['model']}: flash JetPack again; {_IN_CONTAINER}"
        return report | {"reason": reason}
    number, device = ctypes.c_int(), ctypes.c_int()
    if status := cuda.cuInit(0):
        hint = f"see nvidia-smi, reboot after an update of the driver; {_IN_CONTAINER}"
        return report | {"reason": f"the NVIDIA driver does not start (cuInit: error {status}): {hint}"}
    if not cuda.cuDriverGetVersion(ctypes.byref(number)):
        report["cuda"] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    if cuda.cuDeviceGetCount(ctypes.byref(number)) or not number.value:
        return report | {"reason": f"the NVIDIA driver finds no GPU: CPU backend; {_IN_CONTAINER}"}
    for index in range(number.value):
        if not cuda.cuDeviceGet(ctypes.byref(device), index):
            report["gpus"].append(_gpu(cuda, device))
    if not report["gpus"]:
        return report | {"reason": "the NVIDIA driver does not open its GPU: see nvidia-smi"}
    first = report["gpus"][0]
    more = f" and {len(report['gpus']) - 1} more" if len(report["gpus"]) > 1 else ""
    memory = f"{first['memory_bytes'] / 1e9:.1f} GB{' shared with the CPU' if first['integrated'] else ''}"
    reason = f"{first['name']}, SM {first['sm']}, {memory}{more}; driver for CUDA {report['cuda']}"
    if jetson is not None and not jetson["supported"]:
        reason += f"; {jetson['jetpack']} is too old: flash JetPack 6.1 or newer, for TensorRT 10.3"
    return report | {"usable": True, "reason": reason}


def _gpu(cuda: Any, device: ctypes.c_int) -> Report:
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    return {
        "name": name.value.decode(errors="replace"),
        "sm": f"{attribute(_COMPUTE_MAJOR)}.{attribute(_COMPUTE_MINOR)}",
        "memory_bytes": memory.value,
        "integrated": bool(attribute(_INTEGRATED)),
    }


def _driver_version() -> str | None:
    """Version of the driver's kernel module, such as 550.54."""
    return _system_text("sys/module/nvidia/version") or None


def _jetson() -> Report | None:
    """Model and release of a Jetson; None elsewhere."""
    release = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _system_text("etc/nv_tegra_release"))
    model = _system_text("proc/device-tree/model")
    if release is None and "jetson" not in model.lower():
        return None
    l4t = None if release is None else f"{release[1]}.{release[2]}"
    major = 0 if release is None else int(release[1])
    # Releases 36 are JetPack 6, those from 38 on JetPack 7; 35 was JetPack 5.
    jetpack = None if not major else f"JetPack {7 if major >= 38 else major - 30}"
    return {"model": model or "Jetson", "l4t": l4t, "jetpack": jetpack, "supported": not 0 < major < 36}


def _system_text(path: str) -> str:
    try:
        return (ROOT / path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _device_memory(nvidia: Report) -> Report:
    """What manages device memory and streams: cuda-bindings, or pycuda."""
    bindings, pycuda = _installed("cuda-bindings"), _installed("pycuda")
    major = bindings.split(".")[0] if bindings else None
    driver = nvidia["cuda"].split(".")[0] if nvidia["cuda"] else None
    hint = f"pip install 'cuda-bindings=={driver}.*'" if driver else "pip install 'tatok-edge[tensorrt]'"
    if major is not None and (driver is None or int(major) <= int(driver)):
        return {"usable": True, "reason": f"cuda-bindings {bindings}"}
    if pycuda:
        return {"usable": True, "reason": f"pycuda {pycuda}"}
    if bindings:
        text = f"cuda-bindings {bindings} need a driver for CUDA {major}, this one is for {nvidia['cuda']}: {hint}"
        return {"usable": False, "reason": text}
    return {"usable": False, "reason": f"neither cuda-bindings nor pycuda: {hint}" if nvidia["usable"] else NOT_NEEDED}


def _cuda_kernels(nvidia: Report) -> Report:
    """The compiled CUDA kernels, which prepare frames on the GPU."""
    from tatok_edge.errors import BackendError
    from tatok_edge.runtime.cuda import kernels as cuda_kernels

    try:
        return {"usable": True, "reason": str(cuda_kernels.find_library())}
    except BackendError as error:
        sm = f" --sm {nvidia['gpus'][0]['sm']}" if nvidia["gpus"] else ""
        text = f"{error}{sm}; without them frames are prepared on the CPU" if nvidia["usable"] else NOT_NEEDED
        return {"usable": False, "reason": text}


def _flavour(facts: FlavourFacts, nvidia: Report) -> Report:
    """A TensorRT, by whether it can be imported."""
    from tatok_edge.errors import BackendError
    from tatok_edge.runtime.tensorrt.flavour import find_flavour

    report: Report = {"name": facts.backend, "version": None}
    try:
        found = find_flavour(facts.name)
    except BackendError as error:
        if not nvidia["usable"] and "is not installed" in str(error):
            return report | {"usable": False, "reason": NOT_NEEDED}
        return report | {"usable": False, "reason": str(error)}
    where = (
        "" if nvidia["usable"] else "; runs nothing without a GPU" + (", but builds" if facts.builds_for_others else "")
    )
    return report | {"usable": True, "version": found.version, "reason": f"{found.title} in {found.location}{where}"}


def _plugin(nvidia: Report) -> Report:
    """The TensorRT plugin for token filtering, which engines built with --dtf plugin need."""
    from tatok_edge.errors import BackendError
    from tatok_edge.runtime.tensorrt import plugin as tensorrt_plugin

    try:
        path = tensorrt_plugin.find_library()
        if path is not None:
            return {"usable": True, "reason": f"{path}, SHA-256 {tensorrt_plugin.sha256_of(path)[:12]}..."}
    except BackendError as error:
        return {"usable": False, "reason": str(error)}
    how = "not built; only engines of 'tatok build --dtf plugin' need it, and the plugin in Python replaces it"
    return {
        "usable": False,
        "reason": f"{how}: python -m tatok_edge.runtime.tensorrt.plugin build" if nvidia["usable"] else NOT_NEEDED,
    }


def _engines(nvidia: Report, flavours: Mapping[str, Report]) -> list[Report]:
    """Every set of engines of the shipped models in the cache, and whether it fits this machine."""
    from tatok_edge.errors import TaTokError
    from tatok_edge.model.bundle import list_models, open_bundle
    from tatok_edge.runtime.tensorrt.manifest import EngineMismatch, read_manifest
    from tatok_edge.runtime.tensorrt.store import cache_folder

    folder = cache_folder()
    manifests = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            manifests.append(read_manifest(path))
        except EngineMismatch:
            continue  # a record of 'tatok verify', or not ours
    reports = []
    for name in list_models():
        try:
            bundle = open_bundle(name)
        except TaTokError:
            continue  # has its own line
        sets: dict[tuple[object, ...], dict[str, EngineManifest]] = {}
        for manifest in manifests:
            if manifest.model == bundle.name:
                key = (manifest.tag, manifest.precision, manifest.flavour, manifest.version, manifest.sms)
                sets.setdefault((*key, manifest.profile_set), {})[manifest.graph] = manifest
        reports += [_engine_set(bundle, folder, graphs, nvidia, flavours) for graphs in sets.values()]
        if not sets:
            text = f"none in {folder}: tatok build {name}" if nvidia["usable"] else NOT_NEEDED
            reports.append({"model": name, "flavour": None, "usable": False, "verified": False, "reason": text})
    return reports


def _engine_set(
    bundle: Bundle,
    folder: Path,
    manifests: Mapping[str, EngineManifest],
    nvidia: Report,
    flavours: Mapping[str, Report],
) -> Report:
    """Whether the engines that were built together can run here."""
    from tatok_edge.export.engines.record import is_verified
    from tatok_edge.model.bundle import GRAPHS
    from tatok_edge.runtime.tensorrt.choice import EngineSet, EngineTarget, check_manifest
    from tatok_edge.runtime.tensorrt.manifest import EngineMismatch, build_command
    from tatok_edge.runtime.tensorrt.store import read_engine

    first = next(iter(manifests.values()))
    flavour = flavours.get(first.flavour)
    version = flavour["version"] if flavour else None
    title = flavour_title(first.flavour)
    what = f"{first.precision}, {title} {first.version}, SM {', '.join(first.sms)}"
    report: Report = {
        "model": bundle.name,
        "flavour": first.flavour,
        "precision": first.precision,
        "version": first.version,
        "sms": list(first.sms),
        "folder": str(folder),
        "graphs": sorted(manifests),
        "verified": False,
    }
    missing = [graph for graph in GRAPHS if graph not in manifests]
    if missing:
        again = build_command(bundle.name, first)
        return report | {"usable": False, "reason": f"{what}: {', '.join(missing)} missing: {again}"}
    try:
        for graph in GRAPHS:
            manifest = manifests[graph]
            found = EngineTarget(
                bundle.name,
                bundle.manifest["files"][graph]["sha256"],
                first.flavour,
                version or first.version,
                nvidia["gpus"][0]["sm"] if nvidia["gpus"] else first.sms[0],
            )
            check_manifest(manifest, found)
            read_engine(folder / manifest.file, manifest)
    except EngineMismatch as error:
        return report | {"usable": False, "reason": f"{what}: {error}"}
    report["verified"] = is_verified(EngineSet(folder, {graph: manifests[graph] for graph in GRAPHS}))
    if not nvidia["usable"] or version is None:
        here = f"no {title} here" if nvidia["usable"] else "no GPU to run them"
        return report | {"usable": False, "reason": f"{what}: complete, for this model; {here}"}
    if not report["verified"]:
        return report | {"usable": True, "reason": f"{what}: not verified: tatok verify {bundle.name}"}
    return report | {"usable": True, "reason": f"{what}: verified"}


# --- pictures -------------------------------------------------------------------------------------


def _opencv() -> Report:
    cv2, reason = _import("cv2")
    if cv2 is None:
        hint = "pip install opencv-python-headless (on a Jetson keep JetPack's: apt install python3-opencv)"
        if "numpy" in reason.lower() or "_ARRAY_API" in reason:  # JetPack's OpenCV was compiled for NumPy 1
            hint = "pip install 'numpy<2', which this OpenCV was compiled for"
        return {"usable": False, "reason": f"{reason}; {hint}"}
    build = cv2.getBuildInformation()

    def has(feature: str) -> bool:
        return re.search(rf"^\s*{feature}:\s+YES", build, re.MULTILINE) is not None

    features = {"gstreamer": has("GStreamer"), "v4l2": has("v4l/v4l2")}
    missing = []
    if not features["v4l2"]:
        missing.append("no V4L2: no USB cameras on Linux")
    if not features["gstreamer"]:
        text = "built without GStreamer (pipelines use python3-gi)"
        if _jetson() is not None:
            text += "; JetPack's has it: pip uninstall opencv-python opencv-python-headless"
        missing.append(text)
    return {
        "usable": True,
        "version": cv2.__version__,
        "path": str(Path(cv2.__file__).parent),
        **features,
        "reason": "; ".join(missing) or "all features are built in",
    }


def _pyav() -> Report:
    """PyAV, which reads and writes videos; the rest works without it."""
    av, reason = _import("av")
    if av is None:
        return {
            "usable": False,
            "version": None,
            "reason": f"{reason}; no videos and network streams: pip install 'av<19'",
        }
    libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
    h264 = "libx264" in av.codecs_available
    found = "writes H.264" if h264 else "no H.264 encoder (libx264): videos are written as MPEG-4 Part 2"
    shown = ", ".join(f"{name} {libraries[name]}" for name in ("libavcodec", "libavformat") if name in libraries)
    return {
        "usable": True,
        "version": av.__version__,
        "libraries": libraries,
        "h264": h264,
        "reason": f"{shown}; {found}",
    }


def _gstreamer() -> Report:
    try:
        from tatok_edge.sources import gstreamer
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
    return {
        "machine": machine,
        "model": name_line.group(1).strip() if name_line else platform.processor() or None,
        "cores": usable_cores(),
        "features": None if flags is None else [feature for feature in known if feature in flags],
        "missing": None if flags is None else [feature for feature in known if feature not in flags],
    }


def _cameras() -> list[Report]:
    try:
        from tatok_edge.sources.camera import find_cameras
    except ImportError:  # OpenCV is missing, which has its own line
        return []
    return [{"path": path, "name": name, "readable": os.access(path, os.R_OK)} for path, name in find_cameras()]


def _models() -> list[Report]:
    from tatok_edge.model.bundle import list_models

    return [_model(name) for name in list_models()]


def _model(name: str) -> Report:
    from tatok_edge.errors import TaTokError
    from tatok_edge.model.bundle import open_bundle

    try:
        bundle = open_bundle(name)
        for entry in bundle.manifest["files"]:
            bundle.read(entry)
    except TaTokError as error:
        return {"name": name, "usable": False, "reason": str(error)}
    return {"name": name, "usable": True, "tag": bundle.tag.hex(), "reason": "all hashes verified"}


def _text(report: Report) -> str:
    versions, cpu, opencv = report["versions"], report["cpu"], report["opencv"]
    features = "unknown" if cpu["features"] is None else " ".join(cpu["features"]) or "none that speeds up the networks"
    if cpu["missing"]:
        features += f" (not: {' '.join(cpu['missing'])})"
    lines = [
        f"tatok-edge  {versions['tatok_edge']}, Python {versions['python']}, {versions['platform']}",
        f"cpu         {cpu['model'] or cpu['machine']}, {cpu['cores']} cores",
        f"            {features}",
        f"numpy       {versions['numpy']}",
        _line("kernels", report["kernels"]),
        _line(f"opencv {opencv['version']}" if opencv["usable"] else "opencv", opencv),
        _line(f"pyav {report['pyav']['version']}" if report["pyav"]["usable"] else "pyav", report["pyav"]),
        _line("gstreamer", report["gstreamer"]),
        _line("nvidia", report["nvidia"]),
        *(f"            {line}" for line in _board(report["nvidia"])),
        *(_line(name, part) for name, part in _gpu_parts(report) if part["reason"] != NOT_NEEDED),
        "backends",
        *(f"  {_line(backend['name'], backend)}" for backend in report["backends"]),
        "models" if report["models"] else "models      none found: reinstall the package",
        *(f"  {_line(model['name'], model)}" for model in report["models"]),
        "cameras" if report["cameras"] else "cameras     none found",
    ]
    for camera in report["cameras"]:
        access = "" if camera["readable"] else " (no permission: join the group 'video')"
        lines.append(f"  {camera['path']}  {camera['name']}{access}")
    lines.append("ready" if report["ok"] else "not ready: a part marked 'no' above is needed to tokenize frames")
    return "\n".join(lines)


def _gpu_parts(report: Report) -> list[tuple[str, Report]]:
    return [
        ("device memory", report["device_memory"]),
        ("cuda kernels", report["cuda_kernels"]),
        *((one["name"], one) for one in report["tensorrt"]),
        ("dtf plugin", report["plugin"]),
        *((f"engines {one['model']}", one) for one in report["engines"]),
    ]


def _board(nvidia: Report) -> list[str]:
    jetson = nvidia["jetson"]
    lines = [f"{gpu['name']}, SM {gpu['sm']}" for gpu in nvidia["gpus"][1:]]
    if jetson is not None:
        lines.append(f"{jetson['model']}, {jetson['jetpack'] or 'unknown JetPack'}, L4T {jetson['l4t'] or 'unknown'}")
    return lines


def _line(name: str, part: Report) -> str:
    return f"{name:<18}{'yes' if part['usable'] else 'no '}  {part['reason']}"
