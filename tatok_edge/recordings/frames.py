"""Decodes the frames of a recording by number, whether they stand alone or are a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from tatok_edge.errors import FormatError
from tatok_edge.format.entropy import IntegerEntropyModel
from tatok_edge.format.header import PacketInfo
from tatok_edge.format.packet import unpack_delta
from tatok_edge.geometry import Image
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.stream.state import held_ahead
from tatok_edge.tokens.delta import DeltaFrame
from tatok_edge.tokens.frame import TokenFrame
from tatok_edge.tokens.held import HeldTokens


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


class FileDecoder:
    """Decodes frames of a token file or topic by number, whether its frames stand alone or are a stream.

    Frames in turn are decoded in turn. A jump in a stream reads all packets from the nearest keyframe on.
    """

    def __init__(self, reader: PacketReader, tokenizer: Tokenizer) -> None:
        self._reader = reader
        self._tokenizer = tokenizer
        self._streamed = not all(reader.is_key(number) for number in range(len(reader)))
        self._decoder = StreamDecoder(tokenizer)
        self._next = 0
        self._held: tuple[int, HeldTokens] | None = None

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
        start, before = self._reader.keyframe_before(number), None
        if self._held is not None and start <= self._held[0] < number:
            start, before = self._held[0] + 1, self._held[1]
        *_, last = follow(self._reader, self._tokenizer.entropy_model, start, number + 1, before)
        self._held = number, last[1]
        return last


def follow(
    reader: PacketReader, model: IntegerEntropyModel, start: int, stop: int, held: HeldTokens | None = None
) -> Iterator[tuple[TokenFrame | DeltaFrame, HeldTokens]]:
    """The tokens of packets ``start`` to ``stop - 1``, each with the tokens that are held after it.

    Args:
        reader: The packets.
        model: The entropy model that made them.
        start: First packet.
        stop: Packet to stop before.
        held: Tokens that are held after packet ``start - 1``, where it is not a keyframe that begins.

    Raises:
        FormatError: A packet is damaged, or the packet before a delta is missing.
    """
    index = -1 if held is None else reader.info(start - 1).index
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
