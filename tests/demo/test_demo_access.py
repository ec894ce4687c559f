"""Who may use the demo: names, origins and tokens."""

from __future__ import annotations

import re

import pytest

from tatok_edge.model.tokenizer import Tokenizer

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")

from helpers.demo_client import Demo
from websockets.exceptions import InvalidStatus

from tatok_edge.demo.server import address_of, door_of, is_loopback, listen


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
