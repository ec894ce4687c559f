"""Write ``docs/cli.md`` from the parsers of the commands: ``python docs/make_cli.py``; ``--check`` compares."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from generated import write_or_check

from tatok_edge.cli.main import COMMANDS, actions_of, command_parser

PAGE = Path(__file__).resolve().parent / "cli.md"
HEAD = """# Command line

After this page you know every option of every command. The option `--help` of each command shows the same. The script
`docs/make_cli.py` writes this page from the parsers.

The same words mean the same in all commands: `--frames N` and `--seconds S` end a run early, `--force` replaces an
output that exists, `-o -` writes to standard output, and a source `-` reads from standard input. `--json` prints the
result as one JSON document; `--debug` shows tracebacks. Results go to standard output, all else to standard error.

`tatok completion bash` prints a script that completes commands and options; zsh and fish are there, too.

Exit codes: 0 success, 1 something failed (all good results are kept), 2 wrong command line, 130 Ctrl-C, 143 SIGTERM.
"""


def named(action: argparse.Action) -> str:
    """An option or argument as it is written."""
    value = action.metavar or (
        "{" + ",".join(map(str, action.choices)) + "}" if action.choices else action.dest.upper()
    )
    value = " ".join(value) if isinstance(value, tuple) else str(value)
    if not action.option_strings:
        return value
    return ", ".join(action.option_strings) + ("" if action.nargs == 0 else f" {value}")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, line in COMMANDS.items():
        parts.append(f"\n## tatok {name}\n\n{line[0].upper()}{line[1:]}.\n\n```sh\n")
        parts += [f"{example}\n" for example in import_module(f"tatok_edge.cli.{name}").EXAMPLES]
        parts.append("```\n\n| option | meaning |\n|---|---|\n")
        for action in actions_of(command_parser(name)):
            if action.dest not in ("help", "json", "debug"):
                text = " ".join((action.help or "").split()).replace("|", "\\|")
                parts.append(f"| `{named(action).replace('|', chr(92) + '|')}` | {text} |\n")
    return "".join(parts)


if __name__ == "__main__":
    sys.exit(write_or_check(__doc__, PAGE, page()))
