"""Options that several commands share. Each is defined once, beside the function that reads its value.

Nothing heavy is imported here, not even ``dataclasses``, so ``tatok --help`` answers at once.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final, NamedTuple

from tatok_edge.errors import InputError

if TYPE_CHECKING:
    from tatok_edge.limits import Limits
    from tatok_edge.model.bundle import Precision
    from tatok_edge.model.tokenizer import Tokenizer
    from tatok_edge.tokens.budget import TokenBudget

SOURCE_HELP = (
    "picture, folder of pictures, video file, camera number, rtsp:// or http:// URL, csi:N (Jetson), "
    "gst:PIPELINE, - (a video from standard input), or 'synthetic' (a rendered clip)"
)


class UsageError(Exception):
    """A command line that parses but makes no sense."""


# --- report ----------------------------------------------------------------------------------------


DEBUG_HELP: Final = "show tracebacks, and the messages of OpenCV and FFmpeg"


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """``--json`` and ``--debug``, which every command has."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON document")
    parser.add_argument("--debug", action="store_true", help=DEBUG_HELP)


# --- model -----------------------------------------------------------------------------------------


class ModelChoice(NamedTuple):
    """Which model to run, and how."""

    name: str | None
    """Name or path of the bundle; None for the default model, or for the model that made the file."""
    backend: str
    """Backend that runs the networks, or ``auto``."""
    threads: int | None
    """Threads of the networks; None lets the backend choose."""
    precision: Precision = "fp32"
    """Precision of the decoder, see :meth:`Tokenizer.load`."""
    max_pixels: int | None = None
    """Largest picture that is read or decoded; None for the default."""

    @property
    def limits(self) -> Limits:
        """Limits on what is read and decoded."""
        from tatok_edge.limits import DEFAULT_LIMITS, Limits

        return DEFAULT_LIMITS if self.max_pixels is None else Limits(max_pixels=self.max_pixels)

    def load(self, default: str | None = None) -> Tokenizer:
        """Loads the model.

        Args:
            default: Model that a file names, to load where the user names none; None for the default model. It comes
                from the file, so it is a name and never a path.

        Raises:
            BundleError: There is no such model, or it is damaged.
            BackendError: The backend is not usable here.
        """
        from tatok_edge.model.bundle import DEFAULT_MODEL, named_bundle
        from tatok_edge.model.tokenizer import Tokenizer

        name = self.name or (named_bundle(default) if default else DEFAULT_MODEL)
        return Tokenizer.load(
            name, backend=self.backend, threads=self.threads, precision=self.precision, limits=self.limits
        )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options of the group "model"."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="NAME", help="a shipped model's name, or the path of a model bundle")
    text = "backend that runs the networks: auto, onnxruntime, tensorrt or tensorrt-rtx (default: auto)"
    add_backend(group, text)
    group.add_argument("--threads", type=positive, metavar="N", help="threads of the networks (default: automatic)")
    text = "precision of the networks on a CPU: int8 is faster, its tokens are other ones but as good (default: fp32)"
    add_choice(group, "--precision", ("fp32", "int8"), text)
    text = "largest picture that is read or decoded, in pixels (default: 9437184, 4096x2304)"
    group.add_argument("--max-pixels", type=positive, metavar="N", help=text)


def add_backend(group: argparse._ActionsContainer, help_text: str) -> None:
    """``--backend``."""
    group.add_argument("--backend", default="auto", metavar="NAME", help=help_text)


def model_choice(args: argparse.Namespace) -> ModelChoice:
    """The value of :func:`add_model`."""
    return ModelChoice(args.model, args.backend, args.threads, args.precision, args.max_pixels)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """The bundle of commands that read its graphs instead of running the model."""
    parser.add_argument(
        "bundle", nargs="?", metavar="BUNDLE", help="a shipped model's name, or the path of a model bundle"
    )


def bundle_name(args: argparse.Namespace) -> str:
    """The value of :func:`add_bundle`; the default model where none is named."""
    from tatok_edge.model.bundle import DEFAULT_MODEL

    return str(args.bundle or DEFAULT_MODEL)


# --- budget ----------------------------------------------------------------------------------------


def add_budget(parser: argparse.ArgumentParser, *, stream: bool = False) -> None:
    """The options of a :class:`TokenBudget`; those that streams take alone for a ``stream``."""
    group = parser.add_argument_group("how many tokens (all limits given apply; without any, all tokens are kept)")
    group.add_argument("--tau", type=float, metavar="SHARE", help="share of the total score to keep, above 0 to 1")
    text = "most tokens per patch on average, from 0 to the depth of the model: 0.35, 1 or 2.5"
    group.add_argument("--keep", type=float, metavar="N", help=text)
    group.add_argument("--max-tokens", type=int, metavar="N", help="largest number of patch tokens per frame")
    add_max_depth(group)
    group.add_argument("--max-bits", type=int, metavar="N", help="largest size of a frame in bits")
    add_score(group, stream=stream)
    if not stream:
        add_refine(group)


def add_max_depth(group: argparse._ActionsContainer) -> None:
    """``--max-depth``."""
    group.add_argument(
        "--max-depth",
        type=int,
        metavar="N",
        help="most tokens of one patch (default: the depth of the model); 1: at most one token for each patch",
    )


def add_score(group: argparse._ActionsContainer, *, stream: bool = False) -> None:
    """``--score``; a ``stream`` ranks its tokens by the error that they remove."""
    choices = ("residual", "visual") if stream else ("residual", "visual", "information", "entropy")
    more = "" if stream else "; the information of the token in bits; or its entropy in bits"
    group.add_argument(
        "--score",
        choices=choices,
        help="score that ranks the tokens: the squared error that a token can remove (residual, default); the same, "
        f"less where texture hides errors (visual){more}",
    )


def add_refine(group: argparse._ActionsContainer) -> None:
    """``--refine``."""
    group.add_argument(
        "--refine",
        type=int,
        default=0,
        metavar="PASSES",
        help="choose and correct the tokens with the decoder: a better picture from as many tokens, for more time "
        "(0 to 64, default: 0)",
    )


def token_budget(args: argparse.Namespace) -> TokenBudget:
    """The value of :func:`add_budget`.

    Raises:
        UsageError: A limit is outside its range.
    """
    from tatok_edge.tokens.budget import TokenBudget

    names = ("tau", "keep", "max_tokens", "max_depth", "max_bits", "score", "refine")
    given = {name: getattr(args, name, None) for name in names}
    try:
        return TokenBudget(**{name: value for name, value in given.items() if value is not None})
    except InputError as error:
        raise UsageError(str(error)) from None


# --- frames, streams, bags, outputs ------------------------------------------------------------------


def add_frames(parser: argparse.ArgumentParser, help_text: str) -> None:
    """``--frames N``: how many frames to take."""
    parser.add_argument("--frames", type=positive, metavar="N", help=help_text)


def add_seconds(parser: argparse.ArgumentParser, help_text: str) -> None:
    """``--seconds S``: how many seconds to take."""
    parser.add_argument("--seconds", type=duration, metavar="S", help=help_text)


def add_stream_quality(group: argparse._ActionsContainer, *, keyframe_interval: int, default: int | None) -> None:
    """``--max-loss-db`` and ``--keyframe-interval``.

    Args:
        group: Where to add them.
        keyframe_interval: Interval that the help shows as default.
        default: Value where the option is not given.
    """
    group.add_argument(
        "--max-loss-db",
        type=float,
        metavar="DB",
        help="PSNR that a stream may lose against all tokens of every frame (default: 0.4)",
    )
    group.add_argument(
        "--keyframe-interval",
        type=int,
        default=default,
        metavar="N",
        help=f"frames between keyframes (default: {keyframe_interval})",
    )


def add_bags(parser: argparse.ArgumentParser, keep: str, help_text: str) -> argparse._ArgumentGroup:
    """The options of bags.

    Args:
        parser: The parser of the command.
        keep: Option that keeps the messages of the chosen topics, too.
        help_text: Help of ``keep``.

    Returns:
        The group, for further options.
    """
    group = parser.add_argument_group("bags (IN is an .mcap file or a rosbag2 folder; so is OUT, by its name)")
    group.add_argument("--topic", action="append", metavar="NAME", help="the camera topic; can be given several times")
    group.add_argument(keep, action="store_true", help=help_text)
    add_force(group)
    return group


def refuse_bag_options(args: argparse.Namespace, *names: str) -> None:
    """Checks that no option of bags is given for another input.

    Raises:
        UsageError: One is given.
    """
    for name in names:
        if getattr(args, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} is for bags: .mcap files and rosbag2 folders")


def add_force(group: argparse._ActionsContainer) -> None:
    """``--force``."""
    group.add_argument("--force", action="store_true", help="replace OUT if it exists")


def add_choice(group: argparse._ActionsContainer, name: str, choices: tuple[str, ...], help_text: str) -> None:
    """An option that takes one of some words; by default the first of them."""
    group.add_argument(name, choices=choices, default=choices[0], help=help_text)


# --- types -----------------------------------------------------------------------------------------


def positive(text: str) -> int:
    """A whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return value


def duration(text: str) -> float:
    """Seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text!r}")
    return value


def words(text: str) -> list[str]:
    """Words with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def shares(text: str) -> list[float]:
    """Shares from 0 to 1 with commas between them."""
    return _numbers(text, 1, "shares from 0 to 1")


def keeps(text: str) -> list[float]:
    """Tokens per patch with commas between them, up to the depth that any model may have."""
    return _numbers(text, 8, "tokens per patch from 0 to 8")


def _numbers(text: str, most: float, what: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 <= value <= most for value in values):
        raise argparse.ArgumentTypeError(f"must be {what} with commas between, got {text!r}")
    return values


def sizes(text: str) -> list[tuple[int, int]]:
    """Picture sizes (width, height), as ``640x480``, with commas between them."""
    found = []
    for part in text.split(","):
        width, _, height = part.partition("x")
        if not (width.isdecimal() and height.isdecimal() and 32 <= int(width) <= 16384 and 32 <= int(height) <= 16384):
            raise argparse.ArgumentTypeError(
                f"must be sizes like 640x480 with commas between, 32 to 16384 pixels, got {part!r}"
            )
        found.append((int(width), int(height)))
    return found
