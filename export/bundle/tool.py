"""Tools that make a bundle or add a part to it: their command line, and how a part gets into the bundle."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tatok_edge.errors import TaTokError
from tatok_edge.model.bundle import MANIFEST, Bundle, replace_files


def part_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The parser of a tool that makes a part from pictures and adds it to a bundle folder."""
    parser = argparse.ArgumentParser(f"python -m {module}", description=description)
    parser.add_argument("bundle", type=Path, help="bundle folder, as tatok_edge.export.bundle.onnx writes it")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of at least 8 pictures")
    return parser


def run_tool(work: Callable[[], dict[str, Any]], *errors: type[Exception]) -> int:
    """Prints the result of a tool as JSON, or its error on standard error.

    Args:
        work: Does the work, and returns the result.
        errors: Errors to report beside :class:`TaTokError` and :class:`OSError`.

    Returns:
        The exit code.
    """
    reported: tuple[type[Exception], ...] = (TaTokError, OSError, *errors)
    try:
        result = work()
    except reported as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    return 0


def add_section(bundle: Bundle, key: str, section: dict[str, Any], contents: Mapping[str, bytes]) -> None:
    """Puts files into a bundle folder, and their section into the manifest.

    The manifest is replaced last, so every reader sees all of them or none. Files of an earlier section that are not
    replaced are deleted.
    """
    manifest = (json.dumps({**bundle.manifest, key: section}, indent=1) + "\n").encode()
    before = bundle.manifest.get(key, {}).get("files", {})
    replace_files(bundle.path, {**contents, MANIFEST: manifest})
    for info in before.values():
        if info["file"] not in contents:
            (bundle.path / info["file"]).unlink(missing_ok=True)
