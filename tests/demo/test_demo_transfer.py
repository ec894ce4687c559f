"""Recordings that pages download and drop in."""

from __future__ import annotations

import http.client
from pathlib import Path

import pytest

from tatok_edge.model.tokenizer import Tokenizer

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")

from helpers.demo_client import PATIENCE, Demo

from tatok_edge.demo import transfer


def post(demo: Demo, data: bytes, origin: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection(demo.host, timeout=PATIENCE)
    try:
        connection.request("POST", "/recordings", data, {"Origin": origin or f"http://{demo.host}"})
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def test_what_is_no_recording_is_refused_and_leaves_nothing(
    demo: Demo, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert demo.folder is not None
    before = sorted(demo.folder.iterdir())
    data = recording.read_bytes()
    assert post(demo, data, "http://evil.example")[0] == 403
    for wrong in (b"", b"no tokens", data[:40]):
        status, text = post(demo, wrong)
        assert status == 400 and "the dropped file" in text and str(demo.folder) not in text
    monkeypatch.setattr(transfer, "MAX_UPLOAD", 1000)
    assert post(demo, data)[0] == 413
    assert sorted(demo.folder.iterdir()) == before
    for name in ("none.ttk", "..%2F..%2Fetc%2Fpasswd", ""):
        assert demo.get(f"/recordings/{name}")[0] in (404, 405)


def test_a_dropped_recording_comes_back(demo: Demo, recording: Path) -> None:
    status, text = post(demo, recording.read_bytes())
    assert status == 200
    (name,) = [known for known in demo.engine.recordings.names if known in text]
    status, headers, data = demo.get(f"/recordings/{name}")
    assert status == 200 and data == recording.read_bytes()
    assert headers["content-disposition"] == f'attachment; filename="{name}"'


def test_without_a_folder_nothing_is_taken(tokenizer: Tokenizer, recording: Path) -> None:
    running = Demo(tokenizer, None)
    try:
        status, text = post(running, recording.read_bytes())
        assert status == 409 and "--record-to" in text
    finally:
        running.close()
