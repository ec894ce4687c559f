"""A ROS 2 node that turns a camera topic into tokens, and with --decode its twin that turns tokens into pictures.

python3 ros2_node.py --ros-args -p topic:=/camera/image_raw                # publishes /camera/image_raw/tatok
python3 ros2_node.py --decode --ros-args -p topic:=/camera/image_raw       # publishes /camera/image_raw/decoded

Parameters: topic; compressed (subscribe to CompressedImage instead of Image); bundle (name or path of the model);
of the encoder max_loss_db, max_kbps (0.0: no limit) and keyframe_interval; reliable (the QoS of the tokens).
Needs a sourced ROS 2 (Humble or newer) and `pip install tatok-edge` in the same Python.

Images come best effort with depth 1, as camera drivers offer them. During the encoding of a frame, the middleware keeps
the newest image only, so tokens are never late. Packets build on each other, so they go reliable by default. On a lossy
radio link, where resending costs more than a new keyframe, set reliable to false at both ends: the decoder notices the
gap and asks for a keyframe on <topic>/tatok/request_keyframe.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING, Any

from tatok_edge import Tokenizer
from tatok_edge.errors import TaTokError
from tatok_edge.robotics.images import image_to_message
from tatok_edge.robotics.topics import (
    DECODED_TOPIC,
    REQUEST_TOPIC,
    TOKEN_TOPIC,
    ImageEncoder,
    TokenDecoder,
    packet_to_message,
)

if TYPE_CHECKING:
    from rclpy.node import Node

REQUEST_SECONDS = 1.0
"""Time between two requests for a keyframe, in seconds: a request or its keyframe may be lost."""
QUEUE = 30
"""Packets that wait for a slow decoder: about a second of frames."""


def image_qos() -> Any:
    """QoS of camera drivers: the newest image only."""
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        depth=1,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def token_qos(reliable: bool) -> Any:
    """QoS of packets, in order. Volatile: a late subscriber needs a keyframe, not old packets."""
    from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        depth=QUEUE,
        history=HistoryPolicy.KEEP_LAST,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.VOLATILE,
    )


def common_parameters(node: Node) -> tuple[str, bool, Tokenizer]:
    """The parameters of both nodes: image topic, whether tokens go reliable, and the model."""
    topic = node.declare_parameter("topic", "/camera/image_raw").value
    reliable = node.declare_parameter("reliable", True).value
    return topic, reliable, Tokenizer.load(node.declare_parameter("bundle", "tatok-s8").value)


class Encoder:
    """Subscribes to images, publishes tokens.

    Args:
        node: The ROS 2 node, whose parameters are declared here.
    """

    def __init__(self, node: Node) -> None:
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import Empty

        topic, reliable, tokenizer = common_parameters(node)
        compressed = node.declare_parameter("compressed", False).value
        max_kbps = node.declare_parameter("max_kbps", 0.0).value
        self.node = node
        self.encoder = ImageEncoder(
            tokenizer,
            max_loss_db=node.declare_parameter("max_loss_db", 0.4).value,
            max_kbps=max_kbps or None,
            keyframe_interval=node.declare_parameter("keyframe_interval", 300).value,
        )
        self._message = CompressedImage
        self._receivers = 0
        self._tokens = node.create_publisher(CompressedImage, topic + TOKEN_TOPIC, token_qos(reliable))
        node.create_subscription(Empty, topic + REQUEST_TOPIC, self._on_request, token_qos(True))
        node.create_subscription(CompressedImage if compressed else Image, topic, self._on_image, image_qos())
        node.get_logger().info(f"{topic} to {topic + TOKEN_TOPIC}, {self.encoder.tokenizer.backend}")

    def _on_request(self, _: Any) -> None:
        self.encoder.request_keyframe()

    def _on_image(self, message: Any) -> None:
        receivers = self._tokens.get_subscription_count()
        if receivers > self._receivers:  # a new receiver needs a keyframe to start with
            self.encoder.request_keyframe()
        self._receivers = receivers
        try:
            encoded = self.encoder.encode(message, recorded_ns=time.time_ns())
        except TaTokError as error:
            self.node.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        if encoded is not None:  # None: max_kbps leaves no bits for this frame
            self._tokens.publish(packet_to_message(self._message, message.header, encoded))


class Decoder:
    """Subscribes to tokens, publishes complete pictures; asks for a keyframe when packets are missing.

    Args:
        node: The ROS 2 node, whose parameters are declared here.
    """

    def __init__(self, node: Node) -> None:
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import Empty

        topic, reliable, tokenizer = common_parameters(node)
        self.node = node
        self.decoder = TokenDecoder(tokenizer)
        self._image, self._empty = Image, Empty
        self._requested = -REQUEST_SECONDS
        # Reliable, so that viewers which ask for it (RViz) get pictures; those that ask for best effort get them, too.
        self._images = node.create_publisher(Image, topic + DECODED_TOPIC, token_qos(True))
        self._requests = node.create_publisher(Empty, topic + REQUEST_TOPIC, token_qos(True))
        node.create_subscription(CompressedImage, topic + TOKEN_TOPIC, self._on_tokens, token_qos(reliable))
        node.get_logger().info(f"{topic + TOKEN_TOPIC} to {topic + DECODED_TOPIC}, {self.decoder.tokenizer.backend}")

    def _on_tokens(self, message: Any) -> None:
        try:
            decoded, encoding = self.decoder.decode(message)
        except TaTokError as error:
            self.node.get_logger().error(str(error), throttle_duration_sec=5.0)
            return
        if decoded.image is not None and decoded.complete:
            self._images.publish(image_to_message(self._image, message.header, decoded.image, encoding))
        elif self.decoder.needs_keyframe and time.monotonic() - self._requested >= REQUEST_SECONDS:
            self._requested = time.monotonic()
            self._requests.publish(self._empty())


def main(arguments: list[str] | None = None) -> None:
    """Runs the node until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", action="store_true", help="tokens to pictures (default: pictures to tokens)")
    args, ros_arguments = parser.parse_known_args(arguments)
    try:
        import rclpy
        from rclpy.node import Node
    except ModuleNotFoundError:
        sys.exit("ros2_node.py needs ROS 2: source /opt/ros/<distribution>/setup.bash, and run it with its Python")

    rclpy.init(args=ros_arguments)
    node = Node("tatok_decoder" if args.decode else "tatok_encoder")
    try:
        part = Decoder(node) if args.decode else Encoder(node)  # noqa: F841  # the node's callbacks belong to it
        rclpy.spin(node)
    except KeyboardInterrupt:
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
