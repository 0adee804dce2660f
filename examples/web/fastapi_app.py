# SPDX-License-Identifier: Apache-2.0
"""FastAPI, for ``uvicorn examples.web.fastapi_app:app``.

``DATABASE_URL`` is postgresql+asyncpg://…
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqlalchemy_pool_exporter import asgi_app, instrument


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(
        os.environ["DATABASE_URL"],
        pool_size=5,
        max_overflow=10,
        # asyncpg's way to set it: the server then shows these connections as "orders".
        connect_args={"server_settings": {"application_name": "orders"}},
    )
    instrument(engine, name="orders")
    app.state.engine = engine
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
# A route and not app.mount("/metrics", …), which answers /metrics with 307, to /metrics/.
app.add_route("/metrics", asgi_app(), include_in_schema=False)


async def session(request: Request) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(request.app.state.engine) as session:
        yield session


@app.get("/")
async def orders(session: Annotated[AsyncSession, Depends(session)]) -> list[int]:
    return list(await session.scalars(text("SELECT generate_series(1, 3)")))
