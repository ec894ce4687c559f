"""Recordings of the demo over HTTP: a page downloads one, or drops one in."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response

from tatok_edge.demo.recordings import Recordings
from tatok_edge.errors import TaTokError

MAX_UPLOAD: Final = 256 << 20
"""Size of the largest recording that can be dropped in, in bytes."""
UPLOAD_SECONDS: Final = 120.0
"""Longest time of an upload."""


def download(recordings: Recordings, request: Request) -> Response:
    """A recording of the folder, as a file."""
    name = request.path_params["name"]
    if name not in recordings.names:
        return PlainTextResponse("there is no such recording\n", 404)
    return FileResponse(recordings.path(name), media_type="application/octet-stream", filename=name)


async def upload(recordings: Recordings, request: Request) -> Response:
    """Take a recording from the demo's own page; answers with its name in the folder."""
    origin = urlsplit(request.headers.get("origin", ""))
    if origin.netloc.lower() != request.headers["host"].lower():
        return PlainTextResponse("recordings come from the demo's own page only\n", 403)
    draft = recordings.draft()
    if draft is None:
        return PlainTextResponse("nothing can be dropped in: start 'tatok demo' with --record-to FOLDER\n", 409)
    try:
        if not await asyncio.wait_for(_receive(request, draft), UPLOAD_SECONDS):
            return PlainTextResponse(f"a recording has at most {MAX_UPLOAD >> 20} MB\n", 413)
        return JSONResponse({"name": await asyncio.to_thread(recordings.take, draft)})
    except TaTokError as error:
        return PlainTextResponse(f"{error}\n", 400)
    except asyncio.TimeoutError:  # not TimeoutError: that is another class in Python 3.10
        return PlainTextResponse(f"the upload took longer than {UPLOAD_SECONDS:.0f} s\n", 408)
    except ClientDisconnect:
        return PlainTextResponse("the upload was ended\n", 400)
    except OSError as error:
        return PlainTextResponse(f"the recording cannot be written: {error.strerror or error}\n", 507)
    finally:
        draft.unlink(missing_ok=True)


async def _receive(request: Request, draft: Path) -> bool:
    """Write the body of a request to a file; False if it is too large."""
    size = 0
    with draft.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_UPLOAD:
                return False
            await asyncio.to_thread(file.write, chunk)
    return True
