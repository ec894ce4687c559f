"""Limits on what bytes from outside may ask for: checked before memory is taken, and before anything is decoded.

Every reader of packets, files, videos and bags takes a :class:`Limits`. ``docs/security.md`` lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NoReturn

from tatok_edge.errors import InputError, TaTokError

_OPTIONS = {"max_pixels": "--max-pixels"}
"""Options of the command line that raise a limit."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Limits:
    """Largest sizes that readers accept. A reader refuses what is larger, and names the limit.

    Raises:
        InputError: A limit is no whole number from 1.

    Example:
        >>> limits = tatok_edge.Limits(max_pixels=8192 * 4320)
        >>> decoder = tatok_edge.StreamDecoder(tokenizer, limits=limits)
    """

    max_pixels: int = 4096 * 2304
    """Pixels of a picture: of a packet, a picture file, a video, a camera message. Decoding takes about 130 bytes of
    memory per pixel, so a picture of this size takes 1.2 GB."""
    max_packet: int = 16 << 20
    """Bytes of a packet. Packets that wait for earlier ones may have as many bytes together."""
    max_file: int = 256 << 20
    """Bytes of a file that is read as a whole: a picture, a list, the metadata of a bag."""
    max_metadata: int = 16 << 20
    """Bytes of the metadata of a data set of tokens, which lists its clips: 16 MiB hold about 70,000. Reading so much
    takes up to 0.5 GB of memory."""
    max_chunk: int = 256 << 20
    """Bytes of a chunk or message of a bag, unpacked."""
    max_ratio: int = 200
    """How many times larger than the compressed file an unpacked file of a bag may be, beyond :attr:`max_chunk`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{field.name} must be a whole number from 1, got {value!r}")

    def __repr__(self) -> str:
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return f"Limits({', '.join(f'{field.name}={value}' for field, value in values if value != field.default)})"

    def check_pixels(self, width: int, height: int, what: str, error: type[TaTokError]) -> None:
        """Checks the size of a picture before it is decoded.

        Args:
            width: Its width in pixels.
            height: Its height in pixels.
            what: What has that size, as in ``"clip.mp4: the video"``.
            error: Class of the error to raise.

        Raises:
            TaTokError: Of class ``error``: it has more pixels than :attr:`max_pixels`.
        """
        if width * height > self.max_pixels:
            self.refuse("max_pixels", width * height, f"{what} is {width}x{height}: {width * height} pixels", error)

    def check(self, name: str, value: int, what: str, error: type[Exception]) -> None:
        """Checks a number of bytes.

        Args:
            name: Name of the limit.
            value: The number.
            what: What has so many bytes.
            error: Class of the error to raise.

        Raises:
            Exception: Of class ``error``: it is more than the limit.
        """
        if value > getattr(self, name):
            self.refuse(name, value, f"{what} has {value} bytes", error)

    def refuse(self, name: str, value: int, what: str, error: type[Exception]) -> NoReturn:
        """Raises the error of a value that is above the limit ``name``."""
        option = f", or {_OPTIONS[name]} {value}" if name in _OPTIONS else ""
        raise error(
            f"{what}, and the limit {name} is {getattr(self, name)}; if you trust the sender, raise it: "
            f"limits=Limits({name}={value}){option}"
        )


DEFAULT_LIMITS = Limits()
"""What readers accept where no limits are given."""
