"""The demo page: served, steered and watched as a visitor does, by a plain socket and by a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_edge.errors import FormatError, SourceError
from tatok_edge.evaluation.folder import psnr
from tatok_edge.format.container import Reader, Writer
from tatok_edge.model.tokenizer import Tokenizer
from tatok_edge.sources.open import open_source
from tatok_edge.sources.synthetic import Scene, render
from tatok_edge.stream.decoder import StreamDecoder
from tatok_edge.tokens.delta import DeltaFrame

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tatok_edge.demo import engine as engine_module
from tatok_edge.demo import recordings as recordings_module
from tatok_edge.demo import server as server_module
from tatok_edge.demo.engine import Choice, Engine
from tatok_edge.demo.feeds import Played, RecordingFeed, Shot, SourceFeed, decode_jpeg
from tatok_edge.demo.messages import MAX_JPEG, MAX_TEXT, MessageError, Settings, jpeg_size, parse
from tatok_edge.demo.server import Door, Hub, address_of, application, door_of, is_loopback, listen
from tatok_edge.demo.views import HELD, MOVED, TOKEN, UPDATED, map_of, scaled

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


@pytest.fixture(scope="module")
def shared(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    running = Demo(tokenizer, tmp_path_factory.mktemp("recordings"))
    yield running
    running.close()


@pytest.fixture
def demo(shared: Demo) -> Demo:
    """A demo with the settings that it begins with."""
    shared.reset()
    return shared


@pytest.fixture(scope="module")
def recording(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stream of 30 frames with a keyframe every 10."""
    from tatok_edge.stream.encoder import StreamEncoder

    path = tmp_path_factory.mktemp("recording") / "clip.ttk"
    encoder = StreamEncoder(tokenizer, keyframe_interval=10)
    scene = Scene(width=96, height=64)
    with Writer(path, tokenizer.entropy_model, name=tokenizer.name, fps=50) as writer:
        for index in range(30):
            encoded = encoder.encode(render(scene, index), index=index, timestamp_us=index * 20_000)
            writer.write_packet(encoded.packet)
    return path


# --- what a visitor does ------------------------------------------------------------------------------------


def test_page_is_whole_and_loads_nothing_foreign(demo: Demo) -> None:
    status, headers, content = demo.get()
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "set-cookie" not in headers
    named = set(re.findall(r'(?:src|href)="([^"]+)"', content.decode()))
    assert named == {"app.js", "style.css", "icon.svg"}
    for name in named:
        status, headers, content = demo.get(f"/{name}")
        assert status == 200 and len(content) > 100
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|url\(|eval\(|innerHTML", text)
    for name in ("/nothing", "/server.py", "/..%2fserver.py", "/page/app.js"):
        assert demo.get(name)[0] == 404
    assert {file.name for file in resources.files("tatok_edge.demo").joinpath("page").iterdir()} == {
        "index.html",
        "app.js",
        "style.css",
        "icon.svg",
    }


def test_frames_show_camera_tokens_and_reconstruction(demo: Demo) -> None:
    with demo.open() as page:
        page.frame()
        header, (camera, picture, token_map) = page.frame(lambda header: header["kind"] == "delta")
        assert (header["width"], header["height"], header["grid"]) == (160, 96, [12, 20])
        assert header["fixed_tokens"] == PATCHES + CELLS
        original, decoded = picture_of(camera), picture_of(picture)
        assert original.shape == decoded.shape == (96, 160, 3)
        assert header["psnr"] == pytest.approx(psnr(original, decoded), abs=1.5)
        assert header["psnr"] > 18
        marks = np.frombuffer(token_map, np.uint8)
        assert len(marks) == PATCHES
        assert np.count_nonzero(marks == TOKEN) == header["patch_tokens"]
        assert np.count_nonzero((marks == UPDATED) | (marks == TOKEN)) == header["updated"] < PATCHES
        assert header["packet_ms"] >= header["encode_ms"] > 0
        later, _ = page.frame(lambda header: header["shown_ms"] is not None)
        assert later["number"] > header["number"] and later["shown_ms"] > 0
        assert page.state["model"] == "tatok-s8"
        assert page.state["source"]["kind"] == "source"


def test_sliders_act_on_the_next_frame(demo: Demo) -> None:
    with demo.open() as page:
        header, _ = page.change(max_tokens=4)
        assert header["patch_tokens"] <= 4
        header, _ = page.change(max_tokens=None, keep=0.0)
        assert header["patch_tokens"] == 0
        header, _ = page.change(keep=1.0, size=96)
        assert (header["width"], header["height"]) == (96, 58)
        page.change(max_loss_db=0.0, tau=1.0, size=160)
        plenty = [page.frame()[0]["patch_tokens"] for _ in range(8)]
        page.change(max_loss_db=3.0, tau=0.3)
        few = [page.frame()[0]["patch_tokens"] for _ in range(8)]
        assert sum(few) < 0.7 * sum(plenty)
        page.until(lambda page: page.state["settings"]["tau"] == 0.3)


def test_bandwidth_is_kept_in_every_second(demo: Demo) -> None:
    with demo.open() as page:
        page.change(max_loss_db=0.0)
        free = max(page.frame()[0]["kbps"] for _ in range(25))
        limit = 6.0
        assert free > limit
        header, _ = page.change(max_kbps=limit)
        assert header["limit_kbps"] == limit
        page.frame(lambda later: later["time"] > header["time"] + 1.1)
        assert all(page.frame()[0]["kbps"] <= limit for _ in range(15))


def test_bandwidth_below_a_keyframe_is_an_error_that_says_so(demo: Demo, rng: np.random.Generator) -> None:
    done, noise = cv2.imencode(".jpg", rng.integers(0, 256, (960, 960, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 70])
    assert done and len(noise) < MAX_JPEG
    with demo.open() as page:
        page.change(size=960, max_kbps=4)
        page.send("source", name="webcam")
        page.until(lambda page: page.state["source"]["owner"] == page.state["page"])
        end = time.monotonic() + PATIENCE
        while not page.notices:
            page.connection.send(noise.tobytes())
            page.frame()
            assert time.monotonic() < end
        assert re.fullmatch(r"4 kbit/s are too few for 960x960 pixels: a keyframe needs [\d.]+ kbit", page.notices[0])
        page.send("settings", max_kbps=None)
        page.until(lambda page: page.state["settings"]["max_kbps"] is None)
        page.connection.send(noise.tobytes())
        page.frame(lambda header: header["kind"] == "key" and header["width"] == 960)


def test_fixed_rate_sends_every_token_of_every_frame(demo: Demo) -> None:
    with demo.open() as page:
        adaptive = [page.frame()[0] for _ in range(6)][-1]
        header, (_, _, token_map) = page.change(mode="fixed")
        for _ in range(3):
            assert header["patch_tokens"] == PATCHES and header["global_tokens"] == CELLS
            assert header["kind"] == "key" and set(token_map) == {TOKEN}
            header, (_, _, token_map) = page.frame()
        assert adaptive["patch_tokens"] < PATCHES / 2
        assert header["psnr"] > adaptive["psnr"] - 0.3
        header, _ = page.change(mode="adaptive")
        assert header["kind"] == "key"
        assert page.frame()[0]["kind"] == "delta"


def test_record_play_and_seek(demo: Demo, tokenizer: Tokenizer) -> None:
    with demo.open() as page:
        page.send("record", on=True)
        page.until(lambda page: bool(page.state.get("recording", {}).get("name")))
        name = page.state["recording"]["name"]
        assert re.fullmatch(r"tatok-\d{8}-\d{6}(-\d+)?\.ttk", name)
        for _ in range(12):
            page.frame()
        page.change(mode="fixed")
        page.change(mode="adaptive")
        page.frame()
        page.send("record", on=False)
        page.until(lambda page: page.state["recording"]["name"] is None)
        assert name in page.state["recordings"]
        assert demo.folder is not None
        assert [path.suffix for path in demo.folder.glob(f"{name}*")] == [".ttk"]  # no part file is left
        with Reader(demo.folder / name, tokenizer.entropy_model) as reader:
            assert reader.complete and reader.is_key(0) and len(reader) >= 14
            count, packets = len(reader), list(reader.packets())
        pictures = []
        decoder = StreamDecoder(tokenizer)
        for packet in packets:
            decoded = decoder.decode(packet)
            assert decoded.complete and decoded.image is not None
            pictures.append(decoded.image)

        page.send("source", name="recording", recording=name)
        page.until(lambda page: page.state["playback"] is not None)
        assert page.state["playback"]["frames"] == count
        assert page.state["playback"]["keyframes"][0] == 0
        seen = [page.frame(lambda header: header["mode"] == "recording")[0]["frame"] for _ in range(4)]
        assert seen == sorted(seen)
        page.send("play", on=False)
        page.until(lambda page: not page.state["playback"]["playing"])
        for number in (5, 2, count - 1, 0):
            page.send("seek", frame=number)
            header, (camera, picture, token_map) = page.frame(lambda header, n=number: header.get("frame") == n)
            assert camera == b"" and header["psnr"] is None
            assert psnr(picture_of(picture), pictures[number]) > 30
            assert token_map.count(TOKEN) == header["patch_tokens"]
        page.send("seek", frame=10**6)
        page.frame(lambda header: header.get("frame") == count - 1)
        page.send("play", on=True)
        page.frame(lambda header: header.get("frame") == 0)  # over and over
        page.send("record", on=True)
        page.until(lambda page: any("is a recording already" in notice for notice in page.notices))
        page.send("source", name="source")
        page.frame(lambda header: header["mode"] == "adaptive")


def test_a_token_file_is_a_source(tokenizer: Tokenizer, recording: Path) -> None:
    running = Demo(tokenizer, None, str(recording))
    try:
        with running.open() as page:
            header, _ = page.frame()
            assert header["mode"] == "recording" and (header["width"], header["height"]) == (96, 64)
            page.until(lambda page: page.state.get("playback") is not None)
            assert page.state["given"] == {"name": "clip.ttk", "file": True}
            assert page.state["playback"]["keyframes"] == [0, 10, 20]
            page.send("record", on=True)
            page.until(lambda page: any("--record-to" in notice for notice in page.notices))
    finally:
        running.close()


def test_webcam_of_a_page_is_seen_by_all_and_ends_with_it(demo: Demo) -> None:
    with demo.open() as other:
        other.frame()
        with demo.open() as page:
            page.until(lambda page: bool(page.state))
            page.connection.send(jpeg_of(96, 64))  # nobody asked for it: ignored
            page.send("source", name="webcam")
            page.until(lambda page: page.state["source"]["owner"] == page.state["page"])
            for _ in range(2):
                page.connection.send(jpeg_of(96, 64))
                page.frame(lambda header: (header["width"], header["height"]) == (96, 64))
            other.frame(lambda header: header["width"] == 96)
            other.connection.send(jpeg_of(64, 96))  # only the page that was chosen is heard
            page.connection.send(jpeg_of(96, 64)[:-200])
            page.connection.send(jpeg_of(96, 96))
            header, _ = page.frame(lambda header: header["width"] == 96 and header["height"] != 64)
            assert header["height"] == 96
            page.connection.send(b"\xff\xd8" + bytes(50))
            page.until(lambda page: any("JPEG" in notice for notice in page.notices))
        other.frame(lambda header: header["width"] == 160)
        assert not any("JPEG" in notice for notice in other.notices)


# --- what goes wrong ------------------------------------------------------------------------------------------


GARBAGE = [
    "",
    "hello",
    "{",
    "[]",
    "null",
    "3",
    '"seen"',
    "[" * 3000,
    "{}",
    '{"type": 3}',
    '{"type": "launch"}',
    '{"type": "\\ud800"}',
    '{"type": "settings", "tau": NaN}',
    '{"type": "settings", "tau": 1e999}',
    '{"type": "settings", "tau": "1"}',
    '{"type": "settings", "tau": true}',
    '{"type": "settings", "tau": 0}',
    '{"type": "settings", "max_tokens": 1.5}',
    '{"type": "settings", "max_tokens": -1}',
    '{"type": "settings", "max_tokens": ' + "9" * 400 + "}",
    '{"type": "settings", "max_kbps": 0}',
    '{"type": "settings", "size": 1000000}',
    '{"type": "settings", "mode": ["fixed"]}',
    '{"type": "settings", "version": 7}',
    '{"type": "settings", "request": -1}',
    '{"type": "seen"}',
    '{"type": "seen", "number": -Infinity}',
    '{"type": "source"}',
    '{"type": "source", "name": "/etc/passwd"}',
    '{"type": "source", "name": "recording", "recording": "../../etc/passwd"}',
    '{"type": "source", "name": "recording", "recording": "\\ud800\\u0000.ttk"}',
    '{"type": "source", "name": "recording"}',
    '{"type": "record", "on": 1}',
    '{"type": "seek", "frame": 3}',
    '{"type": "play", "on": true}',
    " " * (MAX_TEXT + 1),
    b"",
    b"\x00\x01\x02",
    b"\xff\xd8" + bytes(MAX_JPEG),
]


@pytest.mark.parametrize("part", [0, 1])
def test_garbage_is_answered_in_one_line_and_changes_nothing(demo: Demo, part: int) -> None:
    before = demo.engine.settings.report()
    with demo.open() as page:
        for count, message in enumerate(GARBAGE[part::2], 1):
            page.connection.send(message)
            page.until(lambda page, count=count: len(page.notices) == count)
            answer = page.notices[-1]
            assert len(answer) < 300 and "\n" not in answer and "unexpected" not in answer, message
        page.frame()
        assert len(page.notices) == count < server_module.MAX_OFFENCES
    assert demo.engine.settings.report() == before
    assert demo.engine.failure is None


def closing_of(page: Page, message: str | bytes, times: int) -> ConnectionClosed:
    """How the server closes the socket after ``message``."""
    try:
        for _ in range(times):
            page.connection.send(message)
            page.step()
        page.until(lambda _: False)
    except ConnectionClosed as closed:
        return closed
    raise AssertionError("the socket is still open")


def test_a_page_that_sends_only_garbage_is_cut_off(demo: Demo) -> None:
    with demo.open() as page:
        closed = closing_of(page, "garbage", 10_000)
    assert closed.rcvd is not None and closed.rcvd.code == 1008
    with demo.open() as page:
        page.frame()


def test_a_huge_message_closes_the_socket(demo: Demo) -> None:
    with demo.open() as page:
        closed = closing_of(page, bytes(8 << 20), 1)
    assert closed.rcvd is None or closed.rcvd.code == 1009
    with demo.open() as page:
        page.frame()


def test_a_page_that_never_reads_costs_nothing(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "SILENCE", 4.0)
    with socket.create_connection(("127.0.0.1", demo.port)) as deaf, demo.open() as page:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handshake = (
            f"GET /socket HTTP/1.1\r\nHost: {demo.host}\r\nOrigin: http://{demo.host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        deaf.sendall(handshake.encode())
        wait_for(lambda: len(demo.hub.pages) == 2)
        silent = max(demo.hub.pages.values(), key=lambda other: other.number)
        for _ in range(20):
            page.frame()
            assert len(silent.in_flight) <= server_module.MAX_IN_FLIGHT
        page.until(lambda _: len(demo.hub.pages) == 1)  # given up
        page.frame()


def test_too_many_pages_are_told(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_PAGES", 1)
    with demo.open() as page:
        page.frame()
        with demo.open() as second, pytest.raises(ConnectionClosed) as closed:
            second.step()
        assert closed.value.rcvd is not None and "1 pages are open" in closed.value.rcvd.reason
        page.frame()


def test_a_full_disk_ends_the_recording_and_keeps_the_picture(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Writer, data: bytes) -> int:
        raise SourceError("cannot write: No space left on device")

    with demo.open() as page:
        page.frame()
        monkeypatch.setattr(Writer, "write_packet", full)
        page.send("record", on=True)
        page.until(lambda page: any("No space left" in notice for notice in page.notices))
        page.until(lambda page: page.state["recording"]["name"] is None)
        page.frame()


def test_a_recording_ends_by_itself(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordings_module, "LONGEST_RECORDING", 0.2)
    with demo.open() as page:
        page.until(lambda page: bool(page.state))
        before = len(page.state["recordings"])
        page.send("record", on=True)
        page.until(lambda page: len(page.state["recordings"]) == before + 1 and not page.state["recording"]["name"])


def test_a_recording_that_vanished_or_is_damaged_goes_back_to_the_camera(demo: Demo) -> None:
    assert demo.folder is not None
    (demo.folder / "broken.ttk").write_bytes(b"\x89TTK\r\n\x1a\njunk")
    demo.engine.recordings.find()
    with demo.open() as page:
        page.until(lambda page: "broken.ttk" in page.state.get("recordings", []))
        page.send("source", name="recording", recording="broken.ttk")
        page.until(lambda page: any("broken.ttk" in notice for notice in page.notices))
        page.frame(lambda header: header["mode"] == "adaptive")
    (demo.folder / "broken.ttk").unlink()


def test_a_damaged_frame_of_a_recording_is_left_out(tokenizer: Tokenizer, recording: Path, tmp_path: Path) -> None:
    data = bytearray(recording.read_bytes())
    with Reader(recording) as reader:
        data[reader.offset(14) + 20] ^= 0xFF
    path = tmp_path / "damaged.ttk"
    path.write_bytes(data)
    feed = RecordingFeed(path, tokenizer)
    seen: list[int] = []
    for played in feed:
        assert isinstance(played, Played)
        if seen and played.number < seen[-1]:
            break
        seen.append(played.number)
    feed.close()
    assert seen == [*range(14), *range(20, 30)]


def test_an_empty_recording_is_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "empty.ttk"
    with Writer(path, tokenizer.entropy_model, name=tokenizer.name):
        pass
    with pytest.raises(FormatError, match="holds no frame"):
        RecordingFeed(path, tokenizer)


def test_a_bug_ends_the_server_and_is_reported(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Demo(tokenizer, None)
    monkeypatch.setattr(engine_module, "jpeg", lambda _: 1 // 0)
    with contextlib.suppress(ConnectionClosed), running.open() as page:
        for _ in range(1000):
            page.step()
    running._thread.join(PATIENCE)
    assert not running._thread.is_alive()
    assert isinstance(running.engine.failure, ZeroDivisionError)
    running.engine.__exit__()


# --- who may come in --------------------------------------------------------------------------------------------


def test_other_names_and_origins_stay_outside(demo: Demo) -> None:
    assert demo.get(Host=f"localhost:{demo.port}")[0] == 200
    assert demo.get(Host="localhost:9000")[0] == 200  # a tunnel has a port of its own
    for name in ("evil.example", f"evil.example:{demo.port}", "127.0.0.1.evil.example", "localhost:80:90", "a b", ""):
        status, headers, _ = demo.get(Host=name)
        assert status in (400, 421), name
        assert "evil" not in headers.get("content-security-policy", "")
    for origin in ("http://evil.example", "http://localhost:1", "null", None, f"file://{demo.host}"):
        with pytest.raises(InvalidStatus) as refused, demo.open(origin=origin):
            pass
        assert refused.value.response.status_code == 403
    assert not demo.hub.pages


def test_token_is_asked_for_everywhere(tokenizer: Tokenizer) -> None:
    running = Demo(tokenizer, None, token="s3cret-Token_value")
    try:
        assert running.url.endswith("/?token=s3cret-Token_value")
        wrong = [
            "",
            "?token=",
            "?token=s3cret",
            "?token=s3cret-Token_value&token=x",
            "?token=%C3%A9%FF",
            "?" + "a&" * 99,
        ]
        for path in ("/", "/app.js", "/nothing"):
            for query in wrong:
                status, headers, content = running.get(path + query)
                assert status == 401 and "set-cookie" not in headers and b"access token" in content
            assert running.get(path, Cookie="tatok-demo=wrong")[0] == 401
        for headers in ({}, {"Cookie": "tatok-demo=wrong"}, {"Cookie": "tatok-demo=\xe9"}):
            with pytest.raises(InvalidStatus) as refused, running.open(additional_headers=headers):
                pass
            assert refused.value.response.status_code == 403
        status, headers, _ = running.get("/?token=s3cret-Token_value")
        assert status == 200
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        cookie = cookie.partition(";")[0]
        assert running.get("/app.js", Cookie=cookie)[0] == 200
        with running.open(additional_headers={"Cookie": cookie}) as page:
            page.frame()
        foreign = running.open(additional_headers={"Cookie": cookie}, origin="http://evil.example")
        with pytest.raises(InvalidStatus), foreign:  # the cookie alone does not let a foreign page in
            pass
    finally:
        running.close()


def test_only_loopback_addresses_need_no_token() -> None:
    for host in ("127.0.0.1", "127.8.0.1", "localhost", "::1"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.2", "example.com", ""):
        assert not is_loopback(host)
    with listen("0.0.0.0", 0) as listener:
        door, other = door_of(listener, "0.0.0.0"), door_of(listener, "0.0.0.0")
        assert door.token is not None and len(door.token) >= 32 and door.token != other.token
        address = address_of(listener, "0.0.0.0", door)
        assert re.fullmatch(rf"http://[\w.-]+:\d+/\?token={re.escape(door.token)}", address)
        assert "0.0.0.0" not in address


# --- the command ----------------------------------------------------------------------------------------------


def run_demo(*arguments: str, code: str = "") -> subprocess.Popen[str]:
    start = f"{code}\nimport sys; from tatok_edge.cli.main import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", start, "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),  # not where the source folders are: they would hide the installed package
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_command_serves_and_ends_cleanly(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = run_demo(CAMERA, "--port", "0", "--json", "--record-to", str(tmp_path / "new" / "folder"))
    try:
        assert process.stdout is not None
        report = json.loads(process.stdout.readline())
        assert report["token"] is None and report["url"] == f"http://127.0.0.1:{report['port']}/"
        host = f"127.0.0.1:{report['port']}"
        with Page(f"ws://{host}/socket", origin=f"http://{host}") as page:
            page.send("record", on=True)
            page.until(lambda page: bool(page.state.get("recording", {}).get("name")))
            for _ in range(4):
                page.frame()
            begun = time.monotonic()
            process.send_signal(number)
            assert process.wait(PATIENCE) == code
            assert time.monotonic() - begun < PATIENCE / 2
        assert process.stderr is not None
        assert process.stderr.read() == "tatok demo: interrupted; what was whole is kept\n"
        (recorded,) = (tmp_path / "new" / "folder").iterdir()
        with Reader(recorded) as reader:
            assert reader.complete and len(reader) >= 3
    finally:
        process.kill()
        process.communicate()


def test_a_signal_ahead_of_the_server_ends_it_too() -> None:
    hub = Hub()
    hub.end()
    with listen("127.0.0.1", 0) as listener:
        server_module.run(application(hub, door_of(listener, "127.0.0.1")), hub, listener)  # returns at once


def test_command_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with listen("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        started = [
            (run_demo("--port", port), 1, f"cannot listen on port {port} of 127.0.0.1"),
            (run_demo("--host", "nowhere.invalid", "--port", "0"), 1, "no such address"),
            (run_demo("nothing.mp4", "--port", "0"), 1, "nothing.mp4: no such file"),
            (run_demo("nothing.ttk", "--port", "0"), 1, "nothing.ttk"),
            (run_demo("--record-to", str(tmp_path / "file"), "--port", "0"), 1, "--record-to"),
            (run_demo("--port", "70000"), 2, "--port must be from 0 to 65535"),
            (run_demo("--size", "5"), 2, "--size must be from 64 to 1920"),
            (
                run_demo("--port", "0", code="import sys; sys.modules['starlette'] = None"),
                1,
                "pip install 'tatok-edge[demo]'",
            ),
        ]
        for process, code, message in started:
            output, errors = process.communicate(timeout=2 * PATIENCE)
            assert (process.returncode, output) == (code, ""), errors
            assert message in errors and errors.count("\n") == 1, errors


def test_a_network_address_prints_its_token() -> None:
    process = run_demo(CAMERA, "--host", "0.0.0.0", "--port", "0", "--json")
    try:
        assert process.stdout is not None
        report = json.loads(process.stdout.readline())
        assert len(report["token"]) >= 32 and report["url"].endswith(f"/?token={report['token']}")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{report['port']}/", timeout=PATIENCE)
        url = f"http://127.0.0.1:{report['port']}/?token={report['token']}"
        assert urllib.request.urlopen(url, timeout=PATIENCE).status == 200
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


# --- parts ------------------------------------------------------------------------------------------------------


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*Settings().report(), "x"]), json_values, max_size=3))
def test_settings_take_what_is_allowed_and_refuse_the_rest(changes: dict[str, Any]) -> None:
    settings = Settings()
    with contextlib.suppress(MessageError):
        settings = Settings().changed(changes)
    assert json.loads(json.dumps(settings.report(), allow_nan=False))["version"] in (0, 1)
    assert settings.budget.tau == settings.tau


@given(st.text() | json_values.map(json.dumps))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(parse(text)["type"], str)


JPEG = jpeg_of(64, 48)


@given(st.integers(0, len(JPEG)), st.binary(max_size=8), st.booleans())
def test_any_damage_to_a_picture_is_noticed_or_harmless(at: int, junk: bytes, cut: bool) -> None:
    data = JPEG[:at] + junk + (b"" if cut else JPEG[at + len(junk) :])
    with contextlib.suppress(MessageError):
        width, height = jpeg_size(data)
        assert decode_jpeg(data).shape == (height, width, 3)


def test_jpeg_sizes() -> None:
    assert jpeg_size(JPEG) == (64, 48)
    assert decode_jpeg(JPEG).shape == (48, 64, 3)
    at = JPEG.index(b"\xff\xc0")
    huge = JPEG[: at + 5] + b"\xff\xff\xff\xff" + JPEG[at + 9 :]
    with pytest.raises(MessageError, match="got 65535x65535"):
        decode_jpeg(huge)
    done, png = cv2.imencode(".png", np.zeros((48, 64, 3), np.uint8))
    assert done
    with pytest.raises(MessageError, match="must be a JPEG picture"):
        decode_jpeg(png.tobytes())


def test_map_and_scale() -> None:
    assert set(map_of(None, 6)) == {HELD}
    assert (HELD, UPDATED, TOKEN, MOVED) == (0, 1, 2, 3)  # as the page's script has them
    turns = np.array([1], np.int32)
    delta = DeltaFrame(
        updated=np.array([0, 9], np.int32),
        positions=np.array([9], np.int32),
        ids=np.array([5], np.int32),
        cells=np.zeros(0, np.int32),
        global_ids=np.zeros(0, np.int32),
        window=(0, 0, 1, 2),
        width=64,
        height=32,
        model=bytes(8),
        index=1,
        reference=0,
        follows=0,
        turns=turns,
        vectors=np.array([[2, 0]], np.int32),
    )
    marks = map_of(delta, 32).reshape(4, 8)
    assert marks[0, 0] == UPDATED and marks[1, 1] == TOKEN
    assert (marks[:, 4:] == MOVED).all() and np.count_nonzero(marks[:, :4] == HELD) == 14
    image = np.zeros((480, 640, 3), np.uint8)
    assert scaled(image, 320).shape == (240, 320, 3)
    assert scaled(image, 640) is image and scaled(image, 1000) is image
    assert scaled(np.zeros((40, 1200, 3), np.uint8), 320).shape == (32, 320, 3)


def test_files_are_shown_at_their_pace_over_and_over(tmp_path: Path) -> None:
    from tatok_edge.pictures.writing import open_output

    path = tmp_path / "clip.mp4"
    with open_output(path, fps=25, frames=10) as output:
        for index in range(10):
            output.write(render(Scene(width=64, height=64), index), index)
    feed = SourceFeed(str(path), open_source(path))
    begun, shots = time.monotonic(), []
    for shot in feed:
        assert isinstance(shot, Shot)
        shots.append(shot)
        if len(shots) == 25:
            break
    feed.close()
    assert time.monotonic() - begun >= 0.8 * (25 - 2) / 25
    restarts = [number for number, shot in enumerate(shots) if shot.restarted]
    assert restarts[0] == 0 and len(restarts) >= 3
    slow = SourceFeed(str(path))  # whoever is too slow sees fewer frames, in time
    begun = time.monotonic()
    for count, shot in enumerate(slow):
        if count == 4:
            break
        time.sleep(0.1)
        assert isinstance(shot, Shot)
    assert shot.dropped >= 2
    assert time.monotonic() - begun < 5
    slow.close()


def test_a_single_picture_is_shown_again_and_again(pictures: Path) -> None:
    feed = SourceFeed(str(pictures / "picture00.png"))
    shots = [shot for shot, _ in zip(feed, range(3), strict=False)]
    feed.close()
    assert len(shots) == 3 and all(np.array_equal(shots[0].image, shot.image) for shot in shots)


# --- a real browser ------------------------------------------------------------------------------------------------


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Any other address is not looked up: the page must not ask for one, and the tests must not depend on a network.
ARGUMENTS = [
    "--no-sandbox",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("the browser tests need Chromium (Debian: apt install chromium)")
    with api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield launched
        launched.close()


class Visit:
    """A page in the browser, with everything that it complained of or asked for."""

    def __init__(self, browser: Any, url: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.add_init_script(
            "window.asked = 0; const devices = navigator.mediaDevices; if (devices) {"
            "const real = devices.getUserMedia.bind(devices);"
            "devices.getUserMedia = wish => { window.asked += 1; return real(wish); }; }"
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)
        self.waits("document.querySelector('#status').dataset.state === 'live'")

    def waits(self, condition: str) -> None:
        """Wait until a condition holds; Playwright's own way needs eval, which the page forbids."""
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(condition):
            assert time.monotonic() < end, (
                f"{condition}: complaints {self.complaints}, notice {self.text('#notice-text')!r}, "
                f"status {self.text('#status')!r}"
            )
            self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        return str(self.page.text_content(selector))

    def spread(self, canvas: str) -> float:
        """How much the values of a canvas vary; 0 where nothing is drawn."""
        script = """id => {
            const canvas = document.getElementById(id);
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            let sum = 0, squares = 0, count = 0;
            for (let i = 0; i < data.length; i += 4) { sum += data[i]; squares += data[i] ** 2; count += 1; }
            return Math.sqrt(squares / count - (sum / count) ** 2);
        }"""
        return float(self.page.evaluate(script, canvas))

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture
def visit(demo: Demo, browser: Any) -> Iterator[Visit]:
    with Visit(browser, demo.url, viewport={"width": 1440, "height": 900}) as opened:
        yield opened
        assert opened.complaints == []
        assert {re.sub(r"^\w+://", "", url).partition("/")[0] for url in opened.requests} == {demo.host}


def test_browser_shows_pictures_numbers_and_plots(visit: Visit) -> None:
    for canvas in ("camera", "map", "picture"):
        assert visit.spread(canvas) > 10
    visit.waits("document.querySelector('#value-latency').textContent.endsWith(' ms')")
    assert visit.text("#value-kbps").endswith(" kbit/s")
    assert re.fullmatch(r"\d\d\.\d\d dB", visit.text("#value-psnr"))
    assert re.fullmatch(r"\d+\.\d\u00d7", visit.text("#ratio-value"))
    assert visit.text("#count-fixed") == str(PATCHES + CELLS)
    assert 0 < int(visit.text("#count-adaptive")) < PATCHES + CELLS
    for plot in ("tokens", "kbps", "psnr", "latency"):
        drawn = visit.page.evaluate(
            "id => { const c = document.getElementById(id);"
            "return c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 0) }",
            f"plot-{plot}",
        )
        assert drawn, plot
    assert visit.page.evaluate("window.asked") == 0  # nobody clicked on the webcam
    assert visit.page.evaluate("document.documentElement.scrollHeight <= innerHeight + 40")


def test_browser_slider_changes_the_tokens_by_keyboard_alone(visit: Visit, demo: Demo) -> None:
    visit.page.focus("#slider-keep")
    visit.page.keyboard.press("Home")
    assert visit.text("#value-keep") == "≤ 0 %"
    visit.waits("document.querySelector('#more-tokens').textContent.includes('; 0 patch')")
    assert demo.engine.settings.keep == 0
    visit.waits("document.querySelector('#figures').dataset.sliderMs > 0")
    visit.page.focus("#defaults")
    visit.page.keyboard.press("Enter")
    visit.waits("!document.querySelector('#more-tokens').textContent.includes('; 0 patch')")
    assert visit.text("#value-keep") == "≤ 100 %"
    assert demo.engine.settings.keep == 1
    visit.page.focus("#slider-max_kbps")
    visit.page.keyboard.press("ArrowLeft")
    wait_for(lambda: demo.engine.settings.max_kbps == 4096)
    visit.page.focus("#slider-max_tokens")
    visit.page.keyboard.press("Home")
    wait_for(lambda: demo.engine.settings.max_tokens == 0)


def test_browser_switches_between_fixed_rate_and_adaptive(visit: Visit) -> None:
    adaptive = visit.text("#count-adaptive")
    visit.page.check("input[value=fixed]")
    visit.waits(f"document.querySelector('#value-tokens').textContent === '{PATCHES + CELLS}'")
    assert visit.page.is_disabled("#slider-tau")
    assert adaptive.isdecimal() and int(visit.text("#count-adaptive")) < PATCHES + CELLS
    visit.page.check("input[value=adaptive]")
    visit.waits(f"+document.querySelector('#value-tokens').textContent < {PATCHES}")
    assert visit.page.is_enabled("#slider-tau")


def test_browser_records_plays_and_seeks(visit: Visit, demo: Demo) -> None:
    assert demo.folder is not None
    before = set(demo.folder.glob("*.ttk"))
    visit.page.click("#record")
    visit.waits("document.querySelector('#record-text').textContent === 'Stop recording'")
    visit.page.wait_for_timeout(1500)
    visit.page.click("#record")
    visit.waits("document.querySelector('#record-text').textContent === 'Record'")
    (name,) = [path.name for path in set(demo.folder.glob("*.ttk")) - before]
    visit.page.select_option("#source", label=name)
    visit.waits("!document.querySelector('#playback').hidden && !document.querySelector('#veil').hidden")
    visit.page.click("#play")
    visit.waits("document.querySelector('#play').textContent === 'Play'")
    visit.page.focus("#seek")
    visit.page.keyboard.press("End")
    with Reader(demo.folder / name) as reader:
        last = len(reader) - 1
    visit.waits(f"+document.querySelector('#position').dataset.frame === {last}")
    visit.page.click("#back")
    visit.waits(f"+document.querySelector('#position').dataset.frame === {last - 1}")
    visit.page.focus("#seek")
    visit.page.keyboard.press("Home")
    visit.waits("+document.querySelector('#position').dataset.frame === 0")
    assert visit.spread("picture") > 10 and visit.page.is_disabled("#record")
    visit.page.click("#play")
    visit.waits("+document.querySelector('#position').dataset.frame > 0")
    visit.page.select_option("#source", "source")
    visit.waits("document.querySelector('#playback').hidden && document.querySelector('#veil').hidden")


def test_browser_webcam_only_when_asked(visit: Visit, demo: Demo) -> None:
    assert visit.page.evaluate("window.asked") == 0
    visit.page.click("#webcam")
    visit.waits("document.querySelector('#camera-note').textContent === '320\u00d7240'")
    assert visit.page.evaluate("window.asked") == 1
    assert visit.spread("camera") > 5
    assert visit.text("#webcam") == "Stop my webcam"
    visit.page.click("#webcam")
    visit.waits("document.querySelector('#camera-note').textContent === '160\u00d796'")
    assert visit.text("#webcam") == "Use my webcam"


@pytest.mark.parametrize("width", [320, 390, 820])
def test_browser_narrow_screens_do_not_scroll_sideways(demo: Demo, browser: Any, width: int) -> None:
    phone = {"viewport": {"width": width, "height": 800}, "is_mobile": True, "has_touch": True}
    with Visit(browser, demo.url, **phone) as visit:
        visit.waits("document.querySelector('#figures').textContent.includes('patches')")
        outside = visit.page.evaluate(
            "[...document.querySelectorAll('main *, header *, footer *')].filter(e => { const box = "
            f"e.getBoundingClientRect(); return box.width && (box.right > {width}.5 || box.left < -0.5) }})"
            ".map(e => e.id || e.tagName)"
        )
        assert outside == []
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_is_readable_in_light_and_dark(demo: Demo, browser: Any, scheme: str) -> None:
    with Visit(browser, demo.url, color_scheme=scheme) as visit:
        paper, *inks = visit.page.evaluate(
            "['body', '#model', 'h2', '#ratio-value', '.slider output', '.slider small', '#figures']"
            ".map((s, i) => { const style = getComputedStyle(document.querySelector(s));"
            "return i ? style.color : style.backgroundColor })"
        )
        card, text = visit.page.evaluate(
            "['backgroundColor', 'color'].map(name => getComputedStyle(document.querySelector('#budget'))[name])"
        )
        assert (luminance(paper) < 0.1) == (scheme == "dark")
        for ink in [*inks, text]:
            assert contrast(ink, paper) >= 4.5 or contrast(ink, card) >= 4.5, (ink, paper)
        # Every control has a name.
        nameless = visit.page.evaluate(
            "[...document.querySelectorAll('button, input, select')].filter(e => !(e.textContent.trim() || "
            "e.getAttribute('aria-label') || (e.labels && e.labels.length))).map(e => e.id || e.outerHTML)"
        )
        assert nameless == []


def luminance(color: str) -> float:
    values = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in values]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(first: str, second: str) -> float:
    """Ratio as WCAG 2 defines it."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_browser_with_a_token_hides_it_and_says_when_the_demo_ends(tokenizer: Tokenizer, browser: Any) -> None:
    running = Demo(tokenizer, None, token="s3cret-Token_value")
    with contextlib.ExitStack() as stack:
        closing = stack.enter_context(contextlib.ExitStack())
        closing.callback(running.close)
        visit = stack.enter_context(Visit(browser, running.url))
        assert visit.page.url == f"http://{running.host}/"
        assert visit.complaints == []
        visit.page.reload()
        visit.waits("document.querySelector('#status').dataset.state === 'live'")
        assert visit.page.is_disabled("#record")
        closing.close()
        visit.waits("document.querySelector('#status').dataset.state === 'bad'")


def test_browser_two_pages_at_once_share_what_is_set(visit: Visit, demo: Demo, browser: Any) -> None:
    with Visit(browser, demo.url) as other:
        other.waits("document.querySelector('#model').textContent.endsWith('2 pages')")
        other.page.focus("#slider-max_loss_db")
        other.page.keyboard.press("End")
        visit.waits("document.querySelector('#value-max_loss_db').textContent === '3.00 dB'")
    visit.waits("!document.querySelector('#model').textContent.endsWith('2 pages')")
    first = visit.page.evaluate("last.number")
    visit.waits(f"last.number > {first + 3}")


def test_environment_has_what_the_browser_tests_need() -> None:
    if os.environ.get("CI") and sys.platform == "linux" and os.geteuid() == 0:
        assert CHROMIUM is not None
