"""Reads token files for decode, view and info. In a damaged file, whole frames are read and the others reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

from tatok_edge.cli.options import ModelChoice
from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.reader import Reader
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.recordings.frames import PacketReader

TOKEN_SUFFIX = ".ttk"
FALLBACK_FPS = 25.0
"""Frame rate of a decoded video where neither the input nor its time stamps give one (a folder of pictures)."""
RATE_TOLERANCE = 0.05
"""Where the rate by the time stamps differs from the stated rate by more than this share, the time stamps count."""


@contextmanager
def open_token_file(path: str, choice: ModelChoice) -> Iterator[tuple[Tokenizer, Reader]]:
    """Opens a token file with the chosen model, or with the model that made it.

    Raises:
        FormatError: The file is damaged, or holds no frame.
        BundleError: There is no such model.
    """
    with Reader(path) as header:
        if not len(header):
            raise FormatError(f"{path}: {header.damage or 'it holds no frame'}")
        name = header.name
    tokenizer = choice.load(name)
    with Reader(path, tokenizer.entropy_model, limits=tokenizer.limits) as reader:
        yield tokenizer, reader


def frame_number(reader: PacketReader, number: int) -> int:
    """A frame number from 0; negative numbers count from the end.

    Raises:
        InputError: There is no such frame.
    """
    count = len(reader)
    if not -count <= number < count:
        raise InputError(f"--frame must be from {-count} to {count - 1} for {reader.path}, got {number}")
    return number % count


def frame_rate(reader: Reader) -> tuple[float, bool]:
    """Frame rate for playing, and whether the frames have times of their own.

    The rate is the stated one, unless the time stamps differ (a slow camera, lost frames).
    """
    stated = None if reader.fps is None else float(reader.fps)
    try:
        times = [reader.info(number).timestamp_us for number in (0, len(reader) - 1)]
    except FormatError:
        times = [0, 0]
    if times[1] <= times[0]:
        return stated or FALLBACK_FPS, False
    measured = rate_between(len(reader) - 1, *times)
    if stated is not None and abs(measured / stated - 1) <= RATE_TOLERANCE:
        return stated, True
    return measured, True


def rate_between(frames: int, first_us: int, last_us: int) -> float:
    """Frames per second where ``frames`` follow the first one until the last one, times in microseconds."""
    measured = frames * 1e6 / (last_us - first_us)
    return float(Fraction(min(max(measured, 0.01), 1000.0)).limit_denominator(1001))


def token_counts(reader: PacketReader) -> tuple[list[int], list[str]]:
    """Number of tokens of each frame, 0 for a damaged one, and the problems found."""
    counts, problems = [], damage(reader)
    for number in range(len(reader)):
        try:
            counts.append(reader.info(number).n_tokens)
        except FormatError as error:
            counts.append(0)
            problems.append(str(error))
    return counts, problems


def damage(reader: PacketReader) -> list[str]:
    """Damage of the file as a whole, as a list to which problems of frames are added."""
    return [f"{reader.path}: {reader.damage}"] if reader.damage else []
