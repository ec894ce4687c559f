"""Choice of the engines of a folder that run here, and of the profile for a shape.

TensorRT crashes or fails silently on an engine of another version or GPU. Therefore :func:`find_engines` compares the
manifests first, without TensorRT.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tatok_edge.errors import InputError
from tatok_edge.runtime.tensorrt.flavour import flavour_title
from tatok_edge.runtime.tensorrt.manifest import (
    EngineManifest,
    EngineMismatch,
    MismatchKind,
    Profile,
    ShapeRange,
    build_command,
    read_manifest,
)
from tatok_edge.runtime.tensorrt.store import read_engine


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """The graph, the TensorRT and the GPU that an engine must fit."""

    model: str
    """Name of the bundle, or its path."""
    onnx_sha256: str
    """Hash of the graph in the bundle."""
    flavour: str
    version: str
    sm: str
    """Architecture of the GPU."""
    precision: str | None = None
    """The requested precision; None for any."""
    profile_set: str | None = None
    """The requested profile set; None for any."""
    plugin_version: str | None = None
    """Version of the installed plugin; None without one."""
    plugin_sha256: str | None = None
    """Hash of the plugin's library."""


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


_NEARNESS: tuple[MismatchKind, ...] = (
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
"""Mismatches, in rising order of how close the engine is to fitting."""


def find_engines(folder: Path, found: Mapping[str, EngineTarget], graphs: Sequence[str]) -> EngineSet:
    """The newest complete set of engines in ``folder`` that fits.

    Args:
        folder: Where to look.
        found: The graph, TensorRT and GPU that each engine must fit, by graph.
        graphs: The graphs that are needed.

    Raises:
        EngineMismatch: no set fits. The message names the first mismatch of the closest set.
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
        text = f"{folder} has no engine for {', '.join(missing)}: run '{again}'"
        if nearest is None:
            nearest = -1, EngineMismatch("missing", text)
    if nearest is not None:
        raise nearest[1]
    raise EngineMismatch("missing", f"no engines of {model} in {folder}: run '{build_command(model)}'")


def check_manifest(manifest: EngineManifest, found: EngineTarget) -> None:
    """Compare the manifest of an engine with the graph, the TensorRT and the GPU here.

    Raises:
        EngineMismatch: they differ; the message names the first difference and the command to run.
    """
    differences: list[tuple[MismatchKind, str, str | None, str | None]] = [
        ("weights", "the weights", manifest.onnx_sha256, found.onnx_sha256),
        ("precision", "precision", manifest.precision, found.precision or manifest.precision),
        ("profile", "the profile set", manifest.profile_set, found.profile_set or manifest.profile_set),
        (
            "version",
            "",
            f"{flavour_title(manifest.flavour)} {manifest.version}",
            f"{flavour_title(found.flavour)} {found.version}",
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


def _mismatch(
    manifest: EngineManifest, found: EngineTarget, kind: MismatchKind, built: str, here: str, *, made: str = "with"
) -> EngineMismatch:
    return EngineMismatch(
        kind,
        f"the engine of {manifest.model}'s {manifest.graph} was built {made} {built.strip()}, found {here.strip()}: "
        f"run '{build_command(found.model, manifest)}'",
    )


def _short(value: str | None) -> str:
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{64}", text) else text


# --- profiles -------------------------------------------------------------------------------------


def smallest_fitting(edges: Sequence[int], count: int, *, model: str = "MODEL") -> int:
    """The index of the smallest bucket that holds ``count`` patches.

    Args:
        edges: Largest count of each bucket, ascending.
        count: Rows for the patch encoder.
        model: Name of the model, for the message.

    Raises:
        InputError: ``count`` is above the largest bucket, or below 1.
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
        InputError: no profile takes them, or an input is unknown or missing. The message names the tensor, its shape
            and the allowed shapes.
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
