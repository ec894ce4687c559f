"""The rooms: no circles, private names stay at home, files stay small, tests stand alone. Layers: `lint-imports`."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from helpers.paths import ROOT

MODULES = sorted(path for room in ("tatok_edge", "runtime", "export") for path in (ROOT / room).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
MAX_MODULE, MAX_FUNCTION, MAX_METHODS = 600, 80, 20


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(tree: ast.Module) -> set[str]:
    """Names that a module gives to anything: definitions, arguments, and attributes that it assigns."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)  # __slots__
    return names


def is_overload(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it only states a signature of the function below it."""
    return any(isinstance(mark, ast.Name) and mark.id == "overload" for mark in function.decorator_list)


def foreign_privates(source: str) -> list[str]:
    """Private names of other modules that a module uses, with their lines."""
    tree = ast.parse(source)
    own, others = defined(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):  # private names of other libraries are their own matter
            others |= {alias.asname or alias.name for alias in node.names if not alias.name.startswith("tatok_edge")}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tatok_edge"):
            found += [f"{node.lineno}: import {alias.name}" for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            if isinstance(node.value, ast.Name) and node.value.id in others:
                continue
            found.append(f"{node.lineno}: .{node.attr}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_stay_in_their_module(path: Path) -> None:
    assert foreign_privates(path.read_text()) == []


def test_a_foreign_private_name_is_found() -> None:
    lines = [
        "from tatok_edge.stream.state import _Window",
        "import x",
        "x._library",
        "y._inside",
        "def _own(): ...",
        "_own.a",
    ]
    assert foreign_privates("\n".join(lines)) == ["1: import _Window", "4: ._inside"]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sizes(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_MODULE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION, node.name
        elif isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
            methods = [method for method in methods if not is_overload(method)]
            assert len(methods) <= MAX_METHODS, node.name


def imported_tests(source: str) -> list[str]:
    """Test modules that a module imports, in its own code or in code that it starts as text."""
    return re.findall(r"^\s*(?:from|import)\s+((?:tests\.)?(?:\w+\.)*test_\w+)", source, re.MULTILINE)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_imports_another(path: Path) -> None:
    assert imported_tests(path.read_text()) == []


def test_an_import_of_a_test_is_found() -> None:
    assert imported_tests("import os\n    from stream.test_motion import pan") == ["stream.test_motion"]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first one again at the end; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle() -> None:
    built = grimp.build_graph("tatok_edge", cache_dir=None)
    graph = {module: built.find_modules_directly_imported_by(module) for module in built.modules}
    assert len(graph) > 100
    assert circle(graph) == []


def test_a_circle_is_found() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
