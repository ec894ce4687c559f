"""Writes bags: an MCAP file, or a folder of rosbag2 with one MCAP file."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tatok_edge.errors import InputError
from tatok_edge.files import NAME_BYTES, Draft, check_target, new_part, put_in_place
from tatok_edge.robotics.bags.metadata import (
    BAG_FILE,
    METADATA_FILE,
    METADATA_RECORD,
    describe,
    dump_info,
    dump_record,
)
from tatok_edge.robotics.bags.records import Channel, Message

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata


class BagWriter(Draft):
    """Writes an MCAP file, or a folder of rosbag2 with one MCAP file; a context manager.

    Args:
        path: A name that ends in ``.mcap``, or has no ending (a folder).
        force: Replace an existing bag.

    Raises:
        InputError: The name has another ending, or exists and ``force`` is not given.
    """

    def __init__(self, path: str | Path, *, force: bool = False) -> None:
        check_output(path, force=force)
        from mcap.writer import CompressionType, Writer

        self.path = Path(path)
        self.rosbag2: dict[str, Any] | None = None
        """Metadata of the bag that is copied, see :attr:`Bag.rosbag2`: its distribution and custom data are kept."""
        self._is_folder = self.path.suffix.lower() != ".mcap"
        self.left: Path | None = None
        """Where :meth:`leave` left the bag."""
        target = self._temporary = new_part(self.path, folder=self._is_folder)
        if self._is_folder:
            self._file_name = os.fsdecode(os.fsencode(self.path.name)[:NAME_BYTES]) + "_0.mcap"
            target = self._temporary / self._file_name
        else:
            self._file_name = self.path.name
        self._file: IO[bytes] = target.open("wb")
        self._writer: Any = Writer(self._file, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="tatok-edge")
        self._channels: dict[Channel, int] = {}
        self._schemas: dict[tuple[str, str, bytes], int] = {}
        self._counts: Counter[Channel] = Counter()
        self._times: tuple[int, int] | None = None

    def write(self, record: Channel | Message | Attachment | Metadata) -> None:
        """Adds a record. A message adds its channel, too.

        Raises:
            OSError: It cannot be written.
        """
        if isinstance(record, Message):
            self._writer.add_message(
                self._channel(record.channel), record.log_time, record.data, record.publish_time, record.sequence
            )
            self._counts[record.channel] += 1
            first, last = self._times or (record.log_time, record.log_time)
            self._times = min(first, record.log_time), max(last, record.log_time)
            return
        if isinstance(record, Channel):
            self._channel(record)
            return
        from mcap.records import Attachment

        if isinstance(record, Attachment):
            self._writer.add_attachment(
                record.create_time, record.log_time, record.name, record.media_type, record.data
            )
        else:
            self._writer.add_metadata(record.name, record.metadata)

    def commit(self) -> None:
        """Completes the bag and gives it its name.

        Raises:
            OSError: It cannot be written.
        """
        if self.left is None:
            self._complete()
            put_in_place(self._temporary, self.path)

    def leave(self) -> Path | None:
        """See :meth:`Draft.leave`."""
        if self._counts and self.left is None:
            self._complete()
            self.left = self._temporary
        return self.left

    def _complete(self) -> None:
        """Completes the bag under its temporary name."""
        info = describe(
            self._file_name, {channel: self._counts[channel] for channel in self._channels}, self._times, self.rosbag2
        )
        if self._is_folder or self.rosbag2 is not None:
            self._writer.add_metadata(METADATA_RECORD, dump_record(info))
        self._writer.finish()
        self._file.close()
        if self._is_folder:
            (self._temporary / METADATA_FILE).write_text(dump_info(info), encoding="utf-8")

    def abort(self) -> None:
        """Removes the unfinished bag."""
        if self.left is not None:
            return
        with suppress(OSError):  # closing writes the buffer, which fails again on a full disk
            self._file.close()
        if self._is_folder:
            shutil.rmtree(self._temporary, ignore_errors=True)
        else:
            self._temporary.unlink(missing_ok=True)

    def _channel(self, channel: Channel) -> int:
        """The number of a channel in the file, which gets its definition first."""
        if channel not in self._channels:
            schema = (channel.type, channel.schema_encoding, channel.schema)
            if channel.type and schema not in self._schemas:
                self._schemas[schema] = self._writer.register_schema(*schema)
            self._channels[channel] = self._writer.register_channel(
                channel.topic, channel.message_encoding, self._schemas.get(schema, 0), dict(channel.metadata)
            )
        return self._channels[channel]


def check_output(path: str | Path, *, force: bool, inputs: Sequence[str | Path] = ()) -> None:
    """Checks the name of an output bag before the work begins; see :func:`tatok_edge.files.check_target`.

    Raises:
        InputError: The name has another ending, exists and ``force`` is not given, or belongs to something else.
    """
    target = Path(path)
    check_target(path, (".mcap", ""), force=force, inputs=inputs)
    if not os.path.lexists(target):
        return
    if target.is_dir() != (not target.suffix):
        raise InputError(f"{path}: is a {'folder' if target.is_dir() else 'file'}; name another output")
    if target.is_dir():
        names = (entry.name for entry in target.iterdir())
        foreign = next((name for name in names if name != METADATA_FILE and not BAG_FILE.fullmatch(name)), None)
        if foreign is not None:
            raise InputError(f"{path}: the folder holds other files than a bag ({foreign}); name another output")
