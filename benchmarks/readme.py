"""Put the tables of ``benchmarks/results`` into the README: ``python benchmarks/readme.py``; ``--check`` compares."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = {"quality": "quality", "speed": "speed", "memory": "memory", "streams": "stream"}
"""Section of the README and the result that fills it."""


def filled(text: str, results: Path) -> str:
    """The README's text with every marked section replaced by its table."""
    for name, result in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md: the markers of section '{name}' are missing")
        table = (results / f"{result}.md").read_text()
        text = pattern.sub(lambda match, table=table: match[1] + table + match[2], text)
    return text


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the README is not up to date")
    args = parser.parse_args()
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = filled(old, ROOT / "benchmarks" / "results")
    if args.check:
        return int(old != new)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
