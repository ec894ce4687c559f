"""``tatok completion``: a script that completes commands, options and choices in bash, zsh or fish."""

from __future__ import annotations

import argparse

from tatok_edge.cli.main import COMMANDS, actions_of, command_parser
from tatok_edge.cli.report import print_json

EXAMPLES = ("tatok completion bash", "tatok completion zsh", "tatok completion fish")
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    text = (
        "the shell that reads the script: from ~/.local/share/bash-completion/completions/tatok (bash), _tatok in a "
        "folder of fpath (zsh), or ~/.config/fish/completions/tatok.fish (fish)"
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help=text)


def run(args: argparse.Namespace) -> int:
    """Prints the script."""
    script = {"bash": bash, "zsh": zsh, "fish": fish}[args.shell](words())
    if args.json:
        print_json({"shell": args.shell, "script": script})
    else:
        print(script, end="")
    return 0


Option = tuple[str, str, tuple[str, ...]]
"""An option, its help, and the words that it takes, if these are few."""


def words() -> dict[str, list[Option]]:
    """The options of every command; choices of arguments without a name stand under an empty option."""
    found: dict[str, list[Option]] = {}
    for name in COMMANDS:
        options = found[name] = []
        for action in actions_of(command_parser(name)):
            choices = tuple(str(choice) for choice in action.choices or ())
            help_text = " ".join((action.help or "").split())
            options += [(option, help_text, choices) for option in action.option_strings if option != "-h"]
            if not action.option_strings and choices:
                options.append(("", help_text, choices))
    return found


def bash(commands: dict[str, list[Option]]) -> str:
    """The script for bash; arguments that are no option complete as files."""
    return f"""# tatok completion for bash
_tatok() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}" words=""
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="{" ".join(commands)} --help --version"
    else
        case "${{COMP_WORDS[1]}} $before" in
{_cases(commands)}        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _tatok tatok
"""


def zsh(commands: dict[str, list[Option]]) -> str:
    """The script for zsh: the words of bash, in the way of zsh."""
    return f"""#compdef tatok
# tatok completion for zsh
_tatok() {{
    local words_given=""
    if (( CURRENT == 2 )); then
        words_given="{" ".join(commands)} --help --version"
    else
        case "${{words[2]}} ${{words[CURRENT - 1]}}" in
{_cases(commands, "words_given")}        esac
    fi
    compadd -- ${{=words_given}}
    [[ $PREFIX == -* ]] || _files
}}
compdef _tatok tatok
"""


def _cases(commands: dict[str, list[Option]], variable: str = "words") -> str:
    lines = []
    for name, options in commands.items():
        lines += [
            f'"{name} {option}") {variable}="{" ".join(choices)}" ;;'
            for option, _, choices in options
            if option and choices
        ]
        every = [option or " ".join(choices) for option, _, choices in options]
        lines.append(f'"{name} "*) {variable}="{" ".join(every)}" ;;')
    return "".join(f"            {line}\n" for line in lines)


def fish(commands: dict[str, list[Option]]) -> str:
    """The script for fish, with the help of every option."""
    lines = ["# tatok completion for fish"]
    for name, help_text in COMMANDS.items():
        lines.append(f"complete -c tatok -n __fish_use_subcommand -a {name} -d {_quoted(help_text)}")
    for name, options in commands.items():
        for option, help_text, choices in options:
            flag = f"-{'l' if option.startswith('--') else 's'} {option.lstrip('-')} " if option else ""
            taken = f"-xa {_quoted(' '.join(choices))} " if choices else ""
            lines.append(
                f"complete -c tatok -n '__fish_seen_subcommand_from {name}' {flag}{taken}-d {_quoted(help_text[:80])}"
            )
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
