"""Writes ``.ttk`` files.

A file that is being written is named ``NAME.part`` and takes its name only when it is complete.
"""

from __future__ import annotations

import io
import os
from array import array
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from tatok_edge.errors import InputError, SourceError
from tatok_edge.files import Draft, new_part, put_in_place
from tatok_edge.format.header import verify
from tatok_edge.format.layout import MAX_FRAMES, check_model, header_bytes, index_bytes, reason
from tatok_edge.format.packet import pack
from tatok_edge.format.protocol import EntropyModel
from tatok_edge.format.varint import Buffer
from tatok_edge.tokens.frame import TokenFrame


class Writer(Draft):
    """Writes a ``.ttk`` file; use it in a ``with`` statement.

    Packets go to ``NAME.part`` beside the output and are flushed one by one, so
    :class:`tatok_edge.format.reader.Reader` reads the file of a killed process. ``close`` adds the index and renames
    the file; only then is an existing file replaced. An exception in the ``with`` block removes the temporary file.

    Args:
        path: The file to write.
        model: Entropy model of the bundle that makes the frames.
        name: Name of the model, as ``Tokenizer.load`` takes it.
        fps: Frames per second, None where frames have no rate.
        metadata: Further data to store, JSON-compatible, up to 64 KiB.

    Raises:
        InputError: An argument does not fit.
        SourceError: The file cannot be made.

    Example:
        >>> with tatok_edge.Writer("frames.ttk", tokenizer.entropy_model, name=tokenizer.name, fps=30) as writer:
        ...     for number, image in enumerate(images):
        ...         writer.write(tokenizer.encode(image, index=number, timestamp_us=number * 33333))
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
        header = header_bytes(model, name, fps, metadata or {})
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
        """Append a packet, key or delta, with or without the model tag; returns its size in bytes.

        Raises:
            FormatError: The packet is damaged or of another model.
            SourceError: The file cannot be written.
        """
        self._open()
        info = verify(data)
        check_model(info, self._model.tag, f"{self.path}")
        return self._append_packet(bytes(data), key=info.kind == "key")

    def close(self, *, partial: bool = False) -> None:
        """Write the index and give the file its name. Closing twice does nothing.

        Args:
            partial: Keep the packets before a failed or interrupted write; otherwise, closing after such a write is
                an error. Without packets, the temporary file is removed and the output left alone.

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
        self._complete(replace=True)

    def leave(self) -> Path | None:
        """Write the index, and leave the file under its temporary name; an existing output stays as it is.

        Returns:
            Where the file is; None without packets, or if it was closed before.

        Raises:
            SourceError: It cannot be completed; the temporary file stays.
        """
        if self._closed:
            return None
        if not self._sizes:
            self.abort()
            return None
        self._complete(replace=False)
        return self.temporary

    def _complete(self, *, replace: bool) -> None:
        """Write the index; with ``replace``, give the file its name."""
        self._closed = True
        try:
            with self._file as file:
                file.seek(self._end)
                file.truncate()
                _write_all(file, index_bytes(self._sizes, self._end))
                os.fsync(file.fileno())
            if replace:
                put_in_place(self.temporary, self.path)
        except OSError as error:
            raise SourceError(
                f"cannot complete {self.path}: {reason(error)}; its frames are in {self.temporary}"
            ) from None

    def abort(self) -> None:
        """Remove the temporary file; an existing output stays as it is."""
        if self._closed:
            return
        self._closed = True
        self._file.close()
        self.temporary.unlink(missing_ok=True)

    def commit(self) -> None:
        """As :meth:`close`; after an error the writer is closed too, and the temporary file stays."""
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
            raise SourceError(f"cannot write {self.temporary}: {reason(error)}") from None
        except BaseException:
            self._failed = True  # interrupted: part of the data may be in the file
            raise
        self._end += len(data)


def _write_all(file: io.FileIO, data: bytes) -> None:
    """Write without a buffer: all bytes go to the operating system at once, so no later flush can fail."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _open_temporary(path: Path) -> tuple[io.FileIO, Path]:
    """A new file beside ``path``. Temporary files of other processes are never reused."""
    try:
        temporary = new_part(path)
        return io.FileIO(temporary, "r+"), temporary
    except OSError as error:
        raise SourceError(f"cannot make {path}.part: {reason(error)}") from None
