"""As much of ROS 2 as a small node needs, in one process: rclpy, its QoS and its message classes.

Faithful where it matters to a node:

- every message travels as CDR bytes, made and read by ``rosbags`` with the type store of a ROS 2 distribution;
- message classes have the fields of the real ones, refuse others and check types as the generated code does
  (``uint8[]`` is an ``array.array('B')``);
- a subscription keeps the newest ``depth`` messages; ``spin_once`` runs one callback; nothing runs beside it;
- a best-effort publisher does not match a reliable subscription; volatile topics say nothing to those who come late;
- a parameter keeps the type of its default, and ``--ros-args -p name:=value`` overrides it.
"""

from __future__ import annotations

import array
import sys
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

# --- messages -------------------------------------------------------------------------------------


class _Message:
    """Base of the message classes: checked fields with defaults, set by keyword."""

    TYPE: ClassVar[str] = ""
    FIELDS: ClassVar[dict[str, tuple[type, Callable[[], Any]]]] = {}

    def __init__(self, **values: Any) -> None:
        assert set(values) <= set(self.FIELDS), f"Invalid arguments passed to constructor: {sorted(values)}"
        for name, (_, default) in self.FIELDS.items():
            setattr(self, name, values.get(name, default()))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.FIELDS:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        kind = self.FIELDS[name][0]
        if kind is array.array and not isinstance(value, array.array):
            # The generated code looks at every element of anything else: right, but slow.
            assert isinstance(value, Sequence) and not isinstance(value, str), f"{name} must be a sequence of uint8"
            assert all(isinstance(item, int) and 0 <= item < 256 for item in value), f"{name} must be uint8"
            value = array.array("B", value)
        assert isinstance(value, kind), f"The '{name}' field must be of type '{kind.__name__}'"
        assert kind is not array.array or value.typecode == "B", f"{name} must have typecode 'B'"
        object.__setattr__(self, name, value)


class Time(_Message):
    TYPE = "builtin_interfaces/msg/Time"
    FIELDS: ClassVar = {"sec": (int, int), "nanosec": (int, int)}


class Header(_Message):
    TYPE = "std_msgs/msg/Header"
    FIELDS: ClassVar = {"stamp": (Time, Time), "frame_id": (str, str)}


class Empty(_Message):
    TYPE = "std_msgs/msg/Empty"


class Image(_Message):
    TYPE = "sensor_msgs/msg/Image"
    FIELDS: ClassVar = {
        "header": (Header, Header),
        "height": (int, int),
        "width": (int, int),
        "encoding": (str, str),
        "is_bigendian": (int, int),
        "step": (int, int),
        "data": (array.array, lambda: array.array("B")),
    }


class CompressedImage(_Message):
    TYPE = "sensor_msgs/msg/CompressedImage"
    FIELDS: ClassVar = {
        "header": (Header, Header),
        "format": (str, str),
        "data": (array.array, lambda: array.array("B")),
    }


_CLASSES = {kind.TYPE: kind for kind in (Time, Header, Empty, Image, CompressedImage)}


def _to_rosbags(message: _Message, store: Any) -> Any:
    values = {}
    for name in message.FIELDS:
        value = getattr(message, name)
        if isinstance(value, _Message):
            value = _to_rosbags(value, store)
        elif isinstance(value, array.array):
            value = np.frombuffer(value, np.uint8)
        values[name] = value
    return store.types[message.TYPE](**values)


def _from_rosbags(message: Any) -> _Message:
    kind = _CLASSES[message.__msgtype__]
    values = {}
    for name in kind.FIELDS:
        value = getattr(message, name)
        if hasattr(value, "__msgtype__"):
            value = _from_rosbags(value)
        elif isinstance(value, np.ndarray):
            value = array.array("B", value.tobytes())
        values[name] = value
    return kind(**values)


# --- quality of service ---------------------------------------------------------------------------


class HistoryPolicy(Enum):
    KEEP_LAST = 1
    KEEP_ALL = 2


class ReliabilityPolicy(Enum):
    RELIABLE = 1
    BEST_EFFORT = 2


class DurabilityPolicy(Enum):
    TRANSIENT_LOCAL = 1
    VOLATILE = 2


class QoSProfile:
    def __init__(
        self,
        *,
        depth: int,
        history: HistoryPolicy = HistoryPolicy.KEEP_LAST,
        reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
        durability: DurabilityPolicy = DurabilityPolicy.VOLATILE,
    ) -> None:
        self.depth, self.history, self.reliability, self.durability = depth, history, reliability, durability


def _qos(profile: QoSProfile | int) -> QoSProfile:
    """A number stands for the default profile with that depth."""
    return QoSProfile(depth=profile) if isinstance(profile, int) else profile


def _matches(offered: QoSProfile, asked: QoSProfile) -> bool:
    best_effort, volatile = ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE
    return not (
        (offered.reliability is best_effort and asked.reliability is not best_effort)
        or (offered.durability is volatile and asked.durability is not volatile)
    )


# --- nodes ----------------------------------------------------------------------------------------


class Network:
    """What lies between the nodes."""

    def __init__(self, store: Stores = Stores.ROS2_HUMBLE) -> None:
        self.store = get_typestore(store)
        self.subscriptions: list[Subscription] = []
        self.publishers: list[Publisher] = []
        self.lose: Callable[[str, bytes], bool] = lambda topic, data: False
        """Whether a message of a topic is lost on the way."""
        self.sent: list[tuple[str, bytes]] = []
        """Everything that was published, as CDR."""
        self.arguments: list[str] = []
        self.is_up = False


_network = Network()


class InvalidParameterTypeException(Exception):
    pass


class Publisher:
    def __init__(self, node: Node, kind: type[_Message], topic: str, qos: QoSProfile) -> None:
        self.node, self.kind, self.topic_name, self.qos = node, kind, topic, qos
        _network.publishers.append(self)

    def _matching(self) -> list[Subscription]:
        return [
            subscription
            for subscription in _network.subscriptions
            if subscription.topic_name == self.topic_name
            and subscription.kind is self.kind
            and _matches(self.qos, subscription.qos)
        ]

    def get_subscription_count(self) -> int:
        return len(self._matching())

    def publish(self, message: _Message) -> None:
        if type(message) is not self.kind:
            raise TypeError(f"Expected {self.kind}, got {type(message)}")
        network = _network
        data = bytes(network.store.serialize_cdr(_to_rosbags(message, network.store), self.kind.TYPE))
        network.sent.append((self.topic_name, data))
        if not network.lose(self.topic_name, data):
            for subscription in self._matching():
                subscription.queue.append(data)


class Subscription:
    def __init__(
        self, node: Node, kind: type[_Message], topic: str, callback: Callable[[Any], None], qos: QoSProfile
    ) -> None:
        self.node, self.kind, self.topic_name, self.callback, self.qos = node, kind, topic, callback, qos
        self.queue: deque[bytes] = deque(maxlen=qos.depth if qos.history is HistoryPolicy.KEEP_LAST else None)
        _network.subscriptions.append(self)

    def take(self) -> bool:
        if not self.queue:
            return False
        store = _network.store
        self.callback(_from_rosbags(store.deserialize_cdr(self.queue.popleft(), self.kind.TYPE)))
        return True


class _Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def _log(self, level: str, text: str) -> None:
        self.lines.append((level, text))

    def info(self, text: str, **_: Any) -> None:
        self._log("info", text)

    def warning(self, text: str, **_: Any) -> None:
        self._log("warning", text)

    def error(self, text: str, **_: Any) -> None:
        self._log("error", text)


def _parameter(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


class ParameterDescriptor:
    def __init__(self, *, description: str = "") -> None:
        self.description = description


class Node:
    def __init__(self, node_name: str) -> None:
        assert _network.is_up, "rclpy.init() must come first"
        self._name = node_name
        self._logger = _Logger()
        self._parameters: dict[str, Any] = {}
        given = [part for flag, part in zip(_network.arguments, _network.arguments[1:], strict=False) if flag == "-p"]
        self._overrides = {name: _parameter(value) for name, _, value in (part.partition(":=") for part in given)}

    def get_name(self) -> str:
        return self._name

    def get_logger(self) -> _Logger:
        return self._logger

    def declare_parameter(self, name: str, value: Any, descriptor: ParameterDescriptor | None = None) -> Any:
        assert name not in self._parameters, f"ParameterAlreadyDeclaredException: {name}"
        given = self._overrides.get(name, value)
        if type(given) is not type(value):
            raise InvalidParameterTypeException(f"{name}: expected {type(value).__name__}, got {given!r}")
        self._parameters[name] = given
        return SimpleNamespace(name=name, value=given)

    def get_parameter(self, name: str) -> Any:
        return SimpleNamespace(name=name, value=self._parameters[name])

    def create_publisher(self, msg_type: type[_Message], topic: str, qos_profile: QoSProfile | int) -> Publisher:
        return Publisher(self, msg_type, topic, _qos(qos_profile))

    def create_subscription(
        self, msg_type: type[_Message], topic: str, callback: Callable[[Any], None], qos_profile: QoSProfile | int
    ) -> Subscription:
        return Subscription(self, msg_type, topic, callback, _qos(qos_profile))

    def destroy_publisher(self, publisher: Publisher) -> bool:
        _network.publishers.remove(publisher)
        return True

    def destroy_subscription(self, subscription: Subscription) -> bool:
        _network.subscriptions.remove(subscription)
        return True

    def destroy_node(self) -> None:
        _network.subscriptions = [item for item in _network.subscriptions if item.node is not self]
        _network.publishers = [item for item in _network.publishers if item.node is not self]


class ExternalShutdownException(Exception):
    pass


class TransitionCallbackReturn(Enum):
    SUCCESS = 97
    FAILURE = 98
    ERROR = 99


class LifecycleNode(Node):
    """A managed node: a transition that does not begin in the right state is refused."""

    def __init__(self, node_name: str) -> None:
        super().__init__(node_name)
        self.state = "unconfigured"

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        return TransitionCallbackReturn.SUCCESS

    on_activate = on_deactivate = on_cleanup = on_shutdown = on_configure

    def _go(self, begin: str, end: str, callback: Callable[[Any], TransitionCallbackReturn]) -> Any:
        assert self.state == begin, f"Transition is not registered in state {self.state}"
        result = callback(SimpleNamespace(label=begin))
        assert isinstance(result, TransitionCallbackReturn)
        if result is TransitionCallbackReturn.SUCCESS:
            self.state = end
        return result

    def trigger_configure(self) -> Any:
        return self._go("unconfigured", "inactive", self.on_configure)

    def trigger_activate(self) -> Any:
        return self._go("inactive", "active", self.on_activate)

    def trigger_deactivate(self) -> Any:
        return self._go("active", "inactive", self.on_deactivate)

    def trigger_cleanup(self) -> Any:
        return self._go("inactive", "unconfigured", self.on_cleanup)


def init(*, args: list[str] | None = None) -> None:
    _network.arguments = list(args or [])
    _network.is_up = True


def ok() -> bool:
    return _network.is_up


def shutdown() -> None:
    assert _network.is_up, "rcl_shutdown already called on the given context"
    _network.is_up = False


def try_shutdown() -> None:
    _network.is_up = False


def spin_once(node: Node, *, timeout_sec: float | None = None) -> None:
    """Runs one callback of the node, if one is due; nothing is waited for."""
    for subscription in _network.subscriptions:
        if subscription.node is node and subscription.take():
            return


def spin(node: Node) -> None:
    """Runs until nothing is due any more, as if Ctrl-C came then."""
    while any(subscription.queue for subscription in _network.subscriptions if subscription.node is node):
        spin_once(node)
    raise KeyboardInterrupt


def install(monkeypatch: pytest.MonkeyPatch, store: Stores = Stores.ROS2_HUMBLE) -> Network:
    """Puts the modules in place for a test, with a new network between the nodes."""
    global _network
    _network = Network(store)
    modules: dict[str, dict[str, Any]] = {
        "rclpy": {
            "init": init,
            "ok": ok,
            "shutdown": shutdown,
            "try_shutdown": try_shutdown,
            "spin": spin,
            "spin_once": spin_once,
        },
        "rclpy.node": {"Node": Node},
        "rclpy.executors": {"ExternalShutdownException": ExternalShutdownException},
        "rclpy.lifecycle": {
            "LifecycleNode": LifecycleNode,
            "TransitionCallbackReturn": TransitionCallbackReturn,
        },
        "rcl_interfaces": {},
        "rcl_interfaces.msg": {"ParameterDescriptor": ParameterDescriptor},
        "rclpy.qos": {
            "QoSProfile": QoSProfile,
            "HistoryPolicy": HistoryPolicy,
            "ReliabilityPolicy": ReliabilityPolicy,
            "DurabilityPolicy": DurabilityPolicy,
        },
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": Image, "CompressedImage": CompressedImage},
        "std_msgs": {},
        "std_msgs.msg": {"Empty": Empty, "Header": Header},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return _network
