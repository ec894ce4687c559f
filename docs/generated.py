"""The command line of the scripts that write a page: ``make_api.py`` and ``make_cli.py``."""

from __future__ import annotations

import argparse
from pathlib import Path


def write_or_check(doc: str | None, page: Path, text: str) -> int:
    """Writes a page, or compares it with ``--check``; returns the exit code.

    Args:
        doc: What the script does, for its help.
        page: The file.
        text: What belongs into it.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the page is not up to date")
    if parser.parse_args().check:
        return int(page.read_text() != text)
    page.write_text(text)
    return 0
