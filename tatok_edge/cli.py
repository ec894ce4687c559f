"""The ``tatok`` command: its options, its exit codes, and how it reports what went wrong.

Exit codes: 0 all done, 1 something failed (whatever was good is kept), 2 wrong command line, 130 interrupted with
Ctrl-C, 143 asked to end (SIGTERM). Results go to standard output, everything else to standard error.

Nothing heavy is imported before the command line has been understood, so ``tatok --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

from tatok_edge.errors import InputError, TaTokError

if TYPE_CHECKING:
    from tatok_edge.tokens import TokenBudget

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

_SOURCE_HELP = "picture, folder of pictures, video file, camera number, rtsp:// URL, or 'synthetic' (a rendered clip)"
_EXAMPLES = """examples:
  tatok encode clip.mp4 -o clip.ttk --keep 0.35     keep the 35 % of the tokens that say most
  tatok encode 0 -o camera.ttk --tau 0.8            from the first camera, until Ctrl-C
  tatok decode clip.ttk -o clip_decoded.mp4         back to a video (or to a picture, or a folder of PNG files)
  tatok view clip.ttk --source clip.mp4 -o view.png original, kept tokens and reconstruction side by side
  tatok doctor                                      what this machine can run, and why not the rest
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    # One clear line of our own instead of what the libraries below OpenCV print. They read these on import.
    if not args.debug:
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        run: Callable[[argparse.Namespace], int] = args.run
        code = run(args)
        sys.stdout.flush()
        return code
    except _UsageError as error:
        return _fail(args, str(error), USAGE, hint=f"; see 'tatok {args.command} --help'")
    except KeyboardInterrupt:
        return _fail(args, "interrupted", INTERRUPTED)
    except TaTokError as error:
        return _fail(args, str(error), FAILED)
    except BrokenPipeError:
        # The reader of our output has gone (tatok info | head): nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except ModuleNotFoundError as error:
        return _fail(args, _missing_module(error), FAILED)
    except MemoryError:
        return _fail(args, "out of memory; try smaller pictures", FAILED)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _fail(args, f"{name}{error.strerror or error}", FAILED)
    except Exception as error:  # a bug of ours: still one line, and how to see more
        return _fail(args, f"unexpected {type(error).__name__}: {error}", FAILED, hint=" (--debug shows where)")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for: that takes longer than all of ``--help``."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"tatok {version('tatok-edge')}")
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, not below a screen of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE, f"{self.prog}: {message}; see '{self.prog} --help'\n")


class _UsageError(Exception):
    """Arguments that parse but make no sense."""


def _fail(args: argparse.Namespace, message: str, code: int, *, hint: str = "") -> int:
    if args.debug:
        traceback.print_exc()
    one_line = " ".join(message.split())
    print(f"tatok {args.command}: {one_line}{hint}", file=sys.stderr)
    return code


def _missing_module(error: ModuleNotFoundError) -> str:
    if error.name == "cv2":
        return (
            "OpenCV is not installed: pip install opencv-python-headless "
            "(on a Jetson keep JetPack's, which has GStreamer: apt install python3-opencv)"
        )
    return f"{error}; install it, or reinstall tatok-edge"


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as one JSON document")
    common.add_argument("--debug", action="store_true", help="show tracebacks and the messages of the libraries below")
    model = _Parser(add_help=False)
    group = model.add_argument_group("model")
    group.add_argument("--model", metavar="NAME", help="a shipped model's name, or the path of a model bundle")
    group.add_argument("--backend", default="auto", metavar="NAME", help="what runs the networks (default: auto)")
    group.add_argument("--threads", type=_positive, metavar="N", help="threads of the networks (default: chosen)")

    parser = _Parser(
        prog="tatok",
        description="Turns camera frames into few discrete tokens, and tokens back into frames.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    encode = commands.add_parser("encode", parents=[common, model], help="pictures to tokens")
    encode.add_argument("source", metavar="IN", help=_SOURCE_HELP)
    encode.add_argument("-o", "--output", required=True, metavar="OUT.ttk", help="the token file to write")
    budget = encode.add_argument_group("how many tokens (all limits given apply; without any, all tokens are kept)")
    budget.add_argument("--tau", type=float, metavar="SHARE", help="share of the information to keep, above 0 to 1")
    budget.add_argument("--keep", type=float, metavar="SHARE", help="largest share of the patch tokens, 0 to 1")
    budget.add_argument("--max-tokens", type=int, metavar="N", help="largest number of patch tokens per frame")
    budget.add_argument("--max-bits", type=int, metavar="N", help="largest size of a frame in bits")
    budget.add_argument(
        "--score",
        choices=("information", "entropy"),
        default="information",
        help="what ranks the tokens: information gives the best pictures (default), entropy is faster",
    )
    encode.add_argument("--frames", type=_positive, metavar="N", help="stop after N frames")
    encode.add_argument("--snapshot", metavar="PNG", help="also save the last frame as it came in")
    encode.set_defaults(run=_encode)

    decode = commands.add_parser("decode", parents=[common, model], help="tokens to pictures")
    decode.add_argument("input", metavar="IN.ttk", help="the token file")
    decode.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="OUT",
        help="a video (.mp4), a picture, or a folder (one PNG per frame)",
    )
    decode.add_argument("--frame", type=int, metavar="N", help="only this frame, from 0; negative counts from the end")
    decode.add_argument("--fps", type=float, metavar="RATE", help="frame rate of a video (default: that of the source)")
    decode.set_defaults(run=_decode)

    info = commands.add_parser("info", parents=[common], help="what a token file holds")
    info.add_argument("input", metavar="IN.ttk", help="the token file")
    info.set_defaults(run=_info)

    view = commands.add_parser("view", parents=[common, model], help="a picture of the kept tokens")
    view.add_argument("input", metavar="IN.ttk", help="the token file")
    view.add_argument("-o", "--output", required=True, metavar="PNG", help="the picture to write")
    view.add_argument("--frame", type=int, metavar="N", help="frame to show, from 0 (default: the middle one)")
    view.add_argument("--source", metavar="IN", help="what was encoded, to show beside it: " + _SOURCE_HELP)
    view.set_defaults(run=_view)

    evaluate = commands.add_parser("evaluate", parents=[common, model], help="quality on a folder of pictures")
    evaluate.add_argument("folder", metavar="DIR", help="folder of pictures")
    evaluate.add_argument(
        "--keep",
        type=_shares,
        default=[1.0, 0.5, 0.35, 0.25, 0.1],
        metavar="SHARE,...",
        help="shares of the patch tokens to keep (default: 1.0,0.5,0.35,0.25,0.1)",
    )
    evaluate.set_defaults(run=_evaluate)

    bench = commands.add_parser("bench", parents=[common, model], help="speed on this machine")
    bench.add_argument(
        "--sizes",
        type=_sizes,
        default=[(256, 256), (640, 480)],
        metavar="WxH,...",
        help="picture sizes (default: 256x256,640x480)",
    )
    bench.add_argument("--repeats", type=_positive, default=30, metavar="N", help="runs per size (default: 30)")
    bench.set_defaults(run=_bench)

    doctor = commands.add_parser("doctor", parents=[common], help="what this machine can run, and why not the rest")
    doctor.set_defaults(run=_doctor)
    return parser


def _encode(args: argparse.Namespace) -> int:
    from tatok_edge import commands

    return commands.encode(
        args.source,
        args.output,
        _budget(args),
        commands.ModelChoice(args.model, args.backend, args.threads),
        frames=args.frames,
        snapshot=args.snapshot,
        as_json=args.json,
    )


def _budget(args: argparse.Namespace) -> TokenBudget:
    from tatok_edge.tokens import TokenBudget

    given = {name: getattr(args, name) for name in ("tau", "keep", "max_tokens", "max_bits", "score")}
    try:
        return TokenBudget(**{name: value for name, value in given.items() if value is not None})
    except InputError as error:
        raise _UsageError(str(error)) from None


def _decode(args: argparse.Namespace) -> int:
    from tatok_edge import commands

    if args.fps is not None and not 0.01 <= args.fps <= 1000:
        raise _UsageError(f"--fps must be from 0.01 to 1000, got {args.fps:g}")
    return commands.decode(
        args.input,
        args.output,
        commands.ModelChoice(args.model, args.backend, args.threads),
        frame=args.frame,
        fps=args.fps,
        as_json=args.json,
    )


def _info(args: argparse.Namespace) -> int:
    from tatok_edge import commands

    return commands.info(args.input, as_json=args.json)


def _view(args: argparse.Namespace) -> int:
    from tatok_edge import commands

    return commands.view(
        args.input,
        args.output,
        commands.ModelChoice(args.model, args.backend, args.threads),
        frame=args.frame,
        source=args.source,
        as_json=args.json,
    )


def _evaluate(args: argparse.Namespace) -> int:
    from tatok_edge import commands

    return commands.evaluate(
        args.folder, args.keep, commands.ModelChoice(args.model, args.backend, args.threads), as_json=args.json
    )


def _bench(args: argparse.Namespace) -> int:
    from tatok_edge import commands

    choice = commands.ModelChoice(args.model, args.backend, args.threads)
    return commands.bench(args.sizes, args.repeats, choice, as_json=args.json)


def _doctor(args: argparse.Namespace) -> int:
    from tatok_edge import doctor

    return doctor.run(as_json=args.json)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return value


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise argparse.ArgumentTypeError(f"must be shares from 0 to 1 with commas between, got {text!r}")
    return shares


def _sizes(text: str) -> list[tuple[int, int]]:
    sizes = []
    for part in text.split(","):
        width, _, height = part.partition("x")
        if not (width.isdecimal() and height.isdecimal() and 32 <= int(width) <= 16384 and 32 <= int(height) <= 16384):
            raise argparse.ArgumentTypeError(
                f"must be sizes like 640x480 with commas between, 32 to 16384 pixels, got {part!r}"
            )
        sizes.append((int(width), int(height)))
    return sizes
