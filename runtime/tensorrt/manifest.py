"""The manifest of an engine: its sources and its target, as JSON beside the engine's file.

The name of the file carries the hash of the ONNX with its weights, the profile set, the precision, flavour and version
of TensorRT, and the GPU architectures, so engines of different models, versions and machines live in one folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tatok_edge.errors import BackendError

FORMAT_VERSION = 1
SUFFIX = ".engine"
MAX_MANIFEST_BYTES = 4 << 20
MAX_ENGINE_BYTES = 4 << 30
EnginePrecision = Literal["fp32", "fp16"]
ENGINE_PRECISIONS: tuple[EnginePrecision, ...] = ("fp32", "fp16")
"""Precisions of engines."""
MismatchKind = Literal[
    "weights", "profile", "precision", "version", "architecture", "plugin", "truncated", "damaged", "missing"
]


class EngineMismatch(BackendError):
    """An engine that does not fit the model, the TensorRT or the GPU here, or a damaged one."""

    def __init__(self, kind: MismatchKind, message: str) -> None:
        super().__init__(message)
        self.kind: MismatchKind = kind
        """The part that does not fit."""


@dataclass(frozen=True, slots=True)
class ShapeRange:
    """Shapes of an input that a profile takes."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    """The shape that TensorRT optimises for."""
    max: tuple[int, ...]

    def holds(self, shape: Sequence[int]) -> bool:
        """Whether ``shape`` lies between ``min`` and ``max``."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


Profile = Mapping[str, ShapeRange]
"""Shapes by input."""


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """A plugin library that an engine needs."""

    name: str
    version: str
    file: str | None
    """Path of the library when the engine was built; None if the engine was built without one."""
    sha256: str | None
    """Hash of that file."""


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """Sources and target of an engine."""

    model: str
    """Name of the model."""
    tag: str
    """Tag of the model's content, hexadecimal."""
    graph: str
    """Name of the graph."""
    onnx_sha256: str
    """Hash of the graph in the bundle, weights included."""
    built_sha256: str
    """Hash of the graph after conversion to ``precision``."""
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
    plugin: PluginRecord | None
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
        """The content of the manifest file."""
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


def read_manifest(path: Path) -> EngineManifest:
    """The manifest of the engine at ``path`` (``….engine``), or at its own path (``….json``).

    Raises:
        EngineMismatch: the manifest is missing, or this version cannot read it.
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
    """Path of the manifest of an engine."""
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
        else PluginRecord(
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
        raise ValueError("a list of 1 to 256 values is missing")
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


def build_command(model: str, manifest: EngineManifest | None = None) -> str:
    """The command that builds the engines of ``manifest`` again."""
    if manifest is None:
        return f"tatok build {model}"
    return f"tatok build {model} --precision {manifest.precision}"
