"""A policy on another machine: observations of several cameras go there as tokens, and actions come back.

python examples/lerobot_remote.py                                  # robot and server in one program, 3 rendered cameras
python examples/lerobot_remote.py --cameras 0 2 --hz 10            # two cameras of this machine
python examples/lerobot_remote.py --serve 0.0.0.0:5555             # on the machine with the policy
python examples/lerobot_remote.py --connect 10.0.0.7:5555          # on the robot

Put your policy into `act`: it gets the held tokens, their values and the decoded picture of every camera, and the
state of the robot. At the end the program prints bytes per observation and latency, from the pictures to the action,
beside those of the same observations as JPEG of quality 90. Nothing is encrypted: use a trusted network or a tunnel.
"""

from __future__ import annotations

import argparse
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from tatok_edge import StreamDecoder, StreamEncoder, Tokenizer, open_source
from tatok_edge.errors import TaTokError
from tatok_edge.geometry import Image
from tatok_edge.tokens.held import HeldTokens

JPEG_QUALITY = 90
MAX_PART = 4 << 20
"""Largest picture or packet in bytes; a longer one ends the connection."""
TOKENS, JPEG = 0, 1
HEAD = struct.Struct("!BBB")
"""Head of an observation: tokens or JPEG, number of cameras, numbers of the state."""
REPLY = struct.Struct("!IB")
"""Head of a reply: cameras that need a keyframe, one bit each; numbers of the action."""


@dataclass(frozen=True, slots=True)
class View:
    """What the policy knows of one camera."""

    image: Image
    """Decoded picture, uint8 RGB (H, W, 3)."""
    held: HeldTokens | None
    """Tokens of all patches: `ids` (N, K), `depths` (N,), `global_ids` (G,); None where the camera sent JPEG."""


def act(views: Sequence[View], state: NDArray[np.float32]) -> NDArray[np.float32]:
    """The policy: here a placeholder that turns to the brighter side. Replace it by yours."""
    turn = [view.image[:, : view.image.shape[1] // 2].mean() - view.image.mean() for view in views]
    return np.asarray([np.mean(turn) / 255, *state], np.float32)


# --- the server ---------------------------------------------------------------------------------------


def exactly(connection: socket.socket, count: int) -> bytes:
    """Reads ``count`` bytes; raises ConnectionError at the end of the connection."""
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(min(count - len(data), 1 << 16))
        if not chunk:
            raise ConnectionError("the connection was closed")
        data += chunk
    return bytes(data)


def part(connection: socket.socket) -> bytes:
    """Reads one picture or packet, which states its length."""
    (size,) = struct.unpack("!I", exactly(connection, 4))
    if size > MAX_PART:
        raise ConnectionError(f"a part has {size} bytes; {MAX_PART} are allowed")
    return exactly(connection, size)


def serve_robot(connection: socket.socket, tokenizer: Tokenizer) -> None:
    """Answers the observations of one robot until it leaves."""
    decoders: dict[int, StreamDecoder] = {}
    while first := connection.recv(1):
        kind, cameras, numbers = HEAD.unpack(first + exactly(connection, HEAD.size - 1))
        state = np.frombuffer(exactly(connection, 4 * numbers), ">f4").astype(np.float32)
        views: list[View] = []
        lost = 0
        for camera in range(cameras):
            data = part(connection)
            if kind == JPEG:
                picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
                if picture is None:
                    raise ConnectionError("a picture cannot be decoded")
                views.append(View(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), None))
                continue
            decoder = decoders.setdefault(camera, StreamDecoder(tokenizer))
            try:
                decoded = decoder.decode(data)
            except TaTokError as error:
                print(f"camera {camera}: {error}")
                lost |= 1 << camera
                continue
            lost |= decoder.needs_keyframe << camera
            if decoded.image is not None and decoder.state is not None:
                views.append(View(decoded.image, decoder.state.held))
        # Without a picture of every camera there is no action: the robot keeps its last one.
        action = act(views, state) if len(views) == cameras else np.zeros(0, np.float32)
        connection.sendall(REPLY.pack(lost, len(action)) + action.astype(">f4").tobytes())


def serve(server: socket.socket, tokenizer: Tokenizer) -> None:
    """Serves one robot after the other; ends when the socket is closed."""
    while True:
        try:
            connection, address = server.accept()
        except OSError:
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            try:
                serve_robot(connection, tokenizer)
            except (ConnectionError, struct.error) as error:
                print(f"robot {address[0]} left: {error}", flush=True)


# --- the robot ----------------------------------------------------------------------------------------


class Robot:
    """Sends observations and takes actions.

    Args:
        connection: The connection to the server.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent: list[int] = []
        """Bytes of each observation."""
        self.latency: list[float] = []
        """Seconds from the pictures to the action."""

    def observe(
        self, images: Sequence[Image], state: NDArray[np.float32], kind: int, code: Callable[[int, Image], bytes]
    ) -> tuple[NDArray[np.float32], int]:
        """Sends one observation.

        Args:
            images: The picture of every camera.
            state: Numbers of the robot.
            kind: What ``code`` makes of a picture: ``TOKENS`` or ``JPEG``.
            code: Encodes the picture of a camera, given by its number.

        Returns:
            The action, and the cameras that need a keyframe, one bit each.
        """
        start = time.perf_counter()
        message = HEAD.pack(kind, len(images), len(state)) + state.astype(">f4").tobytes()
        for camera, image in enumerate(images):
            data = code(camera, image)
            message += struct.pack("!I", len(data)) + data
        self._connection.sendall(message)
        lost, count = REPLY.unpack(exactly(self._connection, REPLY.size))
        action = np.frombuffer(exactly(self._connection, 4 * count), ">f4").astype(np.float32)
        self.latency.append(time.perf_counter() - start)
        self.sent.append(len(message))
        return action, lost

    def report(self, name: str) -> str:
        """A row of the table."""
        middle, late = np.percentile(np.asarray(self.latency) * 1000, [50, 95])
        return f"{name:<8} {np.mean(self.sent):>10.0f} {max(self.sent):>10} {middle:>10.0f} {late:>10.0f}"


def jpeg(_: int, image: Image) -> bytes:
    """A picture as JPEG."""
    picture = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    data: bytes = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    return data


def observations(cameras: Sequence[str], width: int, height: int, count: int) -> Iterator[list[Image]]:
    """Pictures of all cameras, in one size."""
    sources = [open_source(camera) for camera in cameras]
    try:
        for _, *frames in zip(range(count), *sources, strict=False):
            yield [cv2.resize(f.image, (width, height)) if f.image.shape != (height, width, 3) else f.image
                   for f in frames]  # fmt: skip
    finally:
        for source in sources:
            source.close()


def drive(address: tuple[str, int], tokenizer: Tokenizer, args: argparse.Namespace) -> None:
    """Sends all observations twice, as tokens and as JPEG, and prints the figures."""
    encoders = [StreamEncoder(tokenizer, max_loss_db=args.max_loss_db) for _ in args.cameras]

    def tokens(camera: int, image: Image) -> bytes:
        return encoders[camera].encode(image).packet

    print(f"{len(args.cameras)} cameras, {args.width}x{args.height}, {args.hz:g} observations/s")
    print("           bytes per observation    ms to the action")
    print("               mean    largest     median        p95")
    size: dict[str, float] = {}
    for name, kind, code in (("tokens", TOKENS, tokens), (f"JPEG {JPEG_QUALITY}", JPEG, jpeg)):
        with socket.create_connection(address) as connection:
            robot = Robot(connection)
            due = time.perf_counter()
            for images in observations(args.cameras, args.width, args.height, args.observations):
                time.sleep(max(0.0, due - time.perf_counter()))
                due = max(due, time.perf_counter() - 1 / args.hz) + 1 / args.hz
                action, lost = robot.observe(images, np.zeros(6, np.float32), kind, code)
                # A robot moves here; without an action it keeps its last one.
                for camera, encoder in enumerate(encoders):
                    if lost >> camera & 1:
                        encoder.request_keyframe()
            assert len(action)
        print(robot.report(name), flush=True)
        size[name] = float(np.mean(robot.sent))
    few, many = size.values()
    print(f"tokens take {many / few:.1f} times fewer bytes: {few * 8 * args.hz / 1000:.0f} kbit/s instead of "
          f"{many * 8 * args.hz / 1000:.0f}")  # fmt: skip


def address_of(text: str) -> tuple[str, int]:
    """``HOST:PORT``."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cameras", nargs="+", metavar="SOURCE", help="videos or cameras (default: 3 rendered ones)")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--hz", type=float, default=10.0, help="observations per second (default: 10)")
    parser.add_argument("--observations", type=int, default=50, help="stop after so many (default: 50)")
    parser.add_argument("--max-loss-db", type=float, default=0.4, help="see 'tatok stream --help' (default: 0.4)")
    side = parser.add_mutually_exclusive_group()
    side.add_argument("--serve", type=address_of, metavar="HOST:PORT", help="serve the policy until Ctrl-C")
    side.add_argument("--connect", type=address_of, metavar="HOST:PORT", help="use the policy of that server")
    args = parser.parse_args()
    if args.cameras is None:
        size = f"width={args.width},height={args.height}"
        args.cameras = [f"synthetic:frames={args.observations},{size},fps={args.hz:g},seed={n}" for n in range(3)]

    with Tokenizer.load() as tokenizer:
        if args.connect:
            drive(args.connect, tokenizer, args)
            return
        with socket.create_server(args.serve or ("127.0.0.1", 0)) as server:
            print(f"policy server on {server.getsockname()[0]}:{server.getsockname()[1]}", flush=True)
            if args.serve:
                try:
                    serve(server, tokenizer)
                except KeyboardInterrupt:
                    return
            # A process of its own would not share the Python interpreter with the robot; threads do for an example.
            threading.Thread(target=serve, args=(server, tokenizer), daemon=True).start()
            drive(server.getsockname()[:2], tokenizer, args)


if __name__ == "__main__":
    main()
