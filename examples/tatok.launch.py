"""Launches the encoder and the decoder of ros2_node.py as managed nodes, in one process each.

ros2 launch ./tatok.launch.py topic:=/camera/image_raw max_kbps:=400.0
ros2 launch ./tatok.launch.py decode:=false                  # on the robot; on the other machine encode:=false
"""

import sys
from pathlib import Path

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode
from launch_ros.parameter_descriptions import ParameterValue

NODE = str(Path(__file__).resolve().with_name("ros2_node.py"))
ARGUMENTS = {
    "topic": ("/camera/image_raw", "image topic", str),
    "bundle": ("tatok-s8", "name or path of the model", str),
    "reliable": ("true", "QoS of the tokens: reliable or best effort", bool),
    "autostart": ("true", "activate at the start; false for a lifecycle manager", bool),
    "compressed": ("false", "subscribe to CompressedImage instead of Image", bool),
    "max_loss_db": ("0.4", "largest loss of PSNR, in dB", float),
    "max_kbps": ("0.0", "bandwidth of every second in kbit/s; 0.0 is no limit", float),
    "keyframe_interval": ("300", "frames between keyframes", int),
}
SHARED = ("topic", "bundle", "reliable", "autostart")


def generate_launch_description() -> LaunchDescription:
    """The launch arguments and both nodes."""

    def node(name: str, condition: str, names: tuple[str, ...], *options: str) -> LifecycleNode:
        values = {key: ParameterValue(LaunchConfiguration(key), value_type=ARGUMENTS[key][2]) for key in names}
        return LifecycleNode(
            name=name,
            namespace="",
            executable=sys.executable,
            arguments=[NODE, *options],
            parameters=[values],
            condition=IfCondition(LaunchConfiguration(condition)),
            output="screen",
        )

    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=value, description=text)
              for name, (value, text, _) in ARGUMENTS.items()),
            *(DeclareLaunchArgument(name, default_value="true", description=f"run the {name}r")
              for name in ("encode", "decode")),
            node("tatok_encoder", "encode", tuple(ARGUMENTS)),
            node("tatok_decoder", "decode", SHARED, "--decode"),
        ]
    )  # fmt: skip
