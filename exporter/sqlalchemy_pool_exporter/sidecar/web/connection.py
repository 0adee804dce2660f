# SPDX-License-Identifier: Apache-2.0
"""One client: aiohttp's protocol, with the deadlines and the budget of bytes that it has not.

aiohttp parses and answers. It has no deadline for the head of a request, none for a client that stops reading, and no
limit for what is sent beyond what it asks for.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from aiohttp import web

if TYPE_CHECKING:
    from aiohttp.typedefs import Handler

    from sqlalchemy_pool_exporter.sidecar.config import Web

    from .seats import Seat
    from .tls import TLS

logger = logging.getLogger(__name__)

_SERVER = (
    "sqlalchemy-pool-exporter"  # the Server header; aiohttp's tells its version and Python's to everybody
)
_HEAD_END = b"\r\n\r\n"
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(web.RequestHandler):
    """aiohttp's protocol, with deadlines and a budget of bytes.

    Mutable state: ``_received`` (bytes since the last request began), ``_tail`` (the last of them), ``_deadline``
    (for the request's head), ``_stalled`` (for a client that does not read), ``_busy`` (a request is being handled),
    ``_is_last`` (the client has sent all it will).
    """

    def __init__(
        self, server: web.Server, seat: Seat, limits: Web, tls: TLS | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]
            logger=logger,
            keepalive_timeout=limits.keepalive_timeout_seconds,
            max_line_size=limits.max_request_bytes,
            max_field_size=limits.max_request_bytes,
            lingering_time=1.0,  # nothing here reads a body; this lets the rest of one arrive before the close
            auto_decompress=False,
        )
        self._seat, self._tls, self._limits = seat, tls, limits
        self._wire: asyncio.Transport | None = None  # as ``transport``, which aiohttp forgets on closing it
        self._received, self._tail, self._busy, self._is_last = 0, b"", False, False
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock, if the client may come in."""
        transport = cast("asyncio.Transport", transport)
        self._wire = transport
        self._seat.cut = transport.abort
        if self._tls is not None and not self._tls.admits(transport.get_extra_info("peercert")):
            transport.abort()
            return
        # With no slack ``pause_writing`` is called as soon as anything is left unsent: that starts the clock. One byte,
        # since asyncio's TLS takes a limit of 0 as reached by an empty buffer.
        transport.set_write_buffer_limits(high=1)
        self._expect_head()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Count before anything is parsed."""
        self._received += len(data)
        self._tail = (self._tail + data)[-len(_HEAD_END) :]
        if self._received > self._limits.max_request_bytes:
            self._refuse()
            return
        if not self._busy and self._deadline is None:
            self._expect_head()
        super().data_received(data)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio asks for it; aiohttp answers None
        """Let who has said everything (``nc`` does, at the end of its input) have the answers to it, and then go."""
        self._is_last = True
        if self._tls is not None:
            return False  # TLS knows no half, and asyncio says so in the log
        # Of what is not a request yet nothing more will come.
        return self._busy or bool(self._messages) or self._waiter is None

    def begin(self) -> None:
        """Note that a request is complete and about to be handled."""
        self._busy, self._received = True, 0
        self._seat.works()
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def end(self) -> None:
        """Note that the request has been handled; its answer may still be on its way."""
        self._busy = False
        self._seat.waits()
        if self._is_last and not self._messages:
            self.close()  # as soon as the answer is on its way
        if self._tail != _HEAD_END:  # more came than this request: a part of the next one, or a body
            self._expect_head()

    def pause_writing(self) -> None:
        """Give the client time to read."""
        super().pause_writing()
        if self._wire is not None:
            self._stalled = self._loop.call_later(self._limits.write_timeout_seconds, self._wire.abort)

    def resume_writing(self) -> None:
        """Take note that it has."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Stop the clocks and leave the seat."""
        for timer in (self._deadline, self._stalled):
            if timer is not None:
                timer.cancel()
        self._seat.leave()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is not HTTP, without repeating any of it."""
        logger.debug("bad request: %s", type(exc).__name__)
        if request.writer.output_size > 0:
            message = "the answer has already begun"
            raise ConnectionError(message)
        response = web.Response(status=status, text=f"{status}: {HTTPStatus(status).phrase}\n")
        response.headers["Server"] = _SERVER
        response.force_close()
        return response

    def _expect_head(self) -> None:
        if self._wire is not None:
            self._deadline = self._loop.call_later(self._limits.header_timeout_seconds, self._wire.abort)

    def _refuse(self) -> None:
        if self._wire is None or self._wire.is_closing():
            return
        if self._busy:
            self._wire.abort()
        else:
            self._wire.write(_TOO_LARGE)
            self.force_close()


@web.middleware
async def doorway(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the connection when a request begins and ends, and answer what fails without saying how."""
    connection = cast("Connection", request.protocol)
    connection.begin()
    try:
        return await handler(request)
    except (web.HTTPException, asyncio.CancelledError):
        raise
    except Exception:
        logger.exception("%s %s failed", request.method, request.rel_url.raw_path)
        raise web.HTTPInternalServerError from None
    finally:
        connection.end()


async def unversioned(_request: web.Request, response: web.StreamResponse) -> None:
    """Name the program, and no versions."""
    response.headers["Server"] = _SERVER
