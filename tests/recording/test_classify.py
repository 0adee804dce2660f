# SPDX-License-Identifier: Apache-2.0
"""``classify()`` names the kind of an error, with every driver."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
import sqlite3
import ssl
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import create_engine, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_pool_exporter import Failure, classify
from sqlalchemy_pool_exporter.recording.error_codes import (
    CLASSES,
    KINDS,
    MESSAGES,
    MISSING,
    MYSQL_NUMBERS,
    SQLITE_NAMES,
    SQLSTATES,
)
from tests.support.drivers import ASYNC
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.engine import Engine

    from tests.support.pg import Server

POSTGRES = ("asyncpg", "psycopg", "psycopg_async", "psycopg2")

# Statement → what classify() says of it: kind, whether to try again, SQLSTATE.
STATEMENTS = {
    "SELEKT 1": ("syntax", False, "42601"),
    "SELECT * FROM no_such_table": ("syntax", False, "42P01"),
    "DO $$BEGIN RAISE unique_violation; END$$": ("constraint", False, "23505"),
    "SELECT 1/0": ("data", False, "22012"),
    "SET TRANSACTION READ ONLY; CREATE TABLE t ()": ("read_only", True, "25006"),
    "SET LOCAL statement_timeout = 10; SELECT pg_sleep(30)": ("statement_timeout", True, "57014"),
    "SELECT pg_cancel_backend(pg_backend_pid())": ("canceled", False, "57014"),
    "DO $$BEGIN RAISE deadlock_detected; END$$": ("deadlock", True, "40P01"),
    "DO $$BEGIN RAISE serialization_failure; END$$": ("serialization", True, "40001"),
    "DO $$BEGIN RAISE lock_not_available; END$$": ("lock_timeout", True, "55P03"),
    "DO $$BEGIN RAISE too_many_connections; END$$": ("too_many_connections", True, "53300"),
    "DO $$BEGIN RAISE disk_full; END$$": ("resources", True, "53100"),
    "DO $$BEGIN RAISE connection_does_not_exist; END$$": ("connection_lost", True, "08003"),
    "DO $$BEGIN RAISE insufficient_privilege; END$$": ("permission", False, "42501"),
    "DO $$BEGIN RAISE invalid_password; END$$": ("authentication", False, "28P01"),
    "DO $$BEGIN RAISE 'no'; END$$": ("raised", False, "P0001"),
    "DO $$BEGIN RAISE feature_not_supported; END$$": ("not_supported", False, "0A000"),
}


@pytest.fixture(params=POSTGRES)
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "psycopg2":
        pytest.importorskip("psycopg2")
    return name


def engine_of(driver: str, url: str, **options: Any) -> Engine:
    options.setdefault("poolclass", NullPool)
    return (
        create_async_engine(url, **options).sync_engine if driver in ASYNC else create_engine(url, **options)
    )


def run(driver: str, act: Callable[[], None]) -> None:
    if driver in ASYNC:
        asyncio.run(greenlet_spawn(act))
    else:
        act()


def caught(act: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as info:  # noqa: PT011 - which one is what the test is about
        act()
    return info.value


def test_statements(server: Server, driver: str, application_name: str) -> None:
    """Each error of a statement has its kind, its SQLSTATE and the layer ``statement``, with every driver."""
    engine = engine_of(driver, server.url(f"postgresql+{driver}", application_name=application_name))
    found = {}

    def fail(statements: str) -> None:
        with engine.connect() as connection:
            for statement in statements.split("; ") if statements.startswith("SET") else [statements]:
                connection.exec_driver_sql(statement)

    def act() -> None:
        for statement in STATEMENTS:
            failure = classify(caught(lambda: fail(statement)))  # noqa: B023 - called at once
            assert failure.layer == "statement", statement
            found[statement] = (failure.kind, failure.is_retryable, failure.sqlstate)
        engine.dispose()

    run(driver, act)
    assert found == STATEMENTS


def test_connects(server: Server, driver: str, application_name: str) -> None:
    """A connection that cannot be made says why: no server, no database, no such role, or a read-only server."""
    good = server.url(f"postgresql+{driver}", application_name=application_name)
    urls = {
        "connect_failed": good.replace(f":{server.port}/", ":1/"),
        "no_database": good.replace("/postgres?", "/nowhere?"),
        "authentication": good.replace(f"//{server.user}@", "//nobody@"),
    }
    found = {}

    def act() -> None:
        for kind, url in urls.items():
            engine = engine_of(driver, url)
            failure = classify(caught(engine.connect))
            assert failure.layer == "connect", kind
            found[failure.kind] = failure.disposition
            engine.dispose()

    run(driver, act)
    assert found == {"connect_failed": "retryable", "no_database": "fatal", "authentication": "fatal"}


def test_a_dead_connection(server: Server, driver: str, application_name: str) -> None:
    """A statement on a connection that the server has ended is worth another try; not all drivers tell why it ended."""
    engine = engine_of(driver, server.url(f"postgresql+{driver}", application_name=application_name))
    found: list[Failure] = []

    def act() -> None:
        connection = engine.connect()
        server.terminate(application_name)
        found.extend(classify(caught(lambda: connection.execute(text("SELECT 1")))) for _ in range(2))
        connection.close()
        engine.dispose()

    run(driver, act)
    first, second = found
    assert (first.layer, first.disposition) == ("statement", "retryable")
    assert first.kind in {"admin_shutdown", "connection_lost"}
    # The transaction has gone with its connection. It must begin again, and this statement alone cannot.
    assert (second.kind, second.disposition) == ("aborted_transaction", "fatal")


def test_a_transaction_that_was_aborted(server: Server, driver: str, application_name: str) -> None:
    """After an error, further statements of the transaction fail, and trying one of them again does not help."""
    engine = engine_of(driver, server.url(f"postgresql+{driver}", application_name=application_name))
    found: list[Failure] = []

    def act() -> None:
        with engine.connect() as connection:
            found.extend(classify(caught(lambda: connection.execute(text("SELECT 1/0")))) for _ in range(2))
        engine.dispose()

    run(driver, act)
    assert [one.kind for one in found] == ["data", "aborted_transaction"]


@pytest.mark.parametrize("poolclass", [QueuePool, AsyncAdaptedQueuePool])
def test_pool_timeout(poolclass: type[Any]) -> None:
    """A checkout that waited for all of pool_timeout is of the layer ``pool``, also as the cause of another error."""
    pool = poolclass(lambda: sqlite3.connect(":memory:"), pool_size=1, max_overflow=0, timeout=0.01)

    def act() -> None:
        held = pool.connect()
        error = caught(pool.connect)
        assert classify(error) == Failure("pool_timeout", "retryable", "pool")
        own = LookupError("busy")
        own.__cause__ = error
        assert classify(own) == classify(error)
        held.close()
        pool.dispose()

    run("asyncpg" if poolclass is AsyncAdaptedQueuePool else "psycopg", act)


def test_sqlite() -> None:
    """SQLite has no SQLSTATE; the name of its error tells."""
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        connection.exec_driver_sql("CREATE TABLE t (a INTEGER NOT NULL CHECK (a > 0))")
        for statement, kind in {
            "SELECT * FROM nowhere": "syntax",
            "INSERT INTO t VALUES (NULL)": "constraint",
            "PRAGMA query_only = 1; INSERT INTO t VALUES (1)": "permission",
        }.items():
            for part in statement.split("; ")[:-1]:
                connection.exec_driver_sql(part)
            error = caught(lambda: connection.exec_driver_sql(statement.split("; ")[-1]))  # noqa: B023 - called at once
            assert classify(error) == Failure(kind, "fatal", "statement")
    engine.dispose()
    failure = classify(caught(create_engine("sqlite:////no/such/directory/db").connect))
    assert failure == Failure("connect_failed", "retryable", "connect")


def test_sqlite_that_is_locked(tmp_path: Any) -> None:
    """A database file that another connection has locked is worth another try."""
    engine = create_engine(f"sqlite:///{tmp_path / 'db'}", connect_args={"timeout": 0})
    with engine.connect() as first, engine.connect() as second:
        first.exec_driver_sql("BEGIN EXCLUSIVE")
        error = caught(lambda: second.exec_driver_sql("CREATE TABLE t (a)"))
    engine.dispose()
    assert classify(error) == Failure("lock_timeout", "retryable", "statement")


class OperationalError(Exception):
    """As PEP 249 has it. pymysql calls its own so."""


def not_matched(attribute: str) -> Exception:
    """Return what asyncpg raises if no server is as ``target_session_attrs`` wants it, such as after a failover."""
    client_error = type("InternalClientError", (Exception,), {"__module__": "asyncpg.exceptions"})
    class_ = type("TargetServerAttributeNotMatched", (client_error,), {"__module__": "asyncpg.exceptions"})
    message = f"None of the hosts match the target attribute requirement <SessionAttribute.{attribute}: '-'>"
    error: Exception = class_(message)
    return error


def mysql_error(number: int) -> Exception:
    class_ = type("OperationalError", (OperationalError,), {"__module__": "pymysql.err"})
    error: Exception = class_(number, "as the server says it")
    return error


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (TimeoutError(), Failure("timeout", "retryable")),
        (ConnectionResetError(104, "reset"), Failure("connection_lost", "retryable")),
        (ConnectionRefusedError(111, "refused"), Failure("connect_failed", "retryable")),
        (FileNotFoundError(2, "a file of the application"), Failure("other", "fatal")),
        (ssl.SSLCertVerificationError("no"), Failure("tls", "fatal")),
        (ValueError("no"), Failure("other", "fatal")),
        (KeyboardInterrupt(), Failure("other", "fatal")),
        (exc.PendingRollbackError("no"), Failure("aborted_transaction", "fatal")),
        (exc.DisconnectionError("stale"), Failure("connection_lost", "retryable")),
        (exc.StatementError("no", "SELECT :a", {}, KeyError("a")), Failure("other", "fatal")),
        (psycopg.errors.DeadlockDetected("deadlock"), Failure("deadlock", "retryable", None, "40P01")),
        (psycopg.OperationalError("server closed the connection"), Failure("connection_lost", "retryable")),
        (
            psycopg.OperationalError('connection to server at "::1" failed: FATAL:  role "a" does not exist'),
            Failure("authentication", "fatal"),
        ),
        (
            psycopg.errors.ConnectionTimeout("connection timeout expired"),
            Failure("connect_timeout", "retryable"),
        ),
        (
            psycopg.errors.ProtocolViolation("query_wait_timeout"),
            Failure("too_many_connections", "retryable", None, "08P01"),
        ),
        (
            psycopg.errors.ProtocolViolation("no such database: x"),
            Failure("no_database", "fatal", None, "08P01"),
        ),
        (
            psycopg.errors.FeatureNotSupported("cached plan must not change result type"),
            Failure("stale_plan", "retryable", None, "0A000"),
        ),
        (psycopg.InterfaceError("bad use"), Failure("interface", "fatal")),
        (
            psycopg.OperationalError(
                'connection to server at "::1" failed: FATAL:  pg_hba.conf rejects connection'
            ),
            Failure("authentication", "fatal"),
        ),
        (
            psycopg.OperationalError(
                'connection to server at "::1" failed: server does not support SSL, but SSL was'
            ),
            Failure("tls", "fatal"),
        ),
        (ConnectionError('PostgreSQL server at "::1" rejected SSL upgrade'), Failure("tls", "fatal")),
        (not_matched("read_write"), Failure("read_only", "retryable")),
        (not_matched("primary"), Failure("read_only", "retryable")),
        (not_matched("standby"), Failure("connect_failed", "retryable")),
        (mysql_error(1213), Failure("deadlock", "retryable")),
        (mysql_error(1040), Failure("too_many_connections", "retryable")),
        (mysql_error(1290), Failure("read_only", "retryable")),
        (mysql_error(1054), Failure("other", "fatal")),
        (mysql_error(1047), Failure("unavailable", "retryable")),
        (mysql_error(1020), Failure("serialization", "retryable")),
        (mysql_error(1615), Failure("stale_plan", "retryable")),
        (mysql_error(1969), Failure("statement_timeout", "retryable")),
        (mysql_error(3101), Failure("rollback", "retryable")),
        (mysql_error(1698), Failure("authentication", "fatal")),
        (
            StaleDataError("expected to update 1 row(s); 0 were matched"),
            Failure("serialization", "retryable"),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_others(error: BaseException, failure: Failure) -> None:
    """Errors of drivers without SQLAlchemy, of Python, of a pooler and of the application have their kinds, too."""
    assert classify(error) == failure


def test_exception_groups() -> None:
    """A group is retryable if all in it are; the first fatal one tells, also of a nested group and of a cause."""
    timeout, fatal = exc.TimeoutError("of the pool"), exc.ArgumentError("wrong")
    lost = exc.DisconnectionError("lost")
    assert classify(ExceptionGroup("tasks", [timeout])) == classify(timeout)
    assert classify(ExceptionGroup("tasks", [lost, timeout])) == classify(lost)
    assert classify(ExceptionGroup("tasks", [timeout, ExceptionGroup("inner", [fatal])])) == classify(fatal)
    error = RuntimeError("of the application")
    error.__cause__ = ExceptionGroup("tasks", [timeout])
    assert classify(error) == classify(timeout)


def test_what_the_server_said_first() -> None:
    """If the server gave a reason before the connection broke, that reason counts."""
    broken = psycopg.errors.ConnectionDoesNotExist("connection was closed in the middle of operation")
    broken.__cause__ = psycopg.errors.AdminShutdown("terminating connection")
    assert classify(broken) == Failure("admin_shutdown", "retryable", None, "57P01")


def test_an_error_that_cannot_be_looked_at() -> None:
    """An exception whose attributes raise, and one that is its own cause, are ``other``."""

    class OddError(Exception):
        @property
        def orig(self) -> None:
            raise RuntimeError("no")

    assert classify(OddError()) == Failure("other", "fatal")
    error = ValueError()
    error.__cause__ = error
    assert classify(error) == Failure("other", "fatal")


def test_a_failure_cannot_be_changed() -> None:
    """A failure is a value: frozen, and hashable."""
    failure = classify(ValueError())
    with pytest.raises(dataclasses.FrozenInstanceError):
        failure.kind = "deadlock"  # type: ignore[misc]
    assert {failure} == {Failure("other", "fatal")}


def test_the_loop_of_the_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop in docs/errors.md tries again what is worth it, and no more."""
    page = (ROOT / "docs" / "errors.md").read_text("utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    engine = create_engine("sqlite://")
    fails: list[Exception] = []

    def place_order(_session: Session, order: str) -> str:
        if fails:
            raise fails.pop()
        return f"placed {order}"

    names: dict[str, Any] = {
        "Session": sessionmaker(engine),
        "place_order": place_order,
        "log": logging.getLogger("shop"),
    }
    exec(code, names)  # noqa: S102 - our own documentation
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    fails += [mysql_error(1213), mysql_error(1205)]
    assert names["order_with_retries"]("tea") == "placed tea"
    fails += [mysql_error(1213)] * 4
    with pytest.raises(OperationalError):
        names["order_with_retries"]("tea")
    fails += [mysql_error(1054), LookupError("no tea")]
    with pytest.raises(LookupError, match="no tea"):
        names["order_with_retries"]("tea")
    assert len(fails) == 1
    engine.dispose()


def test_all_kinds_are_known_and_documented() -> None:
    """Every table leads to known kinds, all kinds are led to, and docs/errors.md has each with its disposition."""
    tables: list[Any] = [dict(SQLSTATES), dict(MESSAGES), MISSING, MYSQL_NUMBERS, dict(SQLITE_NAMES), CLASSES]
    led_to = {kind for table in tables for kind in table.values()}
    of_classes = {"pool_timeout", "timeout", "other"}
    assert led_to | of_classes == set(KINDS)
    rows = re.findall(
        r"^\| `(\w+)` \| (retryable|fatal) \|", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE
    )
    assert rows == list(KINDS.items())
