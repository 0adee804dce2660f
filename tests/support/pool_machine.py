# SPDX-License-Identifier: Apache-2.0
"""An instrumented pool, which is compared after each step with its model, SQLAlchemy's pool log and the server."""

from __future__ import annotations

import gc
import uuid
import weakref
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.metrics import PREFIX
from sqlalchemy_pool_exporter.segment import texts
from sqlalchemy_pool_exporter.segment.held import held
from tests.support.callers import (
    ERRORS,
    Call,
    Clock,
    Interrupt,
    Tasks,
    Threads,
    attempt,
    current_call,
    sqlalchemy_queue,
)
from tests.support.drivers import ASYNC, WITH_SERVER
from tests.support.reference import Model
from tests.support.reference_parts import Pool
from tests.support.samples import RegistrySamples
from tests.support.wait import SECONDS, eventually
from tests.support.witness import PoolLog, assert_errors_agree, assert_sites_add_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sqlalchemy.engine import Connection, Engine

    from sqlalchemy_pool_exporter.recording.handle import Handle
    from tests.support.pg import Server
    from tests.support.reference_connections import Collected, ResetFails
    from tests.support.reference_parts import Detached, Slot

VERSION = tuple(int(part) for part in sqlalchemy.__version__.split("."))

HOUR = 3600.0
_BY_SITE = {
    f"{PREFIX}checkouts_by_site_total": "checkouts",
    f"{PREFIX}hold_seconds_by_site_count": "holds",
    f"{PREFIX}leaked_checkouts_by_site_total": "leaked",
}
_TOTALS = (f"{PREFIX}nested_checkouts_total", f"{PREFIX}self_deadlocked")


@dataclass(eq=False)
class Held:
    """A connection that a caller has checked out."""

    connection: Any  # None as soon as only its last call remains
    slot: Slot
    checkouts: int = 1

    @property
    def proxy(self) -> Any:
        return self.connection.connection


class PoolMachine(RuleBasedStateMachine):
    """An instrumented engine, the model of its pool, and the invariants after each step."""

    def __init__(self, driver: str, server: Server, directory: Path) -> None:
        super().__init__()
        self.driver = driver
        self.server = server
        self.directory = directory
        self.name = f"s{uuid.uuid4().hex[:12]}"
        self.registry = CollectorRegistry()
        self.log = PoolLog(self.name)
        self.log.__enter__()
        self.clock = Clock()
        sqlalchemy_queue._time = self.clock.time
        self.runner: Threads | Tasks = Tasks(self.clock) if driver in ASYNC else Threads(self.clock)
        self.calls: list[Call] = []
        self.held: list[Held] = []
        self.detached: list[tuple[Any, Detached]] = []
        self.handle: Handle | None = None
        self.counted: dict[str, float] = {}
        self.expires = 0.0
        self.engine: Any = None
        gc.freeze()  # so that the collection after each step skips all older objects

    # -- the engine

    @initialize(
        size=st.integers(0, 2),
        max_overflow=st.integers(-1, 2),
        lifo=st.booleans(),
        pre_ping=st.booleans(),
        recycle=st.booleans(),
        keeps_none=st.integers(0, 7).map(lambda number: number == 0),
    )
    def create(
        self,
        size: int,
        max_overflow: int,
        *,
        lifo: bool,
        pre_ping: bool,
        recycle: bool,
        keeps_none: bool,
    ) -> None:
        if size + max_overflow == 0:
            max_overflow = 1  # a pool without a connection has nothing to test
        options: dict[str, Any] = {"pool_pre_ping": pre_ping, "pool_logging_name": self.name}
        if recycle:
            options["pool_recycle"] = 24 * HOUR
        if keeps_none:
            options["poolclass"] = NullPool
        else:
            options |= {"pool_size": size, "max_overflow": max_overflow, "pool_use_lifo": lifo}
            options["poolclass"] = AsyncAdaptedQueuePool if self.driver in ASYNC else QueuePool
        self.engine = self._make_engine(options)
        event.listen(self.engine, "do_connect", self._connecting)
        # The dialect uses the first connection to ask for the server's version, which the model leaves out.
        self.runner.run(lambda: self.engine.connect().close())
        self.runner.run(self.engine.dispose)
        self.log.counts.clear()
        self.model = Model(
            Pool(0 if keeps_none else size, max_overflow, keeps_none=keeps_none),
            lifo=lifo,
            recycle=recycle,
            pre_ping=pre_ping,
            is_asyncio=self.driver in ASYNC,
            collected=self._collected(),
            # Where SQLAlchemy cannot terminate detached connections, it leaves them to the garbage collector.
            closes_detached=self.driver != "psycopg_async" or VERSION < (2, 0, 50),
            reset_fails=self._reset_fails(),
            version=VERSION,
        )
        self._instrument()
        self._note_pool()

    def _make_engine(self, options: dict[str, Any]) -> Engine:
        if self.driver in WITH_SERVER:
            url = self.server.url(f"postgresql+{self.driver}", application_name=self.name)
        else:
            url = f"sqlite{'+aiosqlite' if self.driver in ASYNC else ''}:///{self.directory / 'db'}"
        if self.driver in ASYNC:
            return create_async_engine(url, **options).sync_engine
        return create_engine(url, **options)

    def _reset_fails(self) -> ResetFails:
        """Return when the rollback at a return fails on a dead connection; a driver may skip a needless rollback."""
        if self.driver in WITH_SERVER:
            return "in a transaction"
        return "never" if self.driver == "aiosqlite" and VERSION > (2, 1) else "always"

    def _collected(self) -> Collected:
        """Return what SQLAlchemy does with a connection that is collected."""
        if self.driver not in ASYNC:
            return "returned"
        if self.driver == "psycopg_async":
            return "left"
        if VERSION > (2, 0, 50):
            return "closed"
        # Up to 2.0.50 SQLAlchemy acts as if a rollback could be awaited.
        return "left" if self.driver == "aiosqlite" else "returned"

    def _connecting(self, *_: object) -> None:
        call = current_call.get()
        if call is None:
            return
        if self.model.holds_connects:
            self.runner.wait_to_connect(call)
        if call.interrupted:
            raise Interrupt
        if self.model.refuses:
            raise ERRORS[self.model.refuses]

    def _instrument(self) -> None:
        self.handle = instrument(self.engine, name=self.name, registry=self.registry, sites=True)
        self.model.instrument()
        self.counted = {}

    def _note_pool(self) -> None:
        self.model.pool.reference = weakref.ref(self.engine.pool)

    # -- after each step

    def _settle(self) -> None:
        """Wait until the model and the application are idle, and compare the results of the calls."""
        self.model.settle()
        for call in self.calls[:]:
            if call.caller.at == "connect":
                assert call.waits_to_connect.wait(SECONDS)
            elif call.caller.at is None:
                assert call.is_done.wait(SECONDS)
                self.calls.remove(call)
                assert call.caller.fault == call.fault, (
                    f"{call.caller.fault!r} expected, {call.fault!r} raised"
                )
                if call.caller.slot and call.connection:
                    self._hold(call.caller.slot, call.connection)
                call.connection = None
        for pool in self.model.pools:
            in_queue = sum(caller.at == "queue" and caller.pool is pool for caller in self.model.callers)
            if in_queue:
                waiters = partial(self.runner.waiters, pool.reference())
                assert eventually(partial(_returns, waiters, in_queue)), f"not {in_queue} in the queue"

    def _collect(self) -> None:
        for _ in range(3):  # SQLAlchemy 2.1 keeps a proxy's owner until the proxy is collected
            self.runner.run_plainly(gc.collect)
        self.model.reap()

    def _hold(self, slot: Slot, connection: Connection) -> None:
        self._bind(slot, connection)
        self.held.append(Held(connection, slot))

    @staticmethod
    def _bind(slot: Slot, connection: Any) -> None:
        record = connection.connection._connection_record
        if slot.record is None:
            slot.record = weakref.ref(record)
        assert slot.record() is record

    def _end(self, held: Held, function: Callable[[], Any]) -> str:
        """Make the last call for a connection, in another thread or task."""
        held.connection = None
        return self._call_last([function])

    def _call_last(self, functions: list[Callable[[], object]]) -> str:
        """Call the only function in the list, to which this thread keeps no reference while it runs."""

        def call() -> object:
            return functions.pop()()

        return str(self.runner.run(lambda: attempt(call)[0]))

    # -- the invariants after each step

    @invariant()
    def numbers_are_true(self) -> None:
        if self.engine is None:
            return
        self._collect()
        self._assert_model_is_the_pool()
        self._assert_log_agrees()
        self._assert_server_agrees()
        exposition = RegistrySamples(self.registry)
        if not self.handle:
            assert not exposition.samples
            return
        self._assert_metrics_are(exposition)

    def _assert_metrics_are(self, exposition: RegistrySamples) -> None:
        gauges = {
            **{
                state: exposition.value("connections", self.name, state=state) for state in ("in_use", "idle")
            },
            **{key: exposition.value(key, self.name) for key in ("empty_slots", "pending_checkouts")},
        }
        overflow = exposition.get("overflow_connections", self.name)
        if overflow is not None:
            gauges["overflow"] = overflow
        _assert_equal(gauges, self.model.gauges())
        counted = exposition.counters(self.name)
        _assert_equal(counted, self.model.counted)
        assert_errors_agree(exposition, self.name)
        assert_sites_add_up(exposition, self.name)
        self._assert_sites_are(exposition)
        assert all(counted[key] >= value for key, value in self.counted.items())
        self.counted = counted
        assert min(exposition.samples.values()) >= 0

    def _assert_sites_are(self, exposition: RegistrySamples) -> None:
        """Compare what is counted by site, and who holds what, with the model."""
        assert self.handle
        shown = {
            (metric, dict(labels)["site"]): value
            for (name, labels), value in exposition.samples.items()
            if (metric := _BY_SITE.get(name)) and value
        }
        if self.model.counted["checkouts"]:
            assert shown == {key: count for key, count in self.model.by_site.items() if count}
        named = texts.own()
        out = [one for recorder in self.handle._recorders for one in held(recorder.snapshot())]
        assert self.model.held() == sorted((one.site, named.holder(one.holder)) for one in out)
        totals = dict.fromkeys(_TOTALS, 0.0)
        for (name, _), value in exposition.samples.items():
            if name in totals:
                totals[name] += value
        assert [float(self.model.nested), 0.0] == list(totals.values())

    def _assert_model_is_the_pool(self) -> None:
        model, pool = self.model.pool, self.engine.pool
        if not model.keeps_none:
            assert (len(model.queue), model.overflow if model.size else 0) == (
                pool.checkedin(),
                pool.overflow(),
            )

    def _assert_log_agrees(self) -> None:
        keys = (
            "connects",
            "connect_errors",
            "closes",
            "recycle",
            "pool_invalidated",
            "soft_invalidated",
            "soft",
            "hard",
            "ping_failures",
        )
        _assert_equal(
            {key: self.log.counts[key] for key in keys}, {key: self.model.logged[key] for key in keys}
        )

    def _assert_server_agrees(self) -> None:
        if self.driver in WITH_SERVER:
            expected = self.model.on_server
            assert eventually(lambda: self.server.count(self.name) == expected), (
                f"server has {self.server.count(self.name)}, not {expected}"
            )

    def teardown(self) -> None:
        try:
            if self.engine is not None:
                self._end_all()
        finally:
            self.log.__exit__()
            # Collect where the loop runs: without a loop, aiosqlite makes one for a collected connection.
            self.engine = self.handle = None
            self.runner.run_plainly(gc.collect)
            self.runner.close()

    def _end_all(self) -> None:
        self.model.raises.clear()
        self.model.refuses = ""
        self.model.holds_connects = False
        while self.held:
            held = self.held.pop()
            self._end(held, held.connection.close)
        for call in self.calls:
            if call.caller.at == "connect":
                self.runner.let_connect(call)
            while not call.is_done.wait(0.01):
                self.clock.passed = max(self.clock.passed, call.expires + HOUR / 4)
                if call.caller.at == "queue":
                    self.runner.expire(call.caller.pool.reference())
            if call.connection:
                functions: list[Callable[[], object]] = [call.connection.close]
                call.connection = None
                self._call_last(functions)
        while self.detached:
            self._call_last([self.detached.pop()[0].close])
        self.runner.run(self.engine.dispose)
        if self.handle:
            self.handle.close()


def _returns(function: Callable[[], object], value: object) -> bool:
    return function() == value


def _assert_equal(ours: Mapping[str, float], true: Mapping[str, float]) -> None:
    wrong = {
        key: (ours.get(key, 0), true.get(key, 0))
        for key in {*ours, *true}
        if ours.get(key, 0) != true.get(key, 0)
    }
    assert not wrong, f"what is said, and what is true: {wrong}"
