"""A camera, the nodes of the ROS 2 example and a viewer on a fake ROS 2."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("mcap", reason="the extra 'robotics' is not installed")
pytest.importorskip("rosbags", reason="the extra 'robotics' is not installed")


from helpers import fake_rclpy
from helpers.bags import CAMERA, COMPRESSED, TOKENS, Array
from helpers.paths import ROOT
from tatok_edge.robotics.images import image_to_message


def example(name: str) -> ModuleType:
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Robot:
    """A camera, nodes of the example and a viewer on a fake ROS 2."""

    def __init__(self, network: fake_rclpy.Network, images: list[Array]) -> None:
        self.network = network
        self.example = example("ros2_node")
        self.images = images
        self.time = 0
        self.seen: list[tuple[int, Any]] = []
        fake_rclpy.init()
        self.driver = fake_rclpy.Node("driver")
        best_effort = fake_rclpy.QoSProfile(depth=1, reliability=fake_rclpy.ReliabilityPolicy.BEST_EFFORT)
        self.camera = self.driver.create_publisher(fake_rclpy.Image, CAMERA, best_effort)
        self.viewer = fake_rclpy.Node("viewer")
        self.viewer.create_subscription(
            fake_rclpy.Image, f"{CAMERA}/decoded", self._show, fake_rclpy.QoSProfile(depth=10)
        )
        self.nodes: list[fake_rclpy.Node] = []

    def _show(self, message: Any) -> None:
        self.seen.append((message.header.stamp.sec, message))

    def start(self, kind: str, *parameters: str) -> tuple[fake_rclpy.Node, Any]:
        arguments = ["--ros-args", *(part for item in parameters for part in ("-p", item))]
        fake_rclpy.init(args=arguments)
        node = self.example.managed_node(kind, getattr(self.example, kind))
        node.trigger_configure()
        node.trigger_activate()
        self.nodes.append(node)
        return node, node.part

    def stop(self, node: fake_rclpy.Node) -> None:
        node.destroy_node()
        self.nodes.remove(node)

    def shoot(self, count: int = 1) -> None:
        """The camera takes pictures, one a second, and what follows from them happens."""
        for _ in range(count):
            self.publish()
            self.settle()

    def publish(self) -> None:
        image = self.images[self.time % len(self.images)]
        message = image_to_message(
            fake_rclpy.Image,
            fake_rclpy.Header(stamp=fake_rclpy.Time(sec=self.time), frame_id="optical"),
            image,
        )
        self.time += 1
        self.camera.publish(message)

    def settle(self) -> None:
        for _ in range(8):
            for node in [*self.nodes, self.viewer]:
                fake_rclpy.spin_once(node)

    def packets(self) -> list[Any]:
        store = self.network.store
        return [store.deserialize_cdr(data, COMPRESSED) for topic, data in self.network.sent if topic == TOKENS]

    def kinds(self) -> list[str]:
        from tatok_edge.format.header import peek

        return [peek(bytes(message.data)).kind for message in self.packets()]
