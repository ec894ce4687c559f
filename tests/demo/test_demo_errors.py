"""What goes wrong in the demo: bad messages, slow pages, full disks, damaged recordings, bugs."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tatok_edge.errors import SourceError
from tatok_edge.format.writer import Writer
from tatok_edge.model.tokenizer import Tokenizer

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")

from helpers.demo_client import PATIENCE, Demo, Page, wait_for
from websockets.exceptions import ConnectionClosed

from tatok_edge.demo import engine as engine_module
from tatok_edge.demo import recordings as recordings_module
from tatok_edge.demo import server as server_module
from tatok_edge.demo.messages import MAX_JPEG, MAX_TEXT

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
