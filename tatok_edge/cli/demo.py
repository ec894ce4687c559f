"""``tatok demo``: a page that shows camera, tokens and reconstruction live."""

from __future__ import annotations

import argparse
import json
import os
import webbrowser
from pathlib import Path

from tatok_edge.cli.interrupt import exit_code, until_signal
from tatok_edge.cli.options import SOURCE_HELP, UsageError, add_model, model_choice, positive
from tatok_edge.cli.token_file import TOKEN_SUFFIX
from tatok_edge.demo.messages import Settings
from tatok_edge.errors import InputError, SourceError, TaTokError
from tatok_edge.format.reader import Reader
from tatok_edge.sources.open import open_source

SYNTHETIC = "synthetic:width=320,height=240,live=1"
"""Source that ``synthetic``, the default, means in this command."""
_EXTRA = ("starlette", "uvicorn", "websockets")


EXAMPLES = (
    "tatok demo",
    "tatok demo 0 --browser",
    "tatok demo clip.mp4 --record-to recordings",
)
"""At the end of its help."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Defines the options."""
    add_model(parser)
    parser.add_argument(
        "source",
        nargs="?",
        default="synthetic",
        metavar="SOURCE",
        help=SOURCE_HELP + ", or a token file (default: synthetic); the page can show a browser's webcam instead",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine only); with any other, the page needs an "
        "access token, which is part of the printed address",
    )
    parser.add_argument("--port", type=int, default=8321, metavar="N", help="port, 0 for a free one (default: 8321)")
    parser.add_argument("--record-to", metavar="DIR", help="folder for recordings (default: nothing can be recorded)")
    parser.add_argument(
        "--size",
        type=positive,
        default=320,
        metavar="PIXELS",
        help="longer side of the pictures at the start; larger pictures are scaled down (default: 320)",
    )
    parser.add_argument(
        "--browser", action=argparse.BooleanOptionalAction, default=False, help="open the page (default: no)"
    )


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    if not 0 <= args.port <= 65535:
        raise UsageError(f"--port must be from 0 to 65535, got {args.port}")
    if not 64 <= args.size <= 1920:
        raise UsageError(f"--size must be from 64 to 1920, got {args.size}")
    try:
        import websockets  # noqa: F401  (uvicorn takes it if it is there)

        from tatok_edge.demo import server
        from tatok_edge.demo.engine import Engine
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise TaTokError(f"the demo needs {error.name}: pip install 'tatok-edge[demo]'") from None

    settings = Settings().changed({"size": args.size})
    folder = None if args.record_to is None else _folder(args.record_to)
    spec = SYNTHETIC if args.source == "synthetic" else args.source
    hub = server.Hub()
    with until_signal(hub.end) as received, server.listen(args.host, args.port) as listener:
        is_file = spec.lower().endswith(TOKEN_SUFFIX)
        tokenizer = model_choice(args).load(_model_of(spec) if is_file else None)
        opened = None if is_file else open_source(spec, retry_seconds=None, limits=tokenizer.limits)
        door = server.door_of(listener, args.host)
        hub.engine = engine = Engine(tokenizer, spec, hub, opened=opened, record_to=folder, settings=settings)
        url = server.address_of(listener, args.host, door)
        if not received:
            with engine:
                if args.json:
                    report = {"url": url, "host": args.host, "port": listener.getsockname()[1], "token": door.token}
                    print(json.dumps(report), flush=True)
                else:
                    print(f"TaTok Edge demo: {url}   (Ctrl-C ends it)", flush=True)
                if args.browser:
                    webbrowser.open(url)
                server.run(server.application(hub, door), hub, listener)
        if engine.failure is not None:
            raise engine.failure
    return exit_code("demo", False, received)


def _model_of(path: str) -> str:
    """Name of the model that made a token file."""
    with Reader(path) as reader:
        return reader.name


def _folder(name: str) -> Path:
    """The folder for recordings, created if missing."""
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"--record-to {name}: {error.strerror or error}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"--record-to {name}: the folder cannot be written to")
    return folder
