"""The record of a successful verification, a JSON file beside the engines that names the hash of every engine."""

from __future__ import annotations

import datetime
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from tatok_edge.errors import BackendError
from tatok_edge.export.engines.verdict import Verification
from tatok_edge.model.bundle import GRAPHS, Bundle
from tatok_edge.runtime.session import Backend
from tatok_edge.runtime.tensorrt.choice import EngineSet
from tatok_edge.runtime.tensorrt.store import write_whole

RECORD_VERSION = 1
RECORD_SUFFIX = ".verified.json"
MAX_RECORD_BYTES = 1 << 20


def record_path(engine_set: EngineSet) -> Path:
    """Path of the record of a set of engines; its name carries the hash of all engines."""
    first = next(iter(engine_set.manifests.values()))
    model = Path(first.file).name.split(f".{first.graph}-")[0]
    return engine_set.folder / f"{model}.{_set_hash(engine_set)[:16]}{RECORD_SUFFIX}"


def _set_hash(engine_set: EngineSet) -> str:
    names = sorted(f"{graph} {manifest.engine_sha256}" for graph, manifest in engine_set.manifests.items())
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def write_record(
    bundle: Bundle, engine_set: EngineSet, result: Verification, *, reference: Backend, candidate: Backend
) -> Path:
    """Writes the record of a successful verification beside the engines.

    Raises:
        BackendError: a bound is broken (then an earlier record of these engines is removed), an engine is no longer
            what its manifest says, or the folder cannot be written.
    """
    path = record_path(engine_set)
    if not result.ok:
        remove_record(engine_set)
        raise BackendError(f"not verified: {result.failures[0]}")
    for graph in engine_set.manifests:
        engine_set.load(graph)  # checks that the engine on disk is the verified one
    first = next(iter(engine_set.manifests.values()))
    record = {
        "format_version": RECORD_VERSION,
        "model": bundle.name,
        "tag": bundle.tag.hex(),
        "onnx_sha256": {name: bundle.manifest["files"][name]["sha256"] for name in GRAPHS},
        "engines": {
            graph: {"file": manifest.file, "sha256": manifest.engine_sha256, "built_sha256": manifest.built_sha256}
            for graph, manifest in sorted(engine_set.manifests.items())
        },
        "set_sha256": _set_hash(engine_set),
        "precision": first.precision,
        "flavour": first.flavour,
        "version": first.version,
        "reference": asdict(reference),
        "candidate": asdict(candidate),
        "verified_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "result": result.to_json(),
    }
    data = (json.dumps(record, indent=1, allow_nan=False) + "\n").encode()
    try:
        write_whole(path, data)
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written ({error.strerror or error}): the engines are good, though"
        ) from error
    return path


def remove_record(engine_set: EngineSet) -> None:
    """Remove the record of these engines, if there is one.

    Raises:
        BackendError: the record cannot be removed.
    """
    path = record_path(engine_set)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise BackendError(f"{path} cannot be removed ({error.strerror or error}): remove it") from error


def is_verified(engine_set: EngineSet) -> bool:
    """Whether there is a record for exactly these engines."""
    path = record_path(engine_set)
    try:
        if path.stat().st_size > MAX_RECORD_BYTES:
            return False
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    if not isinstance(record, dict) or record.get("format_version") != RECORD_VERSION:
        return False
    result = record.get("result")
    return isinstance(result, dict) and result.get("ok") is True and record.get("set_sha256") == _set_hash(engine_set)
