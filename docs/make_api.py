"""Write ``docs/api.md`` from the docstrings of the public names: ``python docs/make_api.py``; ``--check`` compares."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from generated import write_or_check

import tatok_edge

PAGE = Path(__file__).resolve().parent / "api.md"
SECTIONS = ("Args", "Returns", "Raises", "Example")
TITLES = {"Args": "Arguments", "Returns": "Returns", "Raises": "Errors"}
HEAD = """# Python API

After this page you can call everything in `import tatok_edge`: arguments, results, errors, fields, and an example that
runs for every name. More: [quick start](quickstart.md), [streams](streams.md), [robotics](robotics.md),
[token data sets](datasets.md). `tatok_edge.__version__` is the version. The script `docs/make_api.py` writes this page
from the docstrings, so `help(tatok_edge.Tokenizer)` shows the same.

Every example begins with this, and with a stream in the file `stream.ttk`:

<!-- example -->
```python
import tatok_edge

tokenizer = tatok_edge.Tokenizer.load()
with tatok_edge.open_source("synthetic:frames=4,width=96,height=64") as source:
    images = [frame.image for frame in source]  # uint8 (H, W, 3), RGB
image = images[0]
```
<!-- /example -->
"""


def markup(text: str) -> str:
    """Text of a docstring as Markdown."""
    text = re.sub(r":(?:class|func|meth|attr|mod|data):`~?\.?(?:tatok_edge\.)?([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def flat(text: str) -> str:
    """A paragraph as one line, for a table or a list."""
    return " ".join(markup(text).split())


def sections(thing: object) -> dict[str, str]:
    """The parts of a docstring: its text under an empty name, and the sections by name."""
    parts: dict[str, list[str]] = {"": []}
    name = ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line.rstrip(":") in SECTIONS and line.endswith(":"):
            name = line.rstrip(":")
            parts[name] = []
        else:
            parts[name].append(line)
    return {name: textwrap.dedent("\n".join(lines)).strip("\n") for name, lines in parts.items()}


def entries(text: str) -> list[str]:
    """The entries ``name: description`` of a section, as items of a list."""
    found: list[str] = []
    for block in re.split(r"\n(?=\S)", text):
        head, _, rest = block.partition(": ")
        # A list within a description keeps its items.
        items = [flat(part) for part in re.split(r"\n\s*- ", rest)]
        found.append(f"- `{flat(head)}`: {items[0]}")
        found += [f"  - {item}" for item in items[1:]]
    return found


def example(thing: object) -> str:
    """The code of an example, without prompts."""
    code = sections(thing).get("Example", "")
    return "\n".join(line[4:] for line in code.splitlines() if line.startswith((">>>", "...")))


def details(thing: object) -> Iterator[str]:
    """Arguments, results, errors and example of a call or class."""
    parts = sections(thing)
    for name, title in TITLES.items():
        if name not in parts:
            continue
        if name == "Returns":
            yield f"\n{title}: {flat(parts[name])}\n"
        else:
            yield f"\n{title}:\n\n" + "\n".join(entries(parts[name])) + "\n"
    if code := example(thing):
        yield f"\n<!-- example -->\n```python\n{code}\n```\n<!-- /example -->\n"


def call(name: str, function: object) -> str:
    """A call as a reader would write it: names and defaults, without annotations."""
    parameters, star = [], False
    for parameter in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parameters.append("*")
            star = True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        default = "=..." if default.startswith("=<") else default
        parameters.append(f"{parameter.name}{default}")
    return f"{name}({', '.join(parameters)})"


def documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    """Names that are set in a class or its ``__init__``, with the docstrings behind them."""
    for node, after in zip(body, [*body[1:], ast.Pass()], strict=False):
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from documented(node.body)
            yield from documented(getattr(node, "orelse", []))
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        name = getattr(targets[0], "id", None) or getattr(targets[0], "attr", None)
        if name and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            yield name, str(after.value.value)
        elif name and isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield name, ""


def fields(kind: type) -> list[tuple[str, str]]:
    """Public attributes of a class with their descriptions."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not part.__module__.startswith("tatok_edge"):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        assert isinstance(tree, ast.ClassDef)
        made = [node.body for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        for body in (tree.body, *made):
            found |= {name: text for name, text in documented(body) if text or name not in found}
    return [(name, flat(text)) for name, text in found.items() if not name.startswith("_") and text]


def members(kind: type) -> tuple[list[tuple[str, str]], list[tuple[str, object]]]:
    """Public properties of a class with their descriptions, and its methods."""
    properties, methods = [], []
    for name, value in inspect.getmembers_static(kind):
        if name.startswith(("_", "check_")):
            continue
        function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
        if isinstance(value, property):
            properties.append((name, flat(sections(value.fget)[""])))
        elif inspect.isfunction(function) and inspect.getdoc(function):
            methods.append((call(name, function), function))
    return properties, methods


def entry(name: str) -> Iterator[str]:
    """All of one public name."""
    thing = getattr(tatok_edge, name)
    yield f"\n## {name}\n\n"
    error = inspect.isclass(thing) and issubclass(thing, Exception)
    if not error and not getattr(thing, "_is_protocol", False):
        yield f"`{call(name, thing)}`\n\n"
    yield markup(sections(thing)[""]) + "\n"
    if error:
        yield f"\nBase: `{thing.__mro__[1].__name__}`.\n"
    yield from details(thing)
    if not inspect.isclass(thing):
        return
    properties, methods = ([], []) if error else members(thing)
    rows = sorted({**dict(fields(thing)), **dict(properties)}.items())
    if rows:
        yield "\n| field | description |\n|---|---|\n"
        yield from (f"| `{field}` | {text.replace('|', chr(92) + '|')} |\n" for field, text in rows)
    for text, method in methods:
        yield f"\n`{text}`\n\n{markup(sections(method)[''])}\n"
        yield from details(method)


def page() -> str:
    """The whole page."""
    return HEAD + "".join(part for name in tatok_edge.__all__ for part in entry(name))


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, PAGE, page()))
