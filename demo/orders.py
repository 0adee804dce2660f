# SPDX-License-Identifier: Apache-2.0
"""The orders service: asynchronous, aiohttp and SQLAlchemy's async engine over asyncpg.

Its pool pings a connection before handing it out, so a connection that the server closed costs a reconnect, not a
failed request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from sqlalchemy_pool_exporter import instrument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp.typedefs import Handler
    from sqlalchemy import URL

SELECT = text("SELECT pg_sleep(:seconds)")


def create_app(database_url: URL) -> web.Application:
    """Return the application; its engine uses `database_url`, a ``postgresql+asyncpg`` URL."""
    engine = create_async_engine(
        database_url,
        pool_size=4,
        max_overflow=2,
        pool_timeout=0.5,
        pool_pre_ping=True,
        connect_args={"server_settings": {"application_name": "orders"}},
    )
    # Leaked connections are named also where half of the pool is never in use, which is the level by default.
    instrument(engine, name="orders", sites=True)

    cache: list[AsyncConnection] = []

    async def query(request: web.Request) -> web.Response:
        """Run one query that takes ``?seconds=``."""
        async with engine.connect() as connection:
            await connection.execute(SELECT, {"seconds": float(request.query["seconds"])})
        return web.Response(text="ok\n")

    async def leak(_request: web.Request) -> web.Response:
        """Keep the connection in a cache and never close it: the bug that the metrics must show."""
        connection = await engine.connect()
        cache.append(connection)
        await connection.execute(SELECT, {"seconds": 0})
        await connection.rollback()
        return web.Response(text="ok\n")

    async def evict(_request: web.Request) -> web.Response:
        """Drop the last references to the connections, so that the garbage collector finds them."""
        cache.clear()
        return web.Response(text="ok\n")

    async def engine_lifetime(_app: web.Application) -> AsyncIterator[None]:
        yield
        await engine.dispose()

    app = web.Application(middlewares=[database_errors])
    app.cleanup_ctx.append(engine_lifetime)
    app.router.add_get("/query", query)
    app.router.add_post("/leak", leak)
    app.router.add_post("/evict", evict)
    return app


@web.middleware
async def database_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer 503 if the checkout timed out, and 500 if the database failed."""
    try:
        return await handler(request)
    except PoolTimeoutError:
        return web.Response(status=503, text="busy\n")
    except SQLAlchemyError:
        return web.Response(status=500, text="database error\n")
