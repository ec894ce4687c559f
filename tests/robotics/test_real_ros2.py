"""The ROS 2 node and its twin on an installed ROS 2: source its setup.bash, then run this file with pytest."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

rclpy: Any = pytest.importorskip("rclpy", reason="ROS 2 is not installed")
pytest.importorskip("sensor_msgs.msg", reason="ROS 2 is not installed")

from helpers.paths import ROOT

from tatok_edge.evaluation.metrics import psnr
from tatok_edge.robotics.images import image_from_message, image_to_message
from tatok_edge.sources.synthetic import Scene, render

TOPIC = "/tatok_test/image_raw"
SECONDS = 60.0


def test_pictures_come_back_decoded() -> None:
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    command = [sys.executable, str(ROOT / "examples" / "ros2_node.py")]
    arguments = ["--ros-args", "-p", f"topic:={TOPIC}"]
    encoder = subprocess.Popen([*command, *arguments])
    decoder = subprocess.Popen([*command, "--decode", *arguments])
    rclpy.init()
    node = rclpy.create_node("tatok_test")
    received: list[Any] = []
    try:
        camera = node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
        node.create_subscription(Image, f"{TOPIC}/decoded", received.append, 10)
        end = time.monotonic() + SECONDS
        number = 0
        while len(received) < 3 and time.monotonic() < end:
            assert encoder.poll() is None and decoder.poll() is None, "a node has ended"
            picture = render(Scene(width=160, height=96), 0)
            camera.publish(image_to_message(Image, Header(frame_id=f"frame {number}"), picture))
            number += 1
            rclpy.spin_once(node, timeout_sec=0.1)
    finally:
        node.destroy_node()
        rclpy.shutdown()
        for process in (encoder, decoder):
            process.terminate()
            process.wait(20)
    assert len(received) >= 3, "no decoded picture came"
    assert received[-1].header.frame_id.startswith("frame ")
    assert psnr(image_from_message(received[-1]), render(Scene(width=160, height=96), 0)) > 20
