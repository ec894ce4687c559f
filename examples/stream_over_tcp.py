"""Streams a camera over TCP: only changes are sent, and a lost packet is repaired by a keyframe on request.

python examples/stream_over_tcp.py                        # the rendered camera, sender and receiver in one program
python examples/stream_over_tcp.py 0 --max-kbps 200       # the first camera over a link of 200 kbit/s
python examples/stream_over_tcp.py --lose 9               # loses every ninth packet
"""

from __future__ import annotations

import argparse
import socket
import threading
from collections.abc import Iterator

from tatok_edge import Stream, StreamDecoder, Tokenizer
from tatok_edge.format.header import packet_size

HEAD = 6
"""Bytes at the start of a packet that tell its length."""


def packets(connection: socket.socket) -> Iterator[bytes]:
    """Cuts the bytes of a connection into packets: each states its length."""
    file = connection.makefile("rb")
    while len(head := file.read(HEAD)) == HEAD:
        rest = packet_size(head) - HEAD
        body = file.read(rest)
        if len(body) < rest:
            return
        yield head + body


def receive(connection: socket.socket, tokenizer: Tokenizer, request_keyframe: threading.Event) -> None:
    """Decodes and reports packets; asks for a keyframe when one is missing."""
    decoder = StreamDecoder(tokenizer, on_loss=lambda _: request_keyframe.set())
    for packet in packets(connection):
        decoded = decoder.decode(packet)
        state = "whole" if decoded.complete else f"{int(decoded.stale.sum())} patches may be old"
        # decoded.image is the picture, uint8 (H, W, 3).
        print(f"  received frame {decoded.index}: {decoded.kind}, {len(packet)} bytes, {state}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="synthetic:frames=40,width=320,height=240")
    parser.add_argument("--frames", type=int, default=40, help="stop after so many frames (default: 40)")
    parser.add_argument("--max-kbps", type=float, help="bandwidth of the link in kbit/s")
    parser.add_argument("--lose", type=int, default=0, help="lose every so many-th packet")
    args = parser.parse_args()

    server = socket.create_server(("127.0.0.1", 0))
    sender = socket.create_connection(server.getsockname())
    receiver, _ = server.accept()
    wanted = threading.Event()  # in a real system: a message back to the sender
    with Tokenizer.load() as tokenizer, sender, receiver, server:
        thread = threading.Thread(target=receive, args=(receiver, tokenizer, wanted))
        thread.start()
        with Stream(tokenizer, args.source, max_kbps=args.max_kbps) as stream:
            for count, frame in enumerate(stream, 1):
                if wanted.is_set():
                    wanted.clear()
                    stream.request_keyframe()
                print(
                    f"frame {frame.index}: {frame.kind}, {frame.n_updated} patches updated, {frame.n_tokens} tokens, "
                    f"{frame.latency_ms:.1f} ms"
                )
                if not args.lose or count % args.lose:
                    sender.sendall(frame.packet)
                if count >= args.frames:
                    break
        sender.shutdown(socket.SHUT_WR)
        thread.join()


if __name__ == "__main__":
    main()
