# SPDX-License-Identifier: Apache-2.0
"""Each driver's way to set application_name, as docs/recipes/databases.md lists them: the server shows the name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support.recipes import database_url
from tests.support.running_probe import running, target

if TYPE_CHECKING:
    from tests.support.pg import Server as DatabaseServer

pytestmark = pytest.mark.newest


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
@pytest.mark.parametrize("place", ["connect_args", "url"])
def test_synchronous(driver: str, place: str, server: DatabaseServer, application_name: str) -> None:
    """An argument of the connect, or of the URL."""
    pytest.importorskip(driver)
    url = database_url(server, driver)
    options: dict[str, Any] = {}
    if place == "url":
        url += f"?application_name={application_name}"
    else:
        options["connect_args"] = {"application_name": application_name}
    engine = create_engine(url, **options)
    with engine.connect():
        assert 1 == server.count(application_name)
    engine.dispose()


def test_asyncpg(server: DatabaseServer, application_name: str) -> None:
    """A setting of the server; asyncpg does not know it as an argument, and so not in the URL."""

    async def connect(query: str = "", **options: Any) -> int:
        engine = create_async_engine(database_url(server, "asyncpg") + query, **options)
        try:
            async with engine.connect():
                return server.count(application_name)
        finally:
            await engine.dispose()

    settings = {"application_name": application_name}
    assert 1 == asyncio.run(connect(connect_args={"server_settings": settings}))
    with pytest.raises(TypeError, match="application_name"):
        asyncio.run(connect(f"?application_name={application_name}"))


def test_probe(server: DatabaseServer, application_name: str) -> None:
    """The sidecar's probe counts all sessions of a pool by that name, those that are idle in the pool, too."""

    async def counted() -> float:
        async with running(target(server.dsn("prober"))) as runner:
            return dict(runner.server.application_connections or {}).get(application_name, 0)

    engine = create_engine(
        database_url(server, "psycopg"), connect_args={"application_name": application_name}
    )
    with engine.connect(), engine.connect():
        engine.connect().close()
        assert 3 == engine.pool.checkedin() + engine.pool.checkedout() == asyncio.run(counted())  # type: ignore[attr-defined]
    engine.dispose()
