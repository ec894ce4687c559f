"""The ends of the ranges of versions, which ``make test-versions`` tests."""

from collections.abc import Callable
from types import ModuleType

import pytest
from helpers.paths import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")


@pytest.fixture
def versions(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("tests/versions.py")


def test_the_oldest_versions_are_those_of_the_ranges(versions: ModuleType) -> None:
    dependencies = ["numpy>=1.24; python_version < '3.13'", "numpy>=2.1,<3; python_version >= '3.13'", "av>=15"]
    assert versions.pins(dependencies, "oldest", "3.10") == ["numpy==1.24", "av==15"]
    assert versions.pins(dependencies, "oldest", "3.13") == ["numpy==2.1", "av==15"]
    assert versions.pins(dependencies, "newest", "3.13") == ["numpy<3,>=2.1", "av>=15"]


@pytest.mark.parametrize("text", ["numpy", "numpy<3", "numpy!=1.25"])
def test_a_range_without_a_beginning_is_refused(versions: ModuleType, text: str) -> None:
    with pytest.raises(ValueError, match=r"give the first version that is allowed, as in numpy>=1\.0"):
        versions.oldest(Requirement(text))


def test_every_core_dependency_has_a_range_on_every_python(versions: ModuleType) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {Requirement(text).name for text in dependencies}
    assert len(names) <= 4
    for python in ("3.10", "3.11", "3.12", "3.13", "3.14"):
        found = [Requirement(text) for text in versions.pins(dependencies, "oldest", python)]
        assert {requirement.name for requirement in found} == names and len(found) == len(names)
        assert all(Version(next(iter(requirement.specifier)).version) for requirement in found)


def test_the_tests_are_there(versions: ModuleType) -> None:
    assert all((ROOT / "tests" / name).exists() for name in versions.TESTS)
