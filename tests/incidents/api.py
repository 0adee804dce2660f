# SPDX-License-Identifier: Apache-2.0
"""An asynchronous application on FastAPI: what its routes do with a session, and how each goes wrong."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator  # noqa: TC003 - FastAPI reads the annotations
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import PlainTextResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

SLEEP = text("SELECT pg_sleep(:seconds)")
app = FastAPI()
# As a reporter of errors keeps them, with their tracebacks and so with all that their frames refer to.
reported: list[Exception] = []


async def session_of(request: Request) -> AsyncIterator[AsyncSession]:
    """Yield a session, and close it afterwards."""
    async with AsyncSession(request.app.state.engine) as session:
        yield session


async def careless_session_of(request: Request) -> AsyncIterator[AsyncSession]:
    """Yield a session, and close it afterwards unless the route raises: the mistake."""
    session = AsyncSession(request.app.state.engine)
    yield session
    await session.close()


Session = Annotated[AsyncSession, Depends(session_of)]
CarelessSession = Annotated[AsyncSession, Depends(careless_session_of)]


@app.get("/orders")
async def list_orders(session: Session, seconds: float) -> str:
    """Do a query."""
    await session.execute(SLEEP, {"seconds": seconds})
    return "ok"


@app.get("/order")
async def show_order(session: CarelessSession, seconds: float) -> str:
    """Do a query, and find no such order."""
    await session.execute(SLEEP, {"seconds": seconds})
    raise LookupError


@app.get("/charge")
async def charge(session: Session, seconds: float) -> str:
    """Read a row, and call another service before the session is closed: the mistake."""
    await session.execute(SLEEP, {"seconds": 0})
    async with asyncio.timeout(seconds):
        return await call_payments()


async def call_payments() -> str:
    """Ask a service that takes its time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(os.environ["PAYMENTS_PORT"]))
    writer.write(b"GET / HTTP/1.1\r\nHost: payments\r\n\r\n")
    return (await reader.readline()).decode()


@app.get("/thumbnail")
async def draw_thumbnail(session: Session, seconds: float) -> str:
    """Compute something without awaiting it, so that the event loop stands still: the mistake."""
    await session.execute(SLEEP, {"seconds": 0})
    time.sleep(seconds)  # noqa: ASYNC251 - the fault
    return "ok"


@app.exception_handler(LookupError)
async def not_found(_request: Request, error: Exception) -> Any:
    """Report the error and answer."""
    reported.append(error)
    return PlainTextResponse("no such order", 404)


async def get(engine: AsyncEngine, path: str, seconds: float) -> None:
    """Call a route as a server does: in a task of its own."""
    app.state.engine = engine
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "scheme": "http",
        "query_string": f"seconds={seconds}".encode(),
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_message: Any) -> None:
        pass

    serve: Any = app
    await asyncio.create_task(serve(scope, receive, send))


# What the callers do.


async def orders(engine: AsyncEngine, seconds: float) -> None:
    await get(engine, "/orders", seconds)


async def lost_order(engine: AsyncEngine, seconds: float) -> None:
    await get(engine, "/order", seconds)


async def charges(engine: AsyncEngine, seconds: float) -> None:
    await get(engine, "/charge", seconds)


async def thumbnail(engine: AsyncEngine, seconds: float) -> None:
    await get(engine, "/thumbnail", seconds)
