"""Writes files and folders under a temporary name, and renames them when they are complete and on disk.

So a failure leaves an earlier file or folder as it was. Also opens files, reads JSON, and orders names.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, TypeVar

from tatok_edge.errors import InputError, TaTokError

SYSTEM_NAMES: Final = ("@eadir", "desktop.ini", "system volume information", "thumbs.db", "$recycle.bin", "__macosx")
"""Names that systems and archives put beside the files of the user, in small letters."""

_HERE: Final = -100
"""Linux: names are relative to the current folder (``AT_FDCWD``)."""
_EXCHANGE: Final = 2
"""Linux: exchange the names (``RENAME_EXCHANGE``)."""
NAME_BYTES: Final = 200
"""Bytes of a name that temporary names repeat. A name has 255 at most; endings and numbers come to it."""

_Draft = TypeVar("_Draft", bound="Draft")


class Draft(ABC):
    """Output under a temporary name; a context manager that commits after success and aborts after an error."""

    @abstractmethod
    def commit(self) -> None:
        """Completes the output and gives it its name.

        Raises:
            OSError: It cannot be written.
        """

    @abstractmethod
    def abort(self) -> None:
        """Removes the unfinished output; does nothing after :meth:`commit` and :meth:`leave`."""

    @abstractmethod
    def leave(self) -> Path | None:
        """Completes what there is, and leaves it under its temporary name ``NAME.part``.

        Returns:
            Where it is; None if there is nothing to leave.

        Raises:
            OSError: It cannot be completed; it stays as it is.
        """

    def __enter__(self: _Draft) -> _Draft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise


@contextmanager
def replaced_file(target: Path) -> Iterator[Path]:
    """Gives a temporary name to write to, and renames that file to ``target`` when the block succeeds.

    Raises:
        OSError: The file cannot be renamed.
    """
    temporary = Temporary(target)
    try:
        yield temporary.path
        temporary.replace()
    finally:
        temporary.remove()


class Temporary:
    """A new file or folder under a hidden name beside its target, which takes the name of the target when it is whole.

    The name is random: in a container, each run has the same process id. It is locked as long as its process lives, so
    what a killed process left is told from what another one writes, and is removed.

    Args:
        target: The file or folder to write.
        folder: Make a folder.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, target: Path, *, folder: bool = False) -> None:
        self._target = target.absolute()
        self._folder = folder
        name, suffix = _short_name(self._target.stem), self._target.suffix
        _remove_stale(self._target.parent, name, suffix)
        while True:
            self.path = self._target.with_name(f".{name}.{secrets.token_hex(4)}.tmp{suffix}")
            """Where to write."""
            if folder:
                self.path.mkdir()
            flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
            self._lock: int | None = os.open(self.path, flags | os.O_CLOEXEC, 0o666)
            _lock(self._lock, wait=True)
            if self.path.exists():  # else it was removed as stale before it was locked
                return
            self._release()

    def replace(self) -> None:
        """Gives the file or folder the name of its target, once it is on disk. What had that name is replaced.

        Raises:
            OSError: It cannot be written or renamed.
        """
        put_in_place(self.path, self._target)
        self._release()

    def remove(self) -> None:
        """Removes the file or folder; does nothing after :meth:`replace`."""
        if self._lock is None:
            return
        _delete(self.path)
        self._release()

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def new_part(target: Path, *, folder: bool = False) -> Path:
    """Makes a new, empty file or folder ``NAME.part`` beside ``target``; ``NAME.part1`` where there is one, and so on.

    Raises:
        OSError: It cannot be made.
    """
    name = _short_name(target.name)
    for attempt in range(1000):
        part = target.with_name(f"{name}.part{attempt or ''}")
        try:
            if folder:
                part.mkdir()
            else:
                part.touch(exist_ok=False)
        except FileExistsError:
            continue
        return part
    raise OSError(errno.EEXIST, "1000 files of unfinished runs are beside it; remove or rename them", f"{target}.part")


def put_in_place(part: Path, target: Path) -> None:
    """Gives a complete file or folder its name, once it is on disk. What had that name is replaced as a whole.

    Raises:
        OSError: It cannot be written or renamed.
    """
    sync_tree(part)
    if not part.is_dir() or not target.is_dir():
        os.replace(part, target)
    elif exchange(part, target):
        shutil.rmtree(part, ignore_errors=True)
    else:
        old = part.with_name(f"{part.name}.old")
        os.replace(target, old)
        os.replace(part, target)
        shutil.rmtree(old, ignore_errors=True)
    sync(target.absolute().parent)


def exchange(one: Path, other: Path) -> bool:
    """Exchanges the names of two files or folders in one step; False where the system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # no Linux
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def sync(path: Path) -> None:
    """Waits until a file or folder is on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_tree(path: Path) -> None:
    """Waits until a file, or a folder with all that is in it, is on disk."""
    if path.is_dir():
        for entry in path.rglob("*"):
            sync(entry)
    sync(path)


def _short_name(stem: str) -> str:
    """The beginning of a name, with room for the rest of a temporary name."""
    name = os.fsencode(stem)[:NAME_BYTES].decode(errors="ignore")  # FFmpeg takes no other names than UTF-8
    try:
        os.fsencode(name)
    except UnicodeEncodeError:  # an ASCII system
        name = name.encode("ascii", "ignore").decode()
    return name


def _remove_stale(folder: Path, name: str, suffix: str) -> None:
    """Removes what killed processes left beside a target."""
    pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{8}}\.tmp{re.escape(suffix)}")
    with suppress(OSError):
        for entry in os.scandir(folder):
            if pattern.fullmatch(entry.name):
                handle = os.open(entry.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if _lock(handle, wait=False):
                        _delete(Path(entry.path))
                finally:
                    os.close(handle)


def _lock(handle: int, *, wait: bool) -> bool:
    """Locks a file or folder for this process; false where another has it, or the file system has no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def _delete(path: Path) -> None:
    """Removes a file or folder, as far as possible."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts paths by name, numbers inside names by value: ``2.png`` before ``10.png``."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def is_hidden(name: str) -> bool:
    """Whether a file in a folder is none of the user's: hidden, as ``._x.png`` and ``.DS_Store``, or of the system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def check_target(
    path: str | Path, suffixes: Sequence[str], *, force: bool = True, inputs: Sequence[str | Path] = ()
) -> None:
    """Checks the name of an output before the work begins: one rule for all commands.

    Args:
        path: The output.
        suffixes: Endings that are allowed; an empty one allows a name without an ending.
        force: Replace an existing output. An empty folder may always be written to.
        inputs: Files that are read, or names of sources. They are never replaced.

    Raises:
        InputError: The ending is not one of ``suffixes``, the folder does not exist, or the output is an input or
            exists.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        endings = ", ".join(filter(None, suffixes)) + (", or have none (a folder)" if "" in suffixes else "")
        raise InputError(f"{path}: the name must end in {endings}")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it first")
    if any(is_same(path, name) for name in inputs):
        raise InputError(f"{path}: is the input, too; name another output")
    if not force and os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{path}: exists; name another output, or pass --force to replace it")


def is_same(output: str | Path, source: str | Path) -> bool:
    """Whether an output is the file or folder that a source names, with or without ``#`` and a topic behind it."""
    text = str(source)
    ends = [len(text), *(place for place, letter in enumerate(text) if letter == "#")]
    for end in ends:
        try:
            if os.path.samefile(output, text[:end]):
                return True
        except (OSError, ValueError):
            continue
    return False


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a regular file to read. A pipe, a device or a folder is refused, and not opened: reading it may hang.

    Raises:
        OSError: It cannot be opened, or is no regular file.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise OSError(errno.EINVAL, f"is {kind}, not a file", os.fspath(path))
    return open(path, "rb")


def read_regular(path: str | os.PathLike[str], max_bytes: int) -> bytes | None:
    """The content of a regular file; None where it has more than ``max_bytes``.

    Raises:
        OSError: It cannot be read, or is no regular file.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= max_bytes else None  # one more: it may grow
    return data if data is not None and len(data) <= max_bytes else None


def read_json(path: Path, max_bytes: int, error_type: type[TaTokError]) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        max_bytes: Largest size that is read.
        error_type: Class of the error to raise.

    Raises:
        TaTokError: Of class ``error_type``: the file cannot be read, is too large or is not JSON.
    """
    try:
        data = read_regular(path, max_bytes)
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror or error})") from None
    if data is None:
        raise error_type(f"{path}: larger than the {max_bytes} bytes that are allowed")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path}: not valid JSON ({error})") from None
