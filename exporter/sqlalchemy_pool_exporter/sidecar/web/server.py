# SPDX-License-Identifier: Apache-2.0
"""The door of the endpoint: listens, accepts, greets with TLS, and closes in an orderly way.

aiohttp's own runner accepts without end, and shows a connection only after its handshake. So connections are accepted
here, each on a seat of which there are only so many, before anything is read of them.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING, cast

from aiohttp import web

from sqlalchemy_pool_exporter.errors import EndpointError
from sqlalchemy_pool_exporter.sidecar.config import Address

from .connection import Connection, doorway, unversioned
from .seats import Seat, Seats

if TYPE_CHECKING:
    from sqlalchemy_pool_exporter.sidecar.config import Web

    from .config import WebConfig

logger = logging.getLogger(__name__)

_BACKLOG = 1024  # who waits for a seat waits there, in order
_BREATH_SECONDS = 0.5


class Endpoint:
    """A running endpoint; ``close()`` ends it."""

    def __init__(
        self, runner: web.AppRunner, listening: socket.socket, settings: Web, web_config: WebConfig | None
    ) -> None:
        self.settings = settings
        self._runner, self._listening, self._web_config = runner, listening, web_config
        self._host, self._port = listening.getsockname()[:2]
        self._seats = Seats(settings.max_connections_in_flight)
        self._handshakes: set[asyncio.Task[None]] = set()
        self._accepting = asyncio.create_task(self._accept())

    @property
    def host(self) -> str:
        """The address it listens on."""
        return str(self._host)

    @property
    def port(self) -> int:
        """The port it listens on: the one chosen, where 0 was asked for."""
        return int(self._port)

    @property
    def url(self) -> str:
        """Where it answers, as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        secure = self._web_config is not None and self._web_config.policy.tls is not None
        return f"{'https' if secure else 'http'}://{Address(host, self.port)}"

    @property
    def connections(self) -> int:
        """How many connections are open, those in their handshake included."""
        return len(self._seats)

    @property
    def requests(self) -> int:
        """How many of the connections have a request in hand."""
        return self._seats.working

    def __repr__(self) -> str:
        state = f"connections={self.connections} requests={self.requests}"
        if self._accepting.done():
            state = "closed"
        return f"<{type(self).__name__} {self.url} {state}>"

    async def close(self) -> None:
        """Stop listening, let requests under way finish for ``shutdown_timeout_seconds``, cut off the rest."""
        patience = asyncio.get_running_loop().time() + self.settings.shutdown_timeout_seconds
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        # Before the socket is closed: the loop has to have let go of its descriptor, which is used again at once.
        await asyncio.gather(self._accepting, *self._handshakes, return_exceptions=True)
        self._listening.close()
        await self._runner.cleanup()
        try:
            async with asyncio.timeout_at(patience):
                await self._seats.emptied()  # of answers that are still on their way out
        except TimeoutError:
            self._seats.cut_all()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listening)
            except OSError as exc:  # out of descriptors, as a rule: make one free, and do not spin
                logger.warning("cannot accept a connection: %s", exc.strerror)
                self._seats.cut_one()
                await asyncio.sleep(_BREATH_SECONDS)
                continue
            try:
                seat = await self._seats.take()
            except BaseException:
                sock.close()
                raise
            handshake = loop.create_task(self._open(sock, seat))
            seat.cut = handshake.cancel
            self._handshakes.add(handshake)
            handshake.add_done_callback(partial(self._opened, sock=sock, seat=seat))

    async def _open(self, sock: socket.socket, seat: Seat) -> None:
        loop = asyncio.get_running_loop()
        server = cast("web.Server", self._runner.server)
        tls = None if self._web_config is None else self._web_config.current().tls

        def connection() -> Connection:
            return Connection(server, seat, self.settings, tls, loop)

        if tls is None:
            await loop.connect_accepted_socket(connection, sock)
            return
        await loop.connect_accepted_socket(
            connection,
            sock,
            ssl=tls.context,
            ssl_handshake_timeout=self.settings.header_timeout_seconds,
            ssl_shutdown_timeout=self.settings.write_timeout_seconds,
        )

    def _opened(self, task: asyncio.Task[None], sock: socket.socket, seat: Seat) -> None:
        self._handshakes.discard(task)
        if task.cancelled() or task.exception() is not None:
            sock.close()  # a task cancelled before its first step has given it to no transport
            seat.leave()
            reason = "cut" if task.cancelled() else task.exception()
            logger.debug("a connection ended in its handshake: %s", reason)


async def listen(app: web.Application, settings: Web, web_config: WebConfig | None) -> Endpoint:
    """Serve ``app`` on ``settings.listen_address``; EndpointError at once if that cannot be had."""
    listening = bind(settings.listen_address)
    try:
        app.middlewares.insert(0, doorway)
        app.on_response_prepare.append(unversioned)
        # Half, as aiohttp waits twice: for the handlers to end, and once more before it cancels them.
        runner = web.AppRunner(app, shutdown_timeout=settings.shutdown_timeout_seconds / 2)
        await runner.setup()
    except BaseException:
        listening.close()
        raise
    return Endpoint(runner, listening, settings, web_config)


def bind(address: Address) -> socket.socket:
    """Return a socket that listens on ``address``; an empty host is every interface, IPv6 and IPv4."""
    try:
        if not address.host and socket.has_dualstack_ipv6():
            try:
                listening = socket.create_server(
                    ("", address.port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True
                )
            except OSError as exc:  # a kernel that knows IPv6 and was told not to use it
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
            else:
                listening.setblocking(False)  # noqa: FBT003 - as the standard library has it
                return listening
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, _, _, _, name = min(
            found, key=lambda info: info[0] != socket.AF_INET
        )  # a name: IPv4, as Go does
        listening = socket.create_server(name, family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise EndpointError(f"cannot listen on {str(address)!r}: {reason}") from exc
    listening.setblocking(False)  # noqa: FBT003 - as the standard library has it
    return listening
