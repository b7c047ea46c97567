"""Who may come in to the server, and how long a connection may keep it waiting."""

from __future__ import annotations

import re
import resource
import secrets
import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

import h11
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fleetune.errors import EnvironmentProblem, one_line

PATIENCE = 10.0
"""Seconds in which the head of a request must have come, then its body, and in which some of an answer must have been taken."""
MOST_CONNECTIONS = 1000
"""At once; a further one is closed. Fewer where the process may not open so many files."""
# Connections that the system holds until they are taken.
_BACKLOG = 2048
# Files that a server holds besides its connections.
_OTHER_FILES = 64
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/?#@\s]*))(?::[0-9]*)?")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free. EnvironmentProblem where the machine refuses."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # asyncio sends small answers at once only where the socket says that it is TCP; else each waits for 40 ms.
        listening = socket.socket(found[0][0], socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(found[0][4])
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening
    except (OSError, UnicodeError) as error:
        raise EnvironmentProblem(
            f"{host}, port {port}: {getattr(error, 'strerror', None) or error}; give another --port or --host"
        ) from None


def is_local(host: str) -> bool:
    """Whether only this machine can reach a host; an IPv6 address without brackets."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def most_connections() -> int:
    """How many connections the process may hold."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return max(min(MOST_CONNECTIONS, files - _OTHER_FILES), 1)


def error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that is refused."""
    return JSONResponse({"error": one_line(text)}, status, headers=headers)


class Guard:
    """Host and token of every request, before anything of it is read.

    token: None where nothing is asked for. hosts: none where any will do.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Sequence[str]) -> None:
        self._app = app
        self._token = None if token is None else f"Bearer {token}".encode()
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if self._hosts and _host_of(headers.get("host", "")) not in self._hosts:
            return error(
                421, "this server does not go by that Host; --allowed-host names those it does"
            )
        # Not the path of a URL that is put together again: the Host header is a part of that.
        if self._token is None or scope["path"] == "/health":
            return None
        given = headers.get("authorization", "").encode()
        if secrets.compare_digest(given, self._token):
            return None
        told = "send the server's token: Authorization: Bearer TOKEN"
        return error(401, told, {"WWW-Authenticate": "Bearer"})


def _host_of(header: str) -> str | None:
    """The name in a Host header, without its port and the brackets of an IPv6 address; None for what is no such header."""
    found = _HOST.fullmatch(header)
    return None if found is None else (found[1] or found[2]).lower()


class Patient(H11Protocol):
    """Ends a connection on which nothing moves: no head of a request comes, or the answer is not taken.

    uvicorn itself waits for ever in both cases, so that a few hundred such connections would leave no other.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._since = self._moved = self.loop.time()
        self._left = 0
        self._open = True
        if len(self.connections) > most_connections():
            transport.abort()
        else:
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        if not self._open:
            return
        now, left = self.loop.time(), self.transport.get_write_buffer_size()
        if not left or left < self._left:
            self._moved = now
        self._left = left
        waits = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        if now - self._moved >= PATIENCE:
            self.transport.abort()  # closing would wait for what is left to be taken
        elif waits and now - self._since >= PATIENCE:
            self.transport.close()
        self.loop.call_later(PATIENCE / 4, self._look)
