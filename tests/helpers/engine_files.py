"""Engines on disk that no TensorRT made: their bytes, their manifests, and what a machine that fits them has."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tatok_edge.model.bundle import GRAPHS, Bundle
from tatok_edge.runtime.tensorrt.choice import EngineSet, EngineTarget
from tatok_edge.runtime.tensorrt.manifest import EngineManifest, PluginRecord, Profile, ShapeRange
from tatok_edge.runtime.tensorrt.store import store_engine

PLAN = bytes(range(256)) * 40
"""The bytes of the engine."""


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make(**changes: Any) -> EngineManifest:
    """The manifest, with ``changes``."""
    values: dict[str, Any] = {
        "model": "tatok-s8",
        "tag": "0123456789abcdef",
        "graph": "patch_encoder",
        "onnx_sha256": sha("weights"),
        "built_sha256": sha("converted"),
        "precision": "fp16",
        "flavour": "trt",
        "version": "10.3.0",
        "sms": ("8.7",),
        "profile_set": sha("profiles"),
        "profiles": (
            {"features": ShapeRange((1, 1056), (64, 1056), (64, 1056))},
            {"features": ShapeRange((65, 1056), (576, 1056), (576, 1056))},
        ),
        "plugin": PluginRecord("TaTokDTF", "1", "/opt/plugin.so", sha("plugin")),
        "engine_bytes": len(PLAN),
        "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        "notes": {"edges": [64, 576], "histogram": [[10, 3]]},
    }
    return EngineManifest(**(values | changes))


def found(**changes: Any) -> EngineTarget:
    """A machine that runs the engine, with ``changes``."""
    values: dict[str, Any] = {
        "model": "tatok-s8",
        "onnx_sha256": sha("weights"),
        "flavour": "trt",
        "version": "10.3.0",
        "sm": "8.7",
        "plugin_version": "1",
        "plugin_sha256": sha("plugin"),
    }
    return EngineTarget(**(values | changes))


def store_set(
    folder: Path,
    bundle: Bundle,
    profiles: Mapping[str, tuple[Profile, ...]],
    *,
    plans: Mapping[str, bytes] | None = None,
    **changes: Any,
) -> EngineSet:
    """Puts one engine for each graph of a bundle into a folder.

    ``profiles`` and ``plans`` are by graph. Without ``plans`` the engines are mere bytes. ``changes`` go into every
    manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifests = {}
    for number, graph in enumerate(GRAPHS):
        plan = PLAN + bytes([number]) if plans is None else plans[graph]
        digest = bundle.manifest["files"][graph]["sha256"]
        values: dict[str, Any] = {
            "model": bundle.name,
            "tag": bundle.tag.hex(),
            "graph": graph,
            "onnx_sha256": digest,
            "built_sha256": digest,
            "profiles": profiles[graph],
            "plugin": None,
            "engine_bytes": len(plan),
            "engine_sha256": hashlib.sha256(plan).hexdigest(),
            "notes": {},
        }
        manifests[graph] = make(**(values | changes))
        store_engine(folder, manifests[graph], plan)
    return EngineSet(folder, manifests)
