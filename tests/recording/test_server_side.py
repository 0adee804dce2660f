# SPDX-License-Identifier: Apache-2.0
"""A row says which process of the database server serves its connection, while that is open."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording.instrumented import INSTRUMENTED
from sqlalchemy_pool_exporter.recording.server_side import server_of
from sqlalchemy_pool_exporter.segment.block import ROW, SERVER_PID
from sqlalchemy_pool_exporter.segment.held import held, idle
from sqlalchemy_pool_exporter.segment.server_process import ServerProcess, unpacked
from tests.support.fakes import FakeConnection
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import CollectorRegistry
    from sqlalchemy.engine import Connection

    from tests.support.pg import Server
    from tests.support.pool_case import Case

ASK = "SELECT pg_backend_pid(), inet_client_port()"


def rows(pool: Any) -> list[ServerProcess]:
    """Return what the rows of a pool say, of those that say something."""
    hooks = INSTRUMENTED.hooks_of(pool)
    assert hooks is not None
    snapshot = hooks.recorder.snapshot()
    processes = [ServerProcess(one.server_pid, one.client_port) for one in (*held(snapshot), *idle(snapshot))]
    said = [unpacked(number) for number in snapshot.connections[SERVER_PID::ROW] if number]
    assert sorted(said) == sorted(
        one for one in processes if one.pid
    )  # a row that is free or empty says nothing
    return processes


def real(connection: Connection) -> ServerProcess:
    """Return what the server says."""
    return ServerProcess(*connection.exec_driver_sql(ASK).one())


def test_from_opening_to_closing(server_case: Case) -> None:
    """The row has process and port of its connection, the new ones after the connection is replaced, else none."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=1)
        with engine.connect() as first:
            expected = real(first)
            assert expected.client_port
            assert [expected] == rows(engine.pool)
            first.invalidate()
            assert [] == rows(engine.pool)
            first.rollback()
            second = real(first)
            assert expected != second
            assert [second] == rows(engine.pool)
            with engine.connect() as other:
                assert [second, third := real(other)] == rows(engine.pool)
        # The first one was returned beyond the size of the pool.
        assert [third] == rows(engine.pool)
        with engine.connect() as first:
            first.detach()
            assert third == real(first)
            assert [] == rows(engine.pool)

    with warnings.catch_warnings():
        # For an asyncio dialect without terminate(), SQLAlchemy leaves the close to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        server_case.run(scenario)
        gc.collect()


def test_connections_that_were_there_before(
    server: Server, application_name: str, registry: CollectorRegistry
) -> None:
    """A pool that is instrumented late has the processes of the connections it has, in use or idle."""
    engine = create_engine(server.url("postgresql+psycopg", application_name=application_name))
    with engine.connect() as held_before, engine.connect() as idle_before:
        expected = [real(held_before), real(idle_before)]
        idle_before.close()
        with instrument(engine, registry=registry):
            assert expected == rows(engine.pool)
    engine.dispose()


def test_a_unix_socket_has_no_port() -> None:
    """The port of a connection through a socket in a directory is not known."""
    ours, theirs = socket.socketpair()
    try:
        assert ServerProcess(7, 0) == unpacked(server_of(_libpq("psycopg", 7, ours)))
    finally:
        ours.close()
        theirs.close()


def test_the_connections_socket_stays_as_it_is() -> None:
    """The port is read without a change to the socket; a descriptor that is none is a fault for the caller."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as ours,
    ):
        port = ours.getsockname()[1]
        for blocking in (True, False):
            ours.setblocking(blocking)
            assert ServerProcess(7, port) == unpacked(server_of(_libpq("psycopg2.extensions", 7, ours)))
            assert blocking == os.get_blocking(ours.fileno())
        assert ServerProcess(7, port) == unpacked(server_of(_libpq("psycopg", 7, ours)))
        assert [ours.fileno()] == _descriptors_of(ours)  # none is left open


def _descriptors_of(ours: socket.socket) -> list[int]:
    """Return the descriptors of a socket. How many others are open, other threads of the process may change."""
    every = Path("/proc/self/fd")
    link = (every / str(ours.fileno())).readlink()
    found = []
    for entry in every.iterdir():
        with contextlib.suppress(OSError):
            if entry.readlink() == link:
                found.append(int(entry.name))
    return found


def _libpq(module: str, pid: int, ours: socket.socket) -> Any:
    connection = type("Connection", (), {"__module__": module})()
    connection.info = MagicMock(backend_pid=pid)
    connection.get_backend_pid = lambda: pid
    connection.fileno = ours.fileno
    return connection


def _pymysql(thread_id: object) -> Callable[[], Any]:
    return type("Connection", (FakeConnection,), {"__module__": "pymysql", "thread_id": thread_id})


@pytest.mark.parametrize(
    ("module", "name", "value", "expected"),
    [
        ("pymysql.connections", "thread_id", lambda _self: 12, 12),
        ("MySQLdb.connections", "thread_id", lambda _self: 12, 12),
        ("aiomysql.connection", "thread_id", lambda _self: 12, 12),
        ("asyncmy.connection", "thread_id", lambda _self: 12, 12),
        ("mysql.connector.connection_cext", "connection_id", 12, 12),
        ("mysql.connector.connection", "connection_id", None, 0),
        ("asyncpg.connection", "get_server_pid", lambda _self: -12, 0),  # made up by a pooler
        ("another.driver", "thread_id", lambda _self: 12, 0),
        ("pymysqlx.connections", "thread_id", lambda _self: 12, 0),
    ],
)
def test_drivers(module: str, name: str, value: object, expected: int) -> None:
    """A driver is known by the package of the connection's class or of one that it is derived from."""
    base = type("Connection", (), {"__module__": module, name: value})
    derived = type("Derived", (base,), {})
    for kind in (base, derived):
        assert expected == server_of(kind())


def test_a_driver_that_is_not_known_is_asked_nothing(registry: CollectorRegistry) -> None:
    """No method of a connection is called for it, because it is not known what it does."""
    connection = MagicMock()
    pool = QueuePool(lambda: connection)
    with instrument(pool, registry=registry):
        proxy = pool.connect()
        assert [] == connection.mock_calls
        assert [ServerProcess(0, 0)] == rows(pool)
        proxy.close()


@pytest.mark.parametrize(("module", "faults"), [("pymysql.err", 0.0), ("builtins", 1.0)])
def test_an_error_of_the_driver(registry: CollectorRegistry, module: str, faults: float) -> None:
    """A driver that says that the connection is closed is no fault; nothing reaches the application either way."""
    kind = (
        RuntimeError if module == "builtins" else type("InterfaceError", (Exception,), {"__module__": module})
    )

    def thread_id(_self: object) -> int:
        raise kind("closed")

    pool = QueuePool(_pymysql(thread_id))
    name = instrument(pool, registry=registry).name
    pool.connect().close()
    samples = RegistrySamples(registry)
    assert faults == samples.value("exporter_recording_faults_total", name)
    assert 1.0 == samples.value("connects_total", name)


def test_a_time_limit_reaches_the_application(registry: CollectorRegistry) -> None:
    """A time limit that strikes meanwhile is the application's, which gets it; the connection is closed and counted."""

    class TimeLimitError(Exception):
        """Of a task queue."""

    def thread_id(_self: object) -> int:
        raise TimeLimitError

    pool = QueuePool(_pymysql(thread_id))
    name = instrument(pool, registry=registry).name
    with pytest.raises(TimeLimitError):
        pool.connect()
    samples = RegistrySamples(registry)
    assert 0.0 == samples.value("exporter_recording_faults_total", name)
    assert (0.0, 0.0) == tuple(
        samples.value("connections", name, state=state) for state in ("in_use", "idle")
    )
