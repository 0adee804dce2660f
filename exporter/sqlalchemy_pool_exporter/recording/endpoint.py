# SPDX-License-Identifier: Apache-2.0
"""The in-application endpoint: a server of its own, or a mount for the application's.

All of them serve a registry, in the text format or as OpenMetrics, whichever the scraper asks for; the formats and
their negotiation are prometheus_client's.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import threading
import weakref
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, make_asgi_app, make_wsgi_app
from prometheus_client.exposition import choose_encoder

from sqlalchemy_pool_exporter.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.web import Request, Response
    from prometheus_client import CollectorRegistry

_LANDING_PAGE = b"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>SQLAlchemy Pool Exporter</title></head>
<body><h1>SQLAlchemy Pool Exporter</h1><p><a href="/metrics">Metrics</a></p></body></html>
"""
_CLIENT_SECONDS = 10.0
_LAST_PORT = 65535


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_SECONDS  # of the socket: a client that says nothing does not hold its thread for ever

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """Log nothing: one line for each scrape is noise in the application's log."""


class _HTTPServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, address: Any, family: socket.AddressFamily) -> None:
        self.address_family = family
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Not HTTPServer's: that asks the resolver for the full name of the host, and can hang on it.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[0], self.server_address[1]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that went away."""


class Server:
    """A running endpoint, in a thread of its own."""

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        # The resolver would take it modulo 65536; and people pass what the environment says, which is a text.
        if not isinstance(port, int) or not 0 <= port <= _LAST_PORT:
            message = f"cannot listen on {host!r}, port {port!r}: a port is a number from 0 to {_LAST_PORT}"
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
        except RuntimeError as error:  # the interpreter ends, or the system has no thread left
            self._server.server_close()
            message = f"cannot serve on {host!r}, port {port!r}: {error}"
            raise EndpointError(message) from error
        _close_in_children(self._server)

    @property
    def host(self) -> str:
        """The address it listens on."""
        return str(self._server.server_address[0])

    @property
    def port(self) -> int:
        """The port it listens on: the one chosen, where 0 was asked for."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where the metrics are, as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop listening and wait for the thread to end. Does nothing the second time."""
        # In a finalizer that runs as the interpreter ends the thread stands still for ever.
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
    port: int = 10079,
    host: str = "0.0.0.0",  # noqa: S104 - an exporter is scraped from elsewhere
    *,
    registry: CollectorRegistry = REGISTRY,
) -> Server:
    """Start an endpoint for an application that has none: ``/metrics``, in a daemon thread of its own.

    Args:
        port: 0 chooses a free one; see ``Server.port``.
        host: name or address to listen on; by default every IPv4 address of the machine.
        registry: what to serve.

    Raises:
        EndpointError: the port is taken or none, or the address is not this machine's.
    """
    return Server(host, port, registry)


def wsgi_app(registry: CollectorRegistry = REGISTRY) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that serves the metrics, to mount where you like."""
    return make_wsgi_app(registry)


def asgi_app(registry: CollectorRegistry = REGISTRY) -> Callable[..., Any]:
    """Return an ASGI application that serves the metrics, to mount where you like."""
    return make_asgi_app(registry)


def aiohttp_handler(registry: CollectorRegistry = REGISTRY) -> Callable[[Request], Awaitable[Response]]:
    """Return a handler that serves the metrics, for a route of an ``aiohttp.web`` application."""
    from aiohttp import web  # noqa: PLC0415 - only aiohttp's users have it

    async def metrics(request: Request) -> Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        names = request.query.getall("name[]", [])
        shown = registry.restricted_registry(names) if names else registry
        # In a thread: other collectors of the registry may take their time.
        body = await asyncio.to_thread(encoder, shown)
        response = web.Response(body=body, headers={"Content-Type": content_type})
        response.enable_compression()
        return response

    return metrics


def _application(registry: CollectorRegistry) -> Callable[..., Iterable[bytes]]:
    metrics = make_wsgi_app(registry)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "HEAD":
            return answer(environ, start_response)
        environ["REQUEST_METHOD"] = "GET"
        started: list[Any] = []
        body = b"".join(answer(environ, lambda *arguments: started.extend(arguments)))
        status, headers = started[:2]
        # wsgiref would say 0, which is not what GET sends.
        start_response(status, [*headers, ("Content-Length", str(len(body)))])
        return []

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO") or "/"
        if path == "/metrics":
            return metrics(environ, start_response)  # type: ignore[no-any-return]
        if environ["REQUEST_METHOD"] not in {"GET", "OPTIONS"}:
            start_response("405 Method Not Allowed", [("Allow", "OPTIONS,GET,HEAD")])
            return []
        if path == "/":
            start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
            return [_LANDING_PAGE]
        start_response("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"not found: the metrics are at /metrics\n"]

    return application


def _close_in_children(server: _HTTPServer) -> None:
    # A forked child has the socket but not the thread: it would keep the port taken and answer nobody.
    if hasattr(os, "register_at_fork"):
        reference = weakref.ref(server)

        def close() -> None:
            inherited = reference()
            if inherited is not None:
                inherited.socket.close()

        os.register_at_fork(after_in_child=close)
