# SPDX-License-Identifier: Apache-2.0
"""The cost of ``instrument()``: it grows neither with the objects of the process nor with its pools."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import (
    AssertionPool,
    AsyncAdaptedQueuePool,
    NullPool,
    Pool,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    base,
)

from sqlalchemy_pool_exporter import instrument
from sqlalchemy_pool_exporter.recording.sqlalchemy_pool import RECORDS_OUT
from tests.support.database import Database
from tests.support.fakes import connect
from tests.support.samples import RegistrySamples

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from sqlalchemy.engine import Engine

# With how many connections can be out at once, up to three.
POOLS = {QueuePool: 3, NullPool: 3, StaticPool: 1, SingletonThreadPool: 1, AssertionPool: 1}
HAS_TABLE = hasattr(base, RECORDS_OUT[0])  # SQLAlchemy 2.0


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The calls that look at every object of the process."""
    calls: list[object] = []

    def noted(original: Any) -> Any:
        def scan(*arguments: Any, **options: Any) -> Any:
            calls.append((original, arguments))
            return original(*arguments, **options)

        return scan

    for name in ("get_referrers", "get_objects"):
        monkeypatch.setattr(gc, name, noted(getattr(gc, name)))
    return calls


@pytest.fixture(params=POOLS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine that had a connection out, and has none now."""
    engine = create_engine("sqlite://", poolclass=request.param)
    engine.connect().close()
    yield engine
    engine.dispose()


def state(registry: CollectorRegistry, name: str) -> tuple[float, float]:
    """Return the connections in use and idle."""
    samples = RegistrySamples(registry)
    return (
        samples.value("connections", name, state="in_use"),
        samples.value("connections", name, state="idle"),
    )


@pytest.mark.parametrize("target", ["engine", "pool"])
@pytest.mark.parametrize("is_out", [False, True], ids=["nothing out", "out"])
def test_no_look_at_every_object(
    target: str, is_out: bool, engine: Engine, scans: list[object], registry: CollectorRegistry
) -> None:
    """Instrumenting an engine or its pool finds what is out and idle without a look at every object.

    The pool is in a variable: how many refer to it does not matter.
    """
    pool = engine.pool
    out = [engine.connect() for _ in range(POOLS[type(pool)] * is_out)]
    name = instrument(pool if target == "pool" else engine, registry=registry).name
    assert scans == []
    is_kept = not isinstance(pool, NullPool)
    assert state(registry, name) == (len(out), int(is_kept and not is_out))
    for connection in out:
        connection.close()
    assert state(registry, name) == (0, is_kept * max(len(out), 1))
    samples = RegistrySamples(registry)
    assert samples.value("checkins_total", name) == len(out)
    assert samples.value("exporter_recording_faults_total", name) == 0


@pytest.mark.parametrize("target", ["engine", "pool"])
@pytest.mark.parametrize("returned", [0, 1])
def test_a_connection_that_its_pool_forgot_is_found(
    target: str, returned: int, scans: list[object], registry: CollectorRegistry
) -> None:
    """A pool that was disposed of while a connection was out does not count it; it is in use all the same."""
    engine = create_engine("sqlite://", poolclass=QueuePool)
    forgotten = engine.connect()
    engine.pool.dispose()
    for _ in range(returned):
        engine.connect().close()
    name = instrument(engine if target == "engine" else engine.pool, registry=registry).name
    assert scans == []
    assert state(registry, name) == (1, returned)
    forgotten.close()
    assert state(registry, name) == (0, returned + 1)
    engine.dispose()


def test_a_thread_whose_connection_its_pool_dropped(scans: list[object], registry: CollectorRegistry) -> None:
    """A full SingletonThreadPool drops connections of other threads; those that are out are found all the same."""
    engine = Database().engine(poolclass=SingletonThreadPool, pool_size=1)
    mine = engine.connect()
    theirs: list[Any] = []
    thread = threading.Thread(target=lambda: theirs.append(engine.raw_connection()))
    thread.start()
    thread.join()
    name = instrument(engine, registry=registry).name
    assert scans == []
    samples = RegistrySamples(registry)
    assert samples.value("connections", name, state="in_use") == 1
    assert samples.value("empty_slots", name) == 1  # SQLAlchemy closed the connection of this thread
    theirs.pop().close()
    mine.invalidate()
    mine.close()
    assert not RegistrySamples(registry).value("connections", name, state="in_use")
    engine.dispose()


@pytest.mark.parametrize("poolclass", [AsyncAdaptedQueuePool, NullPool])
@pytest.mark.parametrize("out", [0, 3])
def test_an_asyncio_engine(
    out: int, poolclass: type[Pool], scans: list[object], registry: CollectorRegistry
) -> None:
    """The connections of an asyncio engine that are out are found without a look at every object."""

    async def main() -> None:
        engine = create_async_engine("sqlite+aiosqlite://", poolclass=poolclass)
        held = [await engine.connect() for _ in range(out)]
        name = instrument(engine, registry=registry).name
        before = state(registry, name)
        for connection in held:
            await connection.close()
        after = state(registry, name)
        await engine.dispose()
        # Only now: the threads of connections that are left open would wait for ever.
        assert scans == []
        assert before == (out, 0)
        assert after == (0, 0 if poolclass is NullPool else out)

    asyncio.run(main())


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_detached_and_invalidated_connections(
    poolclass: type[Pool], scans: list[object], registry: CollectorRegistry
) -> None:
    """A detached connection is the application's, and an invalidated one is gone: neither is in use or idle."""
    engine = Database().engine(poolclass=poolclass, **({"pool_size": 3} if poolclass is QueuePool else {}))
    detached, invalidated, held = (engine.raw_connection() for _ in range(3))
    detached.detach()
    invalidated.invalidate()
    name = instrument(engine, registry=registry).name
    assert scans == []
    assert state(registry, name) == (1, 0)
    empty = 2 if poolclass is QueuePool else 0
    assert RegistrySamples(registry).value("empty_slots", name) == empty
    held.close()
    detached.close()


@pytest.mark.skipif(HAS_TABLE, reason="SQLAlchemy 2.0: see the next test")
@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_a_caller_that_connects_needs_no_look_at_every_object(
    poolclass: type[Pool], scans: list[object], registry: CollectorRegistry
) -> None:
    """While another thread connects, instrumenting does not look for the record that it is about to hand out."""
    arrived, go_on = threading.Event(), threading.Event()
    database = Database()
    engine = database.engine(poolclass=poolclass)
    held = engine.connect()

    def stop() -> None:
        arrived.set()
        assert go_on.wait(10)

    database.during_connect = stop
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(engine.raw_connection()))
    thread.start()
    assert arrived.wait(10)
    name = instrument(engine, registry=registry).name
    assert scans == []
    assert state(registry, name)[0] == 1
    go_on.set()
    thread.join()
    assert state(registry, name)[0] == 2
    got.pop().close()
    held.close()
    assert state(registry, name)[0] == 0


def test_a_connection_that_is_being_reset_is_found(scans: list[object], registry: CollectorRegistry) -> None:
    """A connection whose rollback is under way is in use; only SQLAlchemy 2.0 has it in no table."""
    arrived, go_on = threading.Event(), threading.Event()
    engine = Database().engine(pool_size=2)
    held, returning = engine.raw_connection(), engine.raw_connection()

    @event.listens_for(engine, "reset")
    def slow(*_: object) -> None:
        arrived.set()
        assert go_on.wait(10)

    thread = threading.Thread(target=returning.close)
    thread.start()
    assert arrived.wait(10)
    name = instrument(engine, registry=registry).name
    assert bool(scans) is HAS_TABLE
    assert state(registry, name) == (2, 0)
    go_on.set()
    thread.join()
    assert state(registry, name) == (1, 1)
    held.close()
    assert state(registry, name) == (0, 2)


class OwnPool(Pool):
    """A pool class of the application, which keeps one connection."""

    idle: Any = None

    def _do_get(self) -> Any:
        record, self.idle = self.idle or self._create_connection(), None
        return record

    def _do_return_conn(self, record: Any) -> None:
        self.idle = record


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool, OwnPool])
def test_without_a_table_the_garbage_collector_finds_them(
    poolclass: type[Pool], scans: list[object], registry: CollectorRegistry
) -> None:
    """If SQLAlchemy has no table of what is out, or the pool class is not SQLAlchemy's, every object is looked at."""
    pool = poolclass(connect)
    held = pool.connect()
    with pytest.MonkeyPatch.context() as patch:
        if poolclass is not OwnPool:
            patch.delattr(base, RECORDS_OUT[0] if HAS_TABLE else "_finalize_fairy")
        name = instrument(pool, registry=registry).name
    assert scans
    assert state(registry, name) == (1, 0)
    held.close()
    assert state(registry, name) == (0, 0 if poolclass is NullPool else 1)


@pytest.mark.parametrize("poolclass", [QueuePool, NullPool])
def test_beside_threads_that_check_out(poolclass: type[Pool]) -> None:
    """Instrumenting beside threads that check out and return raises nothing and counts nothing twice."""
    options = {"pool_size": 2, "pool_timeout": 10} if poolclass is QueuePool else {}
    engine = Database().engine(poolclass=poolclass, **options)
    done, errors = threading.Event(), []

    def work() -> None:
        try:
            while not done.is_set():
                engine.raw_connection().close()
        except BaseException as error:  # noqa: BLE001 - shown by the assertion
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        registries = []
        for _ in range(20):
            registries.append(CollectorRegistry())
            handle = instrument(engine, registry=registries[-1])
            if len(registries) < 20:
                handle.close()
        done.set()
        for thread in threads:
            thread.join()
    finally:
        done.set()
        sys.setswitchinterval(before)
    assert errors == []
    assert state(registries[-1], handle.name)[0] == 0
    with engine.connect():
        assert state(registries[-1], handle.name)[0] == 1
    assert RegistrySamples(registries[-1]).value("exporter_recording_faults_total", handle.name) == 0


def test_the_cost_does_not_grow_with_the_number_of_pools(registry: CollectorRegistry) -> None:
    """Instrumenting the 2,001st pool takes as many calls and lines as the second."""

    def steps(number: int) -> int:
        engine = create_engine("sqlite://", creator=connect)
        passed = 0

        def count(_frame: FrameType, what: str, _argument: object) -> Any:
            nonlocal passed
            passed += what in {"call", "line"}
            return count

        before = sys.gettrace()
        sys.settrace(count)
        try:
            kept.append((engine, instrument(engine, name=f"p{number}", registry=registry)))
        finally:
            sys.settrace(before)
        return passed

    kept: list[Any] = []
    few = min(steps(number) for number in range(1, 5))
    for number in range(5, 2000):
        engine = create_engine("sqlite://", creator=connect)
        kept.append((engine, instrument(engine, name=f"p{number}", registry=registry)))
    assert min(steps(number) for number in range(2000, 2004)) <= few
