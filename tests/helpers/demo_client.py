"""A running demo, and a page that talks to it over a plain socket."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tatok_edge.demo import server as server_module
from tatok_edge.demo.engine import Choice, Engine
from tatok_edge.demo.messages import Settings
from tatok_edge.demo.server import Door, Hub, address_of, application, door_of, listen
from tatok_edge.model.tokenizer import Tokenizer

CAMERA = "synthetic:width=160,height=96,fps=20,live=1"
PATCHES, CELLS = 20 * 12, 5 * 3
PATIENCE = 30.0
"""Seconds that anything may take on a busy machine."""


class Demo:
    """A demo that runs in threads of this process."""

    def __init__(self, tokenizer: Tokenizer, folder: Path | None, spec: str = CAMERA, token: str | None = None) -> None:
        listener = listen("127.0.0.1", 0)
        self.port = listener.getsockname()[1]
        door = door_of(listener, "127.0.0.1") if token is None else Door(None, token)
        self.url = address_of(listener, "127.0.0.1", door)
        self.host = f"127.0.0.1:{self.port}"
        self.hub = Hub()
        self.folder = folder
        self.hub.engine = self.engine = Engine(tokenizer, spec, self.hub, record_to=folder)
        self.engine.__enter__()
        application_ = application(self.hub, door)
        self._thread = threading.Thread(target=server_module.run, args=(application_, self.hub, listener))
        self._thread.start()

    def get(self, path: str = "/", **headers: str) -> tuple[int, dict[str, str], bytes]:
        request = urllib.request.Request(f"http://{self.host}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
                return reply.status, dict(reply.headers.items()), reply.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers.items()), error.read()

    def open(self, **options: Any) -> Page:
        options = {"origin": f"http://{self.host}"} | options
        return Page(f"ws://{self.host}/socket", **options)

    def reset(self) -> None:
        self.engine.record(False)
        self.engine.change({key: value for key, value in Settings().report().items() if key != "version"})
        self.engine.choose(Choice())

    def close(self) -> None:
        self.hub.end()
        self._thread.join(PATIENCE)
        self.engine.__exit__()
        assert not self._thread.is_alive()


class Page:
    """What the page's script does, without the page."""

    connection: ClientConnection

    def __init__(self, url: str, **options: Any) -> None:
        self._url, self._options = url, options
        self.state: dict[str, Any] = {}
        self.notices: list[str] = []
        self._request = 0

    def __enter__(self) -> Page:
        self._opening = connect(self._url, max_size=None, open_timeout=PATIENCE, **self._options)
        self.connection = self._opening.__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        with contextlib.suppress(ConnectionClosed):
            self._opening.__exit__(*reason)

    def send(self, kind: str, **values: Any) -> None:
        self.connection.send(json.dumps({"type": kind} | values))

    def step(self, seconds: float = PATIENCE) -> tuple[dict[str, Any], list[bytes]] | None:
        """Take a message; the header and parts of a frame, which is then acknowledged."""
        message = self.connection.recv(timeout=seconds)
        if isinstance(message, str):
            content = json.loads(message)
            if content["type"] == "state":
                self.state = content
            else:
                self.notices.append(content["text"])
            return None
        header, parts = frame_of(message)
        self.send("seen", number=header["number"])
        return header, parts

    def frame(self, condition: Callable[[dict[str, Any]], bool] = lambda _: True) -> tuple[dict[str, Any], list[bytes]]:
        """The next frame whose header fulfils ``condition``."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            taken = self.step()
            if taken is not None and condition(taken[0]):
                return taken
        raise AssertionError(f"no such frame in {PATIENCE} s; state {self.state}, notices {self.notices}")

    def until(self, condition: Callable[[Page], bool]) -> None:
        """Take messages until ``condition`` holds."""
        end = time.monotonic() + PATIENCE
        while not condition(self):
            assert time.monotonic() < end, f"state {self.state}, notices {self.notices}"
            self.step()

    def change(self, **settings: Any) -> tuple[dict[str, Any], list[bytes]]:
        """Change settings; the first frame that was made with them."""
        self._request += 1
        number = self._request
        self.send("settings", request=number, **settings)
        return self.frame(lambda header: header["applied"] == number)


def frame_of(message: bytes) -> tuple[dict[str, Any], list[bytes]]:
    size = int.from_bytes(message[:4], "little")
    header = json.loads(message[4 : 4 + size])
    parts, at = [], 4 + size
    for length in header["sizes"]:
        parts.append(message[at : at + length])
        at += length
    assert at == len(message)
    return header, parts


def picture_of(data: bytes) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image[:, :, ::-1]


def jpeg_of(width: int, height: int) -> bytes:
    y, x = np.mgrid[:height, :width]
    done, data = cv2.imencode(".jpg", np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8))
    assert done
    return data.tobytes()


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
