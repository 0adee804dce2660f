# SPDX-License-Identifier: Apache-2.0
"""Errors that a real PostgreSQL makes because of what other sessions or its settings do, with every driver."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, LiteralString

import psycopg
import pytest
from sqlalchemy import event, text

from sqlalchemy_pool_exporter import classify
from tests.support.drivers import WITH_SERVER
from tests.support.pool_case import Case
from tests.support.wait import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection

    from tests.support.pg import Server


class Other:
    """Another session of the same server."""

    def __init__(self, server: Server) -> None:
        self._connection = psycopg.connect(server.dsn("the other session"))
        self.pid = self._connection.info.backend_pid

    def do(self, *statements: str) -> None:
        for statement in statements:
            self._connection.execute(statement)

    def commit(self) -> None:
        self._connection.commit()

    def waits(self) -> bool:
        """Return whether it waits for a lock."""
        return self._holds("cardinality(pg_blocking_pids(%s)) > 0", self.pid)

    def is_gone(self, pid: int) -> bool:
        """Return whether the server has ended a session."""
        return self._holds("NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)

    def _holds(self, condition: LiteralString, pid: int) -> bool:
        """Return whether a condition holds as a third session sees it."""
        with psycopg.connect(self._connection.info.dsn + " application_name=third") as third:
            row = third.execute(f"SELECT {condition}", [pid]).fetchone()
        return bool(row and row[0])

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def other(server: Server) -> Iterator[Other]:
    one = Other(server)
    one.do(
        "DROP TABLE IF EXISTS real_errors",
        "CREATE TABLE real_errors (id int PRIMARY KEY, n int)",
        "INSERT INTO real_errors VALUES (1, 0), (2, 0)",
    )
    one.commit()
    yield one
    one.close()
    with psycopg.connect(server.dsn("clean up"), autocommit=True) as connection:
        connection.execute("DROP TABLE real_errors")
        connection.execute("DROP ROLE IF EXISTS few, reader")


def update(number: int) -> str:
    return f"UPDATE real_errors SET n = n + 1 WHERE id = {number}"  # noqa: S608 - a number


def deadlock(connection: Connection, other: Other) -> None:
    other.do("SET LOCAL deadlock_timeout = '1min'", update(2))
    connection.execute(text("SET LOCAL deadlock_timeout = '10ms'"))
    connection.execute(text(update(1)))
    waits = threading.Thread(target=other.do, args=[update(1)])
    waits.start()
    try:
        assert eventually(other.waits)
        connection.execute(text(update(2)))
    finally:
        connection.rollback()
        waits.join()


def serialization(connection: Connection, other: Other) -> None:
    connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
    connection.execute(text("SELECT * FROM real_errors"))
    other.do(update(1))
    other.commit()
    connection.execute(text(update(1)))


def lock_timeout(connection: Connection, other: Other) -> None:
    other.do(update(1))
    connection.execute(text("SET LOCAL lock_timeout = '10ms'"))
    connection.execute(text(update(1)))


def statement_timeout(connection: Connection, _other: Other) -> None:
    connection.execute(text("SET LOCAL statement_timeout = '10ms'"))
    connection.execute(text("SELECT pg_sleep(30)"))


def idle_timeout(connection: Connection, other: Other) -> None:
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10ms'"))
    assert eventually(lambda: other.is_gone(pid))
    connection.execute(text("SELECT 1"))


def admin_shutdown(connection: Connection, other: Other) -> None:
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    other.do(f"SELECT pg_terminate_backend({pid}, 5000)")
    connection.execute(text("SELECT 1"))


def read_only(connection: Connection, other: Other) -> None:
    """As on a server that was the primary before a failover: the session's transactions are read-only."""
    other.do("CREATE ROLE reader", "GRANT ALL ON real_errors TO reader")
    other.commit()
    connection.execute(text("SET ROLE reader"))
    connection.execute(text("SET transaction_read_only = on"))
    connection.execute(text(update(1)))


def constraint(connection: Connection, _other: Other) -> None:
    connection.execute(text("INSERT INTO real_errors VALUES (1, 1)"))


def syntax(connection: Connection, _other: Other) -> None:
    connection.execute(text("SELEKT 1"))


def permission(connection: Connection, other: Other) -> None:
    other.do("CREATE ROLE reader")
    other.commit()
    connection.execute(text("SET ROLE reader"))
    connection.execute(text(update(1)))


# What happens → the kinds that it may have: not every driver says why the server ended a connection.
STATEMENTS: dict[Callable[[Connection, Other], None], tuple[str, set[str]]] = {
    deadlock: ("retryable", {"deadlock"}),
    serialization: ("retryable", {"serialization"}),
    lock_timeout: ("retryable", {"lock_timeout"}),
    statement_timeout: ("retryable", {"statement_timeout"}),
    idle_timeout: ("retryable", {"idle_timeout", "connection_lost"}),
    admin_shutdown: ("retryable", {"admin_shutdown", "connection_lost"}),
    read_only: ("retryable", {"read_only"}),
    constraint: ("fatal", {"constraint"}),
    syntax: ("fatal", {"syntax"}),
    permission: ("fatal", {"permission"}),
}


@pytest.fixture(params=[*WITH_SERVER, "psycopg2"])
def case_of(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Case:
    if request.param == "psycopg2":
        pytest.importorskip("psycopg2")
    return Case(request.param, server, tmp_path)


@pytest.mark.parametrize("happens", STATEMENTS, ids=lambda one: one.__name__)
def test_statements(case_of: Case, other: Other, happens: Callable[[Connection, Other], None]) -> None:
    """What a server answers because of locks, limits or a failover is counted once, and has its kind."""
    disposition, kinds = STATEMENTS[happens]

    def scenario(case: Case) -> None:
        engine = case.start()
        with engine.connect() as connection, pytest.raises(Exception) as info:  # noqa: PT011 - classified below
            happens(connection, other)
        failure = classify(info.value)
        assert failure.kind in kinds
        assert (failure.disposition, failure.layer) == (disposition, "statement")
        assert case.now().errors(case.name) == {f"statement.{disposition}": 1}

    case_of.run(scenario)


def test_too_many_connections(case_of: Case, other: Other) -> None:
    """A server without a connection left is worth another try, as a connect that failed."""
    other.do("CREATE ROLE few LOGIN CONNECTION LIMIT 0")
    other.commit()

    def scenario(case: Case) -> None:
        engine = case.start()

        def as_few(_dialect: object, _record: object, _args: object, options: dict[str, Any]) -> None:
            options["user"] = "few"

        event.listen(engine, "do_connect", as_few)
        # Python's class of the error depends on the driver.
        with pytest.raises(Exception) as info:  # noqa: PT011
            engine.connect()
        failure = classify(info.value)
        assert (failure.kind, failure.disposition, failure.layer) == (
            "too_many_connections",
            "retryable",
            "connect",
        )
        assert case.now().errors(case.name) == {"connect.retryable": 1}

    case_of.run(scenario)
