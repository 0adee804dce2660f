# SPDX-License-Identifier: Apache-2.0
"""An ASGI application, for ``uvicorn examples.servers.asgi:app``; its response is the process id."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter import instrument

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=2, max_overflow=1)
instrument(engine, name="orders")


async def app(scope: dict[str, Any], _receive: object, send: Callable[..., Awaitable[None]]) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])  # refuse lifespan: servers start without it
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
