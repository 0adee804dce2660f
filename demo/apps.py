# SPDX-License-Identifier: Apache-2.0
"""Serve the two applications on loopback ports."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from aiohttp import web

from . import billing, orders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL

HOST = "127.0.0.1"


@asynccontextmanager
async def serving_orders(database_url: URL) -> AsyncIterator[str]:
    """Serve the asynchronous application for the duration of the block and yield its URL."""
    # A slow query in flight must not hold up the end of the demo.
    runner = web.AppRunner(orders.create_app(database_url), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, HOST, 0)
        await site.start()
        yield f"http://{HOST}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a slow query in flight must not hold up the end of the demo
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer.server_bind() looks up the host's name, which takes long where name resolution is broken.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]
        self.setup_environ()

    def handle_error(self, *_: object) -> None:
        """Print no traceback for a client that disconnected."""


class _RequestHandler(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Log no requests: the terminal shows the table."""


@asynccontextmanager
async def serving_billing(database_url: URL) -> AsyncIterator[str]:
    """Serve the synchronous application for the duration of the block and yield its URL."""
    with _Server((HOST, 0), _RequestHandler) as server:
        server.set_app(billing.create_app(database_url))
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="billing", daemon=True
        )
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}"
        finally:
            await asyncio.to_thread(server.shutdown)
