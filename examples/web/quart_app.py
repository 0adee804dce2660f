# SPDX-License-Identifier: Apache-2.0
"""Quart, for ``hypercorn examples.web.quart_app:app``.

``DATABASE_URL`` is postgresql+asyncpg://…
"""

import os

from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter import asgi_app, instrument

engine = create_async_engine(
    os.environ["DATABASE_URL"],
    pool_size=5,
    max_overflow=10,
    connect_args={"server_settings": {"application_name": "orders"}},
)
instrument(engine, name="orders")

app = Quart(__name__)
app.after_serving(engine.dispose)


@app.get("/")
async def orders() -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("SELECT generate_series(1, 3)")))


pages, pools = app.asgi_app, asgi_app()


async def with_metrics(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    is_scrape = scope["type"] == "http" and scope["path"] == "/metrics"
    await (pools if is_scrape else pages)(scope, receive, send)


app.asgi_app = with_metrics  # type: ignore[method-assign]
