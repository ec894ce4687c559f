"""The web server of the demo: the page, its files, and a socket that sends views and receives requests.

A page gets only the newest view; there is no queue of old views. At most ``MAX_IN_FLIGHT`` views are sent before the
page acknowledges one. So a slow page sees fewer pictures, and slows nothing down.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from tatok_edge.demo.engine import Choice, Engine
from tatok_edge.demo.guests import MAX_CONNECTIONS, Guest
from tatok_edge.demo.messages import MAX_JPEG, MessageError, flag, parse, string, whole
from tatok_edge.demo.transfer import download, upload
from tatok_edge.demo.views import View
from tatok_edge.errors import InputError

MAX_PAGES: Final = 16
"""Largest number of open pages."""
MAX_PAGES_OF_CLIENT: Final = 8
"""Largest number of open pages of one address, except on this machine."""
MAX_IN_FLIGHT: Final = 2
"""Largest number of unacknowledged views of a page: one is sent while the page draws the other."""
MAX_OFFENCES: Final = 32
"""Largest number of wrong messages before a page is disconnected."""
SILENCE: Final = 30.0
"""Seconds without an acknowledged view after which a page is disconnected."""
SHUTDOWN_SECONDS: Final = 2
MAX_REQUEST: Final = 1 << 31
"""Largest number of a request from a page."""

FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9.-]{1,253})(?::[0-9]{1,5})?")
_LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]"})
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_CLOSE_POLICY, _CLOSE_LATER = 1008, 1013


# --- access ------------------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class Door:
    """Decides which requests are allowed.

    A page of another origin must not read or control the demo. Its requests have a wrong ``Origin``. A foreign host
    name that points at this machine (DNS rebinding) is not in ``names``.
    """

    names: frozenset[str] | None
    """Allowed host names in requests; None allows all, because a token is needed."""
    token: str | None
    """Access token, in the query or in a cookie; None if no token is needed."""
    cookie: str = "tatok-demo"
    """Name of the cookie."""

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason if a request is refused; None if it is allowed."""
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None or (self.names is not None and match[1].lower() not in self.names):
            return 421, "this name is not one of the demo's; open the address that 'tatok demo' printed\n"
        if scope["type"] == "websocket":
            origin = urlsplit(headers.get("origin", ""))
            if origin.scheme not in ("http", "https") or origin.netloc.lower() != hosts[0].lower():
                return 403, "the socket is for the demo's own page\n"
        if self.token is not None and not (self._has_cookie(headers) or self._has_query(scope)):
            return 401, "this needs the access token: open the address that 'tatok demo' printed\n"
        return None

    def _has_cookie(self, headers: Headers) -> bool:
        return self._is_token(cookie_parser(headers.get("cookie", "")).get(self.cookie, ""))

    def _has_query(self, scope: Scope) -> bool:
        query = scope.get("query_string", b"").decode("latin-1")
        try:
            values = parse_qs(query, max_num_fields=8).get("token", [])
        except ValueError:
            return False
        return len(values) == 1 and self._is_token(values[0])

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode("utf-8", "replace"), (self.token or "").encode())


def guarded(app: ASGIApp, door: Door) -> ASGIApp:
    """``app`` behind ``door``, with headers that keep foreign content out of the page."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        refusal = door.refusal(scope)
        if refusal is not None and scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _CLOSE_POLICY})
            return
        if scope["type"] == "websocket":
            await app(scope, receive, send)
            return
        # 'self' does not cover the socket in every browser. An allowed host matches _HOST, so it is safe here.
        host = "" if refusal is not None else Headers(scope=scope)["host"]
        policy = _POLICY if refusal is not None else f"{_POLICY}; connect-src 'self' ws://{host} wss://{host}"

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = policy
                headers["x-content-type-options"] = "nosniff"
                headers["x-frame-options"] = "DENY"
                headers["referrer-policy"] = "no-referrer"
                headers["cross-origin-resource-policy"] = "same-origin"
                headers["cross-origin-opener-policy"] = "same-origin"
                headers["permissions-policy"] = "camera=(self), microphone=(), geolocation=()"
                headers["cache-control"] = "no-store"
                if door.token is not None and refusal is None:
                    headers["set-cookie"] = f"{door.cookie}={door.token}; Path=/; HttpOnly; SameSite=Strict"
            await send(message)

        if refusal is not None:
            await PlainTextResponse(refusal[1], refusal[0])(scope, receive, send_with_headers)
        else:
            await app(scope, receive, send_with_headers)

    return call


# --- pages ------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Page:
    """One open page. All methods except ``call`` run in the event loop of the server."""

    number: int
    loop: asyncio.AbstractEventLoop
    address: str = ""
    """Address of the client."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    view: View | None = None
    """The newest view that is not sent yet."""
    stale: bool = True
    """Whether the newest state is not sent yet."""
    notices: deque[str] = field(default_factory=lambda: deque(maxlen=8))
    offences: int = 0
    in_flight: deque[View] = field(default_factory=deque)
    sent_at: float = 0.0
    shown_ms: float | None = None
    """Milliseconds from the arrival of the last picture to the acknowledgement of the page."""
    requests: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=64))
    """Version of the settings and number of the request, for changes of this page."""

    def call(self, function: Callable[..., None], *arguments: object) -> None:
        """Run ``function`` in the event loop; from any thread."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop has just been closed
            return

    def put(self, view: View) -> None:
        """Replace the view that is not sent yet."""
        self.view = view
        self.wake.set()

    def mark(self) -> None:
        """The state has changed."""
        self.stale = True
        self.wake.set()

    def tell(self, text: str) -> None:
        """Send a notice; too many waiting notices push out the oldest."""
        self.notices.append(text)
        self.wake.set()

    def offend(self, text: str) -> None:
        """Answer a wrong message."""
        self.offences += 1
        self.tell(text)

    def seen(self, number: int) -> None:
        """The page has drawn the views up to ``number``."""
        while self.in_flight and self.in_flight[0].number <= number:
            self.shown_ms = 1000 * (time.monotonic() - self.in_flight.popleft().arrived)
        self.wake.set()

    def applied(self, version: int) -> int | None:
        """Number of the newest request that the settings of ``version`` contain."""
        newest = None
        while self.requests and self.requests[0][0] <= version:
            newest = self.requests.popleft()[1]
        return newest


class Hub:
    """All open pages; the engine's audience."""

    def __init__(self) -> None:
        self.pages: dict[int, Page] = {}
        self.engine: Engine | None = None
        self.on_end: Callable[[], None] | None = None
        self.ended = False
        self._count = 0

    def end(self) -> None:
        """End the server, now or as soon as it has begun; from any thread or signal handler."""
        self.ended = True
        if self.on_end is not None:
            self.on_end()

    # The engine's side: its thread calls these.

    def present(self) -> bool:
        return bool(self.pages)

    def show(self, view: View) -> None:
        for page in list(self.pages.values()):
            page.call(page.put, view)

    def changed(self) -> None:
        for page in list(self.pages.values()):
            page.call(page.mark)
        if self.engine is not None and self.engine.failure is not None:
            self.end()

    def tell(self, text: str, owner: int | None = None) -> None:
        for page in list(self.pages.values()):
            if owner in (None, page.number):
                page.call(page.tell, text)

    def refuse(self, text: str, owner: int) -> None:
        if (page := self.pages.get(owner)) is not None:
            page.call(page.offend, text)

    # The server's side.

    async def serve(self, websocket: WebSocket) -> None:
        """Serve one page until it closes."""
        await websocket.accept()
        address = websocket.client.host if websocket.client else ""
        if len(self.pages) >= MAX_PAGES:
            await websocket.close(_CLOSE_LATER, f"{MAX_PAGES} pages are open already; close one")
            return
        own = sum(page.address == address for page in self.pages.values())
        if own >= MAX_PAGES_OF_CLIENT and not is_loopback(address):
            await websocket.close(_CLOSE_LATER, f"{own} pages of {address} are open already; close one")
            return
        self._count += 1
        page = Page(self._count, asyncio.get_running_loop(), address)
        self.pages[page.number] = page
        self._mark_all()
        tasks = {
            asyncio.create_task(work)
            for work in (self._send(page, websocket), self._receive(page, websocket), _stalled(page))
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self.pages[page.number]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.engine is not None:
                self.engine.left(page.number)
            self._mark_all()
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, (WebSocketDisconnect, RuntimeError, OSError)):
                raise error

    async def _send(self, page: Page, websocket: WebSocket) -> None:
        while True:
            await page.wake.wait()
            page.wake.clear()
            while page.notices:
                await websocket.send_text(json.dumps({"type": "notice", "text": page.notices.popleft()}))
            if page.offences > MAX_OFFENCES:
                await websocket.close(_CLOSE_POLICY, "too many messages that make no sense")
                return
            if page.stale and self.engine is not None:
                page.stale = False
                state = {"type": "state", "page": page.number, "pages": len(self.pages)} | self.engine.state()
                await websocket.send_text(json.dumps(state, allow_nan=False))
            view = page.view
            if view is not None and len(page.in_flight) < MAX_IN_FLIGHT:
                page.view = None
                page.in_flight.append(view)
                page.sent_at = time.monotonic()
                await websocket.send_bytes(message_of(view, page.applied(view.version), page.shown_ms))

    async def _receive(self, page: Page, websocket: WebSocket) -> None:
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                if (text := message.get("text")) is not None:
                    self._act(page, parse(text))
                else:
                    self._picture(page, message.get("bytes") or b"")
            except MessageError as error:
                page.offend(str(error))

    def _act(self, page: Page, message: dict[str, Any]) -> None:
        """Carry out the request of a page.

        Raises:
            MessageError: The request is wrong or impossible.
        """
        engine = self.engine
        assert engine is not None
        kind = message.pop("type")
        if kind == "seen":
            page.seen(whole(message, "number"))
        elif kind == "settings":
            request = whole(message, "request", 0, MAX_REQUEST) if "request" in message else None
            message.pop("request", None)
            settings = engine.change(message)
            if request is not None:
                page.requests.append((settings.version, request))
        elif kind == "source":
            name = string(message, "name")
            if name == "recording":
                engine.choose(Choice(name, name=string(message, "recording")))
            else:
                engine.choose(Choice(name, owner=page.number if name == "webcam" else None))
        elif kind == "record":
            engine.record(flag(message, "on"))
        elif kind == "seek":
            engine.seek(whole(message, "frame"))
        elif kind == "play":
            engine.play(flag(message, "on"))
        else:
            raise MessageError("type must be one of seen, settings, source, record, seek, play")

    def _picture(self, page: Page, data: bytes) -> None:
        if len(data) > MAX_JPEG:
            raise MessageError(f"a picture has at most {MAX_JPEG} bytes, got {len(data)}")
        if not data.startswith(b"\xff\xd8"):
            raise MessageError("a binary message must be a JPEG picture")
        assert self.engine is not None
        self.engine.offer(page.number, data)

    def _mark_all(self) -> None:
        for page in self.pages.values():
            page.mark()


async def _stalled(page: Page) -> None:
    """Returns when a page has acknowledged no view for a long time."""
    while not page.in_flight or time.monotonic() - page.sent_at < SILENCE:
        await asyncio.sleep(1)


def message_of(view: View, applied: int | None, shown_ms: float | None) -> bytes:
    """A view as a binary message: the size of its header (uint32, little-endian), the header as JSON, and the parts."""
    parts = view.camera, view.picture, view.token_map, view.depth_map, view.sequence
    extra = {
        "number": view.number,
        "applied": applied,
        "shown_ms": None if shown_ms is None else round(shown_ms, 1),
        "sizes": [len(part) for part in parts],
    }
    header = json.dumps(view.header | extra, allow_nan=False).encode()
    return b"".join((len(header).to_bytes(4, "little"), header, *parts))


# --- the server -------------------------------------------------------------------------------------------


def application(hub: Hub, door: Door) -> ASGIApp:
    """The demo as an ASGI application."""

    def serve(name: str, kind: str) -> Callable[[Request], Response]:
        content = resources.files("tatok_edge.demo").joinpath("page", name).read_bytes()
        return lambda _: Response(content, media_type=kind)

    routes: list[Route | WebSocketRoute] = [Route(path, serve(*file)) for path, file in FILES.items()]
    routes.append(WebSocketRoute("/socket", hub.serve))
    if hub.engine is not None:
        recordings = hub.engine.recordings
        routes.append(Route("/recordings/{name}", partial(download, recordings)))
        routes.append(Route("/recordings", partial(upload, recordings), methods=["POST"]))
    return guarded(Starlette(routes=routes), door)


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket.

    Raises:
        InputError: The address is not one of this machine, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError):
        raise InputError(f"--host {host}: no such address") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise InputError(
            f"cannot listen on port {port} of {host}: {error.strerror or error}; "
            "choose another with --port, or --port 0 for a free one"
        ) from None
    return listener


def door_of(listener: socket.socket, host: str) -> Door:
    """Access rules: a loopback address has known host names and needs no token; any other address needs a new token."""
    port = listener.getsockname()[1]
    if is_loopback(host):
        bound = f"[{host}]" if ":" in host else host
        return Door(_LOOPBACK_NAMES | {bound.lower()}, None)
    # Cookies do not depend on the port: with one name, two demos on one machine would lock each other out.
    return Door(None, secrets.token_urlsafe(24), f"tatok-demo-{port}")


def address_of(listener: socket.socket, host: str, door: Door) -> str:
    """Address of the demo for a browser."""
    port = listener.getsockname()[1]
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        anywhere = False
    name = _own_address() if anywhere else host
    shown = f"[{name}]" if ":" in name else name
    query = "" if door.token is None else f"?token={door.token}"
    return f"http://{shown}:{port}/{query}"


def _own_address() -> str:
    """The address of this machine in its network; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address for documentation: only the route to it is looked up
            return str(probe.getsockname()[0])
        except OSError:
            return socket.gethostname()


def run(app: ASGIApp, hub: Hub, listener: socket.socket) -> None:
    """Serve until a signal comes, the engine fails, or the hub is ended."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="critical",
        access_log=False,  # the log would contain the token
        lifespan="off",
        loop="asyncio",
        server_header=False,
        http=Guest,
        limit_concurrency=MAX_CONNECTIONS + MAX_PAGES,
        ws_max_size=MAX_JPEG + 1024,
        ws_per_message_deflate=False,
        ws_ping_interval=10,
        ws_ping_timeout=20,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    server = uvicorn.Server(config)

    def end() -> None:
        server.should_exit = True

    hub.on_end = end
    if hub.ended:
        end()
    asyncio.run(server.serve(sockets=[listener]))
