"""Engines on disk: their manifests, the cache, and what is checked before TensorRT sees a byte of them.

An engine is a file with a JSON manifest beside it. Its name carries the hash of the ONNX with its weights, the profile
set, the precision, flavour and version of TensorRT, and the GPU architectures, so engines of different models, versions
and machines live in one folder. TensorRT itself, given an engine of another version or GPU, answers with a crash or
with nothing; therefore the manifest is compared first, here, without TensorRT.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tatok_edge.errors import BackendError, InputError

FORMAT_VERSION = 1
SUFFIX = ".engine"
CACHE_VARIABLE = "TATOK_ENGINES"
"""Environment variable that names the folder of engines."""
MAX_MANIFEST_BYTES = 4 << 20
_STALE_SECONDS = 3600.0
MAX_ENGINE_BYTES = 4 << 30

Kind = Literal[
    "weights", "profile", "precision", "version", "architecture", "plugin", "truncated", "damaged", "missing"
]


class EngineMismatch(BackendError):
    """An engine that does not fit what is there."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind: Kind = kind
        """What does not fit."""


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of an input that a profile takes."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    """The one to be fast for."""
    max: tuple[int, ...]

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether ``shape`` lies between ``min`` and ``max``."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


Profile = Mapping[str, ShapeRange]
"""Ranges by input."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin library that an engine needs."""

    name: str
    version: str
    file: str | None
    """Where it was when the engine was built; None for one without a library, which can only be built with."""
    sha256: str | None
    """Hash of that file."""


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """What an engine was built from and for."""

    model: str
    """Name of the model."""
    tag: str
    """Tag of the model's content, hexadecimal."""
    graph: str
    """Name of the graph."""
    onnx_sha256: str
    """Hash of the graph in the bundle, weights included."""
    built_sha256: str
    """Hash of the graph that TensorRT was given, after conversion to ``precision``."""
    precision: str
    """``"fp32"`` or ``"fp16"``."""
    flavour: str
    """``"trt"`` or ``"rtx"``."""
    version: str
    """Full version of TensorRT."""
    sms: tuple[str, ...]
    """GPU architectures."""
    profile_set: str
    """Hash of all profiles of the set that the engine belongs to."""
    profiles: tuple[Profile, ...]
    """Optimization profiles, in the engine's order."""
    plugin: Plugin | None
    engine_bytes: int
    engine_sha256: str
    notes: Mapping[str, Any] = field(default_factory=dict)
    """For people: bucket edges and their histogram, agreement with fp32, seconds of the build."""

    @property
    def file(self) -> str:
        """Name of the engine's file."""
        model = re.sub(r"[^\w.-]", "_", self.model)
        target = f"{self.flavour}{self.version}-sm{'-'.join(sm.replace('.', '') for sm in self.sms)}"
        plugin = f"-plugin{(self.plugin.sha256 or 'any')[:8]}" if self.plugin else ""
        content = f"onnx{self.built_sha256[:16]}-profiles{self.profile_set[:8]}"
        return f"{model}.{self.graph}-{content}-{self.precision}-{target}{plugin}{SUFFIX}"

    def to_json(self) -> dict[str, Any]:
        """The manifest as it is written."""
        return {
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "tag": self.tag,
            "graph": self.graph,
            "onnx_sha256": self.onnx_sha256,
            "built_sha256": self.built_sha256,
            "precision": self.precision,
            "flavour": self.flavour,
            "version": self.version,
            "sms": list(self.sms),
            "profile_set": self.profile_set,
            "profiles": [
                {name: {"min": list(r.min), "opt": list(r.opt), "max": list(r.max)} for name, r in profile.items()}
                for profile in self.profiles
            ],
            "plugin": None
            if self.plugin is None
            else {
                "name": self.plugin.name,
                "version": self.plugin.version,
                "file": self.plugin.file,
                "sha256": self.plugin.sha256,
            },
            "engine": {"file": self.file, "bytes": self.engine_bytes, "sha256": self.engine_sha256},
            "notes": dict(self.notes),
        }


# --- reading manifests ----------------------------------------------------------------------------


def read_manifest(path: Path) -> EngineManifest:
    """The manifest of the engine at ``path`` (``….engine``), or at its own path (``….json``).

    Raises:
        EngineMismatch: there is none, or it is not one that this version understands.
    """
    path = manifest_path(path) if path.suffix == SUFFIX else path
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise EngineMismatch("damaged", f"{path}: larger than the {MAX_MANIFEST_BYTES} bytes of any manifest")
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise EngineMismatch("missing", f"{path} is missing: run 'tatok build' again") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EngineMismatch(
            "damaged", f"{path}: not a readable manifest ({error}): run 'tatok build' again"
        ) from error
    try:
        return _parse(data)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise EngineMismatch("damaged", f"{path}: not a valid manifest ({what}): run 'tatok build' again") from error


def manifest_path(engine: Path) -> Path:
    """Where the manifest of an engine is."""
    return engine.with_name(engine.name.removesuffix(SUFFIX) + ".json")


def _parse(data: Any) -> EngineManifest:
    if not isinstance(data, dict):
        raise ValueError("it must be a JSON object")
    if data["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format is {data['format_version']!r}, this version reads {FORMAT_VERSION}")
    plugin = data["plugin"]
    engine = data["engine"]
    size = engine["bytes"]
    if not isinstance(size, int) or not 0 < size <= MAX_ENGINE_BYTES:
        raise ValueError(f"the engine cannot have {size!r} bytes")
    return EngineManifest(
        model=_text(data, "model"),
        tag=_hash(data, "tag", 16),
        graph=_text(data, "graph"),
        onnx_sha256=_hash(data, "onnx_sha256"),
        built_sha256=_hash(data, "built_sha256"),
        precision=_text(data, "precision"),
        flavour=_text(data, "flavour"),
        version=_text(data, "version"),
        sms=tuple(_text({"sms": sm}, "sms") for sm in _list(data["sms"])),
        profile_set=_hash(data, "profile_set"),
        profiles=tuple(_profile(profile) for profile in _list(data["profiles"])),
        plugin=None
        if plugin is None
        else Plugin(
            _text(plugin, "name"),
            _text(plugin, "version"),
            None if plugin["file"] is None else _text(plugin, "file"),
            None if plugin["sha256"] is None else _hash(plugin, "sha256"),
        ),
        engine_bytes=size,
        engine_sha256=_hash(engine, "sha256"),
        notes=data["notes"] if isinstance(data["notes"], dict) else {},
    )


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 0 < len(value) <= 256:
        raise ValueError("a list of 1 to 256 entries is needed where there is none")
    return value


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data[key]
    if not isinstance(value, str) or not 0 < len(value) <= 4096 or not value.isprintable():
        raise ValueError(f"{key!r} must be a printable string")
    return value


def _hash(data: Mapping[str, Any], key: str, digits: int = 64) -> str:
    value = data[key]
    if not isinstance(value, str) or not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value):
        raise ValueError(f"{key!r} must be {digits} hexadecimal digits")
    return value


def _profile(data: Any) -> Profile:
    if not isinstance(data, dict) or not data:
        raise ValueError("a profile must name its inputs")
    profile = {}
    for name, shapes in data.items():
        low, best, high = (tuple(_list(shapes[key])) for key in ("min", "opt", "max"))
        if not len(low) == len(best) == len(high) or not all(
            isinstance(v, int) and 0 < v < 1 << 31 for v in (*low, *best, *high)
        ):
            raise ValueError(f"shapes of {name!r} must be positive integers, as many for min as for max")
        if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            raise ValueError(f"shapes of {name!r} must rise from min over opt to max")
        profile[name] = ShapeRange(low, best, high)
    return profile


# --- checks before deserialisation ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """What is there to run an engine with."""

    model: str
    """Name of the bundle, or its path."""
    onnx_sha256: str
    """Hash of the graph in the bundle."""
    flavour: str
    version: str
    sm: str
    """Architecture of the GPU."""
    precision: str | None = None
    """The precision that was asked for, if any."""
    profile_set: str | None = None
    """The profile set that was asked for, if any."""
    plugin_version: str | None = None
    """Version of the plugin that would be used, if there is one."""
    plugin_sha256: str | None = None
    """Hash of its library."""


def check_manifest(manifest: EngineManifest, found: Found) -> None:
    """Compares what an engine was built with to what is there.

    Raises:
        EngineMismatch: with the first difference and the command that mends it.
    """
    differences: list[tuple[Kind, str, str | None, str | None]] = [
        ("weights", "the weights", manifest.onnx_sha256, found.onnx_sha256),
        ("precision", "precision", manifest.precision, found.precision or manifest.precision),
        ("profile", "the profile set", manifest.profile_set, found.profile_set or manifest.profile_set),
        (
            "version",
            "",
            f"{_TITLES.get(manifest.flavour, manifest.flavour)} {manifest.version}",
            f"{_TITLES.get(found.flavour, found.flavour)} {found.version}",
        ),
    ]
    for kind, what, built, here in differences:
        if built != here:
            raise _mismatch(manifest, found, kind, f"{what} {_short(built)}", f"{what} {_short(here)}")
    if found.sm not in manifest.sms:
        built = f"a GPU of SM {' or '.join(manifest.sms)}"
        raise _mismatch(manifest, found, "architecture", built, f"one of SM {found.sm}", made="for")
    plugin = manifest.plugin
    if plugin is None:
        return
    name = f"plugin {plugin.name}"
    if plugin.version != found.plugin_version:
        here = f"version {found.plugin_version}" if found.plugin_version else "none"
        raise _mismatch(manifest, found, "plugin", f"{name} version {plugin.version}", here)
    if plugin.sha256 not in (None, found.plugin_sha256):
        here = f"one with hash {_short(found.plugin_sha256)}" if found.plugin_sha256 else "one without a library"
        raise _mismatch(manifest, found, "plugin", f"{name} with hash {_short(plugin.sha256)}", here)


_TITLES = {"trt": "TensorRT", "rtx": "TensorRT-RTX"}


def _mismatch(
    manifest: EngineManifest, found: Found, kind: Kind, built: str, here: str, *, made: str = "with"
) -> EngineMismatch:
    return EngineMismatch(
        kind,
        f"the engine of {manifest.model}'s {manifest.graph} was built {made} {built.strip()}, found {here.strip()}: "
        f"run '{build_command(found.model, manifest)}'",
    )


def build_command(model: str, manifest: EngineManifest | None = None) -> str:
    """The command that builds engines as those of ``manifest`` were."""
    if manifest is None:
        return f"tatok build {model}"
    return f"tatok build {model} --precision {manifest.precision}"


def _short(value: str | None) -> str:
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text


def read_engine(path: Path, manifest: EngineManifest) -> bytes:
    """The bytes of an engine whose manifest has been checked.

    Raises:
        EngineMismatch: it is missing, cut off, or not the file that the manifest was written for.
    """
    again = f"run '{build_command(manifest.model, manifest)}'"
    try:
        size = path.stat().st_size
        if size < manifest.engine_bytes:
            raise EngineMismatch(
                "truncated", f"{path} has {size} bytes, it was built with {manifest.engine_bytes}: {again}"
            )
        if size > manifest.engine_bytes:
            raise EngineMismatch(
                "damaged", f"{path} has {size} bytes, it was built with {manifest.engine_bytes}: {again}"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise EngineMismatch("missing", f"{path} is missing: {again}") from error
    except OSError as error:
        raise BackendError(f"{path}: cannot be read ({error.strerror or error})") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != manifest.engine_sha256:
        raise EngineMismatch(
            "damaged",
            f"{path}: SHA-256 is {digest[:12]}..., it was built with {manifest.engine_sha256[:12]}...: the file was "
            f"damaged or changed: {again}",
        )
    return data


# --- choosing a profile ---------------------------------------------------------------------------


def smallest_fitting(edges: Sequence[int], count: int, *, model: str = "MODEL") -> int:
    """The index of the smallest bucket that holds ``count`` patches.

    Args:
        edges: Largest count of each bucket, ascending.
        count: Rows for the patch encoder.
        model: Name of the model, for the message.

    Raises:
        InputError: more than the largest bucket, or none.
    """
    for index, edge in enumerate(edges):
        if 1 <= count <= edge:
            return index
    raise InputError(
        f"features has {count} rows, the engine takes 1 to {edges[-1]}: widen it with "
        f"'tatok build {model} --profiles FILE', where FILE has a larger last number in \"tokens\""
    )


def choose_profile(manifest: EngineManifest, shapes: Mapping[str, Sequence[int]]) -> int:
    """The index of the smallest profile that takes inputs of these shapes.

    Raises:
        InputError: none does, or an input is unknown or missing; names the tensor, what came and what is allowed.
    """
    inputs = list(manifest.profiles[0])
    if set(shapes) != set(inputs):
        raise InputError(f"{manifest.graph} takes the inputs {', '.join(inputs)}, got {', '.join(shapes) or 'none'}")
    fitting = [
        index
        for index, profile in enumerate(manifest.profiles)
        if all(ranges.holds(shapes[name]) for name, ranges in profile.items())
    ]
    if fitting:
        return min(fitting, key=lambda index: (_volume(manifest.profiles[index]), index))
    for name in inputs:
        if not any(profile[name].holds(shapes[name]) for profile in manifest.profiles):
            break
    allowed = " or ".join(dict.fromkeys(_allowed(profile[name]) for profile in manifest.profiles))
    raise InputError(
        f"{manifest.graph}: {name} has shape {tuple(shapes[name])}, the engine takes {allowed}: widen it with "
        f"'{build_command(manifest.model, manifest)} --profiles FILE', where FILE has ranges that hold it"
    )


def _volume(profile: Profile) -> int:
    total = 0
    for ranges in profile.values():
        size = 1
        for value in ranges.max:
            size *= value
        total += size
    return total


def _allowed(ranges: ShapeRange) -> str:
    sizes = [str(a) if a == b else f"{a}..{b}" for a, b in zip(ranges.min, ranges.max, strict=True)]
    return f"({', '.join(sizes)})"


# --- the cache ------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where engines are kept: :data:`CACHE_VARIABLE`, or ``tatok-edge/engines`` under the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tatok-edge" / "engines"


def prepare_folder(folder: Path, needed: int) -> None:
    """Makes the folder, removes what killed builds left, and checks that ``needed`` bytes can be written to it.

    Raises:
        BackendError: it cannot be made or written to, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-"):
            pass
        for part in folder.glob(".part-*"):
            if part.stat().st_mtime < time.time() - _STALE_SECONDS:
                part.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise _not_writable(folder, error) from error
    if free < needed:
        raise BackendError(
            f"{folder} has {free / 1e6:.0f} MB free, the engines need about {needed / 1e6:.0f} MB: free some, or name "
            f"another folder with -o or ${CACHE_VARIABLE}"
        )


def _not_writable(path: Path, error: OSError) -> BackendError:
    what = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
    return BackendError(f"{path} {what} ({error.strerror or error}): name another folder with -o or ${CACHE_VARIABLE}")


@contextmanager
def lock(engine: Path) -> Iterator[bool]:
    """Held while an engine is built, so that a second process waits and takes the result.

    The operating system frees it when the process ends, however that happens, so a lock never outlives its owner.

    Yields:
        Whether it had to wait for another process.

    Raises:
        BackendError: the folder cannot be written.
    """
    path = engine.with_name(f".{engine.name}.lock")
    try:
        file = path.open("ab")
    except OSError as error:
        raise _not_writable(path, error) from error
    with file:
        waited = False
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
        # Without locks both build, and the last to end replaces an engine that is as good.
        yield waited


def existing(folder: Path, manifest: EngineManifest) -> EngineManifest | None:
    """The whole and undamaged engine in ``folder`` that was built as ``manifest`` says, if there is one."""
    path = folder / manifest.file
    try:
        there = read_manifest(path)
        if (there.profiles, there.plugin, there.built_sha256) != (
            manifest.profiles,
            manifest.plugin,
            manifest.built_sha256,
        ):
            return None
        read_engine(path, there)
    except EngineMismatch:
        return None
    return there


def store(folder: Path, manifest: EngineManifest, plan: bytes) -> Path:
    """Writes an engine and its manifest; whoever reads meanwhile sees the old pair, none, or the new one.

    Raises:
        BackendError: the folder cannot be written, or is full; nothing half-written stays.
    """
    path = folder / manifest.file
    try:
        # A reader believes the manifest only, so it goes first and comes back last.
        manifest_path(path).unlink(missing_ok=True)
        write_whole(path, plan)
        write_whole(manifest_path(path), (json.dumps(manifest.to_json(), indent=1, allow_nan=False) + "\n").encode())
    except OSError as error:
        raise _not_writable(path, error) from error
    return path


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file under a temporary name and renames it; if that fails, the temporary file is removed."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-", suffix=path.suffix)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@dataclass(frozen=True, slots=True)
class EngineSet:
    """The engines of all graphs that were built together."""

    folder: Path
    manifests: Mapping[str, EngineManifest]
    """By graph."""

    def load(self, graph: str) -> bytes:
        """The checked bytes of one engine.

        Raises:
            EngineMismatch: see :func:`read_engine`.
        """
        manifest = self.manifests[graph]
        return read_engine(self.folder / manifest.file, manifest)


def find_engines(folder: Path, found: Mapping[str, Found], graphs: Sequence[str]) -> EngineSet:
    """The newest complete set of engines in ``folder`` that fits.

    Args:
        folder: Where to look.
        found: What is there, by graph.
        graphs: The graphs that are needed.

    Raises:
        EngineMismatch: there is none; says what does not fit in the set that comes closest.
    """
    sets: dict[tuple[object, ...], dict[str, EngineManifest]] = {}
    ages: dict[tuple[object, ...], dict[str, float]] = {}
    model = found[graphs[0]].model
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            manifest = read_manifest(path)
            age = path.stat().st_mtime
        except (EngineMismatch, OSError):
            continue  # being replaced, or not ours
        target = (manifest.precision, manifest.flavour, manifest.version, manifest.sms)
        key = (manifest.model, manifest.tag, *target, manifest.profile_set)
        graph_ages = ages.setdefault(key, {})
        if manifest.graph in found and age >= graph_ages.get(manifest.graph, 0.0):
            sets.setdefault(key, {})[manifest.graph] = manifest
            graph_ages[manifest.graph] = age
    nearest: tuple[int, EngineMismatch] | None = None
    for newest in sorted(sets, key=lambda key: max(ages[key].values()), reverse=True):
        manifests = sets[newest]
        try:
            for graph in graphs:
                if graph in manifests:
                    check_manifest(manifests[graph], found[graph])
        except EngineMismatch as error:
            rank = _NEARNESS.index(error.kind)
            if nearest is None or rank > nearest[0]:
                nearest = rank, error
            continue
        missing = [graph for graph in graphs if graph not in manifests]
        if not missing:
            return EngineSet(folder, {graph: manifests[graph] for graph in graphs})
        again = build_command(model, next(iter(manifests.values())))
        text = f"the engines in {folder} lack {', '.join(missing)}: run '{again}'"
        if nearest is None:
            nearest = -1, EngineMismatch("missing", text)
    if nearest is not None:
        raise nearest[1]
    raise EngineMismatch("missing", f"no engines of {model} in {folder}: run '{build_command(model)}'")


_NEARNESS: tuple[Kind, ...] = (
    "missing",
    "damaged",
    "truncated",
    "weights",
    "architecture",
    "version",
    "precision",
    "profile",
    "plugin",
)
"""How little is left to differ when this is the first difference."""
