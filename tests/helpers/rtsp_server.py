"""A real RTSP server for the tests: H.264 at a fixed rate, each picture holding the moment it was made.

Runs as a program of its own under the system's Python, which has the GStreamer bindings:
``python3 rtsp_server.py PORT FPS``. It prints ``ready`` once it listens. SIGUSR1 makes the pictures larger by a half,
SIGUSR2 spoils the coded pictures of a fifth of a second.
A picture is a grid of 8 x 4 light and dark blocks: the bits of the monotonic clock in milliseconds, lowest bit first.
"""

import signal
import sys
import threading
import time

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

BLOCKS = [(40, 48), (60, 72)]
"""Width and height of a block before and after SIGUSR1."""


class Camera:
    """Pushes pictures into every stream that a client opens."""

    def __init__(self, fps):
        self.fps = fps
        self.block = BLOCKS[0]
        self.spoiler = None

    def start(self, factory, media):
        source = media.get_element().get_by_name_recurse_up("camera")
        self.spoiler = media.get_element().get_by_name_recurse_up("spoiler")
        self.describe(source)
        threading.Thread(target=self.push, args=(source,), daemon=True).start()

    def describe(self, source):
        width, height = self.block
        size = f"width={8 * width},height={4 * height}"
        source.set_property("caps", Gst.Caps.from_string(f"video/x-raw,format=GRAY8,{size},framerate={self.fps}/1"))
        return width, height

    def push(self, source):
        block = self.block
        start = time.monotonic()
        number = 0
        while True:
            if block != self.block:
                block = self.describe(source)
            buffer = Gst.Buffer.new_wrapped(picture(*block))
            buffer.pts = buffer.dts = number * Gst.SECOND // self.fps
            buffer.duration = Gst.SECOND // self.fps
            if source.emit("push-buffer", buffer) != Gst.FlowReturn.OK:
                return
            number += 1
            time.sleep(max(start + number / self.fps - time.monotonic(), 0))

    def grow(self, *_):
        self.block = BLOCKS[1]

    def spoil(self, *_):
        self.spoiler.set_property("probability", 0.1)
        GLib.timeout_add(200, lambda: self.spoiler.set_property("probability", 0.0))


def picture(width, height):
    """The moment as a picture, uint8 (4 * height, 8 * width)."""
    moment = time.monotonic_ns() // 1_000_000
    rows = []
    for row in range(4):
        bits = [moment >> (8 * row + column) & 1 for column in range(8)]
        rows.append(b"".join(bytes([216 if bit else 40]) * width for bit in bits) * height)
    return b"".join(rows)


def main(port, fps):
    Gst.init(None)
    camera = Camera(int(fps))
    signal.signal(signal.SIGUSR1, camera.grow)
    signal.signal(signal.SIGUSR2, camera.spoil)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_launch(
        "( appsrc name=camera is-live=true format=time max-buffers=2 leaky-type=downstream "
        "! videoconvert ! video/x-raw,format=I420 "
        "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 threads=1 "
        "! breakmydata name=spoiler probability=0 skip=0 "
        "! rtph264pay name=pay0 pt=96 config-interval=-1 )"
    )
    factory.set_shared(True)
    factory.connect("media-configure", camera.start)
    server.get_mount_points().add_factory("/live", factory)
    if not server.attach(None):
        raise SystemExit(f"port {port} is taken")
    GLib.timeout_add(50, lambda: True)  # lets Python see signals
    print("ready", flush=True)
    GLib.MainLoop().run()


if __name__ == "__main__":
    main(*sys.argv[1:])
