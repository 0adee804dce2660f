# SPDX-License-Identifier: Apache-2.0
"""The numbers are true: after each incident they equal the pool, its log, the server, and the test's own tally.

Every scenario is written once, in the synchronous style, and runs over every driver; an asyncio engine runs it in the
greenlet in which it runs everything.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
import uuid
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event, exc, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_pool_exporter import instrument
from tests.support.samples import Exposition
from tests.support.wait import eventually
from tests.support.witness import PoolLog, assert_log_agrees, metric_state, pool_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy.engine import Connection, Engine

    from tests.support.pg import Server

SYNC = ("psycopg", "sqlite")
ASYNC = ("asyncpg", "psycopg_async", "aiosqlite")
WITH_SERVER = ("psycopg", "asyncpg", "psycopg_async")
VERSION = tuple(int(part) for part in sqlalchemy.__version__.split(".")[:2])


@dataclass
class Case:
    """One engine under test: how it is made, and what is known of it besides."""

    driver: str
    server: Server
    directory: Path
    name: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:12]}")
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    log: PoolLog = field(init=False)
    engine: Engine = field(init=False)
    _async_engine: Any = None

    def __post_init__(self) -> None:
        self.log = PoolLog(self.name)

    @property
    def is_async(self) -> bool:
        return self.driver in ASYNC

    @property
    def has_server(self) -> bool:
        return self.driver in WITH_SERVER

    def start(self, **options: Any) -> Engine:
        """Make an instrumented engine with a pool of one connection and one overflow, unless told otherwise."""
        if options.get("poolclass") is not NullPool:
            options = {"pool_size": 1, "max_overflow": 1, "pool_timeout": 0.05} | options
        options.setdefault("pool_logging_name", self.name)
        if self.is_async:
            options.setdefault("poolclass", AsyncAdaptedQueuePool)
            self._async_engine = create_async_engine(self._url(), **options)
            self.engine = self._async_engine.sync_engine
        else:
            options.setdefault("poolclass", QueuePool)
            self.engine = create_engine(self._url(), **options)
        instrument(self.engine, registry=self.registry)
        return self.engine

    def _url(self) -> str:
        if not self.has_server:
            scheme = "sqlite+aiosqlite" if self.is_async else "sqlite"
            return f"{scheme}:///{self.directory / 'db'}"
        return self.server.url(f"postgresql+{self.driver}", application_name=self.name)

    def now(self) -> Exposition:
        return Exposition(self.registry)

    def kill(self) -> None:
        """Make the server end the connections of this engine, as a restart or a firewall does."""
        self.server.terminate(self.name)

    def assert_true(self, **expected: float) -> None:
        """Assert that the state equals pool and server, and the counters the log and exactly this tally.

        ``checkout_wait_seconds`` and its like are asserted only where they are given.
        """
        exposition = self.now()
        if isinstance(self.engine.pool, QueuePool):
            assert metric_state(exposition, self.name) == pool_state(self.engine.pool)
        assert exposition.value("pending_checkouts", self.name) == 0
        assert_log_agrees(exposition, self.name, self.log)
        self.assert_server_agrees()
        tally = {key.replace("__", "."): value for key, value in expected.items()}
        counted = exposition.counters(self.name)
        assert tally == {
            key: value for key, value in counted.items() if not key.endswith("_seconds_count") or key in tally
        }

    def assert_server_agrees(self, detached: int = 0) -> None:
        """Assert that as many connections are open as the server has."""
        if not self.has_server:
            return

        def agrees() -> bool:
            return self.server.count(self.name) == self.open() + detached

        assert eventually(agrees), f"server has {self.server.count(self.name)}, we say {self.open()}"

    def assert_adds_up(self) -> None:
        """Assert what docs/metrics.md says of how the numbers add up."""
        exposition = self.now()
        counted = Counter(exposition.counters(self.name))
        in_use = exposition.value("connections", self.name, state="in_use")
        assert counted["checkouts"] == counted["checkins"] + counted["detaches"] + in_use
        errors = sum(value for key, value in counted.items() if key.startswith("checkout_errors."))
        calls = counted["checkouts"] + counted["checkout_timeouts"] + errors
        assert calls == counted["checkout_wait_seconds_count"]
        assert counted["connects"] + counted["connect_errors"] == counted["connect_seconds_count"]
        phases = sum(exposition.value(f"{phase}_seconds_sum", self.name) for phase in ("connect", "ping"))
        assert exposition.value("checkout_wait_seconds_sum", self.name) >= phases

    def open(self) -> float:
        exposition = self.now()
        return sum(exposition.value("connections", self.name, state=state) for state in ("in_use", "idle"))

    def run(self, scenario: Callable[[Case], None]) -> None:
        with self.log:
            if not self.is_async:
                self._run_and_dispose(scenario)
            else:
                asyncio.run(self._run_async(scenario))

    async def _run_async(self, scenario: Callable[[Case], None]) -> None:
        await greenlet_spawn(self._run_and_dispose, scenario)

    def _run_and_dispose(self, scenario: Callable[[Case], None]) -> None:
        try:
            scenario(self)
            faults = self.now().get("exporter_recording_faults_total", self.name)
            assert not faults
            self.assert_adds_up()
        finally:
            self.engine.dispose()


def age(connection: Connection, seconds: float) -> None:
    """Make a connection older than it is."""
    record: Any = connection.connection._connection_record
    record.starttime -= seconds


@pytest.fixture(params=[*SYNC, *ASYNC])
def case(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[Case]:
    """An engine of each driver to be made."""
    yield Case(request.param, server, tmp_path)
    gc.collect()


@pytest.fixture
def server_case(case: Case) -> Case:
    """An engine of each driver that has a server to kill its connections."""
    if not case.has_server:
        pytest.skip("no server")
    return case


def test_checkouts_and_returns(case: Case) -> None:
    """Checkouts, returns and what they cost are counted once each, and the connection is reused."""

    def scenario(case: Case) -> None:
        engine = case.start()
        for _ in range(3):
            with engine.connect() as connection:
                connection.execute(text("select 1"))
                assert case.now().value("connections", case.name, state="in_use") == 1
        case.assert_true(
            checkouts=3,
            checkins=3,
            connects=1,
            checkout_wait_seconds_count=3,
            connect_seconds_count=1,
            hold_seconds_count=3,
        )

    case.run(scenario)


def test_timeouts_under_starvation(case: Case) -> None:
    """A caller who waits for pool_timeout in vain is a timeout, and his wait is in the histogram."""

    def scenario(case: Case) -> None:
        engine = case.start()
        first, second = engine.connect(), engine.connect()
        for _ in range(2):
            with pytest.raises(exc.TimeoutError):
                engine.connect()
        exposition = case.now()
        assert exposition.value("connections", case.name, state="in_use") == 2
        assert exposition.value("checkout_wait_seconds_sum", case.name) >= 0.1
        first.close()
        second.close()
        case.assert_true(
            checkouts=2,
            checkins=2,
            connects=2,
            checkout_timeouts=2,
            overflow_opened=1,
            closes__overflow=1,
            checkout_wait_seconds_count=4,
        )

    case.run(scenario)


def test_overflow_opens_and_closes(case: Case) -> None:
    """Connections beyond pool_size are counted as they open and as they close, and shown while they are open."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=1, max_overflow=2)
        connections = [engine.connect() for _ in range(3)]
        assert case.now().value("overflow_connections", case.name) == 2
        case.assert_true(checkouts=3, connects=3, overflow_opened=2)
        for connection in connections:
            connection.close()
        case.assert_true(checkouts=3, checkins=3, connects=3, overflow_opened=2, closes__overflow=2)

    case.run(scenario)


def test_killed_connection_found_by_ping(server_case: Case) -> None:
    """A connection the server ended is a failed ping, closed for that reason, and replaced in the same checkout."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_pre_ping=True)
        engine.connect().close()
        case.kill()
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        case.assert_true(
            checkouts=2,
            checkins=2,
            connects=2,
            ping_failures=1,
            invalidations__hard=1,
            closes__ping_failed=1,
            ping_seconds_count=1,
            checkout_wait_seconds_count=2,
        )

    server_case.run(scenario)


def test_ping_failure_invalidates_the_whole_pool(server_case: Case) -> None:
    """After one failed ping the other connections are recycled because the pool was invalidated."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_pre_ping=True, pool_size=2)
        first, second = engine.connect(), engine.connect()
        first.close()
        second.close()
        case.kill()
        time.sleep(0.02)
        first, second = engine.connect(), engine.connect()
        case.assert_true(
            checkouts=4,
            checkins=2,
            connects=4,
            ping_failures=1,
            invalidations__hard=1,
            closes__ping_failed=1,
            closes__pool_invalidated=1,
        )
        first.close()
        second.close()

    server_case.run(scenario)


def test_killed_connection_found_by_a_statement(server_case: Case) -> None:
    """A connection found dead by a statement is closed for an error; its slot is empty until the next checkout."""

    def scenario(case: Case) -> None:
        engine = case.start()
        connection = engine.connect()
        connection.execute(text("select 1"))
        case.kill()
        with pytest.raises(exc.DBAPIError):
            connection.execute(text("select 1"))
        connection.close()
        assert case.now().value("empty_slots", case.name) == 1
        case.assert_true(checkouts=1, checkins=1, connects=1, invalidations__hard=1, closes__error=1)
        engine.connect().close()
        assert case.now().value("empty_slots", case.name) == 0
        case.assert_true(checkouts=2, checkins=2, connects=2, invalidations__hard=1, closes__error=1)

    server_case.run(scenario)


def test_recycle_by_age(case: Case) -> None:
    """A connection older than pool_recycle is closed for its age and replaced."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_recycle=3600)
        with engine.connect() as connection:
            age(connection, 7200)
        with engine.connect():
            assert case.now().value("oldest_connection_seconds", case.name) < 10
        case.assert_true(checkouts=2, checkins=2, connects=2, closes__recycle=1)

    case.run(scenario)


def test_pool_wide_invalidation(case: Case) -> None:
    """Connections from before an invalidation of the whole pool are recycled for that reason."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=2)
        first, second = engine.connect(), engine.connect()
        first.close()
        time.sleep(0.02)
        engine.pool._invalidate(second.connection)
        second.close()
        time.sleep(0.02)
        first, second = engine.connect(), engine.connect()
        case.assert_true(
            checkouts=4,
            checkins=2,
            connects=4,
            invalidations__hard=1,
            closes__error=1,
            closes__pool_invalidated=1,
        )
        first.close()
        second.close()

    case.run(scenario)


def test_soft_invalidation(case: Case) -> None:
    """A softly invalidated connection is still open until its next checkout replaces it."""

    def scenario(case: Case) -> None:
        engine = case.start()
        time.sleep(0.02)
        connection = engine.connect()
        time.sleep(0.02)
        connection.connection.invalidate(soft=True)
        connection.close()
        case.assert_true(checkouts=1, checkins=1, connects=1, invalidations__soft=1)
        time.sleep(0.02)
        engine.connect().close()
        case.assert_true(
            checkouts=2, checkins=2, connects=2, invalidations__soft=1, closes__soft_invalidated=1
        )

    case.run(scenario)


def test_reconnect_that_fails_after_a_recycle(case: Case) -> None:
    """The old connection is closed, the new one is a connect error, nothing is in use, and the next checkout works."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_recycle=3600)
        failing = False

        @event.listens_for(engine, "do_connect")
        def refuse(*_: object) -> None:
            if failing:
                raise ConnectionRefusedError

        with engine.connect() as connection:
            age(connection, 7200)
        failing = True
        with pytest.raises(ConnectionRefusedError):
            engine.connect()
        failing = False
        assert case.now().value("empty_slots", case.name) == 1
        case.assert_true(
            checkouts=1,
            checkins=1,
            connects=1,
            connect_errors=1,
            checkout_errors__connect=1,
            closes__recycle=1,
            checkout_wait_seconds_count=2,
            connect_seconds_count=2,
        )
        engine.connect().close()
        case.assert_true(
            checkouts=2,
            checkins=2,
            connects=2,
            connect_errors=1,
            checkout_errors__connect=1,
            closes__recycle=1,
        )

    case.run(scenario)


def test_first_connect_that_fails(case: Case) -> None:
    """A pool whose connections cannot be made counts errors, holds nothing and has no empty slot."""

    def scenario(case: Case) -> None:
        engine = case.start()

        @event.listens_for(engine, "do_connect")
        def refuse(*_: object) -> None:
            raise ConnectionRefusedError

        kept = []
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError) as info:
                engine.connect()
            kept.append(info)  # and with it SQLAlchemy's record, in the traceback
        case.assert_true(connect_errors=3, checkout_errors__connect=3)

    case.run(scenario)


def test_detach_then_close(case: Case) -> None:
    """A detached connection leaves the pool at once and is counted as closed when its holder closes it."""

    def scenario(case: Case) -> None:
        engine = case.start()
        closed = []

        @event.listens_for(engine, "close_detached")
        def tally(connection: object) -> None:
            closed.append(id(connection))

        connection = engine.connect()
        connection.detach()
        assert case.now().value("connections", case.name, state="in_use") == 0
        case.assert_server_agrees(detached=1)
        with engine.connect():
            connection.close()
        if not closed:
            # SQLAlchemy leaves it open, to be collected, where an asyncio dialect has no terminate().
            assert case.is_async
            assert not engine.dialect.has_terminate
            return
        case.assert_true(checkouts=2, checkins=1, connects=2, detaches=1, closes__detached=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        case.run(scenario)
        gc.collect()


def test_connection_left_to_the_garbage_collector(case: Case) -> None:
    """A checkout that is never returned is a leak once its proxy is collected, and nothing stays in use."""

    def scenario(case: Case) -> None:
        engine = case.start()
        connection = engine.connect()
        del connection
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        counted = case.now().counters(case.name)
        assert counted["leaked_checkouts"] == 1
        assert case.now().value("connections", case.name, state="in_use") == 0
        # A synchronous connection goes back to the pool; an asyncio one cannot, and is closed.
        ended = {key: counted.get(key, 0) for key in ("checkins", "detaches", "closes.gc")}
        returned = {"checkins": 1, "detaches": 0, "closes.gc": 0}
        # SQLAlchemy 2.0.0 tries to roll back, which works here, where a greenlet is at hand.
        assert ended == ({"checkins": 0, "detaches": 1, "closes.gc": 1} if case.is_async else returned) or (
            ended == returned and engine.dialect.has_terminate and case.log.counts["closes"] == 0
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.run(scenario)


def test_dispose_with_connections_out(case: Case) -> None:
    """What is idle is disposed of; what is out is in use until it comes back, and is no overflow of the new pool."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=2, max_overflow=0)
        out, idle = engine.connect(), engine.connect()
        idle.close()
        engine.dispose()
        exposition = case.now()
        assert exposition.value("connections", case.name, state="in_use") == 1
        assert exposition.value("connections", case.name, state="idle") == 0
        assert exposition.counters(case.name)["closes.dispose"] == 1
        case.assert_server_agrees()
        both = [engine.connect(), engine.connect()]
        assert case.now().value("connections", case.name, state="in_use") == 3
        assert case.now().value("overflow_connections", case.name) == 0
        for connection in both:
            connection.close()
        out.close()
        del out, connection
        # The old pool keeps it until it is collected itself.
        case.assert_server_agrees()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        case.assert_true(checkouts=4, checkins=4, connects=4, closes__dispose=2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.run(scenario)


def test_dispose_without_closing(case: Case) -> None:
    """``dispose(close=False)`` leaves the old pool to the garbage collector, and the new one is watched."""

    def scenario(case: Case) -> None:
        engine = case.start()
        engine.connect().close()
        engine.dispose(close=False)
        engine.connect().close()
        exposition = case.now()
        assert exposition.counters(case.name)["checkouts"] == 2
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()
        case.assert_true(checkouts=2, checkins=2, connects=2, closes__dispose=1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.run(scenario)


def test_pool_size_zero_is_no_limit(case: Case) -> None:
    """With ``pool_size=0`` no limit is shown, and nothing is overflow."""

    def scenario(case: Case) -> None:
        engine = case.start(pool_size=0)
        connections = [engine.connect() for _ in range(3)]
        exposition = case.now()
        assert [
            exposition.get(key, case.name) for key in ("size", "max_overflow", "capacity", "timeout_seconds")
        ] == [None] * 4
        for connection in connections:
            connection.close()
        case.assert_true(checkouts=3, checkins=3, connects=3)

    case.run(scenario)


def test_unlimited_overflow(case: Case) -> None:
    """With ``max_overflow=-1`` the size is shown, the limit is not, and overflow is counted."""

    def scenario(case: Case) -> None:
        engine = case.start(max_overflow=-1)
        connections = [engine.connect() for _ in range(3)]
        exposition = case.now()
        assert exposition.value("size", case.name) == 1
        assert [exposition.get(key, case.name) for key in ("max_overflow", "capacity")] == [None] * 2
        assert exposition.value("overflow_connections", case.name) == 2
        for connection in connections:
            connection.close()
        case.assert_true(checkouts=3, checkins=3, connects=3, overflow_opened=2, closes__overflow=2)

    case.run(scenario)


def test_null_pool(case: Case) -> None:
    """A NullPool has no limits and no overflow; each checkout opens a connection and each return closes it."""

    def scenario(case: Case) -> None:
        engine = case.start(poolclass=NullPool)
        first, second = engine.connect(), engine.connect()
        assert case.open() == 2
        case.assert_server_agrees()
        first.close()
        second.close()
        exposition = case.now()
        absent = (
            "size",
            "max_overflow",
            "capacity",
            "timeout_seconds",
            "overflow_connections",
            "overflow_opened_total",
        )
        assert [exposition.get(key, case.name) for key in absent] == [None] * len(absent)
        case.assert_true(checkouts=2, checkins=2, connects=2, closes__unpooled=2)

    case.run(scenario)


def test_listener_that_finds_the_connection_stale(case: Case) -> None:
    """A ``checkout`` listener that raises DisconnectionError makes SQLAlchemy reconnect: one error, one checkout."""

    def scenario(case: Case) -> None:
        engine = case.start()
        stale = [False, True]

        @event.listens_for(engine, "checkout")
        def check(*_: object) -> None:
            if stale and stale.pop(0):
                raise exc.DisconnectionError

        engine.connect().close()
        engine.connect().close()
        case.assert_true(checkouts=2, checkins=2, connects=2, invalidations__hard=1, closes__error=1)

    case.run(scenario)


def test_listener_that_never_likes_the_connection(case: Case) -> None:
    """When SQLAlchemy gives up reconnecting, the checkout is an error and nothing is left in use."""

    def scenario(case: Case) -> None:
        engine = case.start()

        @event.listens_for(engine, "checkout")
        def check(*_: object) -> None:
            raise exc.DisconnectionError

        with pytest.raises(exc.InvalidRequestError):
            engine.connect()
        counted = case.now().counters(case.name)
        assert counted["checkout_errors.other"] == 1
        assert "checkouts" not in counted
        assert "checkins" not in counted
        assert metric_state(case.now(), case.name) == pool_state(engine.pool)
        assert_log_agrees(case.now(), case.name, case.log)
        case.assert_server_agrees()

    case.run(scenario)


def test_listener_that_raises(case: Case) -> None:
    """A ``checkout`` listener that raises anything else fails the checkout; its connection is closed for the error."""

    def scenario(case: Case) -> None:
        engine = case.start()
        engine.connect().close()

        @event.listens_for(engine, "checkout")
        def fail(*_: object) -> None:
            raise LookupError

        with pytest.raises(LookupError):
            engine.connect()
        case.assert_true(
            checkouts=1,
            checkins=1,
            connects=1,
            checkout_errors__other=1,
            invalidations__hard=1,
            closes__error=1,
            checkout_wait_seconds_count=2,
        )

    case.run(scenario)


def test_reset_on_return_that_fails(case: Case) -> None:
    """A connection that cannot be reset on return is invalidated, and the return counts."""

    def scenario(case: Case) -> None:
        engine = case.start()

        @event.listens_for(engine, "reset")
        def fail(*_: object) -> None:
            raise LookupError

        engine.connect().close()
        case.assert_true(checkouts=1, checkins=1, connects=1, invalidations__hard=1, closes__error=1)

    case.run(scenario)


def test_second_checkout_of_a_raw_connection(case: Case) -> None:
    """A raw connection that is checked out again is one checkout until its last close."""

    def scenario(case: Case) -> None:
        engine = case.start()
        raw: Any = engine.raw_connection()
        again = raw._checkout_existing()
        again.close()
        assert case.now().value("connections", case.name, state="in_use") == 1
        raw.close()
        case.assert_true(checkouts=1, checkins=1, connects=1)

    case.run(scenario)


def test_ages(case: Case) -> None:
    """The oldest hold and the oldest connection grow while they last, and a return is dated."""

    def scenario(case: Case) -> None:
        engine = case.start()
        assert case.now().value("last_checkin_timestamp_seconds", case.name) == 0
        before = time.time()
        with engine.connect():
            time.sleep(0.05)
            exposition = case.now()
            assert exposition.value("longest_held_seconds", case.name) >= 0.05
            assert exposition.value("oldest_connection_seconds", case.name) >= 0.05
        exposition = case.now()
        assert exposition.value("longest_held_seconds", case.name) == 0
        assert before <= exposition.value("last_checkin_timestamp_seconds", case.name) + 0.001
        assert exposition.value("hold_seconds_sum", case.name) >= 0.05

    case.run(scenario)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_child_starts_at_nothing(server: Server, tmp_path: Path) -> None:
    """A child's counts start at nothing, its own checkouts count, and its parent's numbers do not move."""
    case = Case("psycopg", server, tmp_path)
    with case.log:
        engine = case.start(pool_size=2)
        held = engine.connect()
        engine.connect().close()
        before = case.now()
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:  # pragma: no cover - the child
            status = 1
            try:
                inherited = case.now().counters(case.name), case.open()
                engine.dispose(close=False)
                with engine.connect():
                    inside = case.open()
                counted = case.now().counters(case.name)
                os.write(writer, repr((inherited, inside, counted)).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader) as stream:
            inherited, inside, counted = eval(stream.read())  # noqa: S307 - what the child wrote above
        assert os.waitpid(pid, 0)[1] == 0
        assert inherited == ({}, 0)
        assert inside == 1
        assert {key: value for key, value in counted.items() if not key.endswith("_count")} == {
            "checkouts": 1,
            "checkins": 1,
            "connects": 1,
        }
        after = case.now()
        assert after.counters(case.name) == before.counters(case.name)
        assert metric_state(after, case.name) == pool_state(engine.pool)
        held.close()
        engine.dispose()
