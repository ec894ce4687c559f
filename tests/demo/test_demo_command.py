"""The command 'tatok demo'."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tatok_edge.format.reader import Reader

pytest.importorskip("starlette", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("uvicorn", reason="the demo needs tatok-edge[demo]")
pytest.importorskip("websockets", reason="the demo needs tatok-edge[demo]")


from helpers.demo_client import CAMERA, PATIENCE, Page

from tatok_edge.demo import server as server_module
from tatok_edge.demo.server import Hub, application, door_of, listen


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
        assert process.stderr.read() == "tatok demo: interrupted; finished work is kept\n"
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
