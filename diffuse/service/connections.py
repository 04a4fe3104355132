"""The connections of clients: those that send no request in time are closed, and those that are too many."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

Address = tuple[str, int]


class Connections:
    """The open connections by the client's address.

    Args:
        timeout: seconds that a client has to send the head of its request, the first and each after an answer.
        most: connections; what comes above is closed unread.
    """

    def __init__(self, timeout: float, most: int) -> None:
        self.timeout, self.most = timeout, most
        self._transports: dict[Address, asyncio.Transport] = {}
        self._waiting: dict[Address, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._transports)

    def protocol(self) -> type[H11Protocol]:
        """Builds uvicorn's protocol of HTTP, with an account of each connection."""
        connections = self

        class Protocol(H11Protocol):
            def connection_made(self, transport: Any) -> None:
                super().connection_made(transport)
                connections.opened(self.client, transport)

            def connection_lost(self, exc: Exception | None) -> None:
                super().connection_lost(exc)
                connections.closed(self.client)

            def on_response_complete(self) -> None:
                connections.answered(self.client)
                super().on_response_complete()

        return Protocol

    def opened(self, client: Address | None, transport: asyncio.Transport) -> None:
        """Begins to wait for the request of a client, or closes the connection where there are too many."""
        if len(self) >= self.most:
            transport.abort()
        elif client is not None:
            self._transports[client] = transport
            self._wait(client)

    def answered(self, client: Address | None) -> None:
        """Begins to wait for the next request of a client, and for its taking the rest of the answer.

        uvicorn waits for five seconds, too, but no more once a byte has come.
        """
        if client in self._transports:
            self._wait(client)

    def closed(self, client: Address | None) -> None:
        """Forgets a connection."""
        if client is not None:
            self._transports.pop(client, None)
            self._stop_waiting(client)

    def arrived(self, request: Request) -> None:
        """Ends the wait for a request, until it is answered."""
        if request.client is not None:
            self._stop_waiting((request.client.host, request.client.port))

    def abort(self, request: Request) -> None:
        """Ends the connection of a request, whatever of its answer is on the way."""
        if request.client is not None:
            transport = self._transports.get((request.client.host, request.client.port))
            if transport is not None:
                transport.abort()

    def _wait(self, client: Address) -> None:
        self._stop_waiting(client)
        abort = self._transports[client].abort
        self._waiting[client] = asyncio.get_running_loop().call_later(self.timeout, abort)

    def _stop_waiting(self, client: Address) -> None:
        timer = self._waiting.pop(client, None)
        if timer is not None:
            timer.cancel()
