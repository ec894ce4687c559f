"""The flavours of TensorRT: ``tensorrt`` 10.3 to 11, JetPack's own, and ``tensorrt_rtx``.

This module hides the differences between the flavours; other modules read :class:`FlavourFacts`.

Nothing is imported before :func:`find_flavour` is called.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.machinery
import importlib.util
import re
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from tatok_edge.errors import BackendError, InputError, one_line
from tatok_edge.runtime.nvidia import driver_library
from tatok_edge.runtime.tensorrt.api import Api, Builder, IBuilderConfig, INetworkDefinition, OnnxParser, Runtime

FlavourName = Literal["trt", "rtx"]


@dataclass(frozen=True, slots=True)
class FlavourFacts:
    """All facts about a flavour that hold for every version."""

    name: FlavourName
    title: str
    """Name for people."""
    backend: str
    """Backend of :func:`tatok_edge.runtime.open.open_session` that runs its engines."""
    module: str
    """Python module."""
    first: tuple[int, int]
    """First version that is accepted."""
    end: tuple[int, int]
    """First newer version that is not accepted."""
    install: str
    """Command that installs it."""
    builds_for_others: bool
    """Whether it builds for GPUs of other machines."""
    times_kernels: bool
    """Whether it measures kernels when it builds, so that a timing cache makes later builds faster."""
    graphs_off: str | None
    """Why its engines are not recorded as CUDA graphs; None if they are."""
    build_bytes: int
    """Memory of the build process in bytes, without the graphs."""
    build_time: str
    """How long a build usually takes, for people."""


FLAVOURS: Mapping[FlavourName, FlavourFacts] = {
    "trt": FlavourFacts(
        name="trt",
        title="TensorRT",
        backend="tensorrt",
        module="tensorrt",
        first=(10, 3),
        end=(12, 0),
        install="pip install 'tatok-edge[tensorrt]' (on a Jetson it is a part of JetPack: apt install "
        "python3-libnvinfer)",
        builds_for_others=False,
        times_kernels=True,
        graphs_off=None,
        build_bytes=3 << 29,  # an estimate: it loads its libraries of kernels and a CUDA context
        build_time="usually one to five minutes per engine, on a small Jetson up to ten",
    ),
    "rtx": FlavourFacts(
        name="rtx",
        title="TensorRT-RTX",
        backend="tensorrt-rtx",
        module="tensorrt_rtx",
        first=(1, 2),
        end=(2, 0),
        install="pip install 'tatok-edge[rtx]' (x86 machines with an RTX GPU)",
        builds_for_others=True,
        times_kernels=False,
        graphs_off="TensorRT-RTX replaces its kernels while it runs",
        build_bytes=1 << 28,  # version 1.7 takes 240 MB for all graphs of the shipped model
        build_time="usually 2 to 10 seconds per engine",
    ),
}
"""By name, in the order in which they are tried."""


def flavour_title(name: str) -> str:
    """Name of a flavour for people; an unknown name stays as it is."""
    return next((facts.title for facts in FLAVOURS.values() if facts.name == name), name)


PORTABLE_SMS = ("8.6", "8.9", "12.0")
"""Targets of TensorRT-RTX on a machine without a GPU: Ampere, Ada and Blackwell desktops."""
SYSTEM_FOLDERS = (
    Path(f"/usr/lib/python{sys.version_info[0]}.{sys.version_info[1]}/dist-packages"),
    Path("/usr/lib/python3/dist-packages"),
)
"""Folders of JetPack's and Debian's TensorRT, which virtual environments do not see."""

_DRIVER = "no NVIDIA driver, no GPU, or a driver that is older than this TensorRT needs; see nvidia-smi"


@dataclass(frozen=True, slots=True)
class Flavour:
    """A TensorRT that can be imported."""

    name: FlavourName
    """``"trt"`` or ``"rtx"``."""
    version: str
    """Its full version; engines are for exactly this one."""
    location: Path
    """Folder that it was imported from."""
    api: Api = field(repr=False, compare=False)
    """The module."""

    @property
    def facts(self) -> FlavourFacts:
        """Facts that hold for every version."""
        return FLAVOURS[self.name]

    @property
    def title(self) -> str:
        """Name and version for people."""
        return f"{self.facts.title} {self.version}"


# --- finding it -----------------------------------------------------------------------------------


def find_flavour(wanted: str = "auto") -> Flavour:
    """The TensorRT to use: ``"trt"``, ``"rtx"``, or for ``"auto"`` the first of them that is usable.

    Raises:
        InputError: an unknown name.
        BackendError: TensorRT is not installed, cannot be imported, or has a version that is not supported.
    """
    if wanted != "auto" and wanted not in FLAVOURS:
        raise InputError(
            f"unknown TensorRT flavour {wanted!r}: 'auto', 'trt' (TensorRT) and 'rtx' (TensorRT-RTX) exist"
        )
    problems = []
    for facts in (facts for name, facts in FLAVOURS.items() if wanted in ("auto", name)):
        try:
            return _load(facts)
        except BackendError as error:
            problems.append(str(error))
    raise BackendError("; ".join(problems))


def _load(facts: FlavourFacts) -> Flavour:
    try:
        api = cast(Api, importlib.import_module(facts.module))
    except ModuleNotFoundError as error:
        if error.name != facts.module:
            raise BackendError(f"{facts.title} cannot be imported ({error}): reinstall it") from error
        api = _load_system(facts)
    except (ImportError, OSError) as error:
        raise BackendError(f"{facts.title} cannot be imported ({one_line(error)}): reinstall it") from error
    version = str(getattr(api, "__version__", ""))
    parts = re.match(r"(\d+)\.(\d+)", version)
    first, end = facts.first, facts.end
    if parts is None or not first <= (int(parts[1]), int(parts[2])) < end:
        raise BackendError(
            f"{facts.title} {version or 'without a version'} is installed; this tatok-edge takes "
            f"{first[0]}.{first[1]} up to, but not, {end[0]}.{end[1]}: install such a version"
        )
    location = Path(str(getattr(api, "__file__", "."))).resolve().parent
    return Flavour(facts.name, version, location, api)


def _load_system(facts: FlavourFacts) -> Api:
    """The system's package, imported from outside a virtual environment."""
    module = facts.module
    for folder in SYSTEM_FOLDERS:
        package = folder / module
        if not (package / "__init__.py").is_file():
            continue
        suffixes = importlib.machinery.EXTENSION_SUFFIXES
        if not any((package / f"{module}{suffix}").is_file() for suffix in suffixes):
            there = ", ".join(sorted(path.name for path in package.glob(f"{module}*.so*"))) or "no extension module"
            raise BackendError(
                f"{facts.title} in {package} is for another Python ({there}; this one needs "
                f"{sysconfig.get_config_var('EXT_SUFFIX')}): use the system's Python for the virtual environment"
            )
        spec = importlib.util.spec_from_file_location(
            module, package / "__init__.py", submodule_search_locations=[str(package)]
        )
        assert spec is not None and spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        try:
            spec.loader.exec_module(loaded)
        except (ImportError, OSError) as error:
            del sys.modules[module]
            raise BackendError(
                f"{facts.title} in {package} cannot be imported ({one_line(error)}): reinstall it"
            ) from error
        return cast(Api, loaded)
    raise BackendError(f"{facts.title} is not installed: {facts.install}")


# --- objects --------------------------------------------------------------------------------------


class Messages:
    """Errors that TensorRT reported, from any thread."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        """Errors in the order in which they came."""
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        """Keep a line, of the first hundred."""
        with self._lock:
            if len(self.problems) < 100:
                self.problems.append(one_line(text))

    def first(self, otherwise: str) -> str:
        """The first error: it causes the later ones. ``otherwise`` without an error."""
        return self.problems[0] if self.problems else otherwise


def make_logger(flavour: Flavour, messages: Messages, *, verbose: bool = False) -> object:
    """A logger of TensorRT that keeps errors in ``messages`` and, if ``verbose``, prints everything."""
    base: Any = flavour.api.ILogger

    class Log(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            # By name: the numbers are not the same in all versions.
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                messages.add(message)
            if verbose:
                print(f"{flavour.name} {severity.name.lower()}: {one_line(message)}", file=sys.stderr)

    return Log()


def make_monitor(flavour: Flavour, advance: Callable[[float], bool]) -> object:
    """A progress monitor for :attr:`IBuilderConfig.progress_monitor`.

    Args:
        flavour: The TensorRT that will call it.
        advance: Takes the finished share of the work, 0 to 1; returns False to stop. It is called from TensorRT's
            threads and must not raise.
    """
    base: Any = flavour.api.IProgressMonitor

    class Monitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self._lock = threading.Lock()
            self._phases: dict[str, tuple[str | None, int, int]] = {}
            self._share = 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self._lock:
                self._phases[phase_name] = (parent_phase, max(num_steps, 1), 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                parent, steps, _ = self._phases.get(phase_name, (None, 1, 0))
                self._phases[phase_name] = (parent, steps, min(step + 1, steps))
                share, name, seen = 0.0, phase_name, set[str]()
                while name in self._phases and name not in seen:
                    seen.add(name)
                    parent, steps, done = self._phases[name]
                    # A step of the parent phase is finished only when this phase is.
                    share = min((done + (share if share < 1 else 0)) / steps, 1.0)
                    if parent is None:
                        break
                    name = parent
                self._share = max(self._share, share)
                share = self._share
            return advance(share)

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                self._phases.pop(phase_name, None)

    return Monitor()


_Made = TypeVar("_Made")


def _make(flavour: Flavour, what: str, make: Callable[[object], _Made], logger: object, messages: Messages) -> _Made:
    """An object of TensorRT.

    Raises:
        BackendError: TensorRT gives none, as without a driver.
    """
    try:
        return make(logger)
    except (TypeError, RuntimeError) as error:
        raise BackendError(f"{flavour.title} gives no {what} ({messages.first(_DRIVER)})") from error


def make_builder(flavour: Flavour, logger: object, messages: Messages) -> Builder:
    """A builder; raises as :func:`make_runtime` does."""
    return _make(flavour, "builder", flavour.api.Builder, logger, messages)


def make_network(flavour: Flavour, builder: Builder) -> INetworkDefinition:
    """An empty strongly typed network: the ONNX file sets the precision."""
    # EXPLICIT_BATCH, the other flag of 10.x, is the only kind there is since 10.0.
    return builder.create_network(1 << int(flavour.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def make_parser(flavour: Flavour, network: INetworkDefinition, logger: object) -> OnnxParser:
    """A parser that fills ``network``."""
    try:
        return flavour.api.OnnxParser(network, logger)
    except (TypeError, RuntimeError) as error:
        raise BackendError(f"{flavour.title} gives no ONNX parser ({error}): reinstall it") from error


def make_runtime(flavour: Flavour, logger: object, messages: Messages) -> Runtime:
    """A runtime.

    Raises:
        BackendError: TensorRT gives none, as without a driver.
    """
    return _make(flavour, "runtime", flavour.api.Runtime, logger, messages)


# --- architectures --------------------------------------------------------------------------------


def gpu_architecture(device: int = 0) -> str | None:
    """The SM version of a GPU of this machine such as ``"8.7"``, or None where there is no driver or no such GPU."""
    try:
        driver = driver_library()
    except OSError:
        return None
    handle, values = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        return None
    for value, attribute in zip(values, (75, 76), strict=True):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
            return None
    return f"{values[0].value}.{values[1].value}"


def target_sms(flavour: Flavour, wanted: Sequence[str] | None, gpu: str | None) -> tuple[str, ...]:
    """The architectures to build for, ascending.

    Args:
        flavour: The TensorRT that builds.
        wanted: Architectures such as ``"8.6"``; None for this machine's GPU, and without one, for TensorRT-RTX, those
            of :data:`PORTABLE_SMS`.
        gpu: Architecture of this machine's GPU, if any.

    Raises:
        InputError: an architecture that this flavour does not build for.
        BackendError: TensorRT, which builds only for this machine's GPU, finds no GPU.
    """
    chosen = sorted(set(wanted), key=_sm_number) if wanted is not None else ([gpu] if gpu else list(PORTABLE_SMS))
    if not chosen:
        raise InputError("no GPU architecture to build for: name at least one, such as 8.6")
    if not flavour.facts.builds_for_others:
        if gpu is None:
            raise BackendError(
                f"{flavour.title} builds on the GPU that it builds for, and this machine has none that can be used: "
                f"{_DRIVER}; on a machine without a GPU, build with --flavour rtx"
            )
        if chosen != [gpu]:
            raise InputError(
                f"{flavour.title} builds for this machine's GPU, SM {gpu}, only; got {', '.join(chosen)}: run "
                "'tatok build' on the machine that will run the engine, without --sm"
            )
        return (gpu,)
    available = rtx_sms(flavour)
    for sm in chosen:
        if sm not in available:
            raise InputError(
                f"{flavour.title} does not build for SM {sm}; it does for {', '.join(available)} "
                "(Jetson and data-centre GPUs take --flavour trt)"
            )
    return tuple(chosen)


def rtx_sms(flavour: Flavour) -> tuple[str, ...]:
    """The architectures that this TensorRT-RTX knows, ascending."""
    members = getattr(getattr(flavour.api, "ComputeCapability", None), "__members__", {})
    found = [f"{name[2:-1]}.{name[-1]}" for name in members if re.fullmatch(r"SM\d{2,3}", name)]
    return tuple(sorted(found, key=_sm_number))


def set_targets(flavour: Flavour, config: IBuilderConfig, sms: Sequence[str]) -> None:
    """Build for all of ``sms``; TensorRT always builds for its own GPU.

    Raises:
        BackendError: TensorRT-RTX refuses.
    """
    if not flavour.facts.builds_for_others:
        return
    members = cast(Any, flavour.api).ComputeCapability.__members__
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        if not config.set_compute_capability(members["SM" + sm.replace(".", "")], index):
            raise BackendError(
                f"{flavour.title} refuses SM {sm} together with {', '.join(sms)}: build for one at a time"
            )


def _sm_number(sm: str) -> float:
    if not re.fullmatch(r"\d{1,2}\.\d", sm):
        raise InputError(f"GPU architectures are written like 8.6 or 12.0, got {sm!r}")
    return float(sm)


# --- plugins -------------------------------------------------------------------------------------


def prepare_plugins(flavour: Flavour) -> None:
    """Makes plugins usable: TensorRT-RTX opens its own library by a name that its wheel does not have.

    Raises:
        BackendError: the link of that name cannot be made.
    """
    if flavour.name != "rtx":
        return
    libraries = importlib.util.find_spec("tensorrt_rtx_libs")
    for folder in [Path(entry) for entry in (libraries.submodule_search_locations or ())] if libraries else []:
        link, real = folder / "libtensorrt_rtx.so", folder / "libtensorrt_rtx.so.1"
        if link.exists() or not real.exists():
            continue
        try:
            link.symlink_to(real.name)
        except FileExistsError:
            pass  # another process was faster
        except OSError as error:
            raise BackendError(
                f"{flavour.title} needs {link} for plugins, and it cannot be made ({error.strerror}): "
                f"ln -s {real.name} {link}"
            ) from error


def load_plugins(flavour: Flavour, library: Path) -> None:
    """Loads a library of plugins by its path.

    Raises:
        BackendError: the library is missing, or TensorRT refuses it.
    """
    if not library.is_file():
        raise BackendError(f"the plugin library {library} is missing: build it, or build the engines with --dtf onnx")
    prepare_plugins(flavour)
    registry = flavour.api.get_plugin_registry()
    if registry is None:
        raise BackendError(f"{flavour.title} has no plugin registry ({_DRIVER})")
    handle: object
    try:
        handle = registry.load_library(str(library))
    except (RuntimeError, TypeError, OSError) as error:
        raise BackendError(f"{flavour.title} cannot load plugins from {library}: {one_line(error)}") from error
    if handle is None:
        raise BackendError(
            f"{flavour.title} cannot load plugins from {library}: it is no plugin library for this version"
        )
