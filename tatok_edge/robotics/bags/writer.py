"""Writes bags: an MCAP file, or a folder of rosbag2 with one MCAP file."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from tatok_edge.errors import InputError
from tatok_edge.pictures.writing import check_target, temporary_name

if TYPE_CHECKING:
    from mcap.records import Attachment, Metadata
from tatok_edge.robotics.bags.bag import BAG_FILE
from tatok_edge.robotics.bags.metadata import (
    INFO,
    METADATA_FILE,
    METADATA_RECORD,
    NEW_METADATA,
    OLD_METADATA,
    dump,
    load_qos,
)
from tatok_edge.robotics.bags.records import QOS_PROFILES, TYPE_HASH, Channel, Message


class BagWriter:
    """Writes an MCAP file, or a folder of rosbag2 with one MCAP file; a context manager that keeps it on success only.

    Args:
        path: A name that ends in ``.mcap``, or has no ending (a folder).
        force: Replace what is there.

    Raises:
        InputError: Another ending, or something is there and ``force`` is not given.
    """

    def __init__(self, path: str | Path, *, force: bool = False) -> None:
        check_output(path, force=force)
        from mcap.writer import CompressionType, Writer

        self.path = Path(path)
        self.rosbag2: dict[str, Any] | None = None
        """What the new bag is to keep of the old one's metadata: see :attr:`Bag.rosbag2`."""
        self.messages = 0
        """Messages written so far."""
        self._is_folder = self.path.suffix != ".mcap"
        self._temporary = temporary_name(self.path)
        if self._is_folder:
            self._temporary.mkdir()
            self._file_name = f"{self.path.name}_0.mcap"
            self._target = self._temporary / self._file_name
        else:
            self._file_name = self.path.name
            self._target = self._temporary
        self._file: IO[bytes] = self._target.open("wb")
        self._writer: Any = Writer(self._file, compression=CompressionType.ZSTD)
        self._writer.start(profile="ros2", library="tatok-edge")
        self._channels: dict[Channel, int] = {}
        self._schemas: dict[tuple[str, str, bytes], int] = {}
        self._counts: Counter[Channel] = Counter()
        self._times: tuple[int, int] | None = None

    def write(self, record: Channel | Message | Attachment | Metadata) -> None:
        """Adds a record; the channel of a message need not be added before it.

        Raises:
            OSError: It cannot be written.
        """
        if isinstance(record, Message):
            self._writer.add_message(
                self._channel(record.channel), record.log_time, record.data, record.publish_time, record.sequence
            )
            self.messages += 1
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
        """Puts the bag in its place.

        Raises:
            OSError: It cannot be written.
        """
        if self._is_folder or self.rosbag2 is not None:
            info = self._info()
            self._writer.add_metadata(METADATA_RECORD, {"serialized_metadata": dump(info).strip()})
        self._writer.finish()
        self._file.close()
        if not self._is_folder:
            os.replace(self._temporary, self.path)
            return
        (self._temporary / METADATA_FILE).write_text(dump({INFO: info}), encoding="utf-8")
        replaced = self._temporary.with_name(self._temporary.name + ".old")
        if self.path.is_dir():
            os.replace(self.path, replaced)
        os.replace(self._temporary, self.path)
        shutil.rmtree(replaced, ignore_errors=True)

    def abort(self) -> None:
        """Throws away what was written."""
        with suppress(OSError):  # closing writes what is left, which fails again on a full disk
            self._file.close()
        if self._is_folder:
            shutil.rmtree(self._temporary, ignore_errors=True)
        else:
            self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.commit()
        except BaseException:
            self.abort()
            raise

    def _channel(self, channel: Channel) -> int:
        if channel not in self._channels:
            schema = (channel.type, channel.schema_encoding, channel.schema)
            if channel.type and schema not in self._schemas:
                self._schemas[schema] = self._writer.register_schema(*schema)
            self._channels[channel] = self._writer.register_channel(
                channel.topic, channel.message_encoding, self._schemas.get(schema, 0), dict(channel.metadata)
            )
        return self._channels[channel]

    def _info(self) -> dict[str, Any]:
        """The contents of metadata.yaml."""
        topics: dict[tuple[str, str], dict[str, Any]] = {}
        version = OLD_METADATA
        for channel in self._channels:
            notes = dict(channel.metadata)
            qos = load_qos(notes.get(QOS_PROFILES, ""))
            if any(isinstance(profile.get("history"), str) for profile in qos):
                version = NEW_METADATA
            topic = topics.setdefault(
                (channel.topic, channel.type),
                {
                    "topic_metadata": {
                        "name": channel.topic,
                        "type": channel.type,
                        "serialization_format": channel.message_encoding,
                        QOS_PROFILES: notes.get(QOS_PROFILES, ""),
                        "type_description_hash": notes.get(TYPE_HASH, ""),
                    },
                    "message_count": 0,
                },
            )
            topic["message_count"] += self._counts[channel]
        if version == NEW_METADATA:
            for topic in topics.values():
                topic["topic_metadata"][QOS_PROFILES] = load_qos(topic["topic_metadata"][QOS_PROFILES])
        first, last = self._times or (0, 0)
        before = self.rosbag2 or {}

        def times() -> dict[str, Any]:  # made anew each time: YAML would write the second one as a reference
            return {
                "duration": {"nanoseconds": last - first},
                "starting_time": {"nanoseconds_since_epoch": first},
                "message_count": self.messages,
            }

        return {
            "version": version,
            "storage_identifier": "mcap",
            "relative_file_paths": [self._file_name],
            **times(),
            "topics_with_message_count": list(topics.values()),
            "compression_format": "",
            "compression_mode": "",
            "files": [{"path": self._file_name, **times()}],
            "custom_data": before.get("custom_data"),
            "ros_distro": str(before.get("ros_distro") or "unknown"),
        }


def check_output(path: str | Path, *, force: bool) -> None:
    """Checks the name of a bag that will be written later, so that nothing is computed in vain.

    Raises:
        InputError: Another ending, or something is there and ``force`` is not given, or it is no bag.
    """
    target = Path(path)
    check_target(path, (".mcap", ""))
    if not os.path.lexists(target):
        return
    if not force:
        raise InputError(f"{path}: exists; name another output, or pass --force to replace it")
    if target.is_dir() != (not target.suffix):
        raise InputError(f"{path}: is a {'folder' if target.is_dir() else 'file'}; name another output")
    if target.is_dir():
        names = (entry.name for entry in target.iterdir())
        foreign = next((name for name in names if name != METADATA_FILE and not BAG_FILE.fullmatch(name)), None)
        if foreign is not None:
            raise InputError(f"{path}: the folder holds other files than a bag ({foreign}); name another output")
