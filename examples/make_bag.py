"""Writes an MCAP bag with a camera topic from any source, to try the commands for bags without ROS.

python examples/make_bag.py                                    # bag.mcap, from the rendered camera
python examples/make_bag.py clip.mp4 -o clip.mcap --frames 60  # from a video
python examples/make_bag.py clip.mp4 -o clip.mcap --jpeg       # as sensor_msgs/CompressedImage
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from mcap.writer import Writer
from rosbags.typesys import Stores, get_typestore

import tatok_edge
from tatok_edge.sources.source import SourceFrame

START_NS = 1_700_000_000_000_000_000
"""Time of the first message."""
QOS = """- history: 1
  depth: 1
  reliability: 2
  durability: 2
  deadline: {sec: 9223372036, nsec: 854775807}
  lifespan: {sec: 9223372036, nsec: 854775807}
  liveliness: 1
  liveliness_lease_duration: {sec: 9223372036, nsec: 854775807}
  avoid_ros_namespace_conventions: false
"""
"""QoS of a camera driver (sensor data), as rosbag2 notes it."""


def write_bag(
    frames: Iterable[SourceFrame], output: str | Path, *, topic: str, encoding: str = "rgb8", jpeg: bool = False
) -> int:
    """Writes camera messages, a text for each, an attachment and a metadata record; returns the number of frames."""
    store = get_typestore(Stores.ROS2_HUMBLE)
    types = store.types
    image_type = f"sensor_msgs/msg/{'CompressedImage' if jpeg else 'Image'}"
    text_type = "std_msgs/msg/String"
    count = 0
    with open(output, "wb") as file:
        writer = Writer(file)
        writer.start(profile="ros2", library="make_bag.py")
        channels = {}
        for name, kind in ((topic, image_type), ("/chatter", text_type)):
            definition = store.generate_msgdef(kind, ros_version=2)[0].encode()
            schema = writer.register_schema(kind, "ros2msg", definition)
            channels[kind] = writer.register_channel(name, "cdr", schema, {"offered_qos_profiles": QOS})
        for count, frame in enumerate(frames, 1):
            image = frame.image
            time = START_NS + 1000 * frame.timestamp_us
            stamp = types["builtin_interfaces/msg/Time"](sec=time // 10**9, nanosec=time % 10**9)
            header = types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera_optical_frame")
            if jpeg:
                data = cv2.imencode(".jpg", image[:, :, ::-1])[1].reshape(-1)
                message = types[image_type](header=header, format="jpeg", data=data)
            else:
                pixels = {"rgb8": image, "bgr8": image[:, :, ::-1], "mono8": image[:, :, 1]}[encoding]
                height, width = image.shape[:2]
                message = types[image_type](
                    header=header,
                    height=height,
                    width=width,
                    encoding=encoding,
                    is_bigendian=0,
                    step=pixels.size // height,
                    data=np.ascontiguousarray(pixels).reshape(-1),
                )
            # Published a little after the exposure, and recorded a little later.
            published, logged = time + 2_000_000, time + 3_000_000
            for kind, content in ((image_type, message), (text_type, types[text_type](data=f"frame {count}"))):
                writer.add_message(channels[kind], logged, bytes(store.serialize_cdr(content, kind)), published, count)
        writer.add_attachment(START_NS, START_NS, "calibration.yaml", "text/yaml", b"width: 320\n")
        writer.add_metadata("robot", {"name": "edge"})
        writer.finish()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="synthetic:frames=60,width=320,height=240")
    parser.add_argument("-o", "--output", default="bag.mcap")
    parser.add_argument("--topic", default="/camera/image_raw")
    parser.add_argument("--encoding", choices=("rgb8", "bgr8", "mono8"), default="rgb8")
    parser.add_argument("--jpeg", action="store_true", help="compressed images instead of raw ones")
    parser.add_argument("--frames", type=int, help="stop after so many frames")
    args = parser.parse_args()
    with tatok_edge.open_source(args.source) as source:
        frames = islice(source, args.frames)
        count = write_bag(frames, args.output, topic=args.topic, encoding=args.encoding, jpeg=args.jpeg)
    print(f"{args.output}: {count} images on {args.topic}")


if __name__ == "__main__":
    main()
