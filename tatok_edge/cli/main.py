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
    from tatok_edge.cli.commands import ModelChoice
    from tatok_edge.tokens.budget import TokenBudget

OK, FAILED, USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

_SOURCE_HELP = (
    "picture, folder of pictures, video file, camera number, rtsp:// URL, csi:N (Jetson), gst:PIPELINE, "
    "or 'synthetic' (a rendered clip)"
)
_EXAMPLES = """examples:
  tatok encode clip.mp4 -o clip.ttk --keep 0.35     keep the 35 % of the tokens that say most
  tatok encode 0 -o camera.ttk --tau 0.8            from the first camera, until Ctrl-C
  tatok stream 0 -o camera.ttk --max-kbps 200       as a stream: only what changes costs tokens
  tatok decode clip.ttk -o clip_decoded.mp4         back to a video (or to a picture, or a folder of PNG files)
  tatok encode bag.mcap --topic /camera/image_raw -o tokens.mcap   a camera topic of a ROS 2 bag
  tatok demo 0                                      a live page of the camera, its tokens and the reconstruction
  tatok view clip.ttk --source clip.mp4 -o view.png original, kept tokens and reconstruction side by side
  tatok dataset videos/ -o tokens --tau 0.8         a data set of tokens, to train on
  tatok build --precision fp16                      TensorRT engines for this machine's GPU
  tatok verify                                      whether those engines compute what the CPU does
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
    group.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="what runs the networks: auto, onnxruntime, tensorrt or tensorrt-rtx (default: auto)",
    )
    group.add_argument("--threads", type=_positive, metavar="N", help="threads of the networks (default: chosen)")
    group.add_argument(
        "--precision",
        choices=("fp32", "int8"),
        default="fp32",
        help="of the decoder on a CPU: int8 is faster, tokens stay the same (default: fp32)",
    )

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
    _add_budget(encode)
    encode.add_argument("--frames", type=_positive, metavar="N", help="stop after N frames")
    encode.add_argument("--snapshot", metavar="PNG", help="also save the last frame as it came in")
    bags = _add_bags(encode, "keep_images", "keep the images too")
    bags.add_argument("--frames-only", action="store_true", help="every message stands alone (default: key and delta)")
    bags.add_argument("--max-loss-db", type=float, metavar="DB", help="see 'tatok stream' (default: 0.4)")
    bags.add_argument("--keyframe-interval", type=int, metavar="N", help="frames between keyframes (default: 30)")
    encode.set_defaults(run=_encode)

    stream = commands.add_parser("stream", parents=[common, model], help="a camera to tokens of what changes, live")
    stream.add_argument("source", metavar="IN", help=_SOURCE_HELP)
    stream.add_argument("-o", "--output", metavar="OUT.ttk", help="the token file to write (default: none)")
    stream.add_argument("--fps", type=float, metavar="RATE", help="take at most so many frames per second")
    stream.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
    stream.add_argument("--max-kbps", type=float, metavar="K", help="bandwidth in kbit/s, kept in every second")
    stream.add_argument(
        "--max-loss-db",
        type=float,
        metavar="DB",
        help="PSNR that holding and filtering may cost against all tokens of every frame (default: 0.4)",
    )
    stream.add_argument(
        "--keyframe-interval", type=int, default=300, metavar="N", help="frames between keyframes (default: 300)"
    )
    stream.add_argument(
        "--refresh",
        choices=("key", "rolling"),
        help="keyframes (default), or a few cells refreshed in every frame (default with --max-kbps)",
    )
    stream.add_argument(
        "--on-lag",
        choices=("auto", "drop", "wait"),
        default="auto",
        help="drop frames that come too fast, or wait (default: drop those of live sources)",
    )
    _add_budget(stream)
    stream.set_defaults(run=_stream)

    demo = commands.add_parser("demo", parents=[common, model], help="a live page: camera, tokens, reconstruction")
    demo.add_argument(
        "source",
        nargs="?",
        default="synthetic",
        metavar="SOURCE",
        help=_SOURCE_HELP + ", or a token file (default: synthetic); the page can show a browser's webcam instead",
    )
    demo.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine only); any other asks for an access token, "
        "which is part of the address that is printed",
    )
    demo.add_argument("--port", type=int, default=8321, metavar="N", help="port, 0 for a free one (default: 8321)")
    demo.add_argument("--record-to", metavar="DIR", help="folder for recordings (default: nothing can be recorded)")
    demo.add_argument(
        "--size",
        type=_positive,
        default=320,
        metavar="PIXELS",
        help="longer side of the pictures at the start, larger ones are scaled down (default: 320)",
    )
    demo.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=False, help="open the page (default: no)"
    )
    demo.set_defaults(run=_demo)

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
    _add_bags(decode, "keep_tokens", "keep the tokens too")
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
    evaluate.add_argument("folder", nargs="?", metavar="DIR", help="folder of pictures")
    evaluate.add_argument(
        "--keep",
        type=_shares,
        default=[1.0, 0.5, 0.35, 0.25, 0.1],
        metavar="SHARE,...",
        help="shares of the patch tokens to keep (default: 1.0,0.5,0.35,0.25,0.1)",
    )
    evaluate.add_argument("--tau", type=_shares, default=[], metavar="TAU,...", help="shares of the score to keep, too")
    evaluate.add_argument("--ssim", action="store_true", help="measure SSIM and MS-SSIM too (extra 'evaluate')")
    _add_refine(evaluate)
    evaluate.add_argument("--crop", type=_positive, metavar="SIDE", help="only the middle SIDE x SIDE pixels")
    evaluate.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help="also write the report: .json (to compare), .csv (per picture), .md or .png; can be given several times",
    )
    evaluate.add_argument("--force", action="store_true", help="replace OUT if it exists")
    evaluate.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A.json", "RUN_B.json"),
        help="measure nothing; say how much more or fewer tokens and bits run B takes than run A for the same quality",
    )
    evaluate.set_defaults(run=_evaluate)

    bench = commands.add_parser("bench", parents=[common, model], help="speed on this machine")
    bench.add_argument(
        "what",
        nargs="?",
        choices=("images", "stream"),
        default="images",
        help="single images, or a stream of the synthetic camera (default: images)",
    )
    bench.add_argument(
        "--sizes",
        type=_sizes,
        default=[(256, 256), (640, 480)],
        metavar="WxH,...",
        help="picture sizes (default: 256x256,640x480)",
    )
    bench.add_argument(
        "--repeats", type=_positive, default=30, metavar="N", help="runs or frames per size (default: 30)"
    )
    bench.set_defaults(run=_bench)

    dataset = commands.add_parser("dataset", parents=[common, model], help="videos to a data set of tokens")
    dataset.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="videos, folders of pictures, bags, folders of these, or .txt files with one path a line: a clip each",
    )
    dataset.add_argument("-o", "--output", required=True, metavar="OUT", help="the folder to make")
    dataset.add_argument(
        "--format",
        choices=("flat", "parquet", "webdataset", "lerobot"),
        default="flat",
        help="memory-mapped arrays (default), Parquet, tar shards, or LeRobot's layout",
    )
    _add_budget(dataset)
    dataset.add_argument("--frames", type=_positive, metavar="N", help="take the first N frames of every clip")
    dataset.add_argument("--fps", type=float, metavar="RATE", help="frame rate of what has none: pictures, bags")
    dataset.add_argument("--workers", type=_positive, metavar="N", help="workers (default: one per core)")
    dataset.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine (default), or Ray: a cluster where RAY_ADDRESS names one",
    )
    dataset.add_argument("--shard-mb", type=_positive, metavar="MB", help="size of a file of the sharded formats")
    dataset.add_argument("--resume", action="store_true", help="go on with what an interrupted run left")
    dataset.add_argument("--force", action="store_true", help="replace a data set that exists")
    dataset.set_defaults(run=_dataset)

    build = commands.add_parser("build", parents=[common], help="TensorRT engines of a model")
    build.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a shipped model's name, or a bundle's path")
    build.add_argument(
        "--flavour",
        choices=("auto", "trt", "rtx"),
        default="auto",
        help="TensorRT, or TensorRT-RTX, which also builds without a GPU (default: what is installed)",
    )
    build.add_argument("--precision", choices=("fp32", "fp16"), default="fp16", help="precision (default: fp16)")
    build.add_argument(
        "--profiles",
        default="auto",
        metavar="FILE",
        help="frame sizes and token counts as JSON, or 'auto': pictures up to 1920x1088 (default)",
    )
    build.add_argument(
        "--calibrate",
        nargs="+",
        default=[],
        metavar="VIDEO",
        help="fit frame sizes and token counts to these videos, one per camera",
    )
    build.add_argument(
        "--calibrate-as",
        choices=("stream", "frames"),
        default="stream",
        help="count what a stream of them needs, or every frame for itself (default: stream)",
    )
    build.add_argument(
        "--tau",
        type=float,
        metavar="SHARE",
        help="share of the score that --calibrate and --dtf keep, above 0 to 1 (default: 0.5; in streams 1)",
    )
    build.add_argument("--sm", type=_words, metavar="SM,...", help="GPU architectures (default: this machine's GPU)")
    build.add_argument(
        "--dtf", choices=("plugin", "onnx"), help="also an engine for token filtering, as a plugin or without one"
    )
    build.add_argument("-o", "--output", metavar="DIR", help="folder of the engines (default: 'cache', the user's)")
    build.add_argument("--ignore-memory", action="store_true", help="build even with too little free memory")
    build.set_defaults(run=_build)

    verify = commands.add_parser("verify", parents=[common], help="whether a backend computes a model as the CPU does")
    verify.add_argument("bundle", nargs="?", metavar="BUNDLE", help="a shipped model's name, or a bundle's path")
    verify.add_argument("--engines", metavar="DIR", help="folder of the engines (default: the user's cache)")
    verify.add_argument(
        "--backend",
        default="auto",
        metavar="NAME",
        help="what to verify (default: auto, the TensorRT engines); onnxruntime verifies what engines are built from",
    )
    verify.add_argument("--precision", choices=("fp32", "fp16"), help="of the engines or graphs (default: as they are)")
    verify.add_argument(
        "--reference", choices=("onnxruntime",), default="onnxruntime", help="what is taken for right (default: it)"
    )
    verify.add_argument("--frames", metavar="IN", help="frames to compare on: " + _SOURCE_HELP)
    verify.add_argument("--count", type=_positive, default=4, metavar="N", help="how many frames of it (default: 4)")
    verify.set_defaults(run=_verify)

    doctor = commands.add_parser("doctor", parents=[common], help="what this machine can run, and why not the rest")
    doctor.set_defaults(run=_doctor)
    return parser


def _add_budget(command: argparse.ArgumentParser) -> None:
    budget = command.add_argument_group("how many tokens (all limits given apply; without any, all tokens are kept)")
    budget.add_argument("--tau", type=float, metavar="SHARE", help="share of the total score to keep, above 0 to 1")
    budget.add_argument("--keep", type=float, metavar="SHARE", help="largest share of the patch tokens, 0 to 1")
    budget.add_argument("--max-tokens", type=int, metavar="N", help="largest number of patch tokens per frame")
    budget.add_argument("--max-bits", type=int, metavar="N", help="largest size of a frame in bits")
    budget.add_argument(
        "--score",
        choices=("residual", "information", "entropy"),
        help="what ranks the patches: what the global tokens leave of their pixels (residual, the default), or bits: "
        "the information of their code, or its entropy",
    )
    _add_refine(budget)


def _add_refine(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="PASSES",
        help="choose and correct the tokens by what the decoder makes of them: a better picture from as many tokens, "
        "for more time (0 to 64, default: 0)",
    )


def _add_bags(command: argparse.ArgumentParser, keep: str, keep_help: str) -> argparse._ArgumentGroup:
    group = command.add_argument_group("bags (IN is an .mcap file or a rosbag2 folder; so is OUT, by its name)")
    group.add_argument("--topic", action="append", metavar="NAME", help="the camera topic; may be given several times")
    group.add_argument(f"--{keep.replace('_', '-')}", action="store_true", help=keep_help)
    group.add_argument("--force", action="store_true", help="replace OUT if it exists")
    return group


def _only_for_bags(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) not in (None, False):
            raise _UsageError(f"--{name.replace('_', '-')} is for bags: .mcap files and rosbag2 folders")


def _encode(args: argparse.Namespace) -> int:
    from tatok_edge.cli import commands
    from tatok_edge.robotics.bags import bag as robotics_bags

    if robotics_bags.is_bag(args.source):
        from tatok_edge.cli import bags as robotics_command

        if args.snapshot is not None:
            raise _UsageError("--snapshot is not for bags")
        return robotics_command.encode(
            args.source,
            args.output,
            _budget(args),
            _model_choice(args),
            topics=args.topic or (),
            keep_images=args.keep_images,
            frames_only=args.frames_only,
            max_loss_db=args.max_loss_db,
            keyframe_interval=args.keyframe_interval,
            frames=args.frames,
            force=args.force,
            as_json=args.json,
        )
    _only_for_bags(args, "topic", "keep_images", "frames_only", "max_loss_db", "keyframe_interval", "force")
    return commands.encode(
        args.source,
        args.output,
        _budget(args),
        _model_choice(args),
        frames=args.frames,
        snapshot=args.snapshot,
        as_json=args.json,
    )


def _stream(args: argparse.Namespace) -> int:
    from tatok_edge.cli import stream as stream_command

    if args.seconds is not None and not args.seconds > 0:
        raise _UsageError(f"--seconds must be above 0, got {args.seconds:g}")
    return stream_command.stream(
        args.source,
        args.output,
        _budget(args),
        _model_choice(args),
        fps=args.fps,
        seconds=args.seconds,
        max_kbps=args.max_kbps,
        max_loss_db=args.max_loss_db,
        keyframe_interval=args.keyframe_interval,
        refresh=args.refresh,
        on_lag=args.on_lag,
        as_json=args.json,
    )


def _demo(args: argparse.Namespace) -> int:
    from tatok_edge.cli import demo as demo_command

    if not 0 <= args.port <= 65535:
        raise _UsageError(f"--port must be from 0 to 65535, got {args.port}")
    if not 64 <= args.size <= 1920:
        raise _UsageError(f"--size must be from 64 to 1920, got {args.size}")
    return demo_command.demo(
        args.source,
        _model_choice(args),
        host=args.host,
        port=args.port,
        record_to=args.record_to,
        size=args.size,
        browser=args.browser,
        as_json=args.json,
    )


def _model_choice(args: argparse.Namespace) -> ModelChoice:
    from tatok_edge.cli.commands import ModelChoice

    return ModelChoice(args.model, args.backend, args.threads, args.precision)


def _budget(args: argparse.Namespace) -> TokenBudget:
    from tatok_edge.tokens.budget import TokenBudget

    names = ("tau", "keep", "max_tokens", "max_bits", "score", "refine")
    given = {name: getattr(args, name, None) for name in names}
    try:
        return TokenBudget(**{name: value for name, value in given.items() if value is not None})
    except InputError as error:
        raise _UsageError(str(error)) from None


def _decode(args: argparse.Namespace) -> int:
    from tatok_edge.cli import commands
    from tatok_edge.robotics.bags import bag as robotics_bags

    if args.fps is not None and not 0.01 <= args.fps <= 1000:
        raise _UsageError(f"--fps must be from 0.01 to 1000, got {args.fps:g}")
    if robotics_bags.is_bag(args.input):
        from tatok_edge.cli import bags as robotics_command

        if args.frame is not None:
            raise _UsageError("--frame is not for bags")
        return robotics_command.decode(
            args.input,
            args.output,
            _model_choice(args),
            topics=args.topic or (),
            keep_tokens=args.keep_tokens,
            fps=args.fps,
            force=args.force,
            as_json=args.json,
        )
    _only_for_bags(args, "topic", "keep_tokens", "force")
    return commands.decode(
        args.input,
        args.output,
        _model_choice(args),
        frame=args.frame,
        fps=args.fps,
        as_json=args.json,
    )


def _info(args: argparse.Namespace) -> int:
    from tatok_edge.cli import commands

    return commands.info(args.input, as_json=args.json)


def _view(args: argparse.Namespace) -> int:
    from tatok_edge.cli import commands

    return commands.view(
        args.input,
        args.output,
        _model_choice(args),
        frame=args.frame,
        source=args.source,
        as_json=args.json,
    )


def _evaluate(args: argparse.Namespace) -> int:
    from tatok_edge.cli import evaluate as evaluate_command

    if (args.folder is None) == (args.compare is None):
        raise _UsageError("give a folder of pictures, or --compare and two reports")
    if args.compare is not None:
        return evaluate_command.compare(*args.compare, outputs=args.output, force=args.force, as_json=args.json)
    return evaluate_command.evaluate(
        args.folder,
        args.keep,
        _model_choice(args),
        taus=args.tau,
        structure=args.ssim,
        crop=args.crop,
        refine=args.refine,
        outputs=args.output,
        force=args.force,
        as_json=args.json,
    )


def _bench(args: argparse.Namespace) -> int:
    from tatok_edge.cli import commands

    choice = _model_choice(args)
    if args.what == "stream":
        return commands.bench_stream(args.sizes, args.repeats, choice, as_json=args.json)
    return commands.bench(args.sizes, args.repeats, choice, as_json=args.json)


def _dataset(args: argparse.Namespace) -> int:
    from tatok_edge.cli import dataset as dataset_command
    from tatok_edge.datasets.build import Options
    from tatok_edge.model.bundle import DEFAULT_MODEL

    if args.resume and args.force:
        raise _UsageError("--resume goes on with what is there and --force replaces it: give one of them")
    if args.fps is not None and not 0 < args.fps <= 1000:
        raise _UsageError(f"--fps must be above 0 and at most 1000, got {args.fps:g}")
    if args.precision != "fp32":
        raise _UsageError("--precision is that of the decoder, and a data set is only encoded: leave it out")
    options = Options(
        format=args.format,
        model=args.model or DEFAULT_MODEL,
        backend=args.backend,
        threads=args.threads,
        budget=_budget(args),
        frames=args.frames,
        fps=args.fps,
        workers=args.workers,
        engine=args.engine,
        shard_bytes=None if args.shard_mb is None else args.shard_mb << 20,
        resume=args.resume,
        force=args.force,
    )
    return dataset_command.dataset(args.inputs, args.output, options, as_json=args.json)


def _build(args: argparse.Namespace) -> int:
    from tatok_edge.cli import build as build_command
    from tatok_edge.model.bundle import DEFAULT_MODEL

    if args.tau is not None and not 0 < args.tau <= 1:
        raise _UsageError(f"--tau must be above 0 and at most 1, got {args.tau:g}")
    return build_command.build(
        args.bundle or DEFAULT_MODEL,
        flavour=args.flavour,
        precision=args.precision,
        profiles=args.profiles,
        calibrate=args.calibrate,
        count_as=args.calibrate_as,
        tau=args.tau,
        sms=args.sm,
        dtf=args.dtf,
        output=args.output,
        check_memory=not args.ignore_memory,
        as_json=args.json,
        verbose=args.debug,
    )


def _verify(args: argparse.Namespace) -> int:
    from tatok_edge.cli import verify as verify_command
    from tatok_edge.model.bundle import DEFAULT_MODEL

    return verify_command.verify(
        args.bundle or DEFAULT_MODEL,
        folder=args.engines,
        backend=args.backend,
        precision=args.precision,
        source=args.frames or verify_command.SOURCE,
        count=args.count,
        as_json=args.json,
    )


def _doctor(args: argparse.Namespace) -> int:
    from tatok_edge.cli import doctor

    return doctor.run(as_json=args.json)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return value


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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
