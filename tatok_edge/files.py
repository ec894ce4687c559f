"""Writes files and folders under a temporary name, and renames them when they are complete.

So a failure leaves an earlier file or folder as it was. Also reads JSON files, and orders names.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from tatok_edge.errors import InputError, TaTokError

SYSTEM_NAMES: Final = ("@eadir", "desktop.ini", "system volume information", "thumbs.db", "$recycle.bin", "__macosx")
"""Names that systems and archives put beside the files of the user, in small letters."""

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
        """Removes the unfinished output."""

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
    temporary = temporary_name(target)
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def replace_folder(temporary: Path, target: Path) -> None:
    """Renames the folder ``temporary`` to ``target``, and removes the folder that had this name.

    Raises:
        OSError: A folder cannot be renamed.
    """
    old = temporary.with_name(temporary.name + ".old")
    if target.is_dir():
        os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old, ignore_errors=True)


def temporary_name(target: Path) -> Path:
    """A hidden name beside ``target``, on the same file system, with the same ending."""
    target = target.absolute()
    return target.with_name(f".{target.stem}.{os.getpid()}.tmp{target.suffix}")


def natural_order(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts paths by name, numbers inside names by value: ``2.png`` before ``10.png``."""
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def is_hidden(name: str) -> bool:
    """Whether a file in a folder is none of the user's: hidden, as ``._x.png`` and ``.DS_Store``, or of the system."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def check_target(path: str | Path, suffixes: Sequence[str]) -> None:
    """Checks the name of an output file before the work begins.

    Args:
        path: The output file.
        suffixes: Endings that are allowed; an empty one allows a name without an ending.

    Raises:
        InputError: The ending is not one of ``suffixes``, or the folder does not exist.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        endings = ", ".join(filter(None, suffixes)) + (", or have none (a folder)" if "" in suffixes else "")
        raise InputError(f"{path}: the name must end in {endings}")
    folder = target.absolute().parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it first")


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
        data = path.read_bytes() if path.stat().st_size <= max_bytes else None
    except OSError as error:
        raise error_type(f"{path}: cannot be read ({error.strerror or error})") from None
    if data is None:
        raise error_type(f"{path}: larger than the {max_bytes} bytes that are allowed")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path}: not valid JSON ({error})") from None
