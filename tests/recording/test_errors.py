# SPDX-License-Identifier: Apache-2.0
"""Errors by layer and disposition: each is counted once, in its layer, and what succeeds costs nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database
from tests.support.pool_case import Case
from tests.support.pool_incidents import attributes
from tests.support.samples import Exposition
from tests.support.segments import FORKS
from tests.support.wait import SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy.engine import Connection, Engine

    from tests.support.pg import Server


def errors(registry: CollectorRegistry, name: str = "diary") -> dict[str, float]:
    return Exposition(registry).errors(name)


def fails(engine: Engine, statement: str = "SELEKT 1") -> None:
    with engine.connect() as connection, pytest.raises(exc.DBAPIError):
        connection.execute(text(statement))


# A statement that fails behind the first rows that asyncpg fetches of a server-side cursor.
LATER = "SELECT CASE WHEN i > 60 THEN {} END FROM generate_series(1, 100) AS i"


# -- layers


def test_statements(case: Case) -> None:
    """A statement that fails counts once, by whether another try may help; so does a failing commit of an engine."""

    def scenario(case: Case) -> None:
        engine = case.start()
        fails(engine)
        assert errors(case.registry, case.name) == {"statement.fatal": 1}
        fails(engine)
        assert errors(case.registry, case.name) == {"statement.fatal": 2}
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT 1")) == 1
        assert errors(case.registry, case.name) == {"statement.fatal": 2}

    case.run(scenario)


def test_a_commit(server_case: Case) -> None:
    """A commit that fails because of a deferred constraint counts as a statement."""

    def scenario(case: Case) -> None:
        engine = case.start()
        with engine.connect() as connection:
            connection.execute(text("CREATE TEMP TABLE t (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
            connection.execute(text("INSERT INTO t VALUES (1), (1)"))
            with pytest.raises(exc.IntegrityError):
                connection.commit()
        assert errors(case.registry, case.name) == {"statement.fatal": 1}

    server_case.run(scenario)


def test_a_timeout_of_the_driver(server: Server, tmp_path: Path) -> None:
    """Asyncpg's command_timeout, which is no error of the driver, counts once for each statement, and as it was.

    The application's own time limit of the same class does not count; nor does what SQLAlchemy does afterwards.
    """
    case = Case("asyncpg", server, tmp_path)
    seen: list[str] = []

    def sleeps(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))
        # Now, because the limit is that of each command: a slow server must not exceed it with another one.
        driver: Any = connection.connection.driver_connection
        config = driver._config
        driver._config = config._replace(command_timeout=0.1)
        try:
            connection.execute(text("SELECT pg_sleep(30)"))
        finally:
            driver._config = config

    def scenario(case: Case) -> None:
        engine = case.start(connect_args={"command_timeout": SECONDS}, pool_pre_ping=True)
        event.listen(
            engine, "handle_error", lambda context: seen.append(type(context.original_exception).__name__)
        )
        for _ in range(2):
            with engine.connect() as connection, pytest.raises(TimeoutError):
                sleeps(connection)
        assert errors(case.registry, case.name) == {"statement.retryable": 2}
        assert seen == ["TimeoutError"] * 2
        fails(engine)
        assert errors(case.registry, case.name) == {"statement.retryable": 2, "statement.fatal": 1}

        @event.listens_for(engine, "before_cursor_execute")
        def limit(*_: object) -> None:
            raise TimeoutError

        with engine.connect() as connection, pytest.raises(TimeoutError):
            connection.execute(text("SELECT 1"))
        assert errors(case.registry, case.name) == {"statement.retryable": 2, "statement.fatal": 1}

    case.run(scenario)


@pytest.mark.parametrize(
    ("fails", "number"),
    [("pg_sleep(30)", 1), ("pg_terminate_backend(pg_backend_pid())", 2)],
    ids=["timeout", "terminated"],
)
def test_rows_that_are_fetched_later(server: Server, tmp_path: Path, fails: str, number: int) -> None:
    """An error that strikes while asyncpg fetches rows of a server-side cursor counts once, like any other.

    SQLAlchemy passes it on as it is. It still takes a connection that the server ended for alive, and fails again when
    it rolls back: that is the same error.
    """
    case = Case("asyncpg", server, tmp_path)

    def scenario(case: Case) -> None:
        engine = case.start()
        for _ in range(number):
            with (
                contextlib.suppress(exc.DBAPIError, asyncpg.PostgresError),
                engine.connect().execution_options(stream_results=True) as connection,
            ):
                connection.execute(text("SET LOCAL statement_timeout = 200"))
                connection.execute(text(LATER.format(fails))).fetchall()
        assert errors(case.registry, case.name) == {"statement.retryable": number}

    case.run(scenario)


@pytest.mark.parametrize("listens", [False, True])
def test_closing_restores_the_listeners(server: Server, listens: bool) -> None:
    """close() leaves the dialect of asyncpg with the application's listeners alone, or with none."""
    engine = create_async_engine(server.url("postgresql+asyncpg", application_name="listeners")).sync_engine
    if listens:
        event.listen(engine, "handle_error", lambda _: None)
    number = len(list(engine.dialect.dispatch.handle_error))
    before = attributes(engine.dialect)
    for _ in range(2):
        handle = instrument(engine, registry=CollectorRegistry())
        assert len(list(engine.dialect.dispatch.handle_error)) == number + 1
        handle.close()
        assert (attributes(engine.dialect), len(list(engine.dialect.dispatch.handle_error))) == (
            before,
            number,
        )


def test_a_connection_that_died(server_case: Case) -> None:
    """A statement on a connection that the server ended counts once, although the transaction's end fails, too."""

    def scenario(case: Case) -> None:
        engine = case.start()
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            case.kill()
            with pytest.raises(exc.DBAPIError):
                connection.execute(text("SELECT 1"))
        assert errors(case.registry, case.name) == {"statement.retryable": 1}

    server_case.run(scenario)


def test_a_ping(server_case: Case) -> None:
    """A pre-ping that finds a dead connection counts in its layer alone, and the checkout succeeds."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_pre_ping=True)
        engine.connect().close()
        case.kill()
        engine.connect().close()
        assert errors(case.registry, case.name) == {"ping.retryable": 1}

    server_case.run(scenario)


def test_a_ping_that_raises(registry: CollectorRegistry) -> None:
    """A pre-ping whose error is no disconnect reaches the application, and counts once, in its layer."""
    engine = Database().engine(pool_pre_ping=True)
    engine.connect().close()

    def ping(*_: object) -> bool:
        raise sqlite3.OperationalError("no such thing")

    engine.dialect.do_ping = ping  # type: ignore[assignment, method-assign]
    with instrument(engine, registry=registry):
        with pytest.raises(exc.OperationalError, match="no such thing"):
            engine.connect()
        assert errors(registry) == {"ping.fatal": 1}
    engine.dispose()


def test_a_connect(server_case: Case) -> None:
    """A connection that cannot be made counts in its layer alone, with the disposition of what the server says."""

    def scenario(case: Case) -> None:
        engine = case.start()
        refused = False

        @event.listens_for(engine, "do_connect")
        def change(_dialect: object, _record: object, _args: object, options: dict[str, Any]) -> None:
            if refused:
                options["port"] = 1
            else:
                options["user"] = "nobody"

        for _ in range(2):
            with pytest.raises(Exception, match=r'role "nobody"|authentication'):
                engine.connect()
        assert errors(case.registry, case.name) == {"connect.fatal": 2}
        refused = True
        with pytest.raises((exc.DBAPIError, OSError)):
            engine.connect()
        assert errors(case.registry, case.name) == {"connect.fatal": 2, "connect.retryable": 1}

    server_case.run(scenario)


def test_a_connect_within_a_statement(registry: CollectorRegistry) -> None:
    """An invalidated connection connects again at its next statement; if that fails, no statement has failed."""
    database = Database()
    engine = database.engine()
    with instrument(engine, registry=registry), engine.connect() as connection:
        connection.invalidate()
        database.connect_fails = sqlite3.OperationalError("unable to open database file")
        with pytest.raises(exc.OperationalError):
            connection.execute(text("SELECT 1"))
        assert errors(registry) == {"connect.retryable": 1}
    engine.dispose()


def test_a_timeout_of_the_pool(case: Case) -> None:
    """A checkout that waited for all of pool_timeout counts in the layer of the pool."""

    def scenario(case: Case) -> None:
        engine = case.start()
        with engine.connect(), engine.connect(), pytest.raises(exc.TimeoutError):
            engine.connect()
        assert errors(case.registry, case.name) == {"pool.retryable": 1}

    case.run(scenario)


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt])
def test_what_is_no_error(registry: CollectorRegistry, error: type[BaseException]) -> None:
    """A connect that was cancelled or interrupted is no error."""
    database = Database()
    database.connect_fails = error()
    engine = database.engine()
    with instrument(engine, registry=registry):
        with pytest.raises(error):
            engine.connect()
        assert errors(registry) == {}


def test_all_are_there_from_the_start(registry: CollectorRegistry) -> None:
    """The series of all layers and dispositions exist, at 0, before the first error."""
    with instrument(Database().engine(), registry=registry):
        found = {
            (labels["layer"], labels["disposition"]): value
            for (name, pairs), value in Exposition(registry).samples.items()
            if name == "sqlalchemy_pool_errors_total" and (labels := dict(pairs))
        }
    assert found == dict.fromkeys(
        [
            (layer, how)
            for layer in ("pool", "connect", "ping", "statement")
            for how in ("retryable", "fatal")
        ],
        0,
    )


# -- once


def test_an_error_while_another_is_handled(registry: CollectorRegistry) -> None:
    """If SQLAlchemy's own rollback fails while it handles an error, that is one error."""
    engine = Database().engine()
    with instrument(engine, registry=registry), engine.connect() as connection:

        @event.listens_for(engine, "handle_error")
        def end_transaction(context: Any) -> None:
            # Then SQLAlchemy rolls back by itself, see Connection._handle_dbapi_exception().
            context.connection._transaction = None

        def do_rollback(_connection: object) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        engine.dialect.do_rollback = do_rollback  # type: ignore[assignment, method-assign]
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("SELEKT 1"))
        del engine.dialect.do_rollback
        assert errors(registry) == {"statement.fatal": 1}
    engine.dispose()


def test_two_errors_of_which_one_is_the_context(registry: CollectorRegistry) -> None:
    """A statement that fails in the handler of another failure is an error of its own; a wrapped one is not."""
    engine = Database().engine()
    with instrument(engine, registry=registry):

        def twice() -> None:
            with engine.connect() as connection:
                try:
                    connection.execute(text("SELEKT 1"))
                except exc.DBAPIError:
                    with engine.connect() as another:
                        another.execute(text("SELEKT 2"))

        with pytest.raises(exc.DBAPIError):
            twice()
        assert errors(registry) == {"statement.fatal": 2}

        @event.listens_for(engine, "before_execute")
        def fail(connection: Connection, statement: object, *_: object) -> None:
            if str(statement) == "SELECT 1":
                connection.exec_driver_sql("SELEKT 3")

        with engine.connect() as connection, pytest.raises(exc.DBAPIError):
            connection.execute(text("SELECT 1"))
        assert errors(registry) == {"statement.fatal": 3}
    engine.dispose()


def test_an_error_that_a_listener_handles(registry: CollectorRegistry) -> None:
    """The application's listeners get each error as before, in their order, also if one raises; it is counted once."""
    engine = Database().engine()
    calls: list[object] = []

    def first(context: Any) -> None:
        calls.append(("first", context.is_disconnect, str(context.original_exception)))

    def second(_context: Any) -> BaseException:
        calls.append("second")
        raise LookupError("translated")

    def third(_context: Any) -> None:
        calls.append("third")

    for listener in (first, second, third):
        event.listen(engine, "handle_error", listener)

    def run() -> list[object]:
        calls.clear()
        with engine.connect() as connection, pytest.raises(LookupError, match="translated") as info:
            connection.execute(text("SELEKT 1"))
        return [*calls, type(info.value.__cause__)]

    plain = run()
    with instrument(engine, registry=registry):
        assert run() == plain
        assert errors(registry) == {"statement.fatal": 1}
    assert run() == plain
    engine.dispose()


# -- engines and pools


def test_copies_of_an_engine_and_dispose(registry: CollectorRegistry) -> None:
    """Errors of copies of an engine count, and those after dispose(), and those of a connection from before it."""
    engine = Database().engine()
    with instrument(engine, registry=registry):
        fails(engine.execution_options(isolation_level="AUTOCOMMIT"))
        connection = engine.connect()
        engine.dispose()
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("SELEKT 1"))
        connection.close()
        fails(engine)
        assert errors(registry) == {"statement.fatal": 3}
    fails(engine)
    engine.dispose()


def test_two_engines(registry: CollectorRegistry) -> None:
    """Each engine counts its own errors, and a pool that is instrumented with no engine knows nothing of statements."""
    engines = [Database().engine() for _ in range(2)]
    handles = [instrument(engine, name=f"p{at}", registry=registry) for at, engine in enumerate(engines)]
    for _ in range(2):
        fails(engines[1])
    assert (errors(registry, "p0"), errors(registry, "p1")) == ({}, {"statement.fatal": 2})
    for handle, engine in zip(handles, engines, strict=True):
        handle.close()
        engine.dispose()

    pool = QueuePool(lambda: sqlite3.connect(":memory:"))  # type: ignore[arg-type]
    with instrument(pool, name="bare", registry=registry):
        connection = pool.connect()
        with pytest.raises(sqlite3.OperationalError):
            connection.cursor().execute("SELEKT 1")
        connection.close()
        assert errors(registry, "bare") == {}
    pool.dispose()


def test_closing_restores_the_dialect(registry: CollectorRegistry) -> None:
    """close() puts the dialect back as it was, also if the application has its own is_disconnect(), in any order."""
    engine = Database().engine()
    before = attributes(engine.dialect)
    first, second = (
        instrument(engine, registry=registry),
        instrument(engine.pool.recreate(), registry=registry),
    )
    assert "is_disconnect" in vars(engine.dialect)
    first.close()
    second.close()
    assert attributes(engine.dialect) == before
    asked: list[object] = []

    def is_disconnect(error: Any, *_: object) -> bool:
        asked.append(error)
        return True

    engine.dialect.is_disconnect = is_disconnect  # type: ignore[assignment, method-assign]
    with instrument(engine, registry=registry) as handle:
        fails(engine)
        # The application's word counts where the driver gives no SQLSTATE.
        assert errors(registry, handle.name) == {"statement.retryable": 1}
        assert len(asked) == 1
    assert engine.dialect.is_disconnect is is_disconnect
    engine.dispose()


def test_another_engine_that_gets_the_pool(registry: CollectorRegistry) -> None:
    """close() restores the dialect that the pool had, although a second engine put its own dialect into the pool."""
    engine = Database().engine(pool_pre_ping=True)
    before = attributes(engine.dialect)
    with instrument(engine, registry=registry):
        create_engine("sqlite://", pool=engine.pool)
    assert attributes(engine.dialect) == before
    engine.dispose()


# -- never harm


def test_statements_that_succeed_run_as_before(registry: CollectorRegistry) -> None:
    """Through a statement that succeeds runs no function more than without instrumentation."""
    plain, instrumented = Database().engine(), Database().engine()
    with instrument(instrumented, registry=registry):
        assert not instrumented.dialect._has_events
        assert _functions(instrumented) == _functions(plain)
    plain.dispose()
    instrumented.dispose()


def _functions(engine: Engine) -> list[str]:
    called: list[str] = []

    def note(frame: Any, what: str, _argument: object) -> None:
        if what == "call":
            called.append(frame.f_code.co_qualname)

    statement = text("SELECT 1")
    with engine.connect() as connection:
        for _ in range(2):  # the second time from the cache
            called.clear()
            gc.disable()  # it may find what another test left, which has finalizers
            sys.setprofile(note)
            try:
                connection.execute(statement).close()
            finally:
                sys.setprofile(None)
                gc.enable()
    return called


def test_a_fault(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault while an error is recorded is counted, and the application gets the error that it would get."""
    engine = Database().engine()
    with instrument(engine, registry=registry):

        def broken(*_: object, **__: object) -> None:
            raise AttributeError("broken")

        monkeypatch.setattr("sqlalchemy_pool_exporter.recording.statement_errors.classified", broken)
        fails(engine)
        exposition = Exposition(registry)
        assert exposition.errors("diary") == {}
        assert exposition.value("exporter_recording_faults_total", "diary") == 1
    engine.dispose()


def test_a_time_limit(registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit of the application that strikes while an error is recorded reaches the application."""

    class TimeLimitError(Exception):
        pass

    engine = Database().engine()
    with instrument(engine, registry=registry):

        def struck(*_: object, **__: object) -> None:
            raise TimeLimitError

        monkeypatch.setattr("sqlalchemy_pool_exporter.recording.statement_errors.classified", struck)
        with engine.connect() as connection, pytest.raises(TimeLimitError):
            connection.execute(text("SELEKT 1"))
    engine.dispose()


def test_no_connection_is_kept(registry: CollectorRegistry) -> None:
    """Recording an error keeps neither the error nor its connection alive longer than without."""
    engine = Database().engine()

    def left(act: Callable[[], object]) -> int:
        gc.collect()
        before = sum(isinstance(each, exc.DBAPIError) for each in gc.get_objects())
        act()
        gc.collect()
        return sum(isinstance(each, exc.DBAPIError) for each in gc.get_objects()) - before

    with instrument(engine, registry=registry):
        assert left(lambda: fails(engine)) == 0
    engine.dispose()


@FORKS
def test_a_forked_child(registry: CollectorRegistry, tmp_path: Any) -> None:
    """A forked child counts its errors into its own segment, and its parent's stay as they are."""
    engine = Database().engine()
    with instrument(engine, registry=registry, directory=tmp_path):
        fails(engine)
        child = os.fork()
        if child == 0:
            try:
                fails(engine)
                fails(engine)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert errors(registry) == {"statement.fatal": 3}
    engine.dispose()
