"""Reads token files for decode, view and info. In a damaged file, whole frames are read and the others reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

from tatok_edge.cli.options import ModelChoice
from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.packet import unpack_delta
from tatok_edge.format.reader import Reader
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame

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
    with Reader(path, tokenizer.entropy_model) as reader:
        yield tokenizer, reader


class FileDecoder:
    """Decodes frames of a token file by number, whether its frames stand alone or are a stream."""

    def __init__(self, reader: Reader, tokenizer: Tokenizer) -> None:
        self._reader = reader
        self._tokenizer = tokenizer
        self._streamed = not all(reader.is_key(number) for number in range(len(reader)))
        self._decoder = StreamDecoder(tokenizer)
        self._next = 0

    def image(self, number: int) -> Image:
        """The picture of a frame. In a stream, all packets from its keyframe on are read.

        Raises:
            FormatError: The frame, or an earlier frame that it needs, is damaged.
        """
        reader = self._reader
        if not self._streamed:
            return self._tokenizer.decode(reader[number])
        if number < self._next or reader.keyframe_before(number) >= self._next:
            self._next = reader.keyframe_before(number)
            self._decoder = StreamDecoder(self._tokenizer)
        while self._next < number:
            self._next += 1
            with suppress(FormatError):  # frames that need this one will report the damage
                self._decoder.push(reader.packet(self._next - 1))
        self._next = number + 1
        decoded = self._decoder.decode(reader.packet(number))
        if decoded.image is None or not decoded.complete:
            raise FormatError(f"{reader.path}: frame {number}: {decoded.problem or 'patches are missing'}")
        return decoded.image

    def tokens(self, number: int) -> TokenFrame | DeltaFrame:
        """The tokens in the packet of a frame; call :meth:`image` first.

        Raises:
            FormatError: The packet is damaged.
        """
        if self._reader.is_key(number):
            return self._reader[number]
        state = self._decoder.state
        assert state is not None
        return unpack_delta(self._reader.packet(number), self._tokenizer.entropy_model, state.global_ids)


def frame_number(reader: Reader, number: int) -> int:
    """A frame number from 0; negative numbers count from the end.

    Raises:
        InputError: There is no such frame.
    """
    count = len(reader)
    if not -count <= number < count:
        raise InputError(f"--frame must be from {-count} to {count - 1} for {reader.path}, got {number}")
    return number % count


def frame_rate(reader: Reader) -> float:
    """Frame rate for playing: the stated one, unless the time stamps differ (a slow camera, lost frames)."""
    stated = None if reader.fps is None else float(reader.fps)
    try:
        times = [reader.info(number).timestamp_us for number in (0, len(reader) - 1)]
    except FormatError:
        times = [0, 0]
    if times[1] <= times[0]:
        return stated or FALLBACK_FPS
    measured = (len(reader) - 1) * 1e6 / (times[1] - times[0])
    if stated is not None and abs(measured / stated - 1) <= RATE_TOLERANCE:
        return stated
    return float(Fraction(min(max(measured, 0.01), 1000.0)).limit_denominator(1001))


def token_counts(reader: Reader) -> tuple[list[int], list[str]]:
    """Number of tokens of each frame, 0 for a damaged one, and the problems found."""
    counts, problems = [], damage(reader)
    for number in range(len(reader)):
        try:
            counts.append(reader.info(number).n_tokens)
        except FormatError as error:
            counts.append(0)
            problems.append(str(error))
    return counts, problems


def damage(reader: Reader) -> list[str]:
    """Damage of the file as a whole, as a list to which problems of frames are added."""
    return [f"{reader.path}: {reader.damage}"] if reader.damage else []
