# SPDX-License-Identifier: Apache-2.0
"""Incidents of a pool, and what an application notices of each, with and without instrumentation."""

from __future__ import annotations

import asyncio
import gc
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy
from prometheus_client import CollectorRegistry
from sqlalchemy import event, exc, text
from sqlalchemy.pool import (
    AssertionPool,
    NullPool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)

from sqlalchemy_pool_exporter import instrument
from tests.support.database import Database
from tests.support.diary import EVENTS, Diary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

    from sqlalchemy_pool_exporter import Handle


VERSION = tuple(int(part) for part in sqlalchemy.__version__.split(".")[:3])
# Before 2.0.58 SQLAlchemy left the record of a cancelled return to the garbage collector, whose timing varies.
CANCELLED = (asyncio.CancelledError,) if VERSION >= (2, 0, 58) else ()
POOLS = (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool)


def returns(engine: Engine, diary: Diary) -> None:
    for number in range(3):
        with engine.connect() as connection:
            diary.note(connection.scalar(text(f"select {number}")), connection.connection.dbapi_connection)


def overflows(engine: Engine, diary: Diary) -> None:
    connections = [engine.connect() for _ in range(2)]
    diary.attempt(engine.connect)
    for connection in connections:
        connection.close()


def connect_fails(engine: Engine, diary: Diary) -> None:
    for error in (ConnectionRefusedError("no"), KeyboardInterrupt(), asyncio.CancelledError("now")):
        diary.database.connect_fails = error
        diary.attempt(engine.connect)
    diary.database.connect_fails = None
    returns(engine, diary)


def reconnect_fails(engine: Engine, diary: Diary) -> None:
    connection = engine.connect()
    connection.invalidate()
    connection.close()
    diary.database.connect_fails = ConnectionRefusedError("no")
    diary.attempt(engine.connect)
    diary.database.connect_fails = None
    returns(engine, diary)


def invalidates(engine: Engine, diary: Diary) -> None:
    connection = engine.connect()
    connection.connection.invalidate(soft=True)
    connection.close()
    time.sleep(0.002)
    connection = engine.connect()
    connection.invalidate(LookupError("bad"))
    diary.attempt(lambda: connection.scalar(text("select 1")))
    connection.close()
    returns(engine, diary)


def invalidates_all(engine: Engine, diary: Diary) -> None:
    first, second = engine.connect(), engine.connect()
    time.sleep(0.002)
    engine.pool._invalidate(first.connection, LookupError("bad"))
    first.close()
    second.close()
    time.sleep(0.002)
    returns(engine, diary)


def pings(engine: Engine, diary: Diary) -> None:
    engine.connect().close()
    with engine.connect() as connection:
        link: Any = connection.connection.dbapi_connection
    time.sleep(0.002)
    link.drop()
    time.sleep(0.002)
    returns(engine, diary)


def pings_raise(engine: Engine, diary: Diary) -> None:
    engine.connect().close()
    for error in (LookupError("ping"), asyncio.CancelledError("ping")):
        with raising(engine.dialect, "do_ping", error):
            diary.attempt(engine.connect)
    returns(engine, diary)


def closes_fail(engine: Engine, diary: Diary) -> None:
    for error in (LookupError("close"), asyncio.CancelledError("close")):
        connections = [engine.connect() for _ in range(2)]
        diary.database.close_fails = error
        for connection in connections:
            diary.attempt(connection.close)
        del connection, connections
        diary.attempt(engine.dispose)
        diary.database.close_fails = None
    returns(engine, diary)


def resets_fail(engine: Engine, diary: Diary) -> None:
    for error in (LookupError("reset"), *(error("now") for error in CANCELLED)):
        connection = engine.connect()
        with raising(engine.dialect, "do_rollback", error):
            diary.attempt(connection.close)
        diary.attempt(connection.close)
        del connection
    returns(engine, diary)


def listeners_raise(engine: Engine, diary: Diary) -> None:
    for name in (
        "connect",
        "checkout",
        "checkin",
        "reset",
        "invalidate",
        "close",
        "detach",
        "close_detached",
    ):
        for error in (
            exc.DisconnectionError("bad"),
            LookupError("bad"),
            *(error("now") for error in CANCELLED),
        ):
            remaining = [error]

            def fail(*_: object, remaining: list[BaseException] = remaining) -> None:
                if remaining:
                    raise remaining.pop()

            event.listen(engine, name, fail)
            connection: Any = diary.attempt(engine.connect)
            if connection is not None and name == "invalidate":
                diary.attempt(connection.invalidate)
            if connection is not None and "detach" in name:
                diary.attempt(connection.detach)
            if connection is not None:
                diary.attempt(connection.close)
            del connection
            event.remove(engine, name, fail)
            diary.attempt(engine.dispose)
    returns(engine, diary)


def detaches(engine: Engine, diary: Diary) -> None:
    connection = engine.connect()
    connection.detach()
    with engine.connect():
        diary.attempt(connection.close)


def forgets(engine: Engine, diary: Diary) -> None:
    connection = engine.connect()
    del connection
    gc.collect()
    raw = engine.raw_connection()
    del raw
    returns(engine, diary)


def disposes(engine: Engine, diary: Diary) -> None:
    for close in (True, False):
        first, second = engine.connect(), engine.connect()
        second.close()
        diary.attempt(partial(engine.dispose, close=close))
        returns(engine, diary)
        first.close()
        del first, second
        gc.collect()


def checks_out_twice(engine: Engine, diary: Diary) -> None:
    raw: Any = engine.raw_connection()
    again = raw._checkout_existing()
    again.close()
    diary.attempt(raw.close)
    diary.attempt(raw.close)


INCIDENTS: dict[Callable[[Engine, Diary], None], dict[str, Any]] = {
    returns: {},
    overflows: {},
    connect_fails: {},
    reconnect_fails: {},
    invalidates: {},
    invalidates_all: {},
    pings: {"pool_pre_ping": True},
    pings_raise: {"pool_pre_ping": True},
    closes_fail: {},
    resets_fail: {},
    listeners_raise: {},
    detaches: {},
    forgets: {},
    disposes: {},
    checks_out_twice: {},
}


@contextmanager
def raising(owner: object, name: str, error: BaseException) -> Iterator[None]:
    def fail(*_: object) -> None:
        raise error

    present = vars(owner).get(name)
    setattr(owner, name, fail)
    try:
        yield
    finally:
        delattr(owner, name)
        if present is not None:
            setattr(owner, name, present)


def transcript(
    incident: Callable[[Engine, Diary], None],
    *,
    instrumented: Callable[[Engine], object] | None = None,
    listening: bool = True,
    late: bool = False,
    **options: Any,
) -> list[str]:
    """Return everything an application notices of an incident."""
    gc.collect()
    gc.freeze()  # so that the collections below look only through what the incident makes
    database = Database()
    diary = Diary(database)
    with diary.kept():
        engine = database.engine(**INCIDENTS[incident] | options)
        out = [engine.connect(), engine.connect()] if late else []
        if instrumented is not None and not late:
            instrumented(engine)
        if listening:
            diary.listen(engine)
        if instrumented is not None and late:
            instrumented(engine)
        for connection in out:
            connection.close()
        out.clear()
        incident(engine, diary)
        gc.collect()
        diary.note("open", sorted(database.open), engine.pool.status(), type(engine.pool).__name__)
        engine.dispose()
        del engine
        gc.collect()
        diary.note("left open", sorted(database.open))
    return diary.lines


def quietly(engine: Engine) -> Handle:
    """Instrument an engine in its own registry."""
    return instrument(engine, registry=CollectorRegistry())


def snapshot(engine: Engine, *records: Any) -> list[object]:
    """Return everything that instrumenting could leave behind."""
    pool: Any = engine.pool
    pool.dispatch  # noqa: B018 - SQLAlchemy makes it at its first use
    return [
        *map(attributes, (pool, engine.dialect, *records)),
        [list(getattr(pool.dispatch, name)) for name in EVENTS],
        [bool(getattr(pool.dispatch, name)) for name in EVENTS],
        type(pool),
    ]


def attributes(owner: object) -> dict[str, object]:
    # The names of all attributes, and the values of callable ones. Other values, such as numbers, may change.
    return {name: value if callable(value) else None for name, value in vars(owner).items()}
