"""``-`` in place of a file: packets on standard output and standard input, one after the other.

Each packet carries the tag of its model, so whoever reads them knows whether it has the right one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import BinaryIO

from tatok_edge.cli.options import UsageError
from tatok_edge.errors import FormatError
from tatok_edge.format.header import packet_size
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.tokens.frame import TokenFrame

PIPE = "-"
_HEAD = 6
"""Bytes that tell the size of a packet."""
_TTK = b"\x89TTK"


def check_pipe_output() -> None:
    """Checks that standard output leads to a file or program.

    Raises:
        UsageError: It is a terminal, or closed.
    """
    if sys.stdout is None or sys.stdout.isatty():
        raise UsageError("-o - writes bytes to standard output; pipe them into a program or a file")


class PacketPipe:
    """Writes packets to standard output, each at once.

    Args:
        tokenizer: The model that makes them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = sys.stdout.buffer

    def write(self, frame: TokenFrame) -> int:
        """Writes a frame as a key packet; returns its size in bytes."""
        return self.write_packet(self._tokenizer.pack(frame))

    def write_packet(self, data: bytes) -> int:
        """Writes a packet; returns its size in bytes.

        Raises:
            OSError: It cannot be written, for example because the program behind the pipe has ended.
        """
        self._stream.write(data)
        self._stream.flush()
        return len(data)

    def close(self, *, partial: bool = False) -> None:
        """Leaves standard output open: packets need no end."""

    def leave(self) -> None:
        """As :meth:`close`: what is written cannot be taken back."""


def standard_packets() -> Iterator[bytes]:
    """Packets from standard input.

    Raises:
        UsageError: Standard input is a terminal, or closed.
        FormatError: It holds something else, or breaks off in a packet.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- reads packets from standard input; pipe them in, as from 'tatok stream 0 -o -'")
    return read_packets(sys.stdin.buffer)


def read_packets(stream: BinaryIO) -> Iterator[bytes]:
    """Packets that come one after the other; see :func:`standard_packets`."""
    count = 0
    while head := stream.read(_HEAD):
        if not count and head.startswith(_TTK):
            raise FormatError("standard input: this is a .ttk file, not packets; give its name instead of -")
        try:
            size = packet_size(head)
        except FormatError as error:
            raise FormatError(f"standard input: after {count} packets: {error}") from None
        data = head + stream.read(size - len(head))
        if len(data) < size:
            raise FormatError(f"standard input breaks off after {count} packets: the next has {size} bytes")
        yield data
        count += 1
