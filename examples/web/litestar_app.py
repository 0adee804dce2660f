# SPDX-License-Identifier: Apache-2.0
"""Litestar, for ``uvicorn examples.web.litestar_app:app``.

``DATABASE_URL`` is postgresql+asyncpg://…
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, asgi, get
from litestar.types import Receive, Scope, Send
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter import asgi_app, instrument

engine = create_async_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={"server_settings": {"application_name": "orders"}},
)
instrument(engine, name="orders")  # connects to nothing, so it may run at import
pools = asgi_app()


@asynccontextmanager
async def lifespan(_app: Litestar) -> AsyncIterator[None]:
    yield
    await engine.dispose()


@get("/")
async def orders() -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT generate_series(1, 3)")))


@asgi("/metrics")
async def metrics(scope: Scope, receive: Receive, send: Send) -> None:
    await pools(scope, receive, send)


app = Litestar([orders, metrics], lifespan=[lifespan])
