"""A ROS 2 node that turns a camera topic into tokens, and with --decode its twin that turns tokens into pictures.

python3 ros2_node.py --ros-args -p topic:=/camera/image_raw                # publishes /camera/image_raw/tatok
python3 ros2_node.py --decode --ros-args -p topic:=/camera/image_raw       # publishes /camera/image_raw/decoded
ros2 launch ./tatok.launch.py topic:=/camera/image_raw                     # both

Parameters: topic; compressed (subscribe to CompressedImage instead of Image); bundle (name or path of the model);
of the encoder max_loss_db, max_kbps (0.0: no limit) and keyframe_interval; reliable (the QoS of the tokens); autostart.
Needs a sourced ROS 2 (Humble or newer) and `pip install tatok-edge` in the same Python.

It is a managed (lifecycle) node. Configuring loads the model and makes the publishers, activating subscribes, and
cleaning up releases all. With autostart, the default, it does both at the start; set it to false for a manager. The
parameters are read when it is configured.

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


PARAMETERS: dict[str, tuple[str | bool | float | int, str]] = {
    "topic": ("/camera/image_raw", "image topic"),
    "bundle": ("tatok-s8", "name or path of the model"),
    "reliable": (True, "QoS of the tokens: reliable or best effort; the same at both ends"),
    "autostart": (True, "configure and activate at the start; false for a lifecycle manager"),
}
"""Parameters of both nodes: their defaults, and what they mean."""
ENCODER_PARAMETERS: dict[str, tuple[str | bool | float | int, str]] = {
    "compressed": (False, "subscribe to CompressedImage instead of Image"),
    "max_loss_db": (0.4, "largest loss of PSNR by holding and filtering, in dB"),
    "max_kbps": (0.0, "bandwidth of every second in kbit/s; 0.0 is no limit"),
    "keyframe_interval": (300, "frames between keyframes"),
}
"""Parameters of the encoder alone."""


def declare(node: Node, parameters: dict[str, tuple[str | bool | float | int, str]]) -> None:
    """Declares parameters with their descriptions, for `ros2 param describe`."""
    from rcl_interfaces.msg import ParameterDescriptor

    for name, (default, description) in parameters.items():
        node.declare_parameter(name, default, ParameterDescriptor(description=description))


class Part:
    """What encoder and decoder share.

    Args:
        node: The ROS 2 node, with the parameters of the part.
    """

    def __init__(self, node: Node) -> None:
        self.node = node
        self.topic, self.reliable = self.value("topic"), self.value("reliable")
        self.tokenizer = Tokenizer.load(self.value("bundle"))
        self._publishers: list[Any] = []
        self._subscriptions: list[Any] = []

    def value(self, name: str) -> Any:
        """The value of a parameter."""
        return self.node.get_parameter(name).value

    def publisher(self, kind: Any, topic: str, qos: Any) -> Any:
        """A publisher that is closed with the part."""
        self._publishers.append(self.node.create_publisher(kind, topic, qos))
        return self._publishers[-1]

    def subscribe(self, kind: Any, topic: str, callback: Any, qos: Any) -> None:
        """A subscription that ends with the part, or when it stops."""
        self._subscriptions.append(self.node.create_subscription(kind, topic, callback, qos))

    def start(self) -> None:
        """Subscribes."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the subscriptions."""
        while self._subscriptions:
            self.node.destroy_subscription(self._subscriptions.pop())

    def close(self) -> None:
        """Releases everything."""
        self.stop()
        while self._publishers:
            self.node.destroy_publisher(self._publishers.pop())
        self.tokenizer.close()


class Encoder(Part):
    """Subscribes to images, publishes tokens."""

    parameters = PARAMETERS | ENCODER_PARAMETERS

    def __init__(self, node: Node) -> None:
        from sensor_msgs.msg import CompressedImage

        super().__init__(node)
        self._message = CompressedImage
        self._receivers = 0
        self.encoder = ImageEncoder(
            self.tokenizer,
            max_loss_db=self.value("max_loss_db"),
            max_kbps=self.value("max_kbps") or None,
            keyframe_interval=self.value("keyframe_interval"),
        )
        self._tokens = self.publisher(CompressedImage, self.topic + TOKEN_TOPIC, token_qos(self.reliable))

    def start(self) -> None:
        from sensor_msgs.msg import CompressedImage, Image
        from std_msgs.msg import Empty

        self.encoder.request_keyframe()  # images were missed
        self.subscribe(Empty, self.topic + REQUEST_TOPIC, self._on_request, token_qos(True))
        kind = CompressedImage if self.value("compressed") else Image
        self.subscribe(kind, self.topic, self._on_image, image_qos())
        self.node.get_logger().info(f"{self.topic} to {self.topic + TOKEN_TOPIC}, {self.tokenizer.backend}")

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


class Decoder(Part):
    """Subscribes to tokens, publishes complete pictures; asks for a keyframe when packets are missing."""

    parameters = PARAMETERS

    def __init__(self, node: Node) -> None:
        from sensor_msgs.msg import Image
        from std_msgs.msg import Empty

        super().__init__(node)
        self.decoder = TokenDecoder(self.tokenizer)
        self._image, self._empty = Image, Empty
        self._requested = -REQUEST_SECONDS
        # Reliable, so that viewers which ask for it (RViz) get pictures; those that ask for best effort get them, too.
        self._images = self.publisher(Image, self.topic + DECODED_TOPIC, token_qos(True))
        self._requests = self.publisher(Empty, self.topic + REQUEST_TOPIC, token_qos(True))

    def start(self) -> None:
        from sensor_msgs.msg import CompressedImage

        tokens = self.topic + TOKEN_TOPIC
        self.subscribe(CompressedImage, tokens, self._on_tokens, token_qos(self.reliable))
        self.node.get_logger().info(f"{tokens} to {self.topic + DECODED_TOPIC}, {self.tokenizer.backend}")

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


def managed_node(name: str, kind: type[Encoder] | type[Decoder]) -> Any:
    """A lifecycle node that runs an encoder or a decoder while it is active."""
    from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn

    class Managed(LifecycleNode):
        def __init__(self) -> None:
            super().__init__(name)
            self.part: Encoder | Decoder | None = None
            declare(self, kind.parameters)

        def on_configure(self, state: Any) -> Any:
            try:
                self.part = kind(self)
            except TaTokError as error:
                self.get_logger().error(str(error))
                return TransitionCallbackReturn.FAILURE
            return TransitionCallbackReturn.SUCCESS

        def on_activate(self, state: Any) -> Any:
            assert self.part is not None
            self.part.start()
            return super().on_activate(state)

        def on_deactivate(self, state: Any) -> Any:
            assert self.part is not None
            self.part.stop()
            return super().on_deactivate(state)

        def on_cleanup(self, state: Any) -> Any:
            if self.part is not None:
                self.part.close()
                self.part = None
            return TransitionCallbackReturn.SUCCESS

        on_shutdown = on_cleanup

    return Managed()


def main(arguments: list[str] | None = None) -> None:
    """Runs the node until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decode", action="store_true", help="tokens to pictures (default: pictures to tokens)")
    args, ros_arguments = parser.parse_known_args(arguments)
    try:
        import rclpy
        import rclpy.lifecycle
        from rclpy.executors import ExternalShutdownException
    except ModuleNotFoundError:
        sys.exit("ros2_node.py needs ROS 2: source /opt/ros/<distribution>/setup.bash, and run it with its Python")

    rclpy.init(args=ros_arguments)
    node = managed_node("tatok_decoder", Decoder) if args.decode else managed_node("tatok_encoder", Encoder)
    try:
        if node.get_parameter("autostart").value:
            node.trigger_configure()
            if node.part is None:
                sys.exit(1)  # the log says why
            node.trigger_activate()
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):  # Ctrl-C; a launch file may end it from outside
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
