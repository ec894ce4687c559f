"""An RTSP server in Python that plays Motion JPEG, for tests without system packages."""

import socketserver
import struct
import threading
import time
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress

import cv2
import numpy as np


class _Handler(socketserver.StreamRequestHandler):
    """Just enough RTSP to play Motion JPEG (RFC 2435) over the same connection, then hang up."""

    server: "_Server"

    def handle(self) -> None:
        while request := self.rfile.readline().decode():
            method = request.split()[0]
            headers = dict(self._headers())
            extra, body = "", ""
            if method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                body = (
                    "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=test\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
                    f"m=video 0 RTP/AVP 26\r\na=framerate:{self.server.fps}\r\na=control:track0\r\n"
                )
                extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP":
                extra = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
            if method in ("SETUP", "PLAY"):
                extra += "Session: 1\r\n"
            self.wfile.write(f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{extra}\r\n{body}".encode())
            if method == "PLAY":
                with suppress(ConnectionError):  # the reader may leave first
                    self._play()
                return

    def _headers(self) -> Iterator[tuple[str, str]]:
        while line := self.rfile.readline().decode().strip():
            key, _, value = line.partition(":")
            yield key.lower(), value.strip()

    def _play(self) -> None:
        sequence = 0
        start = time.monotonic()
        for number, (header, tables, scan) in enumerate(self.server.pictures):
            time.sleep(max(start + number / self.server.fps - time.monotonic(), 0))
            for offset in range(0, len(scan), 1200):
                part = scan[offset : offset + 1200]
                last = offset + len(part) == len(scan)
                rtp = struct.pack(">BBHII", 0x80, 26 | last << 7, sequence, number * 90_000 // self.server.fps, 1)
                jpeg = struct.pack(">I", offset) + header
                quantisation = b"" if offset else struct.pack(">BBH", 0, 0, len(tables)) + tables
                packet = rtp + jpeg + quantisation + part
                self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
                sequence += 1


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True

    def __init__(self, pictures: list[np.ndarray], fps: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.fps = fps
        self.pictures = [_jpeg_parts(image) for image in pictures]


def _jpeg_parts(image: np.ndarray) -> tuple[bytes, bytes, bytes]:
    """RFC 2435's main header without the offset, quantisation tables and scan of a 4:2:0 JPEG."""
    data = cv2.imencode(".jpg", image)[1].tobytes()
    tables, at = b"", 2
    while data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDB:
            tables += data[at + 5 : at + 2 + length]
        at += 2 + length
    scan = data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") : -2]
    header = struct.pack(">BBBB", 1, 255, image.shape[1] // 8, image.shape[0] // 8)
    return header, tables, scan


@contextmanager
def mjpeg_server(frames: int, fps: int, broken: Container[int] = ()) -> Iterator[str]:
    """URL of a stream of ``frames`` pictures, each two grey levels brighter than the one before; some are broken."""
    pictures = [np.full((48, 64, 3), 2 * number, np.uint8) for number in range(frames)]
    with _Server(pictures, fps) as server:
        for number, (header, tables, scan) in enumerate(server.pictures):
            if number in broken:
                server.pictures[number] = header[:-2] + b"\0\0", tables, scan  # no width, no height
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"rtsp://127.0.0.1:{server.server_address[1]}/live"
        finally:
            server.shutdown()
