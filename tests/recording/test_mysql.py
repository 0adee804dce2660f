# SPDX-License-Identifier: Apache-2.0
"""Pools of a real MariaDB: which thread of it serves a connection, and connections that it ends for being idle."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_pool_exporter import classify, instrument
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.segment.held import held
from sqlalchemy_pool_exporter.segment.server_process import ServerProcess
from tests.support import mariadb, wait
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from prometheus_client import CollectorRegistry

pytestmark = [pytest.mark.newest, pytest.mark.requires(*mariadb.PROGRAMS)]

DRIVERS = ("pymysql", "mysqlconnector")
ASYNC_DRIVERS = ("asyncmy", "aiomysql")
# The server's id of the session, and the client with its port.
ASK = "SELECT id, host FROM information_schema.processlist WHERE id = CONNECTION_ID()"
MODULES = {name: name for name in (*DRIVERS, *ASYNC_DRIVERS)} | {"mysqlconnector": "mysql"}
CONNECT = {"mysqlconnector": {"use_pure": True}}  # the C extension does not tell its port


@pytest.fixture(scope="module")
def maria() -> Iterator[mariadb.MariaDB]:
    """Run a MariaDB for the tests of this module."""
    with mariadb.running() as server:
        yield server


def recorded(pool: Any) -> list[ServerProcess]:
    """Return what the rows of the connections that are checked out say."""
    hooks = INSTRUMENTED.hooks_of(pool)
    assert hooks is not None
    return [ServerProcess(one.server_pid, one.client_port) for one in held(hooks.recorder.snapshot())]


def said(row: Any) -> ServerProcess:
    """Return what the server says of the session that asks."""
    return ServerProcess(row[0], int(row[1].rpartition(":")[2]))


@pytest.mark.parametrize("driver", DRIVERS)
def test_the_row_has_the_servers_id_and_the_port(
    maria: mariadb.MariaDB, driver: str, registry: CollectorRegistry
) -> None:
    """The row of a connection has what CONNECTION_ID() is and the port that the server sees."""
    pytest.importorskip(MODULES[driver])
    engine = create_engine(maria.url(driver), connect_args=CONNECT.get(driver, {}))
    with instrument(engine, registry=registry), engine.connect() as connection:
        assert [said(connection.exec_driver_sql(ASK).one())] == recorded(engine.pool)
    engine.dispose()


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_the_row_has_the_servers_id_and_the_port_with_asyncio(
    maria: mariadb.MariaDB, driver: str, registry: CollectorRegistry
) -> None:
    """The same with the drivers for asyncio."""
    pytest.importorskip(driver)

    async def scenario() -> None:
        engine = create_async_engine(maria.url(driver))
        with instrument(engine, registry=registry):
            async with engine.connect() as connection:
                row = (await connection.exec_driver_sql(ASK)).one()
                assert [said(row)] == recorded(engine.sync_engine.pool)
            await engine.dispose()

    asyncio.run(scenario())


def engines(server: mariadb.MariaDB, drivers: tuple[str, ...], create: Any) -> dict[tuple[str, bool], Any]:
    """Return an engine for each driver that is installed, with pre-ping and without; their names say which."""
    return {
        (driver, pre_ping): create(
            server.url(driver), pool_pre_ping=pre_ping, connect_args=CONNECT.get(driver, {})
        )
        for driver in drivers
        if find_spec(MODULES[driver]) is not None
        for pre_ping in (True, False)
    }


@contextmanager
def short_timeout(server: mariadb.MariaDB) -> Iterator[None]:
    """Let new sessions end once they have been idle for so long as no busy machine takes between two statements."""
    server.set(wait_timeout=5)
    try:
        yield
    finally:
        server.set(wait_timeout=28800)


def wait_until_gone(server: mariadb.MariaDB) -> None:
    """Wait until the server has ended the idle sessions of the application."""
    assert wait.eventually(lambda: server.count("app") == 0)


def check(samples: RegistrySamples, name: str, *, pre_ping: bool, failures: list[str]) -> None:
    """Compare what was counted of a pool whose one idle connection the server had ended."""
    lost = {
        layer: samples.value("errors_total", name, layer=layer, disposition="retryable")
        for layer in ("ping", "statement")
    }
    assert {"ping": float(pre_ping), "statement": float(not pre_ping)} == lost, name
    fatal = samples.value("errors_total", name, layer="statement", disposition="fatal")
    closes = {
        reason: samples.value("closes_total", name, reason=reason)
        for reason in ("ping_failed", "error", "recycle")
    }
    assert 0.0 == fatal, name
    assert {"ping_failed": float(pre_ping), "error": float(not pre_ping), "recycle": 0.0} == closes, name
    assert 2.0 == samples.value("connects_total", name), name
    assert ([] if pre_ping else ["connection_lost retryable"]) == failures, name


def test_connections_that_the_server_ended(maria: mariadb.MariaDB, registry: CollectorRegistry) -> None:
    """With pre-ping a failed ping is counted, and no statement fails; without, the statement's error 2006 or 2013."""
    failures: dict[str, list[str]] = {}
    with short_timeout(maria), ExitStack() as stack:
        made = engines(maria, DRIVERS, create_engine)
        for (driver, pre_ping), engine in made.items():
            stack.callback(engine.dispose)
            stack.enter_context(instrument(engine, name=f"{driver}-{pre_ping}", registry=registry))
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        wait_until_gone(maria)
        for (driver, pre_ping), engine in made.items():
            seen = failures.setdefault(f"{driver}-{pre_ping}", [])
            for _ in range(2):
                try:
                    with engine.connect() as connection:
                        connection.exec_driver_sql("SELECT 1")
                except DBAPIError as error:
                    seen.append("{0.kind} {0.disposition}".format(classify(error)))
        for driver, pre_ping in made:
            name = f"{driver}-{pre_ping}"
            check(RegistrySamples(registry), name, pre_ping=pre_ping, failures=failures[name])


def test_connections_that_the_server_ended_with_asyncio(
    maria: mariadb.MariaDB, registry: CollectorRegistry
) -> None:
    """The drivers for asyncio are counted alike."""

    async def scenario() -> None:
        made = engines(maria, ASYNC_DRIVERS, create_async_engine)
        for (driver, pre_ping), engine in made.items():
            instrument(engine, name=f"{driver}-{pre_ping}", registry=registry)
            async with engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
        await asyncio.to_thread(wait_until_gone, maria)
        for (driver, pre_ping), engine in made.items():
            seen = []
            for _ in range(2):
                try:
                    async with engine.connect() as connection:
                        await connection.exec_driver_sql("SELECT 1")
                except DBAPIError as error:
                    seen.append("{0.kind} {0.disposition}".format(classify(error)))
            check(RegistrySamples(registry), f"{driver}-{pre_ping}", pre_ping=pre_ping, failures=seen)
            await engine.dispose()

    with short_timeout(maria):
        asyncio.run(scenario())
