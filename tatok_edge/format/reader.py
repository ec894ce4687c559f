"""Reads ``.ttk`` files.

A file that was cut off is read up to its last whole packet.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal, TypeVar

from tatok_edge.closing import Closing
from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.files import open_regular
from tatok_edge.format.header import PacketInfo, verify
from tatok_edge.format.layout import check_model, read_header, read_index, reason
from tatok_edge.format.packet import unpack
from tatok_edge.format.protocol import EntropyModel
from tatok_edge.limits import DEFAULT_LIMITS, Limits
from tatok_edge.tokens.frame import TokenFrame

Item = TypeVar("Item")


class Reader(Closing):
    """Reads a ``.ttk`` file by frame number; use it in a ``with`` statement.

    ``reader[i]`` is a :class:`TokenFrame`, ``len(reader)`` the number of frames, iteration goes through all. Delta
    packets of streams need a stream decoder: ``packets`` gives them unchanged, and ``keyframe_before`` gives the packet
    to begin with. A file without its index is scanned and read up to its last whole packet; ``complete`` and ``damage``
    report it.

    Args:
        path: The file to read.
        model: Entropy model of the bundle that made it. Without one, headers and raw packets can be read.
        limits: Largest packet, and largest picture that is unpacked.

    Raises:
        SourceError: The file cannot be opened or read.
        FormatError: It is not a ``.ttk`` file, is too new, is cut off in its header, or is of another model.

    Example:
        >>> with tatok_edge.Reader("stream.ttk") as reader:  # tatok_edge.open gives pictures, too
        ...     print(len(reader), reader.name, reader.fps, reader.complete)
        ...     sizes = [len(packet) for packet in reader.packets()]
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: EntropyModel | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.path: Final = Path(path)
        """The file that is read."""
        self.problems: Final[list[str]] = []
        """One line for each frame that iteration with ``on_error="skip"`` has left out."""
        self._model = model
        self._limits = limits
        try:
            self._file: BinaryIO = open_regular(self.path)
        except OSError as error:
            raise SourceError(f"cannot open {self.path}: {reason(error)}") from None
        try:
            header, start = read_header(self._file, self.path)
            if model is not None and model.tag != header.tag:
                raise FormatError(
                    f"{self.path} was made by model {header.name} ({header.tag.hex()}), not by the model that is "
                    f"loaded ({model.tag.hex()}); load {header.name}"
                )
            self._index = read_index(self._file, start)
        except OSError as error:
            self.close()
            raise SourceError(f"cannot read {self.path}: {reason(error)}") from None
        except BaseException:
            self.close()
            raise
        self.name: Final = header.name
        """Name of the model that made the file."""
        self.tag: Final = header.tag
        """Tag of that model, 8 bytes."""
        self.levels: Final = header.levels
        """FSQ levels of that model."""
        self.depth: Final = header.depth
        """Most tokens of a patch of that model."""
        self.fps: Final = header.fps
        """Frames per second; None where the frames have no rate."""
        self.metadata: Final = header.metadata
        """Further data that the writer stored with the file."""
        self.damage: Final = self._index.damage
        """Damage of the file as a whole, in one line; None for a complete file."""

    @property
    def complete(self) -> bool:
        """Whether the file was closed by its writer and its index is whole."""
        return self.damage is None

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> TokenFrame:
        if self._model is None:
            raise InputError(f"{self.path} was opened without a model; open it with the entropy model of {self.name}")
        number, data = self._packet(number)
        try:
            return unpack(data, self._model, limits=self._limits)
        except FormatError as error:
            raise self._at(number, error) from None

    def __iter__(self) -> Iterator[TokenFrame]:
        return self.frames()

    def frames(
        self, start: int = 0, stop: int | None = None, *, on_error: Literal["raise", "skip"] = "raise"
    ) -> Iterator[TokenFrame]:
        """Frames ``start`` to ``stop`` in turn.

        Args:
            start: First frame.
            stop: Frame to stop before; None goes to the end.
            on_error: ``"skip"`` leaves out a damaged frame and notes it in ``problems``.

        Raises:
            FormatError: A frame is damaged, with ``on_error="raise"``.
        """
        return self._each(self.__getitem__, slice(start, stop), on_error)

    def packets(
        self, start: int = 0, stop: int | None = None, *, on_error: Literal["raise", "skip"] = "raise"
    ) -> Iterator[bytes]:
        """Packets in turn as they are in the file, key and delta, CRC checked; needs no model.

        The arguments select and skip packets as those of :meth:`frames` do frames.

        Raises:
            FormatError: A packet is damaged, with ``on_error="raise"``.
        """
        return self._each(self.packet, slice(start, stop), on_error)

    def packet(self, number: int) -> bytes:
        """The packet of a frame, unchanged, its CRC checked.

        Raises:
            FormatError: The packet is damaged; the message names frame and offset.
        """
        return self._packet(number)[1]

    def info(self, number: int) -> PacketInfo:
        """Read the header of a packet; needs no model.

        Raises:
            FormatError: The packet is damaged; the message names frame and offset.
        """
        return verify(self.packet(number))

    def is_key(self, number: int) -> bool:
        """Whether a frame stands alone."""
        return self._index.is_key(self._number(number))

    def keyframe_before(self, number: int) -> int:
        """Number of the nearest key packet at or before frame ``number``: where decoding of the frame begins.

        Raises:
            FormatError: No key packet is at or before the frame.
        """
        number = self._number(number)
        for candidate in range(number, -1, -1):
            if self._index.is_key(candidate):
                return candidate
        raise FormatError(f"{self.path}: frame {number} cannot be decoded: no key packet is at or before it")

    def offset(self, number: int) -> int:
        """Where the packet of a frame begins in the file, in bytes."""
        return self._index.offsets[self._number(number)]

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._file.close()

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"damaged: {self.damage}"
        return f"Reader({str(self.path)!r}, {len(self)} frames, model {self.name} {self.tag.hex()}, {state})"

    def _number(self, number: int) -> int:
        index = operator.index(number)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"frame {number} is not in {self.path}: it holds {len(self)} frames, counted from 0")
        return index

    def _packet(self, number: int) -> tuple[int, bytes]:
        number = self._number(number)
        if self._file.closed:
            raise InputError(f"{self.path} is closed; open it again")
        self._limits.check("max_packet", self._index.size(number), f"{self.path}: frame {number}", FormatError)
        try:
            self._file.seek(self._index.offsets[number])
            data = self._file.read(self._index.size(number))
        except OSError as error:
            raise SourceError(f"cannot read {self.path}: {reason(error)}") from None
        try:
            check_model(verify(data), self.tag, "the file")
        except FormatError as error:
            raise self._at(number, error) from None
        return number, data

    def _at(self, number: int, error: FormatError) -> FormatError:
        return FormatError(f"{self.path}: frame {number} at byte {self._index.offsets[number]}: {error}")

    def _each(self, read: Callable[[int], Item], numbers: slice, on_error: Literal["raise", "skip"]) -> Iterator[Item]:
        """Read items in turn; ``"skip"`` notes damaged ones in ``problems``."""
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        for number in range(*numbers.indices(len(self))):
            try:
                item = read(number)
            except FormatError as error:
                if on_error == "raise":
                    raise
                self.problems.append(str(error))
            else:
                yield item
