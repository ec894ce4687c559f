"""The command 'tatok dataset' in processes of its own, and the clips that it takes."""

import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

BUDGET = ["--tau", "0.8"]
FRAMES = {"a.mp4": 9, "b.mp4": 6, "pictures": 4}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tatok_edge", "dataset", *map(str, arguments)]


def run(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), cwd=cwd, capture_output=True, text=True, check=False, **options)


def terminal(arguments: list[str], cwd: Path) -> subprocess.Popen[str]:
    """A process with a group of its own, which Ctrl-C reaches as a whole."""
    return subprocess.Popen(arguments, cwd=cwd, stderr=subprocess.PIPE, text=True, start_new_session=True)


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    """What ``condition`` gives once it gives something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.005)
    raise AssertionError("waited in vain")


def worker_of(part: Path) -> int:
    """Number of the process that writes a part: it has a file in this folder open."""
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if part in Path(os.readlink(handle)).parents:
                return int(handle.parts[2])
    raise AssertionError(f"nobody writes {part}")


def failed(result: subprocess.CompletedProcess[str], code: int, says: str) -> None:
    """Checks that a failure is told in one line."""
    assert result.returncode == code, result.stderr
    assert re.search(says, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
