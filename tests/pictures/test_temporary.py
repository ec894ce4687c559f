"""Files and folders under a temporary name."""

import os
from pathlib import Path

import pytest

from tatok_edge.files import Temporary, replaced_file


@pytest.mark.parametrize("folder", [False, True])
def test_stale_ones_go_and_those_in_use_stay(folder: bool, tmp_path: Path) -> None:
    target = tmp_path / "frames.x"
    stale = tmp_path / ".frames.0123abcd.tmp.x"
    stale.mkdir() if folder else stale.touch()
    others = [tmp_path / name for name in (".frames.0123abcd.tmp", ".frames.12.tmp.x", ".other.0123abcd.tmp.x")]
    for other in others:
        other.touch()
    first, second = Temporary(target, folder=folder), Temporary(target, folder=folder)
    assert not stale.exists()
    assert first.path != second.path and first.path.exists() and second.path.exists()
    assert all(other.exists() for other in others)
    first.replace()
    second.remove()
    second.remove()
    assert {path.name for path in tmp_path.iterdir()} == {target.name, *(other.name for other in others)}


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    new = Temporary(target, folder=True)
    (new.path / "new").touch()
    assert (target / "old").exists()
    new.replace()
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out", "out/new"]


@pytest.mark.parametrize("name", ["n" * 250, "\u20ac" * 83, os.fsdecode(b"caf\xe9.png"), ".hidden", "a.b.c"])
def test_any_name_that_the_target_may_have(name: str, tmp_path: Path) -> None:
    with replaced_file(tmp_path / name) as temporary:
        temporary.write_text("new")
        assert temporary.name.encode()  # UTF-8, for libraries that take nothing else
    assert (tmp_path / name).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system lists no descriptors")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with replaced_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
        Temporary(tmp_path / "b", folder=True).remove()
    assert len(os.listdir("/proc/self/fd")) == before
