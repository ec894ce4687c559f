"""Parts of all benchmark scripts: the option ``--out``, and printing and writing the results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with ``--out``.

    Args:
        doc: Docstring of the script; its text is the description, unchanged.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, help="folder for the results, created if missing")
    return made


def publish(
    name: str, report: Mapping[str, Any] | None, text: str, out: Path | None, *, indent: int | None = 1
) -> None:
    """Print ``text``, and write ``name.json`` (unless ``report`` is None) and ``name.md`` into the folder ``out``."""
    print(text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if report is not None:
            (out / f"{name}.json").write_text(json.dumps(report, indent=indent) + "\n", "utf-8")
        (out / f"{name}.md").write_text(text, "utf-8")
