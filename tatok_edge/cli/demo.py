"""``tatok demo``: a page that shows camera, tokens and reconstruction live."""

from __future__ import annotations

import json
import os
import webbrowser
from pathlib import Path

from tatok_edge.cli.commands import TOKEN_SUFFIX, ModelChoice, exit_code, until_signal
from tatok_edge.demo.messages import Settings
from tatok_edge.errors import InputError, SourceError, TaTokError
from tatok_edge.format.reader import Reader
from tatok_edge.model.bundle import DEFAULT_MODEL
from tatok_edge.sources.open import open_source

SYNTHETIC = "synthetic:width=320,height=240,live=1"
"""What ``synthetic``, the default source, stands for here."""
_EXTRA = ("starlette", "uvicorn", "websockets")


def demo(
    source: str,
    choice: ModelChoice,
    *,
    host: str,
    port: int,
    record_to: str | None,
    size: int,
    browser: bool,
    as_json: bool,
) -> int:
    """Runs the command; returns the exit code."""
    try:
        import websockets  # noqa: F401  (uvicorn takes it if it is there)

        from tatok_edge.demo.engine import Engine
        from tatok_edge.demo.server import Hub, address_of, application, door_of, listen, run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise TaTokError(f"the demo needs {error.name}: pip install 'tatok-edge[demo]'") from None

    settings = Settings().changed({"size": size})
    folder = None if record_to is None else _folder(record_to)
    spec = SYNTHETIC if source == "synthetic" else source
    hub = Hub()
    with until_signal(hub.end) as received, listen(host, port) as listener:
        is_file = spec.lower().endswith(TOKEN_SUFFIX)
        tokenizer = choice.load(_model_of(spec) if is_file else DEFAULT_MODEL)
        opened = None if is_file else open_source(spec, retry_seconds=None)
        door = door_of(listener, host)
        hub.engine = engine = Engine(tokenizer, spec, hub, opened=opened, record_to=folder, settings=settings)
        url = address_of(listener, host, door)
        if not received:
            with engine:
                if as_json:
                    report = {"url": url, "host": host, "port": listener.getsockname()[1], "token": door.token}
                    print(json.dumps(report), flush=True)
                else:
                    print(f"TaTok Edge demo: {url}   (Ctrl-C ends it)", flush=True)
                if browser:
                    webbrowser.open(url)
                run(application(hub, door), hub, listener)
        if engine.failure is not None:
            raise engine.failure
    return exit_code("demo", False, received)


def _model_of(path: str) -> str:
    """Name of the model that made a token file."""
    with Reader(path) as reader:
        return reader.name


def _folder(name: str) -> Path:
    """The folder for recordings, made if it is not there."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"--record-to {name}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--record-to {name}: the folder cannot be written to")
    return folder
