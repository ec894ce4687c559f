"""The ROS 2 node of the examples and its twin, on a fake ROS 2."""

from __future__ import annotations

import array
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest

pytest.importorskip("mcap", reason="the extra 'robotics' is not installed")
pytest.importorskip("rosbags", reason="the extra 'robotics' is not installed")

from helpers import fake_rclpy
from helpers.bags import CAMERA, TOKENS
from helpers.paths import ROOT
from helpers.robot import Robot, example

from tatok_edge.evaluation.metrics import psnr
from tatok_edge.robotics.images import image_from_message, ros_array


def test_node_and_its_twin(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder")
    robot.shoot(6)
    assert [sec for sec, _ in robot.seen] == list(range(6))
    for sec, message in robot.seen:
        assert (message.header.frame_id, message.encoding) == ("optical", "rgb8")
        assert psnr(image_from_message(message), robot.images[sec]) > 20
    assert robot.kinds() == ["key", *["delta"] * 5]
    assert robot.packets()[0].format.startswith("tatok; bundle=")


def test_node_takes_the_newest_frame(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder")
    for _ in range(5):  # while the encoder was busy
        robot.publish()
    robot.settle()
    assert [sec for sec, _ in robot.seen] == [4]


def test_lost_packet_is_mended_by_a_request(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder")
    robot.shoot(3)
    robot.network.lose = lambda topic, data: topic == TOKENS
    robot.shoot(1)  # 3 is lost
    robot.network.lose = lambda topic, data: False
    robot.shoot(3)  # 4 cannot be used and asks for a keyframe, which 5 is
    assert [sec for sec, _ in robot.seen] == [0, 1, 2, 5, 6]
    assert robot.kinds() == ["key", "delta", "delta", "delta", "delta", "key", "delta"]
    assert sum(topic.endswith("request_keyframe") for topic, _ in robot.network.sent) == 1


def test_lost_request_is_repeated(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(robot.example.time, "monotonic", lambda: clock[0])
    robot.start("Decoder")
    robot.start("Encoder")
    robot.shoot(2)
    robot.network.lose = lambda topic, data: topic == TOKENS or topic.endswith("request_keyframe")
    robot.shoot(1)
    robot.network.lose = lambda topic, data: topic.endswith("request_keyframe")
    robot.shoot(2)  # asks in vain, and not twice within a second
    assert sum(topic.endswith("request_keyframe") for topic, _ in robot.network.sent) == 1
    robot.network.lose = lambda topic, data: False
    clock[0] += 2
    robot.shoot(3)
    assert [sec for sec, _ in robot.seen] == [0, 1, 6, 7]


def test_encoder_that_begins_anew(robot: Robot) -> None:
    """Its frame numbers start over, which must not look like old packets."""
    robot.start("Decoder")
    node, _ = robot.start("Encoder")
    robot.shoot(5)
    robot.stop(node)
    robot.start("Encoder")
    robot.shoot(3)
    assert [sec for sec, _ in robot.seen] == list(range(8))
    assert robot.kinds()[5] == "key"


def test_who_comes_late_gets_a_keyframe(robot: Robot) -> None:
    robot.start("Encoder")
    robot.shoot(4)
    robot.start("Decoder")
    robot.shoot(3)
    assert [sec for sec, _ in robot.seen] == [4, 5, 6]
    assert robot.kinds()[4] == "key"


def test_node_parameters(robot: Robot) -> None:
    robot.start("Decoder", "reliable:=false")
    node, part = robot.start("Encoder", "reliable:=false", "max_kbps:=40.0", "keyframe_interval:=10")
    robot.shoot(6)
    packets = robot.packets()
    assert packets
    assert sum(8 * len(message.data) for message in packets) <= 6 * 40_000
    assert robot.seen
    with pytest.raises(fake_rclpy.InvalidParameterTypeException):
        robot.start("Encoder", "max_kbps:=40")  # as ROS 2 has it: 40 is no float
    del node, part


def test_reliability_has_to_match(robot: Robot) -> None:
    """A reliable decoder gets nothing from a best-effort encoder, in the fake as in ROS 2."""
    robot.start("Decoder", "reliable:=true")
    robot.start("Encoder", "reliable:=false")
    robot.shoot(2)
    assert robot.seen == []


def test_node_outlives_bad_messages(robot: Robot) -> None:
    node, _ = robot.start("Encoder")
    decoder, _ = robot.start("Decoder")
    robot.shoot(2)
    depth = fake_rclpy.Image(
        header=fake_rclpy.Header(), height=64, width=64, encoding="16UC1", step=128, data=array.array("B", bytes(8192))
    )
    robot.camera.publish(depth)
    robot.settle()
    assert any("16UC1" in text for level, text in node.get_logger().lines if level == "error")
    junk = fake_rclpy.CompressedImage(format="jpeg", data=array.array("B", b"\xff\xd8"))
    robot.driver.create_publisher(fake_rclpy.CompressedImage, TOKENS, fake_rclpy.QoSProfile(depth=1)).publish(junk)
    robot.settle()
    assert any("no tokens" in text for level, text in decoder.get_logger().lines if level == "error")
    robot.shoot(2)
    assert [sec for sec, _ in robot.seen] == [0, 1, 2, 3]


def test_node_takes_compressed_images(robot: Robot) -> None:
    robot.start("Decoder")
    robot.start("Encoder", "compressed:=true")
    publisher = robot.driver.create_publisher(fake_rclpy.CompressedImage, CAMERA, fake_rclpy.QoSProfile(depth=1))
    data = cv2.imencode(".jpg", robot.images[0][:, :, ::-1])[1].tobytes()
    publisher.publish(fake_rclpy.CompressedImage(format="jpeg", data=ros_array(data)))
    robot.settle()
    ((_, message),) = robot.seen
    assert psnr(image_from_message(message), robot.images[0]) > 20


def test_main_spins_and_ends(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    spun: list[str] = []

    def spin(node: fake_rclpy.Node) -> None:
        spun.append(node.get_name())
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["rclpy"], "spin", spin)
    robot.example.main(["--ros-args", "-p", f"topic:={CAMERA}"])
    robot.example.main(["--decode"])
    assert spun == ["tatok_encoder", "tatok_decoder"]
    assert not fake_rclpy.ok()
    assert [item.topic_name for item in robot.network.subscriptions] == [f"{CAMERA}/decoded"]


def test_managed_node_goes_through_its_states(robot: Robot) -> None:
    robot.start("Decoder")
    node, _ = robot.start("Encoder")
    robot.shoot(2)
    node.trigger_deactivate()
    robot.shoot(2)
    assert [sec for sec, _ in robot.seen] == [0, 1]
    node.trigger_activate()
    robot.shoot(2)  # with a keyframe, as images were missed
    assert [sec for sec, _ in robot.seen] == [0, 1, 4, 5]
    assert robot.kinds() == ["key", "delta", "key", "delta"]
    node.trigger_deactivate()
    node.trigger_cleanup()
    assert node.part is None
    assert not [item for item in (*robot.network.publishers, *robot.network.subscriptions) if item.node is node]
    node.trigger_configure()
    node.trigger_activate()
    robot.shoot(1)
    assert [sec for sec, _ in robot.seen] == [0, 1, 4, 5, 6]


def test_node_with_a_wrong_bundle_stays_unconfigured(robot: Robot) -> None:
    fake_rclpy.init(args=["--ros-args", "-p", "bundle:=/none"])
    node = robot.example.managed_node("encoder", robot.example.Encoder)
    assert node.trigger_configure() is fake_rclpy.TransitionCallbackReturn.FAILURE
    assert node.state == "unconfigured"
    assert any("/none" in text for level, text in node.get_logger().lines if level == "error")
    with pytest.raises(SystemExit):
        robot.example.main(["--ros-args", "-p", "bundle:=/none"])


def test_node_waits_for_a_manager(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[str] = []

    def spin(node: fake_rclpy.LifecycleNode) -> None:
        states.append(node.state)
        raise fake_rclpy.ExternalShutdownException

    monkeypatch.setattr(sys.modules["rclpy"], "spin", spin)
    robot.example.main(["--ros-args", "-p", "autostart:=false"])
    robot.example.main(["--ros-args", "-p", "autostart:=true"])
    assert states == ["unconfigured", "active"]


def test_launch_file_starts_both_nodes_with_their_parameters(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    class Action:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.args, self.options = args, options

    names = {
        "launch": ["LaunchDescription"],
        "launch.actions": ["DeclareLaunchArgument"],
        "launch.conditions": ["IfCondition"],
        "launch.substitutions": ["LaunchConfiguration"],
        "launch_ros": [],
        "launch_ros.actions": ["LifecycleNode"],
        "launch_ros.parameter_descriptions": ["ParameterValue"],
    }
    for name, classes in names.items():
        module = ModuleType(name)
        vars(module).update({kind: type(kind, (Action,), {}) for kind in classes})
        monkeypatch.setitem(sys.modules, name, module)
    (actions,) = example("tatok.launch").generate_launch_description().args
    nodes = [action for action in actions if type(action).__name__ == "LifecycleNode"]
    declared = {a.args[0]: a.options["default_value"] for a in actions if a not in nodes}
    assert set(declared) == {"encode", "decode", *robot.example.Encoder.parameters}
    for node, kind in zip(nodes, (robot.example.Encoder, robot.example.Decoder), strict=True):
        program, *options = node.options["arguments"]
        assert Path(program) == ROOT / "examples" / "ros2_node.py"
        assert options == (["--decode"] if kind is robot.example.Decoder else [])
        (values,) = node.options["parameters"]
        assert set(values) == set(kind.parameters)
        for name, value in values.items():
            default = kind.parameters[name][0]
            assert value.options["value_type"] is type(default)
            assert declared[name] == (str(default).lower() if isinstance(default, bool) else str(default))


def test_node_without_ros_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "ros2_node.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs ROS 2" in done.stderr
