"""The folder of a rosbag2 recording: its file names and its ``metadata.yaml`` with the QoS profiles."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from tatok_edge.errors import SourceError
from tatok_edge.files import is_hidden, open_regular
from tatok_edge.robotics.bags.records import QOS_PROFILES, TYPE_HASH, Channel

METADATA_FILE: Final = "metadata.yaml"
METADATA_RECORD: Final = "rosbag2"
"""Name of the MCAP metadata record in which rosbag2 keeps a copy of metadata.yaml."""
NUMBERED_QOS, NAMED_QOS = 5, 9
"""The two versions of metadata.yaml that are written: QoS policies as numbers, and as names."""
BAG_FILE: Final = re.compile(r".+\.(mcap|db3)(\.zst|\.zstd|-wal|-shm|-journal)?", re.IGNORECASE)
"""Names of the recorded files in a folder of rosbag2."""

BAG_SUFFIXES: Final = (".mcap", ".db3")
"""Endings of the files that a bag may be."""
COMPRESSED: Final = (".zst", ".zstd")
"""Endings that the recorder adds to compressed files."""

_LARGEST = 16 << 20
_INFO = "rosbag2_bagfile_information"


def load_info(text: bytes, name: str) -> dict[str, Any]:
    """Reads metadata.yaml.

    Args:
        text: The file; bytes after the first 16 MiB are ignored.
        name: Its name in messages.

    Raises:
        SourceError: It is damaged or describes no bag.
    """
    try:
        loaded = _load(text[:_LARGEST])
    except ValueError as error:
        raise SourceError(f"{name}: is damaged ({error})") from None
    info = loaded.get(_INFO, loaded) if isinstance(loaded, dict) else None
    if not isinstance(info, dict):
        raise SourceError(f"{name}: is not the metadata of a bag")
    return info


def is_metadata(path: Path) -> bool:
    """Whether a file is a metadata.yaml of rosbag2. Other tools write files of that name."""
    try:
        with open_regular(path) as file:
            return _INFO.encode() in file.read(_LARGEST)
    except OSError:
        return False


def file_names(info: dict[str, Any]) -> list[str]:
    """Names of the recorded files, without folders.

    Older versions wrote paths of the recording machine, and a bag may name any file.

    Raises:
        SourceError: It names no files.
    """
    names = info.get("relative_file_paths")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise SourceError(f"{METADATA_FILE}: names no files")
    return list(dict.fromkeys(PurePosixPath(name).name for name in names))


def storage_of(path: Path) -> str:
    """Ending of a recorded file, without the ending of its compression; an empty string for other files."""
    inner = Path(path.stem) if path.suffix.lower() in COMPRESSED else path
    suffix = inner.suffix.lower()
    return suffix if suffix in BAG_SUFFIXES and not is_hidden(path.name) else ""


def dump_info(info: dict[str, Any]) -> str:
    """The text of metadata.yaml."""
    return _dump({_INFO: info})


def dump_record(info: dict[str, Any]) -> dict[str, str]:
    """The contents of the MCAP record :data:`METADATA_RECORD`."""
    return {"serialized_metadata": _dump(info).strip()}


def load_record(record: Mapping[str, str]) -> dict[str, Any]:
    """Reads the contents of the MCAP record :data:`METADATA_RECORD`.

    Raises:
        SourceError: It is damaged.
    """
    return load_info(record.get("serialized_metadata", "").encode(), METADATA_RECORD)


def describe(
    file_name: str, counts: Mapping[Channel, int], times: tuple[int, int] | None, before: dict[str, Any] | None
) -> dict[str, Any]:
    """The metadata of a new bag of one MCAP file.

    Args:
        file_name: Name of the file.
        counts: Number of messages of each channel, zeros included.
        times: First and last time of recording in nanoseconds; None without messages.
        before: Metadata of the bag that was copied, if any.
    """
    topics: dict[tuple[str, str], dict[str, Any]] = {}
    version = NUMBERED_QOS
    for channel, count in counts.items():
        notes = dict(channel.metadata)
        qos = _load_qos(notes.get(QOS_PROFILES, ""))
        if any(isinstance(profile.get("history"), str) for profile in qos):
            version = NAMED_QOS
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
        topic["message_count"] += count
    if version == NAMED_QOS:
        for topic in topics.values():
            topic["topic_metadata"][QOS_PROFILES] = _load_qos(topic["topic_metadata"][QOS_PROFILES])
    first, last = times or (0, 0)
    before = before or {}

    def summary() -> dict[str, Any]:  # a new dictionary each time: YAML would write the second as a reference
        return {
            "duration": {"nanoseconds": last - first},
            "starting_time": {"nanoseconds_since_epoch": first},
            "message_count": sum(counts.values()),
        }

    return {
        "version": version,
        "storage_identifier": "mcap",
        "relative_file_paths": [file_name],
        **summary(),
        "topics_with_message_count": list(topics.values()),
        "compression_format": "",
        "compression_mode": "",
        "files": [{"path": file_name, **summary()}],
        "custom_data": before.get("custom_data"),
        "ros_distro": str(before.get("ros_distro") or "unknown"),
    }


def _load_qos(text: str) -> list[dict[str, Any]]:
    """QoS profiles; none where the text is damaged."""
    try:
        loaded = _load(text) if text else []
    except ValueError:
        return []
    return [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []


def _load(text: str | bytes) -> Any:
    """Reads YAML.

    Raises:
        ValueError: It is damaged.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(str(error).partition("\n")[0]) from None


def _dump(value: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # keep the order of the dictionary
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
