"""Outputs on a full disk, under a limit of the size of files, and in a folder without rights.

The command says why it failed, the earlier output stays, and once the cause is gone a run gives what an undisturbed one
gives.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.writers import CLIPS, WORKERS, WRITERS, content, make_inputs

from tatok_edge.cli.main import main
from tatok_edge.datasets.formats import FORMATS

FRAMES = 40
"""Frames of the inputs: each output takes more than :data:`ROOM`."""
ROOM = 4096
"""Bytes that are left for an output."""
NOBODY = 65534

OUTPUTS = {name: writer.output for name, writer in WRITERS.items()} | dict.fromkeys(FORMATS, "tokens")


@dataclass(frozen=True)
class Place:
    """A folder for outputs, and how to take away what they need."""

    folder: Path
    cause: Callable[[], AbstractContextManager[None]]
    says: str


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files and bags of two lengths."""
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder, FRAMES)
    make_inputs(folder, 2)
    return folder


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A disk of 1 MiB. Nobody but root may make one."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["mount", "-t", "tmpfs", "-o", "size=1M,mode=755", "tmpfs", folder]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a small disk needs root")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fills the disk of a folder, up to the last pages."""
    filler = folder / "filler"
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - ROOM)))
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def small_files() -> Iterator[None]:
    """Lets no file become larger than :data:`ROOM`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Takes the right to write to a folder; root gives up its own rights, too."""
    user = os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.fixture(params=["full disk", "small files", "locked folder"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A folder, and one cause."""
    if request.param == "full disk":
        folder = request.getfixturevalue("disk")
        yield Place(folder, lambda: full(folder), "No space left on device")
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other users
        os.chmod(name, 0o755)
        folder = Path(name)
        if request.param == "small files":
            yield Place(folder, small_files, "File too large")
        else:
            yield Place(folder, lambda: locked(folder), "Permission denied")


def command(name: str, inputs: Path, frames: int, output: Path) -> list[str]:
    """The words of a command, for an output of so many frames."""
    if name in WRITERS:
        return [*WRITERS[name].arguments(inputs, frames, output), "--threads", "1"]
    clips = CLIPS if frames == FRAMES else CLIPS[:1]
    return ["dataset", *clips, "-o", str(output), "--format", name, *WORKERS, "--force"]


Outputs = Callable[[str], tuple[Path, dict[str, str]]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Outputs:
    """For each command: a short output, and the content of a long one; both made once."""
    folder, made = tmp_path_factory.mktemp("undisturbed"), {}

    def outputs(name: str) -> tuple[Path, dict[str, str]]:
        if name not in made:
            short, long = (folder / name / kind / OUTPUTS[name] for kind in ("short", "long"))
            for output, frames in ((short, 2), (long, FRAMES)):
                output.parent.mkdir(parents=True)
                assert main(command(name, inputs, frames, output)) == 0
            made[name] = short, content(long)
        return made[name]

    return outputs


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_that_cannot_be_written(
    name: str, place: Place, inputs: Path, undisturbed: Outputs, capsys: pytest.CaptureFixture[str]
) -> None:
    short, whole = undisturbed(name)
    output = place.folder / OUTPUTS[name]
    shutil.copytree(short, output) if short.is_dir() else shutil.copy(short, output)
    before = content(output)
    words = command(name, inputs, FRAMES, output)
    capsys.readouterr()
    with place.cause():
        code = main(words)
    error = capsys.readouterr().err
    assert code == 1
    assert place.says in error and "Traceback" not in error and "unexpected" not in error
    assert content(output) == before
    left = [entry.name for entry in place.folder.iterdir() if entry != output]
    assert all((entry.startswith(output.name) and entry in error) or entry.endswith(".partial") for entry in left), left
    if name in FORMATS and left:
        words[-1] = "--resume"
    assert main(words) == 0, capsys.readouterr().err
    assert content(output) == whole
