"""An engine on disk that no TensorRT made: its bytes, its manifest, and what a machine that fits it has."""

from __future__ import annotations

import hashlib
from typing import Any

from tatok_edge.runtime.tensorrt.choice import EngineTarget
from tatok_edge.runtime.tensorrt.manifest import EngineManifest, PluginRecord, ShapeRange

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
