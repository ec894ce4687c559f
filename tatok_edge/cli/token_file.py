"""Reads token files for decode, view and info. In a damaged file, whole frames are read and the others reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from tatok_edge.cli.options import ModelChoice
from tatok_edge.errors import FormatError, InputError
from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.format.header import PacketInfo
from tatok_edge.format.packet import unpack_delta
from tatok_edge.format.reader import Reader
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.state import held_ahead
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens

TOKEN_SUFFIX = ".ttk"
FALLBACK_FPS = 25.0
"""Frame rate of a decoded video where neither the input nor its time stamps give one (a folder of pictures)."""
RATE_TOLERANCE = 0.05
"""Where the rate by the time stamps differs from the stated rate by more than this share, the time stamps count."""


class PacketReader(Protocol):
    """Packets by number: a token file, or a token topic of a bag."""

    @property
    def path(self) -> Path:
        """Where they are."""

    @property
    def damage(self) -> str | None:
        """Damage of the whole, in one line."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> TokenFrame: ...

    def packet(self, number: int) -> bytes:
        """The packet of a frame."""

    def info(self, number: int) -> PacketInfo:
        """The header of a packet."""

    def is_key(self, number: int) -> bool:
        """Whether a frame stands alone."""

    def keyframe_before(self, number: int) -> int:
        """Number of the nearest key packet at or before a frame."""


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
    """Decodes frames of a token file or topic by number, whether its frames stand alone or are a stream."""

    def __init__(self, reader: PacketReader, tokenizer: Tokenizer) -> None:
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

    def tokens(self, number: int) -> tuple[TokenFrame | DeltaFrame, HeldTokens]:
        """The tokens in the packet of a frame, and those that are held after it.

        In a stream, all packets from the keyframe on are read.

        Raises:
            FormatError: The packet, or one that it needs, is damaged.
        """
        start = self._reader.keyframe_before(number)
        *_, last = follow(self._reader, self._tokenizer.entropy_model, start, number + 1)
        return last


def follow(
    reader: PacketReader, model: IntegerEntropyModel, start: int, stop: int
) -> Iterator[tuple[TokenFrame | DeltaFrame, HeldTokens]]:
    """The tokens of packets ``start`` to ``stop - 1``, each with the tokens that are held after it.

    Raises:
        FormatError: A packet is damaged, or the packet before a delta is missing.
    """
    held: HeldTokens | None = None
    index = -1
    for number in range(start, stop):
        if reader.is_key(number):
            frame = reader[number]
            held, index = HeldTokens.of_frame(frame, model.depth), frame.index
            yield frame, held
            continue
        if held is None or reader.info(number).reference != index:
            raise FormatError(f"{reader.path}: frame {number}: the packet before it is missing")
        before = held_ahead(held, reader.info(number).n_updated_cells or 0)
        delta = unpack_delta(reader.packet(number), model, before)
        held, index = before.updated(delta), delta.index
        yield delta, held


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
