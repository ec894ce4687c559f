"""The file ``metadata.yaml`` of rosbag2 and the QoS profiles in it: reading and writing."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from tatok_edge.errors import SourceError

if TYPE_CHECKING:
    pass


OLD_METADATA, NEW_METADATA = 5, 9
"""Versions of metadata.yaml that are written: the newest one names its QoS policies, those before number them."""
METADATA_FILE = "metadata.yaml"
LARGEST_METADATA = 16 << 20
INFO = "rosbag2_bagfile_information"
METADATA_RECORD = "rosbag2"
"""Name of the MCAP metadata record in which rosbag2 keeps a copy of metadata.yaml."""


def load_info(text: bytes, name: str) -> dict[str, Any]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise SourceError(f"{name}: is damaged ({str(error).splitlines()[0]})") from None
    info = loaded.get(INFO, loaded) if isinstance(loaded, dict) else None
    if not isinstance(info, dict):
        raise SourceError(f"{name}: is not the metadata of a bag")
    return info


def load_qos(text: str) -> list[dict[str, Any]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        loaded = YAML(typ="safe", pure=True).load(text) if text else []
    except (YAMLError, ValueError, RecursionError):
        return []
    return [entry for entry in loaded if isinstance(entry, dict)] if isinstance(loaded, list) else []


def dump(value: dict[str, Any]) -> str:
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # in the order written above
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
