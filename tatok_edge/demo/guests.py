"""Connections of the demo's server: those that send nothing end, and one client cannot take all of them."""

from __future__ import annotations

import asyncio
from typing import Final

from uvicorn.protocols.http.auto import AutoHTTPProtocol

MAX_CONNECTIONS: Final = 64
"""Largest number of connections."""
MAX_OF_CLIENT: Final = 32
"""Largest number of connections from one address."""
IDLE_SECONDS: Final = 10.0
"""Seconds that a connection may take to send a whole request."""


class Guest(AutoHTTPProtocol):  # type: ignore[valid-type, misc]  # uvicorn's own, or that of httptools
    """An HTTP connection that does not stay without a request.

    Where there are too many, the one that has waited longest without a request makes room.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a connection, and make room for it."""
        super().connection_made(transport)
        self.checked: object = None
        others = [guest for guest in self.connections if isinstance(guest, Guest) and guest is not self]
        own = [guest for guest in others if guest.address == self.address]
        crowded = own if len(own) >= MAX_OF_CLIENT else others if len(others) >= MAX_CONNECTIONS - 1 else []
        if crowded:
            min((guest for guest in crowded if guest.idle), key=lambda guest: guest.since, default=self).end()
        self.since = self.loop.time()
        self.loop.call_later(IDLE_SECONDS, self.check)

    @property
    def address(self) -> str:
        """Address of the client."""
        return self.client[0] if self.client else ""

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def check(self) -> None:
        """End the connection if no request has come since the last check."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:  # it may be a socket by now
            return
        if self.idle and self.cycle is self.checked:
            self.end()
            return
        self.checked = self.cycle
        self.loop.call_later(IDLE_SECONDS, self.check)

    def end(self) -> None:
        """End the connection at once."""
        self.connections.discard(self)
        self.transport.abort()
