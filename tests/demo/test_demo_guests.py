"""Connections that send nothing: they end, and lock nobody out."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

pytest.importorskip("uvicorn", reason="the demo needs uvicorn")

from helpers.demo_client import PATIENCE, Demo

from tatok_edge.demo import guests


def idle(demo: Demo, sent: bytes = b"") -> socket.socket:
    """A connection that sends no whole request."""
    connection = socket.create_connection(("127.0.0.1", demo.port), PATIENCE)
    connection.sendall(sent)
    return connection


def test_idle_connections_lock_nobody_out(demo: Demo) -> None:
    with contextlib.ExitStack() as stack:
        for number in range(3 * guests.MAX_CONNECTIONS):
            stack.enter_context(idle(demo, b"GET / HT"[: number % 9]))
        assert demo.get("/")[0] == 200
        with demo.open() as page:
            page.until(lambda page: page.state.get("model") == "tatok-s8")


def test_an_idle_connection_ends(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "IDLE_SECONDS", 0.3)
    with idle(demo) as silent, idle(demo, b"GET / HTTP/1.1\r\nHost: a\r\nX: ") as slow:
        end = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < end:
                slow.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() < end
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""


def test_a_page_stays_open(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guests, "IDLE_SECONDS", 0.2)
    with demo.open() as page:
        time.sleep(1.0)
        page.frame()
