"""ROS 2 camera messages and bags, without ROS. Bags need the ``robotics`` extra."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tatok_edge.robotics.topics import ImageEncoder as ImageEncoder
    from tatok_edge.robotics.topics import TokenDecoder as TokenDecoder
    from tatok_edge.robotics.topics import packet_to_message as packet_to_message

__all__ = ["ImageEncoder", "TokenDecoder", "packet_to_message"]


def __getattr__(name: str) -> Any:
    # Imported when first used: reading bags needs no tokenizer.
    if name not in __all__:
        raise AttributeError(f"module 'tatok_edge.robotics' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.topics"), name)
