"""``.ttk`` files: packets one after the other, an index at the end; ``docs/format.md`` is the specification.

A file that was cut off is read up to its last whole packet. A file that is being written is named ``NAME.part`` and
takes its name only when it is complete.
"""

from __future__ import annotations

import io
import json
import operator
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, TypeVar

from tatok_edge.errors import FormatError, InputError, SourceError
from tatok_edge.format.header import MAX_PACKET, MIN_PACKET, PacketInfo, packet_size, verify
from tatok_edge.format.packet import pack, unpack
from tatok_edge.format.protocol import EntropyModel
from tatok_edge.format.varint import Buffer, read_varint, varint
from tatok_edge.tokens.checks import TAG_BYTES
from tatok_edge.tokens.frame import TokenFrame

MAGIC: Final = b"\x89TTK\r\n\x1a\n"
"""First bytes of every file; as in PNG, they show a transfer that changed line ends or dropped the high bit."""
END_MAGIC: Final = b"TTKE"
VERSION: Final = 1
"""Version of the file format that is written; the newest that is read."""
MAX_METADATA: Final = 64 << 10
"""Largest size of the metadata as JSON in bytes."""
MAX_NAME: Final = 255
"""Largest size of a model name as UTF-8 in bytes."""
MAX_FRAMES: Final = 1 << 24
"""Largest number of packets in a file."""

_INDEX: Final = 0xAE
_PREFIX: Final = struct.Struct("<8sBI")
_FOOTER: Final = struct.Struct("<QI4s")
_MAX_HEADER: Final = 128 << 10
_MAX_LEVELS: Final = 16
_MAX_LEVEL: Final = 4096
_MAX_RATE: Final = (1 << 32) - 1

Item = TypeVar("Item")


class Writer:
    """Writes a ``.ttk`` file; use it in a ``with`` statement.

    Packets go to ``NAME.part`` beside the output and are flushed one by one, so that a process that is killed leaves
    a file that :class:`Reader` reads. ``close`` adds the index and renames it; only then is an existing file replaced.
    Leaving the ``with`` block by an exception removes the temporary file.

    Args:
        path: The file to write.
        model: Entropy model of the bundle that makes the frames.
        name: Name of the model, as ``Tokenizer.load`` takes it.
        fps: Frames per second, None where frames have no rate.
        metadata: What else is to be kept, JSON-compatible, up to 64 KiB.

    Raises:
        InputError: An argument does not fit.
        SourceError: The file cannot be made.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: EntropyModel,
        *,
        name: str,
        fps: Fraction | float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        header = _header_bytes(model, name, fps, metadata or {})
        self.path: Final = Path(path)
        """The file to write."""
        if self.path.is_dir():
            raise InputError(f"{self.path} is a folder; give the name of a file")
        self._model = model
        self._sizes = array("Q")
        self._closed = False
        self._failed = False
        self._file, self.temporary = _open_temporary(self.path)
        self._start = self._end = 0
        try:
            self._append(header)
        except BaseException:
            self.abort()
            raise
        self._start = self._end

    @property
    def n_bytes(self) -> int:
        """Bytes written so far."""
        return self._end

    def __len__(self) -> int:
        return len(self._sizes)

    def write(self, frame: TokenFrame) -> int:
        """Pack and append a frame; returns the size of its packet in bytes.

        Raises:
            InputError: The frame is of another model.
            SourceError: The file cannot be written, for example because the disk is full.
        """
        self._open()
        return self._append_packet(pack(frame, self._model, embed_model=False), key=True)

    def write_packet(self, data: Buffer) -> int:
        """Append a packet as it is, key or delta, with or without the tag of the model; returns its size in bytes.

        Raises:
            FormatError: The packet is damaged or of another model.
            SourceError: The file cannot be written.
        """
        self._open()
        info = verify(data)
        _check_model(info, self._model.tag, f"{self.path}")
        return self._append_packet(bytes(data), key=info.kind == "key")

    def close(self, *, partial: bool = False) -> None:
        """Write the index and give the file its name. Closing twice does nothing.

        Args:
            partial: Keep the packets before a failed or interrupted write; without it, closing after one is an
                error. Where there is no packet to keep, the temporary file is removed and the output left alone.

        Raises:
            SourceError: A write failed before (with ``partial=False``), or the file cannot be completed; the
                temporary file stays.
        """
        if self._closed:
            return
        if self._failed and not partial:
            raise SourceError(
                f"cannot complete {self.path}: a write failed; close(partial=True) keeps the {len(self)} frames "
                f"before it, abort() drops them"
            )
        if partial and not self._sizes:
            self.abort()
            return
        self._closed = True
        try:
            with self._file as file:
                file.seek(self._end)
                file.truncate()
                _write_all(file, _index_bytes(self._sizes, self._end))
                os.fsync(file.fileno())
            os.replace(self.temporary, self.path)
        except OSError as error:
            raise SourceError(
                f"cannot complete {self.path}: {_reason(error)}; its frames are in {self.temporary}"
            ) from None

    def abort(self) -> None:
        """Remove the temporary file; an existing output stays as it is."""
        if self._closed:
            return
        self._closed = True
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        finally:
            self._closed = True
            self._file.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"Writer({str(self.path)!r}, {len(self)} frames, {self.n_bytes} bytes, {state})"

    def _open(self) -> None:
        if self._closed:
            raise InputError(f"{self.path} is closed; open a new Writer")
        if self._failed:
            raise SourceError(f"cannot write {self.path}: an earlier write failed; close(partial=True) or abort()")

    def _append_packet(self, packet: bytes, *, key: bool) -> int:
        if len(self._sizes) >= MAX_FRAMES:
            raise InputError(f"{self.path} is full: a file holds at most {MAX_FRAMES} frames; begin another one")
        self._append(packet)
        self._sizes.append(len(packet) << 1 | key)
        return len(packet)

    def _append(self, data: bytes) -> None:
        try:
            _write_all(self._file, data)
        except OSError as error:
            self._failed = True
            raise SourceError(f"cannot write {self.temporary}: {_reason(error)}") from None
        except BaseException:
            self._failed = True  # interrupted: part of the data may be in the file
            raise
        self._end += len(data)


class Reader:
    """Reads a ``.ttk`` file by frame number; use it in a ``with`` statement.

    ``reader[i]`` is a :class:`TokenFrame`, ``len(reader)`` their number, iteration goes through all. Delta packets of
    streams are no frames of their own: ``packets`` gives them as they are, for a stream decoder, ``keyframe_before``
    where to begin. A file without its index is scanned and read up to its last whole packet; ``complete`` and
    ``damage`` tell.

    Args:
        path: The file to read.
        model: Entropy model of the bundle that made it. Without one, headers and raw packets can be read.

    Raises:
        SourceError: The file cannot be opened or read.
        FormatError: It is not a ``.ttk`` file, is too new, is cut off in its header, or is of another model.
    """

    name: str
    """Name of the model that made the file."""
    tag: bytes
    """Tag of that model, 8 bytes."""
    levels: tuple[int, ...]
    """FSQ levels of that model."""
    fps: Fraction | None
    """Frames per second; None where the frames have no rate."""
    metadata: dict[str, Any]
    """What else the writer kept."""
    damage: str | None
    """What is wrong with the file as a whole, one line; None where nothing is."""
    problems: list[str]
    """One line for each frame that iteration with ``on_error="skip"`` has left out."""

    def __init__(self, path: str | os.PathLike[str], model: EntropyModel | None = None) -> None:
        self.path: Final = Path(path)
        """The file that is read."""
        self.problems = []
        self._model = model
        try:
            self._file: BinaryIO = open(self.path, "rb")  # noqa: SIM115  (closed by close)
        except OSError as error:
            raise SourceError(f"cannot open {self.path}: {_reason(error)}") from None
        try:
            self._load()
        except OSError as error:
            self.close()
            raise SourceError(f"cannot read {self.path}: {_reason(error)}") from None
        except BaseException:
            self.close()
            raise

    @property
    def complete(self) -> bool:
        """Whether the file was closed by its writer and its index is whole."""
        return self.damage is None

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, number: int) -> TokenFrame:
        if self._model is None:
            raise InputError(f"{self.path} was opened without a model; open it with the entropy model of {self.name}")
        number, data = self._packet(number)
        try:
            return unpack(data, self._model)
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
            stop: Frame to stop ahead of; None goes to the end.
            on_error: ``"skip"`` leaves out a damaged frame and notes it in ``problems``.

        Raises:
            FormatError: A frame is damaged, with ``on_error="raise"``.
        """
        return self._each(self.__getitem__, start, stop, on_error)

    def packets(
        self, start: int = 0, stop: int | None = None, *, on_error: Literal["raise", "skip"] = "raise"
    ) -> Iterator[bytes]:
        """Packets ``start`` to ``stop`` in turn as they are in the file, key and delta, CRC checked; needs no model.

        Args:
            start: First packet.
            stop: Packet to stop ahead of; None goes to the end.
            on_error: ``"skip"`` leaves out a damaged packet and notes it in ``problems``.

        Raises:
            FormatError: A packet is damaged, with ``on_error="raise"``.
        """
        return self._each(self.packet, start, stop, on_error)

    def packet(self, number: int) -> bytes:
        """The packet of a frame as it is in the file, its CRC checked.

        Raises:
            FormatError: The packet is damaged; the message names frame and offset.
        """
        return self._packet(number)[1]

    def info(self, number: int) -> PacketInfo:
        """What the header of a packet says; needs no model.

        Raises:
            FormatError: The packet is damaged; the message names frame and offset.
        """
        return verify(self.packet(number))

    def is_key(self, number: int) -> bool:
        """Whether a frame stands alone."""
        return bool(self._sizes[self._number(number)] & 1)

    def keyframe_before(self, number: int) -> int:
        """Number of the nearest key packet at or before frame ``number``: where decoding of the frame begins.

        Raises:
            FormatError: The file has none there.
        """
        number = self._number(number)
        for candidate in range(number, -1, -1):
            if self._sizes[candidate] & 1:
                return candidate
        raise FormatError(f"{self.path}: frame {number} cannot be decoded: no key packet is at or before it")

    def offset(self, number: int) -> int:
        """Where the packet of a frame begins in the file, in bytes."""
        return self._offsets[self._number(number)]

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"damaged: {self.damage}"
        return f"Reader({str(self.path)!r}, {len(self)} frames, model {self.name} {self.tag.hex()}, {state})"

    def _each(
        self, read: Callable[[int], Item], start: int, stop: int | None, on_error: Literal["raise", "skip"]
    ) -> Iterator[Item]:
        if on_error not in ("raise", "skip"):
            raise InputError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        for number in range(*slice(start, stop).indices(len(self))):
            try:
                item = read(number)
            except FormatError as error:
                if on_error == "raise":
                    raise
                self.problems.append(str(error))
            else:
                yield item

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
        try:
            self._file.seek(self._offsets[number])
            data = self._file.read(self._sizes[number] >> 1)
        except OSError as error:
            raise SourceError(f"cannot read {self.path}: {_reason(error)}") from None
        try:
            _check_model(verify(data), self.tag, "the file")
        except FormatError as error:
            raise self._at(number, error) from None
        return number, data

    def _at(self, number: int, error: FormatError) -> FormatError:
        return FormatError(f"{self.path}: frame {number} at byte {self._offsets[number]}: {error}")

    def _load(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        prefix = self._file.read(_PREFIX.size)
        if prefix[: len(MAGIC)] != MAGIC:
            start = prefix[: len(MAGIC)].hex(" ") or "nothing"
            raise FormatError(f"{self.path} is not a .ttk file: it begins with {start}, not with {MAGIC.hex(' ')}")
        if len(prefix) < _PREFIX.size:
            raise FormatError(f"{self.path} is cut off in its header, after {size} bytes; nothing can be read")
        _, version, length = _PREFIX.unpack(prefix)
        if version > VERSION or version == 0:
            raise FormatError(
                f"{self.path} has format version {version}, this release reads up to {VERSION}; "
                f"update tatok-edge to read it"
            )
        if length > _MAX_HEADER:
            raise FormatError(
                f"{self.path} is damaged: its header says {length} bytes, at most {_MAX_HEADER} are allowed"
            )
        payload = self._file.read(length)
        crc = self._file.read(4)
        if len(crc) < 4:
            raise FormatError(f"{self.path} is cut off in its header, after {size} bytes; nothing can be read")
        if zlib.crc32(payload, zlib.crc32(prefix)) != int.from_bytes(crc, "little"):
            raise FormatError(f"{self.path} is damaged: the CRC of its header is wrong; nothing can be read safely")
        try:
            self._parse_header(payload)
        except FormatError as error:
            raise FormatError(f"{self.path} has a damaged header: {error}") from None
        if self._model is not None and self._model.tag != self.tag:
            raise FormatError(
                f"{self.path} was made by model {self.name} ({self.tag.hex()}), not by the model that is loaded "
                f"({self._model.tag.hex()}); load {self.name}"
            )
        start = _PREFIX.size + length + 4
        self.damage = self._read_index(start, size)
        if self.damage is not None:
            self._scan(start, size)

    def _parse_header(self, payload: bytes) -> None:
        self.tag = payload[:TAG_BYTES]
        length, at = read_varint(payload, TAG_BYTES, "length of the model name", MAX_NAME, 1)
        self.name = _text(payload[at : at + length], length, "model name")
        if not self.name.isprintable():
            raise FormatError("the model name holds control characters")
        count, at = read_varint(payload, at + length, "number of levels", _MAX_LEVELS, 1)
        levels = []
        for _ in range(count):
            level, at = read_varint(payload, at, "level", _MAX_LEVEL, 2)
            levels.append(level)
        self.levels = tuple(levels)
        numerator, at = read_varint(payload, at, "frame rate", _MAX_RATE)
        denominator, at = read_varint(payload, at, "frame rate", _MAX_RATE, 1)
        self.fps = Fraction(numerator, denominator) if numerator else None
        length, at = read_varint(payload, at, "length of the metadata", MAX_METADATA, 2)
        text = _text(payload[at : at + length], length, "metadata")
        try:
            metadata = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"its metadata is no JSON: {error}") from None
        if not isinstance(metadata, dict):
            raise FormatError(f"its metadata must be a JSON object, got {type(metadata).__name__}")
        self.metadata = metadata

    def _read_index(self, start: int, size: int) -> str | None:
        """Offsets and sizes from the index; what is wrong with it, or None."""
        cut = f"it ends without an index at byte {size}: cut off, or still being written"
        if size < start + _FOOTER.size:
            return cut
        self._file.seek(size - _FOOTER.size)
        footer = self._file.read(_FOOTER.size)
        where, crc, magic = _FOOTER.unpack(footer)
        if magic != END_MAGIC:
            return cut
        damaged = f"its index at the end (byte {where}) is damaged"
        length = size - _FOOTER.size - where
        most = (where - start) // MIN_PACKET
        if where < start or not 2 <= length <= 6 + 5 * min(most, MAX_FRAMES):
            return damaged
        self._file.seek(where)
        block = self._file.read(length)
        if zlib.crc32(footer[:8], zlib.crc32(block)) != crc or block[0] != _INDEX:
            return damaged
        sizes, offsets, offset = array("Q"), array("Q"), start
        try:
            count, at = read_varint(block, 1, "number of packets", min(most, MAX_FRAMES))
            for _ in range(count):
                entry, at = read_varint(block, at, "packet size", MAX_PACKET << 1 | 1, MIN_PACKET << 1)
                sizes.append(entry)
                offsets.append(offset)
                offset += entry >> 1
        except FormatError:
            return damaged
        if offset != where or at != length:
            return damaged
        self._sizes, self._offsets = sizes, offsets
        return None

    def _scan(self, start: int, size: int) -> None:
        """Offsets and sizes packet by packet; stops where no whole packet begins."""
        sizes, offsets, offset = array("Q"), array("Q"), start
        whole = 0
        stopped = None
        while offset < size and len(sizes) < MAX_FRAMES:
            self._file.seek(offset)
            head = self._file.read(6)
            if head[:1] == bytes((_INDEX,)):
                break
            try:
                length = packet_size(head)
            except FormatError:
                stopped = f"no packet begins at byte {offset}"
                break
            if length > size - offset:
                stopped = f"the packet at byte {offset} is cut off"
                break
            key = 0  # no one is sent to a damaged packet to begin with
            self._file.seek(offset)
            data = self._file.read(length)
            offsets.append(offset)
            offset += length
            try:
                key = verify(data).kind == "key"
            except FormatError:
                pass  # told when the frame is read, as long as good ones follow it
            else:
                whole = len(sizes) + 1
            sizes.append(length << 1 | key)
        dropped = len(sizes) - whole
        if dropped:
            stopped = f"the packet at byte {offsets[whole]} is damaged, no good one follows"
        self._sizes, self._offsets = sizes[:whole], offsets[:whole]
        note = f"; {stopped}" if stopped else ""
        self.damage = f"{self.damage}{note}; {whole} whole frames were found"


def _header_bytes(model: EntropyModel, name: str, fps: Fraction | float | None, metadata: Mapping[str, Any]) -> bytes:
    encoded = name.encode() if name.isprintable() else b""
    if not 1 <= len(encoded) <= MAX_NAME:
        raise InputError(f"name must be 1 to {MAX_NAME} bytes of printable text, got {name!r:.80}")
    try:
        text = json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
        document = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata must be JSON-compatible: {error}") from None
    if len(document) > MAX_METADATA:
        raise InputError(f"metadata must be at most {MAX_METADATA} bytes as JSON, got {len(document)}")
    if not 1 <= len(model.levels) <= _MAX_LEVELS or any(not 2 <= level <= _MAX_LEVEL for level in model.levels):
        raise InputError(f"levels must be 1 to {_MAX_LEVELS} numbers from 2 to {_MAX_LEVEL}, got {model.levels}")
    if len(model.tag) != TAG_BYTES:
        raise InputError(f"the tag of a model must have {TAG_BYTES} bytes, got {len(model.tag)}")
    rate = _rate(fps)
    payload = bytearray(model.tag)
    payload += varint(len(encoded)) + encoded
    payload += varint(len(model.levels)) + b"".join(varint(level) for level in model.levels)
    payload += varint(rate.numerator) + varint(rate.denominator)
    payload += varint(len(document)) + document
    header = _PREFIX.pack(MAGIC, VERSION, len(payload)) + payload
    return header + zlib.crc32(header).to_bytes(4, "little")


def _rate(fps: Fraction | float | None) -> Fraction:
    """Frames per second as a fraction; cameras state 29.97 and mean 30000/1001. Zero stands for none."""
    if fps is None:
        return Fraction(0)
    try:
        rate = Fraction(fps)
        if not isinstance(fps, (Fraction, int)):
            rate = rate.limit_denominator(1001)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"fps must be a positive number or None, got {fps!r}") from None
    if not 0 < rate <= _MAX_RATE or rate.denominator > _MAX_RATE or rate.numerator > _MAX_RATE:
        raise InputError(f"fps must be a positive number that fits 32-bit fractions, got {fps}")
    return rate


def _index_bytes(sizes: array[int], where: int) -> bytes:
    block = bytearray((_INDEX,))
    block += varint(len(sizes))
    for entry in sizes:
        block += varint(entry)
    place = where.to_bytes(8, "little")
    return bytes(block) + _FOOTER.pack(where, zlib.crc32(place, zlib.crc32(block)), END_MAGIC)


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Without a buffer: what was written is with the operating system, and nothing is left to fail later."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _open_temporary(path: Path) -> tuple[io.FileIO, Path]:
    """A new file beside ``path``. One that another process left or still writes is never taken over."""
    for attempt in range(1000):
        temporary = path.with_name(f"{path.name}.part{attempt or ''}")
        try:
            return io.FileIO(temporary, "x"), temporary
        except FileExistsError:
            continue
        except OSError as error:
            raise SourceError(f"cannot make {temporary}: {_reason(error)}") from None
    raise SourceError(f"cannot make {path}.part: 1000 files of unfinished runs are beside it; remove or rename them")


def _check_model(info: PacketInfo, tag: bytes, owner: str) -> None:
    if info.model is not None and info.model != tag:
        raise FormatError(f"packet was made by model {info.model.hex()}, {owner} is of model {tag.hex()}")


def _text(data: bytes, length: int, name: str) -> str:
    if len(data) < length:
        raise FormatError(f"it ends inside the {name}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise FormatError(f"the {name} is not UTF-8") from None


def _no_constant(value: str) -> Any:
    raise ValueError(f"{value} is not JSON")


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
