# SPDX-License-Identifier: Apache-2.0
"""One client's connection: aiohttp's protocol, with deadlines and a limit of bytes for each request.

aiohttp parses requests and writes responses. It has no deadline for the head of a request or for a client that does not
read, and no limit for the bytes that a client sends after a request's head.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.payload import Payload

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter

    from sqlalchemy_pool_exporter.sidecar.config import Web

    from .connection_limit import ConnectionLimit
    from .tls import ServerTLS

_logger = logging.getLogger(__name__)

SERVER_HEADER = "sqlalchemy-pool-exporter"  # aiohttp's own header names its version and Python's
_TLS_HANDSHAKE_RECORD = b"\x16"
_HEAD_END = b"\r\n\r\n"
_PIECE_BYTES = 64 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Body(Payload):
    """A response's body, written in pieces, each after the client has read most of what is before it.

    asyncio's TLS hands all it is given to the socket's transport, and does not count what waits there. So a client that
    reads nothing of a body written at once would hold all of it, and would not be noticed.
    """

    _value: bytes

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._value)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all pieces."""
        for start in range(0, len(self._value), _PIECE_BYTES):
            await writer.write(self._value[start : start + _PIECE_BYTES])
            await writer.drain()


class Connection(web.RequestHandler):
    """aiohttp's protocol for one client, with deadlines and a limit of bytes for each request.

    Mutable state: ``_received`` (bytes since a request began with no other behind it), ``_tail`` (the last of these
    bytes), ``response_bytes`` (the size of the last response), ``_busy`` (a request is being handled),
    ``_client_finished`` (the client has closed its half), ``_aborted``, the transport, and the timers of both
    deadlines.
    """

    def __init__(
        self,
        server: web.Server,
        sock: socket.socket,
        limit: ConnectionLimit[Connection],
        settings: Web,
    ) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            logger=_logger,
            keepalive_timeout=settings.keepalive_timeout_seconds,
            max_line_size=settings.max_request_bytes,
            max_field_size=settings.max_request_bytes,
            lingering_time=1.0,  # no handler reads a body; wait this long for the rest of it before the close
            auto_decompress=False,
        )
        self.socket = sock
        self.tls: ServerTLS | None = None  # known once the client has sent its first byte
        self._limit, self._settings = limit, settings
        # aiohttp forgets ``transport`` before it is closed.
        self._open_transport: asyncio.Transport | None = None
        self._received, self._tail = 0, b""
        self.response_bytes = 0
        self._busy = self._client_finished = self._aborted = False
        self._head_deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log an error of aiohttp's own; what clients can cause by malformed requests at debug level only."""
        if isinstance(sys.exception(), HttpProcessingError):
            _logger.debug(*args, **kwargs)
        else:
            super().log_exception(*args, **kwargs)

    async def first_byte(self, *, tls: bool) -> None:
        """Wait for the client's first byte, so that a silent client costs a socket, but no transport or TLS buffers.

        Raises ConnectionError if the client has closed, or if ``tls`` is expected and the byte begins no TLS handshake.
        """
        self._start_head_deadline()
        readable = asyncio.Event()
        self._loop.add_reader(self.socket, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(self.socket)
        byte = self.socket.recv(1, socket.MSG_PEEK)
        if not byte or (tls and byte != _TLS_HANDSHAKE_RECORD):
            raise ConnectionAbortedError("no request" if not byte else "no TLS handshake")

    def close_unopened(self) -> None:
        """Release the socket of a connection that has no transport."""
        if self._head_deadline is not None:
            self._head_deadline.cancel()
        self.socket.close()
        self._limit.remove(self)

    def abort(self) -> None:
        """Close the connection at once, without waiting for the client."""
        if self._open_transport is not None:
            self._open_transport.abort()
        else:
            self.abort_handshake()

    def abort_handshake(self) -> None:
        """Close the connection if its first byte or its TLS handshake is still awaited."""
        if self._open_transport is None and not self._aborted:
            # asyncio hands out the transport only after the handshake, so this shuts the socket down. Cancelling the
            # handshake's task would leave asyncio's TLS buffers (256 KiB) in a reference cycle until a full garbage
            # collection.
            self._aborted = True
            with suppress(OSError):  # the client has closed it already
                self.socket.shutdown(socket.SHUT_RDWR)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the deadline for the first request; abort if the client's certificate is not allowed."""
        self._open_transport = transport = cast("asyncio.Transport", transport)
        refused = self.tls is not None and not self.tls.admits(transport.get_extra_info("peercert"))
        if refused or self._aborted:
            transport.abort()
            return
        # asyncio calls ``pause_writing`` when more than ``high`` bytes are unsent: with 1, as soon as the client reads
        # too slowly. With 0, asyncio's TLS would pause for an empty buffer.
        transport.set_write_buffer_limits(high=1)
        self._start_head_deadline()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Count the bytes, then parse them."""
        self._received += len(data)
        self._tail = (self._tail + data)[-len(_HEAD_END) :]
        if self._received > self._settings.max_request_bytes:
            self._refuse()
            return
        if not self._busy and self._head_deadline is None:
            self._start_head_deadline()
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's returns None, which closes
        """Return whether to keep the connection open for responses to a client that closed its half, as ``nc`` does."""
        self._client_finished = True
        if self.tls is not None:
            return False  # TLS connections have no half-closed state
        return self._busy or bool(self._messages) or self._waiter is None

    def begin_request(self) -> None:
        """Record that the head of a request is complete and its handler begins."""
        self._busy = True
        if not self._messages:  # else a client that pipelines could queue more requests than are answered
            self._received = 0
        self._limit.set_busy(self)
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def end_request(self) -> None:
        """Record that the handler has returned; the response is not written yet."""
        self._busy = False
        self._limit.set_idle(self)
        if self._client_finished and not self._messages:
            self.close()
        if self._tail != _HEAD_END:  # more bytes have followed the head: a body, or the next request
            self._start_head_deadline()

    def pause_writing(self) -> None:
        """Start the deadline for a client that does not read."""
        super().pause_writing()
        self._write_deadline = self._loop.call_later(self._settings.write_timeout_seconds, self.abort)
        self._limit.set_stalled(self, self.response_bytes)

    def resume_writing(self) -> None:
        """Stop the deadline: the client has read everything."""
        super().resume_writing()
        self._limit.set_reading(self)
        if self._write_deadline is not None:
            self._write_deadline.cancel()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the deadlines and leave the connection limit."""
        for deadline in (self._head_deadline, self._write_deadline):
            if deadline is not None:
                deadline.cancel()
        self._limit.remove(self)
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the response to a malformed request; it quotes no part of the request."""
        _logger.debug("bad request: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            message = "the response has already begun"
            raise ConnectionError(message)
        response = web.Response(status=status, text=f"{status}: {HTTPStatus(status).phrase}\n")
        response.headers["Server"] = SERVER_HEADER
        response.force_close()
        return response

    def _start_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
        self._head_deadline = self._loop.call_later(self._settings.header_timeout_seconds, self.abort)

    def _refuse(self) -> None:
        transport = self._open_transport
        if transport is None or transport.is_closing():
            return
        if self._busy:
            transport.abort()
        else:
            transport.write(_TOO_LARGE)
            self.force_close()
