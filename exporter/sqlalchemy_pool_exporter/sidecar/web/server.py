# SPDX-License-Identifier: Apache-2.0
"""The sidecar's HTTP server: listens, accepts connections up to a limit, and shuts down.

aiohttp's own sites accept connections without limit, and learn of a TLS connection only after its handshake. So this
module accepts the connections and passes them to aiohttp's runner.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from typing import TYPE_CHECKING, Any, cast

from aiohttp import hdrs, web

from sqlalchemy_pool_exporter.address import Address
from sqlalchemy_pool_exporter.errors import EndpointError

from .connection import SERVER_HEADER, Connection
from .connection_limit import ConnectionLimit

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp.http_parser import RawRequestMessage
    from aiohttp.typedefs import Handler

    from sqlalchemy_pool_exporter.sidecar.config import Web

    from .config import WebConfig

    _RequestFactory = Callable[..., web.BaseRequest]

_logger = logging.getLogger(__name__)

_BACKLOG = 1024
# Clients cannot take these: they are for segments, databases and the files of the web configuration.
_OWN_DESCRIPTORS = 32
_SEND_BUFFER_BYTES = 256 * 1024  # the kernel would let it grow to 4 MiB for each client that does not read
_OUT_OF_DESCRIPTORS_PAUSE_SECONDS = 0.1
_WARNING_INTERVAL_SECONDS = 60.0


class Listener:
    """A listening socket and the connections accepted from it; ``close()`` ends them."""

    def __init__(
        self, runner: web.AppRunner, listening: socket.socket, settings: Web, web_config: WebConfig | None
    ) -> None:
        self.settings = settings
        self._runner, self._listening, self._web_config = runner, listening, web_config
        self._host, self._port = listening.getsockname()[:2]
        self._limit: ConnectionLimit[Connection] = ConnectionLimit(most_connections(settings))
        self._opening: set[asyncio.Task[None]] = set()  # asyncio keeps no reference to a task
        self._warned_at = float("-inf")
        self._accepting = asyncio.create_task(self._accept())

    @property
    def host(self) -> str:
        """The address it listens on."""
        return str(self._host)

    @property
    def port(self) -> int:
        """The port it listens on; the kernel's choice if the settings say 0."""
        return int(self._port)

    @property
    def url(self) -> str:
        """The URL at which it answers on this machine."""
        return f"{'https' if self._is_tls else 'http'}://{Address(self.host, self.port).local}"

    @property
    def connections(self) -> int:
        """The number of open connections, including those in their TLS handshake."""
        return len(self._limit)

    @property
    def requests(self) -> int:
        """The number of connections whose request is being handled."""
        return self._limit.busy

    @property
    def _is_tls(self) -> bool:
        return self._web_config is not None and self._web_config.policy.tls is not None

    def __repr__(self) -> str:
        state = f"connections={self.connections} requests={self.requests}"
        if self._accepting.done():
            state = "closed"
        return f"<{type(self).__name__} {self.url} {state}>"

    async def close(self) -> None:
        """Stop listening, let requests finish for ``shutdown_timeout_seconds``, then abort what is left."""
        deadline = asyncio.get_running_loop().time() + self.settings.shutdown_timeout_seconds
        self._accepting.cancel()
        # Wait until the event loop has removed the descriptor: the kernel reuses the number of a closed one at once.
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listening.close()
        for connection in self._limit.connections():
            connection.abort_handshake()
        await self._runner.cleanup()
        try:
            async with asyncio.timeout_at(deadline):
                await self._limit.emptied()  # responses may not be written yet
        except TimeoutError:
            for connection in self._limit.connections():
                connection.abort()
            await self._limit.emptied()
        await asyncio.gather(*self._opening)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listening)
            except OSError as error:
                await self._recover(error)
                continue
            connection = self._connection(sock)
            try:
                await self._limit.add(connection)
            except asyncio.CancelledError:
                sock.close()
                raise
            opening = loop.create_task(self._open(connection))
            self._opening.add(opening)
            opening.add_done_callback(self._opening.discard)
            # ``sock_accept`` does not yield while the kernel has connections queued; yield, so that requests are read.
            await asyncio.sleep(0)

    def _connection(self, sock: socket.socket) -> Connection:
        return Connection(cast("web.Server", self._runner.server), sock, self._limit, self.settings)

    async def _open(self, connection: Connection) -> None:
        tls: dict[str, Any] = {}
        try:
            await connection.first_byte(tls=self._is_tls)
            if self._web_config is not None and (in_force := self._web_config.current().tls) is not None:
                connection.tls = in_force
                tls = {
                    "ssl": in_force.context,
                    "ssl_handshake_timeout": self.settings.header_timeout_seconds,
                    "ssl_shutdown_timeout": self.settings.write_timeout_seconds,
                }
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, connection.socket, **tls
            )
        except OSError as error:  # TLS errors and timeouts among them
            connection.close_unopened()
            _logger.debug("a connection ended before its first request: %s", error)
            # The traceback keeps asyncio's TLS buffers, 256 KiB for each connection, alive in a reference cycle.
            error.__traceback__ = None

    async def _recover(self, error: OSError) -> None:
        """Free a descriptor, because accepting usually fails when the process has none left."""
        now = asyncio.get_running_loop().time()
        if now - self._warned_at >= _WARNING_INTERVAL_SECONDS:
            self._warned_at = now
            _logger.warning("cannot accept a connection: %s", error.strerror)
        self._limit.abort_one()
        await asyncio.sleep(_OUT_OF_DESCRIPTORS_PAUSE_SECONDS)


def most_connections(settings: Web) -> int:
    """Return how many connections may be open: fewer than the settings allow if the process may open few files."""
    wanted = settings.max_connections_in_flight
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or wanted <= files - _OWN_DESCRIPTORS:
        return wanted
    most = max(files - _OWN_DESCRIPTORS, 1)
    _logger.warning("at most %d connections, because this process may open only %d files", most, files)
    return min(wanted, most)


def without_expectations(make: _RequestFactory) -> _RequestFactory:
    """Return a request factory that drops ``Expect`` headers.

    aiohttp answers them before it calls any middleware: 100 or 417, to clients without a password, too. No handler
    reads a body, so the response is what a client that expects 100 needs, and HTTP lets a server ignore the others.
    """

    def make_request(message: RawRequestMessage, *arguments: Any) -> web.BaseRequest:
        if hdrs.EXPECT in message.headers:
            headers = message.headers.copy()
            headers.popall(hdrs.EXPECT)
            message = message._replace(headers=type(message.headers)(headers))
        return make(message, *arguments)

    return make_request


@web.middleware
async def request_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the connection when a request begins and ends; respond to unexpected errors without their text."""
    # aiohttp responds to all requests that a client pipelined without a pause. Other clients would wait, and the loop
    # would not learn that this one has gone: over TLS, asyncio would log a warning for each response.
    await asyncio.sleep(0)
    connection = cast("Connection", request.protocol)
    connection.begin_request()
    try:
        return await handler(request)
    except (web.HTTPException, asyncio.CancelledError):
        raise
    except Exception:
        _logger.exception("%s %s failed", request.method, request.rel_url.raw_path)
        raise web.HTTPInternalServerError from None
    finally:
        connection.end_request()


async def prepare_response(request: web.Request, response: web.StreamResponse) -> None:
    """Name the program, without versions, in the ``Server`` header, and tell the connection the size."""
    response.headers["Server"] = SERVER_HEADER
    cast("Connection", request.protocol).response_bytes = response.content_length or 0


async def listen(app: web.Application, settings: Web, web_config: WebConfig | None) -> Listener:
    """Serve ``app`` on ``settings.listen_address``; raises EndpointError if the address cannot be bound."""
    listening = bind(settings.listen_address)
    try:
        app.middlewares.insert(0, request_middleware)
        app.on_response_prepare.append(prepare_response)
        # Half the time, because aiohttp waits twice: for handlers to return, and again before it cancels them.
        runner = web.AppRunner(app, shutdown_timeout=settings.shutdown_timeout_seconds / 2)
        await runner.setup()
        server = cast("web.Server", runner.server)
        server.request_factory = without_expectations(server.request_factory)
    except BaseException:
        listening.close()
        raise
    return Listener(runner, listening, settings, web_config)


def bind(address: Address) -> socket.socket:
    """Return a socket that listens on ``address``; an empty host is every interface, IPv6 and IPv4."""
    try:
        listening = _every_interface(address.port) if not address.host else None
        if listening is None:
            found = socket.getaddrinfo(
                address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            # A name with addresses of both families is bound to IPv4, as Go does.
            family, _, _, _, name = min(found, key=lambda info: info[0] != socket.AF_INET)
            listening = socket.create_server(name, family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EndpointError(f"cannot listen on {str(address)!r}: {reason}") from error
    listening.setblocking(False)  # noqa: FBT003 - as the standard library has it
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)  # connections inherit it
    return listening


def _every_interface(port: int) -> socket.socket | None:
    """Return one socket for IPv6 and IPv4, or None where the machine has no IPv6."""
    if not socket.has_dualstack_ipv6():
        return None
    try:
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # IPv6 is switched off
            return None
        raise
