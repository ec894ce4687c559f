"""The folder of engines: its path, and writing, locking and reading of engines."""

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
from tatok_edge.runtime.cache import user_cache
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
        EngineMismatch: the engine is missing, cut off, or not the one of its manifest.
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
    """Folder of the engines: :data:`CACHE_VARIABLE`, or ``tatok-edge/engines`` under the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    return user_cache() / "engines"


def prepare_folder(folder: Path, needed: int) -> None:
    """Make the folder, remove leftovers of killed builds, and check that ``needed`` bytes can be written to it.

    Raises:
        BackendError: the folder cannot be made or written to, or the disk is full.
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
    """Lock held while an engine is built: a second process waits, and uses the result.

    The operating system frees the lock when its process ends, also after a crash.

    Yields:
        Whether this process had to wait for another one.

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
        # Without locks both processes build, and the last one replaces an equally good engine.
        yield waited


def stored_engine(folder: Path, manifest: EngineManifest) -> EngineManifest | None:
    """The undamaged engine in ``folder`` for ``manifest``; None without one."""
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
    """Writes an engine and its manifest. A reader sees the old pair, no pair, or the new pair.

    Raises:
        BackendError: the folder cannot be written, or is full; no partial file stays.
    """
    path = folder / manifest.file
    try:
        # A reader starts from the manifest, so the manifest is removed first and written last.
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
