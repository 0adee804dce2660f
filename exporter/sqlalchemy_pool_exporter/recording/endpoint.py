# SPDX-License-Identifier: Apache-2.0
"""The in-application endpoint: a server in a thread, or a WSGI, ASGI or aiohttp handler for the application's server.

Each serves a registry and answers a request as the sidecar does: both choose and write the format with the same code.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import weakref
from http import HTTPStatus
from io import BufferedIOBase
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self
from urllib.parse import parse_qs
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY

from sqlalchemy_pool_exporter import exposition
from sqlalchemy_pool_exporter.address import DEFAULT_PORT, MAX_PORT, Address
from sqlalchemy_pool_exporter.errors import EndpointError
from sqlalchemy_pool_exporter.negotiation import Wanted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.web import Request, Response
    from prometheus_client import CollectorRegistry

_LANDING_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>SQLAlchemy Pool Exporter</title></head>
<body><h1>SQLAlchemy Pool Exporter</h1><p><a href="/metrics">Metrics</a></p></body></html>
"""
_PLAIN: Final = {"Content-Type": "text/plain; charset=utf-8"}
_ALLOW: Final = {"Allow": "OPTIONS,GET,HEAD", **_PLAIN}
_CLIENT_SECONDS = 10.0


class _Output(BufferedIOBase):
    """Writes to a client. A client that does not read counts as one that has closed its connection.

    ``wsgiref`` prints a traceback for any other error of a write, which would be noise in the application's log.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            self._connection.sendall(data)
        except TimeoutError:
            raise ConnectionAbortedError from None
        return len(data)


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS  # of the socket, so that a silent client does not hold its thread for ever

    def setup(self) -> None:
        super().setup()
        self.wfile = _Output(self.connection)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing: one line for each scrape is noise in the application's log."""


class _HTTPServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: Any, family: socket.AddressFamily) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer.server_bind(): it asks the resolver for the full name of the host, which can hang.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing when a client disconnects."""


class Server:
    """A running endpoint, in its own thread."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        # The resolver would take the port modulo 65536. People also pass a string from the environment.
        if not isinstance(port, int) or not 0 <= port <= MAX_PORT:
            message = f"cannot listen on {host!r}, port {port!r}: a port is a number from 0 to {MAX_PORT}"
            raise EndpointError(message)
        try:
            family, _, _, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _HTTPServer(address, family)
        except OSError as error:
            message = f"cannot listen on {host!r}, port {port!r}: {error.strerror or error}"
            raise EndpointError(message) from error
        self._server.set_app(_application(registry))
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="sqlalchemy-pool-exporter", daemon=True
        )
        try:
            self._thread.start()
        except RuntimeError as error:  # the interpreter is shutting down, or the system has no thread left
            self._server.server_close()
            message = f"cannot serve on {host!r}, port {port!r}: {error}"
            raise EndpointError(message) from error
        _close_in_children(self._server)

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return str(self._server.server_address[0])

    @property
    def port(self) -> int:
        """The port that it listens on; if 0 was asked for, the one that was chosen."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The URL of the metrics, for clients on this machine."""
        return f"http://{Address(self.host, self.port).local}/metrics"

    def close(self) -> None:
        """Stop listening and wait for the thread to end. Does nothing the second time."""
        # While the interpreter shuts down, the thread never runs again: a finalizer that waits for it would hang.
        if self._thread.is_alive() and not sys.is_finalizing():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}{'' if self._thread.is_alive() else ' closed'}>"


def serve(
    port: int = DEFAULT_PORT,
    host: str = "0.0.0.0",  # noqa: S104 - an exporter is scraped from elsewhere
    *,
    registry: CollectorRegistry = REGISTRY,
) -> Server:
    """Serve ``/metrics`` in a daemon thread, for an application that has no HTTP server.

    Args:
        port: 0 chooses a free one; see ``Server.port``.
        host: name or address to listen on; by default every IPv4 address of the machine.
        registry: what to serve.

    Raises:
        EndpointError: the port is taken or is not a port number, or the address is not one of this machine.
    """
    return Server(host, port, registry)


def wsgi_app(registry: CollectorRegistry = REGISTRY) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the metrics at any path where it is mounted."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        # Browsers ask for this icon when the application is mounted at the root, and that is no scrape.
        if environ.get("PATH_INFO") == "/favicon.ico":
            return _send(environ, start_response, _Answer(HTTPStatus.OK, _PLAIN, b""))
        return _send(environ, start_response, _metrics(registry, environ))

    return application


def asgi_app(registry: CollectorRegistry = REGISTRY) -> Callable[..., Any]:
    """Return an ASGI application that serves the metrics at any path where it is mounted."""

    async def application(
        scope: dict[str, Any], _receive: object, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            message = f"metrics are served over HTTP, not over {scope['type']!r}"
            raise NotImplementedError(message)
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        accept, accept_encoding = (
            ",".join(value for name, value in headers if name == wanted)
            for wanted in (b"accept", b"accept-encoding")
        )
        method = scope.get("method", "GET")
        names = _names(scope.get("query_string", b"").decode("latin-1"))
        status, answered, body = _answer(registry, method, Wanted.of(accept, accept_encoding, names))
        answered = {**answered, "Content-Length": str(len(body))}
        await send(
            {
                "type": "http.response.start",
                "status": status.value,
                "headers": [(name.encode(), value.encode()) for name, value in answered.items()],
            }
        )
        await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})

    return application


def aiohttp_handler(registry: CollectorRegistry = REGISTRY) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that serves the metrics, for a route of an ``aiohttp.web`` application."""
    from aiohttp import web  # noqa: PLC0415 - only aiohttp's users have it

    async def metrics(request: Request) -> Response:
        accept, accept_encoding = (
            ",".join(request.headers.getall(name, ())) for name in ("Accept", "Accept-Encoding")
        )
        wanted = Wanted.of(accept, accept_encoding, request.query.getall("name[]", ()))
        # In a thread, because other collectors of the registry can be slow.
        status, headers, body = await asyncio.to_thread(_answer, registry, request.method, wanted)
        return web.Response(status=status, body=body, headers=headers)

    return metrics


class _Answer(NamedTuple):
    """The answer to a request. The answer to HEAD has the length of this body, but the body is not sent."""

    status: HTTPStatus
    headers: dict[str, str]
    body: bytes


def _answer(registry: CollectorRegistry, method: str, wanted: Wanted) -> _Answer:
    """Return the metrics for GET and HEAD, the answer to OPTIONS, or 405 for other methods."""
    if method in {"GET", "HEAD"}:
        return _Answer(HTTPStatus.OK, wanted.headers, exposition.write(registry.collect(), wanted))
    if method == "OPTIONS":
        return _Answer(HTTPStatus.OK, _ALLOW, b"")
    return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, _ALLOW, b"405: use GET, HEAD or OPTIONS\n")


def _metrics(registry: CollectorRegistry, environ: dict[str, Any]) -> _Answer:
    accept, accept_encoding = (environ.get(f"HTTP_{name}", "") for name in ("ACCEPT", "ACCEPT_ENCODING"))
    wanted = Wanted.of(accept, accept_encoding, _names(environ.get("QUERY_STRING", "")))
    return _answer(registry, environ["REQUEST_METHOD"], wanted)


def _names(query: str) -> list[str]:
    return parse_qs(query).get("name[]", [])


def _application(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    """Return the WSGI application of ``serve()``: the metrics and a landing page."""

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        return _send(environ, start_response, answer(environ))

    def answer(environ: dict[str, Any]) -> _Answer:
        path = environ.get("PATH_INFO") or "/"
        if path == "/metrics" or environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _metrics(registry, environ)
        if path == "/":
            return _Answer(HTTPStatus.OK, {"Content-Type": "text/html; charset=utf-8"}, _LANDING_PAGE)
        return _Answer(HTTPStatus.NOT_FOUND, _PLAIN, b"not found: the metrics are at /metrics\n")

    return application


def _send(environ: dict[str, Any], start_response: Callable[..., Any], answer: _Answer) -> Iterable[bytes]:
    status, headers, body = answer
    length = ("Content-Length", str(len(body)))
    start_response(f"{status.value} {status.phrase}", [*headers.items(), length])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _close_in_children(server: _HTTPServer) -> None:
    # A forked child inherits the socket but not the thread: it would keep the port taken and answer no request.
    if hasattr(os, "register_at_fork"):
        reference = weakref.ref(server)

        def close() -> None:
            inherited = reference()
            if inherited is not None:
                inherited.socket.close()

        os.register_at_fork(after_in_child=close)
