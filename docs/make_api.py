"""Write ``docs/api.md`` from the docstrings of the public names: ``python docs/make_api.py``; ``--check`` compares."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import sys
from pathlib import Path

import tatok_edge

PAGE = Path(__file__).resolve().parent / "api.md"
HEAD = """# Python API

The public names of `import tatok_edge`. `help(tatok_edge.Tokenizer)` shows shapes, units and errors. The script
`docs/make_api.py` writes this page from the docstrings. More: [quick start](quickstart.md), [streams](streams.md),
[robotics](robotics.md), [token data sets](datasets.md).
"""


def first_line(thing: object) -> str:
    """The first paragraph of a docstring as one line."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


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


def members(kind: type) -> list[tuple[str, str]]:
    """Public properties and methods of a class, with their descriptions."""
    found = []
    for name, value in inspect.getmembers_static(kind):
        if name.startswith(("_", "check_")) or (dataclasses.is_dataclass(kind) and name in kind.__dataclass_fields__):
            continue
        if isinstance(value, property):
            found.append((name, first_line(value.fget)))
        elif isinstance(value, (classmethod, staticmethod)):
            found.append((call(name, value.__func__), first_line(value.__func__)))
        elif inspect.isfunction(value):
            found.append((call(name, value), first_line(value)))
    return [(text, line) for text, line in found if line]


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in tatok_edge.__all__:
        thing = getattr(tatok_edge, name)
        parts.append(f"\n## {name}\n\n{first_line(thing)}\n")
        if inspect.isclass(thing) and issubclass(thing, Exception):
            parts.append(f"\nBase: `{thing.__mro__[1].__name__}`.\n")
            continue
        if not inspect.isclass(thing):
            parts.append(f"\n`{call(name, thing)}`\n")
            continue
        if not getattr(thing, "_is_protocol", False):
            parts.append(f"\n`{call(name, thing)}`\n")
        rows = members(thing)
        if rows:
            parts.append("\n| member | description |\n|---|---|\n")
            parts += [f"| `{text}` | {line} |\n" for text, line in rows]
    return "".join(parts)


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the page is not up to date")
    args = parser.parse_args()
    if args.check:
        return int(PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
