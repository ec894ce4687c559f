"""The folder of engines: where it is, and how engines are written, locked and read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tatok_edge.errors import BackendError
from tatok_edge.runtime.tensorrt.manifest import (
    EngineManifest,
    EngineMismatch,
    build_command,
    manifest_path,
    read_manifest,
)

CACHE_VARIABLE = "TATOK_ENGINES"
"""Environment variable that names the folder of engines."""
_STALE_SECONDS = 3600.0


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


def cache_folder() -> Path:
    """Where engines are kept: :data:`CACHE_VARIABLE`, or ``tatok-edge/engines`` under the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tatok-edge" / "engines"


def prepare_folder(folder: Path, needed: int) -> None:
    """Make the folder, remove leftovers of killed builds, and check that ``needed`` bytes can be written to it.

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
def build_lock(engine: Path) -> Iterator[bool]:
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


def stored_engine(folder: Path, manifest: EngineManifest) -> EngineManifest | None:
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


def store_engine(folder: Path, manifest: EngineManifest, plan: bytes) -> Path:
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
