# SPDX-License-Identifier: Apache-2.0
"""Starlette, for ``uvicorn examples.web.starlette_app:app``.

``DATABASE_URL`` is postgresql+asyncpg://…
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sqlalchemy_pool_exporter import asgi_app, instrument

engine = create_async_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={"server_settings": {"application_name": "orders"}},
)
instrument(engine, name="orders")  # connects to nothing, so it may run at import


@asynccontextmanager
async def lifespan(_app: Starlette) -> AsyncIterator[None]:
    yield
    await engine.dispose()


async def orders(_request: Request) -> JSONResponse:
    async with engine.connect() as connection:
        return JSONResponse(list(await connection.scalars(text("SELECT generate_series(1, 3)"))))


# Route and not Mount("/metrics", …), which answers /metrics with 307, to /metrics/.
app = Starlette(lifespan=lifespan, routes=[Route("/", orders), Route("/metrics", asgi_app())])
