"""Command line of the modules that compile a library: ``build`` and ``find``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tatok_edge.errors import BackendError, InputError


def library_parser(
    module: str, description: str, *, build: str, find: str, sm: str
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser of ``python -m module``, and that of its command ``build``.

    Args:
        module: Full name of the module.
        description: What the command line is for.
        build: Help of ``build``.
        find: Help of ``find``.
        sm: Help of ``--sm``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help=build)
    building.add_argument("--sm", help=sm)
    building.add_argument("--out", type=Path, help="file to write (default: in the user's cache directory)")
    commands.add_parser("find", help=find)
    return parser, building


def run_library_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    *,
    build: Callable[[argparse.Namespace], object],
    find: Callable[[], object],
    note: str,
) -> int:
    """Runs ``build`` or ``find`` and prints its result; returns the exit code.

    Args:
        parser: As :func:`library_parser` gives it.
        arguments: Arguments of the command line; by default those of the process.
        build: Compiles the library.
        find: Finds the library.
        note: Message before a build.
    """
    options = parser.parse_args(arguments)
    try:
        if options.command == "build":
            print(note, file=sys.stderr)
            print(build(options))
        else:
            print(find())
    except (BackendError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
