"""The TensorRT plugin ``TaTokDTF`` in C++ and in Python: building, finding and loading it.

    python -m tatok_edge.runtime.tensorrt.plugin build

The C++ plugin needs TensorRT's headers, which come with JetPack and the TensorRT packages but are in no wheel. Without
headers, the plugin in Python launches the same compiled kernel (:mod:`tatok_edge.runtime.cuda.kernels`). Both plugins
have the same name, version, namespace, fields and outputs, so engines built with one run with the other.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tatok_edge.errors import BackendError, InputError
from tatok_edge.files import put_in_place
from tatok_edge.runtime.cuda import kernels as cuda_kernels
from tatok_edge.runtime.cuda.kernels import DtfLimits, Kernels, Scores
from tatok_edge.runtime.library_command import library_parser, run_library_command
from tatok_edge.runtime.tensorrt.flavour import Flavour, load_plugins, prepare_plugins

PLUGIN_NAME, PLUGIN_VERSION, NAMESPACE = "TaTokDTF", "1", "tatok"
FIELDS = ("tau_q30", "min_tokens", "max_tokens", "floor_q16")
"""Integers: ``tau`` with 30 and ``floor_bits`` with 16 fractional bits, because ONNX attributes would round the
caller's doubles to float32."""
SOURCE = cuda_kernels.FOLDER / "tensorrt" / "cpp"
LIBRARY_VARIABLE = "TATOK_TENSORRT_PLUGIN"
"""Environment variable with the path of the library to load."""
HEADER_FOLDERS = (
    Path("/usr/include/aarch64-linux-gnu"),
    Path("/usr/include/x86_64-linux-gnu"),
    Path("/usr/local/tensorrt/include"),
)

PluginForm = Literal["library", "python"]


@dataclass(frozen=True, slots=True)
class RegisteredPlugin:
    """A plugin that is registered with a TensorRT."""

    kind: PluginForm
    """``"library"`` for the plugin in C++, or ``"python"``."""
    path: Path | None
    """The library with the kernel: the plugin itself, or the CUDA kernels; None if engines can only be built, because
    no kernel is installed."""
    sha256: str | None
    """Hash of that file; engine manifests record it."""
    version: str = PLUGIN_VERSION


def plugin_attributes(limits: DtfLimits) -> dict[str, int]:
    """The attributes of the ONNX node, and the fields of the plugin."""
    return dict(zip(FIELDS, (limits.share, limits.min_tokens, limits.max_tokens, limits.floor_score), strict=True))


def sha256_of(path: Path) -> str:
    """Hash of a library.

    Raises:
        BackendError: the library cannot be read.
    """
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BackendError(f"cannot read the plugin library {path}: {error.strerror}") from error


# --- finding and loading --------------------------------------------------------------------------


def find_library() -> Path | None:
    """The C++ plugin: the file that :data:`LIBRARY_VARIABLE` names, one in the package, or the newest one built here.

    Raises:
        BackendError: the variable names no file.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    if named:
        if not Path(named).is_file():
            raise BackendError(f"{LIBRARY_VARIABLE} names {named}, which is no file; {_HOW_TO_BUILD}")
        return Path(named)
    shipped = SOURCE / "tatok_dtf_plugin.so"
    if shipped.is_file():
        return shipped
    built = cuda_kernels.cache_folder().glob(f"tatok_dtf_plugin-{_source_tag()}-*.so")
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


_lock = threading.Lock()
_registered: dict[str, tuple[RegisteredPlugin, object]] = {}  # by module; the registry does not keep creators alive


def register(flavour: Flavour, *, kind: PluginForm | None = None, library: Path | None = None) -> RegisteredPlugin:
    """Register the plugin with TensorRT, once per process; later calls return the registered plugin.

    Args:
        flavour: The TensorRT that is used.
        kind: ``"library"`` or ``"python"``; by default the library if there is one.
        library: The C++ plugin to load instead of the one that :func:`find_library` finds.

    Raises:
        BackendError: the library is missing or refused, or the other form was registered before.
    """
    with _lock:
        key = flavour.api.__name__ if hasattr(flavour.api, "__name__") else flavour.name
        if key in _registered:
            plugin = _registered[key][0]
            if kind not in (None, plugin.kind) or (library is not None and library != plugin.path):
                raise BackendError(
                    f"{flavour.title} has the plugin {PLUGIN_NAME} from {plugin.path or 'Python'} in this process, and "
                    f"it cannot be replaced by {library or kind}: start another process"
                )
            return plugin
        if kind != "python":
            path = library or find_library()
            if path is not None:
                load_plugins(flavour, path)
                plugin = RegisteredPlugin("library", path, sha256_of(path))
                _registered[key] = (plugin, None)
                return plugin
            if kind == "library":
                raise BackendError(f"there is no C++ plugin {PLUGIN_NAME}; {_HOW_TO_BUILD}, or take the one in Python")
        plugin, creator = _register_python(flavour)
        _registered[key] = (plugin, creator)
        return plugin


def _register_python(flavour: Flavour) -> tuple[RegisteredPlugin, object]:
    prepare_plugins(flavour)
    api: Any = flavour.api
    registry = api.get_plugin_registry()
    if registry is None:
        raise BackendError(f"{flavour.title} has no plugin registry: there is no usable NVIDIA driver; see nvidia-smi")
    try:
        kernels: Kernels | None = cuda_kernels.load()
    except BackendError:
        kernels = None  # engines can be built without the kernel, but not run
    creator = make_creator(api, kernels)
    if not registry.register_creator(creator, NAMESPACE):
        raise BackendError(f"{flavour.title} refuses the plugin {PLUGIN_NAME}: another one of that name is registered")
    return RegisteredPlugin("python", kernels.path if kernels else None, kernels.sha256 if kernels else None), creator


# --- the plugin in Python -------------------------------------------------------------------------


def make_creator(api: Any, kernels: Kernels | None) -> Any:
    """A creator of the plugin in Python.

    Args:
        api: The module ``tensorrt`` or ``tensorrt_rtx``.
        kernels: The CUDA kernels to launch; None for a plugin that can be built into engines, but not run.
    """
    plugin = _plugin_class(api, kernels)

    class DtfCreator(api.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = PLUGIN_NAME, PLUGIN_VERSION, NAMESPACE
            none = np.array([], np.int32)
            self.field_names = api.PluginFieldCollection(
                [api.PluginField(name, none, api.PluginFieldType.INT32) for name in FIELDS]
            )

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return plugin(limits_of_fields(name, {field.name: field.data for field in fields}))

    return DtfCreator()


def _plugin_class(api: Any, kernels: Kernels | None) -> Any:
    """The class of the plugin. Its base classes are TensorRT's, so it is made after TensorRT is imported."""
    alive: list[object] = []  # TensorRT 10.3 crashes where Python frees a plugin; an engine has a few small ones
    bases: Any = (api.IPluginV3, api.IPluginV3OneCore, api.IPluginV3OneBuild, api.IPluginV3OneRuntime)

    class DtfPlugin(*bases):  # type: ignore[misc]
        def __init__(self, limits: DtfLimits) -> None:
            for base in bases:
                base.__init__(self)
            alive.append(self)
            self.limits = limits
            self.plugin_name, self.plugin_version, self.plugin_namespace = PLUGIN_NAME, PLUGIN_VERSION, NAMESPACE
            self.num_outputs = 3
            # Kept, because TensorRT reads the values through the fields.
            self._values = [np.array([value], np.int32) for value in plugin_attributes(limits).values()]

        def get_capability_interface(self, type: Any) -> Any:
            return self

        def clone(self) -> Any:
            return DtfPlugin(self.limits)

        def get_output_data_types(self, input_types: Any) -> Any:
            return [api.DataType.INT32] * self.num_outputs

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> Any:
            images, patches, depth = (inputs[0][axis] for axis in range(3))
            tokens = expr_builder.operation(api.DimensionOperation.PROD, patches, depth)
            shapes = [api.DimsExprs(2), api.DimsExprs(2), api.DimsExprs(1)]
            for shape in shapes:
                shape[0] = images
            shapes[0][1] = shapes[1][1] = tokens
            return shapes

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            tensor = in_out[pos].desc
            if tensor.format != api.TensorFormat.LINEAR:
                return False
            if pos == 0:
                return tensor.type in (api.DataType.FLOAT, api.DataType.HALF)
            return bool(tensor.type == api.DataType.INT32)

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            pass

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            _, patches, depth = inputs[0].dims
            if patches > cuda_kernels.MAX_PATCHES or not 1 <= depth <= cuda_kernels.MAX_DEPTH:
                raise InputError(
                    f"{PLUGIN_NAME} takes scores (B, N, K) with N up to {cuda_kernels.MAX_PATCHES} and K from 1 to "
                    f"{cuda_kernels.MAX_DEPTH}, got {tuple(inputs[0].dims)}"
                )

        def set_tactic(self, tactic: int) -> None:
            pass

        def get_fields_to_serialize(self) -> Any:
            fields = zip(FIELDS, self._values, strict=True)
            return api.PluginFieldCollection(
                [api.PluginField(name, value, api.PluginFieldType.INT32) for name, value in fields]
            )

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            if kernels is None:
                raise BackendError(f"{PLUGIN_NAME} has no kernel: {cuda_kernels.HOW_TO_BUILD}")
            half = input_desc[0].type == api.DataType.HALF
            scores = Scores.packed(inputs[0], *input_desc[0].dims, half=half)
            kernels.dtf(scores, self.limits, *outputs, stream=stream)

    return DtfPlugin


def limits_of_fields(node: str, fields: dict[str, Any]) -> DtfLimits:
    """The limits in the fields of a node; missing fields get their defaults.

    Raises:
        InputError: a field that is no integer in range.
    """
    values = plugin_attributes(DtfLimits.make())
    for name in FIELDS:
        if name not in fields:
            continue
        data = np.asarray(fields[name])
        if data.size != 1 or data.dtype.kind != "i":
            raise InputError(f"{PLUGIN_NAME} {node}: {name} must be one integer, got {data.dtype} {data.shape}")
        values[name] = int(data.reshape(()))
    share, low, high, floor = values.values()
    if not (1 <= share <= 1 << 30 and 0 <= low <= high < 1 << 31 and 0 <= floor < 1 << 31):
        raise InputError(
            f"{PLUGIN_NAME} {node}: out of range: {values}; allowed are tau_q30 1 to 2^30, "
            "0 <= min_tokens <= max_tokens, floor_q16 >= 0"
        )
    return DtfLimits(share, low, high, floor)


# --- building the C++ plugin ----------------------------------------------------------------------

_HOW_TO_BUILD = (
    "build it: python -m tatok_edge.runtime.tensorrt.plugin build (needs TensorRT's headers, cmake and nvcc)"
)


def _source_tag() -> str:
    digest = hashlib.sha256(cuda_kernels.source_tag().encode())
    for name in ("tatok_dtf_plugin.cpp", "CMakeLists.txt"):
        digest.update((SOURCE / name).read_bytes())
    return digest.hexdigest()[:16]


def find_headers() -> Path | None:
    """The folder with TensorRT's headers: under ``TENSORRT_ROOT``, or where JetPack and the packages put them."""
    root = os.environ.get("TENSORRT_ROOT")
    folders = ([Path(root) / "include", Path(root)] if root else []) + list(HEADER_FOLDERS)
    return next((folder for folder in folders if (folder / "NvInferRuntime.h").is_file()), None)


def build(headers: Path | None = None, out: Path | None = None, sms: Sequence[str] | None = None) -> Path:
    """Compile the C++ plugin with CMake.

    Args:
        headers: Folder of TensorRT's headers; by default the one that :func:`find_headers` finds.
        out: File to write; by default one in the user's cache directory, where :func:`find_library` looks.
        sms: GPU architectures such as ``"8.7"``; by default those of the product that nvcc has.

    Raises:
        InputError: an architecture that nvcc does not have.
        BackendError: no headers, cmake or nvcc, a failed compilation, or a folder that cannot be written.
    """
    headers = headers or find_headers()
    if headers is None or not (headers / "NvInferRuntime.h").is_file():
        raise BackendError(
            f"no NvInferRuntime.h in {headers or ', '.join(map(str, HEADER_FOLDERS))}: install TensorRT's headers "
            "(sudo apt install libnvinfer-headers-dev), or pass their folder (--headers)"
        )
    cmake = shutil.which("cmake")
    if cmake is None:
        raise BackendError("cmake is not on the path: pip install cmake, or sudo apt install cmake")
    nvcc = cuda_kernels.find_nvcc()
    chosen = cuda_kernels.choose_sms(nvcc, sms)
    codes = [sm.replace(".", "") for sm in chosen]
    if out is None:
        out = cuda_kernels.cache_folder() / f"tatok_dtf_plugin-{_source_tag()}-sm{'-'.join(codes)}.so"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=out.parent) as folder:
            configure = [cmake, "-S", str(SOURCE), "-B", folder, f"-DTENSORRT_INCLUDE_DIR={headers}"]
            configure += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(codes)}"]
            for command in (configure, [cmake, "--build", folder]):
                result = subprocess.run(command, capture_output=True, text=True, check=False)
                if result.returncode:
                    lines = (result.stdout + result.stderr).strip().splitlines()
                    first = next((line for line in lines if "rror" in line), lines[-1] if lines else "no message")
                    raise BackendError(f"{' '.join(command[:2])} failed for the plugin: {first.strip()}")
            put_in_place(Path(folder) / "tatok_dtf_plugin.so", out)
    except OSError as error:
        raise BackendError(f"cannot write {out}: {error.strerror or error}; pass another file (--out)") from error
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser, building = library_parser(
        "tatok_edge.runtime.tensorrt.plugin",
        "Build or find the TensorRT plugin TaTokDTF.",
        build="compile the C++ plugin with CMake and nvcc",
        find="print the library that would be loaded, and its hash",
        sm="GPU architectures, such as 8.7,8.9 (default: those of the product)",
    )
    building.add_argument(
        "--headers", type=Path, help="folder of TensorRT's headers (default: where packages put them)"
    )
    return run_library_command(
        parser,
        arguments,
        build=lambda options: build(options.headers, options.out, cuda_kernels.parse_sms(options.sm)),
        find=_found,
        note="compiling the plugin and its kernel; this takes a minute or two",
    )


def _found() -> str:
    """The library that would be loaded, and its hash."""
    path = find_library()
    if path is None:
        raise BackendError(f"there is no C++ plugin {PLUGIN_NAME}; {_HOW_TO_BUILD}")
    return f"{path} sha256 {sha256_of(path)}"


if __name__ == "__main__":
    sys.exit(main())
