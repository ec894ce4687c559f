"""The ``tatok`` command: its commands, its exit codes, and how it reports errors.

Exit codes: 0 success, 1 something failed (all good results are kept), 2 wrong command line, 130 interrupted with
Ctrl-C, 143 ended by SIGTERM, 129 by SIGHUP. Results go to standard output, everything else to standard error.

Each command is a module of this package. Only the module of the given command is imported, so ``tatok --help`` answers
at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import NoReturn

from tatok_edge.cli.options import DEBUG_HELP, UsageError, add_report_options
from tatok_edge.errors import TaTokError, one_line

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

COMMANDS = {
    "encode": "pictures to tokens",
    "stream": "a live camera to tokens of its changes",
    "demo": "a live page: camera, tokens, reconstruction",
    "decode": "tokens to pictures",
    "info": "contents of a token file",
    "view": "a picture of the kept tokens",
    "evaluate": "quality on pictures or a video, or of a decoded video",
    "bench": "speed on this machine",
    "dataset": "videos to a data set of tokens",
    "build": "TensorRT engines of a model",
    "verify": "check a backend against the CPU",
    "doctor": "check this machine: backends, GPU, cameras",
    "completion": "completion of commands and options in a shell",
}
"""Line of each command in ``tatok --help``.

The module ``tatok_edge.cli.NAME`` has ``add_options(parser)``, which defines the options, ``EXAMPLES``, the
command lines at the end of its help, and ``run(args)``, which does the work and returns the exit code. It raises
:class:`~tatok_edge.cli.options.UsageError` for a wrong command line.
"""

_EXAMPLES = """examples:
  tatok encode clip.mp4 -o clip.ttk --keep 1        one token per patch on average, where it helps most
  tatok encode 0 -o camera.ttk --tau 0.8            from the first camera, until Ctrl-C
  tatok stream 0 -o camera.ttk --max-kbps 200       as a stream: only changes cost tokens
  tatok decode clip.ttk -o clip_decoded.mp4         back to a video (or to a picture, or a folder of PNG files)
  tatok encode bag.mcap --topic /camera/image_raw -o tokens.mcap   a camera topic of a ROS 2 bag
  tatok demo 0                                      a live page of the camera, its tokens and the reconstruction
  tatok view clip.ttk --source clip.mp4 -o view.png original, kept tokens and reconstruction side by side
  tatok dataset videos/ -o tokens --tau 0.8         a data set of tokens, to train on
  tatok build --precision fp16                      TensorRT engines for this machine's GPU
  tatok verify                                      check those engines against the CPU
  tatok doctor                                      check this machine: backends, GPU, cameras
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    name = next((word for word in words if not word.startswith("-")), "")
    debug = any(len(word) > 2 and "--debug".startswith(word) for word in words)
    # OpenCV reads these when it is imported. The libraries below it then print nothing: we report in one line.
    if not debug:
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    _prepare_streams()
    fail = partial(_report, name, debug=debug)
    try:
        command = importlib.import_module(f"tatok_edge.cli.{name}") if name in COMMANDS else None
        parser, one = _parser(name, command)
        parser.words = one.words = words
        args, unknown = parser.parse_known_args(words)
        if unknown:
            one.error(_unknown(unknown, one))
        assert command is not None  # without a command, parse_args has ended the program
        code: int = command.run(args)
        if argv is None and code > 128:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends: a further Ctrl-C must not change its code
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a further Ctrl-C must not break into the end of the process
        return fail("interrupted", INTERRUPTED)
    except TaTokError as error:
        return fail(str(error), FAILED)
    except BrokenPipeError:
        # The reader of our output has gone (tatok info | head). Nobody can read a message.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ModuleNotFoundError as error:
        return fail(_missing_module(error), FAILED)
    except MemoryError:
        return fail("out of memory; try smaller pictures", FAILED)
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return fail(f"{path}{error.strerror or error}", FAILED)
    except UsageError as error:
        return fail(str(error), USAGE, hint=f"; see 'tatok {name} --help'")
    except Exception as error:  # a bug in tatok-edge
        return fail(f"unexpected {type(error).__name__}: {error}", FAILED, hint=" (--debug shows where)")


def _prepare_streams() -> None:
    """Makes standard streams that are closed, or that cannot show all characters, take what is printed."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened gets this number, and what a library prints goes into that file.
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
    if sys.stderr is None:  # print(file=None) would print to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (as long as the process)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that is not in the characters of the terminal, or not in UTF-8, must not end the work.
            stream.reconfigure(errors="backslashreplace")


class _Version(argparse.Action):
    """Reads the version only on request: reading it takes longer than all of ``--help``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"tatok {version('tatok-edge')}")
        parser.exit()


class _Help(argparse.HelpFormatter):
    """Keeps the lines of the examples at the end, and fills all other text."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, without the usage text."""

    words: Sequence[str] = ()
    """The command line."""

    def error(self, message: str) -> NoReturn:
        file = next((word for word in self.words if word.startswith("-") and os.path.isfile(word)), None)
        hint = "" if file is None else f"; the file {file} is ./{file} here, because a name with '-' reads as an option"
        self.exit(USAGE, f"{self.prog}: {message}{hint}; see '{self.prog} --help'\n")


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command, with its options."""
    return _parser(name, importlib.import_module(f"tatok_edge.cli.{name}"))[1]


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options and arguments of a parser; argparse has no public name for them."""
    return list(vars(parser)["_actions"])


def _unknown(words: list[str], parser: argparse.ArgumentParser) -> str:
    """What to say about words that no option takes."""
    from difflib import get_close_matches

    near = get_close_matches(
        words[0].partition("=")[0], [option for action in actions_of(parser) for option in action.option_strings], 1
    )
    return f"unrecognized arguments: {' '.join(words)}" + (f"; did you mean {near[0]}?" if near else "")


def _parser(chosen: str, command: ModuleType | None) -> tuple[_Parser, _Parser]:
    """The parser of all commands, and that of the chosen one; only this one has its options."""
    parser = _Parser(
        prog="tatok",
        description="Turns camera frames into few discrete tokens, and tokens back into frames.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    found = parser
    for name, help_text in COMMANDS.items():
        one = commands.add_parser(name, help=help_text)
        if command is not None and name == chosen:
            found = one
            one.description = f"{command.__doc__ or ''}".partition("\n\n")[0].replace("``", "'")
            one.epilog = "\n  ".join(("examples:", *command.EXAMPLES))
            one.formatter_class = _Help
            add_report_options(one)
            command.add_options(one)
    return parser, found


def _report(name: str, message: str, code: int, *, debug: bool, hint: str = "") -> int:
    """Reports a failure in one line, after the traceback with ``--debug``; returns the exit code."""
    if debug:
        traceback.print_exc()
    print(f"tatok {name}: {one_line(message)}{hint}", file=sys.stderr)
    return code


def _missing_module(error: ModuleNotFoundError) -> str:
    if error.name == "cv2":
        return (
            "OpenCV is not installed: pip install opencv-python-headless "
            "(on a Jetson keep JetPack's, which has GStreamer: apt install python3-opencv)"
        )
    return f"{error}; install it, or reinstall tatok-edge"
