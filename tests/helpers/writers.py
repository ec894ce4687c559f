"""Commands that write something, to be killed, starved and locked out: what was good must stay."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from helpers.bags import CAMERA, IMAGE, cdr, raw_message, write_bag
from tatok_edge.sources.synthetic import Scene, render

DEADLINE = 600.0
"""Seconds after which a process that does not end counts as hanging."""
CLIPS = ("synthetic:frames=3,width=64,height=64", "synthetic:frames=40,width=64,height=64,seed=2")
"""Clips of a data set."""
WORKERS = ("--workers", "1", "--threads", "1")


@dataclass(frozen=True)
class Writer:
    """A command and what it writes.

    ``{clip}`` stands for a rendered clip, ``{tokens}`` and ``{bag}`` for a token file and a bag with its frames.
    """

    words: tuple[str, ...]
    output: str
    part: str
    """Pattern of the name under which it is written."""

    def arguments(self, folder: Path, frames: int, output: Path) -> list[str]:
        """The words of the command, for inputs of so many frames."""
        names = {
            "clip": f"synthetic:frames={frames},width=64,height=64",
            "tokens": folder / f"{frames}.ttk",
            "bag": folder / f"{frames}.mcap",
        }
        return [word.format(**names) for word in self.words] + ["-o", str(output), "--force"]


WRITERS = {
    "encode": Writer(("encode", "{clip}"), "good.ttk", "good.ttk.part*"),
    "stream": Writer(("stream", "{clip}", "--keyframe-interval", "1"), "good.ttk", "good.ttk.part*"),
    "video": Writer(("decode", "{tokens}"), "good.mp4", "good.mp4.part*"),
    "folder": Writer(("decode", "{tokens}"), "good", "good.part*"),
    "bag": Writer(("encode", "{bag}", "--frames-only", "--keep-images"), "good.mcap", "good.mcap.part*"),
    "rosbag2": Writer(("encode", "{bag}", "--frames-only", "--keep-images"), "good", "good.part*"),
}
"""Commands that write ``NAME.part``."""
ENDLESS = 100_000
"""Frames of a clip that no run gets to the end of."""


_FORKED = multiprocessing.get_context("forkserver")
"""Starts commands in a moment: a server that has imported everything forks them."""
_FORKED.set_forkserver_preload(
    [
        "helpers.bags",
        *(f"tatok_edge.cli.{name}" for name in ("encode", "stream", "decode", "dataset")),
        *(f"tatok_edge.datasets.{name}" for name in ("flat", "webdataset", "parquet", "lerobot")),
        "tatok_edge.sources.synthetic_source",
        "tatok_edge.pictures.movies",
        "pyarrow.parquet",
        "onnxruntime",
        "av",
    ]
)


class Run:
    """A ``tatok`` command in a process of its own, forked from one that has imported it.

    Args:
        arguments: Its words.
        log: File for what it prints.
    """

    def __init__(self, *arguments: object, log: Path) -> None:
        self._log = log
        self._process = _FORKED.Process(target=_run, args=([str(word) for word in arguments], str(log)))
        self._process.start()

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Its exit code, below 0 where a signal has ended it."""
        self._process.join(DEADLINE)
        assert self._process.exitcode is not None, "hangs"
        return self._process.exitcode

    def finish(self) -> None:
        """Waits for it; it must succeed."""
        assert self.wait() == 0, self.said

    @property
    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text() if self._log.exists() else ""


def _run(arguments: list[str], log: str) -> None:
    from tatok_edge.cli.main import main

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.exit(main(arguments))


def begin(*arguments: object) -> subprocess.Popen[str]:
    """A ``tatok`` command as a process with a Python of its own, to which signals can be sent."""
    command = [sys.executable, "-m", "tatok_edge", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(is_alive: Callable[[], bool], folder: Path, pattern: str, size: int = 1) -> None:
    """Waits until a file of a process has grown to ``size`` bytes."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        for path in folder.glob(pattern):
            if path.is_dir() or path.stat().st_size >= size:
                return
        assert is_alive(), f"ended before it wrote {pattern}"
        time.sleep(0.01)
    raise AssertionError(f"no {pattern} after {DEADLINE:.0f} s")


def content(path: Path) -> dict[str, str]:
    """The hashes of a file, or of all files of a folder."""
    files = [entry for entry in sorted(path.rglob("*")) if entry.is_file()] if path.is_dir() else [path]
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def make_inputs(folder: Path, frames: int) -> None:
    """A token file and a bag of so many frames."""
    clip, log = f"synthetic:frames={frames},width=64,height=64", folder / "log"
    Run("encode", clip, "-o", folder / f"{frames}.ttk", "--keep", "0.2", log=log).finish()
    images = [render(Scene(width=64, height=64), number) for number in range(min(frames, 40))]
    messages = [(CAMERA, IMAGE, cdr(raw_message(images[number % len(images)]))) for number in range(frames)]
    write_bag(folder / f"{frames}.mcap", messages)


def kill_writer(name: str, inputs: Path, good: Path, frames: int, rng: random.Random) -> None:
    """Kills a command at a random moment; fails unless the earlier output is as it was.

    Args:
        name: One of :data:`WRITERS`.
        inputs: Folder of :func:`make_inputs`.
        good: The earlier output.
        frames: Frames of the inputs, long enough not to end before.
        rng: Chooses the moment.
    """
    writer, before = WRITERS[name], content(good)
    words = writer.arguments(inputs, ENDLESS if "{clip}" in writer.words else frames, good)
    for old in good.parent.glob(writer.part):  # so that the new one is seen
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    run = Run(*words, "--threads", "1", log=inputs / "log")
    wait_for(lambda: run.is_alive, good.parent, writer.part, 0 if name == "bag" else 1)  # bags: in large chunks
    time.sleep(rng.random() * 0.3)
    run.kill()
    assert run.wait() < 0, f"{name}: ended before it was killed: {run.said}"
    assert content(good) == before, f"{name}: the earlier output has changed"


def kill_data_set(folder: Path, form: str, straight: dict[str, str], moment: float) -> bool:
    """Kills a run that replaces the data set ``folder``, and resumes it; fails unless the result is that of one run.

    Args:
        folder: The data set; it is replaced.
        form: Its format.
        straight: Content of the data set that was made in one run.
        moment: Seconds from the first file of the run to the kill.

    Returns:
        Whether the run was killed before its end.
    """
    words, log, before = (
        ("dataset", *CLIPS, "-o", folder, "--format", form, *WORKERS),
        folder.parent / "log",
        content(folder),
    )
    run = Run(*words, "--force", log=log)
    wait_for(lambda: run.is_alive, folder.parent, f"{folder.name}.partial/parts")
    time.sleep(moment)
    run.kill()
    if run.wait() == 0:  # it was faster
        assert content(folder) == straight
        return False
    assert content(folder) in (before, straight), f"{form}: the earlier data set has changed"
    Run(*words, "--resume", log=log).finish()
    assert content(folder) == straight, f"{form}: the resumed data set is not that of one run"
    return True
