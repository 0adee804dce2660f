# SPDX-License-Identifier: Apache-2.0
"""The application never notices: with and without, with faults, with interrupts, at any moment.

Most of it is told by comparison. A transcript is everything an application could notice of an incident: results,
exceptions with what is behind them, every event its listeners got, SQLAlchemy's log and warnings, and what is open
afterwards. The transcripts of a bare engine and of an instrumented one are equal, whatever is broken in between.

Where a thing depends on the moment, it is tried at every moment: a trace function steps through the recording and acts
wherever CPython would let a signal handler, the garbage collector or another thread in.
"""

from __future__ import annotations

import asyncio
import copy
import dis
import gc
import inspect
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import tracemalloc
import warnings
import weakref
from contextlib import contextmanager
from functools import partial
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
import sqlalchemy
from prometheus_client import CollectorRegistry, Gauge
from sqlalchemy import URL, create_engine, event, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
)
from sqlalchemy.util import await_only, greenlet_spawn

import sqlalchemy_pool_exporter
from sqlalchemy_pool_exporter import TargetError, instrument, serve, uninstrument
from sqlalchemy_pool_exporter.recording import instrument as instrumentation
from sqlalchemy_pool_exporter.recording.recorder import Recorder
from sqlalchemy_pool_exporter.segment.block import FAULTS
from tests.support.fakes import FakeConnection
from tests.support.samples import Exposition, RegistrySamples
from tests.support.witness import metric_state, pool_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from sqlalchemy.engine import Engine

    from sqlalchemy_pool_exporter import Handle

PACKAGE = str(Path(sqlalchemy_pool_exporter.__file__).parent)
VERSION = tuple(int(part) for part in sqlalchemy.__version__.split(".")[:3])
# Of old, SQLAlchemy loses the record of a return that is cancelled to the garbage collector, which may find it or not.
CANCELLED = (asyncio.CancelledError,) if VERSION >= (2, 0, 58) else ()
POOLS = (QueuePool, NullPool, StaticPool, SingletonThreadPool, AssertionPool)
EVENTS = (
    "connect",
    "first_connect",
    "checkout",
    "checkin",
    "reset",
    "invalidate",
    "soft_invalidate",
    "close",
    "detach",
    "close_detached",
)


# -- a database, and what an application notices of it


class Link(sqlite3.Connection):
    """A connection to SQLite that says whether it is open."""

    def __init__(self, database: Database, serial: int) -> None:
        super().__init__(":memory:", check_same_thread=False)
        self.database, self.serial = database, serial
        database.open.add(serial)

    def __repr__(self) -> str:
        return f"<Link {self.serial}>"

    def close(self) -> None:
        super().close()
        self.database.open.discard(self.serial)
        if self.database.close_fails is not None:
            raise self.database.close_fails

    def drop(self) -> None:
        """Close it as a server does that goes away: nobody here is told."""
        super().close()

    def __del__(self) -> None:
        super().close()
        self.database.open.discard(self.serial)


class Database:
    """Where the links come from, and which of them are open."""

    def __init__(self) -> None:
        self.open: set[int] = set()
        self.serials = count(1)
        self.connect_fails: BaseException | None = None
        self.close_fails: BaseException | None = None
        self.during_connect: Callable[[], object] = lambda: None

    def connect(self) -> Link:
        self.during_connect()
        if self.connect_fails is not None:
            raise self.connect_fails
        return Link(self, next(self.serials))

    def engine(self, **options: Any) -> Engine:
        """Return an engine with a pool of one connection and one overflow, unless told otherwise."""
        if options.setdefault("poolclass", QueuePool) is QueuePool:
            options = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.01} | options
        return create_engine("sqlite://", creator=self.connect, pool_logging_name="diary", **options)


class Diary(logging.Handler):
    """Everything an application could notice."""

    def __init__(self, database: Database) -> None:
        super().__init__(logging.DEBUG)
        self.database = database
        self.lines: list[str] = []

    def note(self, *what: object) -> None:
        # Addresses say nothing: neither those in hexadecimal nor SingletonThreadPool's.
        self.lines.append(re.sub(r"0x[0-9a-f]+|id:\d+", "…", " ".join(map(str, what))))

    def attempt(self, act: Callable[[], Any]) -> Any:
        """Return what an act returns, or None and a note of what it raised."""
        try:
            result = act()
        except BaseException as error:  # noqa: BLE001 - a diary tells all
            self.note("raised", *_told(error))
            return None
        self.note("returned", type(result).__name__)
        return result

    def listen(self, engine: Engine) -> None:
        """Keep a listener of one's own on each event."""
        for name in EVENTS:
            event.listen(engine, name, self._listener(name))

    def _listener(self, name: str) -> Callable[..., None]:
        def listener(*arguments: object) -> None:
            self.note("event", name, *map(_kind, arguments))

        return listener

    def emit(self, record: logging.LogRecord) -> None:
        self.note("log", record.levelname, record.getMessage())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Note SQLAlchemy's log and warnings meanwhile."""
        logger = logging.getLogger("sqlalchemy.pool")
        level, propagate = logger.level, logger.propagate
        logger.setLevel(logging.DEBUG)
        logger.propagate = False
        logger.addHandler(self)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                yield
            self.lines += [f"warning {warning.category.__name__} {warning.message}" for warning in caught]
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)
            logger.propagate = propagate


def _kind(argument: object) -> str:
    return repr(argument) if isinstance(argument, Link | None) else type(argument).__name__


def _told(error: BaseException | None, depth: int = 0) -> list[object]:
    """Tell an exception: type, arguments, the functions it came through but for ours, and what is behind it."""
    if error is None or depth > 8:
        return [None]
    frames = [
        frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if not frame.f_code.co_filename.startswith(PACKAGE)
    ]
    return [
        type(error).__name__,
        error.args,
        frames,
        error.__suppress_context__,
        "from",
        *_told(error.__cause__, depth + 1),
        "while",
        *_told(error.__context__, depth + 1),
    ]


class Socket(FakeConnection):
    """A connection that is collected as soon as nobody refers to it, which those of SQLite are not."""

    def __init__(self, database: Database) -> None:
        self.database, self.serial = database, next(database.serials)
        database.open.add(self.serial)

    def close(self) -> None:
        self.database.open.discard(self.serial)

    __del__ = close


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> Iterator[None]:
    # Thousands of collections are asked for below; what is there before need not be looked at in each.
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


# -- incidents


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
        with _raising(engine.dialect, "do_ping", error):
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
        with _raising(engine.dialect, "do_rollback", error):
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
def _raising(owner: object, name: str, error: BaseException) -> Iterator[None]:
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
    """Instrument an engine in a registry of its own."""
    return instrument(engine, registry=CollectorRegistry())


# -- 1: the same with and without


@pytest.mark.parametrize("late", [False, True], ids=["first", "late"])
@pytest.mark.parametrize("listening", [False, True], ids=["unheard", "heard"])
@pytest.mark.parametrize("incident", INCIDENTS, ids=lambda incident: incident.__name__)
def test_the_application_notices_nothing(
    incident: Callable[[Engine, Diary], None], listening: bool, late: bool
) -> None:
    """Results, exceptions, events, log and warnings of every incident are those of a bare engine, in their order."""
    bare = transcript(incident, listening=listening, late=late)
    assert bare == transcript(incident, instrumented=quietly, listening=listening, late=late)


@pytest.mark.parametrize("poolclass", [NullPool, StaticPool, SingletonThreadPool, AssertionPool])
@pytest.mark.parametrize(
    "incident", [returns, connect_fails, invalidates, pings, resets_fail, forgets, listeners_raise]
)
def test_no_other_pool_notices_anything(
    incident: Callable[[Engine, Diary], None], poolclass: type[Pool]
) -> None:
    """The same holds for every class of pool."""
    bare = transcript(incident, poolclass=poolclass)
    assert bare == transcript(incident, instrumented=quietly, poolclass=poolclass)


def test_a_subclass_keeps_its_class_arguments_and_signature() -> None:
    """A user's pool is still of its class, is re-created with the same arguments, and shows the same signatures."""
    made = []

    class Own(QueuePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            made.append({name: value for name, value in options.items() if not name.startswith("_")})
            super().__init__(*args, **options)

        def connect(self, purpose: str = "any") -> Any:
            """Take a connection for a purpose."""
            return purpose, super().connect()

    def life(*, instrumented: bool) -> list[object]:
        made.clear()
        engine = Database().engine(poolclass=Own, pool_size=3, pool_recycle=7, pool_use_lifo=True)
        if instrumented:
            quietly(engine)
        pool: Any = engine.pool
        told = [inspect.signature(pool.connect), inspect.getdoc(pool.connect), pool.connect.__name__]
        purpose, connection = pool.connect(purpose="reports")
        connection.close()
        engine.dispose()
        dialects = [options.pop("dialect") for options in made]
        return [*told, purpose, type(pool), type(engine.pool), dialects[0] is dialects[-1], *made]

    assert life(instrumented=False) == life(instrumented=True)


@pytest.mark.parametrize("poolclass", POOLS)
def test_signatures_stay(poolclass: type[Pool]) -> None:
    """What ``inspect`` says of a pool's public methods does not change."""
    engine = Database().engine(poolclass=poolclass)
    names = [name for name, _ in inspect.getmembers(engine.pool, callable) if not name.startswith("_")]

    def signatures() -> dict[str, object]:
        return {name: inspect.signature(getattr(engine.pool, name)) for name in names if name != "logger"}

    before = signatures()
    quietly(engine)
    assert before == signatures()


def test_a_ping_can_be_asked_for_as_before() -> None:
    """Whoever calls the dialect's ping himself, by position or by name, gets its answer."""
    engine = Database().engine(pool_pre_ping=True)
    quietly(engine)
    name = "_do_ping_w_event" if hasattr(engine.dialect, "_do_ping_w_event") else "do_ping"
    ping: Any = getattr(engine.dialect, name)
    with engine.connect() as connection:
        assert ping(connection.connection.dbapi_connection) is True
        assert ping(dbapi_connection=connection.connection.dbapi_connection) is True
    assert inspect.signature(
        getattr(type(engine.dialect), name).__get__(engine.dialect)
    ) == inspect.signature(ping)


def test_a_copy_of_an_engine_still_works() -> None:
    """An engine copied by ``copy.copy()`` or ``execution_options()`` shares the pool, and its numbers."""
    engine, registry = Database().engine(), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    for other in (copy.copy(engine), engine.execution_options(isolation_level="AUTOCOMMIT")):
        other.connect().close()
        assert instrument(other, registry=registry) is handle
    assert Exposition(registry).value("checkouts_total", handle.name) == 2


@pytest.mark.parametrize("poolclass", POOLS)
def test_everything_is_collected_as_before(poolclass: type[Pool]) -> None:
    """Engine, pool, records and connections that are dropped are collected."""
    database = Database()
    engine = database.engine(poolclass=poolclass)
    handle = quietly(engine)
    raw: Any = engine.raw_connection()
    dropped = [
        weakref.ref(each) for each in (engine, engine.pool, raw, raw._connection_record, raw.dbapi_connection)
    ]
    raw.close()
    del raw, engine
    gc.collect()
    assert [reference() for reference in dropped] == [None] * len(dropped)
    assert handle.closed
    assert not database.open


def test_what_a_listener_loses_is_collected() -> None:
    """A connection whose return a listener interrupts is lost to its pool, and nothing else keeps it."""
    database, registry = Database(), CollectorRegistry()
    engine = database.engine(poolclass=QueuePool)
    handle = instrument(engine, registry=registry)
    raw: Any = engine.raw_connection()
    record = weakref.ref(raw._connection_record)

    def refuse(*_: object) -> None:
        message = "no"
        raise LookupError(message)

    event.listen(engine, "checkin", refuse)
    with pytest.raises(LookupError):
        raw.close()
    # The collector, unlike the last reference, leaves a weak reference its callback, and so what that refers to.
    cycle: list[object] = [raw]
    cycle.append(cycle)
    del raw, cycle
    gc.collect()
    gc.collect()
    assert record() is None
    assert not database.open
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 0


@pytest.mark.parametrize("poolclass", POOLS)
def test_nothing_waits_for_the_garbage_collector_that_did_not_before(poolclass: type[Pool]) -> None:
    """Without the collector, records and connections go when they did before, and with them what they hold open."""

    def lifetimes(*, instrumented: bool) -> list[object]:
        database = Database()
        make: Any = partial(Socket, database)
        pool = poolclass(make)
        if instrumented:
            instrument(pool, registry=CollectorRegistry())
        told: list[object] = []
        gc.disable()
        try:
            for end in ("close", "detach", "invalidate", "drop", "keep"):
                raw: Any = pool.connect()
                kept = [weakref.ref(raw._connection_record), weakref.ref(raw.dbapi_connection)]
                if end in {"detach", "invalidate"}:
                    getattr(raw, end)()
                if end != "drop":
                    raw.close()
                if end != "keep":
                    del raw
                told.append((end, [reference() is None for reference in kept], sorted(database.open)))
            if poolclass is QueuePool:
                several = [pool.connect() for _ in range(7)]
                records = [weakref.ref(raw._connection_record) for raw in several]
                for raw in several:
                    raw.close()
                told.append(([record() is None for record in records], sorted(database.open)))
            pool.dispose()
            told.append(sorted(database.open))
            pool = pool.recreate()
            told.append(sorted(database.open))
        finally:
            gc.enable()
        return told

    assert lifetimes(instrumented=False) == lifetimes(instrumented=True)


# -- 2: a fault in recording


class Sabotage:
    """Breaks a part of the recorder, from ``after`` uses on, for ``times`` uses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: type[Exception] = RuntimeError) -> None:
        self.monkeypatch = monkeypatch
        self.error = error
        self.after = self.times = self.struck = 0

    def strike(self) -> None:
        self.after -= 1
        if self.after < 0 < self.times:
            self.times -= 1
            self.struck += 1
            raise self.error("sabotage")

    def clock(self) -> float:
        self.strike()
        return time.monotonic()

    def break_clock(self) -> None:
        self._build(lambda recorder: setattr(recorder, "clock", self.clock))

    def break_block(self, how: str) -> None:
        self._build(lambda recorder: setattr(recorder, "block", _Block(recorder.block, self, how)))

    def break_waiters(self) -> None:
        self._build(lambda recorder: setattr(recorder, "waiters", _Waiters(self)))

    def break_method(self, name: str) -> None:
        original = getattr(Recorder, name)

        def method(*args: Any, **kwargs: Any) -> Any:
            self.strike()
            return original(*args, **kwargs)

        self._build(lambda _: None, {name: method})

    def _build(self, prepare: Callable[[Any], None], methods: dict[str, Any] | None = None) -> None:
        def build(*args: Any, **kwargs: Any) -> Recorder:
            recorder: Recorder = broken(*args, **kwargs)
            prepare(recorder)
            return recorder

        broken = type("Broken", (Recorder,), methods or {})
        self.monkeypatch.setattr(instrumentation, "Recorder", build)

    def everything(self, *, after: int, times: int) -> int:
        """Run all incidents on a recorder broken like this; return how many faults it counted."""
        faults = 0.0
        self.struck = 0
        for incident in INCIDENTS:
            if times == 1 and incident is listeners_raise:
                continue  # begins like others, and takes as long as all of them
            registry = CollectorRegistry()
            engines = []

            def sabotaged(engine: Engine, registry: CollectorRegistry = registry) -> None:
                self.times = 0
                engines.append((engine, instrument(engine, registry=registry).name))  # noqa: B023 - used at once
                self.after, self.times = after, times

            lines = transcript(incident, instrumented=sabotaged)
            self.times = 0
            assert BARE[incident] == lines, incident.__name__
            faults += RegistrySamples(registry).value("exporter_recording_faults_total", engines.pop()[1])
        return int(faults)


class _Bare(dict[Any, list[str]]):
    def __missing__(self, incident: Any) -> list[str]:
        # Twice disposed of and collected like the sabotaged ones, which are kept to be asked for their faults.
        self[incident] = transcript(incident, instrumented=lambda _: None)
        return self[incident]


BARE = _Bare()


class _Block:
    """A block whose reads or writes fail; faults can be counted in it all the same."""

    def __init__(self, block: memoryview, sabotage: Sabotage, how: str) -> None:
        self._block, self._sabotage, self._how = block, sabotage, how

    def __getitem__(self, index: Any) -> Any:
        if self._how == "read" and index != FAULTS:
            self._sabotage.strike()
        return self._block[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if self._how == "write" and index != FAULTS:
            self._sabotage.strike()
        self._block[index] = value

    def __len__(self) -> int:
        return len(self._block)


class _Waiters(list[int]):
    def __init__(self, sabotage: Sabotage) -> None:
        super().__init__()
        self._sabotage = sabotage

    def pop(self, *args: Any) -> int:
        self._sabotage.strike()
        return super().pop(*args)

    def append(self, waiter: int) -> None:
        self._sabotage.strike()
        super().append(waiter)

    def extend(self, waiters: Any) -> None:
        self._sabotage.strike()
        super().extend(waiters)


ALWAYS = 10**9
# But for those whose purpose is never to raise.
METHODS = sorted(
    name
    for name, member in vars(Recorder).items()
    if inspect.isfunction(member)
    and not name.startswith("__")
    and name not in {"fault", "enter", "_gone", "read", "stop", "forget", "restart", "_release_places"}
)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_clock_that_fails(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """A clock that raises changes nothing for the application, and its faults are counted."""
    sabotage = Sabotage(monkeypatch, error)
    sabotage.break_clock()
    assert sabotage.everything(after=0, times=ALWAYS) > len(INCIDENTS)
    for moment in range(8):
        assert sabotage.everything(after=moment, times=1) >= sabotage.struck > 0


@pytest.mark.parametrize("how", ["read", "write"])
def test_a_block_that_fails(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Memory that cannot be read or written changes nothing for the application."""
    sabotage = Sabotage(monkeypatch)
    sabotage.break_block(how)
    assert sabotage.everything(after=0, times=ALWAYS) > len(INCIDENTS)
    for moment in range(12):
        sabotage.everything(after=moment, times=1)


def test_waiters_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of free slots that cannot be used changes nothing for the application."""
    sabotage = Sabotage(monkeypatch)
    sabotage.break_waiters()
    assert sabotage.everything(after=0, times=ALWAYS) > len(INCIDENTS)
    for moment in range(6):
        sabotage.everything(after=moment, times=1)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_fails(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Whichever method of the recorder fails, the application sees nothing of it, and the fault is counted."""
    sabotage = Sabotage(monkeypatch)
    sabotage.break_method(name)
    faults = sabotage.everything(after=0, times=ALWAYS)
    assert faults >= 1 or not sabotage.struck


def test_a_pool_that_returns_something_else() -> None:
    """A pool whose ``connect()`` returns an object of the user's own hands it out untouched."""

    class Wrapped:
        def __init__(self, proxied: Any) -> None:
            self.proxied = proxied

    class Own(QueuePool):
        def connect(self) -> Any:
            return Wrapped(super().connect())

    engine = Database().engine(poolclass=Own)
    quietly(engine)
    wrapped: Any = engine.pool.connect()
    assert isinstance(wrapped, Wrapped)
    wrapped.proxied.close()


# -- 3: attaching


def snapshot(engine: Engine, *records: Any) -> list[object]:
    """Return everything that instrumenting could leave behind."""
    pool: Any = engine.pool
    pool.dispatch  # noqa: B018 - SQLAlchemy makes it at its first use
    return [
        *map(_attributes, (pool, engine.dialect, *records)),
        [list(getattr(pool.dispatch, name)) for name in EVENTS],
        [bool(getattr(pool.dispatch, name)) for name in EVENTS],
        type(pool),
    ]


def _attributes(owner: object) -> dict[str, object]:
    # Which there are, and of those that can be called which they are; numbers move, and that is their business.
    return {name: value if callable(value) else None for name, value in vars(owner).items()}


@pytest.mark.parametrize("poolclass", POOLS)
@pytest.mark.parametrize("out", [0, 1])
def test_closing_undoes_everything(poolclass: type[Pool], out: int) -> None:
    """After ``close()`` the pool, its dialect, listeners and records are as they were, in use or not."""
    engine = Database().engine(poolclass=poolclass, pool_pre_ping=True)
    for _ in range(2):
        engine.connect().close()
    raw: Any = engine.raw_connection()
    record = raw._connection_record
    if not out:
        raw.close()
    before = snapshot(engine, record)
    for _ in range(2):
        registry = CollectorRegistry()
        with instrument(engine, registry=registry) as handle:
            assert instrument(engine, name="another", registry=CollectorRegistry()) is handle
            assert instrument(engine.pool) is handle
            if not out:
                engine.connect().close()
        handle.close()
        assert handle.closed
        assert before == snapshot(engine, record)
        assert Exposition(registry).samples == {}
    if out:
        raw.close()
    uninstrument(engine)


def test_closing_after_dispose_undoes_everything() -> None:
    """The pools before and after ``dispose()`` are both restored, with their records."""
    engine = Database().engine(pool_pre_ping=True)
    for _ in range(2):
        engine.connect().close()
    first: Any = engine.raw_connection()
    old = engine.pool
    before = snapshot(engine, first._connection_record)
    handle = quietly(engine)
    engine.dispose()
    second: Any = engine.raw_connection()
    handle.close()
    assert before[1:] == snapshot(engine, second._connection_record)[1:]
    assert _attributes(old) == before[0]
    assert _attributes(old).keys() == _attributes(engine.pool).keys()
    assert _attributes(first._connection_record) == _attributes(second._connection_record)
    first.close()
    second.close()


def test_closing_leaves_wrappers_of_others_alone() -> None:
    """Who wrapped ``connect()`` after us keeps his wrapper, it works, and instrumenting again counts once."""
    engine, calls = Database().engine(), []
    handle = quietly(engine)
    inner = engine.pool.connect

    def theirs() -> Any:
        calls.append("connect")
        return inner()

    engine.pool.connect = theirs  # type: ignore[method-assign]
    handle.close()
    assert engine.pool.connect is theirs
    engine.connect().close()
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    with engine.connect():
        assert Exposition(registry).value("connections", again.name, state="in_use") == 1
    assert calls == ["connect"] * 2
    assert Exposition(registry).counters(again.name)["checkouts"] == 1
    assert Exposition(registry).counters(again.name)["checkins"] == 1
    again.close()
    assert engine.pool.connect is theirs


def test_every_hook_wrapped_by_somebody_else() -> None:
    """If somebody wrapped every method we did, closing and instrumenting again still counts everything once."""
    engine = Database().engine()
    names = set(vars(engine.pool))
    handle = quietly(engine)
    for name in set(vars(engine.pool)) - names | {"_invoke_creator"}:
        hook = vars(engine.pool)[name]
        if inspect.isfunction(hook):
            setattr(engine.pool, name, lambda *args, hook=hook, **kwargs: hook(*args, **kwargs))
    handle.close()
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    connections = [engine.connect() for _ in range(2)]
    assert metric_state(Exposition(registry), again.name) == pool_state(engine.pool)
    for connection in connections:
        connection.close()
    exposition = Exposition(registry)
    assert metric_state(exposition, again.name) == pool_state(engine.pool)
    counted = exposition.counters(again.name)
    assert {"checkouts": 2, "checkins": 2, "connects": 2, "closes.overflow": 1} == {
        key: counted[key] for key in ("checkouts", "checkins", "connects", "closes.overflow")
    }


@pytest.mark.parametrize("moment", ["before the record", "while connecting"])
def test_attaching_while_a_connect_is_under_way(moment: str) -> None:
    """A checkout that another thread began before is in use once it succeeds, and returned once it is returned."""
    arrived, go_on = threading.Event(), threading.Event()
    database = Database()

    def stop() -> None:
        arrived.set()
        assert go_on.wait(10)

    class Slow(QueuePool):
        def _create_connection(self) -> Any:
            if moment == "before the record":
                stop()
            return super()._create_connection()

    engine = database.engine(poolclass=Slow)
    if moment == "while connecting":
        database.during_connect = stop
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(engine.connect()))
    thread.start()
    assert arrived.wait(10)
    registry = CollectorRegistry()
    handle = instrument(engine, registry=registry)
    go_on.set()
    thread.join()
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 1
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    got.pop().close()
    assert Exposition(registry).value("connections", handle.name, state="in_use") == 0
    assert Exposition(registry).value("connections", handle.name, state="idle") == 1
    assert not Exposition(registry).get("exporter_recording_faults_total", handle.name)


def test_attaching_while_callers_wait() -> None:
    """Callers who wait in the queue when the pool is instrumented are in use when they are served."""
    engine = Database().engine(pool_size=1, max_overflow=0, pool_timeout=10)
    held = engine.connect()
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(engine.raw_connection())) for _ in range(2)]
    for thread in threads:
        thread.start()
    queue: Any = engine.pool._pool  # type: ignore[attr-defined]
    while len(queue.not_empty._waiters) < 2:
        time.sleep(0.001)
    registry = CollectorRegistry()
    handle = instrument(engine, registry=registry)
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    held.close()
    for served in (1, 2):
        while len(got) < served:
            time.sleep(0.001)
        exposition = Exposition(registry)
        assert metric_state(exposition, handle.name) == pool_state(engine.pool)
        assert exposition.value("connections", handle.name, state="in_use") == 1
        got[-1].close()
    for thread in threads:
        thread.join()
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    assert Exposition(registry).value("pending_checkouts", handle.name) == 0


def test_attaching_does_not_wait_for_the_queue() -> None:
    """A finalizer that closes a handle while its thread is in the queue does not meet one who waits for the queue."""
    result = run(
        """
        pool, other = QueuePool(Connection), QueuePool(Connection)
        pool.connect().close()
        handle = instrument(other, registry=registry)
        threading.Timer(60, os._exit, [1]).start()
        with pool._pool.mutex:  # as within put() and get(), in which the garbage collector can run
            attaching = threading.Thread(target=lambda: instrument(pool, registry=registry))
            attaching.start()
            attaching.join(0.5)
            handle.close()
        attaching.join()
        sys.stdout.write("done")
        sys.stdout.flush()
        os._exit(0)
        """,
        prologue=_PROLOGUE,
    )
    assert result.stdout == "done", result.stderr


@pytest.mark.parametrize("name", ["connect", "checkout", "invalidate", "soft_invalidate", "close", "checkin"])
def test_attaching_and_closing_inside_a_listener(name: str) -> None:
    """A listener of the application's may instrument its own pool, and undo it; those after it still run."""
    engine, heard = Database().engine(), []
    handles: list[Handle] = []

    def attach(*_: object) -> None:
        heard.append("attach")
        handles.append(quietly(engine))

    def close(*_: object) -> None:
        heard.append("close")
        handles[-1].close()

    for listener in (attach, close):
        event.listen(engine, name, listener)
    event.listen(engine, name, lambda *_: heard.append("last"))
    connection = engine.connect()
    connection.connection.invalidate(soft=True)
    connection.invalidate()
    connection.close()
    assert heard
    assert heard == ["attach", "close", "last"] * (len(heard) // 3)


def test_closing_while_threads_are_inside_connect() -> None:
    """Undoing it while others are connecting harms none of them and leaves nothing on their records."""
    arrived, go_on = threading.Semaphore(0), threading.Event()
    database = Database()

    def stop() -> None:
        arrived.release()
        assert go_on.wait(10)

    database.during_connect = stop
    engine = database.engine(pool_size=4)
    before = snapshot(engine)
    handle = quietly(engine)
    got: list[Any] = []
    threads = [threading.Thread(target=lambda: got.append(engine.raw_connection())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert arrived.acquire(timeout=10)
    handle.close()
    go_on.set()
    for thread in threads:
        thread.join()
    left = [name for raw in got for name in vars(raw._connection_record) if "exporter" in name]
    assert left == []
    after = snapshot(engine)
    assert before[0].keys() == after[0].keys()  # type: ignore[attr-defined]
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    assert metric_state(Exposition(registry), again.name) == pool_state(engine.pool)
    for raw in got:
        raw.close()
    assert metric_state(Exposition(registry), again.name) == pool_state(engine.pool)


def test_attaching_that_fails_leaves_nothing_behind() -> None:
    """If the registry refuses, because a name is taken or it is none, the pool and its records are untouched."""
    engine = Database().engine(pool_pre_ping=True)
    raw: Any = engine.raw_connection()
    before = snapshot(engine, raw._connection_record)
    taken = CollectorRegistry()
    Gauge("sqlalchemy_pool_connections", "The application's own.", registry=taken)
    for registry in (taken, None):
        with pytest.raises((ValueError, TypeError, AttributeError)):
            instrument(engine, registry=registry)  # type: ignore[arg-type]
        assert before == snapshot(engine, raw._connection_record)
    handle = quietly(engine)
    assert not handle.closed
    raw.close()


@pytest.mark.parametrize(
    "options",
    [
        {"pool_timeout": None},
        {"max_overflow": -1},
        {"pool_size": 0},
        {"pool_recycle": 0.5},
        {"pool_pre_ping": "true"},  # as engine_from_config() leaves it
    ],
)
def test_options_that_sqlalchemy_takes_are_taken(options: dict[str, Any]) -> None:
    """An engine that works bare can be instrumented: no timeout, no limit, a fraction of a second, a text."""
    engine = Database().engine(**options)
    engine.connect().close()
    quietly(engine)
    engine.connect().close()
    engine.dispose()
    engine.connect().close()


def test_others_that_refer_to_the_pool_are_not_touched() -> None:
    """Attaching looks at who refers to the pool without asking objects of the application's what they are."""

    class Lazy:
        def __init__(self, pool: Pool) -> None:
            self.pool = pool

        @property  # type: ignore[misc]
        def __class__(self) -> Any:
            raise RuntimeError("working outside of a context")

    engine = Database().engine()
    with engine.connect():
        lazy = Lazy(engine.pool)
        quietly(engine)
    del lazy


def test_closing_during_a_dispose_closes_the_new_pool_too() -> None:
    """A pool that is re-created while another thread closes the handle is followed or left bare, not in between."""
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(QueuePool):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            if threading.current_thread() is not threading.main_thread():
                arrived.set()
                assert go_on.wait(10)

    engine = Database().engine(poolclass=Slow)
    handle = quietly(engine)
    thread = threading.Thread(target=engine.dispose)
    thread.start()
    assert arrived.wait(10)
    handle.close()
    go_on.set()
    thread.join()
    registry = CollectorRegistry()
    again = instrument(engine, registry=registry)
    assert not again.closed
    engine.connect().close()
    assert Exposition(registry).value("checkouts_total", again.name) == 1


# -- 4: at every moment

_CALLS = {
    dis.opmap[name] for name in dis.opmap if name.startswith(("CALL", "PRECALL")) and "INTRINSIC" not in name
}
_SECOND_HALF = dis.opmap["CALL"] if "PRECALL" in dis.opmap else None
_BACKWARD = {dis.opmap[name] for name in dis.opmap if "JUMP_BACKWARD" in name and "NO_INTERRUPT" not in name}


class Intruder:
    """Lets something happen in the middle of the recording: at the first moment possible, or a later one.

    The moments are those at which CPython runs signal handlers, other threads and (since 3.12) the garbage collector:
    on entering a function, after a call of something written in C, and at a jump backwards. Only the code of this
    package is looked at. The first instruction of a function that SQLAlchemy calls is left out, since it is the first
    of SQLAlchemy's own function without us.
    """

    def __init__(self, moment: int, intrude: Callable[[], object], *, outermost: bool = False) -> None:
        self._moment = moment
        self._intrude = intrude
        self._outermost = outermost
        self._seen = 0
        self._before: dict[FrameType, int] = {}
        self.where: str | None = None

    def __enter__(self) -> Self:
        self._traced = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._traced)
        self._before.clear()

    def _trace(self, frame: FrameType, what: str, _: object) -> Any:
        caller = frame.f_back
        if what == "call" and caller in self._before:
            self._before[caller] = -1  # a function written in Python
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if what == "call":
            frame.f_trace_opcodes = True
            ours = caller is not None and caller.f_code.co_filename.startswith(PACKAGE)
            self._before[frame] = -1
            if ours or self._outermost:
                self._moment_passes(frame)
        elif what == "opcode":
            opcode = frame.f_code.co_code[frame.f_lasti]
            # In 3.11 a call is two instructions, of which the first is none yet.
            called = self._before.get(frame) in _CALLS and opcode != _SECOND_HALF
            if called or opcode in _BACKWARD:
                self._moment_passes(frame)
            self._before[frame] = opcode
        elif what == "exception":
            self._before[frame] = -1  # what raises is not followed by a look for signals
        elif what == "return":
            self._before.pop(frame, None)
        return self._trace

    def _moment_passes(self, frame: FrameType) -> None:
        self._seen += 1
        if self._seen == self._moment:
            self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}"
            self._intrude()


class Scene:
    """An instrumented pool in the middle of something."""

    def __init__(self, *, warm: bool = True, **options: Any) -> None:
        self.database = Database()
        self.engine = self.database.engine(pool_timeout=0, **options)
        self.pool: Any = self.engine.pool
        self.registry = CollectorRegistry()
        self.held: list[Any] = []
        with self.engine.connect():
            pass  # what SQLAlchemy does only once is done
        if not warm:
            self.pool.dispose()
        self.handle = instrument(self.engine, registry=self.registry)

    def checkout(self) -> None:
        self.pool.connect().close()

    def overflow(self) -> None:
        self.held += [self.pool.connect(), self.pool.connect()]
        while self.held:
            self.held.pop().close()  # the first is kept, the second closed

    def timeout(self) -> None:
        self.held += [self.pool.connect(), self.pool.connect()]
        self.pool.connect()

    def refused(self) -> None:
        self.held.append(self.pool.connect())
        self.database.connect_fails = ConnectionRefusedError()
        self.pool.connect()

    def invalidate(self) -> None:
        raw = self.pool.connect()
        raw.invalidate()
        raw.close()
        self.pool.connect().close()

    def detach(self) -> None:
        raw = self.pool.connect()
        raw.detach()
        raw.close()

    def dispose(self) -> None:
        self.pool.dispose()

    def leak(self) -> None:
        self.held.append(self.pool.connect())
        self.held.clear()

    def settle(self) -> RegistrySamples:
        """Let go of everything, and return the numbers."""
        self.held.clear()
        self.database.connect_fails = None
        gc.collect()
        return RegistrySamples(self.registry)

    def assert_true(self, where: str | None) -> None:
        """Assert that nothing is in use or pending, that nothing is lost, and that it goes on as ever."""
        exposition = self.settle()
        name = self.handle.name
        state = {
            "pending": exposition.value("pending_checkouts", name),
            "in use": exposition.value("connections", name, state="in_use"),
            "idle": exposition.value("connections", name, state="idle"),
            "overflow": exposition.value("overflow_connections", name),
            "checked out": self.pool.checkedout(),
        }
        if where and where.startswith("detach"):
            del state["idle"]  # its row says so until the pool connects there again
        expected = {
            "pending": 0,
            "in use": 0,
            "idle": len(self.database.open),
            "overflow": 0,
            "checked out": 0,
        }
        assert {key: expected[key] for key in state} == state, where
        for _ in range(4):  # and some more, whose records come to lie where those were that are gone
            self.held += [self.pool.connect(), self.pool.connect()]
            assert metric_state(RegistrySamples(self.registry), name) == pool_state(self.pool), where
            self.held.clear()
        assert metric_state(RegistrySamples(self.registry), name) == pool_state(self.pool), where


ACTS = ("checkout", "overflow", "timeout", "refused", "invalidate", "detach", "leak")


def each_moment(
    act: str, intrude: Callable[[Scene], object], **options: Any
) -> Iterator[tuple[Scene, str, Any]]:
    """Run an act again and again, intruding one moment later each time, until there is no later one.

    Yields the scene, where it was, and what the act raised.
    """
    for moment in count(1):
        scene = Scene(**options)
        raised: BaseException | None = None
        intruder = Intruder(moment, partial(intrude, scene))
        with intruder:
            try:
                getattr(scene, act)()
            except BaseException as error:  # noqa: BLE001 - whatever was thrown in
                raised = error.with_traceback(None)
                raised.__context__ = None
        if intruder.where is None:
            assert moment > 3, "not a moment in it"
            return
        yield scene, f"{act}: {intruder.where}", raised


def _interrupt(_: Scene) -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("act", ACTS)
def test_interrupted_at_any_moment(act: str) -> None:
    """After Ctrl-C anywhere in the recording nobody is pending or in use, and neither pool nor table lost a slot."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for scene, where, _ in each_moment(act, _interrupt):
            scene.assert_true(where)


class SoftTimeLimitError(Exception):
    """As task queues raise it out of a signal handler, to end a task that takes too long."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
@pytest.mark.parametrize("act", ["checkout", "overflow", "invalidate", "dispose"])
def test_what_a_signal_handler_raises_reaches_the_application(act: str) -> None:
    """An exception that the application's signal handler raises in the middle of a recording is not ours to catch."""

    def handler(*_: object) -> None:
        raise SoftTimeLimitError

    before = signal.signal(signal.SIGUSR1, handler)
    swallowed = []
    try:
        for scene, where, raised in each_moment(act, lambda _: signal.raise_signal(signal.SIGUSR1)):
            if not isinstance(raised, SoftTimeLimitError):
                swallowed.append(where)
            if act != "dispose":  # which SQLAlchemy does not finish then
                scene.assert_true(where)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert swallowed == []


def _returns_one(scene: Scene) -> None:
    if scene.held:
        scene.held.pop()


def _checks_out(scene: Scene) -> None:
    scene.pool.connect().close()


def _opens_overflow(scene: Scene) -> None:
    several = [scene.pool.connect() for _ in range(3)]
    several.clear()


@pytest.mark.parametrize("finalizer", [_returns_one, _checks_out, _opens_overflow])
@pytest.mark.parametrize("act", ["checkout", "overflow", "invalidate", "detach", "leak"])
def test_finalizers_at_any_moment(act: str, finalizer: Callable[[Scene], None]) -> None:
    """A finalizer that returns or checks out connections of the same pool, anywhere in a recording, is counted too."""
    for scene, where, raised in each_moment(act, finalizer, max_overflow=9):
        assert raised is None, where
        scene.assert_true(where)
        counted = RegistrySamples(scene.registry).counters(scene.handle.name)
        assert "exporter_recording_faults" not in counted, where
        assert counted["checkouts"] == counted["checkins"] + counted.get("detaches", 0), where


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("intrude", [_interrupt, _checks_out])
def test_a_pre_ping_disturbed_at_any_moment(intrude: Callable[[Scene], None]) -> None:
    """An interrupt or a finalizer anywhere in a checkout that pings leaves nothing behind, either."""
    for scene, where, raised in each_moment("checkout", intrude, pool_pre_ping=True, max_overflow=9):
        assert (intrude is _interrupt) == (raised is not None), where
        scene.assert_true(where)


def test_the_garbage_collector_in_the_middle() -> None:
    """With a collection at every allocation, whose finalizers use the same pool, every total is exact."""
    engine, registry = Database().engine(pool_size=2, max_overflow=-1), CollectorRegistry()
    engine.connect().close()  # under a lock of SQLAlchemy's, for which a finalizer would wait for ever
    handle = instrument(engine, registry=registry)
    tally = {"checkouts": 0, "depth": 0}

    def cycle() -> None:
        raw = engine.raw_connection()
        tally["checkouts"] += 1
        raw.close()

    class Garbage:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            if tally["depth"] < 3:
                tally["depth"] += 1
                cycle()
                tally["depth"] -= 1

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(300):
            Garbage()
            cycle()
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    counted = Exposition(registry).counters(handle.name)
    assert {"checkouts": tally["checkouts"], "checkins": tally["checkouts"]} == {
        key: counted[key] for key in ("checkouts", "checkins")
    }
    assert tally["checkouts"] > 300
    assert "exporter_recording_faults" not in counted
    assert metric_state(Exposition(registry), handle.name) == pool_state(engine.pool)
    assert Exposition(registry).value("pending_checkouts", handle.name) == 0


def test_a_finalizer_may_close_a_handle_at_any_moment() -> None:
    """An object of the application's whose finalizer closes its handle can be collected while another is registered."""
    result = run(
        """
        import gc
        from prometheus_client import CollectorRegistry
        from sqlalchemy.pool import QueuePool
        from sqlalchemy_pool_exporter import instrument

        class Owner:
            def __init__(self):
                self.itself = self
                self.pool = QueuePool(object)
                self.handle = instrument(self.pool, name="owned", registry=registry)

            def __del__(self):
                self.handle.close()

        registry = CollectorRegistry()
        gc.freeze()
        for step in range(1, 400):
            gc.disable()
            gc.collect()
            Owner()
            gc.set_threshold(gc.get_count()[0] + step)
            gc.enable()
            instrument(QueuePool(object), name="other", registry=registry).close()
        print("done")
        """
    )
    assert result.stdout == "done\n", result.stderr


def test_threads_lose_nothing() -> None:
    """Eight threads that switch all the time lose no count and leave nothing in use or pending."""
    database = Database()
    engine, registry = database.engine(pool_size=2, max_overflow=2, pool_timeout=30), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            start.wait()
            for turn in range(150):
                raw = engine.raw_connection()
                if turn % 10 == number:
                    raw.invalidate()
                raw.close()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    _in_threads(work, 8)
    assert failures == []
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    expected = {"checkouts": 1200, "checkins": 1200, "invalidations.hard": 120, "closes.error": 120}
    assert expected == {key: counted[key] for key in expected}
    assert counted["connects"] == next(database.serials) - 1
    assert counted["checkout_wait_seconds_count"] == counted["hold_seconds_count"] == 1200
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)
    assert exposition.value("pending_checkouts", handle.name) == 0
    assert exposition.value("connections", handle.name, state="idle") == len(database.open)


def test_threads_and_disposals_lose_nothing() -> None:
    """The same while the engine is disposed of again and again."""
    database = Database()
    engine, registry = database.engine(pool_size=2, max_overflow=4, pool_timeout=30), CollectorRegistry()
    handle = instrument(engine, registry=registry)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(100):
                if number == 0 and turn % 2:
                    engine.dispose()
                else:
                    engine.raw_connection().close()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    _in_threads(work, 5)
    assert failures == []
    gc.collect()
    connections = [engine.raw_connection() for _ in range(4)]
    exposition = Exposition(registry)
    opened = exposition.counters(handle.name)["overflow_opened"]
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)
    connections.append(engine.raw_connection())
    assert Exposition(registry).counters(handle.name)["overflow_opened"] == opened + 1
    for raw in connections:
        raw.close()
    engine.dispose()
    gc.collect()
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    assert counted["connects"] == sum(value for key, value in counted.items() if key.startswith("closes."))
    assert counted["checkouts"] == counted["checkins"] == 50 + 400 + 5
    assert exposition.value("pending_checkouts", handle.name) == 0
    assert "exporter_recording_faults" not in counted


def _in_threads(work: Callable[[int], None], number: int) -> None:
    threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)


def test_threads_under_a_debugger_lose_nothing() -> None:
    """A trace function that lets another thread run at each line of ours, as a debugger does, costs no count."""
    database = Database()
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def stop() -> None:
        arrived.release()
        assert go_on.wait(20)

    engine, registry = database.engine(pool_size=24, max_overflow=0), CollectorRegistry()
    engine.connect().close()
    handle = instrument(engine, registry=registry)
    engine.dispose()
    database.during_connect = stop

    def trace(frame: FrameType, _what: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        time.sleep(0)
        return trace

    def work(_: int) -> None:
        sys.settrace(trace)
        try:
            engine.raw_connection().close()
            for _turn in range(10):
                engine.raw_connection().close()
        finally:
            sys.settrace(None)

    watcher: list[float] = []

    def watch() -> None:
        for _ in range(24):
            assert arrived.acquire(timeout=20)
        watcher.append(Exposition(registry).value("pending_checkouts", handle.name))
        database.during_connect = lambda: None
        go_on.set()

    thread = threading.Thread(target=watch)
    thread.start()
    _in_threads(work, 24)
    thread.join()
    assert watcher == [24]
    exposition = Exposition(registry)
    counted = exposition.counters(handle.name)
    assert (264, 264) == (counted["checkouts"], counted["checkins"])
    assert metric_state(exposition, handle.name) == pool_state(engine.pool)
    assert exposition.value("pending_checkouts", handle.name) == 0
    assert "exporter_recording_faults" not in counted


@pytest.mark.skipif(not CANCELLED, reason="SQLAlchemy itself loses a cancelled return")
def test_cancelled_at_every_await() -> None:
    """A task cancelled at any await of connecting, pinging, resetting and closing leaves nothing in use or pending."""

    async def live() -> None:
        for moment in count(1):
            if not await _cancelled_at(moment):
                assert moment > 4
                return

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        asyncio.run(live())


class Canceller:
    """Cancels the task it runs in at the n-th await that connections make."""

    def __init__(self, moment: int) -> None:
        self.remaining = moment
        self.database = Database()

    async def _step(self) -> None:
        self.remaining -= 1
        if self.remaining == 0:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await asyncio.sleep(0)

    def step(self) -> None:
        if self.remaining > 0:
            await_only(self._step())

    def connect(self) -> Any:
        self.step()
        return Remote(self)


class Remote(Link):
    """A connection whose work is awaited."""

    def __init__(self, canceller: Canceller) -> None:
        super().__init__(canceller.database, next(canceller.database.serials))
        self.canceller = canceller

    def rollback(self) -> None:
        self.canceller.step()
        super().rollback()

    def close(self) -> None:
        self.canceller.step()
        super().close()


async def _cancelled_at(moment: int) -> bool:
    canceller = Canceller(moment)
    pool = AsyncAdaptedQueuePool(canceller.connect, pool_size=1, max_overflow=1)
    registry = CollectorRegistry()
    name = instrument(pool, registry=registry).name
    held: list[Any] = []  # and not in work()'s frame, which the exception keeps

    def work() -> None:
        held.extend([pool.connect(), pool.connect()])
        while held:
            held.pop().close()
        pool.connect().close()

    try:
        await greenlet_spawn(work)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
    cancelled = canceller.remaining <= 0
    held.clear()
    gc.collect()
    numbers = RegistrySamples(registry)
    kept = numbers.value("connections", name, state="idle") + numbers.value("empty_slots", name)
    assert (0, 0, pool.checkedin()) == (
        numbers.value("pending_checkouts", name),
        numbers.value("connections", name, state="in_use"),
        kept,
    ), moment
    assert not numbers.get("exporter_recording_faults_total", name), moment
    return cancelled


def test_cancelled_while_queueing() -> None:
    """Tasks cancelled in the queue of an asyncio pool are errors, and not pending."""

    async def live() -> None:
        engine = create_async_engine(
            "sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0
        )
        registry = CollectorRegistry()
        handle = instrument(engine, registry=registry)
        async with engine.connect():
            tasks = [asyncio.create_task(_checkout(engine)) for _ in range(5)]
            while Exposition(registry).value("pending_checkouts", handle.name) < 5:
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert [asyncio.CancelledError] * 5 == [type(outcome) for outcome in outcomes]
            exposition = Exposition(registry)
            assert exposition.value("pending_checkouts", handle.name) == 0
            assert exposition.value("checkout_errors_total", handle.name, reason="cancelled") == 5
        await engine.dispose()

    async def _checkout(engine: Any) -> None:
        async with engine.connect():
            pass

    asyncio.run(live())


# -- 4: in other processes

_PROLOGUE = """
import gc, os, signal, sys, threading, time
from prometheus_client import CollectorRegistry
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy_pool_exporter import instrument
from tests.support.fakes import FakeConnection as Connection

registry = CollectorRegistry()

def samples():
    return {
        sample.name.removeprefix("sqlalchemy_pool_")
        + "".join("." + value for label, value in sample.labels.items() if label != "pool"): sample.value
        for family in registry.collect()
        for sample in family.samples
        if "pool" in sample.labels
    }
"""


def run(
    program: str, *arguments: str, prologue: str = "", seconds: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own; one that hangs fails."""
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore::DeprecationWarning",
            "-c",
            prologue + textwrap.dedent(program),
            *arguments,
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=seconds,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_interrupted_by_real_signals() -> None:
    """Ctrl-C by a timer, hundreds of times, anywhere in checkouts and returns, leaves nobody pending or in use."""
    result = run(
        """
        pool = QueuePool(Connection, pool_size=1, max_overflow=-1)
        instrument(pool, name="p", registry=registry)
        armed = False

        def handler(*_):
            if armed:
                raise KeyboardInterrupt

        sys.unraisablehook = lambda _: None
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.00031)
        interrupts = turns = 0
        while interrupts < 400:
            turns += 1
            try:
                armed = True
                pool.connect().close()
                armed = False
            except KeyboardInterrupt:
                armed = False
                interrupts += 1
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.collect()
        idle = samples()
        assert idle["pending_checkouts"] == 0, idle
        assert idle["connections.in_use"] == 0, idle
        held = [pool.connect() for _ in range(5)]
        busy = samples()
        assert busy["connections.in_use"] == 5, busy
        assert turns - interrupts <= busy["checkouts_total"] <= turns + 5, (turns, interrupts, busy)
        assert busy["exporter_recording_faults_total"] == 0, busy
        print("done")
        """,
        prologue=_PROLOGUE,
    )
    assert result.stdout == "done\n", result.stderr


def test_gevent() -> None:
    """Greenlets that switch, time out and are killed inside connect, reset and close neither deadlock nor miscount."""
    pytest.importorskip("gevent")
    result = run(
        """
        pool = QueuePool(connect, pool_size=2, max_overflow=1, timeout=0.005)
        instrument(pool, name="p", registry=registry)
        tally = {"checkouts": 0, "failed": 0}

        def work(number):
            for turn in range(20):
                raw = None
                try:
                    with gevent.Timeout(0.003 if turn % 5 == number % 5 else None):
                        raw = pool.connect()
                        tally["checkouts"] += 1
                        gevent.sleep(0)
                        raw.close()
                except (gevent.Timeout, Exception):
                    tally["failed"] += 1
                finally:
                    if raw is not None:
                        raw.close() if raw.is_valid else None
                    raw = None

        greenlets = [gevent.spawn(work, number) for number in range(12)]
        gevent.sleep(0.05)
        for greenlet in greenlets[::4]:
            greenlet.kill(block=False)
        gevent.joinall(greenlets, raise_error=False)
        gc.collect()
        now = samples()
        assert now["pending_checkouts"] == 0, now
        # Of old, SQLAlchemy does not put back what is killed in the middle of its reset.
        lost = 0 if "new" in sys.argv else pool.checkedout()
        assert now["connections.in_use"] <= lost, (lost, now)
        assert now["exporter_recording_faults_total"] == 0, now
        assert tally["checkouts"] <= now["checkouts_total"], (tally, now)
        held = pool.connect()
        assert samples()["connections.in_use"] == now["connections.in_use"] + 1
        print("done")
        """,
        "new" if CANCELLED else "old",
        prologue=textwrap.dedent(
            """
            import gevent.monkey
            gevent.monkey.patch_all()
            import gevent
            """
        )
        + _PROLOGUE
        + textwrap.dedent(
            """
            import warnings
            warnings.simplefilter("ignore")

            class Slow(Connection):
                def rollback(self): gevent.sleep(0.0005)
                def close(self): gevent.sleep(0.0005)

            def connect():
                gevent.sleep(0.001)
                return Slow()
            """
        ),
    )
    assert result.stdout == "done\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_in_the_middle() -> None:
    """A child forked by one thread while others connect counts its own checkouts exactly, and its parent's stay."""
    result = run(
        """
        pool = QueuePool(lambda: (arrived.release(), go_on.wait(), Connection())[-1], pool_size=30)
        arrived, go_on = threading.Semaphore(0), threading.Event()
        go_on.set()
        pool.connect().close()
        instrument(pool, name="p", registry=registry)
        go_on.clear()
        arrived = threading.Semaphore(0)
        held = pool.connect()
        others = [threading.Thread(target=lambda: pool.connect().close()) for _ in range(20)]
        for other in others:
            other.start()
        for _ in others:
            arrived.acquire()

        def child():
            go_on.set()
            assert samples()["pending_checkouts"] == 0
            mine = pool.recreate()
            held = [mine.connect() for _ in range(20)]
            now = samples()
            assert now["connections.in_use"] == 20, now
            assert now["checkouts_total"] == 20, now
            held.clear()
            now = samples()
            assert (now["connections.in_use"], now["pending_checkouts"]) == (0, 0), now

        def fork():
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    child()
                    status = 0
                except BaseException:
                    import traceback
                    traceback.print_exc()
                finally:
                    os._exit(status)
            statuses.append(os.waitpid(pid, 0)[1])

        statuses = []
        forker = threading.Thread(target=fork)
        forker.start()
        forker.join()
        assert samples()["pending_checkouts"] == 20
        go_on.set()
        for other in others:
            other.join()
        now = samples()
        assert (now["connections.in_use"], now["checkouts_total"], now["checkins_total"]) == (1, 21, 20), now
        print(statuses)
        """,
        prologue=_PROLOGUE,
    )
    assert result.stdout == "[0]\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_with_a_hook_of_the_applications_own(tmp_path: Path) -> None:
    """A fork hook of the application's that disposes of its engine first touches nothing of its parent's."""
    result = run(
        """
        pool = QueuePool(Connection, pool_size=4)
        os.register_at_fork(after_in_child=lambda: (pool.recreate().connect().close(), held.pop().close()))
        instrument(pool, name="p", registry=registry, directory=sys.argv[1])
        held = [pool.connect(), pool.connect()]
        before = samples()
        assert before["exporter_segment_shared"] == 1, before
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        after = samples()
        changed = {key for key in before if before[key] != after[key] and not key.startswith(("longest", "oldest"))}
        print(sorted(changed))
        """,
        str(tmp_path),
        prologue=_PROLOGUE,
    )
    assert result.stdout == "[]\n", result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_while_another_thread_instruments() -> None:
    """A child forked while another thread of its parent registers a pool can instrument one of its own."""
    result = run(
        """
        arrived, go_on = threading.Event(), threading.Event()

        class Slow(CollectorRegistry):
            def register(self, collector):
                arrived.set()
                go_on.wait()
                super().register(collector)

        thread = threading.Thread(target=lambda: instrument(QueuePool(Connection), name="a", registry=Slow()))
        thread.start()
        arrived.wait()
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            handle = instrument(QueuePool(Connection), name="b", registry=registry)
            handle.close()
            os._exit(0)
        print(os.waitpid(pid, 0)[1])
        go_on.set()
        thread.join()
        """,
        prologue=_PROLOGUE,
    )
    assert result.stdout == "0\n", result.stderr


@pytest.mark.parametrize(
    "ending",
    [
        "held = engine.connect()",
        "held = engine.connect(); keep = [held]; keep.append(keep)",
        "engine.pool.connect = engine.pool.connect; sys.engine = engine; sys.held = engine.connect()",
        "threading.Thread(target=hold, daemon=True).start(); out.wait()",
        "held = engine.connect(); raise LookupError",
        "import atexit; held = engine.connect(); atexit.register(held.close); atexit.register(engine.dispose)",
    ],
)
def test_the_interpreter_ends_as_before(ending: str) -> None:
    """A process that ends with connections out ends with the same status, output and errors."""
    program = """
        import sys, threading, time
        from prometheus_client import CollectorRegistry
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool
        import sqlalchemy_pool_exporter

        options = {"connect_args": {"check_same_thread": False}, "pool_pre_ping": True}
        out = threading.Event()

        def hold():
            held = engine.connect()
            out.set()
            time.sleep(60)

        engine = create_engine("sqlite://", poolclass=QueuePool, **options)
        engine.connect().close()
        if sys.argv[1:]:
            sqlalchemy_pool_exporter.instrument(engine)
            sqlalchemy_pool_exporter.serve(port=0, host="127.0.0.1")
        """
    program = textwrap.dedent(program) + ending
    bare, instrumented = (
        subprocess.run(
            [sys.executable, "-c", program, *arguments],
            capture_output=True,
            check=False,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        for arguments in ([], ["instrumented"])
    )
    assert (bare.returncode, bare.stdout, bare.stderr) == (
        instrumented.returncode,
        instrumented.stdout,
        instrumented.stderr,
    )


# -- 4: nothing grows


@pytest.mark.parametrize(
    "what", ["engines", "named engines", "disposals", "shared dialect", "closed handles"]
)
def test_nothing_grows(what: str) -> None:
    """Engines that come and go, are disposed of or un-instrumented again and again, leave no memory and no series."""
    registry = CollectorRegistry()
    keeper = Database().engine(pool_pre_ping=True)
    name = instrument(keeper, name="keeper", registry=registry).name
    numbers = count()

    def once() -> None:
        if what == "disposals":
            keeper.connect().close()
            keeper.dispose()
            return
        if what == "shared dialect":
            make: Any = Database().connect
            pool = QueuePool(make, dialect=keeper.dialect, pre_ping=True)
            instrument(pool, registry=registry)
            pool.connect().close()
            return
        engine = Database().engine()
        handle = instrument(
            engine, name=f"n{next(numbers)}" if what == "named engines" else None, registry=registry
        )
        engine.connect().close()
        if what == "closed handles":
            handle.close()

    def ours(times: int) -> int:
        for _ in range(times):
            once()
        gc.collect()
        snapshot = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, f"{PACKAGE}/*", all_frames=True)]
        )
        return sum(trace.size for trace in snapshot.traces)

    logging.getLogger("sqlalchemy_pool_exporter").disabled = True
    tracemalloc.start(6)
    try:
        taken = [ours(times) for times in (30, 60, 60, 60)]
    finally:
        tracemalloc.stop()
        logging.getLogger("sqlalchemy_pool_exporter").disabled = False
    # What is kept is kept in each round, a weak reference with 60 bytes at least; a dictionary grows in one of them.
    assert min(after - before for before, after in pairwise(taken)) < 60 * 30
    assert {dict(labels)["pool"] for _, labels in Exposition(registry).samples if "pool" in dict(labels)} == {
        name
    }


def test_a_name_can_be_used_again() -> None:
    """The series of a pool that was collected is gone, and a new one of the same name takes its place."""
    registry = CollectorRegistry()
    for _ in range(3):
        engine = Database().engine()
        assert instrument(engine, name="again", registry=registry).name == "again"
        engine.connect().close()
        assert Exposition(registry).value("checkouts_total", "again") == 1
        del engine
        gc.collect()
        assert Exposition(registry).get("checkouts_total", "again") is None


def test_a_reused_address_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new connection at the address of one that is gone is still seen when the old one's slot is given up."""
    database = Database()
    make: Any = partial(Socket, database)
    # Where the third comes to lie is the allocator's business: here it is always where the first was.
    address = {1: 1, 2: 2, 3: 1}

    def id_(thing: Any) -> int:
        return address[thing.serial] if isinstance(thing, Socket) else id(thing)

    monkeypatch.setattr("sqlalchemy_pool_exporter.recording.recorder.id", id_, raising=False)
    pool, registry = QueuePool(make, pool_size=2, recycle=3600), CollectorRegistry()
    name = instrument(pool, registry=registry).name
    invalidated, old = pool.connect(), pool.connect()
    record: Any = old._connection_record
    record.starttime -= 7200
    old.close()
    invalidated.invalidate()
    new = pool.connect()
    assert record.dbapi_connection.serial == 3
    pool.dispose()
    new.close()
    pool.dispose()
    counted = Exposition(registry).counters(name)
    assert (1, 1, 1) == tuple(counted[f"closes.{reason}"] for reason in ("error", "recycle", "dispose"))
    assert not database.open


# -- 5: no credentials

SECRET = "s3cr3t"  # noqa: S105 - it is looked for
URLS = [
    f"postgresql+psycopg://{SECRET}:{SECRET}@db.example/orders",
    f"postgresql+psycopg://user:{SECRET}@db.example:5432/orders?password={SECRET}&sslkey={SECRET}",
    f"postgresql+psycopg://user:pass@{SECRET}@db.example/orders",
    f"postgresql+psycopg:///?host=db.example&user=user&password={SECRET}",
    f"sqlite:///file:orders.db?key={SECRET}&uri=true",
    URL.create("sqlite", database=f"file:orders.db?key={SECRET}&uri=true"),
    URL.create("sqlite", database=f"orders.db;password={SECRET}"),
    URL.create("sqlite", database=f"host=db.example password={SECRET} dbname=orders"),
    URL.create("sqlite", database=f"postgresql://user:{SECRET}@db.example/orders"),
    URL.create("sqlite", database=f"postgresql://user:{SECRET}@db.example"),
    URL.create("sqlite", database=f"sub/dir/orders.db#{SECRET}"),
    URL.create("postgresql+psycopg", host=f"db.example?password={SECRET}", database="orders"),
    URL.create("sqlite", query={"odbc_connect": f"DRIVER=x;UID=user;PWD={SECRET}"}),
]


@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_no_credentials_in_names(url: str | URL, caplog: pytest.LogCaptureFixture) -> None:
    """Wherever a URL has its password, no label, log line, representation or error shows it."""
    registry = CollectorRegistry()
    caplog.set_level(logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the driver does not know
            engines = [create_engine(url, poolclass=QueuePool) for _ in range(2)]
    except (exc.NoSuchModuleError, ModuleNotFoundError):
        pytest.skip("no driver")
    told = []
    for engine in engines:
        handle = instrument(engine, registry=registry)
        told += [handle.name, repr(handle), repr(engine.pool), repr(list(vars(engine.pool).values()))]
    with pytest.raises(TargetError) as info:
        instrument(engines[0], name=b"postgresql://user:" + SECRET.encode())  # type: ignore[arg-type]
    told += [str(info.value), Exposition(registry).text, caplog.text]
    assert [text for text in told if SECRET in text] == []


def test_no_credentials_in_errors() -> None:
    """What is refused is named by its type alone."""
    engine = Database().engine()
    for target in (
        f"postgresql://user:{SECRET}@db/orders",
        URL.create("postgresql", password=SECRET),
        {"password": SECRET},
        Session(engine),
        type("Creator", (), {"__repr__": lambda _: SECRET})(),
    ):
        with pytest.raises(TargetError) as info:
            instrument(target)  # type: ignore[arg-type]
        assert SECRET not in str(info.value)


def test_no_credentials_of_creators() -> None:
    """A creator whose closure and representation have the password in them is shown by its pool's class alone."""

    class Creator:
        def __init__(self, password: str) -> None:
            self.password = password

        def __repr__(self) -> str:
            return f"Creator({self.password!r})"

        def __call__(self) -> Link:
            raise ConnectionRefusedError(f"password {self.password!r} refused")

    registry = CollectorRegistry()
    make: Any = Creator(SECRET)
    pool = QueuePool(make)
    handle = instrument(pool, registry=registry)
    with pytest.raises(ConnectionRefusedError):
        pool.connect()
    assert handle.name.startswith("QueuePool")
    assert SECRET not in Exposition(registry).text


def test_a_name_that_is_no_text_cannot_break_the_scrape(tmp_path: Path) -> None:
    """A database whose file name is not UTF-8 gets a name that the exposition can encode."""
    registry = CollectorRegistry()
    engine = create_engine(URL.create("sqlite", database=os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.db")))
    handle = instrument(engine, registry=registry)
    assert Exposition(registry).value("checkouts_total", handle.name) == 0


def test_the_endpoint_says_nothing_of_the_application() -> None:
    """Errors of the endpoint name address and port alone, and a closed one leaves no thread."""
    before = set(threading.enumerate())
    with serve(port=0, host="127.0.0.1", registry=CollectorRegistry()) as server:
        assert repr(server) == f"<Server http://127.0.0.1:{server.port}/metrics>"
    assert set(threading.enumerate()) <= before
